"""The folder that the authors of SPiKE release per data set (circleAhn/SPiKE-pytorch).

``train.txt``, ``test.txt`` and ``kg_final.txt`` are KGAT's (`spike_kit.data.sources.kgat`); the text vectors stand in
``user_embeddings.npz``, ``item_embeddings.npz`` and ``entity_embeddings.npz``, each with the arrays ``ids [n]`` and
``embeddings [n, d_t]``. The entity file holds the auxiliary entities (ids I..E-1) or all of them (0..E-1).
"""

from __future__ import annotations

import zipfile
import zlib
from lzma import LZMAError
from pathlib import Path
from tokenize import TokenError

import numpy as np
import torch

from spike_kit.base.errors import DataError, some
from spike_kit.data.dataset import Dataset
from spike_kit.data.lists import Known
from spike_kit.data.pipeline import BuildConfig
from spike_kit.data.recipes import Recipe, Source, WriteOptions
from spike_kit.data.sources.kgat import AS_IT_IS, Bounds, load, write_rows
from spike_kit.data.vectors import ProfileVectors
from spike_kit.data.workspace import Workspace

NAME = "spike-release"
"""Name of the source."""

VECTORS = ("release", "authors")
"""Profile source and encoder under which the vectors of a release are kept."""

LICENCE = "as the authors of SPiKE state; the texts go back to Amazon and Yelp (research only)"

_ORIGIN = "data release of SPiKE (Ahn, Shin, Seo; KDD 2026)"


def parse(folder: Path, config: BuildConfig, work: Workspace) -> None:
    """Parse a release folder, vectors included.

    Raises
    ------
    DataError
        If a file is missing or damaged, ids of a vector file have gaps or repeat, vectors are not finite or of
        different dimensions, or an id of the other files has no vector.
    """
    files = {name: folder / f"{name}_embeddings.npz" for name in ("user", "item", "entity")}
    ids, vectors = {}, {}
    for name, path in files.items():
        ids[name], vectors[name] = read_vectors(path)
        work.register(path, LICENCE, _ORIGIN)
    for name in ("user", "item"):
        if not len(ids[name]):
            raise DataError(f"{files[name]} holds no vector", "take the whole folder of the release")
        _check_dense(files[name], ids[name], 0)
    n_items = len(ids["item"])
    holds_items = bool(len(ids["entity"])) and ids["entity"][0] < n_items
    _check_dense(files["entity"], ids["entity"], 0 if holds_items else n_items)
    dimensions = {name: rows.shape[1] for name, rows in vectors.items()}
    if len(set(dimensions.values())) > 1:
        raise DataError(
            f"{folder}: the vectors have different dimensions: {some(f'{n} {d}' for n, d in dimensions.items())}",
            "take all three files from one release",
        )
    if holds_items and len(ids["entity"]) < n_items:
        missing = range(len(ids["entity"]), n_items)
        raise DataError(
            f"{files['entity']}: it holds vectors of items, but not of the ids {some(missing)}",
            "it must hold every item or none",
        )
    auxiliary = vectors["entity"][n_items:] if holds_items else vectors["entity"]
    sizes = {"user": len(ids["user"]), "item": n_items, "entity": n_items + len(auxiliary)}
    bounds = Bounds(*(Known(range(size), files[name].name) for name, size in sizes.items()))
    users = load(folder, config, work, bounds)
    entities = np.concatenate([vectors["item"], auxiliary])
    work.vectors[VECTORS] = ProfileVectors(torch.from_numpy(vectors["user"][users]), torch.from_numpy(entities))


_UNREADABLE = (
    *(ValueError, OSError, EOFError, NotImplementedError, SyntaxError, MemoryError, OverflowError, TypeError),
    *(AttributeError, RuntimeError, zipfile.BadZipFile, zlib.error, TokenError, LZMAError),
)
"""Everything that numpy may raise for bytes that are no archive of arrays."""


def read_vectors(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read one file of vectors: ids ``[n]`` ascending and vectors ``[n, d_t]`` float32 in their order.

    Raises
    ------
    DataError
        If the file is missing or damaged, holds pickled objects, lacks an array, or an array is not of its kind.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist", "take the whole folder of the release")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: np.asarray(archive[name]) for name in ("ids", "embeddings")}
    except KeyError as error:
        raise DataError(f"{path} holds no array {error.args[0]!r}", "it needs the arrays ids and embeddings") from error
    except _UNREADABLE as error:
        raise DataError(f"{path} is damaged, or no npz file without pickles: {error}", "download it again") from error
    ids, embeddings = arrays["ids"], arrays["embeddings"]
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        raise DataError(f"{path}: ids has shape {list(ids.shape)} of {ids.dtype}, expected [n] of integers")
    if embeddings.ndim != 2 or len(embeddings) != len(ids) or not np.issubdtype(embeddings.dtype, np.floating):
        raise DataError(
            f"{path}: embeddings has shape {list(embeddings.shape)} of {embeddings.dtype}, expected [{len(ids)}, d_t] "
            "of numbers with a point"
        )
    if not embeddings.shape[1]:
        raise DataError(f"{path}: the vectors have no dimension", "take the whole folder of the release")
    order = np.argsort(ids, kind="stable")
    with np.errstate(over="ignore"):
        rows = embeddings[order].astype(np.float32)
    broken = ids[order][~np.isfinite(rows).all(axis=1)]
    if len(broken):
        raise DataError(f"{path}: the vectors of ids {some(broken.tolist())} hold NaN or infinity", "download it again")
    return ids[order], rows


def _check_dense(path: Path, ids: np.ndarray, first: int) -> None:
    """Check that ascending ids are ``first``, ``first + 1``, ... without a gap."""
    expected = np.arange(first, first + len(ids))
    wrong = np.flatnonzero(ids != expected)
    if not len(wrong):
        return
    place = wrong[0]
    twice = place > 0 and ids[place] == ids[place - 1]
    problem = f"{ids[place]} stands twice" if twice else f"{expected[place]} is missing"
    found = some(ids[max(place - 1, 0) :].tolist())
    raise DataError(
        f"{path}: the ids must count from {first} without a gap, but {problem} (found {found})",
        "every id needs exactly one vector",
    )


def write(data: Dataset, folder: Path, options: WriteOptions) -> None:
    """Write train.txt, valid.txt, test.txt, kg_final.txt and {user,item,entity}_embeddings.npz.

    The entity file holds the auxiliary entities, ids I..E-1.

    Raises
    ------
    DataError
        If the data set has no such vectors, or its last relations have no triple.
    """
    last = int(data.triples["relation"].max())
    if last + 1 < len(data.relations):
        raise DataError(
            f"the format cannot hold relations without a triple after the last one that has some: relation {last + 1}",
            "build the data set with --min-relation-triples 1",
        )
    vectors = data.vectors(*options.vectors)
    n_items = len(data.items)
    parts = {
        "user": (0, vectors.user.numpy()),
        "item": (0, vectors.entity[:n_items].numpy()),
        "entity": (n_items, vectors.entity[n_items:].numpy()),
    }
    write_rows(data, folder, options.merge_valid)
    for name, (first, rows) in parts.items():
        ids = np.arange(first, first + len(rows), dtype=np.int64)
        np.savez(folder / f"{name}_embeddings.npz", ids=ids, embeddings=rows.astype(np.float32))


_ABOUT = "the folder the authors of SPiKE release, text vectors included"

SOURCE = Source(parse, {NAME: Recipe(BuildConfig(**AS_IT_IS), _ABOUT)}, write=write)
"""The reader and the writer."""
