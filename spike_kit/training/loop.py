"""The one training loop: every trained model goes through `fit`."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from spike_kit.base import distributed
from spike_kit.base.config import TrainingConfig
from spike_kit.base.devices import deterministic
from spike_kit.base.errors import ConfigError, SpikeKitError, TrainingError
from spike_kit.base.seeds import torch_generator
from spike_kit.data.graph import Graph
from spike_kit.evaluation.ranking import RankingTask, evaluate
from spike_kit.models.base import Batch, TrainedRecommender
from spike_kit.training.checkpoint import MONITOR, EpochRow, History, TrainingState, best_file
from spike_kit.training.sampling import NegativeSampler, epoch_batches

TRAINING_VERSION = 1
"""Version of loop and sampling: raised by whoever changes the numbers of a training."""

SAVE_SECONDS = 600
"""Longest time between two states within an epoch."""
SAVE_PAUSE = 3
"""Shortest time between two states at the ends of epochs that are shorter; a state is never lost on SIGTERM."""


class TrainingStoppedError(SpikeKitError):
    """SIGTERM ended a training; its state is on the disk."""


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
        Folder of the training's state: written after every epoch (of short ones, every `SAVE_PAUSE` seconds), every
        ten minutes within one, and on SIGTERM; a state that is found there is gone on from, to the same bits on the
        same machine. None: nothing is kept.

    Raises
    ------
    TrainingError
        If a loss term or a score becomes NaN or infinite; the message names the term, the epoch and the file of the
        best weights, which the model holds then.
    TrainingStoppedError
        After SIGTERM, once the state is written.
    StorageError
        If the state cannot be written; the state before it is untouched.
    """
    optimizer = torch.optim.Adam(
        model.parameters(), lr=config.learning_rate, fused=graph.device.type in ("cpu", "cuda")
    )
    sampler = NegativeSampler(graph)
    generators = torch_generator(seed, "batches"), torch_generator(seed, "draws", graph.device)
    n_steps = math.ceil(graph.n_interactions / config.batch_size)
    now = TrainingState(model, optimizer, *generators, config.epochs, n_steps)
    if state is not None:
        now.resume(state, seed)
    loss_terms = distributed.shared(model, model.global_terms, optimizer)
    quiet = not progress or distributed.rank() > 0
    with (
        deterministic(),
        _sigterm_noted(active=state is not None) as stop,
        tqdm(total=config.epochs, initial=now.epoch - 1, desc="train", unit="epoch", disable=quiet) as bar,
    ):
        while now.epoch <= config.epochs and not _is_enough(now, config):
            model.train()
            batches = epoch_batches(graph, sampler, config.batch_size, now.batches)
            _epoch(now, loss_terms, islice(batches, now.step, None), config, graph.n_interactions, state, stop)
            row = _means(now, graph.n_interactions, state)
            bar.update()
            if not now.epoch % config.eval_every or now.epoch == config.epochs:
                model.eval()
                means = _validated(now, validation, state)
                row |= {f"valid_{name}": value for name, value in means.items()}
                improved = means[MONITOR] > now.best
                now.waited = 0 if improved else now.waited + 1
                now.best = max(now.best, means[MONITOR])
                if improved or config.keep == "last":
                    now.keep()
                shown = {"loss": row["loss"], MONITOR: means[MONITOR], "best": now.best}
                bar.set_postfix({name: f"{value:.4f}" for name, value in shown.items()})
            if report is not None:
                report(row)
            now.history.rows.append(row)
            now.next_epoch()
            first_or_last = now.epoch == 2 or now.epoch > config.epochs or _is_enough(now, config)
            _save(now, state, stop, due=first_or_last or now.unsaved_seconds > SAVE_PAUSE)
        if _is_enough(now, config):
            bar.total = now.epoch - 1
    model.load_tensors(now.kept)
    model.eval()
    return now.history


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
    now: TrainingState,
    loss_terms: distributed.LossFunction,
    batches: Iterator[Batch],
    config: TrainingConfig,
    n_interactions: int,
    state: Path | None,
    stop: threading.Event,
) -> None:
    """Take the remaining steps of the epoch; the model's own phase comes first, if it has one."""
    if now.step == 0:
        _auxiliary(now, config, n_interactions)
    for batch in batches:
        _set_rate(now, config)
        terms = training_step(loss_terms, batch, now.model.draw(now.draws), now.optimizer)
        for name, term in distributed.mean(terms).items():
            before = now.totals.get(name, torch.zeros_like(term, dtype=torch.float64))
            now.totals[name] = before + term.double() * batch.users.numel()
        now.step += 1
        _save(now, state, stop, due=now.unsaved_seconds > SAVE_SECONDS)


