from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from spike_kit import views
from spike_kit.base import paths
from spike_kit.base.errors import ConfigError, DataError
from spike_kit.data.dataset import Dataset
from spike_kit.data.vectors import ProfileVectors
from spike_kit.experiments import archive, tuned
from spike_kit.experiments.run import RunConfig
from spike_kit.experiments.run_folder import Run
from spike_kit.experiments.search import save_tuned, search
from spike_kit.results.frames import per_user_metric
from spike_kit.results.significance import paired_test
from spike_kit.views.ablation_study import AblationStudy
from tests.views.conftest import HOSTILE, SHORT, safe, written

SECONDS = 120


def until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def watched() -> bool:
    """Whether a panel watches a training."""
    return any(thread.name == "spike_kit ablation" for thread in threading.enumerate())


def axis_of(view: AblationStudy) -> dict[str, Any]:
    return view.figure.to_plotly_json()["layout"]["yaxis"]


def lines(figure: Any) -> list[Any]:
    return [line for line in figure.data if len(line.x)]


@pytest.fixture
def view(data: Dataset) -> AblationStudy:
    """Full model and ``matching=off`` with both seeds, ``rho`` with one."""
    return AblationStudy(data, seeds=(0, 1), training=SHORT, threads=1, device="cpu")


def test_a_combination_without_effect_is_the_full_model(data: Dataset) -> None:
    view = AblationStudy(data)
    assert view.combination(gamma=0.9) == view.full
    assert view.full.label == "full model"
    assert view.combination(matching="off", rho=0.75).label == "matching=off, rho=0.75"
    assert view.combination("llm", inject=False, remove=False, matching="off").profiles == "template"
    assert view.combination("llm").label == "full model, profiles=llm"
    assert [one.label for one in view.named()][:2] == ["full model", "w/o user profiles"]
    with pytest.raises(ConfigError, match="layers"):
        view.combination(layers=0)


def test_runs_of_the_archive_are_finished_ones(data: Dataset, view: AblationStudy, home: Path) -> None:
    off = view.combination(matching="off")
    view.add(off)
    table, groups = view.table, view.group_table
    archive.write_archive([run for one in (view.full, off) for run in view.runs(one)], data)
    shutil.rmtree(paths.runs_root())
    again = AblationStudy(data, seeds=(0, 1), training=SHORT)
    again.add(off)
    pd.testing.assert_frame_equal(again.table, table, atol=1e-4)
    pd.testing.assert_frame_equal(again.group_table, groups, atol=1e-4)
    again.train(off)
    assert not again.busy(off)
    assert again.progress(off) == 1
    assert not lines(again.curves())


def test_ablations_of_tuned_settings(data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuned, "ROOT", tmp_path / "tuned")
    config = RunConfig(dataset="world", settings={"loss": "cosine_softmax"})
    found = search(config, 1, {"rho": (0.75,), "epochs": (2,)})
    save_tuned(config, found, None)
    view = AblationStudy(data, preset="tuned")
    assert view.settings.rho == 0.75
    off = view.combination(matching="off")
    assert (view.combination(rho=0.75), off.label) == (view.full, "w/o matching")
    (job,) = view.jobs(off)
    assert job.described["model_settings"]["rho"] == 0.75
    assert job.described["training_settings"]["epochs"] == 2


def test_the_table_compares_with_the_full_model(view: AblationStudy) -> None:
    off, mean = view.combination(matching="off"), view.combination(attention="mean")
    for one in (off, mean, off, view.full):
        view.add(one)
    table = view.table
    assert table["model"].tolist() == ["full model", "w/o matching", "mean instead of attention"]
    assert table["state"].tolist() == ["finished", "finished", "not trained"]
    assert table["seeds"].tolist() == [2, 2, 0]
    sides = [per_user_metric(view.runs(one), "ndcg@20", "valid") for one in (off, view.full)]
    test = paired_test(*sides)
    row = table.iloc[1]
    assert row["difference"] == pytest.approx(test["difference"])
    assert row["p (Holm)"] == pytest.approx(test["p permutation"])
    assert (row["low"], row["high"]) == (test["low"], test["high"])
    assert row["mean"] == pytest.approx(sides[0].mean())
    assert row["sd"] == pytest.approx(np.std([r.metrics["valid"]["ndcg@20"] for r in view.runs(off)], ddof=1))
    assert table.iloc[2][["mean", "difference", "p (Holm)"]].isna().all()
    groups = view.group_table
    assert groups["users"].sum() == len(sides[0])
    assert np.average(groups["difference"], weights=groups["users"]) == pytest.approx(test["difference"])
    view.remove(off)
    assert view.table["model"].tolist() == ["full model", "mean instead of attention"]


