import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from spike_kit.base.errors import DataError
from spike_kit.data.pipeline import reorganize
from spike_kit.data.recipes import BuildConfig
from spike_kit.data.sources import find_recipe
from spike_kit.data.sources.ml_100k import join, link_films, namesakes, split_names
from spike_kit.data.workspace import Workspace
from tests.data.raw_folders import write_table

FACTS = [
    ("The Crow", 1994),
    ("Il Postino: The Postman", 1994),
    ("Léon: The Professional", 1994),
    ("Ghost in the Machine", 1993),
    ("Star Wars: Episode IV – A New Hope", 1977),
    ("Dr. Strangelove", 1964),
    ("Fear", 1996),
    ("The Jungle Book", 1967),
    ("Rudyard Kipling's The Jungle Book", 1994),
    ("Amélie", 2001),
    ("L'Enfer", 1994),
]


@pytest.mark.parametrize(
    ("title", "year", "linked"),
    [
        ("Crow, The", 1994, "The Crow"),
        ("Crow, The", 1995, "The Crow"),
        ("Crow, The", 1996, None),
        ("Crow", 1994, "The Crow"),
        ("Postino, Il", 1994, "Il Postino: The Postman"),
        ("Professional, The", 1994, "Léon: The Professional"),
        ("Machine, The", 1994, None),
        ("Star Wars", 1977, "Star Wars: Episode IV – A New Hope"),
        ("Dr. Strangelove or: How I Learned to Stop Worrying", 1963, "Dr. Strangelove"),
        ("Fear, The", 1995, None),
        ("Jungle Book, The", 1994, "Rudyard Kipling's The Jungle Book"),
        ("Amelie (Le fabuleux destin)", 2001, "Amélie"),
        ("Something Else", 1994, None),
        ("Fear", pd.NA, None),
    ],
)
def test_films_link_by_title_and_year(title: str, year: Any, linked: str | None) -> None:
    films = pd.DataFrame({"title": [title], "year": pd.array([year], dtype="Int64")})
    facts = pd.DataFrame(FACTS, columns=["title", "year"])
    found = {row: facts["title"][fact] for row, fact in link_films(films, facts).items() if fact is not None}
    assert found.get(0) == linked


def test_a_suffix_stays_with_its_name() -> None:
    text = "Robert Downey, Jr., Ann  Lee, , Time Warner, Inc."
    assert split_names(text) == ["Robert Downey, Jr.", "Ann Lee", "Time Warner, Inc."]


RATINGS = "user_id:token item_id:token rating:float timestamp:float"
PAIRS = [(user, film) for user in range(1, 7) for film in range(1, 7)]


def raw(folder: Path, pairs: list[tuple[int, int]], films: Sequence[tuple[int, str]] = (), table: str = "omdb") -> Path:
    """The three raw files: six films and more, and ratings."""
    ratings = [(user, film, 5, user * 10 + film) for user, film in pairs]
    write_table(folder / "ml-100k.inter", RATINGS, ratings)
    rows = [(film, title, 1990, "Drama") for film, title in [*((n, f"Film {n - 1}") for n in range(1, 7)), *films]]
    write_table(folder / "ml-100k.item", "item_id:token movie_title:token_seq release_year:token class:token_seq", rows)
    titles = [*(f"Film {n}" for n in range(6)), "Blue"]
    facts = [(n, title, 1990, 100.0, "Ann", None, "Bob, Cid", "Drama", "", "Peru") for n, title in enumerate(titles)]
    columns = "ID, Title, Year, Runtime, Director, Writer, 'Cast', Genre, Language, Country"
    with closing(sqlite3.connect(folder / "movies.db")) as connection, connection:
        connection.execute(f"CREATE TABLE {table} ({columns})")
        connection.execute("CREATE TABLE tomatoes (ID, Production)")
        connection.executemany(f"INSERT INTO {table} VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", facts)
    return folder


