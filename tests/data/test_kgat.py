"""KGAT's format: what is read, what is refused, and round trips with the writer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given

from spike_kit.base.errors import DataError
from spike_kit.data.build import build, compared
from spike_kit.data.dataset import Dataset
from spike_kit.data.export import export
from spike_kit.data.pipeline import reorganize
from spike_kit.data.sources.kgat import AS_IT_IS, KgatConfig, parse
from spike_kit.data.tables import Tables
from spike_kit.data.workspace import workspace
from tests.data.amazon_files import write_lines
from tests.data.checks import FEW, refused, refused_or_skipped
from tests.data.random_tables import SETS, TRIPLES, in_memory, same, tables, write_rows

CONFIG = KgatConfig(**AS_IT_IS)
UNCUT = CONFIG.replace(valid=0.0)

TRAIN = ["0 2 0 1", "1 1", "2 0 3 4 5 6 7 8 9 10 11"]
TEST = ["0 3", "2 1 2"]
KG = ["0 0 12", "1 0 12", "2 1 13", "12 1 13"]


def write(folder: Path) -> None:
    """A folder without lists: 3 users, 12 items, 14 entities, 2 relations."""
    write_lines(folder / "train.txt", TRAIN)
    write_lines(folder / "test.txt", TEST)
    write_lines(folder / "kg_final.txt", KG)


def write_with_lists(folder: Path, header: str = "org_id remap_id") -> None:
    """The same folder with names; a name of an item holds a blank."""
    write(folder)
    entities = [*(f"m.0{n} {n}" for n in range(12)), "http://rdf.freebase.com/ns/Jane_Austen 12", "m.0abc 13"]
    write_lines(folder / "user_list.txt", ["org_id remap_id", *(f"A{n} {n}" for n in range(3))])
    items = (f"B {n} {n} m.0{n}" for n in range(12))
    write_lines(folder / "item_list.txt", ["org_id remap_id freebase_id", *items])
    write_lines(folder / "entity_list.txt", [header, *entities])
    write_lines(folder / "relation_list.txt", [header, "http://x/ns/book.author 0", "http://x/ns/genre 1"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "raw")
    return tmp_path / "raw"


def built(folder: Path, **changes: Any) -> Dataset:
    return build("kgat", CONFIG.replace(**changes), name="mine", raw=folder)


def pairs(data: Dataset, split: str) -> set[tuple[int, int]]:
    return set(map(tuple, data.split(split)[["user", "item"]].to_numpy().tolist()))


def test_a_folder_is_loaded_with_its_ids(folder: Path) -> None:
    data = built(folder)
    assert (len(data.users), len(data.items), len(data.entities), len(data.relations)) == (3, 12, 14, 2)
    assert pairs(data, "test") == {(0, 3), (2, 1), (2, 2)}
    assert len(pairs(data, "valid")) == 2
    train = {(0, 2), (0, 0), (0, 1), (1, 1), *((2, item) for item in (0, 3, 4, 5, 6, 7, 8, 9, 10, 11))}
    assert pairs(data, "train") | pairs(data, "valid") == train
    assert data.triples.to_numpy().tolist() == sorted([int(part) for part in line.split()] for line in KG)
    assert "no validation file" in data.manifest.notes[0]


def test_a_validation_file_is_kept(folder: Path) -> None:
    write_lines(folder / "valid.txt", ["2 10"])
    write_lines(folder / "train.txt", [*TRAIN[:2], TRAIN[2].replace(" 10", "")])
    data = built(folder)
    assert pairs(data, "valid") == {(2, 10)}
    assert data.manifest.notes == ()


@pytest.mark.parametrize("header", ["org_id remap_id", "freebase_id remap_id"])
def test_lists_name_the_ids_in_both_styles(folder: Path, header: str) -> None:
    write_with_lists(folder, header)
    write_lines(folder / "titles.tsv", ["B 3\tEmma &amp; more"])
    data = built(folder, names=folder / "titles.tsv")
    assert data.users["source_id"].tolist() == ["A0", "A1", "A2"]
    assert data.items["source_id"].iloc[3] == "B 3"
    assert data.items["label"].iloc[[2, 3]].tolist() == ["B 2", "Emma & more"]
    assert data.entities["label"].tolist()[12:] == ["Jane Austen", "m.0abc"]
    assert data.relations["label"].tolist() == ["book.author", "genre"]


BAD = {
    "negative id": ("train.txt", ["0 -1", *TRAIN[1:]], r"train\.txt line 1: '-1' is not an id", 3),
    "no number": ("test.txt", ["0 x"], r"test\.txt line 1: 'x' is not an id", 1),
    "not UTF-8": ("test.txt", [b"0 \xff"], r"test\.txt line 1: it is not text in UTF-8", 1),
    "user twice": ("train.txt", [*TRAIN, "1 2"], r"train\.txt line 4: user 1 has a line already \(line 2\)", 1),
    "user gap": ("train.txt", [TRAIN[0], "2 0"], r"train\.txt: users 1 have no line", 1),
    "absent user": ("test.txt", ["7 1"], r"test\.txt line 1: user 7 is not in train\.txt", 1),
    "two fields": ("kg_final.txt", [*KG, "0 1"], r"kg_final\.txt line 5: it is not a triple of ids.*'0 1'", 1),
    "negative entity": ("kg_final.txt", [*KG, "", "0 1 -3"], r"kg_final\.txt line 6: it is not a triple of ids", 1),
    "unknown entity": ("kg_final.txt", [*KG, "0 1 99"], r"kg_final\.txt line 5: an entity is not in entity_list", 1),
    "unknown relation": ("kg_final.txt", [*KG, "0 9 1"], r"kg_final\.txt line 5: the relation is not in relation_", 1),
    "list twice": ("relation_list.txt", ["org_id remap_id", "a 0", "b 0", "c 1"], r"line 3: the id 0 is named a", 1),
    "list gap": ("relation_list.txt", ["org_id remap_id", "a 1"], r"relation_list\.txt: it does not name .* ids 0", 1),
    "no such user": ("user_list.txt", ["org_id remap_id", "a 0", "b 1", "c 2", "d 3"], "3 is not in train.txt", 1),
    "control": ("user_list.txt", ["org_id remap_id", "a\x01 0", "b 1", "c 2"], "line 2: the name holds a control", 2),
    "short line": ("item_list.txt", ["org_id remap_id", "a 0", "b"], "line 3: 'b' does not hold org_id remap_id", 12),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_line_is_named_or_skipped_and_counted(folder: Path, case: str) -> None:
    write_with_lists(folder)
    name, lines, message, rows = BAD[case]
    write_lines(folder / name, lines)
    refused_or_skipped("kgat", folder, message, rows)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        *((name, "0 1 2\n".encode("utf-16"), "line 1: the file is UTF-16") for name in ("train.txt", "kg_final.txt")),
        ("train.txt", b"\n", "train.txt holds no user"),
        ("kg_final.txt", b"\n", "kg_final.txt holds no"),
        ("user_list.txt", b"a 0\n", "user_list.txt line 1: the columns are 'a 0', expected remap_id"),
        ("titles.tsv", b"C 3\tEmma\n", "titles.tsv names no item of the folder"),
        ("train.txt", b"0 1\n1 1\n2 1\n3 123456789\n", "the largest item id is 123456789, but only"),
        ("kg_final.txt", b"0 0 123456789\n", "the largest entity id is 123456789, but only"),
    ],
)
def test_a_file_that_is_something_else_is_an_error_whatever_is_skipped(
    folder: Path, name: str, content: bytes, message: str
) -> None:
    (folder / name).write_bytes(content)
    titles = folder / "titles.tsv"
    refused("kgat", folder, message, on_error="skip", names=titles if titles.exists() else None)


@pytest.mark.parametrize(
    ("lines", "message"),
    [(["B 3 Emma"], "line 1: 'B 3 Emma' is not an id, a tab"), (["B 3\tA", "B 3\tB"], "line 2: 'B 3' has another")],
)
def test_a_bad_title_is_named(folder: Path, lines: list[str], message: str) -> None:
    write_lines(folder / "titles.tsv", lines)
    refused("kgat", folder, message, names=folder / "titles.tsv")


def test_the_item_list_of_yelp2018_is_understood_without_its_last_blank(folder: Path) -> None:
    items = [f"{n}x-{n} {n}{n}x-{n}" for n in range(12)]
    write_lines(folder / "item_list.txt", ["org_id remap_id freebase_id", *items[:-1], "11x-11 11y"])
    refused("kgat", folder, r"item_list\.txt line 13: '11x-11 11y' does not hold org_id remap_id")
    write_lines(folder / "item_list.txt", ["org_id remap_id freebase_id", *items])
    assert built(folder).items["source_id"].tolist() == [f"{n}x-{n}" for n in range(12)]


def test_ids_whose_names_are_not_their_own_are_called_by_number(folder: Path) -> None:
    write_lines(folder / "user_list.txt", ["org_id remap_id", "same 0", "same 1", "user:0 2"])
    assert built(folder).users["source_id"].tolist() == ["user:0", "user:1", "user:2"]


def test_an_item_in_train_and_test_stays_in_train_and_is_counted(folder: Path) -> None:
    write_lines(folder / "test.txt", [*TEST, "1 1"])
    data = built(folder)
    assert (1, 1) not in pairs(data, "test")
    steps = {row["step"]: row for row in data.manifest.funnel}
    assert steps["one interaction per user and item"]["pairs_in_two_splits"] == 1


def test_published_counts_are_compared_without_the_items(folder: Path) -> None:
    table = compared(build("kgat-last-fm", name="fm", raw=folder).manifest).set_index("what")
    assert (table["published"]["entities"], table["found"]["entities"]) == (58_266, 2)


def read_back(place: Path, config: KgatConfig = UNCUT) -> Tables:
    with workspace() as work:
        parse(place, config, work)
        return reorganize(work, config)


@given(tables())
@FEW
def test_a_data_set_comes_back_from_its_export(tmp_path: Path, made: Tables) -> None:
    data = in_memory(made, tmp_path / "made")
    assert same(made, read_back(export(data, "kgat", tmp_path / "kgat", overwrite=True)))


@given(SETS, SETS, TRIPLES)
@FEW
def test_a_folder_comes_back_from_its_data_set(
    tmp_path: Path, train: list[set[int]], test: list[set[int]], triples: set[tuple[int, int, int]]
) -> None:
    files = write_rows(tmp_path / "raw", train, test, triples)
    data = in_memory(read_back(tmp_path / "raw", CONFIG), tmp_path / "made")
    place = export(data, "kgat", tmp_path / "kgat", merge_valid=True, overwrite=True)
    assert {name: (place / name).read_text().splitlines() for name in files} == files
    assert not (place / "valid.txt").exists()


def test_merging_puts_valid_into_train_and_leaves_test(data: Dataset, tmp_path: Path) -> None:
    apart = export(data, "kgat", tmp_path / "apart")
    merged = export(data, "kgat", tmp_path / "merged", merge_valid=True)
    sizes = [len(data.split(name)) for name in ("train", "valid", "test")]
    assert min(sizes) > 0
    assert [len(read_back(apart).interactions.query("split == @name")) for name in ("train", "valid", "test")] == sizes
    together = read_back(merged).interactions["split"].value_counts()
    assert together.to_dict() == {"train": sizes[0] + sizes[1], "test": sizes[2]}
    assert not (merged / "valid.txt").exists()


def named(tables: Tables, table: str, ids: list[str]) -> Tables:
    """Tables in which the first rows of one have other ids."""
    frames = tables.named()
    frame = frames[table].copy()
    frame["source_id"] = pd.Series([*ids, *frame["source_id"][len(ids) :]], dtype="str")
    return Tables(**(frames | {table: frame}))


@pytest.mark.parametrize(
    ("table", "ids"), [("users", ["a "]), ("items", [" x"]), ("entities", ["x"] * 48 + ["z "]), ("relations", [" "])]
)
def test_an_id_that_a_list_cannot_hold_is_an_error_and_nothing_is_written(
    data: Dataset, home: Path, table: str, ids: list[str]
) -> None:
    made = in_memory(named(data.tables, table, ids), home / "made")
    with pytest.raises(DataError, match=r"cannot hold .* ids that begin or end in a blank"):
        export(made, "kgat", home / "out" / "kgat")
    assert list((home / "out").iterdir()) == []


def test_ids_that_look_like_columns_of_a_list_come_back(data: Dataset, home: Path) -> None:
    made = named(data.tables, "users", ["user:1", "user:0", "1 0"])
    for table in ("items", "entities"):
        made = named(made, table, ["1 0", '"1" 2 3', "item:0"])
    made = named(made, "relations", ["0", "relation:0"])
    again = read_back(export(in_memory(made, home / "made"), "kgat", home / "kgat")).named()
    for table in ("users", "items", "entities", "relations"):
        assert again[table]["source_id"].tolist() == made.named()[table]["source_id"].tolist()
