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
from spike_kit.data.raw import Delimited, Field
from spike_kit.data.reading import interaction_fields, put_relations, read_interactions, registered
from spike_kit.data.recipes import Published, Recipe, Source
from spike_kit.data.workspace import Workspace

LICENCE = "HetRec 2011: non-commercial use, to be cited"
ORIGIN = "hetrec2011-lastfm-2k (GroupLens)"
SPLIT_LICENCE = "none stated"
SPLIT_ORIGIN = "split of CoLaKG"


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
    names = ("user_artists.dat", "artists.dat", "tags.dat", "user_taggedartists.dat")
    listens, artists, tags, tagged = (_table(registered(folder / name, LICENCE, ORIGIN, work)) for name in names)
    columns = interaction_fields({"user": "userID", "item": "artistID", "rating": "weight"})
    work.read(artists, "raw_artists", {"item": Field("id"), "label": Field("name", "text")})
    work.origins["items"] = (artists, "id")
    if config.given:
        work.read(listens, "raw_listens", columns)
        _read_given(folder, work)
    else:
        read_interactions(listens, columns, work)
        work.put("items", work.frame("SELECT item, label FROM raw_artists ORDER BY rowid"))
    _read_tags(tags, tagged, config.min_taggers, work)


def _table(path: Path) -> Delimited:
    return Delimited(path, "\t", quoting=False, encoding="latin-1" if path.name == "tags.dat" else "utf-8")


def _read_tags(tags: Delimited, tagged: Delimited, min_taggers: int, work: Workspace) -> None:
    """Read the tags that enough users gave to an artist of the data set."""
    work.read(tags, "raw_tags", {"tag": Field("tagID"), "label": Field("tagValue", "text")})
    fields = {"user": Field("userID"), "item": Field("artistID"), "tag": Field("tagID")}
    work.read(tagged, "raw_tagged", fields)
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
    put_relations({"tag": "{head} is tagged {tail} by listeners."}, work, behavioural={"tag"})


def _read_given(folder: Path, work: Workspace) -> None:
    """Read the split of CoLaKG; users and items are put in the order of its ids."""
    given = read_mapped_split(folder, work, SPLIT_LICENCE, SPLIT_ORIGIN)
    work.table("given", given.rows)
    work.db.execute(
        """INSERT INTO interactions ("user", item, split, rating) SELECT "user", item, split, rating FROM given
           LEFT JOIN (SELECT "user", item, max(rating) AS rating FROM raw_listens GROUP BY ALL) USING ("user", item)"""
    )
    work.put("users", pd.DataFrame({"user": given.users}, dtype="str"))
    wanted = pd.DataFrame({"item": given.items}, dtype="str")
    work.table("wanted", wanted.assign(place=range(len(wanted))))
    query = """SELECT item, coalesce(label, item) AS label FROM wanted
               LEFT JOIN raw_artists USING (item) ORDER BY place, raw_artists.rowid"""
    work.put("items", work.frame(query))


_SETTINGS = LastfmConfig(min_rating=None, behavioural=True)

SOURCE = Source(
    parse,
    {
        "lastfm": Recipe(
            _SETTINGS,
            "Last.FM 2K (HetRec 2011) with the tags of its artists",
            Published("its README (HetRec 2011)", 1_892, 17_632, 92_834),
            ("hetrec2011-lastfm-2k",),
        ),
        "lastfm-colakg": Recipe(
            _SETTINGS.replace(given=True, split="given", valid=0.1, user_core=0, item_core=0, linked_only=False),
            "Last.FM 2K in the split of CoLaKG",
            Published("the data of CoLaKG", 1_859, 2_813, 71_294),
        ),
    },
)
"""The reader, with the whole of Last.FM 2K and the split of CoLaKG."""
