"""Last.FM 2K: listening counts and tags of artists (HetRec 2011; Cantador, Brusilovsky and Kuflik, RecSys 2011).

The split of CoLaKG (Cui et al., SIGIR 2025), ``train.txt`` and ``test.txt`` with ``user_map.txt`` and
``item_map.txt``, is read on request.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from pydantic import Field as Setting

from spike_kit.data.lists import read_mapped_split
from spike_kit.data.pipeline import BuildConfig
from spike_kit.data.raw import Delimited, Field, check_readable
from spike_kit.data.recipes import Published, Recipe, Source
from spike_kit.data.workspace import Workspace

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
    given = read_mapped_split(folder, work, SPLIT_LICENCE, SPLIT_ORIGIN)
    work.db.register("given", given.rows)
    work.db.execute(
        """INSERT INTO interactions ("user", item, split, rating) SELECT "user", item, split, rating FROM given
           LEFT JOIN (SELECT "user", item, max(rating) AS rating FROM raw_listens GROUP BY ALL) USING ("user", item)"""
    )
    work.db.unregister("given")
    in_order = pd.DataFrame({"user": given.users}, dtype="str")
    work.put("users", in_order.assign(label="User " + in_order["user"]))
    wanted = pd.DataFrame({"item": given.items}, dtype="str")
    wanted["place"] = range(len(wanted))
    work.db.register("wanted", wanted)
    query = """SELECT item, coalesce(label, item) AS label, '' AS description FROM wanted
               LEFT JOIN raw_artists USING (item) ORDER BY place, raw_artists.rowid"""
    work.put("items", work.frame(query))
    work.db.unregister("wanted")


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
