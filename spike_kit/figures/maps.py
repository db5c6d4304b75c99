"""Maps of embeddings: the text side beside the graph side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from spike_kit.figures.style import COLOURS, TWO_COLUMNS, blank_figure, figure_style, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POINT_AREA = 2.5
"""Area of a point in points squared."""

OTHER, GREY = "other", "#BBBBBB"
"""Name and colour of what has no colour of its own."""


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
