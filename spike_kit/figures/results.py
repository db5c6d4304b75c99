"""Bars of the main results."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from spike_kit.figures.style import (
    COLOURS,
    HATCHES,
    TWO_COLUMNS,
    figure_style,
    legend_columns,
    legend_height,
    plain,
)
from spike_kit.results.tables import metric_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.container import BarContainer
    from matplotlib.figure import Figure


def result_bars(frame: pd.DataFrame) -> Figure:
    """Draw grouped bars: one panel per metric, one group per cut-off, one bar per model.

    Parameters
    ----------
    frame
        As `results_frame` gives it; intervals become error bars, and the axis says what they are.
    """
    from matplotlib.figure import Figure

    models = frame["model"].unique().tolist()
    names = frame["metric"].str.split("@").str[0]
    with figure_style():
        labels = [plain(name) for name in models]
        figure = Figure(figsize=(TWO_COLUMNS, 2.0 + legend_height(labels, TWO_COLUMNS)))
        panels = figure.subplots(1, names.nunique(), squeeze=False)[0]
        bars = [_bars(panel, frame[names == name], models) for panel, name in zip(panels, names.unique(), strict=True)]
        figure.legend(
            [group[0] for group in bars[0]],
            labels,
            loc="outside upper center",
            ncols=legend_columns(labels, TWO_COLUMNS),
        )
        intervals = ", ".join(filter(None, frame["interval"].unique())) or "none"
        figure.supxlabel(f"cut-off (error bars: {intervals})", fontsize=7)
    return figure


def _bars(axes: Axes, frame: pd.DataFrame, models: list[str]) -> list[BarContainer]:
    metrics = frame["metric"].unique().tolist()
    places, width = np.arange(len(metrics)), 0.84 / len(models)
    drawn: list[BarContainer] = []
    for index, model in enumerate(models):
        own = frame[frame["model"] == model].set_index("metric").loc[metrics]
        bars = axes.bar(
            places + (index - (len(models) - 1) / 2) * width,
            own["mean"],
            width,
            yerr=np.vstack([own["mean"] - own["low"], own["high"] - own["mean"]]).clip(0),
            color=COLOURS[index % len(COLOURS)],
            hatch=HATCHES[index % len(HATCHES)],
            edgecolor="white",
            linewidth=0.4,
            error_kw={"elinewidth": 0.7, "capsize": 1.5},
        )
        drawn.append(bars)
    axes.set_xticks(places, [f"@{name.split('@')[1]}" for name in metrics])
    axes.set_ylabel(f"{metric_name(metrics[0].split('@')[0])} ({plain(frame['split'].iloc[0])})")
    return drawn