def _set_rate(now: TrainingState, config: TrainingConfig) -> None:
    """Give the optimiser the learning rate of the next step."""
    done = (now.epoch - 1) * now.n_steps + now.step
    for group in now.optimizer.param_groups:
        group["lr"] = learning_rate(config, done, now.epochs * now.n_steps)


def _auxiliary(now: TrainingState, config: TrainingConfig, n_interactions: int) -> None:
    """Take the steps of the model's own phase, with the learning rate of the epoch's first step."""
    n_phase = now.model.auxiliary_steps
    if not n_phase:
        return
    if distributed.size() > 1:
        raise ConfigError(
            "this model has a training phase of its own, which runs in one process only", "use one process"
        )
    _set_rate(now, config)
    for step in range(n_phase):
        terms = _step(now.model.auxiliary_losses(step, now.draws), now.optimizer)
        for name, term in terms.items():
            # `_means` divides by the number of interactions; this is a mean over steps.
            share = term.double() * (n_interactions / n_phase)
            now.totals[name] = now.totals.get(name, torch.zeros_like(share)) + share
    now.model.after_auxiliary()


def _means(now: TrainingState, n_interactions: int, state: Path | None) -> EpochRow:
    """Row of the history from the totals of the epoch."""
    means = {name: float(total) / n_interactions for name, total in now.totals.items()}
    for name, value in means.items():
        if not math.isfinite(value):
            raise _broken(
                now,
                f"loss term {name!r} became {value} in epoch {now.epoch}",
                "lower the learning rate, or the weight of this term",
                state,
            )
    return {"epoch": now.epoch, "loss": sum(means.values()), **means, "seconds": now.seconds}


def _validated(now: TrainingState, validation: RankingTask, state: Path | None) -> dict[str, float]:
    try:
        return distributed.on_first(lambda: evaluate(now.model, validation)[0])
    except TrainingError as error:
        raise _broken(now, f"{error.message} (epoch {now.epoch})", error.hint, state) from error


def _broken(now: TrainingState, message: str, hint: str, state: Path | None) -> TrainingError:
    """Give the model its best weights back and say where they are."""
    best = now.history.best_epoch
    if best:
        now.model.load_tensors(now.kept)
        message += f"; the best weights are those of epoch {best}"
        if state is not None:
            distributed.on_first(lambda: now.save_best(state))
            message += f", in {best_file(state, best)}"
    now.model.eval()
    return TrainingError(message, hint)


def _is_enough(now: TrainingState, config: TrainingConfig) -> bool:
    return bool(config.patience) and now.waited >= config.patience


def _save(now: TrainingState, state: Path | None, stop: threading.Event, due: bool) -> None:
    """Write the state where it is due, or where a process was asked to stop, and then stop all of them."""
    if state is None:
        return
    stopped, due = distributed.any_of(stop.is_set(), due)
    if stopped or due:
        distributed.on_first(lambda: now.save(state))
        now.saved()
    if stopped:
        raise TrainingStoppedError(
            f"training was asked to stop: the same command goes on from epoch {now.epoch}, step {now.step}"
        )


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
