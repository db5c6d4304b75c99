from __future__ import annotations

import dataclasses
import shutil
from typing import Any

import numpy as np
import pandas as pd
import pytest

from spike_kit import views
from spike_kit.base import storage
from spike_kit.base.errors import ConfigError, DataError
from spike_kit.data.dataset import Dataset
from spike_kit.experiments import archive
from spike_kit.experiments.run_folder import Run
from spike_kit.views.overview import Overview
from tests.views.conftest import HOSTILE, safe


def test_the_leaderboard_is_sorted_and_averages_seeds(data: Dataset, runs: list[Run]) -> None:
    view = Overview(data)
    table = view.table
    assert table["rank"].tolist() == [1, 2, 3, 4, 5, 6]
    assert table["ndcg@20"].is_monotonic_decreasing
    twice = table[(table["seeds"] == 2) & ~table["model"].str.contains("off")].iloc[0]
    values = [one.metrics["valid"]["ndcg@20"] for one in runs[2:4]]
    assert twice["ndcg@20"] == pytest.approx(np.mean(values))
    assert twice["sd"] == pytest.approx(np.std(values, ddof=1))
    assert twice["epochs"] == 2
    assert twice["seconds"] > 0
    assert set(table["data"]) == {"present"}
    assert view.summary == "6 of 6 configurations (8 of 8 runs) of world, by ndcg@20 on valid"


def test_filters_combine(data: Dataset, runs: list[Run]) -> None:
    view = Overview(data, runs)
    view.models = ("spike",)
    assert len(view.table) == 4
    view.text = "RHO=1"
    assert [one.config["model_settings"]["rho"] for one in view.runs] == [1.0]
    view.text = ""
    view.at_least = 2
    assert sorted(one.config["seed"] for one in view.runs) == [0, 0, 1, 1]
    view.models, view.at_least, view.presets = (), 1, ("released_code",)
    assert view.runs == []
    assert view.table.empty
    for draw, missing in ((view.curves, "no run"), (view.sensitivity, "no two of these runs"), (view.groups, "no run")):
        with pytest.raises(DataError, match=missing):
            draw()


def test_runs_on_older_data_are_kept_apart(data: Dataset, runs: list[Run]) -> None:
    older = dataclasses.replace(runs[0])
    older.__dict__["config"] = runs[0].config | {"data_sha256": "another"}
    view = Overview(data, [*runs, older])
    assert len(view.table) == 6
    view.older = True
    assert view.table["data"].tolist().count("older") == 1


def test_runs_of_the_archive_are_shown_where_their_folders_are_gone(data: Dataset, runs: list[Run]) -> None:
    before = Overview(data).table
    archive.write_archive(runs, data)
    assert len(Overview(data).all) == len(runs)
    shutil.rmtree(runs[0].path.parent)
    after = Overview(data)
    pd.testing.assert_frame_equal(after.table, before)
    assert len(after.groups().axes[0].containers) == 2 * len(before)
    with pytest.raises(DataError, match="learning curve"):
        after.curves()
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
    assert sorted(table["seeds"]) == [1, 1, 1, 1, 1, 2]
    assert not any(label.endswith(")") for label in table["model"])
    view = Overview(data, [*runs[3:], *archive.read_archive("world")])
    labels = view.table["model"].tolist()
    assert sum(label.endswith(" (2)") for label in labels) == 4
    drawn = [text.get_text() for text in view.groups().legends[0].get_texts()]
    assert drawn == labels[:8]
    assert {text.get_text() for text in view.curves().legends[0].get_texts()} <= {*labels}


def test_figures_show_what_the_runs_hold(data: Dataset, runs: list[Run]) -> None:
    view = Overview(data, runs)
    axes: Any = view.curves("seconds").axes[0]
    epochs: Any = view.curves().axes[0]
    assert len(axes.lines) == 7
    assert axes.get_xlabel() == "training, s"
    history = runs[1].history
    assert any(list(line.get_ydata()) == pytest.approx(history["valid_ndcg@20"].tolist()) for line in axes.lines)
    first = next(line for line in axes.lines if len(line.get_xdata()))
    assert first.get_xdata()[0] < 1 < epochs.lines[0].get_xdata()[1]
    panels: list[Any] = list(view.sensitivity().axes)
    (panel,) = (panel for panel in panels if panel.get_title() == "rho")
    assert list(panel.lines[0].get_xdata()) == [0.25, 0.5, 1.0]
    view.models = ("popularity",)
    patches: list[Any] = list(view.groups().axes[0].patches)
    bars = [bar.get_height() for bar in patches]
    users = runs[0].per_user.query("split == 'valid'")["ndcg@20"]
    assert min(bars) <= users.mean() <= max(bars)


def test_an_unknown_metric_is_an_error(data: Dataset, runs: list[Run]) -> None:
    with pytest.raises(ConfigError, match=r"(?s)no metric named 'ndcg@3'.*ndcg@20"):
        Overview(data, runs, metric="ndcg@3")


def test_the_panel_filters_and_reloads(data: Dataset, runs: list[Run]) -> None:
    aside = data.path.parent / "aside"
    shutil.move(runs[0].path.parent, aside)
    panel = views.leaderboard(data).panel().parts
    assert panel["status"].value.startswith("0 of 0 configurations")
    assert "no run here has a learning curve" in panel["note"].value
    shutil.move(aside, runs[0].path.parent)
    panel["reload"].click()
    assert panel["status"].value.startswith("6 of 6 configurations")
    assert panel["models"].options == ("lightgcn", "popularity", "spike")
    assert "Popularity" in panel["leaderboard"].value
    panel["text"].value = "light"
    assert "Popularity" not in panel["leaderboard"].value
    panel["metric"].value = "recall@20"
    assert "recall@20" in panel["leaderboard"].value
    before = bytes(panel["curves"].value)
    assert before.startswith(b"\x89PNG")
    panel["metric"].value = "ndcg@20"
    panel["x"].value = "seconds"
    assert bytes(panel["curves"].value) != before
    assert panel["note"].value == ""


def test_the_panel_draws_the_open_tab(data: Dataset, runs: list[Run]) -> None:
    view = Overview(data, runs[:1])
    box = view.panel()
    assert bytes(box.parts["groups"].value) == b""
    box.children[-1].selected_index = 2
    assert bytes(box.parts["groups"].value).startswith(b"\x89PNG")
    box.children[-1].selected_index = 1
    assert "no two of these runs" in box.parts["note"].value
    assert box.parts["sensitivity"].layout.display == "none"


def test_labels_from_outside_show_as_text(data: Dataset, runs: list[Run]) -> None:
    changed = dataclasses.replace(runs[2])
    changed.__dict__["config"] = runs[2].config | {"profiles": HOSTILE, "seed": 7}
    view = Overview(data, [*runs, changed])
    panel = view.panel().parts
    safe(panel["leaderboard"].value, panel["status"].value)
    assert "&lt;img" in panel["leaderboard"].value
    assert any(r"\$x\$" in text.get_text() for text in view.curves().legends[0].get_texts())
