from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from spike_kit.base import storage
from spike_kit.base.errors import ConfigError, DataError
from spike_kit.data.dataset import Dataset
from spike_kit.experiments import archive
from spike_kit.experiments.run import RunConfig, run
from spike_kit.experiments.run_folder import Run
from spike_kit.results.frames import per_user_metric
from spike_kit.views.overview import Overview
from spike_kit.views.overview_panel import overview_panel

HOSTILE = '<img src=x onerror="alert(1)"> $x$'
SHORT = {"epochs": 2, "eval_every": 1}


def made(model: str = "spike", seed: int = 0, **settings: Any) -> Run:
    training = {} if model == "popularity" else SHORT
    config = RunConfig(model=model, dataset="world", seed=seed, settings=settings, training=training)
    return run(config, progress=False)


@pytest.fixture(autouse=True)
def own_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An archive of one's own."""
    monkeypatch.setattr(archive, "ROOT", tmp_path / "study")


@pytest.fixture
def runs(data: Dataset) -> list[Run]:
    return [made("popularity"), made("lightgcn"), *(made(seed=seed) for seed in (0, 1)), made(rho=0.25), made(rho=1.0)]


def drawn(chart: Any) -> Any:
    return chart.data


def test_the_leaderboard_is_sorted_and_averages_seeds(data: Dataset, runs: list[Run]) -> None:
    view = Overview(data)
    table = view.table
    assert table["rank"].tolist() == [1, 2, 3, 4, 5]
    assert table["ndcg@20"].is_monotonic_decreasing
    twice = table[table["seeds"] == 2].iloc[0]
    values = [one.metrics["valid"]["ndcg@20"] for one in runs[2:4]]
    assert twice["ndcg@20"] == pytest.approx(np.mean(values))
    assert twice["sd"] == pytest.approx(np.std(values, ddof=1))
    assert twice["epochs"] == 2
    assert twice["seconds"] > 0
    assert set(table["data"]) == {"present"}
    assert view.summary == "5 of 5 configurations (6 of 6 runs) of world, by ndcg@20 on valid"
    assert list(drawn(view.figure)[0].x) == table["ndcg@20"].tolist()


def test_filters_combine(data: Dataset, runs: list[Run]) -> None:
    view = Overview(data, runs)
    view.models = ("spike",)
    assert len(view.table) == 3
    view.text = "RHO=1"
    assert [one.config["model_settings"]["rho"] for one in view.runs] == [1.0]
    view.text = ""
    view.at_least = 2
    assert [one.config["seed"] for one in view.runs] == [0, 1]
    view.models, view.at_least, view.presets = (), 1, ("released_code",)
    assert view.runs == []
    assert view.table.empty
    assert view.group_table.empty
    for chart in (view.figure, view.curves(), view.group_figure()):
        assert not any(len(trace.x) for trace in drawn(chart) if trace.x is not None)
    with pytest.raises(DataError, match="no two of these runs"):
        view.sensitivity_figure()


def test_runs_on_older_data_are_kept_apart(data: Dataset, runs: list[Run]) -> None:
    older = dataclasses.replace(runs[0])
    older.__dict__["config"] = runs[0].config | {"data_sha256": "another"}
    view = Overview(data, [*runs, older])
    assert len(view.table) == 5
    view.older = True
    assert view.table["data"].tolist().count("older") == 1


def test_runs_of_the_archive_are_shown_where_their_folders_are_gone(data: Dataset, runs: list[Run]) -> None:
    before = Overview(data)
    table, groups = before.table, before.group_table
    archive.write_archive(runs, data)
    assert len(Overview(data).all) == len(runs)
    shutil.rmtree(runs[0].path.parent)
    after = Overview(data)
    pd.testing.assert_frame_equal(after.table, table)
    pd.testing.assert_frame_equal(after.group_table, groups, atol=1e-4)
    assert not any(len(trace.x) for trace in drawn(after.curves()))
    after.reload()
    assert len(after.all) == len(runs)


def test_runs_of_other_code_are_told_apart_and_never_mixed(data: Dataset, runs: list[Run]) -> None:
    archive.write_archive(runs, data)
    file = archive.own_root() / "world" / archive.RUNS
    table = storage.read_parquet(file)
    table["config"] = [text.replace('"graph": 1', '"graph": 2') for text in table["config"]]
    table.to_parquet(file, index=False)
    shutil.rmtree(runs[2].path)
    table = Overview(data).table
    assert table["seeds"].tolist() == [1] * 5
    assert not any(label.endswith(")") for label in table["model"])
    old = archive.read_archive("world")
    view = Overview(data, [*runs[3:], *old])
    labels = view.table["model"].tolist()
    assert sum(label.endswith(" (2)") for label in labels) == 3
    assert {line.name for line in drawn(view.curves())} <= {*labels}
    assert sorted(view.group_table.columns[2:]) == sorted(labels)
    assert len(drawn(view.group_figure(most=20))) == len(labels)


def test_charts_show_what_the_runs_hold(data: Dataset, runs: list[Run]) -> None:
    view = Overview(data, runs)
    curves = drawn(view.curves("seconds"))
    assert sum(bool(line.showlegend) for line in curves) == len({line.name for line in curves}) == 4
    by_name = {(line.name, tuple(line.y)) for line in curves}
    history = runs[1].history
    assert any(list(y) == pytest.approx(history["valid_ndcg@20"].tolist()) for _, y in by_name)
    panel = drawn(view.sensitivity_figure())[0]
    assert list(panel.x) == [0.25, 0.5, 1.0]
    assert list(panel.customdata) == [1, 2, 1]
    best = next(iter(view.kept()))
    groups = view.group_table
    values = per_user_metric(view.kept()[best], "ndcg@20", "valid")
    assert np.average(groups[best], weights=groups["users"]) == pytest.approx(values.mean())
    assert list(drawn(view.group_figure())[0].y) == groups[best].tolist()


def test_an_unknown_metric_is_an_error(data: Dataset, runs: list[Run]) -> None:
    with pytest.raises(ConfigError, match=r"(?s)no metric named 'ndcg@3'.*ndcg@20"):
        Overview(data, runs, metric="ndcg@3")


def test_the_panel_filters_and_reloads(data: Dataset) -> None:
    panel = overview_panel(Overview(data)).panel
    assert panel.status.value.startswith("0 of 0 configurations")
    made("popularity")
    made("lightgcn")
    panel.reload.click()
    assert panel.status.value.startswith("2 of 2 configurations")
    assert "Popularity" in panel.table.value
    panel.text.value = "light"
    assert "Popularity" not in panel.table.value
    panel.metric.value = "recall@20"
    assert "recall@20" in panel.table.value
    panel.x.value = "seconds"
    assert panel.curves.layout.xaxis.title.text == "training, s"
    assert "no two of these runs" in panel.note.value


def test_labels_from_outside_show_as_text(data: Dataset, runs: list[Run]) -> None:
    changed = dataclasses.replace(runs[2])
    changed.__dict__["config"] = runs[2].config | {"profiles": HOSTILE, "seed": 7}
    view = Overview(data, [*runs, changed])
    panel = overview_panel(view).panel
    for html in (panel.table.value, *(str(chart.to_json()) for chart in (panel.board, panel.curves, panel.groups))):
        assert "<img" not in html
        assert "$x$" not in html or html == panel.table.value
    assert "&lt;img" in panel.table.value
