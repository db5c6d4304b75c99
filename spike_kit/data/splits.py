"""Splitting interactions into train, valid and test: at random per user, the last two of each user, or by time."""

from typing import Literal

import duckdb
import pandas as pd

from spike_kit.base.errors import ConfigError, DataError
from spike_kit.base.seeds import numpy_generator

Split = Literal["random", "leave_one_out", "time", "given"]
Task = Literal["known", "new-items", "few-interactions"]
NewFor = Literal["both", "valid"]
Draws = Literal["ids", "rows"]
Drawn = Literal["users", "split", "new items", "few interactions"]

_ONE = 1e-12
"""Share that holds out one interaction of every user with at least three."""

_SIZE = "CASE WHEN n < 3 OR {share} = 0 THEN 0 ELSE least(greatest(1, floor({share} * n + 0.5)), n - 2) END"
"""How many of a user's ``n`` interactions a share holds out."""


def drawn(db: duckdb.DuckDBPyConnection, rows: str, what: Drawn, seed: int, draws: Draws) -> str:
    """Give SQL of the rows of a query, each with a random ``draw``; whatever is drawn is the first in its order.

    Parameters
    ----------
    db
        Where the SQL will run, before this function is called again.
    rows
        Query with the columns ``key``, a text made of ids of the source, and ``place``; each value stands once.
    what, seed
        What is drawn, and the seed: together they name the stream of random numbers.
    draws
        ``ids``: a hash of what, seed and key, on which no other row has any influence. ``rows``: the next number of a
        generator in the order of ``place``, so that one row more changes the draws of the others.
    """
    if draws == "ids":
        half = f"left(md5(concat('{seed}/{what}/', key)), 16)"
        return f"SELECT *, CAST('0x' || {half} AS UBIGINT) AS draw FROM ({rows})"
    n_rows = db.execute(f"SELECT count(*) FROM ({rows})").fetchall()[0][0]
    generator = numpy_generator(seed, what)
    of_pairs = what in ("split", "few interactions")
    numbers = generator.random(n_rows) if of_pairs else generator.permutation(n_rows).argsort()
    db.register("draws", pd.DataFrame({"draw": numbers}).reset_index())
    return f"""SELECT * FROM (SELECT *, row_number() OVER (ORDER BY place) - 1 AS "index" FROM ({rows}))
               JOIN draws USING ("index")"""


def _pairs(table: str, chosen: str) -> str:
    """SQL of the chosen rows of a table, for `drawn`; the length parts the two ids, whatever characters they have."""
    return f"""SELECT "user", item, "timestamp", ("user", item) AS place,
                      concat(length(u_new.source_id), ':', u_new.source_id, node_new.source_id) AS key
               FROM {table} JOIN u_new ON u_new.id = "user" JOIN node_new ON node_new.id = item WHERE {chosen}"""


def split_interactions(
    db: duckdb.DuckDBPyConnection, split: Split, valid: float, test: float, seed: int = 0, draws: Draws = "ids"
) -> None:
    """Make the table ``final`` of the table ``unsplit``: every interaction with its split.

    ``random``: a user with n >= 3 interactions gives ``max(1, round(share * n))`` of them to each of valid and test,
    but keeps at least one for training; a user with fewer gives nothing. ``leave_one_out``: such a user gives the
    latest to test and the one before to valid; equal timestamps are ordered at random. ``time``: the latest share of
    all interactions is test and the share before is valid; those of one second fall into the same split, so the shares
    are approximate, and a user may have no train interaction. ``given``: as the column ``split`` says; if no row is
    valid, each user's share of the train rows is drawn at random, never of the test rows.

    Parameters
    ----------
    db
        Its table ``unsplit`` has user, item, split, rating, timestamp, review; ``u_new`` and ``node_new`` have id and
        source_id of users and of entities. The order of their rows does not matter.
    valid, test
        Shares in [0, 1); together less than 1. A share of 0 leaves that split empty.
    seed, draws
        Seed of the draws, one for each interaction, and how they are made (`drawn`).

    Raises
    ------
    ConfigError
        If the shares are out of range.
    DataError
        If a timestamp is missing that the split needs, or nothing is left for training.
    """
    if split in ("random", "time") and (min(valid, test) < 0 or valid + test >= 1):
        raise ConfigError(f"valid share {valid} and test share {test} must be >= 0 and leave a part for training")
    missing = db.execute('SELECT count(*) FROM unsplit WHERE "timestamp" IS NULL').fetchall()[0][0]
    if missing and split in ("leave_one_out", "time"):
        raise DataError(
            f"{missing} interactions have no timestamp, which the split {split!r} needs", "use split random"
        )
    if split == "time":
        _by_time(db, valid, test)
    elif split == "random":
        _per_user(db, "true", "draw", valid, test, seed, draws)
    elif split == "leave_one_out":
        _per_user(db, "true", '"timestamp" DESC, draw', _ONE, _ONE, seed, draws)
    else:
        no_valid = "split = 'train' AND NOT EXISTS (FROM unsplit WHERE split = 'valid')"
        _per_user(db, no_valid, "draw", valid, 0.0, seed, draws)
    if not db.execute("SELECT 1 FROM final WHERE split = 'train' LIMIT 1").fetchall():
        why = ": too many interactions have one and the same timestamp" if split == "time" else ""
        raise DataError(
            f"the split {split!r} leaves nothing for training{why}", "hold out smaller shares, or choose another split"
        )


