"""MovieLens-100K joined with film facts of Wikidata, both taken from wheels of the package index.

Ratings: MovieLens-100K (Harper and Konstan, TiiS 2015) as shipped by RecBole 1.2.1. Facts: the film table of Bokeh's
sample data 2026.1, drawn from Wikidata (CC0). The two share no id and are joined by title and year (`link_films`).
"""

from __future__ import annotations

import io
import re
import sqlite3
import unicodedata
from collections import defaultdict
from pathlib import Path

import pandas as pd

from spike_kit.base.errors import DataError
from spike_kit.data.fetch import Wheel, checked_wheel, read_member
from spike_kit.data.pipeline import BuildConfig
from spike_kit.data.recipes import Published, Recipe, Source
from spike_kit.data.workspace import Workspace

NAME = "ml-100k"
"""Name of the data set and of its raw files."""

RATINGS = Wheel(
    "recbole==1.2.1",
    "recbole-1.2.1-py3-none-any.whl",
    "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
    "GroupLens terms of use: research only, no redistribution",
    "MovieLens-100K (GroupLens) in RecBole's atomic format",
)
FACTS = Wheel(
    "bokeh_sampledata==2026.1",
    "bokeh_sampledata-2026.1-py3-none-any.whl",
    "f40331a40ca30c64a1c1471835aad9006b61b0d9731a3f649ee8cbbf48d3822f",
    "CC0-1.0",
    "film facts of Wikidata in Bokeh's sample data",
)
WHEELS = (RATINGS, FACTS)

_FOLDER = "recbole/dataset_example/ml-100k/"
_DATABASE = "bokeh_sampledata/_data/movies.db"

_RELATIONS = (
    ("director", "person", "{head} was directed by {tail}."),
    ("writer", "person", "{head} was written by {tail}."),
    ("cast", "person", "{head} stars {tail}."),
    ("genre", "genre", "{head} is a film of the genre {tail}."),
    ("language", "language", "{head} is spoken in {tail}."),
    ("country", "country", "{head} was made in {tail}."),
    ("company", "company", "{head} was produced by {tail}."),
)
"""Relation, kind of its tails, sentence."""

_ARTICLES = "the|a|an|le|la|les|l'|il|lo|gli|el|los|las|der|die|das|den|det|un|une|het|o"

_NAME_SUFFIX = re.compile(r"^(Jr|Sr|Inc|Ltd|LLC|Co|II|III|IV|PhD|M\.D)\.?$")


def parse(folder: Path, config: BuildConfig, work: Workspace) -> None:
    """Parse the fetched wheels.

    Raises
    ------
    DataError
        If a wheel is missing or damaged.
    """
    del config
    ratings, facts = (checked_wheel(wheel, folder) for wheel in WHEELS)
    for wheel in WHEELS:
        work.register(folder / wheel.file_name, wheel.licence, wheel.origin)
    join(
        read_member(ratings, f"{_FOLDER}ml-100k.inter"),
        read_member(ratings, f"{_FOLDER}ml-100k.item"),
        read_member(facts, _DATABASE),
        work,
    )


def join(inter: bytes, item: bytes, database: bytes, work: Workspace) -> None:
    """Parse the three raw files and join films with facts.

    Films without a link are dropped and counted in the funnel; two ids of one and the same film are merged into the
    smaller one.

    Raises
    ------
    DataError
        If a file lacks a column or holds a value of another type.
    """
    ratings, films, facts = _read_ratings(inter), _read_films(item), _read_facts(database)
    users = pd.DataFrame({"user": sorted(ratings["user"].unique(), key=int)})
    users["label"] = "User " + users["user"]
    work.funnel.add(
        "raw files",
        {"users": len(users), "items": len(films), "interactions": len(ratings)},
    )
    linked = films.assign(fact=films.index.map(link_films(films, facts))).dropna(subset=["fact"])
    first = linked.groupby("fact")["item"].transform("first")
    ratings = ratings[ratings["item"].isin(linked["item"])]
    ratings = ratings.assign(item=ratings["item"].map(dict(zip(linked["item"], first, strict=True))))
    described = linked[linked["item"] == first].merge(facts, left_on="fact", right_index=True, suffixes=("", "_fact"))
    description = [
        _describe(year, minutes) for year, minutes in zip(described["year"], described["minutes"], strict=True)
    ]
    triples, entities = _triples(described)
    work.put("users", users)
    work.put("items", described[["item", "label"]].assign(description=description))
    work.put("entities", entities)
    relations = pd.DataFrame(_RELATIONS, columns=["relation", "kind", "template"])
    work.put("relations", relations.assign(label=relations["relation"]))
    work.put("triples", triples)
    work.put("interactions", ratings)
    work.parsed = "films linked by title and year"
    work.extra |= {"films_without_link": len(films) - len(linked), "films_merged": len(linked) - len(described)}


