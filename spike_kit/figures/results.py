"""Bars of the main results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from spike_kit.figures.style import COLOURS, HATCHES, TWO_COLUMNS, figure_style, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.container import BarContainer
    from matplotlib.figure import Figure


def result_bars(table: pd.DataFrame, metrics: Sequence[str] = ("recall", "ndcg"), split: str = "test") -> Figure:
    """Draw grouped bars: one panel per metric, one group per cut-off, one bar per model.

    Parameters
    ----------
    table
        As `spike_kit.evaluation.tables.results_table` gives it; standard deviations become error bars.
    metrics
        Metrics by name without the cut-off; all cut-offs in the table are drawn.
    split
        Name of the split, for the axis label.
    """
    from matplotlib.figure import Figure

    with figure_style():
        figure = Figure(figsize=(TWO_COLUMNS, 2.3))
        panels = figure.subplots(1, len(metrics), squeeze=False)[0]
        bars = [_bars(panel, table, metric, split) for panel, metric in zip(panels, metrics, strict=True)]
        labels = [plain(name) for name in table["model"]]
        figure.legend([group[0] for group in bars[0]], labels, loc="outside upper center", ncols=min(len(labels), 5))
    return figure


def _bars(axes: Axes, table: pd.DataFrame, metric: str, split: str) -> list[BarContainer]:
    columns = [name for name in table.columns if name.startswith(f"{metric}@") and not name.endswith(" sd")]
    places = np.arange(len(columns))
    width = 0.84 / len(table)
    drawn: list[BarContainer] = []
    for index, (_, row) in enumerate(table.iterrows()):
        spread = [row[f"{name} sd"] for name in columns]
        bars = axes.bar(
            places + (index - (len(table) - 1) / 2) * width,
            [row[name] for name in columns],
            width,
            yerr=None if np.isnan(spread).any() else spread,
            color=COLOURS[index % len(COLOURS)],
            hatch=HATCHES[index % len(HATCHES)],
            edgecolor="white",
            linewidth=0.4,
            error_kw={"elinewidth": 0.7, "capsize": 1.5},
        )
        drawn.append(bars)
    axes.set_xticks(places, [f"@{name.split('@')[1]}" for name in columns])
    shown = {"ndcg": "NDCG", "mrr": "MRR"}.get(metric, metric.replace("_", " ").capitalize())
    axes.set_ylabel(f"{shown} ({split})")
    return drawn
