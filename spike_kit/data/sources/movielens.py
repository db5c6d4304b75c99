"""MovieLens in the layouts of GroupLens: ``ratings.dat`` (1M, 10M) and ``ratings.csv`` (20M, 25M, 32M, latest).

Ratings: MovieLens (Harper and Konstan, TiiS 2015). The knowledge graph is made of the files alone: genres, the decade
of the release and, on request, tags of users.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import pandas as pd
from pydantic import Field as Setting

from spike_kit.base.errors import DataError
from spike_kit.data.pipeline import BuildConfig
from spike_kit.data.raw import Delimited, Field, check_readable, open_text
from spike_kit.data.recipes import Published, Recipe, Source
from spike_kit.data.sources.ml_100k import turned
from spike_kit.data.text import plain
from spike_kit.data.workspace import Workspace

LICENCE = "GroupLens terms of use: research only, no redistribution"
ORIGIN = "MovieLens (GroupLens)"

NO_GENRE = "(no genres listed)"
"""What stands in place of the genres of a film that has none."""

_YEAR = re.compile(r"\(([0-9]{4})(?:[-–][0-9]{0,4})?\)\s*$")

_RELATIONS = (
    ("genre", "{head} is a film of the genre {tail}.", False),
    ("decade", "{head} was released in the {tail}.", False),
    ("tag", "Viewers tagged {head} with {tail}.", True),
)
"""Relation (and kind of its tails), sentence, whether it comes from what users did."""

_RATINGS = ("userId", "movieId", "rating", "timestamp")
_MOVIES = ("movieId", "title", "genres")
_TAGS = ("userId", "movieId", "tag", "timestamp")


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
    suffix = _layout(folder)
    ratings, movies, tags = (folder / f"{name}.{suffix}" for name in ("ratings", "movies", "tags"))
    for path in (ratings, movies):
        check_readable(path)
        work.register(path, LICENCE, ORIGIN)
    work.read(
        _table(ratings, _RATINGS),
        "raw_ratings",
        {
            "user": Field("userId"),
            "item": Field("movieId"),
            "rating": Field("rating", "number"),
            "timestamp": Field("timestamp", "integer", required=False),
        },
    )
    names = '"user", item, rating, "timestamp"'
    work.db.execute(f"INSERT INTO interactions ({names}) SELECT {names} FROM raw_ratings")
    work.db.execute("DROP TABLE raw_ratings")
    _read_movies(movies, work)
    if tags.is_file():
        work.register(tags, LICENCE, ORIGIN)
        _read_tags(tags, config.min_taggers, work)
    used = [row for row in _RELATIONS if row[0] != "tag" or tags.is_file()]
    relations = pd.DataFrame(used, columns=["relation", "template", "behavioural"])
    work.put("relations", relations.assign(label=relations["relation"]))


def _layout(folder: Path) -> Literal["csv", "dat"]:
    """Tell the layout by the file of the ratings."""
    for suffix in ("csv", "dat"):
        if (folder / f"ratings.{suffix}").is_file():
            return suffix
    raise DataError(
        f"{folder} holds neither ratings.csv nor ratings.dat",
        "unpack an archive of MovieLens there, or name its folder with --raw",
    )


def _table(path: Path, names: tuple[str, ...]) -> Delimited:
    if path.suffix == ".csv":
        return Delimited(path)
    return Delimited(path, separator="::", names=names, quoting=False, encoding=_encoding(path))


def _encoding(path: Path) -> Literal["utf-8", "latin-1"]:
    """Tell UTF-8 (10M) from latin-1 (1M)."""
    try:
        with open_text(path, strict=True) as file:
            while file.read(1 << 20):
                pass
    except UnicodeDecodeError:
        return "latin-1"
    return "utf-8"


def _read_movies(path: Path, work: Workspace) -> None:
    """Read the films with the facts in their rows."""
    table = _table(path, _MOVIES)
    fields = {"item": Field("movieId"), "title": Field("title", "text"), "genres": Field("genres", "text")}
    work.read(table, "raw_movies", fields)
    work.located["items"] = (table, "movieId")
    films = work.frame("SELECT item, title, genres FROM raw_movies ORDER BY rowid")
    titles = films["title"].map(plain)
    years = [match[1] if (match := _YEAR.search(title)) else "" for title in titles]
    described = [f"A film released in {year}." if year else "" for year in years]
    work.put("items", films.assign(label=titles.map(turned), description=described))
    facts = []
    for item, genres, year in zip(films["item"], films["genres"], years, strict=True):
        if genres != NO_GENRE:
            facts += [(item, "genre", name) for name in map(plain, genres.split("|")) if name]
        if year:
            facts.append((item, "decade", f"{year[:3]}0s"))
    _put_facts(pd.DataFrame(facts, columns=["head", "relation", "label"], dtype="str"), work)


def _put_facts(facts: pd.DataFrame, work: Workspace) -> None:
    """Put triples (head, relation, label of the tail) and their tails, whose kind is the relation."""
    facts = facts.assign(tail=facts["relation"] + ":" + facts["label"], kind=facts["relation"])
    work.put("triples", facts)
    tails = facts.drop_duplicates("tail").sort_values(["kind", "label"])
    work.put("entities", tails.rename(columns={"tail": "entity"}))


def _read_tags(path: Path, min_taggers: int, work: Workspace) -> None:
    """Read the tags that enough users gave to a film, regardless of case; empty ones are passed over."""
    fields = {"user": Field("userId"), "item": Field("movieId"), "tag": Field("tag", "text")}
    work.read(_table(path, _TAGS), "raw_tags", fields)
    tags = work.frame("SELECT DISTINCT tag FROM raw_tags")
    cleaned = tags.assign(label=tags["tag"].map(plain).str.lower())
    work.db.register("raw_cleaned", cleaned)
    facts = work.frame(
        f"""SELECT item AS head, 'tag' AS relation, label FROM raw_tags JOIN raw_cleaned USING (tag)
            WHERE label <> '' GROUP BY item, label HAVING count(DISTINCT "user") >= {min_taggers}
            ORDER BY item, label"""
    )
    work.db.unregister("raw_cleaned")
    work.db.execute("DROP TABLE raw_tags")
    _put_facts(facts.astype("str"), work)


_README = "its README (GroupLens)"

SOURCE = Source(
    parse,
    {
        "movielens": Recipe("movielens", MovieLensConfig(), "any MovieLens archive with ratings.csv or ratings.dat"),
        "ml-1m": Recipe(
            "movielens",
            MovieLensConfig(),
            "MovieLens-1M with genres and decades",
            published=Published({"users": 6_040, "items": 3_706, "interactions": 1_000_209}, _README),
        ),
        "ml-20m": Recipe(
            "movielens",
            MovieLensConfig(),
            "MovieLens-20M with genres and decades, and tags on request",
            published=Published({"users": 138_493, "items": 26_744, "interactions": 20_000_263}, _README),
        ),
        "ml-latest-small": Recipe(
            "movielens", MovieLensConfig(), "MovieLens latest small; it changes from time to time"
        ),
    },
)
"""The source, with the archives it is known for."""
