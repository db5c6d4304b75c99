"""From parsed raw rows to the tables of a data-set folder: a declared list of steps, with a funnel and dense ids.

A source (`spike_kit.data.sources`) fills a `Workspace` with rows under its own ids; the steps in `STEPS` are the same
for every source. All of them run in duckdb, so that the raw rows never have to fit into memory.
"""

from collections.abc import Iterable, Iterator

import pandas as pd

from spike_kit.base.errors import DataError, some
from spike_kit.data.raw import literal
from spike_kit.data.recipes import UNFILTERED, BuildConfig
from spike_kit.data.splits import drawn, keep_few, set_new_items, split_interactions
from spike_kit.data.tables import SPLITS, Tables
from spike_kit.data.text import clean, cut, mostly_not_latin, plain, readable, without_markup
from spike_kit.data.workspace import Workspace

BATCH_ROWS = 100_000
"""Reviews that are cleaned, checked and written at a time."""


Done = tuple[str, dict[str, int]] | None
"""What a step did with these settings, as the funnel calls it, and counts of its own; none if they switch it off."""


def reorganize(work: Workspace, config: BuildConfig) -> Tables:
    """Turn raw rows into the tables of a data-set folder, step by step (`STEPS`); each step is recorded in the funnel.

    Raises
    ------
    DataError
        If a filter leaves nothing; the message names the step.
    """
    for step in STEPS:
        if done := step(work, config):
            label, extra = done
            counts = _counts(work)
            for what in ("interactions", "triples"):
                if not counts[what]:
                    raise DataError(f"nothing is left after the step {label!r}: no {what}", _remedy(what, work, config))
            work.record(label, counts, **extra)
    return _tables(work)


def _remedy(what: str, work: Workspace, config: BuildConfig) -> str:
    """What to do where nothing is left: name the filters that are on, or say that there was nothing to filter."""
    if what == "triples" and not work.count("triples"):
        return "a data set needs a graph: give triples or facts (tables: --triples, --facts; recbole: NAME.kg, --facts)"
    filters = {**UNFILTERED, "exclude_relations": ()}
    on = [f"{name} {getattr(config, name)}" for name, off in filters.items() if getattr(config, name) != off]
    return (
        f"loosen the filters of the build settings: {', '.join(on)}" if on else "check that the files belong together"
    )


def _counts(work: Workspace) -> dict[str, int]:
    """Count the users and items that have an interaction, and the rest as it is."""
    rows = work.db.execute(
        """SELECT (SELECT count(DISTINCT "user") FROM n), (SELECT count(DISTINCT item) FROM n),
                  (SELECT count(*) FROM n), (SELECT count(*) FROM node WHERE NOT is_item),
                  (SELECT count(*) FROM r), (SELECT count(*) FROM t)"""
    ).fetchall()
    return dict(zip(("users", "items", "interactions", "entities", "relations", "triples"), rows[0], strict=True))


def _parse(work: Workspace, config: BuildConfig) -> Done:
    """Give every id of the source a number, in the order of the source; triples and interactions refer to these.

    ``u``, ``node`` and ``r`` number users, entities (the items first) and relations; a later step deletes from them.
    ``n`` and ``t`` are interactions and triples in numbers.
    """
    db = work.db
    if not work.count("interactions"):
        raise DataError("the source holds no interaction", "check that these are the right files")
    if work.count("items"):
        named = "SELECT item FROM items"
        _note_unmatched(work, "SELECT item FROM interactions", named, ("interactions", "items"))
    for table, name, values in (("users", "user", "''"), ("items", "item", "'', ''")):
        if table == "items" or not work.count("users"):
            db.execute(
                f"""INSERT INTO {table} SELECT (SELECT coalesce(max(position), -1) FROM {table}) +
                           row_number() OVER (ORDER BY "{name}"), "{name}", {values}
                    FROM (SELECT DISTINCT "{name}" FROM interactions ANTI JOIN {table} USING ("{name}"))"""
            )
    unnamed = work.value("SELECT count(*) FROM items WHERE trim(label) = '' OR label = item")
    for table, name in (("users", "user"), ("items", "item"), ("entities", "entity"), ("relations", "relation")):
        _check_unique(work, table, name)
    nodes = """(SELECT item AS entity, position, true AS is_item FROM items
                UNION ALL SELECT entity, position, false FROM entities)"""
    for short, name, source, order in (
        ("u", "user", "users", "position"),
        ("node", "entity", nodes, "is_item DESC, position"),
        ("r", "relation", "relations", "position"),
    ):
        db.execute(
            f"""CREATE TABLE {short} AS SELECT CAST(row_number() OVER (ORDER BY {order}) - 1 AS INTEGER) AS id,
                       "{name}" AS source_id, {order.replace(" DESC", "")} FROM {source}"""
        )
    db.execute(
        """CREATE TABLE n AS SELECT u.id AS "user", node.id AS item, rating, "timestamp", split, review
           FROM interactions JOIN u ON u.source_id = interactions."user"
           JOIN node ON is_item AND node.source_id = interactions.item"""
    )
    if config.split == "given":
        _check_given(work)
    ends = "SELECT head FROM triples UNION SELECT tail FROM triples"
    if work.count("triples"):
        used = "SELECT item FROM items SEMI JOIN interactions USING (item)"
        _note_unmatched(work, used, ends, ("items", "triples"), config.linked_only)
    twice = work.value("SELECT source_id FROM node GROUP BY source_id HAVING count(*) > 1 ORDER BY 1 LIMIT 1")
    if twice is not None:
        raise DataError(f"{twice!r} is the id of an item and of another entity", "give entities ids of their own")
    db.execute(
        """CREATE TABLE t AS SELECT DISTINCT h.id AS head, r.id AS relation, tails.id AS tail FROM triples
           JOIN node AS h ON h.source_id = head JOIN r ON r.source_id = relation
           JOIN node AS tails ON tails.source_id = tail"""
    )
    extra = {"items_without_name": unnamed, **work.extra}
    return work.parsed, {name: count for name, count in extra.items() if count}