def _per_user(
    db: duckdb.DuckDBPyConnection, chosen: str, first: str, valid: float, test: float, seed: int, draws: Draws
) -> None:
    """Split each user's ``chosen`` rows, those to hold out ``first`` in order; the others keep their split."""
    rows = drawn(db, _pairs("unsplit", chosen), "split", seed, draws)
    db.execute(
        f"""CREATE TABLE final AS
            WITH ranked AS (SELECT "user", item, count(*) OVER (PARTITION BY "user") AS n,
                                   row_number() OVER (PARTITION BY "user" ORDER BY {first}, item) AS rank
                            FROM ({rows})),
                 sized AS (SELECT *, {_SIZE.format(share="$test")} AS n_test,
                                  least({_SIZE.format(share="$valid")}, greatest(n - n_test - 1, 0)) AS n_valid
                           FROM ranked)
            SELECT "user", item, CASE WHEN rank <= n_test THEN 'test' WHEN rank <= n_test + n_valid THEN 'valid'
                                      WHEN rank > 0 THEN 'train' ELSE split END AS split, rating, "timestamp", review
            FROM unsplit LEFT JOIN sized USING ("user", item)""",
        {"valid": valid, "test": test},
    )


def _by_time(db: duckdb.DuckDBPyConnection, valid: float, test: float) -> None:
    """Split at two points in time."""
    db.execute(
        """CREATE TABLE final AS
           WITH ranked AS (SELECT "timestamp", row_number() OVER (ORDER BY "timestamp" DESC) AS latest,
                                  floor($test * count(*) OVER () + 0.5) AS n_test,
                                  floor($valid * count(*) OVER () + 0.5) AS n_valid FROM unsplit),
                since AS (SELECT min("timestamp") FILTER (latest <= n_test) AS test,
                                 min("timestamp") FILTER (latest <= n_test + n_valid) AS valid FROM ranked)
           SELECT "user", item, CASE WHEN "timestamp" >= since.test THEN 'test'
                                     WHEN "timestamp" >= since.valid THEN 'valid' ELSE 'train' END AS split,
                  rating, "timestamp", review FROM unsplit, since""",
        {"valid": valid, "test": test},
    )


def set_new_items(
    db: duckdb.DuckDBPyConnection, n_items: int, share: float, new_for: NewFor, seed: int, draws: Draws = "ids"
) -> None:
    """Take all train interactions of some items out of the table ``final``: nobody has met these new items in train.

    New items of valid are others than those of test. All pairs of a new item become part of its split; with
    ``new_for`` valid those of the test split stay where they are. Pairs of users without any other train interaction
    go, pairs of known items stay in their split.

    Parameters
    ----------
    db
        Its table ``final`` has user, item, split, rating, timestamp, review; ``node_new`` has id and source_id.
    n_items
        Number of items, with ids 0..n_items-1.
    share
        Share of the items that become new; half of them for each split, with ``new_for`` valid all for valid.
    new_for
        For which split.
    seed, draws
        Seed of the draw, and how it is made (`drawn`).

    Raises
    ------
    DataError
        If there would be no new item in a split.
    """
    n_new = int(share * n_items)
    n_valid = n_new if new_for == "valid" else (n_new + 1) // 2
    n_test = n_new - n_valid
    if not n_valid or (new_for == "both" and not n_test):
        raise DataError(
            f"a share of {share} of {n_items} items is too small for new items", "choose a larger new_share"
        )
    items = f"SELECT id AS item, source_id AS key, id AS place FROM node_new WHERE id < {n_items}"
    # Test takes the last draws, not the next ones: an item more or less never moves others between the two splits.
    before_test = n_valid if draws == "rows" else n_items - n_test
    kept = "" if new_for == "both" else "AND final.split <> 'test'"
    db.execute(
        f"""CREATE TABLE new_items AS SELECT item, if(rank <= {n_valid}, 'valid', 'test') AS new_split
            FROM (SELECT item, row_number() OVER (ORDER BY draw) AS rank
                  FROM ({drawn(db, items, "new items", seed, draws)}))
            WHERE rank <= {n_valid} OR rank - {before_test} BETWEEN 1 AND {n_test};
            UPDATE final SET split = new_split FROM new_items WHERE final.item = new_items.item {kept};
            DELETE FROM final WHERE item IN (SELECT item FROM new_items)
                AND "user" NOT IN (SELECT "user" FROM final WHERE split = 'train')"""
    )


def keep_few(db: duckdb.DuckDBPyConnection, at_most: int, seed: int, draws: Draws = "ids") -> None:
    """Keep at most so many train interactions of each user in the table ``final``, drawn at random (`drawn`)."""
    rows = drawn(db, _pairs("final", "split = 'train'"), "few interactions", seed, draws)
    db.execute(
        f"""DELETE FROM final WHERE split = 'train' AND ("user", item) IN (
              SELECT ("user", item) FROM (
                SELECT "user", item, row_number() OVER (PARTITION BY "user" ORDER BY draw, item) AS rank
                FROM ({rows}))
              WHERE rank > {at_most})"""
    )
