from __future__ import annotations

import json

import pytest

from benchmarks import quality
from benchmarks.__main__ import main
from benchmarks.quality import QualitySetup, bench_quality
from spike_kit.base import paths
from spike_kit.base.errors import ConfigError
from spike_kit.data.dataset import Dataset

PLAIN = {"epochs": 3, "learning_rate": 1e-3, "batch_size": 256, "eval_every": 1}


def test_it_measures_until_the_preset_is_as_good_and_leaves_nothing(data: Dataset) -> None:
    before = sorted(paths.data_root().rglob("*"))
    measured = bench_quality(QualitySetup(dataset="world", plain_training=PLAIN))
    assert measured.seconds is not None
    assert measured.ratio == pytest.approx(measured.plain_seconds / measured.seconds, rel=0.5)
    assert measured.best_ndcg >= measured.plain_best_ndcg > 0
    assert measured.plain_best_seconds <= measured.plain_seconds
    assert sorted(paths.data_root().rglob("*")) == before


def test_a_preset_that_is_never_as_good_has_no_ratio(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    curves = iter(
        [quality._Curve([(1, 0.5, 0.2), (2, 1.0, 0.3)], 1.1), quality._Curve([(5, 0.1, 0.1), (10, 2.3, 0.2)], 2.3)]
    )
    monkeypatch.setattr(quality, "alone", lambda *_: next(curves))
    measured = bench_quality(QualitySetup(dataset="world"))
    assert (measured.seconds, measured.ratio, measured.epochs) == (None, None, None)
    assert (measured.plain_best_ndcg, measured.best_ndcg, measured.best_seconds) == (0.3, 0.2, 2.3)


def test_the_command_prints_what_was_measured(
    data: Dataset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    curves = iter([quality._Curve([(1, 4.0, 0.2)], 4.0), quality._Curve([(5, 0.5, 0.3)], 1.0)])
    monkeypatch.setattr(quality, "alone", lambda *_: next(curves))
    assert main(["quality", "--dataset", "world", "--device", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ratio"] == 8.0


def test_unknown_names_are_errors(data: Dataset) -> None:
    with pytest.raises(ConfigError, match="no preset of model spike named 'nothing'"):
        bench_quality(QualitySetup(dataset="world", preset="nothing"))
