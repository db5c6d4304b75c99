"""One function per figure: each draws a table of `spike_kit.results` and returns a matplotlib figure."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from spike_kit.base.errors import require
from spike_kit.evaluation.groups import ITEM_GROUPS
from spike_kit.experiments.ablation import PAPER_ROWS
from spike_kit.figures.dots import GRID, Rows, group_dots, measured, row_dots
from spike_kit.figures.names import is_ours, name_ends, name_points, short_names, weight
from spike_kit.figures.style import (
    COLOURS,
    HATCHES,
    MANY_COLOURS,
    ONE_COLUMN,
    TWO_COLUMNS,
    blank_figure,
    dot_look,
    figure_style,
    legend_above,
    line_look,
    plain,
)
from spike_kit.results.frames import WORD_SHARES
from spike_kit.results.tables import metric_name
from spike_kit.training.checkpoint import MONITOR

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NAME, _LABEL = 20, 28
"""Letters of a line of a model's name, and of an ablation's."""

_FEW = 6
"""Models whose lines are still told apart in one column of a page."""

POINT_AREA = 2.5
"""Area of a point in points squared."""

OTHER, GREY = "other", "#BBBBBB"
"""Name and colour of what has no colour of its own."""


def result_dots(frame: pd.DataFrame) -> Figure:
    """Draw `results_frame`: a row per model, the best NDCG@20 on top, with a dot and its interval.

    One data set has a panel of Recall@20 and one of NDCG@20, several have one of NDCG@20 each. SPiKE is filled and
    bold. A mean below half of the best is a number at the edge. What the intervals are stands under the figure.
    """
    sets = {str(name): part for name, part in frame.groupby("dataset", sort=False)}
    ranked = {
        name: part[part["metric"] == MONITOR].sort_values("mean", ascending=False, kind="stable")
        for name, part in sets.items()
    }
    metrics, n_rows = ("recall@20", MONITOR) if len(sets) == 1 else (MONITOR,), -(-len(sets) // 2)
    rows = {name: Rows.of(short_names(part["model"]).values(), _NAME) for name, part in ranked.items()}
    with figure_style():
        height = 0.15 + n_rows * (0.5 + 0.12 * (len(sets) > 1) + max(-row.bottom for row in rows.values()))
        figure = blank_figure(ONE_COLUMN if len(sets) == 1 else TWO_COLUMNS, height)
        panels = figure.subplots(n_rows, 2, sharey=len(sets) == 1, squeeze=False).ravel()
        for axes, (name, metric) in zip(panels, itertools.product(sets, metrics), strict=False):
            part = sets[name][sets[name]["metric"] == metric].set_index("model").loc[ranked[name]["model"]]
            is_weak = (part["mean"] < part["mean"].max() / 2).to_numpy()
            row_dots(axes, part, "mean", rows[name], part.index.map(is_ours).to_numpy(), is_weak)
            for label in axes.get_yticklabels():
                label.set_fontweight(weight(label.get_text()))
            axes.locator_params(axis="x", nbins=3 if len(sets) == 1 else 5)
            axes.grid(axis="y", **GRID)
            axes.set_title(plain(name) if len(sets) > 1 else "")
        for axes in panels[len(sets) * len(metrics) :]:
            axes.set_visible(False)
        intervals = ", ".join(filter(None, frame["interval"].unique())) or "none"
        figure.supxlabel(f"intervals: {intervals}", fontsize=7)
    return figure


def sparsity_slopes(frame: pd.DataFrame, value: str = "mean") -> Figure:
    """Draw `sparsity_frame`: a line of a ``value`` per model over ranges of train interactions, its name at the end."""
    models = frame["model"].unique().tolist()
    short = short_names(models) if value == "mean" else dict(zip(models, models, strict=True))
    names = [textwrap.fill(short[model], _NAME) for model in models]
    with figure_style():
        lines = sum(name.count("\n") + 1 for name in names)
        figure = blank_figure(ONE_COLUMN if len(models) <= _FEW else TWO_COLUMNS, max(2.3, 0.7 + 0.14 * lines))
        axes = figure.subplots()
        marks = group_dots(axes, frame, value)
        if value == "difference":
            axes.axhline(0, color="black", linewidth=0.6)
        groups = frame.drop_duplicates("group")
        ticks = [f"{name}\n({users})" for name, users in zip(groups["group"], groups["users"], strict=True)]
        axes.set_xticks(range(len(ticks)), ticks)
        axes.set_xlabel("train interactions (users)")
        name_ends(axes, names, [marks[model][0] for model in models])
    return figure


def task_dots(frame: pd.DataFrame) -> Figure:
    """Draw `tasks_frame`: dots with intervals of every text, side by side for each task."""
    frame = frame.sort_values(
        "group", key=lambda tasks: tasks.map({"known": 0, "few interactions": 1}).fillna(2), kind="stable"
    )
    with figure_style():
        figure = blank_figure(ONE_COLUMN, 1.8, frame["model"])
        axes = figure.subplots()
        legend_above(figure, group_dots(axes, frame, apart=1, linestyle=""))
    return figure


def worth_lines(frame: pd.DataFrame) -> Figure:
    """Draw `worth_frame`: a panel per rule of candidates, a line per text over groups of items.

    Bands and intervals are one standard deviation over data sets. A text keeps its colour in both panels.
    """
    titles = {"among": "candidates: items of the group", "all": "candidates: all items"}
    groups, about = [name for name in ITEM_GROUPS if name in set(frame["group"])], ["metric", "split"]
    every = pd.MultiIndex.from_product([frame["model"].unique(), groups], names=["model", "group"])
    with figure_style():
        figure = blank_figure(ONE_COLUMN, 3.2, frame["model"])
        panels, marks = figure.subplots(len(titles), 1, sharex=True), dict[str, Any]()
        for axes, (rule, title) in zip(panels, titles.items(), strict=True):
            part = frame[frame["candidates"] == rule].set_index(["model", "group"]).reindex(every).reset_index()
            marks = group_dots(axes, part.assign(**frame[about].iloc[0]), band=0.12)
            axes.set_title(title)
            axes.set_ylim(bottom=0)
        panels[-1].set_xlabel("train interactions of the item")
        legend_above(figure, marks)
    return figure


def bar_look(index: int) -> dict[str, Any]:
    """Colour and hatch of the bars of one of several models."""
    look = {"facecolor": MANY_COLOURS[index % len(MANY_COLOURS)], "hatch": HATCHES[index % len(HATCHES)]}
    return {**look, "edgecolor": "white", "linewidth": 0.4}


def ablation_forest(frame: pd.DataFrame) -> Figure:
    """Draw the differences of `ablation_frame` with intervals and marks of significance, `PAPER_ROWS` first and filled.

    A difference beyond three times the usual one is a number at the edge.
    """
    ranks = frame["model"].str.replace(r" \(.*", "", regex=True).map({row: n for n, row in enumerate(PAPER_ROWS)})
    frame = frame.loc[ranks.sort_values(kind="stable").index]
    is_paper = ranks.notna()[frame.index].to_numpy()
    usual = frame[["low", "high"]].abs().max(axis=1).median()
    rows = Rows.of([f"{row.model} {row.mark}" for row in frame.itertuples()], _LABEL)
    both = 0 < is_paper.sum() < len(frame)
    names = ["rows of the paper", "others"] if both else []
    with figure_style():
        figure = blank_figure(ONE_COLUMN, 0.6 - rows.bottom, names)
        axes = figure.subplots()
        marks = row_dots(axes, frame, "difference", rows, is_paper, (frame["difference"].abs() > 3 * usual).to_numpy())
        axes.axvline(0, color="black", linewidth=0.6)
        axes.locator_params(axis="x", nbins=4)
        if both:
            place = rows.places[is_paper.sum() - 1 : is_paper.sum() + 1].mean()
            axes.axhline(place, color=GREY, linewidth=0.8)
            legend_above(figure, dict(zip(names, marks, strict=True)))
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
        figure.supylabel(measured(frame), fontsize=8)
    return figure


def efficiency_points(frame: pd.DataFrame) -> Figure:
    """Draw quality over seconds of training, the name of each model at its point; SPiKE is filled."""
    ticker = require("matplotlib.ticker", "figures")
    names, points = short_names(frame["model"]), frame[["seconds", "quality"]].to_numpy(dtype=float)
    with figure_style():
        figure = blank_figure(ONE_COLUMN, 2.6)
        axes = figure.subplots()
        for model, point in zip(names, points, strict=True):
            axes.plot(*point, **dot_look(is_ours(model)))
        if (points[:, 0] > 0).all():
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(ticker.FuncFormatter("{:g}".format))
            axes.xaxis.set_minor_formatter(ticker.NullFormatter())
        axes.margins(0.08)
        axes.set(xlabel="training, s", ylabel=measured(frame))
        axes.grid(**GRID)
        axes.set_axisbelow(True)
        name_points(axes, [textwrap.fill(name, _NAME) for name in names.values()], points)
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
