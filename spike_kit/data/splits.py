"""Splitting interactions into train, valid and test: at random per user, the last two of each user, or by time."""

from __future__ import annotations

import numpy as np
import pandas as pd

from spike_kit.base.errors import ConfigError, DataError
from spike_kit.base.seeds import numpy_generator
from spike_kit.data.tables import SPLITS

_TRAIN, _VALID, _TEST = range(len(SPLITS))


def _named(codes: np.ndarray, index: pd.Index) -> pd.Series:
    """Split names (categorical, in the order of `SPLITS`) from their numbers."""
    return pd.Series(
        pd.Categorical.from_codes(codes.astype(np.int8), dtype=pd.CategoricalDtype(list(SPLITS))), index=index
    )


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
        ``train``, ``valid`` or ``test`` for every row (categorical), with the index of ``interactions``.

    Raises
    ------
    ConfigError
        If the shares are out of range.
    """
    _check_shares(valid, test)
    ordered = interactions.sort_values([name for name in ("user", "item") if name in interactions])
    users = ordered["user"].to_numpy()
    draws = numpy_generator(seed, "split").random(len(ordered))
    sizes = _sizes(ordered)
    n_test = _held_out(sizes, test)
    n_valid = np.minimum(_held_out(sizes, valid), np.maximum(sizes - n_test - 1, 0))
    return _first_held_out(ordered, np.lexsort((draws, users)), sizes, n_test, n_valid).reindex(interactions.index)


def _sizes(ordered: pd.DataFrame) -> np.ndarray:
    """Interactions of each user, ascending users, ``[U]``."""
    return ordered.groupby("user", sort=True).size().to_numpy()


def _first_held_out(
    ordered: pd.DataFrame, order: np.ndarray, sizes: np.ndarray, n_test: np.ndarray, n_valid: np.ndarray
) -> pd.Series:
    """Hold out the first of each user's ``sizes [U]`` interactions: ``n_test [U]`` of them, then ``n_valid [U]``.

    ``order [n]`` are the places in ``ordered`` user by user, ascending, each user's first to be held out first.
    """
    rank = np.arange(len(ordered)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    until_test, until_valid = np.repeat(n_test, sizes), np.repeat(n_test + n_valid, sizes)
    codes = np.zeros(len(ordered), dtype=np.int8)
    codes[order] = np.where(rank < until_test, _TEST, np.where(rank < until_valid, _VALID, _TRAIN))
    return _named(codes, ordered.index)


def _held_out(size: np.ndarray, share: float) -> np.ndarray:
    if share == 0:
        return np.zeros_like(size)
    rounded = np.maximum(1, np.floor(share * size + 0.5)).astype(size.dtype)
    return np.where(size >= 3, np.minimum(rounded, size - 2), 0)


def leave_one_out(interactions: pd.DataFrame, seed: int) -> pd.Series:
    """Assign each user's latest interaction to test and the one before to valid.

    A user with fewer than three interactions gives nothing. Equal timestamps are ordered at random (seeded).

    Parameters
    ----------
    interactions
        Columns ``user``, ``item`` and ``timestamp``; the result does not depend on the order of its rows.
    seed
        Seed of the order among equal timestamps.

    Returns
    -------
    Series
        ``train``, ``valid`` or ``test`` for every row (categorical), with the index of ``interactions``.

    Raises
    ------
    DataError
        If a timestamp is missing.
    """
    _check_timestamps(interactions, "leave_one_out")
    ordered = interactions.sort_values(["user", "item"])
    draws = numpy_generator(seed, "split").random(len(ordered))
    users = ordered["user"].to_numpy()
    latest_first = np.lexsort((draws, -ordered["timestamp"].to_numpy(dtype=np.int64), users))
    sizes = _sizes(ordered)
    one = (sizes >= 3).astype(np.int64)
    return _first_held_out(ordered, latest_first, sizes, one, one).reindex(interactions.index)


def global_time(interactions: pd.DataFrame, valid: float, test: float) -> pd.Series:
    """Assign the latest share of all interactions to test and the share before to valid, by two points in time.

    Interactions of one and the same second always fall into the same split, so the shares are approximate. Users may
    have no train interaction; they are not ranked.

    Parameters
    ----------
    interactions
        Column ``timestamp``.
    valid, test
        Shares in [0, 1); together less than 1.

    Returns
    -------
    Series
        ``train``, ``valid`` or ``test`` for every row (categorical), with the index of ``interactions``.

    Raises
    ------
    ConfigError
        If the shares are out of range.
    DataError
        If a timestamp is missing, or so many are equal that nothing is left for training.
    """
    _check_shares(valid, test)
    _check_timestamps(interactions, "time")
    times = interactions["timestamp"].to_numpy(dtype=np.int64)
    ordered = np.sort(times)
    n = len(ordered)
    n_test, n_valid = int(np.floor(test * n + 0.5)), int(np.floor(valid * n + 0.5))
    from_test = ordered[n - n_test] if n_test else ordered[-1] + 1
    from_valid = ordered[n - n_test - n_valid] if n_test + n_valid else ordered[-1] + 1
    if from_valid <= ordered[0]:
        raise DataError(
            "a split by time leaves nothing for training: too many interactions have one and the same timestamp",
            "choose another split: random or leave_one_out",
        )
    return _named(
        np.where(times >= from_test, _TEST, np.where(times >= from_valid, _VALID, _TRAIN)), interactions.index
    )


def complete_given(interactions: pd.DataFrame, valid: float, seed: int) -> pd.Series:
    """Keep a given split; if it has no validation part, cut one from the train part of each user, never from test.

    Parameters
    ----------
    interactions
        Columns ``user``, ``item`` and ``split``.
    valid
        Share of each user's train interactions for validation, if there is none.
    seed
        Seed of the cut.
    """
    split = interactions["split"].astype(pd.CategoricalDtype(list(SPLITS)))
    if not (split == SPLITS[1]).any():
        train = interactions[split == SPLITS[0]]
        split.loc[train.index] = random_per_user(train, valid, 0.0, seed)
    return split


def _check_shares(valid: float, test: float) -> None:
    if min(valid, test) < 0 or valid + test >= 1:
        raise ConfigError(f"valid share {valid} and test share {test} must be >= 0 and leave a part for training")


def _check_timestamps(interactions: pd.DataFrame, split: str) -> None:
    missing = int(interactions["timestamp"].isna().sum())
    if missing:
        raise DataError(
            f"{missing} interactions have no timestamp, which the split {split!r} needs", "use split random"
        )
