"""What the tests of the readers share: checks that hold for all of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, settings

from spike_kit.base import paths
from spike_kit.base.errors import DataError, SpikeKitError
from spike_kit.data.build import build
from spike_kit.data.dataset import Dataset
from spike_kit.data.sources import find_recipe

FEW = settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
"""Examples of tests that build something."""


def explained(action: Callable[[], object]) -> str | None:
    """Message of the explained error that an action ends in, if it does; any other error passes through."""
    try:
        action()
    except SpikeKitError as error:
        return str(error)
    return None


def built(recipe: str, raw: Path, name: str = "mine", **changes: Any) -> Dataset:
    """Build a data set with changed settings."""
    return build(recipe, find_recipe(recipe).settings.replace(**changes), name=name, raw=raw)


def refused(recipe: str, raw: Path, message: str, **changes: Any) -> None:
    """Check that a build ends in an error with this message, and leaves nothing."""
    with pytest.raises(DataError, match=message):
        built(recipe, raw, "refused", **changes)
    assert not [*paths.data_root().glob("*refused*"), *paths.data_root().glob(".spike-kit-tmp-*")]


def refused_or_skipped(recipe: str, raw: Path, message: str, rows: int = 1, **changes: Any) -> Dataset:
    """Check that a build stops at bad rows with this message; one that skips them counts them and is returned."""
    refused(recipe, raw, message, **changes)
    data = built(recipe, raw, **changes | {"on_error": "skip"})
    assert data.manifest.funnel[0]["bad_rows"] == rows
    assert any("skipped because" in note for note in data.manifest.notes)
    return data


def facts_of(data: Dataset, item: int) -> set[tuple[str, str]]:
    """Facts of an item, in words: relation and tail."""
    rows = data.triples[data.triples["head"] == item]
    return set(zip(data.relations["label"][rows["relation"]], data.entities["label"][rows["tail"]], strict=True))


def interactions_of(data: Dataset, *splits: str) -> set[tuple[int, int]]:
    """Interactions of some splits (default: of all)."""
    rows = data.interactions
    kept = rows[rows["split"].isin(splits or ("train", "valid", "test"))]
    return set(kept[["user", "item"]].itertuples(index=False, name=None))


def train_reviews(data: Dataset) -> pd.DataFrame:
    """Reviews of train interactions: user, item, text, timestamp, split."""
    stored = pd.read_parquet(data.reviews_file)
    return stored[stored["split"] == "train"]
