"""One function per figure: each draws a table of `spike_kit.results` and returns a matplotlib figure."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from spike_kit.base.errors import require
from spike_kit.evaluation.groups import ITEM_GROUPS
from spike_kit.figures.style import (
    COLOURS,
    HATCHES,
    MANY_COLOURS,
    ONE_COLUMN,
    TWO_COLUMNS,
    blank_figure,
    figure_style,
    legend_above,
    line_look,
    plain,
)
from spike_kit.results.frames import WORD_SHARES
from spike_kit.results.tables import metric_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ERROR_BARS = {"elinewidth": 0.7, "capsize": 1.5}

_LABEL = 28
"""Letters of a line of an ablation's name."""

_FEW = 6
"""Models whose bars are still told apart in one column of a page."""

POINT_AREA = 2.5
"""Area of a point in points squared."""

OTHER, GREY = "other", "#BBBBBB"
"""Name and colour of what has no colour of its own."""


def result_bars(frame: pd.DataFrame) -> Figure:
    """Draw `results_frame`: a panel per metric, a group of bars per cut-off, a bar per model; the axis names the bars.

    What the error bars are stands under the figure.
    """
    names, cutoffs = frame["metric"].str.split("@").str[0], "@" + frame["metric"].str.split("@").str[1]
    with figure_style():
        figure = blank_figure(TWO_COLUMNS, 2.0, frame["model"])
        panels = figure.subplots(1, names.nunique(), squeeze=False)[0]
        bars: dict[str, Any] = {}
        for panel, name in zip(panels, names.unique(), strict=True):
            part = frame.assign(metric=name, cutoff=cutoffs)[names == name]
            bars = _grouped_bars(panel, part, "cutoff")
            panel.set_xticks(range(part["cutoff"].nunique()), part["cutoff"].unique())
        legend_above(figure, bars)
        intervals = ", ".join(filter(None, frame["interval"].unique())) or "none"
        figure.supxlabel(f"cut-off (error bars: {intervals})", fontsize=7)
    return figure


def sparsity_bars(frame: pd.DataFrame, value: str = "mean") -> Figure:
    """Draw `sparsity_frame`: bars of a ``value`` per range of train interactions and model."""
    with figure_style():
        figure = blank_figure(ONE_COLUMN if frame["model"].nunique() <= _FEW else TWO_COLUMNS, 1.8, frame["model"])
        axes = figure.subplots()
        legend_above(figure, _grouped_bars(axes, frame, "group", value))
        axes.axhline(0, color="black", linewidth=0.6)
        groups = frame.drop_duplicates("group")
        ticks = [f"{name}\n({users})" for name, users in zip(groups["group"], groups["users"], strict=True)]
        axes.set_xticks(range(len(ticks)), ticks)
        axes.set_xlabel("train interactions (users)")
    return figure


def task_bars(frame: pd.DataFrame) -> Figure:
    """Draw `tasks_frame`: bars of every text for each task."""
    frame = frame.sort_values("group", key=lambda tasks: tasks.map({"known": 0, "few interactions": 1}).fillna(2))
    with figure_style():
        figure = blank_figure(ONE_COLUMN, 1.8, frame["model"])
        axes = figure.subplots()
        legend_above(figure, _grouped_bars(axes, frame, "group"))
        axes.set_xticks(range(frame["group"].nunique()), frame["group"].unique())
    return figure


def worth_lines(frame: pd.DataFrame) -> Figure:
    """Draw `worth_frame`: a panel per rule of candidates, a line per text over groups of items.

    Bands and error bars are one standard deviation over data sets. A text keeps its colour in both panels.
    """
    titles = {"among": "candidates: items of the group", "all": "candidates: all items"}
    with figure_style():
        figure = blank_figure(TWO_COLUMNS, 2.0, frame["model"])
        panels, lines = figure.subplots(1, len(titles), sharex=True), {}
        groups = [name for name in ITEM_GROUPS if name in set(frame["group"])]
        texts = frame["model"].unique().tolist()
        for axes, (rule, title) in zip(panels, titles.items(), strict=True):
            for index, text in enumerate(texts):
                chosen = frame[(frame["candidates"] == rule) & (frame["model"] == text)]
                own, places = chosen.set_index("group").reindex(groups), np.arange(len(groups)) + 0.04 * index
                look = line_look(index)
                errors = {"yerr": _errors(own, "mean"), "markersize": 4, **_ERROR_BARS}
                lines[text] = axes.errorbar(places, own["mean"], **errors, **look)
                axes.fill_between(places, own["low"], own["high"], color=look["color"], alpha=0.12, linewidth=0)
            axes.set_title(title)
            axes.set_xticks(range(len(groups)), groups)
            axes.set_ylim(bottom=0)
        panels[0].set_ylabel(_measured(frame))
        figure.supxlabel("train interactions of the item", fontsize=8)
        legend_above(figure, lines)
    return figure


