"""MovieLens-100K joined with film facts of Wikidata, both taken from wheels of the package index.

Ratings: MovieLens-100K (Harper and Konstan, TiiS 2015) as shipped by RecBole 1.2.1. Facts: the film table of Bokeh's
sample data 2026.1, drawn from Wikidata (CC0). The two share no id and are joined by title and year (`link_films`).
The facts name people and give them no id, so a name is one person but where its work says otherwise (`namesakes`).
"""

import re
import sqlite3
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import pandas as pd

from spike_kit.base.errors import DataError
from spike_kit.data.fetch import Wheel, checked_wheel, read_member
from spike_kit.data.raw import atomic, fields
from spike_kit.data.recipes import BuildConfig, Published, Recipe, Source
from spike_kit.data.text import turned, without_article
from spike_kit.data.workspace import Workspace, facts_in

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

_EXAMPLE = f"recbole/dataset_example/{NAME}/{NAME}"
_MEMBERS = {
    f"{NAME}.inter": (RATINGS, f"{_EXAMPLE}.inter"),
    f"{NAME}.item": (RATINGS, f"{_EXAMPLE}.item"),
    "movies.db": (FACTS, "bokeh_sampledata/_data/movies.db"),
}
"""What is read of the wheels, by the name it gets."""

_TEMPLATES = {
    "director": "{head} was directed by {tail}.",
    "writer": "{head} was written by {tail}.",
    "cast": "{head} stars {tail}.",
    "genre": "{head} is a film of the genre {tail}.",
    "language": "{head} is spoken in {tail}.",
    "country": "{head} was made in {tail}.",
    "company": "{head} was produced by {tail}.",
}

_PERSONS = ("director", "writer", "cast")

_COMMA = re.compile(r",(?!\s*(?:Jr|Sr|Inc|Ltd|LLC|Co|II|III|IV|PhD|M\.D)\.?\s*(?:,|$))")
"""A comma between two names, not one before a suffix."""

_YEARS_APART = 30
"""Years between the first work of a name before the camera and behind it from which on they are two people's."""

_LABELS = {"Luis Gómez": "Luis Guzmán", "Robin Tunneyio": "Robin Tunney", "Robert Riettii": "Robert Rietti"}
"""Names that the source spells wrong; their ids stay."""


_Index = dict[str, list[tuple[int, int]]]
"""Films (year, row) by a form of their title."""


def parse(folder: Path, _config: BuildConfig, work: Workspace) -> None:
    """Parse the fetched wheels.

    Raises
    ------
    DataError
        If a wheel is missing or damaged.
    """
    for wheel in WHEELS:
        work.terms = wheel.licence, wheel.origin
        work.register(checked_wheel(wheel, folder))
    for name, (wheel, member) in _MEMBERS.items():
        (work.folder / name).write_bytes(read_member(folder / wheel.file_name, member))
    join(work.folder, work)


def join(folder: Path, work: Workspace) -> None:
    """Parse the three raw files ``ml-100k.inter``, ``ml-100k.item``, ``movies.db``; join films with facts.

    Films without a link are dropped and counted in the funnel; two ids of one and the same film are merged into the
    smaller one. A film with a doubtful link stays, with the genres of MovieLens as its only facts.

    Raises
    ------
    DataError
        If a file lacks a column or holds a value of another type.
    """
    columns = {"user": "user_id", "item": "item_id", "rating": "rating", "timestamp": "timestamp"}
    work.read(atomic(folder / f"{NAME}.inter"), "raw_ratings", fields(columns))
    films, facts = _read_films(folder / f"{NAME}.item", work), _read_facts(folder / "movies.db")
    users = work.frame('SELECT DISTINCT "user" FROM raw_ratings ORDER BY TRY_CAST("user" AS BIGINT)')
    n_ratings = work.count("raw_ratings")
    work.record("raw files", {"users": len(users), "items": len(films), "interactions": n_ratings})
    links = link_films(films, facts)
    linked = films.loc[sorted(links)].assign(fact=pd.Series(links, dtype="float64"))
    linked["first"] = linked.groupby("fact")["item"].transform("first").fillna(linked["item"])
    work.table("linked", linked[["item", "first"]])
    work.db.execute(
        """INSERT INTO interactions ("user", item, rating, "timestamp")
           SELECT "user", first, rating, "timestamp" FROM raw_ratings JOIN linked USING (item)"""
    )
    described = linked[linked["item"] == linked["first"]].merge(
        facts, how="left", left_on="fact", right_index=True, suffixes=("", "_fact")
    )
    described["genre"] = described["genre"].fillna(described["genres"])
    described = described.fillna(dict.fromkeys(_TEMPLATES, ""))
    length = ["" if pd.isna(minutes) else f" of {minutes:.0f} minutes" for minutes in described["minutes"]]
    description = [f"A film{long}, released in {year}." for long, year in zip(length, described["year"], strict=True)]
    work.put("users", users)
    work.put("items", described.assign(description=description))
    kinds = {relation: "person" if relation in _PERSONS else relation for relation in _TEMPLATES}
    named = [facts_in(described, relation, relation, split_names, kind) for relation, kind in kinds.items()]
    told, others = pd.concat(named), namesakes(facts)
    roles = [" (cast)" if relation == "cast" else " (crew)" for relation in told["relation"]]
    who = list(zip(told["label"], roles, strict=True))
    told["label"] = [label + role if (label, role) in others else label for label, role in who]
    told = told.sort_values(["kind", "label"])
    told = told.assign(tail=told["kind"] + ":" + told["label"], label=told["label"].replace(_LABELS))
    work.put_facts(told)
    work.put_relations(_TEMPLATES)
    work.parsed = "films linked by title and year"
    work.extra |= {
        "films_without_link": len(films) - len(linked),
        "films_merged": len(linked) - len(described),
        "films_with_doubtful_link": sum(fact is None for fact in links.values()),
        "names_of_two_people": len(others.intersection(who)),
    }


