"""Where an export may be written, and what becomes of a folder when it fails."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from spike_kit.base import paths
from spike_kit.base.errors import ConfigError, DataError, StorageError
from spike_kit.data.dataset import Dataset
from spike_kit.data.export import FORMATS, export


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


@pytest.mark.parametrize("name", FORMATS)
def test_a_full_disk_leaves_what_stood_there(
    data: Dataset, home: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    place = home / "out" / "place"
    place.mkdir(parents=True)
    (place / "mine.txt").write_text("old")

    def full(*args: Any, **settings: Any) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr("pandas.DataFrame.to_csv", full)
    with pytest.raises(StorageError, match="the disk is full"):
        export(data, name, place, overwrite=True)
    assert [path.name for path in (home / "out").rglob("*")] == ["place", "mine.txt"]


def test_an_unknown_format_and_missing_vectors_are_errors(data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no format named 'mine'"):
        export(data, "mine", tmp_path / "out")
    with pytest.raises(DataError, match="'gone'"):
        export(data, "spike-release", tmp_path / "out", vectors=("gone", "x"))
    assert not (tmp_path / "out").exists()
