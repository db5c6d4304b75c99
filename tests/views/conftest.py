"""What tests of the views share: a hostile world, and checks of what is shown and written."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from spike_kit.base import paths
from spike_kit.data.dataset import Dataset, create_dataset
from spike_kit.experiments.run import Run
from spike_kit.profiles.template import TEMPLATE, template_profiles

HOSTILE = '<img src=x onerror="alert(1)"> </script> $x$'


@pytest.fixture
def spike_run(runs: dict[str, list[Run]]) -> Run:
    return runs["spike"][0]


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
    assert all(file.name.isascii() and "<" not in file.name for file in files)
    return pd.read_csv(files[1])
