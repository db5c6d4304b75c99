"""Last.FM 2K: listening counts and tags of artists (HetRec 2011; Cantador, Brusilovsky and Kuflik, RecSys 2011).

The split of CoLaKG (Cui et al., SIGIR 2025), ``train.txt`` and ``test.txt`` with ``user_map.txt`` and
``item_map.txt``, is read on request.
"""

from pathlib import Path

from pydantic import Field as Setting

from spike_kit.data.raw import Delimited, fields
from spike_kit.data.recipes import BuildConfig, Published, Recipe, Source
from spike_kit.data.sources.kgat import read_mapped_split
from spike_kit.data.workspace import Workspace

TERMS = "HetRec 2011: non-commercial use, to be cited", "hetrec2011-lastfm-2k (GroupLens)"
SPLIT_TERMS = "none stated", "split of CoLaKG"


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
    work.terms = TERMS
    names = ("user_artists", "artists", "tags", "user_taggedartists")
    paths = [work.register(folder / f"{name}.dat") for name in names]
    listens, artists, tagged = (Delimited(paths[place], "\t", quoting=False) for place in (0, 1, 3))
    tags = Delimited(paths[2], "\t", quoting=False, encoding="cp1252")
    columns = fields({"user": "userID", "item": "artistID", "rating": "weight"})
    work.read(artists, "raw_items", fields({"item": "id", "label": "name"}))
    if config.given:
        work.read(listens, "listens", columns)
        _read_given(folder, work)
    else:
        work.read_interactions(listens, columns)
        work.put("items", work.frame("SELECT item, label FROM raw_items ORDER BY place"))
    _read_tags(tags, tagged, config.min_taggers, work)


def _read_tags(tags: Delimited, tagged: Delimited, min_taggers: int, work: Workspace) -> None:
    """Read the tags that enough users gave to an artist of the data set."""
    work.read(tags, "tags", fields({"tag": "tagID", "label": "tagValue"}))
    work.read(tagged, "tagged", fields({"user": "userID", "item": "artistID", "tag": "tagID"}))
    work.db.execute(
        f"""INSERT INTO triples SELECT item, 'tag', 'tag:' || tag FROM tagged SEMI JOIN items USING (item)
            GROUP BY item, tag HAVING count(DISTINCT "user") >= {min_taggers}"""
    )
    used = "(SELECT DISTINCT substr(tail, 5) AS tag FROM triples)"
    query = f"""SELECT 'tag:' || tag AS entity, coalesce(label, '') AS label, 'tag' AS kind
                FROM {used} LEFT JOIN tags USING (tag) ORDER BY place NULLS LAST, tag"""
    work.put("entities", work.frame(query))
    work.put_relations({"tag": "{head} is tagged {tail} by listeners."}, behavioural={"tag"})


def _read_given(folder: Path, work: Workspace) -> None:
    """Read the split of CoLaKG; users and items are put in the order of its ids."""
    work.terms = SPLIT_TERMS
    interactions, items = read_mapped_split(folder, work)
    weights = work.frame('SELECT "user", item, max(rating) AS rating FROM listens GROUP BY ALL')
    work.put("interactions", interactions.merge(weights, how="left"))
    items = items.merge(work.frame("SELECT item, label FROM raw_items ORDER BY place"), how="left")
    work.put("items", items.assign(label=items["label"].fillna(items["item"])))


_SETTINGS = LastfmConfig(min_rating=None, behavioural=True)
_GIVEN = _SETTINGS.replace(given=True, split="given", valid=0.1, user_core=0, item_core=0, linked_only=False)
_HETREC = Published("its README (HetRec 2011)", 1_892, 17_632, 92_834)
_COLAKG = Published("the data of CoLaKG", 1_859, 2_813, 71_294)

SOURCE = Source(
    parse,
    {
        "lastfm": Recipe(
            _SETTINGS, "Last.FM 2K (HetRec 2011) with the tags of its artists", _HETREC, ("hetrec2011-lastfm-2k",)
        ),
        "lastfm-colakg": Recipe(_GIVEN, "Last.FM 2K in the split of CoLaKG", _COLAKG),
    },
)
"""The reader, with the whole of Last.FM 2K and the split of CoLaKG."""
