"""Names beside points, in place of a legend: moved apart until none overlaps another."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import isotonic_regression

from spike_kit.base.errors import require
from spike_kit.figures.style import plain
from spike_kit.models.spike import Spike

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

SIZE = 6.5
"""Letters of a name beside a point, in points."""

_LEADER: dict[str, Any] = {"arrowstyle": "-", "color": "#777777", "linewidth": 0.4, "shrinkA": 0, "shrinkB": 2}
"""A line from a name to its point."""

_DISTANCES = range(4, 80, 2)
"""Distances of a name from its point that are tried, in points."""

_CLOSE = 5
"""The largest distance without a line."""

_BESIDE = 1.02
"""Where names right of the axes begin; the axes are 1 wide."""

_STEPS = (0, 1, -1, 0.5, -0.5)
_SIDES = [(x, y) for x in _STEPS for y in _STEPS if 1 in (abs(x), abs(y))]
_SIDES.sort(key=lambda side: (side[0] < 1, 0 not in side))
"""Where a name may stand as seen from its point, right of it first."""


def is_ours(label: str) -> bool:
    """Whether a label is one of SPiKE."""
    return label.startswith(Spike.title)


def weight(label: str) -> str:
    """Letters of a label: bold for SPiKE."""
    return "bold" if is_ours(label) else "normal"


def short_names(labels: Iterable[str]) -> dict[str, str]:
    """Each label of a run without preset and text, where that still tells it apart from the others."""
    short = {label: re.sub(r" \(\w+\)|,? (profiles|encoder)=[^ ,]+", "", label) for label in labels}
    seen = Counter(short.values())
    return {label: name if seen[name] == 1 else label for label, name in short.items()}


def name_points(axes: Axes, names: Sequence[str], points: np.ndarray) -> None:
    """Write each name as near to its point (a row of x and y) as the axes have room; the first ones choose first."""
    pixels, frame, bbox = _laid_out(axes), axes.get_window_extent(), require("matplotlib.transforms", "figures").Bbox
    look: dict[str, Any] = {"textcoords": "offset points"}
    marks = [bbox([centre, centre]) for centre in axes.transData.transform(points)]
    taken: list[Any] = []
    for number, (name, point) in enumerate(zip(names, points, strict=True)):
        others = [mark.padded((2.5 if place == number else 6) * pixels) for place, mark in enumerate(marks)]
        note = axes.annotate(plain(name), point, (0, 0), ha="center", **look, **_letters(name))
        box = note.get_window_extent().padded(pixels)
        half = np.array([box.width, box.height]) / 2 / pixels
        for far, side in itertools.product(_DISTANCES, _SIDES):
            start = far * np.array(side) / np.hypot(*side)
            moved = box.translated(*(pixels * (start + half * side)))
            if frame.contains(*moved.min) and frame.contains(*moved.max) and not moved.count_overlaps(taken + others):
                note.set_position(start + half * side)
                taken.append(moved)
                if far > _CLOSE:
                    axes.annotate("", point, (start[0], start[1]), arrowprops=_LEADER, **look)
                break


def name_ends(axes: Axes, names: Sequence[str], lines: Sequence[Line2D]) -> None:
    """Write each name right of the end of its line; those too near to each other share what they have to move."""
    known = [places[np.isfinite(places[:, 1])] for places in (np.asarray(line.get_xydata()) for line in lines)]
    points, notes = np.array([each[-1] for each in known]), []
    look: dict[str, Any] = {"textcoords": ("axes fraction", "offset points")}
    for name, line, point in zip(names, lines, points, strict=True):
        leader = _LEADER | {"color": line.get_color(), "relpos": (0, 0.5)}
        notes.append(axes.annotate(plain(name), point, (_BESIDE, 0), arrowprops=leader, **look, **_letters(name)))
    pixels, frame = _laid_out(axes), axes.get_window_extent()
    ends = axes.transData.transform(points)[:, 1]
    order = np.argsort(ends, kind="stable")
    heights = np.array([notes[number].get_window_extent().height for number in order]) + pixels
    above = heights.cumsum() - heights / 2
    low, high = frame.y0, frame.y1 - heights.sum()
    places = isotonic_regression(ends[order] - above).x.clip(low, max(low, high)) + above
    for number, place in zip(order, places, strict=True):
        notes[number].set_position((_BESIDE, (place - ends[number]) / pixels))


def _letters(name: str) -> dict[str, Any]:
    return {"fontsize": SIZE, "fontweight": weight(name), "va": "center"}


def _laid_out(axes: Axes) -> float:
    """Lay out the figure of axes; returns its pixels per point."""
    figure: Any = axes.figure
    figure.draw_without_rendering()
    return figure.dpi / 72
