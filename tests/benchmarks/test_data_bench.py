from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.data import write_reviews
from spike_kit.base import paths
from spike_kit.data.sources.amazon import RELEASES


@pytest.mark.parametrize("release", ["2018", "2023"])
def test_the_synthetic_file_has_the_format_of_the_release(tmp_path: Path, release: str) -> None:
    path = write_reviews(tmp_path, 500, release)  # type: ignore[arg-type]
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    assert len(rows) == 500
    needed = {field.source for field in RELEASES[release].reviews.values()}
    assert all(needed <= set(row) for row in rows)
    other = tmp_path / "again"
    other.mkdir()
    again = write_reviews(other, 500, release)  # type: ignore[arg-type]
    assert gzip.decompress(again.read_bytes()) == gzip.decompress(path.read_bytes())


def test_the_benchmark_prints_one_json_object_and_leaves_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "--reviews", "3000", "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["reviews"] == 3000
    assert measured["seconds"] > 0
    assert measured["ratio"] == pytest.approx(measured["seconds"] / measured["scan_seconds"], rel=0.6)
    assert measured["reviews_per_second"] == pytest.approx(3000 / measured["seconds"], rel=0.1)
    assert 0 < measured["peak_rss_gib"] < 4
    assert 0 < measured["kept_reviews"] <= measured["interactions"] < 3000
    assert list(paths.data_root().iterdir()) == []


def test_too_few_reviews_are_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "--reviews", "10"]) == 1
    assert "expected at least 1000" in capsys.readouterr().err