def _note_unmatched(work: Workspace, ids: str, others: str, names: tuple[str, str], needed: bool = True) -> None:
    """Note the ids that other rows do not have, with examples of both sides.

    Parameters
    ----------
    work
        The workspace.
    ids, others
        Queries of the ids that are looked for, and of those among which they are.
    names
        What to call the two.
    needed
        Whether nothing is left without a match.

    Raises
    ------
    DataError
        If one is needed and there is none: the two write their ids in different ways then.
    """
    pair = [f"SELECT DISTINCT CAST(id AS VARCHAR) AS id FROM ({query}) AS t(id)" for query in (ids, others)]
    lost = work.frame(f"({pair[0]}) EXCEPT ({pair[1]}) ORDER BY 1")["id"]
    if lost.empty:
        return
    left = work.frame(f"({pair[1]}) EXCEPT ({pair[0]}) ORDER BY 1 LIMIT 3")["id"]
    examples = f"such as {some(map(repr, lost), 3)}" + (f"; only there: {some(map(repr, left))}" if len(left) else "")
    total = work.value(f"SELECT count(*) FROM ({pair[0]})")
    told = f"{len(lost)} of {total} item ids of the {names[0]} are not among the ids of the {names[1]}, {examples}"
    if needed and len(lost) == total and len(left):
        raise DataError(told, "write the ids in the same way in all files, or say which belong together (--links)")
    work.notes.append(told)


def _check_given(work: Workspace) -> None:
    """Check a given split: every row has one, and nobody is held out altogether."""
    if unknown := work.value(f"SELECT count(*) FROM n WHERE split IS NULL OR split NOT IN {SPLITS}"):
        raise DataError(f"{unknown} interactions have no given split", "choose a split: random, leave_one_out or time")
    absent = """FROM n WHERE "user" NOT IN (SELECT "user" FROM n WHERE split = 'train')"""
    if rows := work.value(f"SELECT count(*) {absent}"):
        user = work.value(f'SELECT min(source_id) FROM u WHERE id IN (SELECT "user" {absent})')
        where = f"{work.origin('interactions', user)}: user {user!r}"
        work.bad(where, "has held-out interactions and none in train", "add some, or remove the user", rows)
        work.db.execute(f"DELETE {absent}")


def _check_unique(work: Workspace, table: str, name: str) -> None:
    """Merge rows that repeat an id with the same label; other labels are bad rows."""
    db = work.db
    clash = db.execute(
        f"""SELECT "{name}", min(label), max(label), count(*) - 1 FROM {table} GROUP BY "{name}"
            HAVING min(label) <> max(label) ORDER BY 1"""
    ).fetchall()
    if clash:
        first, label, other, _ = clash[0]
        problem = f"it has different labels: {label[:60]!r} and {other[:60]!r}"
        rows = sum(row[3] for row in clash)
        if work.keep_first:
            work.extra["rows_of_a_known_id"] = work.extra.get("rows_of_a_known_id", 0) + rows
            work.notes.append(f"{name} {first!r} and others: {problem}; the first is kept, {rows} rows are not")
        else:
            remedy = "keep one row for each id (for tables: --keep-first)"
            work.bad(f"{work.origin(table, first)}: {name} {first!r}", problem, remedy, rows)
    db.execute(f"""DELETE FROM {table} WHERE position NOT IN (SELECT min(position) FROM {table} GROUP BY "{name}")""")