def _grouped_bars(axes: Axes, frame: pd.DataFrame, by: str, value: str = "mean") -> dict[str, Any]:
    """Draw value, low and high of all models side by side in each group (at 0, 1, ...); return the bars by model."""
    models, groups = frame["model"].unique().tolist(), frame[by].unique().tolist()
    width, drawn = 0.84 / len(models), {}
    for index, model in enumerate(models):
        own = frame[frame["model"] == model].set_index(by).reindex(groups)
        places = np.arange(len(groups)) + (index - (len(models) - 1) / 2) * width
        look = {"yerr": _errors(own, value), "error_kw": _ERROR_BARS, **bar_look(index)}
        drawn[model] = axes.bar(places, own[value], width, **look)
    axes.set_ylabel(_measured(frame, value))
    return drawn


def bar_look(index: int) -> dict[str, Any]:
    """Colour and hatch of the bars of one of several models."""
    look = {"facecolor": MANY_COLOURS[index % len(MANY_COLOURS)], "hatch": HATCHES[index % len(HATCHES)]}
    return {**look, "edgecolor": "white", "linewidth": 0.4}


def _errors(frame: pd.DataFrame, value: str) -> np.ndarray:
    """Lengths ``[2, n]`` of the error bars of a column down to ``low`` and up to ``high``."""
    return np.vstack([frame[value] - frame["low"], frame["high"] - frame[value]]).clip(0)


def _measured(frame: pd.DataFrame, value: str = "mean") -> str:
    """Label of an axis: the metric of a frame and its split."""
    first = frame.iloc[0]
    return f"{'Δ ' if value == 'difference' else ''}{metric_name(first['metric'])} ({plain(first['split'])})"


def ablation_bars(frame: pd.DataFrame) -> Figure:
    """Draw the differences of `ablation_frame` as horizontal bars with intervals and marks of significance."""
    places = np.arange(len(frame))[::-1]
    labels = [plain(textwrap.fill(f"{row.model} {row.mark}", _LABEL)) for row in frame.itertuples()]
    lines = max(label.count("\n") + 1 for label in labels)
    is_gain = frame["difference"] >= 0
    with figure_style():
        figure = blank_figure(ONE_COLUMN, 0.8 + max(0.24, 0.12 * lines) * len(frame))
        axes = figure.subplots()
        axes.barh(
            places,
            frame["difference"],
            0.62,
            xerr=_errors(frame, "difference"),
            color=np.where(is_gain, COLOURS[0], COLOURS[5]),
            hatch=["" if gain else "////" for gain in is_gain],
            edgecolor="white",
            linewidth=0.4,
            error_kw=_ERROR_BARS,
        )
        axes.axvline(0, color="black", linewidth=0.6)
        axes.locator_params(axis="x", nbins=3)
        axes.set_yticks(places, labels)
        axes.set_xlabel(_measured(frame, "difference"))
    return figure


