from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from spike_kit.data.build import build, compared
from spike_kit.data.sources.movielens import MovieLensConfig
from tests.data.amazon_files import write_lines
from tests.data.checks import add_line, facts_of, refused, refused_or_skipped

TITLES = ["Crow, The (1994)", "Amélie (2001)", "Heat (1995)", "Untitled", "Matrix, The (1999)", "Up (2009)"]
GENRES = ["Action|Drama", "Drama", "Action", "(no genres listed)", "Action", "Drama"]
RATINGS = [(user, film, 4 + (film % 2), 978_300_000 + 10 * user + film) for user in range(1, 7) for film in range(1, 7)]


def write_dat(folder: Path) -> Path:
    """The layout of 1M: latin-1, two colons."""
    write_lines(folder / "ratings.dat", ["::".join(map(str, row)) for row in RATINGS])
    films = [f"{n}::{title}::{genres}" for n, (title, genres) in enumerate(zip(TITLES, GENRES, strict=True), 1)]
    (folder / "movies.dat").write_bytes(("\n".join(films) + "\n").encode("latin-1"))
    return folder


def write_csv(folder: Path) -> Path:
    """The layout of 20M and later: quoted CSV in UTF-8, with tags."""
    write_lines(
        folder / "ratings.csv", ["userId,movieId,rating,timestamp", *(",".join(map(str, row)) for row in RATINGS)]
    )
    films = [f'{n},"{title}",{genres}' for n, (title, genres) in enumerate(zip(TITLES, GENRES, strict=True), 1)]
    write_lines(folder / "movies.csv", ["movieId,title,genres", *films])
    tags = ['1,1,"Dark, gothic",1', "2,1,dark,2", "3,1,DARK ,3", "1,2,dark,4", "2,2,Dark,5", "1,3,lonely,6"]
    write_lines(folder / "tags.csv", ["userId,movieId,tag,timestamp", *tags])
    return folder


@pytest.mark.parametrize("write", [write_dat, write_csv])
def test_both_layouts_give_the_same_study(tmp_path: Path, write: Any) -> None:
    data = build("movielens", raw=write(tmp_path))
    assert data.items["label"].tolist() == [
        "The Crow (1994)",
        "Amélie (2001)",
        "Heat (1995)",
        "The Matrix (1999)",
        "Up (2009)",
    ]
    assert data.items["description"].iloc[0] == "A film released in 1994."
    assert facts_of(data, 0) == {("genre", "Action"), ("genre", "Drama"), ("decade", "1990s")}
    assert facts_of(data, 1) == {("genre", "Drama"), ("decade", "2000s")}
    assert data.interactions["timestamp"].min() == RATINGS[0][3]
    assert data.manifest.funnel[0]["interactions"] == 36


def test_tags_of_users_come_on_request_and_are_flagged(tmp_path: Path) -> None:
    data = build("movielens", MovieLensConfig(behavioural=True), raw=write_csv(tmp_path))
    assert ("tag", "dark") in facts_of(data, 0)
    assert ("tag", "dark") in facts_of(data, 1)
    assert "lonely" not in set(data.entities["label"])
    assert "tag" in data.manifest.notes[0]


def test_another_version_than_the_published_one_is_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = build("ml-1m", raw=write_dat(tmp_path))
    assert compared(data.manifest)["equal"].tolist() == [False] * 3
    assert "interactions 36 instead of 1000209" in caplog.text


@pytest.mark.parametrize(
    ("write", "name", "line", "message"),
    [
        (write_dat, "ratings.dat", "1::2::good::5", r"ratings\.dat line 37: 'rating' is not a number"),
        (write_csv, "ratings.csv", ",2,4,5", r"ratings\.csv line 38: 'userId' is missing"),
        (write_csv, "ratings.csv", "1,2,4,noon", r"ratings\.csv line 38: 'timestamp' is not a number"),
        (write_csv, "movies.csv", "2,Other (1990),Drama", r"movies\.csv line 8: item '2': it has different labels"),
    ],
)
def test_a_bad_row_is_named_or_skipped_and_counted(
    tmp_path: Path, write: Any, name: str, line: str, message: str
) -> None:
    add_line(write(tmp_path) / name, line)
    refused_or_skipped("movielens", tmp_path, message)


def test_a_folder_without_ratings_says_so(tmp_path: Path) -> None:
    refused("movielens", tmp_path, r"holds neither ratings\.csv nor ratings\.dat")