def link_films(films: pd.DataFrame, facts: pd.DataFrame) -> dict[int, int]:
    """Join films with facts by title and year.

    Titles are compared without accents, case and punctuation, with a trailing article turned to the front ("Crow,
    The") and with an alternative title in parentheses tried as well. Years may differ by one. In order: equal titles;
    in the same year, equal titles without their leading article; last, a title that begins or ends with the whole
    other title (two words besides an article, or a whole part beside a colon), if it is the only such film.

    Parameters
    ----------
    films
        Columns ``title`` and ``year`` (nullable).
    facts
        Columns ``title`` and ``year``.

    Returns
    -------
    dict
        Row label of ``films`` to row label of ``facts``, for the films that link.
    """
    exact: dict[str, list[tuple[int, int]]] = defaultdict(list)
    bare: dict[str, list[tuple[int, int]]] = defaultdict(list)
    affix: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for row, title, year in zip(facts.index, facts["title"], facts["year"], strict=True):
        for key in _keys(title):
            exact[key].append((year, row))
            bare[_without_article(key)].append((year, row))
        for part in _affixes(title):
            affix[part].append((year, row))
    whole = {row: _keys(title) for row, title in facts["title"].items()}
    links = {}
    for row, title, year in zip(films.index, films["title"], films["year"], strict=True):
        if pd.isna(year):
            continue
        keys = _keys(title)
        candidates = (
            _nearest(exact, keys, year, (0, 1))
            or _nearest(bare, [_without_article(key) for key in keys], year, (0,))
            or _only_affix(affix, exact, title, year)
        )
        if candidates:
            links[row] = min(candidates, key=lambda fact: (len(whole[fact][0]), fact))
    return links


def _nearest(
    index: dict[str, list[tuple[int, int]]], keys: list[str], year: int, distances: tuple[int, ...]
) -> list[int]:
    for distance in distances:
        found = [row for key in keys for fact_year, row in index.get(key, ()) if abs(fact_year - year) == distance]
        if found:
            return found
    return []


def _only_affix(
    affix: dict[str, list[tuple[int, int]]], exact: dict[str, list[tuple[int, int]]], title: str, year: int
) -> list[int]:
    near = [
        *(fact for key in _keys(title) for fact in affix.get(key, ())),
        *(fact for part in _affixes(title) for fact in exact.get(part, ())),
    ]
    found = {row for fact_year, row in near if abs(fact_year - year) <= 1}
    return list(found) if len(found) == 1 else []


def _keys(title: str) -> list[str]:
    """Comparable forms of a title: the one before the parentheses first, then those inside."""
    parts = re.split(r"[()]", title)
    keys = [_key(part) for part in parts]
    keys = [key for key in dict.fromkeys(keys) if key]
    return keys or [title]


def _key(title: str) -> str:
    folded = unicodedata.normalize("NFKD", turned(title.strip())).encode("ascii", "ignore").decode().lower()
    return " ".join(re.findall(r"[a-z0-9]+", folded.replace("&", " and ").replace("'", "")))


def _without_article(key: str) -> str:
    return re.sub(rf"^({_ARTICLES}) (?=.)", "", key)


def _affixes(title: str) -> set[str]:
    """Proper beginnings and ends of a title that are long enough to stand for it, as keys."""
    parts = {key for part in re.split(r":| – ", title) if (key := _key(part))}
    for key in _keys(title):
        words = key.split()
        cuts = range(1, len(words))
        affixes = [" ".join(words[:n]) for n in cuts] + [" ".join(words[n:]) for n in cuts]
        parts.update(part for part in affixes if " " in _without_article(part))
    return parts - set(_keys(title))


def _describe(year: int, minutes: float) -> str:
    length = "" if pd.isna(minutes) else f" of {minutes:.0f} minutes"
    return f"A film{length}, released in {year}."


