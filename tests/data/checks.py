"""What the tests of the readers share: folders of raw files, and checks that hold for all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from tests.data.amazon_files import write_lines

FEW = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
"""Examples of tests that build something."""


def explained(action: Callable[[], object]) -> str | None:
    """Message of the explained error that an action ends in, if it does; any other error passes through."""
    try:
        action()
    except SpikeKitError as error:
        return str(error)
    return None


def refused(recipe: str, raw: Path, message: str, **changes: Any) -> None:
    """Check that a build ends in an error with this message, and leaves nothing."""
    with pytest.raises(DataError, match=message):
        build(recipe, find_recipe(recipe).settings.replace(**changes), name="mine", raw=raw)
    assert not [*paths.data_root().glob("*mine*"), *paths.data_root().glob(".spike-kit-tmp-*")]


def refused_or_skipped(recipe: str, raw: Path, message: str, rows: int = 1, **changes: Any) -> Dataset:
    """Check that a build stops at bad rows with this message; one that skips them counts them and is returned."""
    refused(recipe, raw, message, **changes)
    skipping = find_recipe(recipe).settings.replace(**changes | {"on_error": "skip"})
    data = build(recipe, skipping, name="mine", raw=raw)
    assert data.manifest.funnel[0]["bad_rows"] == rows
    assert any("skipped because" in note for note in data.manifest.notes)
    return data


def add_line(path: Path, line: str) -> None:
    """Append a line to a file."""
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")


def facts_of(data: Dataset, item: int) -> set[tuple[str, str]]:
    """Facts of an item, in words: relation and tail."""
    rows = data.triples[data.triples["head"] == item]
    return set(zip(data.relations["label"][rows["relation"]], data.entities["label"][rows["tail"]], strict=True))


def train_reviews(data: Dataset) -> pd.DataFrame:
    """Reviews of train interactions: user, item, text, timestamp, split."""
    stored = pd.read_parquet(data.reviews_file)
    return stored[stored["split"] == "train"]


def pairs_of(data: Dataset, split: str) -> set[tuple[str, str]]:
    """Interactions of a split, in the ids of the source."""
    rows = data.split(split)
    return set(zip(data.users["source_id"][rows["user"]], data.items["source_id"][rows["item"]], strict=True))


def write_mapped_split(
    folder: Path, held: Mapping[int, Sequence[int]], first_user: int, first_item: int, n_items: int
) -> None:
    """Write a split in CoLaKG's format: the first item of a user is for test, and raw ids count from a number each."""
    write_lines(folder / "train.txt", [" ".join(map(str, [user, *items[1:]])) for user, items in held.items()])
    write_lines(folder / "test.txt", [f"{user} {items[0]}" for user, items in held.items()])
    write_lines(folder / "user_map.txt", [f"{first_user + user} {user}" for user in held])
    write_lines(folder / "item_map.txt", [f"{first_item + item} {item}" for item in range(n_items)])
