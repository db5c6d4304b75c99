"""Last.FM 2K: listening counts and tags of artists (HetRec 2011; Cantador, Brusilovsky and Kuflik, RecSys 2011).

The split of CoLaKG (Cui et al., SIGIR 2025), ``train.txt`` and ``test.txt`` with ``user_map.txt`` and
``item_map.txt``, is read on request.
"""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path

import pandas as pd
from pydantic import Field as Setting

from spike_kit.data.lists import read_lists
from spike_kit.data.recipes import Published, Recipe, Source
from spike_kit.data.reorganize import BuildConfig
from spike_kit.data.workspace import Delimited, Field, Workspace, check_readable

LICENCE = "HetRec 2011: non-commercial use, to be cited"
ORIGIN = "hetrec2011-lastfm-2k (GroupLens)"
SPLIT_LICENCE = "none stated"
SPLIT_ORIGIN = "split of CoLaKG"

_RAW = ("user_artists.dat", "artists.dat", "tags.dat", "user_taggedartists.dat")


class LastfmConfig(BuildConfig):
    """Settings of a build from Last.FM 2K."""

    min_taggers: int = Setting(default=2, ge=1)
    """Least number of users who gave an artist one and the same tag."""
    given: bool = False
    """Take interactions and split from CoLaKG's train.txt and test.txt (use --split given)."""


def parse(folder: Path, config: LastfmConfig, work: Workspace) -> None:
    """Parse listening counts, artists and tags; with ``given``, only the artists of the given split.

    Raises
    ------
    DataError
        If a file is missing or damaged, or a row is bad.
    """
    for name in _RAW:
        check_readable(folder / name)
        work.register(folder / name, LICENCE, ORIGIN)
    fields = {"user": Field("userID"), "item": Field("artistID"), "rating": Field("weight", "number")}
    work.read(_table(folder / "user_artists.dat"), "raw_listens", fields)
    artists = _table(folder / "artists.dat")
    work.read(artists, "raw_artists", {"item": Field("id"), "label": Field("name", "text")})
    work.located["items"] = (artists, "id")
    if config.given:
        _read_given(folder, work)
    else:
        work.db.execute('INSERT INTO interactions ("user", item, rating) SELECT "user", item, rating FROM raw_listens')
        work.put("items", work.frame("SELECT item, label, '' AS description FROM raw_artists ORDER BY rowid"))
    _read_tags(folder, config.min_taggers, work)


def _table(path: Path) -> Delimited:
    encoding = "latin-1" if path.name == "tags.dat" else "utf-8"
    return Delimited(path, separator="\t", quoting=False, encoding=encoding)


def _read_tags(folder: Path, min_taggers: int, work: Workspace) -> None:
    """Read the tags that enough users gave to an artist of the data set."""
    tags = _table(folder / "tags.dat")
    work.read(tags, "raw_tags", {"tag": Field("tagID"), "label": Field("tagValue", "text")})
    fields = {"user": Field("userID"), "item": Field("artistID"), "tag": Field("tagID")}
    work.read(_table(folder / "user_taggedartists.dat"), "raw_tagged", fields)
    work.db.execute(
        f"""INSERT INTO triples SELECT item, 'tag', 'tag:' || tag FROM raw_tagged SEMI JOIN items USING (item)
            GROUP BY item, tag HAVING count(DISTINCT "user") >= {min_taggers}"""
    )
    work.put(
        "entities",
        work.frame(
            """SELECT 'tag:' || tag AS entity, coalesce(label, '') AS label, 'tag' AS kind
               FROM (SELECT DISTINCT substr(tail, 5) AS tag FROM triples)
               LEFT JOIN (SELECT rowid AS place, tag, label FROM raw_tags) USING (tag) ORDER BY place NULLS LAST, tag"""
        ),
    )
    template = "{head} is tagged {tail} by listeners."
    relation = {"relation": ["tag"], "label": "tag", "template": template, "behavioural": True}
    work.put("relations", pd.DataFrame(relation))


