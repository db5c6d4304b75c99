from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from spike_kit.base.errors import ConfigError
from spike_kit.data.dataset import Dataset
from spike_kit.evaluation.signal import signal_table
from spike_kit.profiles.quality import measure_profiles
from spike_kit.views.quality import faithfulness_chart, signal_chart, words_chart
from tests.world import World

HOSTILE = "<img src=x onerror=alert(1)>"


def traces(chart: Any) -> Any:
    """Bars, boxes and points of a figure; plotly types them too loosely for a checker."""
    return chart.data


@pytest.fixture
def measured(data: Dataset) -> pd.DataFrame:
    template = data.profiles()
    prompts = dict(zip(zip(template["subject"], template["id"], strict=True), template["text"], strict=True))
    both = {"template": template, HOSTILE: template.assign(text="by Nobody Known")}
    return measure_profiles(both, dict.fromkeys(both, prompts))


def test_a_box_of_words_per_profile_set_and_subject_with_the_limits(measured: pd.DataFrame) -> None:
    template, other, limit = traces(words_chart(measured, {"item": 40, "user": 60}))
    assert list(template["x"]) == ["item", "auxiliary", "user"]
    own = measured[(measured["profiles"] == "template") & (measured["subject"] == "user")]
    assert template["median"][2] == own["words"].median()
    assert list(other["median"]) == [3, 3, 3]
    assert (list(limit["x"]), list(limit["y"])) == (["item", "user"], [40, 60])
    assert len(traces(words_chart(measured))) == 2


def test_bars_of_faithfulness_with_the_number_of_profiles(measured: pd.DataFrame) -> None:
    template, other = traces(faithfulness_chart(measured))
    assert list(template["y"]) == [1, 1, 1]
    assert list(other["y"]) == [0, 0, 0]
    counts = measured[measured["profiles"] == "template"]["subject"].value_counts()
    assert template["customdata"][:, 0].tolist() == counts[["item", "auxiliary", "user"]].tolist()


def test_bars_of_the_signal_and_lines_of_the_references(data: Dataset, world: World) -> None:
    table = signal_table(data, {HOSTILE: world.vectors})
    chart: Any = signal_chart(table)
    assert [list(bar["y"]) for bar in chart.data] == [[value] for value in table["recall@20"][:2]]
    assert [line["y0"] for line in chart.layout.shapes] == table["recall@20"][2:].tolist()
    notes = [note["text"] for note in chart.layout.annotations]
    assert [note.split()[0] for note in notes] == ["popularity", "random"]
    with pytest.raises(ConfigError, match=r"(?s)no metric 'recall@3'.*recall@20"):
        signal_chart(table, "recall@3")


def test_names_from_outside_are_escaped_and_axes_have_titles(
    measured: pd.DataFrame, data: Dataset, world: World
) -> None:
    signal = signal_table(data, {HOSTILE: world.vectors})
    charts: list[Any] = [words_chart(measured, {"item": 4}), faithfulness_chart(measured), signal_chart(signal)]
    for chart in charts:
        text = str(chart.to_dict())
        assert "&lt;img" in text
        assert "<img" not in text
        assert chart.layout.xaxis.title.text
        assert chart.layout.yaxis.title.text
