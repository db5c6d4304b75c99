from __future__ import annotations

import json

import pytest

from benchmarks.__main__ import main
from benchmarks.profiles import synthetic_dataset
from spike_kit.base import paths
from spike_kit.data.dataset import SUBJECTS


def test_the_synthetic_study_has_about_so_many_subjects_and_material_for_all() -> None:
    data = synthetic_dataset(paths.data_root() / "bench", 1000, seed=0)
    assert sum(len(data.expected_ids(subject)) for subject in SUBJECTS) == 1000
    again = synthetic_dataset(paths.data_root() / "again", 1000, seed=0)
    assert again.manifest.tables == data.manifest.tables
    assert synthetic_dataset(paths.data_root() / "other", 1000, seed=1).manifest.tables != data.manifest.tables
    assert data.split("train")["user"].nunique() == len(data.users)


def test_the_benchmark_prints_one_json_object_and_leaves_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.profiles.ROUNDS", 1)
    assert main(["profiles", "--profiles", "1000", "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["profiles"] == 1000
    assert measured["profiles_per_second"] > 0
    assert measured["bare_client_per_second"] > 0
    assert measured["client_ratio"] > 0
    assert measured["seconds"] > 0
    assert 0 < measured["small_peak_rss_gib"] < 4
    assert 0 < measured["peak_rss_gib"] < 4
    growth = 1024 * (measured["peak_rss_gib"] - measured["small_peak_rss_gib"])
    assert measured["rss_growth_mib"] == pytest.approx(growth, abs=1.5)
    assert list(paths.data_root().iterdir()) == []


def test_too_few_profiles_are_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profiles", "--profiles", "10"]) == 1
    assert "--profiles is 10, expected at least 1000" in capsys.readouterr().err
