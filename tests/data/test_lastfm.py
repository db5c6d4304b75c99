from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spike_kit.base.errors import DataError
from spike_kit.data.build import build
from spike_kit.data.dataset import Dataset
from spike_kit.data.sources import find_recipe
from spike_kit.data.sources.lastfm import LastfmConfig, parse
from spike_kit.data.workspace import workspace
from tests.data.amazon_files import write_lines
from tests.data.mapped_files import write_mapped_split
from tests.data.test_amazon import explained

LISTENS = [(2 + user, 51 + (user + step) % 8, 100 * user + step + 1) for user in range(8) for step in range(6)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The files of HetRec 2011, and CoLaKG's split of them (artist 51 + n is item n, user 2 + n is user n)."""
    write_lines(tmp_path / "user_artists.dat", ["userID\tartistID\tweight", *("\t".join(map(str, r)) for r in LISTENS)])
    artists = [f"{51 + n}\tArtist {n} \u2013 \u00e9\thttp://x\thttp://y" for n in range(9)]
    write_lines(tmp_path / "artists.dat", ["id\tname\turl\tpictureURL", *artists])
    (tmp_path / "tags.dat").write_bytes(
        "tagID\ttagValue\n1\tmetal\n2\tchanson fran\u00e7aise\n3\trare\n".encode("latin-1")
    )
    tagged = [(2 + user, 51 + n, 1 + n % 2) for n in range(8) for user in (0, 1)] + [(2, 51, 3)]
    rows = [f"{user}\t{artist}\t{tag}\t1\t4\t2009" for user, artist, tag in tagged]
    write_lines(tmp_path / "user_taggedartists.dat", ["userID\tartistID\ttagID\tday\tmonth\tyear", *rows])
    held = {user: [(user + step) % 8 for step in range(6)] for user in range(8)}
    write_mapped_split(tmp_path, held, first_user=2, first_item=51, n_items=8)
    return tmp_path


def test_listening_counts_and_tags_become_a_study(folder: Path) -> None:
    data = build("lastfm", raw=folder)
    assert data.items["label"].iloc[0] == "Artist 0 \u2013 \u00e9"
    assert set(data.entities["label"].iloc[8:]) == {"metal", "chanson fran\u00e7aise"}
    assert data.interactions.query("user == 0 and item == 5")["rating"].tolist() == [6.0]
    assert "tag" in data.manifest.notes[0]
    assert len(data.triples) == 8


def pairs(data: Dataset, split: str) -> set[tuple[str, str]]:
    rows = data.split(split)
    users, items = data.users["source_id"][rows["user"]], data.items["source_id"][rows["item"]]
    return set(zip(users, items, strict=True))


def test_the_given_split_is_kept_and_validation_cut_from_train(folder: Path) -> None:
    data = build("lastfm-colakg", raw=folder)
    assert pairs(data, "test") == {(str(2 + user), str(51 + user)) for user in range(8)}
    train = {(str(2 + user), str(51 + (user + step) % 8)) for user in range(8) for step in range(1, 6)}
    assert pairs(data, "train") | pairs(data, "valid") == train
    assert len(pairs(data, "valid")) == 8
    assert data.users["source_id"].tolist() == [str(2 + user) for user in range(8)]


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("user_artists.dat", "2\t52\tmany", r"user_artists\.dat line 50: 'weight' is not a number"),
        ("artists.dat", "52\tOther\tx\ty", r"artists\.dat line 11: item '52': it has different labels"),
        ("test.txt", "9 1", r"test\.txt line 9: user 9 is not in train\.txt"),
        ("train.txt", "0 1", r"train\.txt line 9: user 0 has a line already"),
        ("item_map.txt", "70 1", r"item_map\.txt line 9: the id 1 stands in an earlier line"),
        ("user_map.txt", "70", r"user_map\.txt line 9: it holds 1 numbers"),
    ],
)
def test_a_bad_row_is_named_or_skipped_and_counted(folder: Path, name: str, line: str, message: str) -> None:
    with (folder / name).open("a") as file:
        file.write(line + "\n")
    recipe = "lastfm" if name.endswith(".dat") else "lastfm-colakg"
    with pytest.raises(DataError, match=message):
        build(recipe, raw=folder)
    skipping = find_recipe(recipe).settings.replace(on_error="skip")
    assert build(recipe, skipping, raw=folder).manifest.funnel[0]["bad_rows"] == 1


FILES = [
    "user_artists.dat",
    "artists.dat",
    "tags.dat",
    "user_taggedartists.dat",
    "train.txt",
    "test.txt",
    "item_map.txt",
]


@given(
    st.sampled_from(FILES),
    st.binary(max_size=60) | st.lists(st.text(alphabet="1290\t -x\n", max_size=12)).map("\n".join).map(str.encode),
    st.booleans(),
)
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_the_bytes_only_explained_errors_come_out(folder: Path, name: str, content: bytes, skip: bool) -> None:
    kept = (folder / name).read_bytes()
    (folder / name).write_bytes(content)
    config = LastfmConfig(min_rating=None, given=True, split="given", on_error="skip" if skip else "stop")
    with workspace(config.on_error) as work:
        problem = explained(lambda: parse(folder, config, work))
    (folder / name).write_bytes(kept)
    assert problem is None or name in problem or "train.txt" in problem or "test.txt" in problem
