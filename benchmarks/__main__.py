"""Measure speed and memory beside a floor: ``python -m benchmarks data|profiles|train|quality|evaluation``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd
import tyro
from tyro.conf import Positional, UseAppendAction

from benchmarks.data import bench_data
from benchmarks.evaluation import bench_evaluation
from benchmarks.profiles import bench_profiles
from benchmarks.quality import QualitySetup, bench_quality
from benchmarks.synthetic import parse_sizes
from benchmarks.train import GrowthRow, TrainSetup, bench_growth, bench_train
from spike_kit.base.config import Config
from spike_kit.base.errors import ConfigError, SpikeKitError
from spike_kit.cli import Place
from spike_kit.experiments.run import RunConfig
from spike_kit.experiments.search_space import parse_fixed


@dataclass(frozen=True, kw_only=True)
class Bench(Place):
    """Measure speed and memory beside a floor.

    data builds a data set from a synthetic raw file, beside a bare scan of it; profiles asks a server that answers
    at once, beside a bare loop of the same client; train takes training steps, beside the bare products of the
    projection of all profiles; quality trains a preset until it is as good on validation as released_code gets in 40
    epochs; evaluation ranks all items for random embeddings, beside their bare products.
    """

    what: Positional[Literal["data", "profiles", "train", "quality", "evaluation"]] = "data"
    """What to measure."""
    reviews: int = 1_000_000
    """Reviews in the synthetic file (ten million take about 5 GiB of disk and five minutes)."""
    release: Literal["2018", "2023"] = "2018"
    """Format of the synthetic file."""
    profiles: int = 50_000
    """Profiles to generate (50,000 take about two minutes)."""
    dataset: str = "ml-100k"
    """Data set to train on: a name under data/ or the path of a data-set folder."""
    synthetic: str | None = None
    """Train on a synthetic study instead: amazon-book, a number of nodes, or several with commas (how cost grows)."""
    model: str = "spike"
    """Model to train."""
    preset: str = "recommended"
    """Named setting of the model and its training."""
    fix: UseAppendAction[tuple[str, ...]] = ()
    """A model setting that differs from the preset, as name=value; may be repeated: --fix text_precision=bfloat16."""
    steps: int = 50
    """Training steps to measure, at least 30."""
    batch_size: int | None = None
    """Train interactions per step; default: what the preset says."""
    users: int = 10_000
    """Users to rank for."""
    items: int = 25_000
    """Items to rank."""
    json: bool = False
    """Print JSON instead of a table: one object, or a list of them where the table has several rows."""

    def __call__(self) -> None:
        """Measure and print."""
        measured = {
            "data": self._data,
            "profiles": self._profiles,
            "train": self._train,
            "quality": self._quality,
            "evaluation": self._evaluation,
        }[self.what]()
        if isinstance(measured, list):
            rows = [row.model_dump() for row in measured]
            print(json.dumps(rows) if self.json else pd.DataFrame(rows).to_string(index=False))
            return
        if self.json:
            print(measured.model_dump_json())
            return
        fields = type(measured).model_fields
        for name, value in measured.model_dump().items():
            print(f"{name:20} {value!s:<12} {fields[name].description}")

    def _data(self) -> Config:
        return bench_data(_enough("--reviews", self.reviews), self.release)

    def _profiles(self) -> Config:
        return bench_profiles(_enough("--profiles", self.profiles))

    def _train(self) -> Config | list[GrowthRow]:
        names = ("dataset", "model", "preset", "steps", "batch_size")
        fixed = parse_fixed(RunConfig(model=self.model, preset=self.preset), self.fix)
        setup = TrainSetup.parse(
            {
                "device": str(self.resolve()),
                "settings": fixed,
                **{name: getattr(self, name) for name in names},
            }
        )
        if self.synthetic is None:
            return bench_train(setup)
        sizes = parse_sizes(self.synthetic)
        return bench_growth(setup, sizes) if len(sizes) > 1 else bench_train(setup.replace(synthetic=sizes[0]))

    def _quality(self) -> Config:
        names = ("dataset", "model", "preset")
        setup = {"device": str(self.resolve()), **{name: getattr(self, name) for name in names}}
        return bench_quality(QualitySetup.parse(setup))

    def _evaluation(self) -> Config:
        return bench_evaluation(_enough("--users", self.users), _enough("--items", self.items))


def _enough(option: str, amount: int) -> int:
    if amount < 1000:
        raise ConfigError(f"{option} is {amount}, expected at least 1000", "fewer tell nothing")
    return amount


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one benchmark; returns the exit code."""
    try:
        tyro.cli(Bench, args=arguments, prog="python -m benchmarks")()
    except SpikeKitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
