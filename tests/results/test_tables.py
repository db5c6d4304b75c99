from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from spike_kit.base import paths
from spike_kit.base.errors import DataError
from spike_kit.data.dataset import Dataset
from spike_kit.evaluation.maps import umap_coordinates
from spike_kit.experiments.run import RunConfig, run
from spike_kit.profiles.encode import DEFAULT_ENCODER as USUAL
from spike_kit.results.frames import results_table
from spike_kit.results.tables import as_markdown, run_label
from tests.world import World

SHORT = {"epochs": 2, "batch_size": 512}


def test_seeds_are_averaged_and_settings_are_told_apart(data: Dataset) -> None:
    configs = [RunConfig(model="bprmf", dataset="world", training=SHORT, seed=seed) for seed in (0, 1)]
    configs.append(RunConfig(model="bprmf", dataset="world", training=SHORT, settings={"dim": 8}))
    finished = [run(config, progress=False) for config in configs]
    table = results_table(finished)
    assert [sorted(label.removeprefix("BPR-MF ").split(", ")) for label in table["model"]] == [
        ["batch_size=512", "epochs=2"],
        ["batch_size=512", "dim=8", "epochs=2"],
    ]
    assert table["seeds"].tolist() == [2, 1]
    values = [done.metrics["test"]["ndcg@20"] for done in finished[:2]]
    assert table["ndcg@20"][0] == pytest.approx(np.mean(values))
    assert table["ndcg@20 sd"][0] == pytest.approx(np.std(values, ddof=1))
    assert np.isnan(table["ndcg@20 sd"][1])


def test_a_preset_is_named_unless_it_is_the_usual_one(data: Dataset) -> None:
    short = {"epochs": 1}
    usual = run(RunConfig(dataset="world", training=short), progress=False)
    released = run(RunConfig(dataset="world", preset="released_code", training=short), progress=False)
    assert run_label(usual) == "SPiKE epochs=1"
    assert run_label(released) == "SPiKE (released_code) epochs=1"


def test_another_encoder_is_another_row(data: Dataset, world: World) -> None:
    world.vectors.save(data.embeddings_path("template", "other/encoder"), {})
    configs = [RunConfig(dataset="world", training={"epochs": 1}, encoder=name) for name in ("other/encoder", USUAL)]
    table = results_table([run(config, progress=False) for config in configs])
    assert table["model"].tolist() == ["SPiKE epochs=1, encoder=other/encoder", "SPiKE epochs=1"]
    assert table["seeds"].tolist() == [1, 1]


def test_a_damaged_map_is_laid_out_again() -> None:
    vectors = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    first = umap_coordinates(vectors, neighbours=5)
    (file,) = paths.cache_root().glob("umap--*.parquet")
    file.write_bytes(b"damaged")
    pd.testing.assert_frame_equal(umap_coordinates(vectors, neighbours=5), first)


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
