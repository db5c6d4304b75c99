"""The one training loop: every trained model goes through `fit`."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from spike_kit.base import distributed
from spike_kit.base.config import TrainingConfig
from spike_kit.base.devices import deterministic
from spike_kit.base.errors import ConfigError, TrainingError, TrainingStoppedError
from spike_kit.base.seeds import torch_generator
from spike_kit.data.graph import Graph
from spike_kit.evaluation.ranking import RankingTask, evaluate
from spike_kit.models.base import Batch, TrainedRecommender
from spike_kit.training.checkpoint import MONITOR, EpochRow, History, TrainingState, best_file
from spike_kit.training.recorded import RecordedStep
from spike_kit.training.sampling import NegativeSampler, epoch_batches, holds_users, with_negatives

TRAINING_VERSION = 1
"""Version of loop and sampling: raised by whoever changes the numbers of a training."""
BY_USER_VERSION = 2
"""The same where batches hold whole users (`holds_users`); before, no batch did."""

LEAST_STEPS = 5
"""Steps that each validation of the patience stands for, at least. Patience ends a training only after so many steps
since the best validation, and in all; where the batch is larger than the data, in all after so many full batches."""

LARGEST_BATCH = 65_536
"""Largest batch whose size counts there; a larger one is asked for to say "all interactions at once"."""

SAVE_PAUSE = 3
"""Shortest time between two states, where epochs are shorter; on SIGTERM the state is written in any case."""


def fit(
    model: TrainedRecommender,
    graph: Graph,
    validation: RankingTask,
    config: TrainingConfig,
    seed: int,
    progress: bool = True,
    report: Callable[[EpochRow], None] | None = None,
    *,
    state: Path | None = None,
    names: Sequence[str] | None = None,
) -> History:
    """Train a model in place; at the end it holds the kept weights.

    In a group of processes (`spike_kit.base.distributed.group`) each computes its share of every batch; the first one
    alone validates, writes and shows progress.

    Parameters
    ----------
    model
        Freshly built model on the device of ``graph``.
    graph
        Train interactions and triples.
    validation
        Task that is evaluated every ``config.eval_every`` epochs and after the last one; the test split is never
        looked at.
    config
        Epochs, batches, optimiser, schedule, early stopping.
    seed
        Seed of batches, negatives and the model's own draws.
    progress
        Show a bar with an estimate.
    report
        Called after each epoch with its row of the history (validation metrics where it was validated); what it raises
        ends the training.
    state
        Folder of the training's state: written after every epoch (of short ones, every `SAVE_PAUSE` seconds), and on
        SIGTERM, after which the epoch is finished first; a state that is found there is gone on from, to the same bits
        on the same machine. None: nothing is kept.
    names
        Names of all users for messages; none: they are named by their numbers.

    Raises
    ------
    DataError
        If the loss needs negatives, and no user with train interactions lacks an item.
    TrainingError
        If a loss term or a score becomes NaN or infinite; the message names the term, the epoch and the file of the
        best weights, which the model holds then.
    TrainingStoppedError
        After SIGTERM, once the epoch is finished and the state is written.
    StorageError
        If the state cannot be written; the state before it is untouched.
    """
    pairs = with_negatives(graph, names) if model.config.loss == "bpr" else graph
    optimizer = _adam(model, config)
    sampler = NegativeSampler(graph) if model.reads_negatives else None
    by_user = holds_users(config, type(model), model.config.loss, pairs.n_interactions)
    generators = torch_generator(seed, "batches"), torch_generator(seed, "draws", graph.device)
    now = TrainingState(model, optimizer, *generators, config, state)
    if state is not None:
        now.resume(state, seed)
    loss_terms = distributed.shared(model, optimizer)

    def step(batch: Batch) -> dict[str, Tensor]:
        return training_step(loss_terms, batch, model.draw(now.draws), optimizer)

    alone_on_cuda = graph.device.type == "cuda" and distributed.size() == 1
    static = alone_on_cuda and not by_user and model.is_static(min(config.batch_size, pairs.n_interactions))
    take = RecordedStep(step, now.draws) if static and config.cuda_graph else step
    quiet = not progress or distributed.rank() > 0
    with (
        deterministic(),
        _sigterm_noted(active=state is not None) as stop,
        tqdm(total=config.epochs, initial=now.epoch - 1, desc="train", unit="epoch", disable=quiet) as bar,
    ):
        while now.epoch <= config.epochs and not _is_enough(now, pairs.n_interactions):
            model.train()
            batches = epoch_batches(pairs, sampler, config.batch_size, now.batches, by_user)
            row = _epoch(now, take, batches, pairs.n_interactions)
            if not now.epoch % config.eval_every or now.epoch == config.epochs:
                model.eval()
                means = _validated(now, validation)
                row |= {f"valid_{name}": value for name, value in means.items()}
                improved = means[MONITOR] > now.best
                now.waited = 0 if improved else now.waited + 1
                now.best = max(now.best, means[MONITOR])
                if improved or config.keep == "last":
                    now.keep()
                shown = {"loss": row["loss"], MONITOR: means[MONITOR], "best": now.best}
                bar.set_postfix({name: f"{value:.4f}" for name, value in shown.items()}, refresh=False)
            bar.update()
            if report is not None:
                report(row)
            now.history.rows.append(row)
            now.history.steps += steps_per_epoch(config, pairs.n_interactions)
            now.epoch += 1
            _save(now, stop, _is_enough(now, pairs.n_interactions))
        if now.epoch <= config.epochs:
            bar.total = now.epoch - 1
    model.load_tensors(now.kept)
    model.eval()
    return now.history


def _adam(model: TrainedRecommender, config: TrainingConfig) -> torch.optim.Adam:
    """Adam; on CUDA with the rate on the device, so that a step that is recorded need not know it."""
    device, rate = model.device, config.learning_rate
    on_cuda = device.type == "cuda"
    given = torch.tensor(rate, device=device) if on_cuda else rate
    return torch.optim.Adam(model.parameters(), given, fused=device.type in ("cpu", "cuda"), capturable=on_cuda)


def training_step(
    loss_terms: distributed.LossFunction, batch: Batch, draws: Any, optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """Take one optimiser step and return the detached loss terms; the optimised loss is their sum.

    ``loss_terms`` is a `TrainedRecommender`, or what computes its terms for it (`spike_kit.base.distributed.shared`).
    """
    return _step(loss_terms(batch, draws), optimizer)


def _step(terms: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    optimizer.zero_grad(set_to_none=True)
    torch.stack(list(terms.values())).sum().backward()
    optimizer.step()
    return {name: term.detach() for name, term in terms.items()}


def learning_rate(config: TrainingConfig, step: int, n_steps: int) -> float:
    """Learning rate of step ``step`` (from 0, over all epochs) of ``n_steps``.

    The warm-up reaches the full rate with its last step; the schedule begins with the full rate and would reach 0
    one step after the last.
    """
    if step < config.warmup_steps:
        return config.learning_rate * ((step + 1) / config.warmup_steps)
    if config.schedule == "constant":
        return config.learning_rate
    done = (step - config.warmup_steps) / (n_steps - config.warmup_steps)
    return config.learning_rate * (1 - done if config.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2)


def _epoch(
    now: TrainingState, step: Callable[[Batch], dict[str, Tensor]], batches: Iterator[Batch], n_interactions: int
) -> EpochRow:
    """Take the steps of an epoch, after those of the model's own phase, if it has one; returns the history's row."""
    totals, n_steps = _auxiliary(now, n_interactions), steps_per_epoch(now.config, n_interactions)
    for number, batch in enumerate(batches):
        _set_rate(now, number, n_steps)
        for name, term in distributed.mean(step(batch)).items():
            totals[name] = totals.get(name, 0.0) + term.double() * batch.users.numel()
    sums: list[float] = torch.stack(list(totals.values())).tolist()
    means = {name: total / n_interactions for name, total in zip(totals, sums, strict=True)}
    for name, value in means.items():
        if not math.isfinite(value):
            problem = f"loss term {name!r} became {value} in epoch {now.epoch}"
            raise _broken(now, problem, "lower the learning rate, or the weight of this term")
    return {"epoch": now.epoch, "loss": sum(means.values()), **means, "seconds": now.seconds}


def _set_rate(now: TrainingState, step: int, n_steps: int) -> None:
    """Give the optimiser the learning rate of a step of this epoch, which has ``n_steps``."""
    done = (now.epoch - 1) * n_steps + step
    rate = learning_rate(now.config, done, now.config.epochs * n_steps)
    for group in now.optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def _auxiliary(now: TrainingState, n_interactions: int) -> dict[str, Tensor]:
    """Take the steps of the model's own phase, with the learning rate of the epoch's first step.

    Returns
    -------
    dict
        Means of its terms over these steps, times the number of interactions, as sums over those are.
    """
    totals: dict[str, Tensor] = {}
    n_phase = now.model.auxiliary_steps
    if not n_phase:
        return totals
    if distributed.size() > 1:
        raise ConfigError(
            "this model has a training phase of its own, which runs in one process only", "use one process"
        )
    _set_rate(now, 0, steps_per_epoch(now.config, n_interactions))
    for step in range(n_phase):
        terms = _step(now.model.auxiliary_losses(step, now.draws), now.optimizer)
        for name, term in terms.items():
            totals[name] = totals.get(name, 0.0) + term.double() * (n_interactions / n_phase)
    now.model.after_auxiliary()
    return totals


def _validated(now: TrainingState, validation: RankingTask) -> dict[str, float]:
    try:
        return distributed.on_first(lambda: evaluate(now.model, validation)[0])
    except TrainingError as error:
        raise _broken(now, f"{error.message} (epoch {now.epoch})", error.hint) from error


def _broken(now: TrainingState, message: str, hint: str) -> TrainingError:
    """Give the model its best weights back and say where they are."""
    best, folder = now.history.best_epoch, now.folder
    if best:
        now.model.load_tensors(now.kept)
        message += f"; the best weights are those of epoch {best}"
        if folder is not None:
            distributed.on_first(lambda: now.save_best(folder))
            message += f", in {best_file(folder, best)}"
    now.model.eval()
    return TrainingError(message, hint)


def steps_per_epoch(config: TrainingConfig, n_interactions: int) -> int:
    """Steps of an epoch over so many interactions, the model's own phase not counted."""
    return math.ceil(n_interactions / config.batch_size)


