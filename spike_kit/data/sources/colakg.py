"""MovieLens-1M in the split of CoLaKG (Cui et al., SIGIR 2025), with its film facts from TMDB.

``train.txt`` and ``test.txt`` hold mapped ids, ``user_map.txt`` and ``item_map.txt`` the raw ids behind them, and
``ml1m_extended_movie.csv`` names, plots and facts of the films.
"""

from functools import partial
from pathlib import Path

from spike_kit.data.raw import Delimited, fields
from spike_kit.data.recipes import BuildConfig, Published, Recipe, Source
from spike_kit.data.sources.kgat import read_mapped_split
from spike_kit.data.text import plain, turned
from spike_kit.data.workspace import Workspace, facts_in

TERMS = (
    "none stated; ratings: GroupLens terms of use, research only, no redistribution",
    "split and film facts of CoLaKG (MovieLens-1M, TMDB)",
)

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


def parse(folder: Path, _config: BuildConfig, work: Workspace) -> None:
    """Parse the given split and the films in it.

    Raises
    ------
    DataError
        If a file is missing or damaged, or a row is bad.
    """
    work.terms = TERMS
    columns = {"item": "MovieID", "title": "Title", "plot": "overview"}
    facts = {f"fact {name}": column for name, (column, _) in _RELATIONS.items()}
    work.read(Delimited(folder / "ml1m_extended_movie.csv"), "raw_items", fields(columns | facts))
    interactions, items = read_mapped_split(folder, work)
    work.put("interactions", interactions)
    films = items.merge(work.frame("SELECT * EXCLUDE (place) FROM raw_items ORDER BY place"), how="left").fillna("")
    work.put("items", films.assign(label=films["title"].map(plain).map(turned), description=films["plot"]))
    films = films.drop_duplicates("item")
    for relation in _RELATIONS:
        kind = "person" if relation in _PERSONS else relation
        names = _decades if relation == "decade" else partial(str.split, sep="|")
        work.put_facts(facts_in(films, f"fact {relation}", relation, names, kind))
    work.put_relations({name: template for name, (_, template) in _RELATIONS.items()})


def _decades(cell: str) -> list[str]:
    return [f"{year[:3]}0s" for year in map(plain, cell.split("|")) if year]


_SETTINGS = BuildConfig(
    min_rating=None, split="given", valid=0.1, max_users=2_000, user_core=0, item_core=0, linked_only=False
)
_ABOUT = "MovieLens-1M in the split of CoLaKG with film facts; 2,000 users drawn by the seed"
_COUNTS = Published("the data of CoLaKG", 6_040, 3_260, 998_539)

SOURCE = Source(parse, {"ml-1m-colakg": Recipe(_SETTINGS, _ABOUT, _COUNTS)})
"""The reader."""
