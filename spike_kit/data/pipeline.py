"""From parsed raw rows to the tables of a data-set folder: a declared list of steps, with a funnel and dense ids.

A source (`spike_kit.data.sources`) fills a `Workspace` with rows under its own ids; the steps in `STEPS` are the same
for every source. All of them run in duckdb, so that the raw rows never have to fit into memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from pydantic import Field

from spike_kit.base.config import Config
from spike_kit.base.errors import DataError, some
from spike_kit.base.seeds import numpy_generator
from spike_kit.data.raw import OnError, Workspace, literal
from spike_kit.data.splits import complete_given, global_time, leave_one_out, random_per_user
from spike_kit.data.tables import SPLITS, Tables
from spike_kit.data.text import MAX_REVIEW_CHARACTERS, clean, cut, mostly_not_latin, plain, without_markup

BATCH_ROWS = 100_000
"""Reviews that are cleaned, checked and written at a time."""


class BuildConfig(Config):
    """Settings of a build; every data set has its own named recipe of them."""

    min_rating: float | None = 4.0
    """An interaction is a positive if its rating is at least this (in the rating's own scale); none takes all."""
    max_users: int | None = Field(default=None, ge=1)
    """Keep only this many users, drawn at random before the k-core; none keeps all."""
    linked_only: bool = True
    """Drop items that no triple names."""
    user_core: int = Field(default=5, ge=0)
    """Least number of interactions per user (k of the k-core); 0 keeps users without any."""
    item_core: int = Field(default=5, ge=0)
    """Least number of interactions per item (k of the k-core); 0 keeps items without any."""
    min_entity_items: int = Field(default=2, ge=0)
    """Least number of items an auxiliary entity must be linked to directly; 0 keeps all entities."""
    exclude_relations: tuple[str, ...] = ()
    """Relations to leave out, by their ids in the source."""
    min_relation_triples: int = Field(default=1, ge=0)
    """Least number of triples of a relation; 0 keeps relations without any."""
    behavioural: bool = False
    """Keep facts that can encode held-out behaviour (also_buy, also_view, tags given by the same users)."""
    split: Literal["random", "leave_one_out", "time", "given"] = "random"
    """How interactions are split: random per user; each user's last two; by two points in time; as the source gives
    it (a missing validation part is cut from train)."""
    valid: float = Field(default=0.1, ge=0, lt=1)
    """Share of interactions held out for validation (per user; of all for split time)."""
    test: float = Field(default=0.1, ge=0, lt=1)
    """Share of interactions held out for the test (per user; of all for split time)."""
    seed: int = 0
    """Seed of the split and of the choice of users."""
    reviews: bool = True
    """Keep the reviews of the interactions, where the source has them."""
    max_review_characters: int = Field(default=MAX_REVIEW_CHARACTERS, ge=10)
    """Characters kept of a review."""
    on_error: OnError = "stop"
    """What a bad row of a raw file does: stop the build with its file and line, or be skipped and counted."""


@dataclass(frozen=True)
class Step:
    """One step of the pipeline.

    Attributes
    ----------
    name
        What it does, for the declared list.
    apply
        Changes the tables of the workspace; returns the row of the funnel it makes (what was done with these
        settings) with counts of its own, or none if the settings switch it off.
    """

    name: str
    apply: Callable[[Workspace, BuildConfig], tuple[str, dict[str, int]] | None]


def reorganize(work: Workspace, config: BuildConfig) -> Tables:
    """Turn raw rows into the tables of a data-set folder, step by step (`STEPS`); each step is recorded in the funnel.

    Raises
    ------
    DataError
        If a filter leaves nothing; the message names the step.
    """
    for step in STEPS:
        done = step.apply(work, config)
        if done is not None:
            label, extra = done
            work.funnel.add(label, _counts(work), **extra)
    return _tables(work)


def _counts(work: Workspace) -> dict[str, int]:
    """Count the users and items that have an interaction, and the rest as it is."""
    rows = work.db.execute(
        """SELECT (SELECT count(*) FROM (SELECT DISTINCT "user" FROM n)),
                  (SELECT count(*) FROM (SELECT DISTINCT item FROM n)), (SELECT count(*) FROM n),
                  (SELECT count(*) FROM e WHERE alive),
                  (SELECT count(*) FROM r WHERE alive), (SELECT count(*) FROM t)"""
    ).fetchall()
    return dict(zip(("users", "items", "interactions", "entities", "relations", "triples"), rows[0], strict=True))


def _parse(work: Workspace, config: BuildConfig) -> tuple[str, dict[str, int]]:
    """Give every id of the source a number, in the order of the source; triples and interactions refer to these.

    ``u``, ``i``, ``e``, ``r`` number users, items, auxiliary entities and relations; ``n`` and ``t`` are interactions
    and triples in numbers, where entity ``e`` is node ``items + e``.
    """
    db = work.db
    if not work.count("interactions"):
        raise DataError("the source holds no interaction", "check that these are the right files")
    db.execute(
        """INSERT INTO items SELECT (SELECT coalesce(max(position), -1) FROM items) + row_number() OVER (ORDER BY item),
                  item, item, '' FROM (SELECT DISTINCT item FROM interactions ANTI JOIN items USING (item))"""
    )
    unnamed = work.value("SELECT count(*) FROM items WHERE trim(label) = '' OR label = item")
    given = [("i", "items", "item"), ("e", "entities", "entity")]
    if work.count("users"):
        given.append(("u", "users", "user"))
    else:
        db.execute(
            """CREATE TABLE u AS SELECT CAST(row_number() OVER () - 1 AS INTEGER) AS id, "user" AS source_id,
                      true AS alive, 0 AS position FROM (SELECT DISTINCT "user" FROM interactions)"""
        )
    for short, table, name in given:
        _check_unique(work, table, name)
        db.execute(
            f"""CREATE TABLE {short} AS SELECT CAST(row_number() OVER (ORDER BY position) - 1 AS INTEGER) AS id,
                       "{name}" AS source_id, true AS alive, position FROM {table}"""
        )
    _check_unique(work, "relations", "relation")
    db.execute(
        """CREATE TABLE r AS SELECT CAST(row_number() OVER (ORDER BY position) - 1 AS INTEGER) AS id,
                  relation AS source_id, coalesce(behavioural, false) AS behavioural, true AS alive, position
           FROM relations"""
    )
    db.execute(
        """CREATE TABLE n AS SELECT u.id AS "user", i.id AS item, rating, "timestamp", split, review FROM interactions
           JOIN u ON u.source_id = interactions."user" JOIN i ON i.source_id = interactions.item"""
    )
    if config.split == "given":
        _check_given(work)
    db.execute(
        """CREATE TABLE node AS SELECT id, source_id FROM i
           UNION ALL SELECT id + (SELECT count(*) FROM i), source_id FROM e"""
    )
    twice = work.value("SELECT source_id FROM node GROUP BY source_id HAVING count(*) > 1 ORDER BY 1 LIMIT 1")
    if twice is not None:
        raise DataError(f"{twice!r} is the id of an item and of another entity", "give entities ids of their own")
    db.execute(
        """CREATE TABLE t AS SELECT DISTINCT h.id AS head, r.id AS relation, n.id AS tail FROM triples
           JOIN node AS h ON h.source_id = head JOIN r ON r.source_id = relation JOIN node AS n ON n.source_id = tail"""
    )
    extra = {"items_without_name": unnamed, **work.extra}
    return work.parsed, {name: count for name, count in extra.items() if count}


def _check_given(work: Workspace) -> None:
    """Check a given split: every row has one, and nobody is held out altogether."""
    unknown = work.value(f"SELECT count(*) FROM n WHERE split IS NULL OR split NOT IN {SPLITS}")
    if unknown:
        raise DataError(f"{unknown} interactions have no given split", "choose a split: random, leave_one_out or time")
    absent = work.db.execute(
        """SELECT min(source_id), count(*) FROM n JOIN u ON u.id = n."user"
           WHERE "user" NOT IN (SELECT "user" FROM n WHERE split = 'train')"""
    ).fetchall()
    user, rows = absent[0]
    if rows:
        where = f"{work.origin('interactions', user)}: user {user!r}"
        work.bad(where, "has held-out interactions and none in train", "add some, or remove the user", rows)
        work.db.execute("""DELETE FROM n WHERE "user" NOT IN (SELECT "user" FROM n WHERE split = 'train')""")


def _check_unique(work: Workspace, table: str, name: str) -> None:
    """Merge rows that repeat an id with the same label; other labels are bad rows."""
    db = work.db
    clash = db.execute(
        f"""SELECT "{name}", min(label), max(label), count(*) - 1 FROM {table} GROUP BY "{name}"
            HAVING min(label) <> max(label) ORDER BY 1"""
    ).fetchall()
    if clash:
        first = clash[0]
        work.bad(
            f"{work.origin(table, first[0])}: {name} {first[0]!r}",
            f"it has different labels: {first[1][:60]!r} and {first[2][:60]!r}",
            "keep one row for each id",
            sum(row[3] for row in clash),
        )
    repeated = work.value(f'SELECT count(*) - count(DISTINCT "{name}") FROM {table}')
    if repeated:
        db.execute(
            f"""DELETE FROM {table} WHERE position NOT IN (SELECT min(position) FROM {table} GROUP BY "{name}")"""
        )


def _relations(work: Workspace, config: BuildConfig) -> tuple[str, dict[str, int]] | None:
    """Leave out relations that are not wanted: excluded by name, or able to encode held-out behaviour."""
    known = {row[0] for row in work.db.execute("SELECT source_id FROM r").fetchall()}
    if unknown := sorted(set(config.exclude_relations) - known):
        raise DataError(f"relations to leave out do not exist: {some(unknown)}", f"there are: {some(sorted(known))}")
    names = [row[0] for row in work.db.execute("SELECT source_id FROM r WHERE behavioural ORDER BY id").fetchall()]
    dropped = set(config.exclude_relations) | (set() if config.behavioural else set(names))
    if kept := [name for name in names if name not in dropped]:
        work.notes.append(
            f"facts of these relations come from what users did and may encode held-out interactions, so do not report "
            f"gains from them: {', '.join(kept)}"
        )
    if not dropped:
        return None
    _drop_relations(work, f"source_id IN ({', '.join(map(literal, sorted(dropped)))})")
    return f"without the relations {', '.join(sorted(dropped))}", {}


def _drop_relations(work: Workspace, condition: str) -> None:
    work.db.execute(f"UPDATE r SET alive = false WHERE {condition}")
    work.db.execute("DELETE FROM t WHERE relation IN (SELECT id FROM r WHERE NOT alive)")


def _positive(work: Workspace, config: BuildConfig) -> tuple[str, dict[str, int]] | None:
    """Keep interactions with a rating that is high enough."""
    if config.min_rating is None:
        return None
    rated = work.value("SELECT count(rating) FROM n")
    if not rated:
        raise DataError(
            f"no interaction has a rating, so none can be at least {config.min_rating:g}",
            "take every interaction as a positive with --min-rating None",
        )
    work.db.execute(f"DELETE FROM n WHERE rating IS NULL OR rating < {config.min_rating}")
    _demand(work, f"the positive rule (rating >= {config.min_rating:g})")
    return f"rating >= {config.min_rating:g}", {}


def _deduplicate(work: Workspace, config: BuildConfig) -> tuple[str, dict[str, int]]:
    """Keep the latest interaction of a user and an item; of a given split, the one that is not held out."""
    del config
    db = work.db
    db.execute('CREATE TABLE repeated AS SELECT "user", item FROM n GROUP BY 1, 2 HAVING count(*) > 1')
    leaking = work.value(
        """SELECT count(*) FROM (SELECT 1 FROM n SEMI JOIN repeated USING ("user", item)
           GROUP BY "user", item HAVING count(DISTINCT split) > 1)"""
    )
    db.execute(
        """CREATE TABLE best AS SELECT * FROM n SEMI JOIN repeated USING ("user", item) QUALIFY row_number() OVER (
             PARTITION BY "user", item
             ORDER BY CASE split WHEN 'train' THEN 0 WHEN 'valid' THEN 1 ELSE 2 END, "timestamp" DESC NULLS LAST,
                      rating DESC NULLS LAST, review DESC) = 1"""
    )
    db.execute('DELETE FROM n USING repeated WHERE n."user" = repeated."user" AND n.item = repeated.item')
    db.execute("INSERT INTO n SELECT * FROM best")
    return "one interaction per user and item", {"pairs_in_two_splits": leaking} if leaking else {}


def _some_users(work: Workspace, config: BuildConfig) -> tuple[str, dict[str, int]] | None:
    """Keep a random choice of users."""
    if config.max_users is None:
        return None
    rows = work.db.execute('SELECT id FROM u WHERE id IN (SELECT "user" FROM n) ORDER BY source_id').fetchall()
    users = np.array([row[0] for row in rows])
    chosen = users[numpy_generator(config.seed, "users").permutation(len(users))[: config.max_users]]
    kept = pd.DataFrame({"id": chosen})
    work.db.register("kept", kept)
    work.db.execute('DELETE FROM n WHERE "user" NOT IN (SELECT id FROM kept)')
    work.db.execute("UPDATE u SET alive = false WHERE id NOT IN (SELECT id FROM kept)")
    work.db.unregister("kept")
    return f"{config.max_users} users at random", {}


def _link(work: Workspace, config: BuildConfig) -> tuple[str, dict[str, int]] | None:
    """Drop items that no triple names."""
    if not config.linked_only:
        return None
    work.db.execute("DELETE FROM n WHERE item NOT IN (SELECT head FROM t UNION SELECT tail FROM t)")
    work.db.execute("UPDATE i SET alive = false WHERE id NOT IN (SELECT head FROM t UNION SELECT tail FROM t)")
    _demand(work, "the link to the knowledge graph (no item with an interaction has a triple)")
    return "items with a triple", {}


def _k_core(work: Workspace, config: BuildConfig) -> tuple[str, dict[str, int]] | None:
    """Drop users and items with too few interactions until none is left to drop."""
    if not config.user_core and not config.item_core:
        return None
    rounds = k_core(work, config.user_core, config.item_core)
    _demand(work, f"the k-core (users {config.user_core}, items {config.item_core})")
    for short, name, core in (("u", "user", config.user_core), ("i", "item", config.item_core)):
        if core:
            work.db.execute(f'UPDATE {short} SET alive = false WHERE alive AND id NOT IN (SELECT "{name}" FROM n)')
    work.db.execute(_TRIPLES_OF_DEAD_ITEMS)
    return f"k-core: users {config.user_core}, items {config.item_core}", {"rounds": rounds}


_TRIPLES_OF_DEAD_ITEMS = """DELETE FROM t WHERE head IN (SELECT id FROM i WHERE NOT alive)
    OR tail IN (SELECT id FROM i WHERE NOT alive)"""


def k_core(work: Workspace, user_core: int, item_core: int) -> int:
    """Delete interactions of users and items with too few of them until every user and every item has enough.

    Parameters
    ----------
    work
        Its table ``n`` holds the interactions: user, item, each pair once.
    user_core, item_core
        Least number of interactions per user and per item.

    Returns
    -------
    int
        Rounds it took; what is left is the largest set of interactions that satisfies both.
    """
    rounds = 0
    left = work.count("n")
    while True:
        for name, least in (("item", item_core), ("user", user_core)):
            if least > 1:
                work.db.execute(
                    f"""DELETE FROM n WHERE "{name}" IN
                        (SELECT "{name}" FROM n GROUP BY "{name}" HAVING count(*) < {least})"""
                )
        before, left = left, work.count("n")
        rounds += 1
        if left == before:
            return rounds


def _entities(work: Workspace, config: BuildConfig) -> tuple[str, dict[str, int]] | None:
    """Keep entities that enough items are linked to, relations that are used enough, and the triples among them.

    An entity counts an item once, however many relations link the two. Triples of items that are gone go with them.
    """
    db = work.db
    db.execute(_TRIPLES_OF_DEAD_ITEMS)
    n_items = work.count("i")
    if config.min_entity_items:
        db.execute(
            f"""CREATE OR REPLACE TEMP TABLE shared AS SELECT entity FROM (
                  SELECT head AS item, tail - {n_items} AS entity FROM t WHERE head < {n_items} AND tail >= {n_items}
                  UNION SELECT tail, head - {n_items} FROM t WHERE tail < {n_items} AND head >= {n_items})
                GROUP BY entity HAVING count(*) >= {config.min_entity_items}"""
        )
        db.execute("UPDATE e SET alive = false WHERE id NOT IN (SELECT entity FROM shared)")
        db.execute(
            f"""DELETE FROM t WHERE (head >= {n_items} AND head - {n_items} IN (SELECT id FROM e WHERE NOT alive))
                OR (tail >= {n_items} AND tail - {n_items} IN (SELECT id FROM e WHERE NOT alive))"""
        )
    if config.min_relation_triples:
        enough = f"SELECT relation FROM t GROUP BY relation HAVING count(*) >= {config.min_relation_triples}"
        _drop_relations(work, f"id NOT IN ({enough})")
    if not work.count("t"):
        raise DataError(
            f"nothing is left after the entity filter (at least {config.min_entity_items} items per entity, "
            f"{config.min_relation_triples} triples per relation)",
            _LOOSEN,
        )
    if not config.min_entity_items:
        return "relations that are used", {}
    least = config.min_entity_items
    return f"entities on at least {least} item{'s' if least > 1 else ''}", {}


_LOOSEN = "loosen the filters of the build settings"


def _demand(work: Workspace, step: str) -> None:
    if not work.count("n"):
        raise DataError(f"nothing is left after {step}", _LOOSEN)


def _number(work: Workspace, config: BuildConfig) -> None:
    """Count what is left from 0, in the order of the source; entities follow the items."""
    del config
    db = work.db
    for short in ("u", "i", "e", "r"):
        offset = "(SELECT count(*) FROM i WHERE alive)" if short == "e" else "0"
        db.execute(
            f"""CREATE TABLE {short}_new AS SELECT id AS old,
                       CAST({offset} + row_number() OVER (ORDER BY position, source_id) - 1 AS BIGINT) AS id
                FROM {short} WHERE alive"""
        )
    db.execute(
        """CREATE TABLE node_new AS SELECT old, id FROM i_new
           UNION ALL SELECT old + (SELECT count(*) FROM i), id FROM e_new"""
    )
    db.execute(
        """CREATE TABLE interactions_new AS
           SELECT u_new.id AS "user", i_new.id AS item, split, rating, "timestamp", review FROM n
           JOIN u_new ON u_new.old = n."user" JOIN i_new ON i_new.old = n.item ORDER BY 1, 2"""
    )


def _split(work: Workspace, config: BuildConfig) -> tuple[str, dict[str, int]]:
    """Give every interaction its split."""
    rows = work.frame('SELECT "user", item, split, "timestamp" FROM interactions_new ORDER BY 1, 2')
    match config.split:
        case "random":
            split = random_per_user(rows, config.valid, config.test, config.seed)
        case "leave_one_out":
            split = leave_one_out(rows, config.seed)
        case "time":
            split = global_time(rows, config.valid, config.test)
        case "given":
            split = complete_given(rows, config.valid, config.seed)
    codes = split.cat.codes.to_numpy()
    keys = pd.DataFrame({"user": rows["user"], "item": rows["item"], "code": codes})
    work.db.register("codes", keys)
    names = " ".join(f"WHEN {number} THEN '{name}'" for number, name in enumerate(SPLITS))
    work.db.execute(
        f"""CREATE OR REPLACE TABLE interactions_new AS SELECT "user", item, CASE code {names} END AS split, rating,
            "timestamp", review FROM interactions_new JOIN codes USING ("user", item)"""
    )
    work.db.unregister("codes")
    sizes = np.bincount(codes, minlength=len(SPLITS))
    if not sizes[0]:
        raise DataError("the split leaves nothing for training", "hold out smaller shares")
    return f"ids and split: {config.split}", {
        f"interactions_{name}": int(sizes[number]) for number, name in enumerate(SPLITS)
    }


STEPS: tuple[Step, ...] = (
    Step("parse", _parse),
    Step("leave out relations", _relations),
    Step("positive rule", _positive),
    Step("deduplicate", _deduplicate),
    Step("choose users", _some_users),
    Step("link to the knowledge graph", _link),
    Step("k-core", _k_core),
    Step("filter entities and relations", _entities),
    Step("ids", _number),
    Step("split", _split),
)
"""The pipeline, in order."""


def _tables(work: Workspace) -> Tables:
    """Fetch the final tables; labels and descriptions are cleaned here, where few rows are left."""
    users = _fetch_named(work, "u", "users", "user", "label")
    items = _fetch_named(work, "i", "items", "item", "label", "description")
    auxiliary = _fetch_named(work, "e", "entities", "entity", "label", "kind")
    relations = _fetch_named(work, "r", "relations", "relation", "label", "template")
    items["description"] = _texts(plain(text) for text in items["description"].fillna(""))
    auxiliary["kind"] = _texts(clean(text) for text in auxiliary["kind"].fillna("entity"))
    relations["template"] = _texts(clean(text) for text in relations["template"])
    columns = ["entity", "source_id", "label", "kind"]
    as_entities = items.rename(columns={"item": "entity"}).assign(kind="item")
    interactions = work.frame('SELECT "user", item, split, rating, "timestamp" FROM interactions_new ORDER BY 1, 2')
    return Tables(
        users,
        items,
        pd.concat([as_entities[columns], auxiliary[columns]], ignore_index=True),
        relations,
        interactions.astype({"rating": "float64", "timestamp": "Int64"}),
        work.frame(
            """SELECT h.id AS head, r_new.id AS relation, n.id AS tail FROM t JOIN node_new AS h ON h.old = t.head
               JOIN r_new ON r_new.old = t.relation JOIN node_new AS n ON n.old = t.tail ORDER BY 1, 2, 3"""
        ),
    )


def _fetch_named(work: Workspace, short: str, table: str, name: str, *columns: str) -> pd.DataFrame:
    """Rows of a named table that are left, with their final ids; a label that says nothing becomes the source id."""
    frame = work.frame(
        f"""SELECT x.id AS "{name}", old.source_id, {", ".join(columns)} FROM {short}_new AS x
            JOIN {short} AS old ON old.id = x.old LEFT JOIN {table} ON {table}."{name}" = old.source_id ORDER BY 1"""
    )
    prefix = "User " if name == "user" else ""
    labels = zip(frame["label"].fillna(""), frame["source_id"], strict=True)
    frame["label"] = _texts(plain(label) or clean(prefix + source_id) or "unnamed" for label, source_id in labels)
    return frame


def _texts(values: Iterable[str]) -> pd.Series:
    return pd.Series(list(values), dtype="str")


def cleaned_reviews(work: Workspace, config: BuildConfig) -> Iterator[pd.DataFrame]:
    """Yield the reviews of the study's interactions in batches, sorted by user and item, each with its split.

    A text becomes one clean line (`plain`), cut at ``max_review_characters``. Empty texts are dropped, and texts that
    the same item or the same user has already, of which the earliest stays; no language is. After the last batch the
    counts are a row of the funnel.
    """
    if not config.reviews or not work.reviews:
        return
    counts = _choose_reviews(work)
    found = {"html_resolved": 0, "control_characters_removed": 0, "cut": 0, "not_latin": 0}
    kept = 0
    suspect = f"regexp_matches(text, {literal(_NOT_PLAIN)}) OR length(text) > {config.max_review_characters}"
    query = f"""SELECT "user", item, text, chosen."timestamp", split, {suspect} AS suspect FROM chosen
                JOIN ({work.reviews}) AS raw USING (review) ORDER BY 1, 2"""
    for batch in work.batches(query, BATCH_ROWS):
        look = batch.pop("suspect").to_numpy(dtype=bool)
        lines = [_review_line(text, config.max_review_characters, found) for text in batch["text"][look]]
        frame = batch.astype({"timestamp": "Int64", "text": "str"})
        frame.loc[look, "text"] = pd.Series(lines, index=frame.index[look], dtype="str")
        filled = frame[frame["text"] != ""].reset_index(drop=True)
        counts["empty"] += len(frame) - len(filled)
        kept += len(filled)
        if len(filled):
            yield filled
    extra = {f"reviews_{name}": count for name, count in {**counts, **found}.items()}
    work.funnel.add("reviews", _counts(work), reviews=kept, **extra)


def _choose_reviews(work: Workspace) -> dict[str, int]:
    """Choose the raw reviews that are kept into the table ``chosen``; count the others."""
    db = work.db
    db.execute(
        f"""CREATE TABLE candidates AS SELECT "user", item, split, review, raw."timestamp", content
            FROM interactions_new JOIN ({work.reviews}) AS raw USING (review)"""
    )
    empty = work.value("SELECT count(*) FROM candidates WHERE content = hash('')")
    db.execute("DELETE FROM candidates WHERE content = hash('')")
    db.execute(
        """CREATE TABLE chosen AS SELECT "user", item, split, review, "timestamp" FROM candidates
           QUALIFY row_number() OVER (PARTITION BY item, content ORDER BY "timestamp", "user") = 1
               AND row_number() OVER (PARTITION BY "user", content ORDER BY "timestamp", item) = 1"""
    )
    return {"empty": empty, "duplicated": work.count("candidates") - work.count("chosen")}


_NOT_PLAIN = r"[^!-~ ]|[&<]|^ | $|  "
"""What a text holds that may need cleaning: anything but printable ASCII and single blanks, and HTML."""


def _review_line(text: str, max_characters: int, found: dict[str, int]) -> str:
    bare = without_markup(text)
    found["html_resolved"] += bare != text
    found["control_characters_removed"] += not bare.isprintable()
    line = clean(bare)
    found["not_latin"] += mostly_not_latin(line)
    short = cut(line, max_characters)
    found["cut"] += short != line
    return short
