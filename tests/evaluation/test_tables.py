from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from spike_kit.data.study import Study
from spike_kit.errors import DataError
from spike_kit.evaluation.maps import umap_coordinates
from spike_kit.evaluation.tables import as_markdown, results_table, run_label
from spike_kit.experiments.run import RunConfig, run

SHORT = {"epochs": 2, "batch_size": 512}


def test_seeds_are_averaged_and_settings_are_told_apart(study: Study) -> None:
    configs = [RunConfig(model="bprmf", dataset="world", training=SHORT, seed=seed) for seed in (0, 1)]
    configs.append(RunConfig(model="bprmf", dataset="world", training=SHORT, settings={"dim": 8}))
    finished = [run(config, progress=False) for config in configs]
    table = results_table(finished)
    assert table["model"].tolist() == ["bprmf batch_size=512, epochs=2", "bprmf dim=8, batch_size=512, epochs=2"] or (
        table["model"].str.contains("dim=8").tolist() == [False, True]
    )
    assert table["seeds"].tolist() == [2, 1]
    values = [done.metrics["test"]["ndcg@20"] for done in finished[:2]]
    assert table["ndcg@20"][0] == pytest.approx(np.mean(values))
    assert table["ndcg@20 sd"][0] == pytest.approx(np.std(values, ddof=1))
    assert np.isnan(table["ndcg@20 sd"][1])


def test_a_preset_is_named_unless_it_is_the_usual_one(study: Study) -> None:
    short = {"epochs": 1}
    usual = run(RunConfig(dataset="world", training=short), progress=False)
    released = run(RunConfig(dataset="world", preset="released_code", training=short), progress=False)
    assert run_label(usual) == "spike epochs=1"
    assert run_label(released) == "spike (released_code) epochs=1"


def test_markdown_marks_the_best_of_each_column() -> None:
    table = pd.DataFrame(
        {"model": ["a", "b"], "seeds": [1, 2], "x": [0.1, 0.2], "x sd": [np.nan, 0.05], "y": [0.3, 0.1], "y sd": np.nan}
    )
    lines = as_markdown(table, ("x", "y"), digits=2).splitlines()
    assert [cell.strip() for cell in lines[2].strip("|").split("|")] == ["a", "1", "0.10", "**0.30**"]
    assert [cell.strip() for cell in lines[3].strip("|").split("|")] == ["b", "2", "**0.20 ± 0.05**", "0.10"]


def test_maps_are_cached_and_repeatable(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
    first = umap_coordinates(vectors, neighbours=5)
    assert first.shape == (60, 2)
    assert np.isfinite(first.to_numpy()).all()
    monkeypatch.setattr("spike_kit.evaluation.maps.require", lambda *_: pytest.fail("laid out twice"))
    pd.testing.assert_frame_equal(umap_coordinates(vectors, neighbours=5), first)


def test_too_few_points_for_a_map_are_an_error() -> None:
    with pytest.raises(DataError, match="more than 10 vectors"):
        umap_coordinates(np.zeros((10, 3), dtype=np.float32))
