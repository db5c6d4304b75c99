"""How long a preset trains until it is as good as another one ever gets, on validation."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from operator import itemgetter
from typing import Any

from pydantic import Field

from benchmarks.common import Measured, Setup, alone, main
from spike_kit.base.devices import resolve_device
from spike_kit.data.dataset import Dataset
from spike_kit.experiments.run import RunConfig, train
from spike_kit.experiments.search import VALID
from spike_kit.models import find_preset
from spike_kit.training.checkpoint import EpochRow

TOO_SLOW = 2
"""A preset is given up once it has taken this many times the time of the plain run."""

Curve = tuple[list[tuple[float, float, int]], float]
"""Validations of one training (NDCG@20, seconds and epoch of each), and its seconds."""


class QualitySetup(Setup):
    """What `bench_quality` measures."""

    model: str = "spike"
    """Name of a model that is trained."""
    dataset: str = "ml-100k"
    """Data set: a name under data/ or the path of a data-set folder."""
    preset: str = "recommended"
    """Named setting that is timed."""
    plain: str = "released_code"
    """Named setting that is trained plainly, to the end."""
    plain_epochs: int = Field(default=40, ge=1)
    """Epochs of the plain run."""
    device: str = "auto"
    """Device: auto (CUDA where present), cpu, cuda or cuda:N."""
    seed: int = 0
    """Seed of both."""


class _TooSlowError(Exception):
    """The time given to a training is over."""


def bench_quality(setup: QualitySetup) -> Measured:
    """Train a preset until it is as good on validation as released_code gets in 40 epochs.

    Each training has a process of its own; times include validation, not the reading of the data.
    """
    for preset in (setup.plain, setup.preset):
        find_preset(setup.model, preset)
    setup = setup.replace(device=str(resolve_device(setup.device)))
    training = {"epochs": setup.plain_epochs, "learning_rate": 1e-3, "batch_size": 1024}
    validations, seconds = alone(_curve, setup, setup.plain, training, float("inf"))
    ours, _ = alone(_curve, setup, setup.preset, {}, TOO_SLOW * seconds)
    plain, best = max(validations, key=itemgetter(0)), max(ours, key=itemgetter(0))
    reached = next((point for point in ours if point[0] >= plain[0]), None)
    return {
        "dataset": (setup.dataset, "data set"),
        "plain": (setup.plain, "named setting that was trained plainly"),
        "plain_seconds": (round(seconds, 2), "time of its training"),
        "plain_best_ndcg": (round(plain[0], 4), "best NDCG@20 on validation it reached"),
        "plain_best_seconds": (round(plain[1], 2), "when it reached it"),
        "preset": (setup.preset, "named setting that was timed"),
        "seconds": (reached and round(reached[1], 2), "when it was at least as good; none if it never was"),
        "ratio": (reached and round(seconds / reached[1], 2), "time of the plain run by that time"),
        "epochs": (reached and reached[2], "epochs until then"),
        "best_ndcg": (round(best[0], 4), "best NDCG@20 on validation it reached in the end"),
        "best_seconds": (round(best[1], 2), "when it reached that"),
    }


def _curve(setup: QualitySetup, preset: str, training: dict[str, Any], longest: float) -> Curve:
    config = RunConfig(model=setup.model, dataset=setup.dataset, preset=preset, training=training, seed=setup.seed)
    data, points = Dataset.open(setup.dataset), []
    started = time.perf_counter()

    def report(row: EpochRow) -> None:
        seconds = time.perf_counter() - started
        if VALID in row:
            points.append((row[VALID], seconds, int(row["epoch"])))
        if seconds > longest:
            raise _TooSlowError

    with suppress(_TooSlowError):
        train(config, data, setup.device, report=report)
    return points, time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main(QualitySetup, bench_quality))
