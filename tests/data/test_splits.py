from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spike_kit.base.errors import ConfigError, DataError
from spike_kit.data.splits import complete_given, global_time, leave_one_out, random_per_user

PAIRS = st.dictionaries(st.tuples(st.integers(0, 5), st.integers(0, 7)), st.integers(0, 3), max_size=30)


def frame(times: dict[tuple[int, int], int]) -> pd.DataFrame:
    rows = [(user, item, at) for (user, item), at in sorted(times.items())]
    return pd.DataFrame(rows, columns=["user", "item", "timestamp"]).astype({"timestamp": "Int64"})


@given(PAIRS, st.integers(0, 100))
@settings(max_examples=100)
def test_leave_one_out_holds_out_the_last_two(times: dict[tuple[int, int], int], seed: int) -> None:
    rows = frame(times)
    split = leave_one_out(rows, seed)
    for _, part in rows.groupby("user"):
        own = split[part.index]
        if len(part) < 3:
            assert (own == "train").all()
            continue
        assert own.value_counts().reindex(["valid", "test"]).tolist() == [1, 1]
        (test,), (valid,) = (part.loc[own[own == name].index, "timestamp"] for name in ("test", "valid"))
        train = part.loc[own[own == "train"].index, "timestamp"]
        assert test >= valid >= train.max()
    shuffled = rows.sample(frac=1, random_state=seed)
    assert leave_one_out(shuffled, seed).sort_index().tolist() == split.tolist()


@given(PAIRS.filter(lambda times: len(set(times.values())) > 2), st.sampled_from([(0.1, 0.1), (0.0, 0.3), (0.2, 0.0)]))
@settings(max_examples=100)
def test_a_split_by_time_never_trains_on_the_future(
    times: dict[tuple[int, int], int], shares: tuple[float, float]
) -> None:
    rows = frame(times)
    try:
        split = global_time(rows, *shares)
    except DataError as error:
        assert "nothing for training" in error.message  # noqa: PT017
        return
    last = {name: rows.loc[split == name, "timestamp"].max() for name in ("train", "valid", "test")}
    first = {name: rows.loc[split == name, "timestamp"].min() for name in ("train", "valid", "test")}
    assert (split == "train").any()
    for earlier, later in (("train", "valid"), ("valid", "test"), ("train", "test")):
        if (split == earlier).any() and (split == later).any():
            assert last[earlier] < first[later]
    assert (split == "test").sum() >= (1 if np.floor(shares[1] * len(rows) + 0.5) >= 1 else 0)


def test_a_split_by_time_needs_timestamps() -> None:
    rows = frame({(0, 0): 1, (0, 1): 2})
    rows.loc[1, "timestamp"] = pd.NA
    for call in (lambda: global_time(rows, 0.1, 0.1), lambda: leave_one_out(rows, 0)):
        with pytest.raises(DataError, match="1 interactions have no timestamp"):
            call()
    with pytest.raises(ConfigError, match="must be >= 0"):
        global_time(rows, 0.6, 0.6)


def test_a_given_split_without_validation_gets_one_from_train_only() -> None:
    rows = pd.DataFrame([(user, item) for user in range(6) for item in range(10)], columns=["user", "item"])
    given_split = pd.Series(np.where(rows["item"] < 3, "test", "train"), dtype="str")
    split = complete_given(rows.assign(split=given_split), 0.2, seed=1)
    assert ((split == "test") == (given_split == "test")).all()
    assert (split == "valid").groupby(rows["user"]).sum().tolist() == [1] * 6
    assert complete_given(rows.assign(split=split), 0.2, seed=2).tolist() == split.tolist()


@given(PAIRS, st.integers(0, 100))
@settings(max_examples=100)
def test_random_splits_follow_the_shares_and_ignore_the_order_of_rows(
    times: dict[tuple[int, int], int], seed: int
) -> None:
    rows = frame(times)
    split = random_per_user(rows, 0.1, 0.1, seed)
    for _, part in split.groupby(rows["user"]):
        n = len(part)
        expected = max(1, int(np.floor(0.1 * n + 0.5))) if n >= 3 else 0
        assert (part == "train").any()
        assert (part == "valid").sum() == expected
        assert (part == "test").sum() == expected
    shuffled = rows.sample(frac=1, random_state=seed)
    assert random_per_user(shuffled, 0.1, 0.1, seed).sort_index().tolist() == split.tolist()


@pytest.mark.parametrize("shares", [(0.45, 0.45), (0.1, 0.85), (0.85, 0.1), (0.0, 0.9), (0.0, 0.0)])
def test_every_user_keeps_a_train_interaction(shares: tuple[float, float]) -> None:
    rows = frame(dict.fromkeys([(user, item) for user in range(12) for item in range(user + 1)], 0))
    split = random_per_user(rows, *shares, seed=0)
    assert (split == "train").groupby(rows["user"]).any().all()


def test_another_seed_gives_another_split() -> None:
    rows = frame(dict.fromkeys([(user, item) for user in range(20) for item in range(20)], 0))
    assert (random_per_user(rows, 0.1, 0.1, 0) != random_per_user(rows, 0.1, 0.1, 1)).any()


@pytest.mark.parametrize("shares", [(0.5, 0.5), (-0.1, 0.1)])
def test_impossible_shares_are_an_error(shares: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="must be >= 0 and leave a part for training"):
        random_per_user(frame({(0, 0): 0}), *shares, 0)
