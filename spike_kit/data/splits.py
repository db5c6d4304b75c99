"""Splitting interactions into train, valid and test."""

from __future__ import annotations

import numpy as np
import pandas as pd

from spike_kit.data.tables import SPLITS
from spike_kit.errors import ConfigError
from spike_kit.seeds import numpy_generator


def random_per_user(interactions: pd.DataFrame, valid: float, test: float, seed: int) -> pd.Series:
    """Assign a random share of each user's interactions to valid and to test.

    A user with n >= 3 interactions gives ``max(1, round(share * n))`` to each of the two, but keeps at least one for
    training; a user with fewer gives nothing.

    Parameters
    ----------
    interactions
        Column ``user``; the result does not depend on the order of its rows if it has a column ``item`` too.
    valid, test
        Shares in [0, 1); together less than 1. A share of 0 leaves that split empty.
    seed
        Seed of the shuffle.

    Returns
    -------
    Series
        ``train``, ``valid`` or ``test`` for every row, with the index of ``interactions``.

    Raises
    ------
    ConfigError
        If the shares are out of range.
    """
    if min(valid, test) < 0 or valid + test >= 1:
        raise ConfigError(f"valid share {valid} and test share {test} must be >= 0 and leave a part for training")
    ordered = interactions.sort_values([name for name in ("user", "item") if name in interactions])
    users = ordered["user"].to_numpy()
    draws = numpy_generator(seed, "split").random(len(ordered))
    shuffled = np.lexsort((draws, users))
    sizes = ordered.groupby("user", sort=True).size().to_numpy()
    rank = np.arange(len(ordered)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    size = np.repeat(sizes, sizes)
    n_test = _held_out(size, test)
    n_valid = np.minimum(_held_out(size, valid), np.maximum(size - n_test - 1, 0))
    assigned = np.full(len(ordered), SPLITS[0], dtype=object)
    assigned[shuffled] = np.select([rank < n_test, rank < n_test + n_valid], [SPLITS[2], SPLITS[1]], SPLITS[0])
    return pd.Series(assigned, index=ordered.index, dtype="str").reindex(interactions.index)


def _held_out(size: np.ndarray, share: float) -> np.ndarray:
    if share == 0:
        return np.zeros_like(size)
    rounded = np.maximum(1, np.floor(share * size + 0.5)).astype(size.dtype)
    return np.where(size >= 3, np.minimum(rounded, size - 2), 0)
