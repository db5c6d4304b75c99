"""Interactive charts: each function returns a plotly figure and shows nothing by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from spike_kit.base.errors import require
from spike_kit.data.dataset import Dataset
from spike_kit.experiments.run_folder import Run
from spike_kit.results.tables import run_label
from spike_kit.views.safe import shown

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
PATTERNS = ("", "/", ".", "x", "\\", "+", "-", "|")
"""Second codings of lines and bars, for those who see no colours."""


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


def degree_chart(data: Dataset) -> Figure:
    """Draw how many train interactions users and items have, from the most to the fewest, on logarithmic axes."""
    train = data.split("train")
    return _ranked({name: train[name].value_counts() for name in ("user", "item")}, "train interactions")


def entity_degree_chart(data: Dataset) -> Figure:
    """Draw how many triples items and other entities have, from the most to the fewest, on logarithmic axes."""
    ends = pd.concat([data.triples["head"], data.triples["tail"]])
    is_item = ends < len(data.items)
    return _ranked({"item": ends[is_item].value_counts(), "other entity": ends[~is_item].value_counts()}, "triples")


def _ranked(degrees: dict[str, pd.Series], what: str) -> Figure:
    """Draw degrees over their rank, one line per kind of node."""
    express = require("plotly.express", "lab")
    parts = []
    for name, counts in degrees.items():
        degree = counts.sort_values(ascending=False).reset_index(drop=True)
        parts.append(pd.DataFrame({"rank": degree.index + 1, what: degree, "of": name}))
    chart = express.line(pd.concat(parts), x="rank", y=what, color="of", log_x=True, log_y=True)
    return chart.update_layout(height=380)


def learning_curves(finished: Sequence[Run], metric: str = "ndcg@20") -> Figure:
    """Draw a validation metric over seconds of training, one line per run."""
    express = require("plotly.express", "lab")
    parts = []
    for run in finished:
        history = run.history
        if f"valid_{metric}" not in history:
            continue
        rows = history.dropna(subset=[f"valid_{metric}"])[["epoch", "seconds", f"valid_{metric}"]]
        parts.append(rows.assign(run=shown(f"{run_label(run)} s{run.config['seed']}")))
    frame = pd.concat(parts) if parts else pd.DataFrame(columns=["epoch", "seconds", f"valid_{metric}", "run"])
    chart = express.line(frame, x="seconds", y=f"valid_{metric}", color="run", hover_data=["epoch"])
    return chart.update_layout(height=420)


def loss_chart(run: Run) -> Figure:
    """Draw every term of the optimised loss over epochs."""
    express = require("plotly.express", "lab")
    known = ("epoch", "seconds", "loss")
    terms = [name for name in run.history.columns if name not in known and not name.startswith("valid_")]
    frame = run.history[["epoch", *terms]].melt("epoch", var_name="term", value_name="loss")
    return express.line(frame, x="epoch", y="loss", color="term", log_y=True).update_layout(height=380)
