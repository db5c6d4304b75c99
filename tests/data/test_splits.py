import hashlib
import itertools
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spike_kit.base.errors import ConfigError, DataError
from spike_kit.base.seeds import numpy_generator
from spike_kit.data.splits import Draws, NewFor, Split, keep_few, set_new_items, split_interactions

PAIRS = st.dictionaries(st.tuples(st.integers(0, 5), st.integers(0, 7)), st.integers(0, 3), min_size=1, max_size=30)
DRAWS = st.sampled_from(["ids", "rows"])
FEW = settings(max_examples=25)


def frame(times: dict[tuple[int, int], int]) -> pd.DataFrame:
    rows = [(user, item, at) for (user, item), at in sorted(times.items())]
    return pd.DataFrame(rows, columns=["user", "item", "timestamp"]).astype({"timestamp": "Int64"})


def square(n: int) -> pd.DataFrame:
    """Interactions of every user with every item, at one time."""
    return frame(dict.fromkeys([(user, item) for user in range(n) for item in range(n)], 0))


def named(db: duckdb.DuckDBPyConnection) -> duckdb.DuckDBPyConnection:
    """Give users and items ids of the source that are ambiguous side by side: 1, 11, 111..."""
    for table in ("u_new", "node_new"):
        db.execute(f"CREATE TABLE {table} AS SELECT range AS id, repeat('1', range + 1) AS source_id FROM range(20)")
    return db


def split(
    rows: pd.DataFrame, how: Split, valid: float = 0.1, test: float = 0.1, seed: int = 0, draws: Draws = "ids"
) -> pd.Series:
    """Split of each row, whose users and items ascend; in the database the rows stand in any order."""
    stored = rows.assign(rating=1.0, review=1, split=rows.get("split", pd.Series(None, rows.index, dtype="str")))
    with named(duckdb.connect()) as db:
        db.register("rows", stored.sample(frac=1, random_state=seed))
        db.execute('CREATE TABLE unsplit AS SELECT "user", item, split, rating, "timestamp", review FROM rows')
        split_interactions(db, how, valid, test, seed, draws)
        found = db.execute('SELECT split FROM final ORDER BY "user", item').fetchall()
    return pd.Series([name for (name,) in found], index=rows.index)


def hashed(what: str, seed: int, *ids: int) -> int:
    """Draw that follows from a seed and the ids of `named`."""
    *first, last = ("1" * (number + 1) for number in ids)
    text = f"{seed}/{what}/" + "".join(f"{len(name)}:{name}" for name in first) + last
    return int(hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()[:16], 16)


def draws_of(rows: pd.DataFrame, what: str, seed: int, draws: Draws) -> pd.Series:
    """Draw of each row, whose users and items ascend: by its ids alone, or one number after the other."""
    if draws == "rows":
        return pd.Series(numpy_generator(seed, what).random(len(rows)), rows.index)
    found = [hashed(what, seed, user, item) for user, item in zip(rows["user"], rows["item"], strict=True)]
    return pd.Series(found, rows.index, dtype="uint64")


@given(PAIRS, st.integers(0, 100))
@FEW
def test_leave_one_out_holds_out_the_last_two(times: dict[tuple[int, int], int], seed: int) -> None:
    rows = frame(times)
    found = split(rows, "leave_one_out", seed=seed)
    for _, part in rows.groupby("user"):
        own = found[part.index]
        if len(part) < 3:
            assert (own == "train").all()
            continue
        assert own.value_counts().reindex(["valid", "test"]).tolist() == [1, 1]
        (test,), (valid,) = (part.loc[own[own == name].index, "timestamp"] for name in ("test", "valid"))
        assert test >= valid >= part.loc[own[own == "train"].index, "timestamp"].max()


