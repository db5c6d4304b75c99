"""The one training loop: every trained model goes through `fit`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from spike_kit.config import TrainingConfig
from spike_kit.data.graph import Graph
from spike_kit.devices import deterministic
from spike_kit.errors import TrainingError
from spike_kit.evaluation.protocol import RankingTask, evaluate
from spike_kit.models.recommender import Batch, TrainedRecommender
from spike_kit.sampling import NegativeSampler, epoch_batches
from spike_kit.seeds import torch_generator

MONITOR = "ndcg@20"
"""Validation metric that chooses the weights."""


@dataclass
class History:
    """What happened in each epoch, and which one was kept.

    Attributes
    ----------
    rows
        One per epoch: epoch, seconds (since the start), ``loss`` and every loss term (means over interactions), and
        ``valid_<metric>`` where the epoch was validated.
    best_epoch
        Epoch whose weights were kept, counted from 1.
    """

    rows: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0

    def frame(self) -> pd.DataFrame:
        """Return the rows as a table."""
        return pd.DataFrame(self.rows)


def fit(
    model: TrainedRecommender,
    graph: Graph,
    validation: RankingTask,
    config: TrainingConfig,
    seed: int,
    progress: bool = True,
    report: Callable[[int, float], None] | None = None,
) -> History:
    """Train a model in place; at the end it holds the kept weights.

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
        Epochs, batches, optimiser, early stopping.
    seed
        Seed of batches, negatives and the model's own draws.
    progress
        Show a bar with an estimate.
    report
        Called after each validation with the epoch and the monitored metric; what it raises ends the training.

    Raises
    ------
    TrainingError
        If a loss term becomes NaN or infinite; the message names the term and the epoch.
    """
    optimizer = torch.optim.Adam(
        model.parameters(), lr=config.learning_rate, fused=graph.device.type in ("cpu", "cuda")
    )
    sampler = NegativeSampler(graph)
    batches = torch_generator(seed, "batches")
    draws = torch_generator(seed, "draws", graph.device)
    history, best, kept, waited = History(), -1.0, {}, 0
    started = time.perf_counter()
    with deterministic(), tqdm(total=config.epochs, desc="train", unit="epoch", disable=not progress) as bar:
        for epoch in range(1, config.epochs + 1):
            model.train()
            row: dict[str, float] = {"epoch": epoch}
            row |= _epoch(model, epoch_batches(graph, sampler, config.batch_size, batches), optimizer, draws, epoch)
            row["seconds"] = time.perf_counter() - started
            history.rows.append(row)
            bar.update()
            if epoch % config.eval_every and epoch != config.epochs:
                continue
            model.eval()
            means, _ = evaluate(model, validation)
            row |= {f"valid_{name}": value for name, value in means.items()}
            improved = means[MONITOR] > best
            waited = 0 if improved else waited + 1
            best = max(best, means[MONITOR])
            if improved or config.keep == "last":
                kept = {name: tensor.clone() for name, tensor in model.tensors().items()}
                history.best_epoch = epoch
            if report is not None:
                report(epoch, means[MONITOR])
            bar.set_postfix({"loss": f"{row['loss']:.4f}", MONITOR: f"{means[MONITOR]:.4f}", "best": f"{best:.4f}"})
            if config.patience and waited >= config.patience:
                bar.total = epoch
                break
    model.load_tensors(kept)
    model.eval()
    return history


def training_step(
    model: TrainedRecommender, batch: Batch, draws: object, optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """Take one optimiser step and return the detached loss terms; the optimised loss is their sum."""
    terms = model.training_losses(batch, draws)
    optimizer.zero_grad(set_to_none=True)
    torch.stack(list(terms.values())).sum().backward()
    optimizer.step()
    return {name: term.detach() for name, term in terms.items()}


def _epoch(
    model: TrainedRecommender,
    batches: Iterator[Batch],
    optimizer: torch.optim.Optimizer,
    draws: torch.Generator,
    epoch: int,
) -> dict[str, float]:
    totals: dict[str, Tensor] = {}
    n_rows = 0
    for batch in batches:
        size = batch.users.numel()
        terms = training_step(model, batch, model.draw(draws), optimizer)
        for name, term in terms.items():
            totals[name] = totals.get(name, torch.zeros_like(term, dtype=torch.float64)) + term.double() * size
        n_rows += size
    means = {name: float(total) / n_rows for name, total in totals.items()}
    broken = [name for name, value in means.items() if not abs(value) < float("inf")]
    if broken:
        raise TrainingError(
            f"loss term {broken[0]!r} became {means[broken[0]]} in epoch {epoch}",
            "lower the learning rate, or the weight of this term",
        )
    return {"loss": sum(means.values()), **means}