def _triples(films: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Triples of films, and the auxiliary entities in them (one per kind and name)."""
    parts = []
    for relation, kind, _ in _RELATIONS:
        names = films.set_index("item")[relation].dropna().map(split_names).explode().dropna()
        part = pd.DataFrame({"head": names.index, "relation": relation, "label": names.to_numpy(), "kind": kind})
        parts.append(part.assign(tail=part["kind"] + ":" + part["label"]))
    rows = pd.concat(parts, ignore_index=True).astype("str")
    entities = rows.drop_duplicates("tail").sort_values("tail")[["tail", "label", "kind"]]
    triples = rows[["head", "relation", "tail"]].drop_duplicates(ignore_index=True)
    return triples, entities.rename(columns={"tail": "entity"})


def split_names(text: str) -> list[str]:
    """Split a list of names at its commas, keeping a suffix such as "Jr." with its name."""
    names: list[str] = []
    for part in text.split(","):
        name = " ".join(part.split())
        if names and _NAME_SUFFIX.match(name):
            names[-1] = f"{names[-1]}, {name}"
        elif name:
            names.append(name)
    return names


def _read_ratings(content: bytes) -> pd.DataFrame:
    frame = _read_atomic(content, f"{NAME}.inter", ["user_id", "item_id", "rating", "timestamp"])
    frame.columns = pd.Index(["user", "item", "rating", "timestamp"])
    for column in ("rating", "timestamp"):
        numbers = pd.to_numeric(frame[column], errors="coerce")
        broken = frame.index[numbers.isna()]
        if len(broken):
            raise DataError(
                f"{NAME}.inter line {broken[0] + 2}: {column} is {frame[column][broken[0]]!r}, expected a number",
                "fetch it again",
            )
        frame[column] = numbers
    return frame.astype({"rating": "float64", "timestamp": "int64"})


def _read_films(content: bytes) -> pd.DataFrame:
    frame = _read_atomic(content, f"{NAME}.item", ["item_id", "movie_title", "release_year"])
    films = pd.DataFrame({"item": frame["item_id"], "title": frame["movie_title"]})
    inside = films["title"].str.extract(r"^(.*) \((\d{4})\)$")
    films["title"] = inside[0].fillna(films["title"])
    year = frame["release_year"].where(frame["release_year"].str.fullmatch(r"\d{4}"), inside[1])
    films["year"] = pd.to_numeric(year).astype("Int64")
    shown = films["title"].map(turned)
    films["label"] = [
        name if pd.isna(year) else f"{name} ({year})" for name, year in zip(shown, films["year"], strict=True)
    ]
    return films


def turned(title: str) -> str:
    """Title with a trailing article put first, inside and outside of parentheses."""
    parts = re.split(r"([()])", title)
    return "".join(re.sub(rf"^(.*), ({_ARTICLES})(\s*)$", _article_first, part, flags=re.IGNORECASE) for part in parts)


def _article_first(match: re.Match[str]) -> str:
    space = "" if match[2].endswith("'") else " "
    return f"{match[2]}{space}{match[1]}{match[3]}"


def _read_atomic(content: bytes, name: str, columns: list[str]) -> pd.DataFrame:
    """Read a RecBole atomic file: tab-separated, header ``field:type``; every value stays a string."""
    try:
        frame = pd.read_csv(io.BytesIO(content), sep="\t", dtype="str", quoting=3, keep_default_na=False)
    except (ValueError, UnicodeDecodeError) as error:
        raise DataError(f"{name} is not a tab-separated table in UTF-8: {error}", "fetch it again") from error
    frame.columns = frame.columns.str.split(":").str[0]
    missing = [column for column in columns if column not in frame]
    if missing or frame.empty:
        problem = f"lacks the column {missing[0]}" if missing else "holds no row"
        raise DataError(f"{name} {problem}", "fetch it again")
    return frame[columns]


def _read_facts(database: bytes) -> pd.DataFrame:
    query = """
        SELECT o.Title AS title, o.Year AS year, o.Runtime AS minutes, o.Director AS director, o.Writer AS writer,
               o."Cast" AS "cast", o.Genre AS genre, o.Language AS language, o.Country AS country,
               t.Production AS company
        FROM omdb AS o LEFT JOIN tomatoes AS t ON t.ID = o.ID ORDER BY o.ID
    """
    if not database.startswith(b"SQLite format 3\0"):
        raise DataError(f"{_DATABASE} is not the expected SQLite database", "fetch it again")
    connection = sqlite3.connect(":memory:")
    try:
        connection.deserialize(database)
        facts = pd.read_sql_query(query, connection)
    except (sqlite3.Error, pd.errors.DatabaseError) as error:
        raise DataError(f"{_DATABASE} is not the expected SQLite database: {error}", "fetch it again") from error
    finally:
        connection.close()
    facts = facts.dropna(subset=["title", "year"])
    return facts.astype({"title": "str", "year": "int64"}).reset_index(drop=True)


SOURCE = Source(
    parse,
    {
        NAME: Recipe(
            NAME,
            BuildConfig(),
            "MovieLens-100K joined with film facts of Wikidata; both fetched from the package index",
            published=Published(
                {"users": 943, "items": 1682, "interactions": 100_000}, "the README of MovieLens-100K (GroupLens)"
            ),
        )
    },
    WHEELS,
)
"""The source, with its one data set."""
