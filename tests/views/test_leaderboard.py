import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from spike_kit import views
from spike_kit.base import storage
from spike_kit.base.errors import ConfigError, DataError
from spike_kit.data.dataset import Dataset
from spike_kit.experiments import archive
from spike_kit.experiments.run import Run
from spike_kit.views.overview import Overview
from tests.conftest import several
from tests.views.conftest import HOSTILE, harmless

Runs = dict[str, list[Run]]


@pytest.fixture(autouse=True)
def own_archive(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "ROOT", home / "study")


def with_config(run: Run, **values: Any) -> Run:
    """The run, as if it had been made otherwise."""
    other = dataclasses.replace(run)
    other.__dict__["config"] = run.config | values
    return other


def test_the_leaderboard_is_sorted_and_averages_seeds(data: Dataset, runs: Runs) -> None:
    view = Overview(data)
    table = view.table
    assert table["rank"].tolist() == list(range(1, len(runs) + 1))
    assert table["ndcg@20"].is_monotonic_decreasing
    row = table[table["model"] == "SPiKE epochs=2, eval_every=1"].iloc[0]
    values = [one.metrics["valid"]["ndcg@20"] for one in runs["spike"]]
    assert (row["ndcg@20"], row["sd"]) == (pytest.approx(np.mean(values)), pytest.approx(np.std(values, ddof=1)))
    assert row["seconds"] > 0
    assert set(table["data"]) == {"present"}
    assert view.summary == "7 of 7 configurations (11 of 11 runs) of world, by ndcg@20 on valid"
    with pytest.raises(ConfigError, match=r"(?s)no metric named 'ndcg@3'.*ndcg@20"):
        Overview(data, several(runs), metric="ndcg@3")


def test_filters_combine(data: Dataset, runs: Runs) -> None:
    older = with_config(runs["popularity"][0], data_sha256="another")
    view = Overview(data, [*several(runs), older])
    assert len(view.table) == 7
    view.older = True
    assert view.table["data"].tolist().count("older") == 1
    view.text = "SPiKE"
    assert len(view.table) == 4
    view.text = "RHO=1"
    assert view.table["seeds"].tolist() == [1]
    view.text = "recommended spike"
    assert len(view.table) == 4
    view.text = "released"
    assert view.table.empty
    for draw, missing in ((view.curves, "no run"), (view.sensitivity, "no two of these runs"), (view.groups, "no run")):
        with pytest.raises(DataError, match=missing):
            draw()


def test_runs_of_the_archive_are_shown_where_their_folders_are_gone(data: Dataset, runs: Runs) -> None:
    before = Overview(data).table
    archive.write_archive(several(runs), data)
    assert len(Overview(data).all) == 11
    shutil.rmtree(runs["spike"][0].path.parent)
    pd.testing.assert_frame_equal(Overview(data).table, before)


def test_runs_of_other_code_are_never_mixed_with_those_of_this(data: Dataset, runs: Runs) -> None:
    archive.write_archive(several(runs), data)
    file = archive.own_root() / "world" / archive.RUNS
    table = storage.read_parquet(file)
    table["config"] = [text.replace('"graph": 1', '"graph": 2') for text in table["config"]]
    table.to_parquet(file, index=False)
    shutil.rmtree(runs["spike"][0].path)
    table = Overview(data).table
    assert sorted(table["seeds"]) == [1, 1, 1, 1, 2, 2, 2]
    assert not any(label.endswith(")") for label in table["model"])


def test_figures_show_what_the_runs_hold(data: Dataset, runs: Runs) -> None:
    view = Overview(data, several(runs))
    axes: Any = view.curves("seconds").axes[0]
    epochs: Any = view.curves().axes[0]
    assert len(axes.lines) == 10
    assert axes.get_xlabel() == "training, s"
    history = runs["spike"][0].history
    assert any(list(line.get_ydata()) == pytest.approx(history["valid_ndcg@20"].tolist()) for line in axes.lines)
    assert axes.lines[0].get_xdata()[0] < 1 <= epochs.lines[0].get_xdata()[0]
    (panel,) = (panel for panel in view.sensitivity().axes if panel.get_title() == "rho")
    lines: list[Any] = list(panel.lines)
    assert list(lines[0].get_xdata()) == [0.25, 0.5, 1.0]


def test_the_panel_filters_and_reloads(data: Dataset, runs: Runs) -> None:
    aside = data.path.parent / "aside"
    shutil.move(runs["spike"][0].path.parent, aside)
    box = views.leaderboard(data).panel()
    panel = box.parts
    assert panel["status"].value.startswith("0 of 0 configurations")
    assert "no run here has a learning curve" in panel["curves-note"].value
    shutil.move(aside, runs["spike"][0].path.parent)
    panel["reload"].click()
    assert panel["status"].value.startswith("7 of 7 configurations")
    assert panel["curves-note"].value == ""
    assert "Popularity" in panel["leaderboard"].value
    panel["text"].value = "light"
    assert "Popularity" not in panel["leaderboard"].value
    panel["metric"].value = "recall@20"
    assert "recall@20" in panel["leaderboard"].value
    assert bytes(panel["curves"].value).startswith(b"\x89PNG")
    assert bytes(panel["groups"].value) == b""
    box.children[-1].selected_index = 2
    assert bytes(panel["groups"].value).startswith(b"\x89PNG")
    box.children[-1].selected_index = 1
    assert "no two of these runs" in panel["sensitivity-note"].value
    assert panel["sensitivity"].layout.display == "none"


def test_labels_from_outside_show_as_text(data: Dataset, runs: Runs) -> None:
    view = Overview(data, [with_config(runs["spike"][0], profiles=HOSTILE)])
    harmless(view, view.curves(), view.groups())
