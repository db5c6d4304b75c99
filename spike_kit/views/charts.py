"""Small interactive charts of the notebooks: each function returns a plotly figure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from spike_kit.base.errors import ConfigError, require, some
from spike_kit.data.dataset import Dataset
from spike_kit.evaluation.signal import REFERENCE
from spike_kit.experiments.run_folder import Run
from spike_kit.figures.style import COLOURS
from spike_kit.views.safe import shown
from spike_kit.views.widgets import DASHES

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def funnel_chart(data: Dataset) -> Figure:
    """Draw what every step of the build left of users, items, interactions and triples, as shares of the most."""
    express = require("plotly.express", "lab")
    frame = pd.DataFrame(data.manifest.funnel, columns=["step", "users", "items", "interactions", "triples"])
    counts = frame.set_index("step")
    shares = (counts / counts.max()).reset_index().melt("step", var_name="what", value_name="share left")
    shares["rows"] = counts.reset_index().melt("step")["value"]
    shares["step"] = shares["step"].map(shown)
    chart = express.line(shares, x="step", y="share left", color="what", markers=True, hover_data=["rows"])
    return chart.update_layout(yaxis_range=[0, 1.05], yaxis_tickformat=".0%", xaxis_title=None, height=420)


def loss_chart(run: Run) -> Figure:
    """Draw every term of the optimised loss over epochs."""
    express = require("plotly.express", "lab")
    known = ("epoch", "seconds", "loss")
    terms = [name for name in run.history.columns if name not in known and not name.startswith("valid_")]
    frame = run.history[["epoch", *terms]].melt("epoch", var_name="term", value_name="loss")
    return express.line(frame, x="epoch", y="loss", color="term", log_y=True).update_layout(height=380)


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
    for dash, (_, line) in zip(DASHES[1:], table[is_reference].iterrows(), strict=False):
        label = f"{shown(line['scorer'])} {line[metric]:.3f}"
        chart.add_hline(y=line[metric], line_dash=dash, line_color="black", annotation_text=label)
    return chart.update_layout(
        xaxis_title="profile set",
        yaxis_title=f"{shown(metric)} on validation items",
        yaxis_rangemode="tozero",
        height=420,
    )
