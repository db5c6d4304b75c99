from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pandas as pd
import pytest

from spike_kit.base.errors import DataError
from spike_kit.data.pipeline import BuildConfig, reorganize
from spike_kit.data.sources.ml_100k import join, link_films, split_names
from spike_kit.data.workspace import Workspace

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
    ],
)
def test_films_link_by_title_and_year(title: str, year: int, linked: str | None) -> None:
    films = pd.DataFrame({"title": [title], "year": pd.array([year], dtype="Int64")})
    facts = pd.DataFrame(FACTS, columns=["title", "year"])
    found = {row: facts["title"][fact] for row, fact in link_films(films, facts).items()}
    assert found.get(0) == linked


def test_a_film_without_a_year_does_not_link() -> None:
    films = pd.DataFrame({"title": ["Fear"], "year": pd.array([pd.NA], dtype="Int64")})
    assert link_films(films, pd.DataFrame(FACTS, columns=["title", "year"])) == {}


def test_a_suffix_stays_with_its_name() -> None:
    text = "Robert Downey, Jr., Ann  Lee, , Time Warner, Inc."
    assert split_names(text) == ["Robert Downey, Jr.", "Ann Lee", "Time Warner, Inc."]


def raw(folder: Path, ratings: bytes = b"", films: str = "", table: str = "omdb") -> Path:
    """The three raw files: six users with six films each unless other ratings are given, and more films."""
    lines = [f"{user}\t{film}\t5\t{user * 10 + film}" for user in range(1, 7) for film in range(1, 7)]
    (folder / "ml-100k.inter").write_bytes(ratings or "\n".join([RATINGS, *lines]).encode())
    lines = [f"{film}\tFilm {film - 1}\t1990\tDrama" for film in range(1, 7)]
    header = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq"
    (folder / "ml-100k.item").write_text("\n".join([header, *lines, films]))
    with closing(sqlite3.connect(folder / "movies.db")) as connection, connection:
        connection.execute(
            f'CREATE TABLE {table} (ID, Title, Year, Runtime, Director, Writer, "Cast", Genre, Language, Country)'
        )
        connection.execute("CREATE TABLE tomatoes (ID, Production)")
        for number in range(6):
            row = (number, f"Film {number}", 1990, 100.0, "Ann", None, "Bob, Cid", "Drama", "", "Peru")
            connection.execute(f"INSERT INTO {table} VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
    return folder


RATINGS = "user_id:token\titem_id:token\trating:float\ttimestamp:float"


def test_parsing_joins_films_with_their_facts(tmp_path: Path, work: Workspace) -> None:
    join(raw(tmp_path, films="7\tUnheard Of\t1990\tDrama\n8\tFilm 0\t1990\tDrama\n"), work)
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
    tables = reorganize(work, BuildConfig())
    assert len(tables.items) == 6
    joined = work.funnel[1]
    assert joined["step"] == "films linked by title and year"
    assert joined["films_without_link"] == joined["films_merged"] == 1


def test_ratings_of_merged_films_move_to_the_one_that_stays(tmp_path: Path, work: Workspace) -> None:
    rows = [f"{user}\t{film}\t5\t{user}" for user in range(1, 7) for film in (8, 2, 3, 4, 5)]
    join(raw(tmp_path, "\n".join([RATINGS, *rows]).encode(), "8\tFilm 0\t1990\tDrama\n"), work)
    assert set(work.frame("SELECT item FROM interactions")["item"]) == {"1", "2", "3", "4", "5"}


@pytest.mark.parametrize(
    ("ratings", "message"),
    [
        (f"{RATINGS}\n1\t2\tgood\t3".encode(), r"ml-100k\.inter line 2: 'rating' is not a number in .*good"),
        (b"user_id:token\titem_id:token\n1\t2\n", r"ml-100k\.inter line 1: there is no column 'rating'"),
        (b"\n", "ml-100k.inter line 1: column names are empty"),
        (RATINGS.encode(), "ml-100k.inter holds no usable row"),
        (b"\xff\xfeu\x00", "ml-100k.inter line 1: the file is UTF-16"),
    ],
)
def test_broken_ratings_are_an_error_that_names_file_and_line(
    tmp_path: Path, work: Workspace, ratings: bytes, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        join(raw(tmp_path, ratings), work)


@pytest.mark.parametrize("content", [b"not a database", b"", None])
def test_a_database_that_is_none_or_lacks_the_table_is_an_error(
    tmp_path: Path, work: Workspace, content: bytes | None
) -> None:
    raw(tmp_path, table="films")
    if content is not None:
        (tmp_path / "movies.db").write_bytes(content)
    with pytest.raises(DataError, match=r"movies\.db is not the expected SQLite database"):
        join(tmp_path, work)
