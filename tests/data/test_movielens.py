from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spike_kit.base.errors import DataError
from spike_kit.data.build import build, compared
from spike_kit.data.dataset import Dataset
from spike_kit.data.sources.movielens import MovieLensConfig, parse
from spike_kit.data.workspace import workspace
from tests.data.amazon_files import write_lines
from tests.data.test_amazon import explained

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


def facts(data: Dataset, item: int) -> set[str]:
    rows = data.triples[data.triples["head"] == item]
    return set(data.entities["label"][rows["tail"]])


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
    assert facts(data, 0) == {"Action", "Drama", "1990s"}
    assert facts(data, 1) == {"Drama", "2000s"}
    assert data.interactions["timestamp"].min() == RATINGS[0][3]
    assert data.manifest.funnel[0]["interactions"] == 36


def test_tags_of_users_come_on_request_and_are_flagged(tmp_path: Path) -> None:
    data = build("movielens", MovieLensConfig(behavioural=True), raw=write_csv(tmp_path))
    assert "dark" in facts(data, 0)
    assert "dark" in facts(data, 1)
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
    folder = write(tmp_path)
    with (folder / name).open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=message):
        build("movielens", raw=folder)
    data = build("movielens", MovieLensConfig(on_error="skip"), raw=folder)
    assert data.manifest.funnel[0]["bad_rows"] == 1


def test_a_folder_without_ratings_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds neither ratings\.csv nor ratings\.dat"):
        build("movielens", raw=tmp_path)


@given(
    st.sampled_from(["ratings.dat", "movies.dat"]),
    st.binary(max_size=60) | st.lists(st.text(alphabet='12:|(9)a,"\n', max_size=12)).map("\n".join).map(str.encode),
    st.booleans(),
)
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_the_bytes_only_explained_errors_come_out(
    tmp_path: Path, name: str, content: bytes, skip: bool
) -> None:
    folder = write_dat(tmp_path)
    (folder / name).write_bytes(content)
    config = MovieLensConfig(on_error="skip" if skip else "stop")
    with workspace(config.on_error) as work:
        problem = explained(lambda: parse(folder, config, work))
        assert problem is None or name in problem