def test_parsing_joins_films_with_their_facts_and_ratings_follow_merged_films(tmp_path: Path, work: Workspace) -> None:
    pairs = [(user, film) for user, film in PAIRS if film != 1] + [(user, 8) for user in range(1, 7)]
    join(raw(tmp_path, pairs, [(7, "Unheard Of"), (8, "Film 0")]), work)
    items = work.frame("SELECT * FROM items ORDER BY position")
    assert items["label"].tolist() == [f"Film {n} (1990)" for n in range(6)]
    assert items["description"].iloc[0] == "A film of 100 minutes, released in 1990."
    of_first = work.frame("SELECT relation, tail FROM triples WHERE head = '1'")
    assert sorted(of_first.to_numpy().tolist()) == [
        ["cast", "person:Bob"],
        ["cast", "person:Cid"],
        ["country", "country:Peru"],
        ["director", "person:Ann"],
        ["genre", "genre:Drama"],
    ]
    assert set(work.frame("SELECT item FROM interactions")["item"]) == {"1", "2", "3", "4", "5", "6"}
    assert len(reorganize(work, BuildConfig()).items) == 6
    joined = work.funnel[1]
    assert joined["step"] == "films linked by title and year"
    assert joined["films_without_link"] == joined["films_merged"] == 1


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "...t.v ..t.v. .v...t ....tv .t.v.. ..v.t."),
        ({"seed": 2, "valid": 0.3}, "v..tv. ..vv.t .tv.v. ..vv.t vt..v. .t.vv."),
        ({"split": "leave_one_out"}, "...t.v ..t.v. .v...t ....tv .t.v.. ..v.t."),
        ({"max_users": 5}, "...t.v ..t.v. ------ .v...t ....tv .t.v.."),
        ({"task": "new-items", "new_share": 0.4}, "...vtv ..tvt. .v.vtt ...vtv .t.vt. ..vvt."),
        ({"task": "few-interactions", "at_most": 2}, ".--t.v ..t-v- -v..-t .-.-tv .t-v.- -.v.t-"),
    ],
)
def test_draws_are_those_that_the_shipped_texts_saw(
    tmp_path: Path, work: Workspace, changes: dict[str, Any], expected: str
) -> None:
    """Splits of six users and six films as an earlier version drew them; a pair that is gone is a dash."""
    join(raw(tmp_path, PAIRS), work)
    work.db.execute('UPDATE interactions SET "timestamp" = 7')
    tables = reorganize(work, find_recipe("ml-100k").settings.replace(**changes))
    found = tables.interactions.merge(tables.users, on="user")
    split = {(int(user), item + 1): at for user, item, at in found[["source_id", "item", "split"]].to_numpy().tolist()}
    shown = {"train": ".", "valid": "v", "test": "t", None: "-"}
    assert [shown[split.get(pair)] for pair in PAIRS] == [*expected.replace(" ", "")]


def test_a_film_with_a_doubtful_link_stays_with_the_genres_of_movielens(tmp_path: Path, work: Workspace) -> None:
    join(raw(tmp_path, PAIRS + [(user, 7) for user in range(1, 7)], [(7, "Three Colors: Blue")]), work)
    tables = reorganize(work, BuildConfig())
    assert tables.items["source_id"].tolist() == ["1", "2", "3", "4", "5", "6", "7"]
    assert tables.items["description"].iloc[6] == "A film, released in 1990."
    told = tables.triples.loc[tables.triples["head"] == 6, "tail"]
    assert tables.entities.loc[told, "source_id"].tolist() == ["genre:Drama"]
    assert work.funnel[1]["films_with_doubtful_link"] == 1


@pytest.mark.parametrize("content", [b"not a database", b"", None])
def test_a_database_that_is_none_or_lacks_the_table_is_an_error(
    tmp_path: Path, work: Workspace, content: bytes | None
) -> None:
    raw(tmp_path, PAIRS, table="films")
    if content is not None:
        (tmp_path / "movies.db").write_bytes(content)
    with pytest.raises(DataError, match=r"movies\.db is not the expected SQLite database"):
        join(tmp_path, work)


@pytest.mark.parametrize(
    ("title", "fact", "doubtful"),
    [
        ("Three Colors: Blue", "Blue", True),
        ("Alien: Resurrection", "Resurrection", True),
        ("Farinelli: il castrato", "Farinelli", False),
        ("Star Trek: First Contact", "First Contact", False),
        ("Alien – Resurrection", "Alien: Resurrection", False),
    ],
)
def test_one_word_behind_a_colon_is_a_doubtful_link(title: str, fact: str, doubtful: bool) -> None:
    films = pd.DataFrame({"title": [title], "year": pd.array([1993], dtype="Int64")})
    facts = pd.DataFrame({"title": [fact, "Something Else"], "year": 1993})
    assert link_films(films, facts) == {0: None if doubtful else 0}


def test_a_name_is_two_people_where_one_ended_long_before_the_other_began() -> None:
    rows = [
        (1942, "A Novelist", "A Novelist", ""),
        (1967, "A Director", "A Novelist", "B Actor"),
        (1973, "C Director", "D Writer", "A Novelist, Late Director"),
        (1990, "C Director", "D Writer", "A Novelist"),
        (1995, "C Director", "D Writer", "A Novelist"),
        (1999, "B Actor", "B Actor", "E Actor"),
        (2001, "Late Director", "D Writer", "E Actor, B Actor"),
    ]
    facts = pd.DataFrame(rows, columns=["year", "director", "writer", "cast"])
    two = {("A Novelist", " (crew)")}
    assert namesakes(facts[facts["year"] != 1942]) == set()
    assert namesakes(facts) == two
    assert namesakes(facts.assign(year=facts["year"].replace(1967, 1974))) == set()
