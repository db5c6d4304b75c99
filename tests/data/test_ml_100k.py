from __future__ import annotations

import sqlite3
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


def database(folder: Path, table: str = "omdb") -> bytes:
    file = folder / "films.db"
    file.unlink(missing_ok=True)
    with sqlite3.connect(file) as connection:
        connection.execute(
            f'CREATE TABLE {table} (ID, Title, Year, Runtime, Director, Writer, "Cast", Genre, Language, Country)'
        )
        connection.execute("CREATE TABLE tomatoes (ID, Production)")
        for number in range(6):
            row = (number, f"Film {number}", 1990, 100.0, "Ann", None, "Bob, Cid", "Drama", "", "Peru")
            connection.execute(f"INSERT INTO {table} VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
    connection.close()
    return file.read_bytes()


def inter(rows: list[str] | None = None) -> bytes:
    lines = rows or [f"{user}\t{film}\t5\t{user * 10 + film}" for user in range(1, 7) for film in range(1, 7)]
    return "\n".join(["user_id:token\titem_id:token\trating:float\ttimestamp:float", *lines]).encode()


def item(extra: str = "") -> bytes:
    lines = [f"{film}\tFilm {film - 1}\t1990\tDrama" for film in range(1, 7)]
    return "\n".join(
        ["item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq", *lines, extra]
    ).encode()


def test_parsing_joins_films_with_their_facts(tmp_path: Path, work: Workspace) -> None:
    join(inter(), item("7\tUnheard Of\t1990\tDrama\n8\tFilm 0\t1990\tDrama\n"), database(tmp_path), work)
    items = work.frame("SELECT * FROM items ORDER BY position")
    assert items["label"].tolist() == [f"Film {n} (1990)" for n in range(6)]
    assert items["description"].iloc[0] == "A film of 100 minutes, released in 1990."
    of_first = work.frame("SELECT relation, tail FROM triples WHERE head = '1'")
    assert of_first.to_numpy().tolist() == [
        ["director", "person:Ann"],
        ["cast", "person:Bob"],
        ["cast", "person:Cid"],
        ["genre", "genre:Drama"],
        ["country", "country:Peru"],
    ]
    tables = reorganize(work, BuildConfig())
    assert len(tables.items) == 6
    joined = work.funnel.steps[1]
    assert joined["step"] == "films linked by title and year"
    assert joined["films_without_link"] == joined["films_merged"] == 1


def test_ratings_of_merged_films_move_to_the_one_that_stays(tmp_path: Path, work: Workspace) -> None:
    rows = [f"{user}\t{film}\t5\t{user}" for user in range(1, 7) for film in (8, 2, 3, 4, 5)]
    join(inter(rows), item("8\tFilm 0\t1990\tDrama\n"), database(tmp_path), work)
    assert set(work.frame("SELECT item FROM interactions")["item"]) == {"1", "2", "3", "4", "5"}


@pytest.mark.parametrize(
    ("ratings", "message"),
    [
        (inter(["1\t2\tgood\t3"]), r"ml-100k.inter line 2: rating is 'good', expected a number"),
        (b"user_id:token\titem_id:token\n1\t2\n", "ml-100k.inter lacks the column rating"),
        (b"", "ml-100k.inter is not a tab-separated table"),
        (b"user_id:token\titem_id:token\trating:float\ttimestamp:float\n", "ml-100k.inter holds no row"),
        (b"\xff\xfeu\x00", "ml-100k.inter is not a tab-separated table"),
    ],
)
def test_broken_ratings_are_an_error_that_names_file_and_line(
    tmp_path: Path, work: Workspace, ratings: bytes, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        join(ratings, item(), database(tmp_path), work)


@pytest.mark.parametrize("content", [b"not a database", b""])
def test_a_broken_database_is_an_error(work: Workspace, content: bytes) -> None:
    with pytest.raises(DataError, match="not the expected SQLite database"):
        join(inter(), item(), content, work)


def test_a_database_without_the_table_is_an_error(tmp_path: Path, work: Workspace) -> None:
    with pytest.raises(DataError, match="not the expected SQLite database"):
        join(inter(), item(), database(tmp_path, table="films"), work)
