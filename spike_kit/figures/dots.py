"""Dots with their intervals: a row for each, or a group of several side by side."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from spike_kit.figures.names import SIZE, is_ours
from spike_kit.figures.style import dot_look, line_look, plain
from spike_kit.results.tables import metric_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH = 0.5
"""Of a group; from one to the next it is 1."""

_INTERVAL = {"elinewidth": 0.7, "capsize": 0}

GRID = {"linewidth": 0.3, "color": "#CCCCCC"}

_ARROW = {"arrowstyle": "-|>", "linewidth": 0.6, "mutation_scale": 6, "color": "black", "shrinkA": 1, "shrinkB": 0}
"""From a number to the edge that it lies beyond."""


class Rows(NamedTuple):
    """Labels of rows, the place of each from the top down in inches, and where the last one ends."""

    labels: list[str]
    places: np.ndarray
    bottom: float

    @classmethod
    def of(cls, names: Iterable[str], letters: int) -> Rows:
        """Break names into lines of so many letters."""
        labels = [plain(textwrap.fill(name, letters)) for name in names]
        heights = np.array([0.015 + 0.135 * (label.count("\n") + 1) for label in labels])
        return cls(labels, heights / 2 - heights.cumsum(), -heights.sum())


def row_dots(
    axes: Axes, frame: pd.DataFrame, value: str, rows: Rows, filled: np.ndarray, beyond: np.ndarray
) -> list[Any]:
    """Draw a dot and its interval per row; a value ``beyond`` the axis is a number, its arrow points there.

    Returns
    -------
    list
        The marks, first the ``filled`` ones.
    """
    drawn: list[Any] = []
    for is_filled in (True, False):
        kept = (filled == is_filled) & ~beyond
        look: dict[str, Any] = {"xerr": _errors(frame, value)[:, kept], **_INTERVAL, **dot_look(is_filled)}
        drawn.append(axes.errorbar(frame[value][kept], rows.places[kept], **look))
    for place, number in zip(rows.places[beyond], frame[value][beyond], strict=True):
        side = 1 if number > frame[value].median() else -1
        look = {"ha": "right" if side > 0 else "left", "va": "center", "fontsize": SIZE, "arrowprops": _ARROW}
        look |= {"bbox": {"facecolor": "white", "linewidth": 0, "pad": 0.5}}
        axes.annotate(
            f"{number:.3f}".replace("-", "\N{MINUS SIGN}"),
            (max(side, 0), place),
            (-10 * side, 0),
            ("axes fraction", "data"),
            "offset points",
            **look,
        )
    axes.set_yticks(rows.places, rows.labels)
    axes.set_ylim(rows.bottom, 0)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", **GRID)
    axes.set_axisbelow(True)
    axes.set_xlabel(measured(frame, value))
    return drawn


def group_dots(
    axes: Axes, frame: pd.DataFrame, value: str = "mean", *, apart: float = 0.06, band: float = 0, **look: Any
) -> dict[str, Any]:
    """Draw dots with intervals of all models in each group (at 0, 1, ...), at most ``apart``; return them by model.

    Where SPiKE is among the models, only its own are filled. A ``band`` of some opacity joins the intervals.
    """
    models, groups, drawn = frame["model"].unique().tolist(), frame["group"].unique().tolist(), dict[str, Any]()
    step = min(apart, _WIDTH / len(models))
    for index, model in enumerate(models):
        own = frame[frame["model"] == model].set_index("group").reindex(groups)
        places = np.arange(len(groups)) + (index - (len(models) - 1) / 2) * step
        codes: dict[str, Any] = {**_INTERVAL, **line_look(index), "markersize": 4, "linewidth": 1}
        if any(map(is_ours, models)) and not is_ours(model):
            codes["markerfacecolor"] = "white"
        drawn[model] = axes.errorbar(places, own[value], yerr=_errors(own, value), **codes | look)
        if band:
            axes.fill_between(places, own["low"], own["high"], color=codes["color"], alpha=band, linewidth=0)
    axes.set_ylabel(measured(frame, value))
    axes.set_xticks(range(len(groups)), groups)
    axes.grid(axis="y", **GRID)
    axes.set_axisbelow(True)
    return drawn


def measured(frame: pd.DataFrame, value: str = "mean") -> str:
    """Label of an axis: the metric of a frame and its split."""
    first = frame.iloc[0]
    return f"{'Δ ' if value == 'difference' else ''}{metric_name(first['metric'])} ({plain(first['split'])})"


def _errors(frame: pd.DataFrame, value: str) -> np.ndarray:
    """Lengths ``[2, n]`` of the error bars of a column down to ``low`` and up to ``high``."""
    return np.vstack([frame[value] - frame["low"], frame["high"] - frame[value]]).clip(0)
