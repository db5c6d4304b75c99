"""KGAT's format: names, what is understood and noted, and round trips with the writer."""

from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given

from spike_kit.data.build import export
from spike_kit.data.dataset import Dataset
from spike_kit.data.pipeline import reorganize
from spike_kit.data.sources.kgat import AS_IT_IS, KgatConfig, parse
from spike_kit.data.tables import SPLITS, Tables
from spike_kit.data.workspace import workspace
from tests.data.checks import FEW, built, interactions_of, refused
from tests.data.random_tables import in_memory, tables
from tests.data.raw_folders import N, lines_in, write_kgat, write_lines, write_rows

UNCUT = KgatConfig(**AS_IT_IS, valid=0.0)
WIDE = "org_id remap_id freebase_id"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_rows(tmp_path / "raw")
    return tmp_path / "raw"


def test_validation_is_cut_from_train_or_given(folder: Path) -> None:
    data = built("kgat", folder)
    assert "no validation file" in data.manifest.notes[0]
    write_lines(folder / "valid.txt", ["2 0"])
    write_lines(folder / "test.txt", [*lines_in(folder / "test.txt")[:7], "7 7 0"])
    data = built("kgat", folder)
    assert interactions_of(data, "valid") == {(2, 0)}
    assert interactions_of(data, "test") == {(n, n) for n in range(N)}
    assert data.manifest.notes == ()
    steps = {row["step"]: row for row in data.manifest.funnel}
    assert steps["one interaction per user and item"]["pairs_in_two_splits"] == 1


@pytest.mark.parametrize("header", ["org_id remap_id", "freebase_id remap_id"])
def test_lists_name_the_ids_in_both_styles(folder: Path, header: str) -> None:
    write_kgat(folder, header)
    write_lines(folder / "titles.tsv", ["B 3\tEmma &amp; more"])
    data = built("kgat", folder, names=folder / "titles.tsv")
    assert data.users["source_id"].tolist() == [f"A{n}" for n in range(N)]
    assert data.items["source_id"].iloc[3] == "B 3"
    assert data.items["label"].iloc[[2, 3]].tolist() == ["B 2", "Emma & more"]
    assert data.entities["label"].tolist()[8:] == ["Jane Austen", "m.0ab", "m.0cd"]
    assert data.relations["label"].tolist() == ["book.author", "genre"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["B 3 Emma"], "line 1: it is not an id, a tab and a title in 'B 3 Emma'"),
        (["B 3\tA", "B 3\tB"], "line 2: its id has another title already"),
        (["C 3\tEmma"], "titles.tsv names no item of the folder"),
    ],
)
def test_a_bad_title_is_named(folder: Path, lines: list[str], message: str) -> None:
    write_kgat(folder)
    write_lines(folder / "titles.tsv", lines)
    refused("kgat", folder, message, names=folder / "titles.tsv")


def test_the_item_list_of_yelp2018_is_understood_without_its_last_blank(folder: Path) -> None:
    items = [f"{n}x-{n} {n}{n}x-{n}" for n in range(N)]
    write_lines(folder / "item_list.txt", [WIDE, *items[:-1], "7x-7 7y"])
    refused("kgat", folder, r"item_list\.txt line 9: it does not hold org_id remap_id freebase_id in '7x-7 7y'")
    write_lines(folder / "item_list.txt", [WIDE, *items])
    assert built("kgat", folder).items["source_id"].tolist() == [f"{n}x-{n}" for n in range(N)]


def test_ids_whose_names_are_not_their_own_are_called_by_number(folder: Path) -> None:
    names = ["same", "same", "user:0", *(f"A{n}" for n in range(3, N))]
    write_lines(folder / "user_list.txt", ["org_id remap_id", *(f"{name} {n}" for n, name in enumerate(names))])
    assert built("kgat", folder).users["source_id"].tolist() == ["user:0", "user:1", "user:2", *names[3:]]


def read_back(place: Path) -> Tables:
    with workspace() as work:
        parse(place, UNCUT, work)
        return reorganize(work, UNCUT)


@given(tables())
@FEW
def test_a_data_set_comes_back_from_its_export(tmp_path: Path, made: Tables) -> None:
    again = read_back(export(in_memory(made, tmp_path / "made"), "kgat", tmp_path / "kgat", overwrite=True))
    held = ["source_id", "user", "item", "entity", "split", "head", "relation", "tail"]
    for name, frame in made.named().items():
        pd.testing.assert_frame_equal(again.named()[name].filter(held), frame.filter(held), obj=name)


def test_merging_puts_valid_into_train_and_leaves_test(data: Dataset, tmp_path: Path) -> None:
    sizes = {name: len(data.split(name)) for name in SPLITS}
    apart = read_back(export(data, "kgat", tmp_path / "apart")).interactions["split"].value_counts()
    assert apart.to_dict() == sizes
    merged = read_back(export(data, "kgat", tmp_path / "merged", merge_valid=True)).interactions["split"].value_counts()
    assert merged.to_dict() == {"train": sizes["train"] + sizes["valid"], "test": sizes["test"]}
