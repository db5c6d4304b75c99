from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from spike_kit.base import paths
from spike_kit.base.errors import ConfigError
from spike_kit.data.dataset import Dataset
from spike_kit.experiments import archive, tuned
from spike_kit.experiments.run import RunConfig, run
from spike_kit.experiments.search import save_tuned, search
from spike_kit.results.frames import per_user_metric
from spike_kit.results.significance import paired_test
from spike_kit.views.ablation import AblationStudy
from spike_kit.views.ablation_panel import ablation_panel

SHORT = {"epochs": 2, "eval_every": 1}
SECONDS = 120


def until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def axis_of(view: AblationStudy) -> dict[str, Any]:
    return view.figure.to_plotly_json()["layout"]["yaxis"]


def trained(view: AblationStudy, **settings: Any) -> None:
    for job in view.jobs(view.combination(**settings)):
        run(job.config, progress=False)


@pytest.fixture
def view(data: Dataset) -> AblationStudy:
    made = AblationStudy(data, seeds=(0, 1), training=SHORT, threads=1)
    trained(made)
    trained(made, matching="off")
    return made


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


def test_runs_of_the_archive_are_finished_ones(
    data: Dataset, view: AblationStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "ROOT", tmp_path / "study")
    off = view.combination(matching="off")
    view.add(off)
    table = view.table
    archive.write_archive([run for one in (view.full, off) for run in view.runs(one)], data)
    shutil.rmtree(paths.runs_root())
    again = AblationStudy(data, seeds=(0, 1), training=SHORT)
    again.add(off)
    pd.testing.assert_frame_equal(again.table, table, atol=1e-4)
    again.train(off)
    assert not again.busy(off)
    assert again.progress(off) == 1
    assert not again.curves().to_plotly_json()["data"]


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
    assert row["difference"] == pytest.approx(test.difference)
    assert row["p (Holm)"] == pytest.approx(test.p_permutation)
    assert (row["low"], row["high"]) == (test.low, test.high)
    assert row["mean"] == pytest.approx(sides[0].mean())
    assert row["sd"] == pytest.approx(np.std([r.metrics["valid"]["ndcg@20"] for r in view.runs(off)], ddof=1))
    assert table.iloc[2][["mean", "difference", "p (Holm)"]].isna().all()
    groups = view.group_table
    assert groups["users"].sum() == len(sides[0])
    assert np.average(groups["difference"], weights=groups["users"]) == pytest.approx(test.difference)
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
    assert [name.split()[:2] for name in axis_of(view)["ticktext"]] == [
        ["w/o", "matching"],
        ["mean", "instead"],
    ]
    assert len(view.group_figure.data) == 1
    lines = view.curves().data
    assert len(lines) == 2 * 2 * 2
    assert {len(line.x) for line in lines} == {2}
    assert len({line.line.dash for line in lines}) == 2


def test_only_the_seeds_that_both_have_are_compared(data: Dataset) -> None:
    view = AblationStudy(data, seeds=(0, 1), training=SHORT)
    off = view.combination(matching="off")
    run(view.jobs(off)[1].config, progress=False)
    run(view.jobs(view.full)[0].config, progress=False)
    view.add(off)
    assert np.isnan(view.table["difference"][1])
    assert view.group_table.empty
    trained(view)
    sides = [per_user_metric(view.runs(one)[-1:], "ndcg@20", "valid") for one in (off, view.full)]
    assert view.table["difference"][1] == pytest.approx((sides[0] - sides[1]).mean())
    groups = view.group_table
    assert np.average(groups["difference"], weights=groups["users"]) == pytest.approx((sides[0] - sides[1]).mean())
    assert view.state(off) == "not trained"
    assert view.status(off) == "not trained (1 of 2 seeds finished)"
    assert list(view.figure.data[0].x) == [view.table["difference"][1]]


def test_a_finished_run_without_a_full_model_says_so(data: Dataset) -> None:
    view = AblationStudy(data, training=SHORT)
    trained(view, matching="off")
    view.add(view.combination(matching="off"))
    assert view.figure.data[1].text == ("the full model is not trained",)


def test_long_names_that_begin_alike_stay_apart(data: Dataset) -> None:
    view = AblationStudy(data, training=SHORT)
    trained(view)
    long = {"matching_weight": 0.5, "temperature": 0.25, "rho": 0.75, "layers": 2, "user_to_item": "add"}
    for heads in (2, 4):
        trained(view, **long, heads=heads)
        view.add(view.combination(**long, heads=heads))
    assert len(set(view.figure.data[0].y)) == 2
    assert len(axis_of(view)["ticktext"]) == 2
    assert len(view.group_figure.data) == 2