def _relations(work: Workspace, config: BuildConfig) -> Done:
    """Leave out relations that are not wanted: excluded by name, or able to encode held-out behaviour."""
    known = set(work.frame("SELECT source_id FROM r")["source_id"])
    if unknown := sorted(set(config.exclude_relations) - known):
        raise DataError(f"relations to leave out do not exist: {some(unknown)}", f"there are: {some(sorted(known))}")
    names = work.frame("SELECT relation FROM relations WHERE behavioural ORDER BY position")["relation"].tolist()
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
    """Delete relations and their triples."""
    work.db.execute(f"DELETE FROM r WHERE {condition}")
    work.db.execute("DELETE FROM t WHERE relation NOT IN (SELECT id FROM r)")


def _drop_nodes(work: Workspace, condition: str) -> None:
    """Delete entities and the triples that name them."""
    work.db.execute(f"DELETE FROM node WHERE {condition}")
    work.db.execute("DELETE FROM t WHERE head NOT IN (SELECT id FROM node) OR tail NOT IN (SELECT id FROM node)")


def _positive(work: Workspace, config: BuildConfig) -> Done:
    """Keep interactions with a rating that is high enough."""
    if config.min_rating is None:
        if low := work.value("SELECT count(*) FROM n WHERE rating <= 0"):
            work.notes.append(
                f"{low} interactions have a rating of 0 or less (or False) and count as positives; --min-rating "
                "leaves them out"
            )
        return None
    if not work.value("SELECT count(rating) FROM n"):
        raise DataError(
            f"no interaction has a rating, so none can be at least {config.min_rating:g}",
            "take every interaction as a positive with --min-rating None",
        )
    work.db.execute(f"DELETE FROM n WHERE rating IS NULL OR rating < {config.min_rating}")
    return f"rating >= {config.min_rating:g}", {}


def _deduplicate(work: Workspace, _config: BuildConfig) -> Done:
    """Keep the latest interaction of a user and an item; of a given split, the one that is not held out."""
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


def _some_users(work: Workspace, config: BuildConfig) -> Done:
    """Keep a random choice of users."""
    if config.max_users is None:
        return None
    users = 'SELECT id, source_id AS key, source_id AS place FROM u WHERE id IN (SELECT "user" FROM n)'
    rows = drawn(work.db, users, "users", config.seed, config.draws)
    work.db.execute(f"CREATE TABLE kept AS SELECT id FROM ({rows}) ORDER BY draw LIMIT {config.max_users}")
    work.db.execute('DELETE FROM n WHERE "user" NOT IN (SELECT id FROM kept)')
    work.db.execute("DELETE FROM u WHERE id NOT IN (SELECT id FROM kept)")
    return f"{config.max_users} users at random", {}


def _link(work: Workspace, config: BuildConfig) -> Done:
    """Drop items that no triple names."""
    if not config.linked_only:
        return None
    linked = "(SELECT head FROM t UNION SELECT tail FROM t)"
    work.db.execute(f"DELETE FROM n WHERE item NOT IN {linked}")
    _drop_nodes(work, f"is_item AND id NOT IN {linked}")
    return "items with a triple", {}


def _link_again(work: Workspace, config: BuildConfig) -> Done:
    """Drop items whose last triple went with its entity, and what falls below the filters then, until nothing does."""
    lost = "SELECT id FROM node WHERE is_item AND id NOT IN (SELECT head FROM t UNION SELECT tail FROM t)"
    if not config.linked_only or not work.value(f"SELECT count(*) FROM ({lost})"):
        return None
    rounds = 0
    while work.value(f"SELECT count(*) FROM ({lost})"):
        rounds += 1
        for step in (_link, _k_core, _entities):
            step(work, config)
    return "items that still have a triple", {"rounds": rounds}


