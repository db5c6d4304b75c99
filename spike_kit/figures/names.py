"""Names beside points, in place of a legend: moved apart until none overlaps another."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import isotonic_regression

from spike_kit.base.errors import require
from spike_kit.figures.style import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE = 6.5
"""Letters of a name beside a point, in points."""

_LEADER = {"arrowstyle": "-", "color": "#999999", "linewidth": 0.4, "shrinkA": 0, "shrinkB": 2.5}
"""A line from a name to its point."""

_NEAR, _FAR, _STEP = 4, 80, 4
"""Distances of a name from its point that are tried, in points."""

_SIDES = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
"""Where a name may stand, as seen from its point."""


def short_names(labels: Iterable[str]) -> dict[str, str]:
    """Each label of a run without preset and text, where that still tells it apart from the others."""
    short = {label: re.sub(r" \(\w+\)|,? (profiles|encoder)=[^ ,]+", "", label) for label in labels}
    seen = Counter(short.values())
    return {label: name if seen[name] == 1 else label for label, name in short.items()}


def name_points(axes: Axes, names: Sequence[str], points: Sequence[tuple[float, float]]) -> None:
    """Write each name as near to its point as there is room in the axes; the first ones choose first."""
    figure, box_of = axes.figure, require("matplotlib.transforms", "figures").Bbox.from_extents
    figure.draw_without_rendering()
    pixels, frame = figure.dpi / 72, axes.get_window_extent()
    centres = axes.transData.transform(points)
    taken = [box_of(*(centre - 3 * pixels), *(centre + 3 * pixels)) for centre in centres]
    offsets = [(far, side) for far in range(_NEAR, _FAR, _STEP) for side in _SIDES]
    for name, point in zip(names, points, strict=True):
        look = {"textcoords": "offset points", "ha": "center", "va": "center", "fontsize": SIZE}
        note = axes.annotate(plain(name), point, xytext=(0, 0), **look)
        note.set_in_layout(False)
        box = note.get_window_extent().padded(pixels)
        half = np.array([box.width, box.height]) / 2 / pixels
        for far, side in offsets:
            start = far * np.array(side) / np.hypot(*side)
            moved = box.translated(*((start + half * side) * pixels))
            if frame.contains(*moved.min) and frame.contains(*moved.max) and not moved.count_overlaps(taken):
                break
        note.set_position(start + half * side)
        taken.append(moved)
        if far > 2 * _NEAR:
            axes.annotate("", point, xytext=start, textcoords="offset points", arrowprops=_LEADER).set_in_layout(False)


def name_ends(axes: Axes, names: Sequence[str], points: Sequence[tuple[float, float]]) -> None:
    """Write each name right of the end of its line; those too near to each other share what they have to move."""
    look = {"textcoords": "offset points", "va": "center", "fontsize": SIZE, "arrowprops": _LEADER}
    notes = [
        axes.annotate(plain(name), point, xytext=(12, 0), **look) for name, point in zip(names, points, strict=True)
    ]
    axes.figure.draw_without_rendering()
    pixels, frame = axes.figure.dpi / 72, axes.get_window_extent()
    ends = axes.transData.transform(points)[:, 1]
    order = np.argsort(ends, kind="stable")
    heights = np.array([notes[number].get_window_extent().height for number in order]) + pixels
    above = heights.cumsum() - heights / 2
    low, high = frame.y0, frame.y1 - heights.sum()
    places = isotonic_regression(ends[order] - above).x.clip(low, max(low, high)) + above
    for number, place in zip(order, places, strict=True):
        notes[number].set_position((12, (place - ends[number]) / pixels))
