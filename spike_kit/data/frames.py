"""A data set from three DataFrames of one's own, through the same pipeline as raw files."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd

from spike_kit.base import paths, storage
from spike_kit.base.errors import DataError, some
from spike_kit.data.build import build
from spike_kit.data.dataset import Dataset
from spike_kit.data.sources import find_recipe

_COLUMNS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "interactions": (("user", "item"), ("rating", "timestamp", "review", "split")),
    "items": (("item", "title"), ("description",)),
    "triples": (("head", "relation", "tail"), ()),
    "entities": (("entity",), ("label", "kind")),
    "relations": (("relation", "template"), ()),
}
"""Columns that each DataFrame must have, and may have; further ones are passed over."""

_NAMES = {"review": "text", "title": "label"}
"""What the source of tables calls a column, where that is another name."""

_UNIQUE = ("items", "entities", "relations")
"""DataFrames whose first column names every row."""


def dataset_from_frames(
    interactions: pd.DataFrame,
    items: pd.DataFrame,
    triples: pd.DataFrame,
    *,
    name: str,
    entities: pd.DataFrame | None = None,
    relations: pd.DataFrame | None = None,
    overwrite: bool = False,
    **settings: Any,
) -> Dataset:
    """Build the data-set folder ``data/<name>`` from DataFrames: the same checks, filters, split and funnel as always.

    The manifest holds a hash of every DataFrame, so equal ones with equal settings are one and the same data set.

    Parameters
    ----------
    interactions
        Columns user, item; where they exist rating, timestamp (seconds since 1970 or dates), review, and split (train,
        valid, test; used as it is unless another split is asked for).
    items
        Columns item, title, and where it exists description; one row for every item.
    triples
        Columns head, relation, tail; an end is the id of an item or of another entity.
    name
        Name of the data-set folder.
    entities
        Columns entity, and where they exist label and kind, for the ends of triples that are no items; default: named
        by their ids.
    relations
        Columns relation and template, a sentence with {head} and {tail}; default: "The <relation> of {head} is {tail}."
    overwrite
        Replace a data-set folder even if that deletes profiles that cost something.
    settings
        Settings of the build, as in `spike_kit.data.pipeline.BuildConfig`: valid, test, seed, user_core, min_rating...

    Raises
    ------
    ConfigError
        If there is no such setting.
    DataError
        If a DataFrame is empty, lacks a column, repeats or does not know an id, or holds a bad row (which the message
        counts from 1), or the filters leave nothing.
    """
    given = {"interactions": interactions, "items": items, "triples": triples}
    given |= {what: frame for what, frame in (("entities", entities), ("relations", relations)) if frame is not None}
    columns = {what: _check(what, frame) for what, frame in given.items()}
    known = set(items["item"].astype("str"))
    if unknown := sorted(set(interactions["item"].dropna().astype("str")) - known):
        raise DataError(f"interactions: {len(unknown)} items are not in items: {some(unknown)}", "add a row for each")
    has_dates = "timestamp" in interactions and pd.api.types.is_datetime64_any_dtype(interactions["timestamp"])
    wanted: dict[str, Any] = {"split": "given"} if "split" in columns["interactions"] else {}
    config = find_recipe("tables").settings.replace(
        **wanted | settings,
        interactions=Path("interactions.json"),
        columns=columns["interactions"],
        time="date" if has_dates else "seconds",
        items=Path("items.json"),
        item_columns=columns["items"],
        triples=(Path("triples.json"),),
        entities=None if entities is None else Path("entities.json"),
        entity_columns=columns.get("entities", {}),
        templates={} if relations is None else dict(relations[["relation", "template"]].to_numpy().tolist()),
    )
    root = paths.data_root()
    with storage.storage_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".spike-kit-tmp-", dir=root) as temporary:
            for what in columns.keys() - {"relations"}:
                rows = given[what][list(columns[what].values())]
                rows.to_json(
                    Path(temporary, f"{what}.json"),
                    orient="records",
                    lines=True,
                    date_format="iso",
                    double_precision=15,
                    force_ascii=False,
                )
            try:
                return build("tables", config, name=name, raw=Path(temporary), overwrite=overwrite)
            except DataError as error:
                message = error.message.replace(temporary + os.sep, "").replace(".json record", " row")
                raise DataError(message.replace("entities.json", "entities"), error.hint) from error


def _check(what: str, frame: pd.DataFrame) -> dict[str, str]:
    """Check the columns of a DataFrame; returns those that are used, by the names of the source of tables."""
    required, optional = _COLUMNS[what]
    if lacking := [column for column in required if column not in frame]:
        raise DataError(
            f"{what}: there is no column {lacking[0]!r}; it has {some(map(str, frame.columns), limit=20)}",
            f"rename the column that holds it; used are: {', '.join(required + optional)}",
        )
    if frame.empty:
        raise DataError(f"{what}: the DataFrame has no row", "check how it was made")
    used = [column for column in required + optional if column in frame]
    if repeated := [column for column in used if isinstance(frame[column], pd.DataFrame)]:
        raise DataError(f"{what}: there are several columns {repeated[0]!r}", "keep one of them")
    ids = frame[required[0]]
    if what in _UNIQUE and ids.duplicated().any():
        twice = ids[ids.duplicated()].astype("str").unique()
        raise DataError(f"{what}: {required[0]} {some(twice)} has several rows", "keep one row for each")
    return {_NAMES.get(column, column): column for column in used}
