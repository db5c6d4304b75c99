"""Interactive charts of profile quality: each function returns a plotly figure and shows nothing by itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pandas as pd

from spike_kit.base.errors import ConfigError, require, some
from spike_kit.evaluation.signal import REFERENCE
from spike_kit.figures.style import COLOURS
from spike_kit.views.safe import shown

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_BOX = {"lowerfence": 0.05, "q1": 0.25, "median": 0.5, "q3": 0.75, "upperfence": 0.95}
_DASHES = ("dash", "dot", "dashdot", "longdash")


def words_chart(measured: pd.DataFrame, limits: Mapping[str, int] | None = None) -> Figure:
    """Draw the words of profiles, one box per profile set and subject, and the limits as black lines.

    Parameters
    ----------
    measured
        From `spike_kit.profiles.quality.measure_profiles`.
    limits
        Most words of a profile, by subject.
    """
    objects = require("plotly.graph_objects", "lab")
    chart = objects.Figure()
    for colour, (name, part) in zip(_colours(measured), measured.groupby("profiles", sort=False), strict=True):
        words = part.groupby("subject", sort=False)["words"]
        marks = {name: words.quantile(share).tolist() for name, share in _BOX.items()}
        subjects = part["subject"].unique().tolist()
        chart.add_box(x=subjects, name=shown(name), marker_color=colour, **marks)
    limited = [subject for subject in measured["subject"].unique() if subject in (limits or {})]
    if limits and limited:
        chart.add_scatter(
            x=limited,
            y=[limits[subject] for subject in limited],
            name="limit",
            mode="markers",
            marker={"symbol": "line-ew", "size": 90, "color": "black", "line": {"width": 2, "color": "black"}},
        )
    return chart.update_layout(
        boxmode="group",
        xaxis_title="subject",
        yaxis_title="words (box: quartiles; whiskers: 5 % and 95 %)",
        yaxis_rangemode="tozero",
        legend_title="profiles",
        height=420,
    )


def faithfulness_chart(measured: pd.DataFrame) -> Figure:
    """Draw the mean faithfulness of each profile set and subject; hovering tells how many profiles have a named fact.

    Parameters
    ----------
    measured
        From `spike_kit.profiles.quality.measure_profiles`.
    """
    express = require("plotly.express", "lab")
    groups = measured.groupby(["subject", "profiles"], sort=False)["faithfulness"]
    table = groups.agg(faithfulness="mean", n="count").reset_index()
    chart = express.bar(
        table.assign(profiles=table["profiles"].map(shown)),
        x="subject",
        y="faithfulness",
        color="profiles",
        barmode="group",
        text_auto=".1%",
        hover_data={"n": True},
        color_discrete_sequence=COLOURS,
    )
    title = "named facts that stand in the prompt (mean share)"
    return chart.update_layout(yaxis_title=title, yaxis_range=[0, 1.05], yaxis_tickformat=".0%", height=420)


def signal_chart(table: pd.DataFrame, metric: str = "recall@20") -> Figure:
    """Draw how well profile vectors alone rank validation items: a bar per profile set and scorer, references as lines.

    Parameters
    ----------
    table
        From `spike_kit.evaluation.signal.signal_table`.
    metric
        One of its metrics.

    Raises
    ------
    ConfigError
        If the table has no such metric.
    """
    if metric not in table:
        known = [name for name in table.columns if "@" in name]
        raise ConfigError(f"the table has no metric {metric!r}", f"it has {some(known)}")
    express = require("plotly.express", "lab")
    is_reference = table["profiles"] == REFERENCE
    bars = table[~is_reference]
    chart = express.bar(
        bars.assign(profiles=bars["profiles"].map(shown)),
        x="profiles",
        y=metric,
        color="scorer",
        barmode="group",
        text_auto=".3f",
        hover_data={"users": True},
        color_discrete_sequence=COLOURS,
    )
    for dash, (_, line) in zip(_DASHES, table[is_reference].iterrows(), strict=False):
        label = f"{shown(line['scorer'])} {line[metric]:.3f}"
        chart.add_hline(y=line[metric], line_dash=dash, line_color="black", annotation_text=label)
    return chart.update_layout(
        xaxis_title="profile set",
        yaxis_title=f"{shown(metric)} on validation items",
        yaxis_rangemode="tozero",
        height=420,
    )


def _colours(measured: pd.DataFrame) -> list[str]:
    """One colour per profile set."""
    return [COLOURS[number % len(COLOURS)] for number in range(measured["profiles"].nunique())]
