"""docs/study/tables says what docs/study holds, docs/results.md what they say, docs/training.md what fits a card."""

import re
from pathlib import Path

import pytest

from benchmarks.capacity import CARDS, STEP, capacities, largest, needed
from spike_kit.experiments.archive import archived_activity, read_archive
from spike_kit.results.report import report, study_datasets, table_page, tables_of
from spike_kit.results.tables import markdown_table

DOCS = Path(__file__).parents[2] / "docs"
TABLES = DOCS / "study" / "tables"


def kept(name: str) -> str:
    return (TABLES / f"{name}.md").read_text(encoding="utf-8")


@pytest.mark.pipeline
def test_the_tables_are_those_of_the_archive(tmp_path: Path) -> None:
    pages = tables_of(into=tmp_path)
    assert {file.stem for file in TABLES.iterdir()} == {*pages, "beyond-accuracy"}
    for name, page in pages.items():
        assert page.count("[") > 20 or name == "overview"
        assert kept(name) == table_page(name, page) == (tmp_path / f"{name}.md").read_text(encoding="utf-8")


def test_the_tables_of_one_data_set_are_those_of_the_archive() -> None:
    name = study_datasets()[0]
    runs = read_archive(name)
    assert kept(name) == table_page(name, report(name, runs, archived_activity(name)))


def test_the_table_of_cards_is_what_the_estimate_gives() -> None:
    rows = capacities()
    table = markdown_table((name, [row[name] for row in rows]) for name in rows[0])
    assert table.count("\n") == 1 + len(CARDS)
    assert f"\n\n{table}\n\n" in (DOCS / "training.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("memory", [4 * 10**9, 30 * 10**9])
def test_a_larger_graph_does_not_fit(memory: int) -> None:
    size = largest(memory)
    assert needed(size) <= memory < needed(size.scaled(size.nodes + STEP))


def test_numbers_of_the_findings_stand_in_the_tables() -> None:
    text = (DOCS / "results.md").read_text(encoding="utf-8")
    assert len(text.split()) <= 1500
    for link in re.findall(r"\]\((study/[^)#]+)", text):
        assert (DOCS / link).exists(), link
    parts = re.split(r"^## ", text, flags=re.MULTILINE)
    findings = "".join(part for part in parts if part.startswith(("Four findings", "What was not found")))
    shown = " ".join(file.read_text(encoding="utf-8") for file in TABLES.glob("*.md"))
    numbers = set(re.findall(r"(?<![\d.])\.\d{4}\b", findings))
    assert len(numbers) > 30
    assert not [number for number in numbers if f"0{number}" not in shown]


def test_the_archive_stays_small() -> None:
    assert sum(path.stat().st_size for path in (DOCS / "study").rglob("*.*")) < 5 * 2**20
