from __future__ import annotations

import csv
from pathlib import Path

import pytest

from spike_kit.data.build import build
from spike_kit.data.sources import find_recipe
from tests.data.checks import facts_of, refused, write_mapped_split

HEADER = (
    *("MovieID", "Title", "Genres", "Year", "imdb_id", "id", "production_countries", "genres", "original_language"),
    *("original_title", "title", "overview", "release_date", "vote_average", "director", "writer", "actors"),
)


def film(number: int, **cells: str) -> list[str]:
    values = {
        "MovieID": str(100 + number),
        "Title": f"Film {number}, The (199{number})",
        "Genres": "Comedy|Drama" if number % 2 else "Comedy",
        "Year": f"199{number}",
        "production_countries": "France",
        "original_language": "fr",
        "overview": f'What happens, "twice",\nin film {number}.',
        "director": "A. Person",
        "writer": "A. Person" if number % 2 else "",
        "actors": f"Actor {number}|Actor {number + 1}",
    } | cells
    return [values.get(name, "") for name in HEADER]


def write(folder: Path) -> None:
    """Six users with four of six films each, and a film that is not in the table."""
    write_films(folder, [film(number) for number in range(6)])
    held = {user: [(user + step) % 7 for step in range(5)] for user in range(6)}
    write_mapped_split(folder, held, first_user=2, first_item=100, n_items=7)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path)
    return tmp_path


def write_films(folder: Path, rows: list[list[str]]) -> None:
    with (folder / "ml1m_extended_movie.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([HEADER, *rows])


def test_films_get_their_names_plots_and_facts(folder: Path) -> None:
    data = build("ml-1m-colakg", raw=folder)
    assert len(data.users) == 6
    assert data.items["source_id"].tolist() == [str(100 + n) for n in range(7)]
    assert data.items["label"].tolist() == [*(f"The Film {n} (199{n})" for n in range(6)), "106"]
    assert data.items["description"][1] == 'What happens, "twice", in film 1.'
    assert facts_of(data, 1) == {
        ("genre", "Comedy"),
        ("genre", "Drama"),
        ("director", "A. Person"),
        ("writer", "A. Person"),
        ("actor", "Actor 1"),
        ("actor", "Actor 2"),
        ("country", "France"),
        ("language", "fr"),
        ("decade", "1990s"),
    }
    assert facts_of(data, 6) == set()
    persons = data.entities[data.entities["kind"] == "person"]["label"]
    assert persons.tolist().count("A. Person") == 1


def test_the_test_split_is_kept_and_users_are_drawn_by_the_seed(folder: Path) -> None:
    settings = find_recipe("ml-1m-colakg").settings
    data = build("ml-1m-colakg", raw=folder)
    test = data.split("test")
    assert [(u, i) for u, i in zip(test["user"], test["item"], strict=True)] == [(n, n) for n in range(6)]
    assert len(data.split("valid")) == 6
    some = [
        build("ml-1m-colakg", settings.replace(max_users=3, seed=seed), name=f"s{seed}", raw=folder) for seed in (0, 1)
    ]
    assert [len(cut.users) for cut in some] == [3, 3]
    assert some[0].users["source_id"].tolist() != some[1].users["source_id"].tolist()


@pytest.mark.parametrize(
    ("row", "message"),
    [(film(2, Title="Another (1992)"), "movie.csv line 15: item '102': it has different"), (film(8)[:3], "movie.csv")],
)
def test_a_bad_film_is_named(folder: Path, row: list[str], message: str) -> None:
    write_films(folder, [*(film(number) for number in range(6)), row])
    refused("ml-1m-colakg", folder, message)
