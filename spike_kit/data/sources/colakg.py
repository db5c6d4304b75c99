"""MovieLens-1M in the split of CoLaKG (Cui et al., SIGIR 2025), with its film facts from TMDB.

``train.txt`` and ``test.txt`` hold mapped ids, ``user_map.txt`` and ``item_map.txt`` the raw ids behind them, and
``ml1m_extended_movie.csv`` names, plots and facts of the films.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from spike_kit.data.lists import read_mapped_split
from spike_kit.data.pipeline import BuildConfig
from spike_kit.data.raw import Delimited, Field, check_readable
from spike_kit.data.recipes import Published, Recipe, Source
from spike_kit.data.sources.ml_100k import turned
from spike_kit.data.text import plain
from spike_kit.data.workspace import Workspace

LICENCE = "none stated; ratings: GroupLens terms of use, research only, no redistribution"
ORIGIN = "split and film facts of CoLaKG (MovieLens-1M, TMDB)"

_FILMS = "ml1m_extended_movie.csv"
_SEVERAL = "|"
"""What stands between several names in one cell."""

_RELATIONS = {
    "genre": ("Genres", "{head} is a film of the genre {tail}."),
    "director": ("director", "{head} was directed by {tail}."),
    "writer": ("writer", "{head} was written by {tail}."),
    "actor": ("actors", "{tail} acts in {head}."),
    "country": ("production_countries", "{head} was produced in {tail}."),
    "language": ("original_language", "The original language of {head} is {tail}."),
    "decade": ("Year", "{head} was released in the {tail}."),
}
"""Column of the film table and sentence of each relation; the kind of a tail is its relation, persons are one kind."""

_PERSONS = ("director", "writer", "actor")


def parse(folder: Path, config: BuildConfig, work: Workspace) -> None:  # noqa: ARG001 (every source takes settings)
    """Parse the given split and the films in it.

    Raises
    ------
    DataError
        If a file is missing or damaged, or a row is bad.
    """
    films = folder / _FILMS
    check_readable(films)
    work.register(films, LICENCE, ORIGIN)
    given = read_mapped_split(folder, work, LICENCE, ORIGIN)
    work.put("interactions", given.rows)
    work.put("users", pd.DataFrame({"user": given.users}, dtype="str").assign(label=[f"User {u}" for u in given.users]))
    table = Delimited(films)
    columns = {column for column, _ in _RELATIONS.values()}
    fields = {"item": Field("MovieID"), "title": Field("Title", "text"), "overview": Field("overview", "text")}
    work.read(table, "raw_films", fields | {f"raw_{name}": Field(name, "text") for name in sorted(columns)})
    work.located["items"] = (table, "MovieID")
    rows = work.frame("SELECT * FROM raw_films ORDER BY rowid").astype(object)
    rows = rows.where(rows.notna(), "")
    for item, named in rows.groupby("item")["title"]:
        if len(titles := named.unique()) > 1:
            problem = f"it has different labels: {titles[0][:60]!r} and {titles[1][:60]!r}"
            work.bad(f"{films}: film {item!r}", problem, "keep one of the rows", len(titles) - 1)
    films_in = rows.drop_duplicates("item").set_index("item").reindex(given.items, fill_value="")
    work.put(
        "items",
        pd.DataFrame(
            {
                "item": given.items,
                "label": [turned(plain(title)) or item for item, title in films_in["title"].items()],
                "description": films_in["overview"].map(plain).to_numpy(),
            },
            dtype="str",
        ),
    )
    _put_facts(films_in, work)


def _put_facts(films: pd.DataFrame, work: Workspace) -> None:
    """Put triples of the films (by raw id) and their tails; persons are one entity whatever they did."""
    facts: dict[tuple[str, str, str], str] = {}
    tails: dict[str, tuple[str, str]] = {}
    for relation, (column, _) in _RELATIONS.items():
        kind = "person" if relation in _PERSONS else relation
        for item, cell in films[f"raw_{column}"].items():
            for name in filter(None, map(plain, str(cell).split(_SEVERAL))):
                label = f"{name[:3]}0s" if relation == "decade" else name
                tails.setdefault(f"{kind}:{label}", (label, kind))
                facts[str(item), relation, f"{kind}:{label}"] = label
    work.put("triples", pd.DataFrame(list(facts), columns=["head", "relation", "tail"], dtype="str"))
    rows = [(entity, label, kind) for entity, (label, kind) in tails.items()]
    work.put("entities", pd.DataFrame(rows, columns=["entity", "label", "kind"], dtype="str"))
    relations = [(name, name, template, False) for name, (_, template) in _RELATIONS.items()]
    work.put("relations", pd.DataFrame(relations, columns=["relation", "label", "template", "behavioural"]))


_SETTINGS = BuildConfig(
    min_rating=None, split="given", valid=0.1, max_users=2_000, user_core=0, item_core=0, linked_only=False
)

SOURCE = Source(
    parse,
    {
        "ml-1m-colakg": Recipe(
            "ml-1m-colakg",
            _SETTINGS,
            "MovieLens-1M in the split of CoLaKG with film facts; 2,000 users drawn by the seed",
            published=Published({"users": 6_040, "items": 3_260, "interactions": 998_539}, "the data of CoLaKG"),
        )
    },
)
"""The source."""