@given(PAIRS.filter(lambda times: len(set(times.values())) > 2), st.sampled_from([(0.1, 0.1), (0.0, 0.3), (0.2, 0.0)]))
@FEW
def test_a_split_by_time_never_trains_on_the_future(
    times: dict[tuple[int, int], int], shares: tuple[float, float]
) -> None:
    rows = frame(times)
    try:
        found = split(rows, "time", *shares)
    except DataError as error:
        assert "nothing for training: too many interactions have one" in error.message  # noqa: PT017
        return
    parts = [rows.loc[found == name, "timestamp"] for name in ("train", "valid", "test")]
    filled = [part for part in parts if len(part)]
    assert all(earlier.max() < later.min() for earlier, later in itertools.pairwise(filled))
    assert len(parts[2]) >= np.floor(shares[1] * len(rows) + 0.5)


def test_splits_by_time_need_timestamps() -> None:
    rows = frame({(0, 0): 1, (0, 1): 2})
    rows.loc[1, "timestamp"] = pd.NA
    for how in ("time", "leave_one_out"):
        with pytest.raises(DataError, match=f"1 interactions have no timestamp, which the split '{how}' needs"):
            split(rows, how)
    assert len(split(rows, "random")) == 2


def test_a_given_split_without_validation_gets_one_from_train_only() -> None:
    rows = square(10)
    rows["split"] = np.where(rows["item"] < 3, "test", "train")
    found = split(rows, "given", 0.2, seed=1)
    assert ((found == "test") == (rows["split"] == "test")).all()
    assert (found == "valid").groupby(rows["user"]).sum().tolist() == [1] * 10
    assert split(rows.assign(split=found), "given", 0.2, seed=2).tolist() == found.tolist()
    with pytest.raises(DataError, match="the split 'given' leaves nothing for training"):
        split(rows.assign(split="test"), "given")


@given(PAIRS, st.integers(0, 100), DRAWS)
@FEW
def test_random_splits_follow_the_shares_and_ignore_the_order_of_rows(
    times: dict[tuple[int, int], int], seed: int, draws: Draws
) -> None:
    """The first draws of a user are test, the next ones valid."""
    rows = frame(times)
    rank = draws_of(rows, "split", seed, draws).groupby(rows["user"]).rank()
    n = rows.groupby("user")["item"].transform("size")
    held = np.where(n < 3, 0, np.maximum(1, np.floor(0.1 * n + 0.5)))
    expected = np.where(rank <= held, "test", np.where(rank <= 2 * held, "valid", "train"))
    assert split(rows, "random", seed=seed, draws=draws).tolist() == expected.tolist()


@given(PAIRS, st.integers(0, 100), DRAWS)
@FEW
def test_equal_times_are_ordered_by_the_draws(times: dict[tuple[int, int], int], seed: int, draws: Draws) -> None:
    rows = frame(times)
    order = rows.assign(draw=draws_of(rows, "split", seed, draws)).sort_values(
        ["timestamp", "draw"], ascending=[False, True]
    )
    rank = order.groupby("user").cumcount()[rows.index]
    enough = rows.groupby("user")["item"].transform("size") >= 3
    expected = np.where(enough & (rank < 2), np.where(rank < 1, "test", "valid"), "train")
    assert split(rows, "leave_one_out", seed=seed, draws=draws).tolist() == expected.tolist()


@pytest.mark.parametrize("shares", [(0.45, 0.45), (0.1, 0.85), (0.85, 0.1), (0.0, 0.9), (0.0, 0.0)])
def test_every_user_keeps_a_train_interaction(shares: tuple[float, float]) -> None:
    rows = frame(dict.fromkeys([(user, item) for user in range(12) for item in range(user + 1)], 0))
    found = split(rows, "random", *shares)
    assert (found == "train").groupby(rows["user"]).any().all()
    assert set(found) == {"train", *(name for name, share in zip(("valid", "test"), shares, strict=True) if share)}


@pytest.mark.parametrize("shares", [(0.5, 0.5), (-0.1, 0.1), (0.6, 0.6)])
def test_impossible_shares_are_an_error(shares: tuple[float, float]) -> None:
    for how in ("random", "time"):
        with pytest.raises(ConfigError, match="must be >= 0 and leave a part for training"):
            split(square(2), how, *shares)


def split_at_random(times: dict[tuple[int, int], int], seed: int) -> pd.DataFrame:
    """Interactions with a random split: user, item, split."""
    return frame(times)[["user", "item"]].assign(split=split(frame(times), "random", 0.2, 0.2, seed))


