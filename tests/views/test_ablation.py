import shutil
import threading
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
from spike_kit.experiments import archive
from spike_kit.experiments.run import Run, RunConfig
from spike_kit.experiments.search import save_tuned, search
from spike_kit.results.frames import per_user_metric
from spike_kit.results.significance import paired_test
from spike_kit.views.ablation_study import AblationStudy
from tests.conftest import SHORT, until
from tests.views.conftest import HOSTILE, harmless, safe, written

Runs = dict[str, list[Run]]


def watched() -> bool:
    """Whether a panel trains, or watches a training."""
    return any(thread.name == "spike_kit ablation" for thread in threading.enumerate())


def drawn(figure: Any) -> tuple[list[str], list[float]]:
    """Labels of the rows of a figure of ablations, and the values of its dots."""
    (axes,) = figure.axes
    values = [x for marks in axes.containers for x in marks[0].get_xdata()]
    return [" ".join(label.get_text().split()) for label in axes.get_yticklabels()], values


@pytest.fixture
def view(data: Dataset, runs: Runs) -> AblationStudy:
    """Full model and ``matching=off`` are trained with both seeds, all else is not."""
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
    other = Path(data.embeddings_path("llm", "a/b c"))
    other.write_bytes(data.embeddings_path("template", "all-MiniLM-L6-v2").read_bytes())
    known = [value for _, value in view.panel().parts["text"].options]
    assert known == [("template", "all-MiniLM-L6-v2"), ("llm", "a/b c")]


def test_runs_of_the_archive_are_finished_ones(
    data: Dataset, view: AblationStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "ROOT", tmp_path / "study")
    off = view.combination(matching="off")
    view.add(off)
    table, groups = view.table, view.group_table
    archive.write_archive([run for one in (view.full, off) for run in view.runs(one)], data)
    shutil.rmtree(paths.runs_root())
    again = AblationStudy(data, seeds=(0, 1), training=SHORT)
    again.add(off)
    pd.testing.assert_frame_equal(again.table, table, atol=1e-4)
    pd.testing.assert_frame_equal(again.group_table, groups, atol=1e-4)
    assert again.train(off) == "finished (2 of 2 seeds finished)"
    assert not any(len(line.x) for line in again.curves().data)


def test_seeds_of_several_versions_are_not_averaged(data: Dataset, view: AblationStudy) -> None:
    off = view.combination(matching="off")
    view.add(off)
    before = view.table
    archive.write_archive([run for one in (view.full, off) for run in view.runs(one)], data)
    file = archive.own_root() / "world" / archive.RUNS
    table = pd.read_parquet(file)
    table.assign(config=[text.replace('"graph": 1', '"graph": 2') for text in table["config"]]).to_parquet(file)
    shutil.rmtree(view.runs(view.full)[1].path)
    again = AblationStudy(data, seeds=(0, 1), training=SHORT)
    again.add(off)
    assert [run.path.parent for run in again.runs(view.full)] == [paths.runs_root()]
    assert [run.config["seed"] for run in again.runs(off)] == [0, 1]
    assert again.table["seeds"].tolist() == [1, 2]
    assert before["seeds"].tolist() == [2, 2]


def test_ablations_of_tuned_settings(data: Dataset) -> None:
    config = RunConfig(dataset="world", settings={"loss": "cosine_softmax"})
    save_tuned(config, search(config, 1, {"rho": (0.75,), "epochs": (2,)}), None)
    view = AblationStudy(data, preset="tuned")
    assert view.settings.rho == 0.75
    off = view.combination(matching="off")
    assert (view.combination(rho=0.75), off.label) == (view.full, "w/o matching")
    (job,) = view.jobs(off)
    assert job.described["model_settings"]["rho"] == 0.75
    assert job.described["training_settings"]["epochs"] == 2


def test_tables_and_figures_compare_with_the_full_model(view: AblationStudy, tmp_path: Path) -> None:
    off, mean = view.combination(matching="off"), view.combination(attention="mean")
    for draw in (lambda: view.figure, lambda: view.group_figure, view.export):
        with pytest.raises(DataError, match="compar"):
            draw()
    for one in (off, mean, off, view.full):
        view.add(one)
    table, groups = view.table, view.group_table
    assert table["model"].tolist() == ["full model", "w/o matching", "mean instead of attention"]
    assert table["state"].tolist() == ["finished", "finished", "not trained"]
    assert table["seeds"].tolist() == [2, 2, 0]
    sides = [per_user_metric(view.runs(one), "ndcg@20", "valid") for one in (off, view.full)]
    test, row = paired_test(*sides), table.iloc[1]
    assert row[["difference", "low", "high", "p (Holm)"]].tolist() == pytest.approx(
        [test[name] for name in ("difference", "low", "high", "p permutation")]
    )
    values = [run.metrics["valid"]["ndcg@20"] for run in view.runs(off)]
    assert (row["mean"], row["sd"]) == (pytest.approx(np.mean(values)), pytest.approx(np.std(values, ddof=1)))
    assert table.iloc[2][["mean", "difference", "p (Holm)"]].isna().all()
    assert groups["users"].sum() == len(sides[0])
    assert np.average(groups["difference"], weights=groups["users"]) == pytest.approx(test["difference"])
    labels, values = drawn(view.figure)
    assert labels == [f"w/o matching {row['mark']}".strip(), "mean instead of attention (not trained)"]
    assert values[0] == row["difference"]
    (line, *_), *_ = view.group_figure.axes[0].containers
    assert line.get_ydata().tolist() == groups["difference"].tolist()
    curves = [line for line in view.curves().data if len(line.x)]
    assert len(curves) == 2 * 2 * 2
    assert len({line.line.dash for line in curves}) == 2
    history = view.runs(off)[1].history
    for column in ("loss", "valid_ndcg@20"):
        assert any(list(line.y) == history[column].tolist() for line in curves)
    exported = written(view, tmp_path)
    pd.testing.assert_frame_equal(exported.drop(columns="mark"), table.drop(columns="mark"), atol=1e-5)


