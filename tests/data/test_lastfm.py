from __future__ import annotations

from pathlib import Path

import pytest

from spike_kit.data.build import build
from tests.data.amazon_files import write_lines
from tests.data.checks import add_line, pairs_of, refused_or_skipped, write_mapped_split

LISTENS = [(2 + user, 51 + (user + step) % 8, 100 * user + step + 1) for user in range(8) for step in range(6)]


def write(folder: Path) -> None:
    """The files of HetRec 2011, and CoLaKG's split of them (artist 51 + n is item n, user 2 + n is user n)."""
    write_lines(folder / "user_artists.dat", ["userID\tartistID\tweight", *("\t".join(map(str, r)) for r in LISTENS)])
    artists = [f"{51 + n}\tArtist {n} \u2013 \u00e9\thttp://x\thttp://y" for n in range(9)]
    write_lines(folder / "artists.dat", ["id\tname\turl\tpictureURL", *artists])
    (folder / "tags.dat").write_bytes(
        "tagID\ttagValue\n1\tmetal\n2\tchanson fran\u00e7aise\n3\trare\n".encode("latin-1")
    )
    tagged = [(2 + user, 51 + n, 1 + n % 2) for n in range(8) for user in (0, 1)] + [(2, 51, 3)]
    rows = [f"{user}\t{artist}\t{tag}\t1\t4\t2009" for user, artist, tag in tagged]
    write_lines(folder / "user_taggedartists.dat", ["userID\tartistID\ttagID\tday\tmonth\tyear", *rows])
    held = {user: [(user + step) % 8 for step in range(6)] for user in range(8)}
    write_mapped_split(folder, held, first_user=2, first_item=51, n_items=8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path)
    return tmp_path


def test_listening_counts_and_tags_become_a_study(folder: Path) -> None:
    data = build("lastfm", raw=folder)
    assert data.items["label"].iloc[0] == "Artist 0 \u2013 \u00e9"
    assert set(data.entities["label"].iloc[8:]) == {"metal", "chanson fran\u00e7aise"}
    assert data.interactions.query("user == 0 and item == 5")["rating"].tolist() == [6.0]
    assert "tag" in data.manifest.notes[0]
    assert len(data.triples) == 8


def test_the_given_split_is_kept_and_validation_cut_from_train(folder: Path) -> None:
    data = build("lastfm-colakg", raw=folder)
    assert pairs_of(data, "test") == {(str(2 + user), str(51 + user)) for user in range(8)}
    train = {(str(2 + user), str(51 + (user + step) % 8)) for user in range(8) for step in range(1, 6)}
    assert pairs_of(data, "train") | pairs_of(data, "valid") == train
    assert len(pairs_of(data, "valid")) == 8
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
        ("train.txt", "0 x", r"train\.txt line 9: 'x' is not an id"),
        ("train.txt", "8 1", r"train\.txt line 9: user 8 is not in user_map\.txt"),
    ],
)
def test_a_bad_row_is_named_or_skipped_and_counted(folder: Path, name: str, line: str, message: str) -> None:
    add_line(folder / name, line)
    refused_or_skipped("lastfm" if name.endswith(".dat") else "lastfm-colakg", folder, message)