def _read_given(folder: Path, work: Workspace) -> None:
    """Read the split of CoLaKG; users and items are put in the order of its ids."""
    names = ("user_map.txt", "item_map.txt", "train.txt", "test.txt")
    for name in names:
        check_readable(folder / name)
        work.register(folder / name, SPLIT_LICENCE, SPLIT_ORIGIN)
    users, items = _read_map(folder / names[0], work), _read_map(folder / names[1], work)
    train = _read_split(folder / names[2], users, items, "user_map.txt", "item_map.txt", work)
    known_users, known_items = ({row[place] for row in train} for place in (0, 1))
    test = _read_split(folder / names[3], known_users, known_items, "train.txt", "train.txt", work)
    rows = [(users[user], items[item], "train") for user, item in train]
    rows += [(users[user], items[item], "test") for user, item in test]
    given = pd.DataFrame(rows, columns=["user", "item", "split"], dtype="str")
    work.db.register("given", given)
    work.db.execute(
        """INSERT INTO interactions ("user", item, split, rating) SELECT "user", item, split, rating FROM given
           LEFT JOIN (SELECT "user", item, max(rating) AS rating FROM raw_listens GROUP BY ALL) USING ("user", item)"""
    )
    work.db.unregister("given")
    in_order = pd.DataFrame({"user": [users[mapped] for mapped in sorted(users)]}, dtype="str")
    work.put("users", in_order.assign(label="User " + in_order["user"]))
    wanted = pd.DataFrame({"item": [items[mapped] for mapped in sorted(items)]}, dtype="str")
    wanted["place"] = range(len(wanted))
    work.db.register("wanted", wanted)
    query = """SELECT item, coalesce(label, item) AS label, '' AS description FROM wanted
               LEFT JOIN raw_artists USING (item) ORDER BY place, raw_artists.rowid"""
    work.put("items", work.frame(query))
    work.db.unregister("wanted")


def _read_map(path: Path, work: Workspace) -> dict[int, str]:
    """Read lines of a raw id and the id it is mapped to: raw ids by mapped ids."""
    found: dict[int, str] = {}
    raw_ids: set[int] = set()
    for number, ids in read_lists(path, work):
        problem = ""
        if len(ids) != 2:
            problem = f"it holds {len(ids)} numbers, expected a raw and a mapped id"
        elif ids[0] in raw_ids or ids[1] in found:
            problem = f"the id {ids[0] if ids[0] in raw_ids else ids[1]} stands in an earlier line, too"
        if problem:
            work.bad(f"{path} line {number}", problem, "correct the line")
            continue
        raw_ids.add(ids[0])
        found[ids[1]] = str(ids[0])
    return found


def _read_split(
    path: Path,
    users: Container[int],
    items: Container[int],
    users_from: str,
    items_from: str,
    work: Workspace,
) -> list[tuple[int, int]]:
    """Read lines ``user item item ...``; those whose user or item is unknown are bad."""
    rows: list[tuple[int, int]] = []
    seen: set[int] = set()
    for number, (user, *held) in read_lists(path, work):
        where = f"{path} line {number}"
        if user in seen:
            work.bad(where, f"user {user} has a line already", "join the lines")
            continue
        seen.add(user)
        if user not in users:
            work.bad(where, f"user {user} is not in {users_from}", "correct the line")
            continue
        if unknown := [item for item in held if item not in items]:
            work.bad(where, f"item {unknown[0]} is not in {items_from}", "correct the line", len(unknown))
        rows += [(user, item) for item in held if item in items]
    return rows


_SETTINGS = LastfmConfig(min_rating=None, behavioural=True)

SOURCE = Source(
    parse,
    {
        "lastfm": Recipe(
            "lastfm",
            _SETTINGS,
            "Last.FM 2K (HetRec 2011) with the tags of its artists",
            ("hetrec2011-lastfm-2k",),
            Published({"users": 1_892, "items": 17_632, "interactions": 92_834}, "its README (HetRec 2011)"),
        ),
        "lastfm-colakg": Recipe(
            "lastfm",
            _SETTINGS.replace(given=True, split="given", valid=0.1, user_core=0, item_core=0, linked_only=False),
            "Last.FM 2K in the split of CoLaKG",
            published=Published({"users": 1_859, "items": 2_813, "interactions": 71_294}, "the data of CoLaKG"),
        ),
    },
)
"""The source, with the whole of Last.FM 2K and the split of CoLaKG."""
