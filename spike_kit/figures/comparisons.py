"""Figures that compare runs: ablation, hyper-parameters, sparsity groups, efficiency, learning curves."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from spike_kit.figures.style import (
    COLOURS,
    DASHES,
    HATCHES,
    MARKERS,
    ONE_COLUMN,
    TWO_COLUMNS,
    figure_style,
    legend_columns,
    legend_height,
    plain,
)
from spike_kit.results.tables import metric_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LABEL = 28
"""Letters of a line of an ablation's name."""


def ablation_bars(frame: pd.DataFrame) -> Figure:
    """Draw the differences of `ablation_frame` as horizontal bars with intervals and marks of significance."""
    from matplotlib.figure import Figure

    places = np.arange(len(frame))[::-1]
    labels = [plain(textwrap.fill(f"{row.model} {row.mark}", _LABEL)) for row in frame.itertuples()]
    lines = max(label.count("\n") + 1 for label in labels)
    with figure_style():
        figure = Figure(figsize=(ONE_COLUMN, 0.8 + max(0.24, 0.12 * lines) * len(frame)))
        axes = figure.subplots()
        errors = np.vstack([frame["difference"] - frame["low"], frame["high"] - frame["difference"]]).clip(0)
        is_gain = frame["difference"] >= 0
        axes.barh(
            places,
            frame["difference"],
            0.62,
            xerr=errors,
            color=np.where(is_gain, COLOURS[0], COLOURS[5]),
            hatch=["" if gain else "////" for gain in is_gain],
            edgecolor="white",
            linewidth=0.4,
            error_kw={"elinewidth": 0.7, "capsize": 1.5},
        )
        axes.axvline(0, color="black", linewidth=0.6)
        axes.locator_params(axis="x", nbins=3)
        axes.set_yticks(places, labels)
        first = frame.iloc[0]
        axes.set_xlabel(f"Δ {metric_name(first['metric'])} ({plain(first['split'])})")
    return figure