def namesakes(facts: pd.DataFrame) -> set[tuple[str, str]]:
    """Find names that stand for two people, and which of the two has fewer films: name and `` (cast)`` or `` (crew)``.

    They are two where work before the camera and behind it begin 30 years apart, and one ended before the other began.
    Two people of one name in the same line of work, or at the same time, remain one.

    Parameters
    ----------
    facts
        Columns ``year``, ``director``, ``writer``, ``cast``; all films that the source knows.
    """
    films = facts.assign(item=facts.index.astype("str"))
    work = pd.concat([facts_in(films, relation, relation, split_names) for relation in _PERSONS])
    work["role"] = (work["relation"] == "cast").map({True: " (cast)", False: " (crew)"})
    work["year"] = work["head"].map(films.set_index("item")["year"])
    known = work.groupby(["label", "role"]).agg(first=("year", "min"), last=("year", "max"), n=("head", "nunique"))
    both = known.reset_index().sort_values(["label", "first"])
    both = both[both.duplicated("label", keep=False)]
    early, late = both.groupby("label").nth(0), both.groupby("label").nth(1)
    pairs = early.merge(late, on="label", suffixes=("", "_late"))
    two = (pairs["first_late"] - pairs["first"] >= _YEARS_APART) & (pairs["last"] < pairs["first_late"])
    fewer = pairs["role"].where(pairs["n"] < pairs["n_late"], pairs["role_late"])
    return set(zip(pairs.loc[two, "label"], fewer[two], strict=True))


def link_films(films: pd.DataFrame, facts: pd.DataFrame) -> dict[int, int | None]:
    """Join films with facts by title and year.

    Titles are compared without accents, case and punctuation, with a trailing article turned to the front ("Crow,
    The") and with an alternative title in parentheses tried as well. Years may differ by one. In order: equal titles;
    in the same year, equal titles without their leading article; last, a title that begins or ends with the whole
    other title (two words besides an article, or a whole part beside a colon), if it is the only such film. One word
    that ends a title after a colon is no evidence ("Three Colors: Blue" is not "Blue"): such a link is doubtful.

    Parameters
    ----------
    films
        Columns ``title`` and ``year`` (nullable).
    facts
        Columns ``title`` and ``year``.

    Returns
    -------
    dict
        Row label of ``films`` to row label of ``facts``, for the films that link; to None where the link is doubtful.
    """
    exact, bare, affix = (defaultdict(list) for _ in range(3))
    for row, title, year in zip(facts.index, facts["title"], facts["year"], strict=True):
        for key in _keys(title):
            exact[key].append((year, row))
            bare[without_article(key)].append((year, row))
        for part in _affixes(title):
            affix[part].append((year, row))
    links: dict[int, int | None] = {}
    dated = films.dropna(subset=["year"])
    for row, title, year in zip(dated.index, dated["title"], dated["year"], strict=True):
        keys = _keys(title)
        candidates = (
            _near(exact, keys, year, 0)
            or _near(exact, keys, year, 1)
            or _near(bare, map(without_article, keys), year, 0)
        )
        if not candidates:
            found = {*_near(affix, keys, year, 1), *_near(exact, _affixes(title), year, 1)}
            candidates = found if len(found) == 1 else ()
        if candidates:
            links[row] = min(candidates, key=lambda fact: (len(_keys(facts["title"][fact])[0]), fact))
        elif _near(exact, _last_words(title), year, 1):
            links[row] = None
    return links