def _k_core(work: Workspace, config: BuildConfig) -> Done:
    """Drop users and items with too few interactions until none is left to drop."""
    if not config.user_core and not config.item_core:
        return None
    rounds = k_core(work, config.user_core, config.item_core)
    if config.user_core:
        work.db.execute('DELETE FROM u WHERE id NOT IN (SELECT "user" FROM n)')
    if config.item_core:
        _drop_nodes(work, "is_item AND id NOT IN (SELECT item FROM n)")
    return f"k-core: users {config.user_core}, items {config.item_core}", {"rounds": rounds}


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


def _entities(work: Workspace, config: BuildConfig) -> Done:
    """Keep entities that enough items are linked to, relations that are used enough, and the triples among them.

    An entity counts an item once, however many relations link the two.
    """
    least = config.min_entity_items
    if least:
        _drop_nodes(
            work,
            f"""NOT is_item AND id NOT IN (
                  SELECT entity FROM (SELECT head AS item, tail AS entity FROM t UNION SELECT tail, head FROM t)
                  WHERE item IN (SELECT id FROM node WHERE is_item) GROUP BY entity HAVING count(*) >= {least})""",
        )
    if config.min_relation_triples:
        enough = f"SELECT relation FROM t GROUP BY relation HAVING count(*) >= {config.min_relation_triples}"
        _drop_relations(work, f"id NOT IN ({enough})")
    return f"entities on at least {least} item{'s' if least > 1 else ''}" if least else "relations that are used", {}


def _number_and_split(work: Workspace, config: BuildConfig) -> Done:
    """Count what is left from 0, in the order of the source (items before other entities), and split interactions."""
    db = work.db
    for short, order in (("u", "position"), ("node", "is_item DESC, position"), ("r", "position")):
        db.execute(
            f"""CREATE TABLE {short}_new AS SELECT id AS old, source_id,
                       row_number() OVER (ORDER BY {order}, source_id) - 1 AS id FROM {short}"""
        )
    db.execute(
        """CREATE TABLE unsplit AS SELECT u_new.id AS "user", node_new.id AS item, split, rating, "timestamp", review
           FROM n JOIN u_new ON u_new.old = n."user" JOIN node_new ON node_new.old = n.item"""
    )
    split_interactions(db, config.split, config.valid, config.test, config.seed, config.draws)
    return f"ids and split: {config.split}", _sizes(work)


def _sizes(work: Workspace) -> dict[str, int]:
    """Interactions of each split."""
    sizes = dict(work.db.execute("SELECT split, count(*) FROM final GROUP BY split").fetchall())
    return {f"interactions_{name}": sizes.get(name, 0) for name in SPLITS}


def _task(work: Workspace, config: BuildConfig) -> Done:
    """Take interactions out of train where the task is not that of known items."""
    if config.task == "known":
        return None
    before, extra = work.count("final"), {}
    if config.task == "few-interactions":
        keep_few(work.db, config.at_most, config.seed, config.draws)
    else:
        n_items = work.value("SELECT count(*) FROM node_new JOIN node ON node.id = old WHERE is_item")
        set_new_items(work.db, n_items, config.new_share, config.new_for, config.seed, config.draws)
        counts = dict(work.db.execute("SELECT new_split, count(*) FROM new_items GROUP BY 1").fetchall())
        extra = {f"new_items_{name}": counts.get(name, 0) for name in ("valid", "test")}
    return f"task: {config.task}", {**_sizes(work), **extra, "interactions_left_out": before - work.count("final")}


STEPS = (
    _parse,
    _relations,
    _positive,
    _deduplicate,
    _some_users,
    _link,
    _k_core,
    _entities,
    _link_again,
    _number_and_split,
    _task,
)
"""The pipeline, in order: each changes the tables of the workspace and says what was done."""


def _tables(work: Workspace) -> Tables:
    """Fetch the final tables; labels and descriptions are cleaned here, where few rows are left."""
    users = _named(work, "u_new", "users", "user")
    items = _named(work, "node_new", "items", "item", "description")
    auxiliary = _named(work, "node_new", "entities", "entity", "kind")
    relations = _named(work, "r_new", "relations", "relation", "template")
    items["description"] = _texts(plain(text) for text in items["description"].fillna(""))
    auxiliary["kind"] = _texts(clean(text) for text in auxiliary["kind"].fillna("entity"))
    relations["template"] = _texts(clean(text) for text in relations["template"])
    entities = pd.concat([items.rename(columns={"item": "entity"}).assign(kind="item"), auxiliary], ignore_index=True)
    interactions = work.frame('SELECT "user", item, split, rating, "timestamp" FROM final ORDER BY 1, 2')
    triples = work.frame(
        """SELECT h.id AS head, r_new.id AS relation, tails.id AS tail FROM t JOIN node_new AS h ON h.old = t.head
           JOIN r_new ON r_new.old = t.relation JOIN node_new AS tails ON tails.old = t.tail ORDER BY 1, 2, 3"""
    )
    interactions = interactions.astype({"rating": "float64", "timestamp": "Int64"})
    return Tables(users, items, entities[["entity", "source_id", "label", "kind"]], relations, interactions, triples)