def sensitivity_lines(frame: pd.DataFrame, columns: int = 4) -> Figure:
    """Draw one small panel per setting of `sensitivity_frame`; numbers stand at their place, names side by side."""
    from matplotlib.figure import Figure

    groups = list(frame.groupby(["model", "setting"], sort=False))
    n_rows = -(-len(groups) // columns)
    with figure_style():
        figure = Figure(figsize=(TWO_COLUMNS, 0.3 + 1.45 * n_rows))
        panels = figure.subplots(n_rows, min(columns, len(groups)), sharey=True, squeeze=False)
        for axes, ((model, setting), part) in zip(panels.flat, groups, strict=False):
            is_number = all(isinstance(value, int | float) and not isinstance(value, bool) for value in part["value"])
            x = part["value"].astype(float).to_numpy() if is_number else np.arange(len(part))
            axes.errorbar(x, part["mean"], part["sd"].fillna(0), color=COLOURS[0], marker="o", ms=3, lw=1, capsize=1.5)
            if not is_number:
                axes.set_xticks(x, [plain(str(value)) for value in part["value"]])
                axes.margins(x=0.2)
            elif (x > 0).all() and x.max() / x.min() >= 50:
                axes.set_xscale("log")
            title = setting if len(set(frame["model"])) == 1 else f"{model}: {setting}"
            axes.set_title(plain(str(title).replace("_", " ")))
        for axes in panels.flat[len(groups) :]:
            axes.set_visible(False)
        first = frame.iloc[0]
        figure.supylabel(f"{metric_name(first['metric'])} ({plain(first['split'])})", fontsize=8)
    return figure


def sparsity_bars(frame: pd.DataFrame) -> Figure:
    """Draw grouped bars of `sparsity_frame`: one group per range of train interactions, one bar per model."""
    from matplotlib.figure import Figure

    models, groups = frame["model"].unique().tolist(), frame["group"].unique().tolist()
    places, width = np.arange(len(groups)), 0.84 / len(models)
    labels, inches = [plain(model) for model in models], ONE_COLUMN if len(models) <= _FEW else TWO_COLUMNS
    with figure_style():
        figure = Figure(figsize=(inches, 1.8 + legend_height(labels, inches)))
        axes = figure.subplots()
        for index, model in enumerate(models):
            own = frame[frame["model"] == model].set_index("group").reindex(groups)
            axes.bar(
                places + (index - (len(models) - 1) / 2) * width,
                own["mean"],
                width,
                yerr=np.vstack([own["mean"] - own["low"], own["high"] - own["mean"]]).clip(0),
                label=labels[index],
                color=COLOURS[index % len(COLOURS)],
                hatch=HATCHES[index % len(HATCHES)],
                edgecolor="white",
                linewidth=0.4,
                error_kw={"elinewidth": 0.6, "capsize": 1.2},
            )
        counts = frame.drop_duplicates("group").set_index("group")["users"]
        axes.set_xticks(places, [f"{name}\n({counts[name]})" for name in groups])
        axes.set_xlabel("train interactions (users)")
        axes.set_ylabel(f"{metric_name(frame['metric'].iloc[0])} ({plain(frame['split'].iloc[0])})")
        figure.legend(loc="outside upper center", ncols=legend_columns(labels, inches), handlelength=1.4)
    return figure


_FEW = 6
"""Models whose bars are still told apart in one column of a page."""


def efficiency_points(frame: pd.DataFrame) -> Figure:
    """Draw quality over seconds of training, and over peak memory where it is known; one mark per model."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    costs = {"seconds": "training, s", "peak_gib": "peak memory, GiB"}
    known = [name for name in costs if frame[name].notna().all()]
    with figure_style():
        inches = ONE_COLUMN if len(known) == 1 else TWO_COLUMNS * 0.75
        figure = Figure(figsize=(inches, 2.0 + legend_height([plain(str(name)) for name in frame["model"]], inches)))
        panels = figure.subplots(1, len(known), sharey=True, squeeze=False)[0]
        for axes, name in zip(panels, known, strict=True):
            for index, row in enumerate(frame.itertuples()):
                colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
                axes.plot(getattr(row, name), row.quality, marker, color=colour, ms=6, label=plain(str(row.model)))
            if name == "seconds" and (frame[name] > 0).all():
                axes.set_xscale("log")
                axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axes.xaxis.set_major_formatter(FuncFormatter(_number))
                axes.xaxis.set_minor_formatter(NullFormatter())
            axes.margins(0.08)
            axes.set_xlabel(costs[name])
            axes.grid(linewidth=0.3, color="#CCCCCC")
        panels[0].set_ylabel(f"{metric_name(frame['metric'].iloc[0])} ({plain(frame['split'].iloc[0])})")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=legend_columns(labels, inches))
    return figure


def _number(value: float, _: int) -> str:
    return f"{value:g}"


def curve_lines(frame: pd.DataFrame, x: str = "seconds") -> Figure:
    """Draw the validation metric over ``seconds`` of training or ``epoch``, a line per run; seeds look alike."""
    from matplotlib.figure import Figure

    models = frame["model"].unique().tolist()
    with figure_style():
        figure = Figure(figsize=(ONE_COLUMN, 2.0 + legend_height([plain(str(name)) for name in models], ONE_COLUMN)))
        axes = figure.subplots()
        for (model, _), part in frame.groupby(["model", "seed"], sort=False):
            index = models.index(model)
            style = {"color": COLOURS[index % len(COLOURS)], "linestyle": DASHES[index % len(DASHES)]}
            label = plain(str(model)) if model not in axes.get_legend_handles_labels()[1] else "_seed"
            axes.plot(part[x], part["value"], linewidth=1.1, label=label, **style)
        axes.set_xlabel({"seconds": "training, s"}.get(x, x))
        axes.set_ylabel(f"{metric_name(frame['metric'].iloc[0])} (validation)")
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=legend_columns(labels, ONE_COLUMN))
    return figure