def tasked(rows: pd.DataFrame, task: Any, *settings: Any) -> pd.DataFrame:
    """What a task leaves of split rows (user, item, split)."""
    with named(duckdb.connect()) as db:
        db.register("rows", rows.sample(frac=1, random_state=1))
        db.execute('CREATE TABLE final AS SELECT *, 0 AS "timestamp" FROM rows')
        task(db, *settings)
        return db.execute('SELECT "user", item, split FROM final ORDER BY "user", item').df()


@given(PAIRS, st.sampled_from(["both", "valid"]), st.integers(0, 50), DRAWS)
@FEW
def test_nobody_has_met_a_new_item_in_train_and_known_items_stay_where_they_were(
    times: dict[tuple[int, int], int], new_for: NewFor, seed: int, draws: Draws
) -> None:
    """Of 8 items 3 are new: the first in valid, and in test the next ones of the rows, or the last by their ids."""
    rows = split_at_random(times, seed)
    found = tasked(rows, set_new_items, 8, 0.4, new_for, seed, draws)
    order = sorted(range(8), key=lambda item: hashed("new items", seed, item))
    if draws == "rows":
        order = numpy_generator(seed, "new items").permutation(8).tolist()
    n_valid = 2 if new_for == "both" else 3
    last = order[n_valid:3] if draws == "rows" else order[5 + n_valid :]
    of_split = {"valid": set(order[:n_valid]), "test": set(last)}
    new = of_split["valid"] | of_split["test"]
    before = rows.set_index(["user", "item"])["split"]
    after = found.set_index(["user", "item"])["split"]
    trained = set(found.loc[found["split"] == "train", "user"])
    for user, item, was in rows.itertuples(index=False):
        is_new = item in new
        if is_new and user not in trained:
            assert (user, item) not in after.index
        elif not is_new or (new_for == "valid" and was == "test"):
            assert after[user, item] == was
        else:
            assert after[user, item] == ("valid" if item in of_split["valid"] else "test")
    assert len(after) <= len(before)


@pytest.mark.parametrize(("share", "new_for"), [(0.4, "both"), (0.3, "valid"), (0.75, "both")])
def test_an_item_more_moves_no_other_between_valid_and_test(share: float, new_for: NewFor) -> None:
    """Wherever its id stands among the others; one item may come or go, since as many are new as the share wants."""
    query = "SELECT source_id, new_split FROM new_items JOIN node_new ON id = item"
    for seed in range(10):
        found = []
        for names in (list("bcdefghi"), list("bcdefghia"), list("abcdefghi")):
            with duckdb.connect() as db:
                db.from_df(pd.DataFrame({"id": range(len(names)), "source_id": names})).create("node_new")
                db.execute('CREATE TABLE final ("user" INTEGER, item INTEGER, split VARCHAR)')
                set_new_items(db, len(names), share, new_for, seed)
                found.append(dict(db.execute(query).fetchall()))
        before, after, moved = found
        assert after == moved
        assert all(before[item] == after[item] for item in before.keys() & after.keys())
        assert len(before.keys() - after.keys()) <= 1
        assert len(after.keys() - before.keys() - {"a"}) <= 1


def test_too_small_a_share_of_new_items_is_refused() -> None:
    rows = square(4)[["user", "item"]].assign(split="train")
    for share, new_for in ((0.1, "valid"), (0.25, "both")):
        with pytest.raises(DataError, match="too small for new items"):
            tasked(rows, set_new_items, 4, share, new_for, 0)


@given(PAIRS, st.integers(1, 3), st.integers(0, 50), DRAWS)
@FEW
def test_few_interactions_are_the_first_drawn_of_those_in_train(
    times: dict[tuple[int, int], int], at_most: int, seed: int, draws: Draws
) -> None:
    rows = split_at_random(times, seed)
    found = tasked(rows, keep_few, at_most, seed, draws)
    train = rows[rows["split"] == "train"]
    rank = draws_of(train, "few interactions", seed, draws).groupby(train["user"]).rank()
    expected = rows.drop(index=train.index[rank > at_most])
    assert found.to_numpy().tolist() == expected.to_numpy().tolist()