def _is_enough(now: TrainingState, n_interactions: int) -> bool:
    """Whether patience ends the training: enough validations without a better one, and enough steps (`LEAST_STEPS`)."""
    config, steps = now.config, steps_per_epoch(now.config, n_interactions)
    least, larger = LEAST_STEPS * config.patience, min(config.batch_size, LARGEST_BATCH) / n_interactions
    tried = now.waited * config.eval_every * steps >= least and (now.epoch - 1) * steps >= least * max(1, larger)
    return bool(config.patience) and now.waited >= config.patience and tried


def _save(now: TrainingState, stop: threading.Event, last: bool) -> None:
    """Write the state after the first and the last epoch, after a pause, or where a process was asked to stop.

    All processes stop then.
    """
    folder = now.folder
    if folder is None:
        return
    first_or_last = now.epoch == 2 or now.epoch > now.config.epochs or last
    due = first_or_last or time.perf_counter() - now.saved > SAVE_PAUSE
    stopped, due = distributed.any_of(stop.is_set(), due)
    if stopped or due:
        distributed.on_first(lambda: now.save(folder))
        now.saved = time.perf_counter()
    if stopped:
        raise TrainingStoppedError(f"training was asked to stop: the same command goes on from epoch {now.epoch}")


@contextmanager
def _sigterm_noted(active: bool) -> Iterator[threading.Event]:
    """Let SIGTERM set the event that is given instead of ending the process; in the main thread, where asked."""
    noted = threading.Event()
    if not active or threading.current_thread() is not threading.main_thread():
        yield noted
        return
    before = signal.signal(signal.SIGTERM, lambda *_: noted.set())
    try:
        yield noted
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
