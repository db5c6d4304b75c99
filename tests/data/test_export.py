"""Where an export may be written, and what becomes of a folder when it fails."""

from pathlib import Path
from typing import Any

import pytest

from spike_kit.base import paths
from spike_kit.base.errors import ConfigError, DataError
from spike_kit.data.build import FORMATS, export
from spike_kit.data.dataset import Dataset
from spike_kit.data.tables import Tables
from tests.data.random_tables import in_memory


@pytest.mark.parametrize("name", FORMATS)
def test_a_folder_is_replaced_only_on_demand_and_a_data_set_never(data: Dataset, tmp_path: Path, name: str) -> None:
    place = tmp_path / "out"
    place.mkdir()
    export(data, name, place)
    files = {path.name for path in place.iterdir()}
    (place / "precious.txt").write_text("mine")
    with pytest.raises(DataError, match="is not empty"):
        export(data, name, place)
    assert (place / "precious.txt").exists()
    export(data, name, place, overwrite=True)
    assert {path.name for path in place.iterdir()} == files
    for where in (data.path, data.path.parent):
        with pytest.raises(DataError, match="holds a data set"):
            export(data, name, where, overwrite=True)
    assert (data.path / paths.MANIFEST).is_file()
    with pytest.raises(DataError, match="is a file"):
        export(data, name, place / sorted(files)[0], overwrite=True)


BLANK = "cannot hold ids that begin or end in a blank"


@pytest.mark.parametrize(
    ("name", "table", "column", "value", "message"),
    [
        ("kgat", "users", "source_id", "a ", BLANK),
        ("kgat", "items", "source_id", " x", BLANK),
        ("kgat", "entities", "source_id", "z ", BLANK),
        ("kgat", "relations", "source_id", " ", BLANK),
        ("recbole", "users", "source_id", "NA", "RecBole takes the id 'NA' for a missing value"),
        ("recbole", "entities", "source_id", '"x', "for the start of a quoted value"),
        ("recbole", "items", "label", "two  blanks", "label of 'film:0' is no clean line"),
        ("recbole", "relations", "template", "{head}\n{tail}", "template of 'genre' is no clean line"),
        ("spike-release", "triples", "relation", 0, "cannot hold relations without a triple .* relation 1"),
    ],
)
def test_what_a_format_cannot_hold_is_an_error_that_leaves_what_stood_there(
    data: Dataset, home: Path, name: str, table: str, column: str, value: Any, message: str
) -> None:
    frames, place = data.tables.named(), home / "out" / "place"
    frames[table] = frames[table].assign(**{column: value})
    place.mkdir(parents=True)
    (place / "mine.txt").write_text("old")
    with pytest.raises(DataError, match=message):
        export(in_memory(Tables(**frames), home / "made"), name, place, overwrite=True)
    assert [path.name for path in (home / "out").rglob("*")] == ["place", "mine.txt"]


def test_an_unknown_format_and_missing_vectors_are_errors(data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no format named 'mine'"):
        export(data, "mine", tmp_path / "out")
    with pytest.raises(DataError, match="'gone'"):
        export(data, "spike-release", tmp_path / "out", vectors=("gone", "x"))
    assert not (tmp_path / "out").exists()
