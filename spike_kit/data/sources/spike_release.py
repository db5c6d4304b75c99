"""The folder that the authors of SPiKE release per data set (circleAhn/SPiKE-pytorch).

``train.txt``, ``test.txt`` and ``kg_final.txt`` are KGAT's (`spike_kit.data.sources.kgat`); the text vectors stand in
``user_embeddings.npz``, ``item_embeddings.npz`` and ``entity_embeddings.npz``, each with the arrays ``ids [n]`` and
``embeddings [n, d_t]``. The entity file holds the auxiliary entities (ids I..E-1) or all of them (0..E-1).
"""

from pathlib import Path

import numpy as np
import torch

from spike_kit.base.errors import DataError, some
from spike_kit.data.dataset import Dataset
from spike_kit.data.recipes import BuildConfig, Recipe, Source
from spike_kit.data.sources import kgat
from spike_kit.data.sources.kgat import AS_IT_IS, Known, write_rows
from spike_kit.data.tables import check_dense
from spike_kit.data.vectors import ProfileVectors
from spike_kit.data.workspace import Workspace

NAME = "spike-release"
"""Name of the source."""

VECTORS = ("release", "authors")
"""Profile source and encoder under which the vectors of a release are kept."""

TERMS = (
    "as the authors of SPiKE state; the texts go back to Amazon and Yelp (research only)",
    "data release of SPiKE (Ahn, Shin, Seo; KDD 2026)",
)

_WHOLE = "take the whole folder of one release"


def parse(folder: Path, config: BuildConfig, work: Workspace) -> None:
    """Parse a release folder, vectors included.

    Raises
    ------
    DataError
        If a file is missing or damaged, ids of a vector file have gaps or repeat, vectors are not finite or of
        different dimensions, or an id of the other files has no vector.
    """
    work.terms = TERMS
    files = {name: folder / f"{name}_embeddings.npz" for name in ("user", "item", "entity")}
    ids, vectors = {}, {}
    for name, path in files.items():
        ids[name], vectors[name] = read_vectors(path)
        work.register(path)
        if name != "entity" and not len(ids[name]):
            raise DataError(f"{path} holds no vector", _WHOLE)
    n_items = len(ids["item"])
    holds_items = bool(len(ids["entity"])) and ids["entity"][0] < n_items
    for name, path in files.items():
        check_dense(f"{path}: the ids", ids[name], n_items if name == "entity" and not holds_items else 0)
    dimensions = {name: rows.shape[1] for name, rows in vectors.items()}
    if len(set(dimensions.values())) > 1:
        shown = some(f"{name} {dimension}" for name, dimension in dimensions.items())
        raise DataError(f"{folder}: the vectors have different dimensions: {shown}", _WHOLE)
    if holds_items and len(ids["entity"]) < n_items:
        missing = some(range(len(ids["entity"]), n_items))
        problem = f"{files['entity']}: it holds vectors of items, but not of the ids {missing}"
        raise DataError(problem, "it must hold every item or none")
    auxiliary = vectors["entity"][n_items:] if holds_items else vectors["entity"]
    sizes = {"user": len(ids["user"]), "item": n_items, "entity": n_items + len(auxiliary)}
    bounds = {name: Known(range(size), files[name].name) for name, size in sizes.items()}
    users = kgat.parse(folder, config, work, bounds)
    entities = np.concatenate([vectors["item"], auxiliary])
    work.vectors[VECTORS] = ProfileVectors(torch.from_numpy(vectors["user"][users]), torch.from_numpy(entities))


def read_vectors(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read one file of vectors: ids ``[n]`` ascending and vectors ``[n, d_t]`` float32 in their order.

    Raises
    ------
    DataError
        If the file is missing or damaged, holds pickled objects, lacks an array, or an array is not of its kind.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist", _WHOLE)
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: np.asarray(archive[name]) for name in ("ids", "embeddings")}
    except KeyError as error:
        raise DataError(f"{path} holds no array {error.args[0]!r}", "it needs the arrays ids and embeddings") from error
    except Exception as error:  # numpy raises nearly anything for bytes that are no archive of arrays
        raise DataError(f"{path} is damaged, or no npz file without pickles: {error}", "download it again") from error
    ids, embeddings = arrays["ids"], arrays["embeddings"]
    is_list = ids.ndim == 1 and np.issubdtype(ids.dtype, np.integer)
    is_table = embeddings.ndim == 2 and embeddings.shape[1] > 0 and np.issubdtype(embeddings.dtype, np.floating)
    if not (is_list and is_table and len(ids) == len(embeddings)):
        found = (f"{name} {list(array.shape)} of {array.dtype}" for name, array in arrays.items())
        raise DataError(
            f"{path} holds {' and '.join(found)}, expected ids [n] of integers and embeddings [n, d_t] of numbers with "
            "a point",
            _WHOLE,
        )
    order = np.argsort(ids, kind="stable")
    with np.errstate(over="ignore"):
        rows = embeddings[order].astype(np.float32)
    broken = ids[order][~np.isfinite(rows).all(axis=1)]
    if len(broken):
        raise DataError(f"{path}: the vectors of ids {some(broken.tolist())} hold NaN or infinity", "download it again")
    return ids[order], rows


def write(data: Dataset, folder: Path, merge_valid: bool, vectors: tuple[str, str]) -> None:
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
    rows, n_items = data.vectors(*vectors), len(data.items)
    parts = {"user": (0, rows.user), "item": (0, rows.entity[:n_items]), "entity": (n_items, rows.entity[n_items:])}
    write_rows(data, folder, merge_valid)
    for name, (first, part) in parts.items():
        ids = np.arange(first, first + len(part), dtype=np.int64)
        np.savez(folder / f"{name}_embeddings.npz", ids=ids, embeddings=part.numpy().astype(np.float32))


_ABOUT = "the folder the authors of SPiKE release, text vectors included"

SOURCE = Source(parse, {NAME: Recipe(BuildConfig(**AS_IT_IS), _ABOUT)}, write=write)
"""The reader and the writer."""
