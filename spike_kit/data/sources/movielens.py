"""MovieLens in the layouts of GroupLens: ``ratings.dat`` (1M, 10M) and ``ratings.csv`` (20M, 25M, 32M, latest).

Ratings: MovieLens (Harper and Konstan, TiiS 2015). The knowledge graph is made of the files alone: genres, the decade
of the release and, on request, tags of users.
"""

from dataclasses import replace
from pathlib import Path

import pandas as pd
from pydantic import Field as Setting

from spike_kit.base.errors import DataError
from spike_kit.data.files import survey
from spike_kit.data.raw import Delimited, fields
from spike_kit.data.recipes import BuildConfig, Published, Recipe, Source
from spike_kit.data.text import plain, turned
from spike_kit.data.workspace import Workspace, facts_in

TERMS = "GroupLens terms of use: research only, no redistribution", "MovieLens (GroupLens)"

NO_GENRE = "(no genres listed)"
"""What stands in place of the genres of a film that has none."""

_YEAR = r"\(([0-9]{4})(?:[-–][0-9]{0,4})?\)\s*$"

_TEMPLATES = {
    "genre": "{head} is a film of the genre {tail}.",
    "decade": "{head} was released in the {tail}.",
    "tag": "Viewers tagged {head} with {tail}.",
}

_COLUMNS = {
    "ratings": ("userId", "movieId", "rating", "timestamp"),
    "movies": ("movieId", "title", "genres"),
    "tags": ("userId", "movieId", "tag", "timestamp"),
}


class MovieLensConfig(BuildConfig):
    """Settings of a build from MovieLens."""

    min_taggers: int = Setting(default=2, ge=1)
    """Least number of users who gave a film one and the same tag (tags are kept with behavioural only)."""


def parse(folder: Path, config: MovieLensConfig, work: Workspace) -> None:
    """Parse ratings, films and, where they are there, tags.

    Raises
    ------
    DataError
        If a file is missing or damaged, or a row is bad.
    """
    work.terms = TERMS
    suffix = next((suffix for suffix in ("csv", "dat") if (folder / f"ratings.{suffix}").is_file()), "")
    if not suffix:
        raise DataError(
            f"{folder} holds neither ratings.csv nor ratings.dat",
            "unpack an archive of MovieLens there, or name its folder with --raw",
        )
    paths = {name: folder / f"{name}.{suffix}" for name in _COLUMNS}
    names = [name for name in _COLUMNS if name != "tags" or paths[name].is_file()]
    tables = {name: _table(work.register(paths[name]), _COLUMNS[name]) for name in names}
    columns = {"user": "userId", "item": "movieId", "rating": "rating", "timestamp": "timestamp"}
    work.read_interactions(tables["ratings"], fields(columns))
    _read_movies(tables["movies"], work)
    if "tags" in tables:
        _read_tags(tables["tags"], config, work)
    known = [name for name in _TEMPLATES if name != "tag" or "tags" in tables]
    work.put_relations({name: _TEMPLATES[name] for name in known}, behavioural={"tag"})


def _table(path: Path, names: tuple[str, ...]) -> Delimited:
    """A file; the older layout has no header, and is in UTF-8 (10M) or in latin-1 (1M)."""
    if path.suffix == ".csv":
        return Delimited(path)
    file = Delimited(path, "::", names, quoting=False)
    try:
        return replace(file, surveyed=survey(path))
    except DataError:
        return replace(file, encoding="cp1252")


def _read_movies(table: Delimited, work: Workspace) -> None:
    """Read the films with the facts in their rows."""
    work.read(table, "raw_items", fields({"item": "movieId", "title": "title", "genres": "genres"}))
    films = work.frame("SELECT item, title, genres FROM raw_items ORDER BY place")
    films["title"] = films["title"].map(plain)
    year = films["title"].str.extract(_YEAR)[0]
    described = ("A film released in " + year + ".").fillna("")
    work.put("items", films.assign(label=films["title"].map(turned), description=described))
    films["genres"] = films["genres"].replace(NO_GENRE, "")
    films["decade"] = (year.str[:3] + "0s").fillna("")
    genres = facts_in(films, "genres", "genre", lambda cell: cell.split("|"))
    facts = pd.concat([genres, facts_in(films, "decade", "decade", lambda cell: [cell])])
    work.put_facts(facts.sort_values(["kind", "label"]))


def _read_tags(table: Delimited, config: MovieLensConfig, work: Workspace) -> None:
    """Read the tags that enough users gave to a film, regardless of case; empty ones are passed over."""
    columns = {"user": "userId", "item": "movieId", "text": "tag"}
    work.read(table, "raw_tags", fields(columns))
    tags = work.frame("SELECT DISTINCT text FROM raw_tags")
    work.table("tag_labels", tags.assign(label=tags["text"].map(plain).str.lower()))
    facts = work.frame(
        f"""SELECT item AS head, 'tag' AS relation, label, 'tag' AS kind FROM raw_tags JOIN tag_labels USING (text)
            WHERE label <> '' GROUP BY item, label HAVING count(DISTINCT "user") >= {config.min_taggers}
            ORDER BY label"""
    )
    work.put_facts(facts)


_README = "its README (GroupLens)"
_ALL = MovieLensConfig()
_1M, _20M = Published(_README, 6_040, 3_706, 1_000_209), Published(_README, 138_493, 26_744, 20_000_263)

SOURCE = Source(
    parse,
    {
        "movielens": Recipe(_ALL, "any MovieLens archive with ratings.csv or ratings.dat"),
        "ml-1m": Recipe(_ALL, "MovieLens-1M with genres and decades", _1M),
        "ml-20m": Recipe(_ALL, "MovieLens-20M with genres and decades, and tags on request", _20M),
        "ml-latest-small": Recipe(_ALL, "MovieLens latest small; it changes from time to time"),
    },
)
"""The reader, with the archives it is known for."""