def test_the_text_is_read_once_for_all_combinations(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    monkeypatch.setattr(Dataset, "vectors", lambda *_: reads.append("vectors"))
    view = AblationStudy(data, seeds=range(5), training=SHORT)
    names = [job.folder.name for rho in (0.25, 0.5) for job in view.jobs(view.combination(rho=rho))]
    assert len(set(names)) == 10
    assert reads == ["vectors"]


def test_labels_from_outside_show_as_text(data: Dataset) -> None:
    view = AblationStudy(data, training=SHORT)
    hostile = "<img src=x onerror=alert(1)>"
    view.add(view.combination(encoder=hostile))
    view._jobs[view.chosen[0]] = []
    view._jobs[view.full] = []
    for figure in (view.figure, view.group_figure, view.curves()):
        assert "<img" not in str(figure.to_json())


def test_missing_seeds_are_trained_one_after_the_other(data: Dataset) -> None:
    view = AblationStudy(data, seeds=(0, 1), training=SHORT, threads=1)
    combination = view.combination(layers=2)
    view.train(combination)
    view.train(combination)
    assert view.busy()
    assert [job.state for job in view.jobs(combination)][1] == "not trained"
    assert view.status(combination).startswith("training seed 0: epoch ")
    until(lambda: not view.advance())
    assert view.state(combination) == "finished"
    assert view.progress(combination) == 1.0
    assert not view.busy()


def test_the_panel_trains_and_compares(data: Dataset) -> None:
    view = AblationStudy(data, training=SHORT, threads=1)
    trained(view)
    panel = ablation_panel(view).panel
    assert "finished" in panel.status.value
    assert panel.train.disabled
    assert panel.compare.disabled
    panel.controls.toggles["user_profiles"].value = False
    assert "w/o user profiles" in panel.status.value
    assert "not trained" in panel.status.value
    assert not panel.train.disabled
    panel.train.click()
    assert panel.train.disabled
    assert "not trained" not in panel.status.value
    until(lambda: "finished" in panel.status.value and not panel._watcher.is_alive())
    assert "w/o user profiles" in panel.table.value
    assert len(panel.chart.data[0].x) == 1
    assert panel.compare.description == "Take out"
    panel.compare.click()
    assert view.chosen == []
    panel.rows.value = view.combination(matching="off")
    assert panel.controls.choices["matching"].value == "off"
    assert panel.controls.toggles["user_profiles"].value is True


def test_the_panel_stops_and_goes_on(data: Dataset) -> None:
    view = AblationStudy(data, training={"epochs": 100_000, "patience": 0}, threads=1)
    panel = ablation_panel(view).panel
    panel.train.click()
    until(lambda: len(view.jobs(view.full)[0].history) > 2)
    assert not panel.stop.disabled
    panel.stop.click()
    until(lambda: not panel._watcher.is_alive() and view.state(view.full) == "interrupted")
    panel.refresh()
    assert "goes on from the last state" in panel.status.value
    assert not panel.train.disabled


def test_a_training_that_another_kernel_started_is_watched_and_stopped(data: Dataset) -> None:
    settings = {"epochs": 100_000, "patience": 0}
    other = AblationStudy(data, training=settings, threads=1)
    other.train(other.full)
    view = AblationStudy(data, training=settings, threads=1)
    panel = ablation_panel(view).panel
    assert "training seed 0" in panel.status.value
    assert not panel.stop.disabled
    until(lambda: len(view.jobs(view.full)[0].history) > 0)
    panel.stop.click()
    until(lambda: not panel._watcher.is_alive() and view.state(view.full) == "interrupted")


def test_the_panel_says_why_training_failed(data: Dataset) -> None:
    view = AblationStudy(data, training=SHORT | {"learning_rate": 1e30}, threads=1)
    panel = ablation_panel(view).panel
    panel.train.click()
    until(lambda: not panel._watcher.is_alive())
    assert "failed: " in panel.status.value
    assert "(epoch 1)" in panel.status.value
    assert not panel.train.disabled


def test_text_of_other_profile_sets_can_be_chosen(data: Dataset) -> None:
    source, target = data.embeddings_path("template", "all-MiniLM-L6-v2"), data.embeddings_path("llm", "a/b c")
    Path(target).write_bytes(source.read_bytes())
    assert data.encoded() == [("llm", "a/b c"), ("template", "all-MiniLM-L6-v2")]
    panel = ablation_panel(AblationStudy(data, training=SHORT)).panel
    assert [value for _, value in panel.controls.text.options] == [
        ("template", "all-MiniLM-L6-v2"),
        ("llm", "a/b c"),
    ]
