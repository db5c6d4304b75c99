"""Runs of the tiny world that many tests of the views look at, trained once."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from spike_kit.base import paths
from spike_kit.data.dataset import Dataset, create_dataset
from spike_kit.experiments import archive
from spike_kit.experiments.run import RunConfig, run
from spike_kit.experiments.run_folder import Run, list_runs
from spike_kit.profiles.encode import DEFAULT_ENCODER, vectors_metadata
from spike_kit.profiles.template import TEMPLATE, template_profiles
from tests.world import World, write_world

SHORT = {"epochs": 2, "eval_every": 1}
HOSTILE = '<img src=x onerror="alert(1)"> </script> $x$'

TRAINED: tuple[dict[str, Any], ...] = (
    {"model": "popularity"},
    {"model": "lightgcn", "training": SHORT},
    {"training": SHORT},
    {"training": SHORT, "seed": 1},
    {"training": SHORT, "settings": {"matching": "off"}},
    {"training": SHORT, "settings": {"matching": "off"}, "seed": 1},
    {"training": SHORT, "settings": {"rho": 0.25}},
    {"training": SHORT, "settings": {"rho": 1.0}},
)


@pytest.fixture(scope="session")
def trained(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with the tiny world and `TRAINED` runs of it."""
    home, before = tmp_path_factory.mktemp("trained"), os.environ.get(paths.HOME_VARIABLE)
    os.environ[paths.HOME_VARIABLE] = str(home)
    try:
        data = write_world(paths.data_root() / "world")
        data.write_profiles(TEMPLATE, template_profiles(data))
        metadata = vectors_metadata(data.profiles(), DEFAULT_ENCODER)
        world.vectors.save(data.embeddings_path(TEMPLATE, DEFAULT_ENCODER), metadata)
        for settings in TRAINED:
            run(RunConfig(dataset="world", **settings), progress=False)
    finally:
        if before is None:
            del os.environ[paths.HOME_VARIABLE]
        else:
            os.environ[paths.HOME_VARIABLE] = before
    return home


@pytest.fixture
def runs(home: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """`TRAINED` runs in this test's own home, in that order, with an archive of their own."""
    monkeypatch.setattr(archive, "ROOT", home / "study")
    shutil.copytree(trained, home, dirs_exist_ok=True)
    found = {run.path.name: run for run in list_runs("world")}
    order = sorted((run.path.stat().st_mtime_ns, name) for name, run in found.items())
    return [found[name] for _, name in order]


@pytest.fixture
def spike_run(runs: list[Run]) -> Run:
    return runs[2]


@pytest.fixture
def data(runs: list[Run]) -> Dataset:
    """The tiny world of this test's home."""
    return Dataset.open("world")


@pytest.fixture
def hostile(data: Dataset) -> Dataset:
    """The tiny world, where every name and every profile tries to run something."""
    names = {name: getattr(data, name).assign(label=HOSTILE) for name in ("users", "items", "entities", "relations")}
    named = changed(data, **names)
    named.write_profiles(TEMPLATE, template_profiles(named).assign(text=f"{HOSTILE} Peculiar onerror."))
    return named


def changed(data: Dataset, **tables: pd.DataFrame) -> Dataset:
    """The tiny world with other tables, under the name ``changed``."""
    path = paths.data_root() / "changed"
    return create_dataset(path, "changed", dataclasses.replace(data.tables, **tables), sources=(), build={}, funnel=())


def points(data: Dataset, seed: int = 0) -> pd.DataFrame:
    """Places of all nodes on a map that was not laid out."""
    n = len(data.users) + len(data.entities)
    return pd.DataFrame(np.random.default_rng(seed).normal(size=(n, 2)), columns=["x", "y"])


def safe(*texts: object) -> None:
    """Check that nothing in what is shown is read as HTML."""
    for text in map(str, texts):
        assert "<img" not in text
        assert "</script" not in text


def written(files: list[Path], again: list[Path]) -> pd.DataFrame:
    """Check that a PDF and a CSV were written, the same bytes again; gives the table of the CSV."""
    assert [file.suffix for file in files] == [".pdf", ".csv"]
    assert files[0].read_bytes().startswith(b"%PDF")
    assert [file.name for file in files] == [file.name for file in again]
    assert [file.read_bytes() for file in files] == [file.read_bytes() for file in again]
    return pd.read_csv(files[1])
