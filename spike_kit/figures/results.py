"""Bars of the main results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from spike_kit.experiments.run_folder import Run
from spike_kit.figures.style import (
    COLOURS,
    HATCHES,
    TWO_COLUMNS,
    figure_style,
    legend_columns,
    legend_height,
    metric_name,
    plain,
)
from spike_kit.results.frames import grouped_by_seed
from spike_kit.results.significance import bootstrap_interval, per_user_metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.container import BarContainer
    from matplotlib.figure import Figure

CUTOFFS = ("@10", "@20", "@40")
"""Cut-offs of the main results."""


def results_frame(
    runs: Sequence[Run], metrics: Sequence[str] = ("recall", "ndcg"), split: str = "test"
) -> pd.DataFrame:
    """Data of `result_bars`: the mean of every metric for every model.

    Returns
    -------
    DataFrame
        model, split, metric, seeds, mean, low, high, and what the interval is: mean -+ one standard deviation over
        seeds, or, where there is one seed, a 95 % bootstrap interval over users; ``low`` and ``high`` are the mean, and
        what they are is empty, where users' values of some metric are not known (an archive has NDCG@20 only).
    """
    rows, wanted = [], [f"{name}{cutoff}" for name in metrics for cutoff in CUTOFFS]
    for label, group in grouped_by_seed(runs).items():
        known = all(metric in group[0].per_user for metric in wanted)
        for metric in wanted:
            values = [run.metrics[split][metric] for run in group]
            mean = float(np.mean(values))
            if len(values) > 1:
                spread = float(np.std(values, ddof=1))
                low, high, what = mean - spread, mean + spread, "sd over seeds"
            elif known:
                low, high = bootstrap_interval(per_user_metric(group, metric, split).to_numpy())
                what = "95 % over users"
            else:
                low, high, what = mean, mean, ""
            row = {"model": label, "split": split, "metric": metric, "seeds": len(values)}
            rows.append(row | {"mean": mean, "low": low, "high": high, "interval": what})
    return pd.DataFrame(rows)


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
