"""Two-dimensional maps of vectors, cached: equal vectors and settings are never laid out twice."""

import contextlib
import hashlib
import logging
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy.linalg import orthogonal_procrustes

from spike_kit.base import paths, storage
from spike_kit.base.errors import DataError, require

logger = logging.getLogger(__name__)

_FEWEST = 4
"""UMAP lays out no fewer vectors than this."""

_EXACT_UP_TO = 50_000
"""Up to so many vectors the neighbours are found by comparing all; above, by UMAP's own approximate search."""


def umap_coordinates(
    vectors: np.ndarray, *, neighbours: int = 15, min_dist: float = 0.1, seed: int = 0
) -> pd.DataFrame:
    """Lay vectors out in the plane with UMAP on cosine distances (McInnes, Healy, Melville 2018).

    Parameters
    ----------
    vectors
        ``[n, d]``.
    neighbours, min_dist
        UMAP's ``n_neighbors`` (of fewer vectors all the others, with a warning) and ``min_dist``.
    seed
        Seed; UMAP then runs on one thread and gives the same map again.

    Returns
    -------
    DataFrame
        Columns x and y, one row per vector; ``attrs`` holds the settings, which the cached file keeps too.

    Raises
    ------
    DataError
        If there are too few vectors.
    MissingExtraError
        If umap-learn is not installed.
    """
    if len(vectors) < _FEWEST:
        raise DataError(f"a map needs at least {_FEWEST} vectors, not {len(vectors)}", "choose a larger data set")
    if len(vectors) <= neighbours:
        logger.warning("a map of %d vectors: %d neighbours, not %d", len(vectors), len(vectors) - 1, neighbours)
        neighbours = len(vectors) - 1
    content = np.ascontiguousarray(vectors, dtype="<f4")
    digest = hashlib.sha256(content.tobytes()).hexdigest()
    settings = {"neighbours": neighbours, "min_dist": min_dist, "seed": seed, "metric": "cosine"}
    settings |= {"vectors_sha256": digest, "shape": list(vectors.shape)}
    key = storage.sha256_text(storage.canonical_json(settings))
    file = paths.cache_root() / f"umap--{key[:16]}.parquet"
    if file.is_file():
        with contextlib.suppress(DataError):  # a damaged file is made anew
            return storage.read_parquet(file)
    points = _laid_out(content, n_neighbors=neighbours, min_dist=min_dist, metric="cosine", random_state=seed)
    frame = pd.DataFrame(np.asarray(points, dtype=np.float32), columns=["x", "y"])
    frame.attrs.update(settings)
    with storage.atomic_file(file) as temporary:
        frame.to_parquet(temporary, index=False)
    return frame


def _laid_out(vectors: np.ndarray, n_neighbors: int, **settings: Any) -> np.ndarray:
    """Coordinates by UMAP, of exact neighbours where that is quick.

    numba compiles UMAP's functions, and keeps them for the next process; else each would compile for 10 s or more.
    """
    umap = require("umap", "figures")
    for function in (*vars(umap.umap_).values(), *vars(umap.utils).values(), *vars(umap.layouts).values()):
        if hasattr(function, "enable_caching"):
            function.enable_caching()
    if len(vectors) <= _EXACT_UP_TO:
        search = require("sklearn.neighbors", "figures").NearestNeighbors(n_neighbors=n_neighbors - 1, metric="cosine")
        distances, others = search.fit(vectors).kneighbors()
        own = np.arange(len(vectors))[:, None]
        settings["precomputed_knn"] = (np.hstack([own, others]), np.hstack([np.zeros_like(own), distances]))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="n_jobs value|precomputed_knn")
        return umap.UMAP(n_neighbors=n_neighbors, **settings).fit_transform(vectors)


def aligned(maps: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Maps of the same things laid over the first one: moved, turned, mirrored and scaled (orthogonal Procrustes).

    UMAP's axes mean nothing, so nothing is lost, and the eye can follow a point from one map to the next.
    """
    found: dict[str, pd.DataFrame] = {}
    goal: np.ndarray | None = None
    for name, frame in maps.items():
        points = frame[["x", "y"]].to_numpy(dtype=np.float64)
        points = points - points.mean(axis=0)
        points /= max(float(np.sqrt((points**2).sum(axis=1).mean())), 1e-12)
        if goal is None:
            goal = points
        else:
            points = points @ orthogonal_procrustes(points, goal)[0]
        found[name] = pd.DataFrame(points.astype(np.float32), columns=["x", "y"])
    return found
