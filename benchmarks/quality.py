"""How long a preset trains until it is as good as another one ever gets, on validation."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pydantic import Field
from tqdm.auto import tqdm

from benchmarks.measure import alone
from spike_kit.base.config import Config
from spike_kit.data.dataset import Dataset
from spike_kit.experiments.run import RunConfig, train
from spike_kit.experiments.search import VALID
from spike_kit.models import find_preset
from spike_kit.training.checkpoint import EpochRow

TOO_SLOW = 2
"""A preset is given up once it has taken this many times the time of the plain run."""


class QualitySetup(Config):
    """What `bench_quality` measures."""

    model: str = "spike"
    """Name of a model that is trained."""
    dataset: str = "ml-100k"
    """Data set: a name under data/ or the path of a data-set folder."""
    preset: str = "recommended"
    """Named setting that is timed."""
    plain: str = "released_code"
    """Named setting that is trained plainly, to the end."""
    plain_training: dict[str, Any] = Field(
        default_factory=lambda: {"epochs": 40, "learning_rate": 1e-3, "batch_size": 1024}
    )
    """Training settings of the plain run that differ from its named setting."""
    device: str = "cpu"
    """Device, such as cpu or cuda:0."""
    seed: int = 0
    """Seed of both."""


class QualityBenchmark(Config):
    """What `bench_quality` measured; times include validation, not the reading of the data."""

    dataset: str
    """Data set."""
    plain: str
    """Named setting that was trained plainly."""
    plain_seconds: float
    """Time of its training."""
    plain_best_ndcg: float
    """Best NDCG@20 on validation it reached."""
    plain_best_seconds: float
    """When it reached it."""
    preset: str
    """Named setting that was timed."""
    seconds: float | None
    """When it was at least as good; none if it never was."""
    ratio: float | None
    """Time of the plain run by that time."""
    epochs: int | None
    """Epochs until then."""
    best_ndcg: float
    """Best NDCG@20 on validation it reached in the end."""
    best_seconds: float
    """When it reached that."""


@dataclass(frozen=True)
class _Curve:
    """Validations of one training: epoch, seconds and NDCG@20 of each."""

    points: list[tuple[int, float, float]]
    seconds: float

    @property
    def best(self) -> tuple[int, float, float]:
        return max(self.points, key=lambda point: point[2])


class _TooSlowError(Exception):
    """The time given to a training is over."""


def bench_quality(setup: QualitySetup) -> QualityBenchmark:
    """Train the plain setting to its end, then the other one, each in a process of its own.

    Raises
    ------
    ConfigError, DataError
        If the model or a setting is unknown, or there is no such data set.
    """
    for preset in (setup.plain, setup.preset):
        find_preset(setup.model, preset)
    with tqdm(total=2, desc="bench quality", unit="training") as bar:
        plain = alone(_curve, setup, setup.plain, setup.plain_training, None)
        bar.update()
        ours = alone(_curve, setup, setup.preset, {}, TOO_SLOW * plain.seconds)
        bar.update()
    target = plain.best[2]
    reached = next((point for point in ours.points if point[2] >= target), None)
    return QualityBenchmark(
        dataset=setup.dataset,
        plain=setup.plain,
        plain_seconds=round(plain.seconds, 2),
        plain_best_ndcg=round(target, 4),
        plain_best_seconds=round(plain.best[1], 2),
        preset=setup.preset,
        seconds=None if reached is None else round(reached[1], 2),
        ratio=None if reached is None else round(plain.seconds / reached[1], 2),
        epochs=None if reached is None else reached[0],
        best_ndcg=round(ours.best[2], 4),
        best_seconds=round(ours.best[1], 2),
    )


def _curve(setup: QualitySetup, preset: str, training: dict[str, Any], longest: float | None) -> _Curve:
    config = RunConfig(model=setup.model, dataset=setup.dataset, preset=preset, training=training, seed=setup.seed)
    data, points = Dataset.open(setup.dataset), []
    started = time.perf_counter()

    def report(row: EpochRow) -> None:
        seconds = time.perf_counter() - started
        if VALID in row:
            points.append((int(row["epoch"]), seconds, row[VALID]))
        if longest is not None and seconds > longest:
            raise _TooSlowError

    with suppress(_TooSlowError):
        train(config, data, setup.device, progress=False, report=report)
    return _Curve(points, time.perf_counter() - started)
