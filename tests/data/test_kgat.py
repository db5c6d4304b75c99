from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spike_kit.base import paths
from spike_kit.base.errors import DataError
from spike_kit.data.build import build, compared
from spike_kit.data.dataset import Dataset
from spike_kit.data.export import export
from spike_kit.data.pipeline import reorganize
from spike_kit.data.sources.kgat import AS_IT_IS, KgatConfig, parse
from spike_kit.data.tables import Tables
from spike_kit.data.workspace import workspace
from tests.data.amazon_files import write_lines
from tests.data.random_tables import in_memory, same, tables
from tests.data.test_amazon import explained

CONFIG = KgatConfig(**AS_IT_IS)
SLOW: dict[str, Any] = {"suppress_health_check": [HealthCheck.function_scoped_fixture]}

TRAIN = ["0 2 0 1", "1 1", "2 0 3 4 5 6 7 8 9 10 11"]
TEST = ["0 3", "2 1 2"]
KG = ["0 0 12", "1 0 12", "2 1 13", "12 1 13"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder without lists: 3 users, 12 items, 14 entities, 2 relations."""
    place = tmp_path / "raw"
    write_lines(place / "train.txt", TRAIN)
    write_lines(place / "test.txt", TEST)
    write_lines(place / "kg_final.txt", KG)
    return place


def built(folder: Path, **changes: Any) -> Dataset:
    return build("kgat", CONFIG.replace(**changes), name="mine", raw=folder)


def pairs(data: Dataset, split: str) -> set[tuple[int, int]]:
    return set(map(tuple, data.split(split)[["user", "item"]].to_numpy().tolist()))


def test_a_folder_is_loaded_with_its_ids(folder: Path) -> None:
    data = built(folder)
    assert (len(data.users), len(data.items), len(data.entities), len(data.relations)) == (3, 12, 14, 2)
    assert pairs(data, "test") == {(0, 3), (2, 1), (2, 2)}
    assert len(pairs(data, "valid")) == 2
    assert pairs(data, "train") | pairs(data, "valid") == {(0, 2), (0, 0), (0, 1), (1, 1)} | {
        (2, item) for item in (0, 3, 4, 5, 6, 7, 8, 9, 10, 11)
    }
    assert data.triples.to_numpy().tolist() == sorted([0, 0, 12] if k == "" else list(map(int, k.split())) for k in KG)
    assert "no validation file" in data.manifest.notes[0]


def test_a_validation_file_is_kept(folder: Path) -> None:
    write_lines(folder / "valid.txt", ["2 10"])
    write_lines(folder / "train.txt", [*TRAIN[:2], TRAIN[2].replace(" 10", "")])
    data = built(folder)
    assert pairs(data, "valid") == {(2, 10)}
    assert data.manifest.notes == ()


@pytest.mark.parametrize("header", ["org_id remap_id", "freebase_id remap_id"])
def test_lists_name_the_ids_in_both_styles(folder: Path, header: str) -> None:
    write_lines(folder / "user_list.txt", ["org_id remap_id", *(f"A{n} {n}" for n in range(3))])
    items = [f"B {n} {n} m.0{n}" for n in range(12)]
    write_lines(folder / "item_list.txt", ["org_id remap_id freebase_id", *items])
    entities = [f"m.0{n} {n}" for n in range(12)]
    write_lines(
        folder / "entity_list.txt", [header, *entities, "http://rdf.freebase.com/ns/Jane_Austen 12", "m.0abc 13"]
    )
    write_lines(folder / "relation_list.txt", [header, "http://x/ns/book.author 0", "http://x/ns/genre 1"])
    data = built(folder)
    assert data.users["source_id"].tolist() == ["A0", "A1", "A2"]
    assert data.items["source_id"].iloc[3] == "B 3"
    assert data.entities["label"].tolist()[12:] == ["Jane Austen", "m.0abc"]
    assert data.relations["label"].tolist() == ["book.author", "genre"]
    write_lines(folder / "titles.tsv", ["B 3\tEmma &amp; more"])
    assert built(folder, names=folder / "titles.tsv").items["label"].iloc[3] == "Emma & more"


BAD = {
    "negative id": ("train.txt", ["0 -1", *TRAIN[1:]], r"train\.txt line 1: '-1' is not an id"),
    "no number": ("test.txt", ["0 x"], r"test\.txt line 1: 'x' is not an id"),
    "user twice": ("train.txt", [*TRAIN, "1 2"], r"train\.txt line 4: user 1 has a line already \(line 2\)"),
    "user gap": ("train.txt", [TRAIN[0], "2 0"], r"train\.txt: users 1 have no line"),
    "absent user": ("test.txt", ["7 1"], r"test\.txt line 1: user 7 is not in train\.txt"),
    "two fields": ("kg_final.txt", [*KG, "0 1"], r"kg_final\.txt line 5: it is not a triple of ids.*'0 1'"),
    "negative entity": ("kg_final.txt", [*KG, "0 1 -3"], r"kg_final\.txt line 5: it is not a triple of ids"),
    "unknown entity": ("kg_final.txt", [*KG, "0 1 99"], r"kg_final\.txt line 5: an entity is not in entity_list\.txt"),
    "unknown relation": ("kg_final.txt", [*KG, "0 9 1"], r"kg_final\.txt line 5: the relation is not in relation_list"),
    "list twice": (
        "relation_list.txt",
        ["org_id remap_id", "a 0", "b 0", "c 1"],
        r"relation_list\.txt line 3: the id 0",
    ),
    "list gap": ("relation_list.txt", ["org_id remap_id", "a 1"], r"relation_list\.txt: it does not name .* ids 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_line_is_named_or_skipped_and_counted(folder: Path, case: str) -> None:
    name, lines, message = BAD[case]
    write_lines(folder / "entity_list.txt", ["org_id remap_id", *(f"e{n} {n}" for n in range(14))])
    write_lines(folder / "relation_list.txt", ["org_id remap_id", "r0 0", "r1 1"])
    write_lines(folder / name, lines)
    with pytest.raises(DataError, match=message):
        built(folder)
    assert not (paths.data_root() / "mine").exists()
    data = built(folder, on_error="skip")
    assert data.manifest.funnel[0]["bad_rows"] >= 1
    assert any("skipped" in note for note in data.manifest.notes)


@pytest.mark.parametrize("name", ["train.txt", "test.txt", "kg_final.txt"])
def test_a_missing_empty_or_wrongly_encoded_file_is_an_error(folder: Path, name: str) -> None:
    content = (folder / name).read_text()
    (folder / name).write_bytes(content.encode("utf-16"))
    with pytest.raises(DataError, match=rf"{name.replace('.', '.')} line 1: the file is UTF-16"):
        built(folder, on_error="skip")
    (folder / name).write_text("\n")
    if name != "test.txt":
        with pytest.raises(DataError, match=rf"{name}"):
            built(folder, on_error="skip")
    (folder / name).unlink()
    with pytest.raises(DataError, match=rf"{name} does not exist"):
        built(folder)


def test_the_item_list_of_yelp2018_is_understood_without_its_last_blank(folder: Path) -> None:
    items = [f"{n}x-{n} {n}{n}x-{n}" for n in range(12)]
    write_lines(folder / "item_list.txt", ["org_id remap_id freebase_id", *items])
    assert built(folder).items["source_id"].tolist() == [f"{n}x-{n}" for n in range(12)]
    write_lines(folder / "item_list.txt", ["org_id remap_id freebase_id", *items[:-1], "11x-11 11y"])
    with pytest.raises(DataError, match=r"item_list\.txt line 13: '11x-11 11y' does not hold org_id remap_id"):
        built(folder)


@pytest.mark.parametrize(("name", "line"), [("train.txt", "3 123456789"), ("kg_final.txt", "0 0 123456789")])
def test_ids_that_do_not_count_from_0_are_an_error_and_fill_no_memory(folder: Path, name: str, line: str) -> None:
    with (folder / name).open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(DataError, match=r"the largest (item|entity) id is 123456789, but only \d+ ids are used"):
        built(folder, on_error="skip")


def test_ids_whose_names_are_not_their_own_are_called_by_number(folder: Path) -> None:
    write_lines(folder / "user_list.txt", ["org_id remap_id", "same 0", "same 1", "user:0 2"])
    assert built(folder).users["source_id"].tolist() == ["user:0", "user:1", "user:2"]


def test_an_item_in_train_and_test_stays_in_train_and_is_counted(folder: Path) -> None:
    write_lines(folder / "test.txt", [*TEST, "1 1"])
    data = built(folder)
    assert (1, 1) not in pairs(data, "test")
    assert {row["step"]: row for row in data.manifest.funnel}["one interaction per user and item"][
        "pairs_in_two_splits"
    ] == 1


def test_published_counts_are_compared_without_the_items(folder: Path) -> None:
    data = build("kgat-last-fm", name="fm", raw=folder)
    table = compared(data.manifest).set_index("what")
    assert (table["published"]["entities"], table["found"]["entities"]) == (58_266, 2)


def write_study(made: Tables, path: Path) -> Dataset:
    return in_memory(made, path)


def read_back(place: Path) -> Tables:
    with workspace() as work:
        parse(place, CONFIG.replace(valid=0.0), work)
        return reorganize(work, CONFIG.replace(valid=0.0))


@given(tables())
@settings(max_examples=150, **SLOW)
def test_a_study_comes_back_from_its_export(tmp_path: Path, made: Tables) -> None:
    data = write_study(made, tmp_path / "made")
    place = export(data, "kgat", tmp_path / "kgat", overwrite=True)
    again = read_back(place)
    assert same(made, again)


LINES = st.lists(st.sets(st.integers(0, 6), max_size=5), min_size=1, max_size=4)


@given(
    LINES, LINES, st.sets(st.tuples(st.integers(0, 9), st.integers(0, 2), st.integers(0, 9)), min_size=1, max_size=8)
)
@settings(max_examples=150, **SLOW)
def test_a_folder_comes_back_from_its_study(
    tmp_path: Path, train: list[set[int]], test: list[set[int]], kg: set[tuple[int, int, int]]
) -> None:
    train[0].add(0)
    folder = tmp_path / "raw"
    held = {user: sorted(items - train[user]) for user, items in enumerate(test) if user < len(train) and train[user]}
    write_lines(folder / "train.txt", [" ".join(map(str, [user, *sorted(items)])) for user, items in enumerate(train)])
    write_lines(folder / "test.txt", [" ".join(map(str, [user, *items])) for user, items in held.items()] or ["0"])
    write_lines(folder / "kg_final.txt", [" ".join(map(str, triple)) for triple in sorted(kg)])
    with workspace() as work:
        parse(folder, CONFIG, work)
        data = write_study(reorganize(work, CONFIG), tmp_path / "made")
    place = export(data, "kgat", tmp_path / "kgat", merge_valid=True, overwrite=True)
    for name in ("train.txt", "kg_final.txt"):
        assert (place / name).read_text() == (folder / name).read_text()
    found = [line for line in (folder / "test.txt").read_text().splitlines() if " " in line]
    assert (place / "test.txt").read_text().splitlines() == found
    assert not (place / "valid.txt").exists()


def test_an_export_replaces_nothing_it_should_not(data: Dataset, tmp_path: Path) -> None:
    place = tmp_path / "full"
    place.mkdir()
    (place / "precious.txt").write_text("mine")
    with pytest.raises(DataError, match="is not empty"):
        export(data, "kgat", place)
    with pytest.raises(DataError, match="holds a data set"):
        export(data, "kgat", data.path, overwrite=True)
    export(data, "kgat", place, overwrite=True)
    assert not (place / "precious.txt").exists()


@given(
    st.sampled_from(["train.txt", "test.txt", "kg_final.txt", "entity_list.txt", "item_list.txt", "user_list.txt"]),
    st.binary(max_size=80)
    | st.lists(st.text(alphabet="0123456789 -\t\nabr_idemp", max_size=15)).map("\n".join).map(str.encode),
    st.booleans(),
)
@settings(max_examples=300, **SLOW)
def test_whatever_the_bytes_only_explained_errors_come_out(
    tmp_path: Path, name: str, content: bytes, skip: bool
) -> None:
    folder = tmp_path / "raw"
    for other, lines in (("train.txt", TRAIN), ("test.txt", TEST), ("kg_final.txt", KG)):
        write_lines(folder / other, lines)
    (folder / name).write_bytes(content)
    config = CONFIG.replace(on_error="skip" if skip else "stop")
    with workspace(config.on_error) as work:
        problem = explained(lambda: parse(folder, config, work))
        if problem is None:
            problem = explained(lambda: reorganize(work, config))
        assert problem is None or str(folder) in problem or "interaction" in problem or "nothing" in problem
    for path in folder.iterdir():
        path.unlink()