def test_only_the_seeds_that_both_have_are_compared(view: AblationStudy, runs: Runs, tmp_path: Path) -> None:
    off = view.combination(matching="off")
    view.add(off)
    first = runs["without matching"][0]
    shutil.move(first.path, tmp_path / "aside")
    sides = [per_user_metric(view.runs(one)[-1:], "ndcg@20", "valid") for one in (off, view.full)]
    groups = view.group_table
    for difference in (view.table["difference"][1], np.average(groups["difference"], weights=groups["users"])):
        assert difference == pytest.approx((sides[0] - sides[1]).mean())
    assert (view.state(off), view.status(off)) == ("not trained", "not trained (1 of 2 seeds finished)")
    shutil.rmtree(runs["spike"][1].path)
    assert np.isnan(view.table["difference"][1])
    assert view.group_table.empty
    shutil.move(tmp_path / "aside", first.path)
    shutil.rmtree(runs["spike"][0].path)
    assert "the full model is not trained" in drawn(view.figure)[0][0]


def test_the_text_is_read_once_for_all_combinations(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    reads, load = [], ProfileVectors.load
    monkeypatch.setattr(ProfileVectors, "load", lambda file: reads.append(file) or load(file))
    view = AblationStudy(data, seeds=range(5), training=SHORT)
    names = [job.folder.name for rho in (0.25, 0.5) for job in view.jobs(view.combination(rho=rho))]
    assert len(set(names)) == 10
    assert len(reads) == 1


def test_labels_from_outside_show_as_text(view: AblationStudy, tmp_path: Path) -> None:
    view.add(view.combination(encoder=HOSTILE))
    view._jobs[view.chosen[0]] = view.jobs(view.combination(matching="off"))
    assert "onerror" in str(view.curves().to_json())
    safe(view.curves().to_json())
    harmless(view, view.figure, view.group_figure)
    written(view, tmp_path)


def test_the_panel_trains_missing_seeds_one_after_the_other(view: AblationStudy) -> None:
    panel = view.panel().parts
    assert "finished" in panel["status"].value
    assert "nothing is compared" in panel["chart-note"].value
    assert panel["train"].disabled
    assert panel["compare"].disabled
    panel["user_profiles"].value = False
    assert "w/o user profiles</b>: not trained" in panel["status"].value
    panel["train"].click()
    assert panel["train"].disabled
    (combination,) = view.chosen
    until(lambda: view.state(combination) == "training")
    assert [job.state for job in view.jobs(combination)] == ["training", "not trained"]
    assert view.status(combination).startswith("training seed 0: epoch ")
    until(lambda: not watched())
    assert view.state(combination) == "finished"
    assert "w/o user profiles" in panel["table"].value
    assert panel["chart-note"].value == ""
    assert bytes(panel["chart"].value).startswith(b"\x89PNG")
    assert panel["compare"].description == "Take out"
    panel["compare"].click()
    assert view.chosen == []
    panel["rows"].value = view.combination(matching="off")
    assert panel["matching"].value == "off"
    assert panel["user_profiles"].value is True


def test_a_training_that_another_kernel_started_is_watched_stopped_and_goes_on(data: Dataset) -> None:
    settings = {"epochs": 100_000, "patience": 0}
    other = AblationStudy(data, training=settings, threads=1, device="cpu")
    other.jobs(other.full)[0].start()
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


def test_the_panel_says_why_training_failed(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    view = views.ablation(data, training=SHORT | {"learning_rate": 1e30}, threads=1, device="cpu")
    panel = view.panel().parts
    panel["train"].click()
    until(lambda: not watched())
    assert "failed: " in panel["status"].value
    assert "(epoch 1)" in panel["status"].value
    assert not panel["train"].disabled

    def cannot(*_: object) -> str:
        raise DataError("no space for <jobs>")

    monkeypatch.setattr(view, "train", cannot)
    panel["train"].click()
    until(lambda: not watched())
    assert "no space for &lt;jobs&gt;" in panel["status"].value
