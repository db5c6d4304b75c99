"""Files that users have on their disks: folders of data sets and runs, paid answers, the archive."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.golden import files

RECORD = "files that users have would no longer be read; if that is meant: `python -m tests.golden.record files`"


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    return files.read()


@pytest.fixture
def golden(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data set of these tests, in the working folder."""
    monkeypatch.chdir(home)
    files.build()
    return home / "data" / "golden"


def test_a_data_set_folder(golden: Path, recorded: dict[str, Any]) -> None:
    assert files.dataset(golden) == recorded["dataset"], RECORD


def test_run_folders(golden: Path, recorded: dict[str, Any]) -> None:
    found = {model: files.run(files.train(model, golden.parent / "runs")) for model in files.MODELS}
    assert found == recorded["runs"], RECORD


def test_answers_that_an_earlier_version_paid_for_are_not_asked_again(golden: Path, recorded: dict[str, Any]) -> None:
    """The file is never made anew: it stands for those that users have. Nobody answers at the address that is given."""
    assert files.paid(golden) == recorded["paid"]


def test_the_archive_of_the_study(recorded: dict[str, Any]) -> None:
    assert files.archive() == recorded["archive"], RECORD


@pytest.mark.pipeline
def test_the_small_cut_of_the_default_data_set(recorded: dict[str, Any]) -> None:
    assert files.SMALL.is_dir(), f"{files.SMALL} is missing: make pipeline"
    assert files.tables(files.SMALL) == recorded["small"]
