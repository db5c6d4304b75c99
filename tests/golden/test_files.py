"""Files that users have on their disks: folders of data sets and runs, paid answers, the archive."""

import shutil
from pathlib import Path
from typing import Any

import pytest

import spike_kit as sk
from tests.golden import files

RECORD = "files that users have would no longer be read; if that is meant: `python -m tests.golden.record files`"


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    return files.read()


def test_folders_are_the_same_and_answers_that_an_earlier_version_paid_for_are_not_asked_again(
    home: Path, monkeypatch: pytest.MonkeyPatch, recorded: dict[str, Any]
) -> None:
    """The file of answers is never made anew: it stands for those that users have. No server stands behind it here."""
    monkeypatch.chdir(home)
    for what, found in files.everything().items():
        assert found == recorded[what], RECORD


def test_the_archive_of_the_study(recorded: dict[str, Any]) -> None:
    assert files.archive() == recorded["archive"], RECORD


@pytest.mark.pipeline
def test_the_small_cut_of_the_default_data_set(recorded: dict[str, Any]) -> None:
    assert files.SMALL.is_dir(), f"{files.SMALL} is missing: make pipeline"
    assert files.tables(files.SMALL) == recorded["small"]


@pytest.mark.pipeline
def test_the_default_split_is_the_one_that_the_shipped_texts_saw(home: Path) -> None:
    data = sk.build("ml-100k", raw=files.SMALL.parent / "raw" / "ml-100k")
    assert sk.load("ml-100k").profile_sets() == ["claude"]
    assert {one["subject"] for one in data.left_out("claude")} == {"auxiliary"}
    assert len(data.profiles("claude")) == len(data.users) + len(data.entities) - len(data.left_out("claude"))
    assert len(data.left_out("claude")) == 2
    small = sk.load(shutil.copytree(files.SMALL, home / "small"))
    assert {"subject": "user", "reason": small.left_out("claude")[0]["reason"]} in small.left_out("claude")