def _named(work: Workspace, numbered: str, table: str, name: str, *more: str) -> pd.DataFrame:
    """Rows of a named table that are left, with their final ids; a label that says nothing becomes the source id."""
    columns = ", ".join(["source_id", "label", *more])
    frame = work.frame(
        f"""SELECT id AS "{name}", {columns} FROM {numbered} JOIN {table} ON {table}."{name}" = source_id ORDER BY id"""
    )
    prefix = "User " if name == "user" else ""
    labels = zip(frame["label"].fillna(""), frame["source_id"], strict=True)
    called = clean if name == "user" else readable
    frame["label"] = _texts(plain(label) or called(prefix + source_id) or "unnamed" for label, source_id in labels)
    return frame


def _texts(values: Iterable[str]) -> pd.Series:
    return pd.Series(list(values), dtype="str")


def cleaned_reviews(work: Workspace, config: BuildConfig) -> Iterator[pd.DataFrame]:
    """Yield the reviews of the final interactions in batches, sorted by user and item, each with its split.

    A text becomes one clean line (`plain`), cut at ``max_review_characters``. Empty texts are dropped, and texts that
    the same item or the same user has already, of which the earliest stays; no language is. After the last batch the
    counts are a row of the funnel.
    """
    if not config.reviews or not work.reviews:
        return
    counts = _choose_reviews(work)
    suspect = f"regexp_matches(text, {literal(_NOT_PLAIN)}) OR length(text) > {config.max_review_characters}"
    query = f"""SELECT "user", item, text, chosen."timestamp", split, {suspect} AS suspect FROM chosen
                JOIN ({work.reviews}) AS raw USING (review) ORDER BY 1, 2"""
    for batch in work.batches(query, BATCH_ROWS):
        look = batch.pop("suspect").to_numpy(dtype=bool)
        frame = batch.astype({"timestamp": "Int64", "text": "str"})
        lines = [_review_line(text, config.max_review_characters, counts) for text in batch["text"][look]]
        frame.loc[look, "text"] = _texts(lines).to_numpy()
        filled = frame[frame["text"] != ""].reset_index(drop=True)
        counts["reviews_empty"] += len(frame) - len(filled)
        counts["reviews"] += len(filled)
        if len(filled):
            yield filled
    work.record("reviews", _counts(work), **counts)


def _choose_reviews(work: Workspace) -> dict[str, int]:
    """Choose the raw reviews that are kept into the table ``chosen``; returns the counts of the others, and zeros."""
    db = work.db
    db.execute(
        f"""CREATE TABLE candidates AS SELECT "user", item, split, review, raw."timestamp", content
            FROM final JOIN ({work.reviews}) AS raw USING (review)"""
    )
    empty = work.value("SELECT count(*) FROM candidates WHERE content = hash('')")
    db.execute("DELETE FROM candidates WHERE content = hash('')")
    db.execute(
        """CREATE TABLE chosen AS SELECT "user", item, split, review, "timestamp" FROM candidates
           QUALIFY row_number() OVER (PARTITION BY item, content ORDER BY "timestamp", "user") = 1
               AND row_number() OVER (PARTITION BY "user", content ORDER BY "timestamp", item) = 1"""
    )
    duplicated = work.count("candidates") - work.count("chosen")
    changed = dict.fromkeys((f"reviews_{what}" for what in _CHANGES), 0)
    return {"reviews": 0, "reviews_empty": empty, "reviews_duplicated": duplicated, **changed}


_CHANGES = ("html_resolved", "control_characters_removed", "cut", "not_latin")

_NOT_PLAIN = r"[^!-~ ]|[&<]|^ | $|  "
"""What a text holds that may need cleaning: anything but printable ASCII and single blanks, and HTML."""


def _review_line(text: str, max_characters: int, counts: dict[str, int]) -> str:
    bare = without_markup(text)
    line = clean(bare)
    short = cut(line, max_characters)
    happened = (bare != text, not bare.isprintable(), short != line, mostly_not_latin(line))
    for what, did in zip(_CHANGES, happened, strict=True):
        counts[f"reviews_{what}"] += did
    return short
