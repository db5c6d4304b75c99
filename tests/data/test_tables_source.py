"""Your own tables: column mappings, formats, facts, triples, given splits."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import spike_kit as sk
from spike_kit.base import paths
from spike_kit.base.errors import DataError
from spike_kit.cli import main
from spike_kit.data.build import open_or_build
from spike_kit.data.dataset import Dataset
from tests.data.checks import built, facts_of, refused, refused_or_skipped
from tests.data.raw_folders import HELD, PAIRS, TABLES, write_lines, write_rows, write_table, write_tables
from tests.world import write_world

COLUMNS = TABLES["columns"]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """The tables in a folder whose name holds characters that mean something to others."""
    write_tables(tmp_path / "raw [mine]*")
    return tmp_path / "raw [mine]*"


def made(raw: Path, **changes: Any) -> Dataset:
    return built("tables", raw, **TABLES | changes)


def write_ratings(raw: Path, column: str, values: list[str]) -> dict[str, Any]:
    """Write ratings with one more column; returns the settings that read it."""
    rows = [(f"u{user}", f"f{item}", 5, 1, value) for (user, item), value in zip(PAIRS, values, strict=True)]
    write_table(raw / "ratings.csv", f"who film stars at {column}", rows, ",")
    return {"columns": COLUMNS | {column: column}}


@pytest.mark.parametrize("suffix", [".tsv", ".json", ".jsonl", ".jsonl.gz", ".parquet"])
def test_every_format_gives_the_same_tables(raw: Path, suffix: str) -> None:
    expected = made(raw).manifest.tables
    for name in ("ratings", "films"):
        frame, target = pd.read_csv(raw / f"{name}.csv", keep_default_na=False), raw / f"{name}{suffix}"
        if name == "films" and suffix != ".tsv":
            frame["genres"] = frame["genres"].str.split("|")
        if suffix == ".parquet":
            frame.to_parquet(target)
        elif suffix == ".tsv":
            frame.to_csv(target, sep="\t", index=False)
        else:
            frame.to_json(target, orient="records", lines=".jsonl" in suffix)
    files = {"interactions": Path(f"ratings{suffix}"), "items": Path(f"films{suffix}")}
    assert made(raw, **files).manifest.tables == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.json", '[{"who": 1},\n', r"x\.json line 2: not valid JSON"),
        ("x.json", "5", r"x\.json line 1: expected a list of objects"),
        ("x.json", '[{"who": "u", "film": "f", "stars": "x"}]', r"x\.json record 1: 'stars' is not a number"),
        ("x.parquet", "PAR1", r"x\.parquet is not a readable Parquet file"),
        ("x.xls", "a", r"x\.xls: files of the kind '\.xls' are not read"),
    ],
)
def test_a_file_that_is_not_what_it_is_called_is_an_error(raw: Path, name: str, content: str, message: str) -> None:
    (raw / name).write_text(content)
    refused("tables", raw, message, **TABLES | {"interactions": Path(name)})


def test_triples_of_files_join_through_links(raw: Path) -> None:
    facts = [(f"http://kg/Film_{n}", "dbo:musicComposer", "http://kg/Bob_%28b%29") for n in range(8)]
    write_table(raw / "kg.tsv", "h r t", facts)
    write_lines(raw / "links.tsv", [f"f{n}\tFilm {n}\thttp://kg/Film_{n}" for n in range(8)])
    write_lines(raw / "dbo_studio.edgelist", [f"http://kg/Film_{n} http://kg/Acme" for n in range(8)])
    files = {"triples": (Path("kg.tsv"), Path("dbo_studio.edgelist")), "links": Path("links.tsv")}
    columns = {"triple_columns": {"head": "h", "relation": "r", "tail": "t"}}
    data = made(raw, facts={}, **files, **columns, link_columns={"item": "1", "entity": "3"})
    assert facts_of(data, 0) == {("music composer", "Bob (b)"), ("studio", "Acme")}
    assert data.entities["label"].tolist()[8:] == ["Acme", "Bob (b)"]


def test_triples_with_an_entity_that_no_table_knows_are_named(raw: Path) -> None:
    write_lines(raw / "kg.csv", ["head,relation,tail", *(f"f{n},by,p1" for n in range(8)), "f0,by,p2"])
    write_lines(raw / "people.csv", ["entity,label,kind", "p1,Ann,person"])
    changes = {"facts": {}, "triples": (Path("kg.csv"),), "entities": Path("people.csv")}
    message = r"kg\.csv line 10: entity 'p2'.*neither in people\.csv nor an item"
    data = refused_or_skipped("tables", raw, message, **TABLES | changes)
    assert data.entities["kind"].tolist()[8:] == ["person"]


def test_a_given_split_in_a_column_or_in_files(raw: Path) -> None:
    changes = write_ratings(raw, "split", ["test" if user == item else "train" for user, item in PAIRS])
    column = made(raw, **changes, split="given")
    assert column.interactions["split"].value_counts().to_dict() == {"train": 32, "valid": 8, "test": 8}
    assert (column.split("test")["item"] == column.split("test")["user"]).all()
    write_rows(raw)
    write_lines(raw / "film_ids.txt", ["org_id remap_id", *(f"f{n} {n}" for n in range(8))])
    write_lines(raw / "user_ids.txt", [f"u{n} {n}" for n in range(8)])
    files = {"train_file": Path("train.txt"), "test_file": Path("test.txt"), "split": "given"}
    ids = {"item_ids": Path("film_ids.txt"), "user_ids": Path("user_ids.txt")}
    given = made(raw, interactions=None, min_rating=None, **files, **ids)
    same = ["user", "item", "split"]
    assert given.interactions[same].equals(column.interactions[same])
    assert given.users["source_id"].tolist() == [f"u{n}" for n in HELD]
    for line, message in (
        ("u9 1", "its second id was given before"),
        ("u9", "it does not hold two ids"),
        ("", "for '7'"),
    ):
        write_lines(raw / "user_ids.txt", [*(f"u{n} {n}" for n in range(7)), line])
        refused("tables", raw, message, **TABLES | files | ids | {"interactions": None, "min_rating": None})


def test_a_user_of_test_who_is_not_in_train_is_named_with_the_line(raw: Path) -> None:
    changes = write_ratings(raw, "split", ["train" if user else "test" for user, _ in PAIRS])
    message = r"ratings\.csv line 7: user 'u0'.*held-out interactions and none in train"
    data = refused_or_skipped("tables", raw, message, 6, **TABLES | changes | {"split": "given", "item_core": 1})
    assert len(data.users) == 7
    changes = write_ratings(raw, "split", ["dev"] * len(PAIRS))
    refused("tables", raw, r"line 2: 'split' is none of 'train', 'valid', 'test'", **TABLES | changes)


def test_the_command_line_takes_a_mapping(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mapping = ["--columns", "user", "who", "item", "film", "rating", "stars", "--item-columns", "item", "id", "label"]
    options = [*mapping, "title", "--facts", "genre", "genres", "--interactions", "ratings.csv", "--items", "films.csv"]
    assert main(["build", "tables", "--name", "mine", "--raw", str(raw), "--min-rating", "4", *options]) == 0
    assert "8 users, 8 items" in capsys.readouterr().out
    assert facts_of(Dataset.open("mine"), 4) == {("genre", "Drama"), ("genre", "Love")}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"columns": {"user": "who", "item": "movie"}}, r"ratings\.csv line 1: there is no column 'movie'; it has who"),
        ({"columns": {"user": "who"}}, "mapping of the interactions is not right .missing: item"),
        ({"columns": {"user": "who", "item": "film", "stars": "stars"}}, "unknown: stars"),
        ({"interactions": None}, "no interactions are named"),
    ],
)
def test_wrong_settings_say_what_is_wrong(raw: Path, changes: dict[str, Any], message: str) -> None:
    refused("tables", raw, message, **TABLES | changes)


def test_a_data_set_is_opened_for_another_task_with_its_own_settings(home: Path) -> None:
    write_tables(paths.raw_root() / "tables")
    data = sk.build("tables", name="mine", **TABLES)
    new = sk.load("mine", task="new-items", new_share=0.5)
    assert (new.name, new.task, data.task) == ("mine-new-items", "new-items", "known")
    told = {name: new.manifest.build[name] for name in data.manifest.build}
    assert told == data.manifest.build
    assert sk.load("mine", task="new-items").manifest == new.manifest
    assert sk.load("mine-new-items", task="new-items").name == "mine-new-items"
    assert sk.usual_profiles(new) == {"profiles": "template", "preset": "new_items"}
    assert new.manifest.build["draws"] == "ids"
    with pytest.raises(DataError, match="was not built from raw files"):
        sk.load(write_world(home / "elsewhere" / "world").path, task="few-interactions")


def test_a_data_set_whose_manifest_does_not_say_how_it_was_drawn_keeps_its_draws(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_tables(paths.raw_root() / "tables")
    old = sk.build("tables", name="old", draws="rows", **TABLES)
    assert "draws" not in old.manifest.build
    few = sk.load("old", task="few-interactions")
    assert "draws" not in few.manifest.build
    held_out = old.interactions[old.interactions["split"] != "train"]
    assert few.interactions[few.interactions["split"] != "train"].to_numpy().tolist() == held_out.to_numpy().tolist()
    assert open_or_build("old", "tables", draws="rows").manifest == sk.load("old").manifest
    assert not caplog.text
