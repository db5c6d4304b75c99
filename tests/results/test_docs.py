"""docs/results.md says what docs/study holds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from spike_kit.experiments.archive import archived_activity, read_archive
from spike_kit.results.report import OVERVIEW, insert_tables, overview, report

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
TOLD = re.findall(r"^<!-- end of (.+) -->$", TEXT, re.MULTILINE)
DATASETS = [name for name in TOLD if name != OVERVIEW]


def test_every_archived_data_set_is_told() -> None:
    assert set(DATASETS) == {path.name for path in (ROOT / "docs" / "study").iterdir() if path.is_dir()}


@pytest.mark.parametrize("dataset", DATASETS)
def test_the_tables_are_those_of_the_archive(dataset: str) -> None:
    tables = report(dataset, read_archive(dataset), archived_activity(dataset))
    assert insert_tables(TEXT, {dataset: tables}) == TEXT


def test_the_overview_is_that_of_the_archive() -> None:
    table = overview({name: (read_archive(name), archived_activity(name)) for name in DATASETS})
    assert insert_tables(TEXT, {OVERVIEW: table}) == TEXT


def test_the_archive_stays_small() -> None:
    assert sum(path.stat().st_size for path in (ROOT / "docs" / "study").rglob("*.*")) < 3 * 2**20