def test_figures_show_what_the_tables_hold(view: AblationStudy) -> None:
    off, mean = view.combination(matching="off"), view.combination(attention="mean")
    view.add(off)
    view.add(mean)
    bars, missing = view.figure.data
    assert list(bars.x) == [view.table["difference"][1]]
    assert missing.y == (1,)
    assert missing.text == ("not trained",)
    assert [name.split()[:2] for name in axis_of(view)["ticktext"]] == [["w/o", "matching"], ["mean", "instead"]]
    (groups,) = lines(view.group_figure)
    assert list(groups.y) == view.group_table["difference"].tolist()
    curves = lines(view.curves())
    assert len(curves) == 2 * 2 * 2
    assert {len(line.x) for line in curves} == {2}
    assert len({line.line.dash for line in curves}) == 2
    history = view.runs(off)[1].history
    assert any(list(line.y) == history["loss"].tolist() for line in curves)
    assert any(list(line.y) == history["valid_ndcg@20"].tolist() for line in curves)


def test_only_the_seeds_that_both_have_are_compared(view: AblationStudy, runs: list[Run]) -> None:
    off = view.combination(matching="off")
    view.add(off)
    aside = view.data.path / "aside"
    shutil.move(runs[4].path, aside)
    sides = [per_user_metric(view.runs(one)[-1:], "ndcg@20", "valid") for one in (off, view.full)]
    assert view.table["difference"][1] == pytest.approx((sides[0] - sides[1]).mean())
    groups = view.group_table
    assert np.average(groups["difference"], weights=groups["users"]) == pytest.approx((sides[0] - sides[1]).mean())
    assert view.state(off) == "not trained"
    assert view.status(off) == "not trained (1 of 2 seeds finished)"
    assert list(view.figure.data[0].x) == [view.table["difference"][1]]
    shutil.rmtree(runs[3].path)
    assert np.isnan(view.table["difference"][1])
    assert view.group_table.empty
    shutil.move(aside, runs[4].path)
    shutil.rmtree(runs[2].path)
    assert view.figure.data[1].text == ("the full model is not trained",)
    with pytest.raises(DataError, match="no comparison"):
        view.export()


def test_long_names_that_begin_alike_stay_apart(view: AblationStudy) -> None:
    long = {"matching_weight": 0.5, "temperature": 0.25, "rho": 0.75, "layers": 2, "user_to_item": "add"}
    finished = view.jobs(view.combination(matching="off"))
    for heads in (2, 4):
        combination = view.combination(**long, heads=heads)
        view.add(combination)
        view._jobs[combination] = finished
    assert len(set(view.figure.data[0].y)) == 2
    assert len(axis_of(view)["ticktext"]) == 2
    assert sum(len(line.x) for line in lines(view.group_figure)) == len(view.group_table)