def sensitivity_lines(frame: pd.DataFrame, columns: int = 4) -> Figure:
    """Draw one small panel per setting of `sensitivity_frame`; numbers stand at their place, names side by side."""
    groups = list(frame.groupby(["model", "setting"], sort=False))
    n_rows = -(-len(groups) // columns)
    with figure_style():
        figure = blank_figure(TWO_COLUMNS, 0.3 + 1.45 * n_rows)
        panels = figure.subplots(n_rows, min(columns, len(groups)), sharey=True, squeeze=False)
        for axes, ((model, setting), part) in zip(panels.flat, groups, strict=False):
            is_number = all(isinstance(value, int | float) and not isinstance(value, bool) for value in part["value"])
            x = part["value"].astype(float).to_numpy() if is_number else np.arange(len(part))
            axes.errorbar(x, part["mean"], part["sd"].fillna(0), color=COLOURS[0], marker="o", ms=3, lw=1, capsize=1.5)
            if not is_number:
                axes.set_xticks(x, [plain(str(value).replace("_", "\n")) for value in part["value"]])
                axes.margins(x=0.2)
            elif (x > 0).all() and x.max() / x.min() >= 50:
                axes.set_xscale("log")
            title = setting if len(set(frame["model"])) == 1 else f"{model}: {setting}"
            axes.set_title(plain(str(title).replace("_", " ")))
        for axes in panels.flat[len(groups) :]:
            axes.set_visible(False)
        figure.supylabel(_measured(frame), fontsize=8)
    return figure


def efficiency_points(frame: pd.DataFrame) -> Figure:
    """Draw quality over seconds of training, and over peak memory where it is known; one mark per model."""
    ticker = require("matplotlib.ticker", "figures")
    costs = {"seconds": "training, s", "peak_gib": "peak memory, GiB"}
    known = [name for name in costs if frame[name].notna().all()]
    marks: dict[str, Any] = {}
    with figure_style():
        figure = blank_figure(ONE_COLUMN if len(known) == 1 else TWO_COLUMNS * 0.75, 2.0, frame["model"])
        panels = figure.subplots(1, len(known), sharey=True, squeeze=False)[0]
        for axes, name in zip(panels, known, strict=True):
            for index, row in enumerate(frame.to_dict("records")):
                (marks[row["model"]],) = axes.plot(
                    row[name], row["quality"], ms=6, **line_look(index) | {"linestyle": ""}
                )
            if name == "seconds" and (frame[name] > 0).all():
                axes.set_xscale("log")
                axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
                axes.xaxis.set_major_formatter(ticker.FuncFormatter("{:g}".format))
                axes.xaxis.set_minor_formatter(ticker.NullFormatter())
            axes.margins(0.08)
            axes.set_xlabel(costs[name])
            axes.grid(linewidth=0.3, color="#CCCCCC")
        panels[0].set_ylabel(_measured(frame))
        legend_above(figure, marks)
    return figure


def curve_lines(frame: pd.DataFrame, x: str = "seconds") -> Figure:
    """Draw `curves_frame` over ``seconds`` of training or ``epoch``: a line per run; seeds of a model look alike."""
    models = frame["model"].unique().tolist()
    with figure_style():
        figure = blank_figure(ONE_COLUMN, 2.0, models)
        axes = figure.subplots()
        lines: dict[str, Any] = {}
        for (model, _), part in frame.groupby(["model", "seed"], sort=False):
            look: dict[str, Any] = line_look(models.index(model)) | {"marker": ""}
            (lines[str(model)],) = axes.plot(part[x], part["value"], linewidth=1.1, **look)
        axes.set_xlabel({"seconds": "training, s"}.get(x, x))
        axes.set_ylabel(f"{metric_name(frame['metric'].iloc[0])} (validation)")
        legend_above(figure, lines)
    return figure


def graph_statistics(frame: pd.DataFrame, most: int = 12) -> Figure:
    """Draw `graph_frame`: the share of nodes with at least a degree, and the triples of each relation.

    Relations beyond the ``most`` frequent ones share a bar.
    """
    degrees, relations = frame[frame["degree"].notna()], frame[frame["degree"].isna()]
    shown = dict(zip(relations["of"].head(most), relations["nodes"], strict=False))
    if len(relations) > most:
        shown[f"{len(relations) - most} others"] = relations["nodes"][most:].sum()
    with figure_style():
        figure = blank_figure(TWO_COLUMNS, 2.5, degrees["of"])
        (left, right), lines = figure.subplots(1, 2), {}
        for index, (name, part) in enumerate(degrees.groupby("of", sort=False)):
            look = line_look(index) | {"linestyle": "-", "linewidth": 0.9, "markersize": 2.5, "markevery": 0.08}
            (lines[str(name)],) = left.plot(part["degree"], part["share"], **look)
        left.set(xscale="log", yscale="log", xlabel="degree", ylabel="share with ≥ degree")
        legend_above(figure, lines)
        places = np.arange(len(shown))[::-1]
        bars = right.barh(places, list(shown.values()), 0.7, color=COLOURS[0])
        right.bar_label(bars, [f"{count:,}" for count in shown.values()], padding=2, fontsize=6.5)
        right.set_yticks(places, [plain(str(name)) for name in shown])
        right.margins(x=0.12)
        right.set_xlabel("triples")
    return figure


def profile_quality(frame: pd.DataFrame) -> Figure:
    """Draw `quality_frame`: words (box: quartiles and median, whiskers: 5 % and 95 %) and faithfulness of each set."""
    names, subjects = frame["profiles"].unique().tolist(), frame["subject"].unique().tolist()
    width = 0.8 / len(names)
    line, bars = {"color": "black", "linewidth": 0.6}, {}
    with figure_style():
        figure = blank_figure(TWO_COLUMNS * 0.8, 2.3, names)
        left, right = figure.subplots(1, 2)
        for row in frame.to_dict("records"):
            index = names.index(row["profiles"])
            place = subjects.index(row["subject"]) + (index - (len(names) - 1) / 2) * width
            quantiles = zip(("whislo", "q1", "med", "q3", "whishi"), WORD_SHARES, strict=True)
            left.bxp(
                [{key: row[name] for key, name in quantiles}],
                positions=[place],
                widths=width * 0.8,
                showfliers=False,
                patch_artist=True,
                manage_ticks=False,
                boxprops=bar_look(index) | {"edgecolor": "black"},
                medianprops={"color": "black"},
                whiskerprops=line,
                capprops=line,
            )
            bars[row["profiles"]] = right.bar(place, row["faithfulness"], width * 0.9, **bar_look(index))
        for axes in (left, right):
            axes.set_xticks(range(len(subjects)), subjects)
        left.set_ylabel("words of a profile")
        left.set_ylim(bottom=0)
        right.set_ylabel("named facts in the prompt")
        right.set_ylim(0, 1.02)
        legend_above(figure, bars)
    return figure


def node_maps(frame: pd.DataFrame) -> Figure:
    """Draw `map_frame`: a map per space, points coloured by kind."""
    panels = {str(title): part.reset_index(drop=True) for title, part in frame.groupby("panel", sort=False)}
    return embedding_maps(panels, next(iter(panels.values()))["kind"])


@dataclass(frozen=True)
class Colouring:
    """How every point of a map is coloured.

    Attributes
    ----------
    codes
        ``[n]`` numbers: the category (the last one is `OTHER`), or the value itself.
    names
        Names of the categories, as they came from outside; empty for numbers.
    """

    codes: np.ndarray
    names: tuple[str, ...]

    @classmethod
    def of(cls, column: pd.Series) -> Colouring:
        """Numbers as they are; of other values the most frequent get a colour each."""
        if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
            return cls(column.to_numpy(dtype=np.float64, na_value=np.nan), ())
        text = column.astype("str").where(column.notna(), OTHER)
        kept = text[text != OTHER].value_counts().index[: len(COLOURS) - 1].tolist()
        places = {value: number for number, value in enumerate(kept)}
        codes = np.array([places.get(value, len(kept)) for value in text], dtype=np.float64)
        return cls(codes, (*map(str, kept), OTHER))

    @property
    def colours(self) -> list[str]:
        """One colour per category."""
        return [*COLOURS[: len(self.names) - 1], GREY] if self.names else []

    @property
    def legend(self) -> dict[str, str]:
        """Categories that occur, each with its colour."""
        present = set(self.codes.tolist())
        return {
            name: colour
            for code, (name, colour) in enumerate(zip(self.names, self.colours, strict=True))
            if code in present
        }


def embedding_maps(
    panels: Mapping[str, pd.DataFrame],
    column: pd.Series,
    rings: Mapping[int, str] | None = None,
    title: str | None = None,
) -> Figure:
    """Draw one scatter per embedding space, points coloured by a column; points are rasterised, text is not.

    Parameters
    ----------
    panels
        Title to coordinates (columns x and y); the rows of all panels are the same things in the same order.
    column
        Value of every row: numbers on a scale, or groups, of which the largest get a colour of their own.
    rings
        Rows with a ring, and the name beside it (may be empty).
    title
        Title of the legend.
    """
    colouring, place = Colouring.of(column), pd.Index(rings or {})
    look: dict[str, Any] = {"c": colouring.codes, "cmap": "cividis"}
    if colouring.names:
        look = {"c": np.array(colouring.colours)[colouring.codes.astype(int)]}
    with figure_style():
        figure = blank_figure(TWO_COLUMNS, 0.5 + TWO_COLUMNS / max(len(panels), 2.6))
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for panel, (name, points) in zip(axes, panels.items(), strict=True):
            panel.scatter(points["x"], points["y"], s=POINT_AREA, linewidths=0, alpha=0.75, rasterized=True, **look)
            ringed = points.iloc[place]
            panel.scatter(ringed["x"], ringed["y"], s=30, facecolors="none", edgecolors="black", linewidths=0.8)
            for (x, y), text in zip(ringed[["x", "y"]].to_numpy(), (rings or {}).values(), strict=True):
                panel.annotate(plain(text), (x, y), xytext=(0, 4), textcoords="offset points", ha="center", fontsize=6)
            panel.set_title(plain(name))
            panel.set_axis_off()
        if colouring.names:
            handles = [axes[0].scatter([], [], c=colour, s=4 * POINT_AREA) for colour in colouring.legend.values()]
            labels = [plain(name) for name in colouring.legend]
            figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 4), title=title)
        else:
            figure.colorbar(axes[0].collections[0], ax=axes, location="bottom", shrink=0.5, aspect=40, label=title)
    return figure
