"""Small interactive charts of the notebooks: each function returns a plotly figure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from spike_kit.base.errors import require
from spike_kit.data.dataset import Dataset
from spike_kit.experiments.run_folder import Run
from spike_kit.views.safe import shown

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