def test_the_text_is_read_once_for_all_combinations(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    reads, load = [], ProfileVectors.load
    monkeypatch.setattr(ProfileVectors, "load", lambda file: reads.append(file) or load(file))
    view = AblationStudy(data, seeds=range(5), training=SHORT)
    names = [job.folder.name for rho in (0.25, 0.5) for job in view.jobs(view.combination(rho=rho))]
    assert len(set(names)) == 10
    assert len(reads) == 1


def test_an_export_holds_the_comparison(view: AblationStudy, tmp_path: Path) -> None:
    view.add(view.combination(matching="off"))
    view.add(view.combination(attention="mean"))
    table = written(view.export(tmp_path / "a"), view.export(tmp_path / "b"))
    assert table["model"].tolist() == view.table["model"].tolist()
    assert table["difference"].to_numpy() == pytest.approx(view.table["difference"].to_numpy(), nan_ok=True, abs=1e-5)
    assert (set(table["metric"]), set(table["split"])) == ({"ndcg@20"}, {"valid"})
    panel = view.panel().parts
    panel["export"].click()
    assert {file.name for file in paths.figures_root().iterdir()} == {file.name for file in (tmp_path / "a").iterdir()}
    view.chosen = []
    panel["export"].click()
    assert "no comparison to export" in panel["exported"].value


def test_labels_from_outside_show_as_text(view: AblationStudy) -> None:
    view.add(view.combination(encoder=HOSTILE))
    view._jobs[view.chosen[0]] = view.jobs(view.combination(matching="off"))
    for figure in (view.figure, view.group_figure, view.curves()):
        assert "onerror" in str(figure.to_json())
        safe(figure.to_json())
    panel = view.panel().parts
    safe(panel["table"].value, panel["status"].value)
    assert all("<" not in file.name for file in view.export())


def test_the_panel_trains_missing_seeds_one_after_the_other(view: AblationStudy) -> None:
    panel = view.panel().parts
    assert "finished" in panel["status"].value
    assert panel["train"].disabled
    assert panel["compare"].disabled
    panel["user_profiles"].value = False
    assert panel["user_profiles"].icon == "times"
    assert "w/o user profiles" in panel["status"].value
    assert "not trained" in panel["status"].value
    assert not panel["train"].disabled
    panel["train"].click()
    assert panel["train"].disabled
    combination = view.chosen[0]
    view.train(combination)
    assert [job.state for job in view.jobs(combination)] == ["training", "not trained"]
    assert view.status(combination).startswith("training seed 0: epoch ")
    until(lambda: view.state(combination) == "finished" and not watched())
    assert view.progress(combination) == panel["bar"].value == 1.0
    assert not view.busy()
    assert "w/o user profiles" in panel["table"].value
    assert len(panel["chart"].data[0].x) == 1
    assert panel["compare"].description == "Take out"
    panel["compare"].click()
    assert view.chosen == []
    panel["rows"].value = view.combination(matching="off")
    assert panel["matching"].value == "off"
    assert panel["user_profiles"].value is True


def test_a_training_that_another_kernel_started_is_watched_stopped_and_goes_on(data: Dataset) -> None:
    settings = {"epochs": 100_000, "patience": 0}
    other = AblationStudy(data, training=settings, threads=1, device="cpu")
    other.train(other.full)
    view = AblationStudy(data, training=settings, threads=1, device="cpu")
    panel = view.panel().parts
    assert "training seed 0" in panel["status"].value
    assert not panel["stop"].disabled
    until(lambda: len(view.jobs(view.full)[0].history) > 2)
    panel["stop"].click()
    until(lambda: not watched() and view.state(view.full) == "interrupted")
    panel["rows"].value = view.combination(matching="off")
    panel["rows"].value = view.full
    assert "goes on from the last state" in panel["status"].value
    assert not panel["train"].disabled


def test_the_panel_says_why_training_failed(data: Dataset) -> None:
    view = views.ablation(data, training=SHORT | {"learning_rate": 1e30}, threads=1, device="cpu")
    panel = view.panel().parts
    panel["train"].click()
    until(lambda: not watched())
    assert "failed: " in panel["status"].value
    assert "(epoch 1)" in panel["status"].value
    assert not panel["train"].disabled


def test_text_of_other_profile_sets_can_be_chosen(data: Dataset) -> None:
    source, target = data.embeddings_path("template", "all-MiniLM-L6-v2"), data.embeddings_path("llm", "a/b c")
    Path(target).write_bytes(source.read_bytes())
    assert data.encoded() == [("llm", "a/b c"), ("template", "all-MiniLM-L6-v2")]
    panel = AblationStudy(data, training=SHORT).panel().parts
    known = [value for _, value in panel["text"].options]
    assert known == [("template", "all-MiniLM-L6-v2"), ("llm", "a/b c")]