def _near(index: _Index, keys: Iterable[str], year: int, distance: int) -> list[int]:
    """Rows of the films under one of the keys whose year is no further away."""
    return [row for key in keys for found, row in index.get(key, ()) if abs(found - year) <= distance]


def _keys(title: str) -> list[str]:
    """Comparable forms of a title: the one before the parentheses first, then those inside."""
    keys = dict.fromkeys(map(_key, re.split(r"[()]", title)))
    return list(filter(None, keys)) or [title]


def _key(title: str) -> str:
    folded = unicodedata.normalize("NFKD", turned(title.strip())).encode("ascii", "ignore").decode().lower()
    return " ".join(re.findall(r"[a-z0-9]+", folded.replace("&", " and ").replace("'", "")))


def _affixes(title: str) -> set[str]:
    """Proper beginnings and ends of a title that are long enough to stand for it, as keys."""
    parts = {*_parts(title)} - _last_words(title)
    for key in _keys(title):
        words = key.split()
        cuts = range(1, len(words))
        affixes = [" ".join(words[:n]) for n in cuts] + [" ".join(words[n:]) for n in cuts]
        parts.update(part for part in affixes if " " in without_article(part))
    return parts - set(_keys(title))


def _parts(title: str) -> list[str]:
    """Parts of a title beside its colons, as keys."""
    return [key for part in re.split(r":| – ", title) if (key := _key(part))]


def _last_words(title: str) -> set[str]:
    """Parts after a colon that are a single word."""
    return {key for key in _parts(title)[1:] if " " not in key}


def split_names(text: str) -> list[str]:
    """Split a list of names at its commas, keeping a suffix such as "Jr." with its name."""
    return [name for part in _COMMA.split(text) if (name := " ".join(part.split()))]


def _read_films(path: Path, work: Workspace) -> pd.DataFrame:
    """Read the films: item, title, year (of the title where the column has none), label, genres (a list of names)."""
    columns = {"item": "item_id", "title": "movie_title", "year": "release_year", "genres": "class"}
    work.read(atomic(path), "raw_films", fields(columns))
    films = work.frame("SELECT item, title, year, genres FROM raw_films ORDER BY place")
    films["genres"] = films["genres"].fillna("").str.split().str.join(", ")
    inside = films["title"].str.extract(r"^(.*) \((\d{4})\)$")
    films["title"] = inside[0].fillna(films["title"])
    year = films["year"].where(films["year"].str.fullmatch(r"\d{4}"), inside[1])
    films["year"] = pd.to_numeric(year).astype("Int64")
    shown = films["title"].map(turned)
    return films.assign(label=(shown + " (" + year + ")").fillna(shown))


def _read_facts(path: Path) -> pd.DataFrame:
    """Read the films of the database with their facts."""
    query = """
        SELECT o.Title AS title, o.Year AS year, o.Runtime AS minutes, o.Director AS director, o.Writer AS writer,
               o."Cast" AS "cast", o.Genre AS genre, o.Language AS language, o.Country AS country,
               t.Production AS company
        FROM omdb AS o LEFT JOIN tomatoes AS t ON t.ID = o.ID
        WHERE o.Title IS NOT NULL AND o.Year IS NOT NULL ORDER BY o.ID
    """
    try:
        with closing(sqlite3.connect(path)) as connection:
            facts = pd.read_sql_query(query, connection)
    except (sqlite3.Error, pd.errors.DatabaseError) as error:
        raise DataError(f"{path} is not the expected SQLite database: {error}", "fetch it again") from error
    texts = facts.columns.drop(["year", "minutes"])
    return facts.astype({"year": "int64"}).fillna(dict.fromkeys(texts, ""))


_ABOUT = "MovieLens-100K joined with film facts of Wikidata; both fetched from the package index"
_COUNTS = Published("the README of MovieLens-100K (GroupLens)", 943, 1682, 100_000)

SOURCE = Source(parse, {NAME: Recipe(BuildConfig(draws="rows"), _ABOUT, _COUNTS)}, WHEELS)
"""The reader, with its one data set."""
