"""Maps of embeddings: the text side beside the graph side."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from spike_kit.figures.style import COLOURS, TWO_COLUMNS, figure_style, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POINT_AREA = 2.5
"""Area of a point in points squared."""


def embedding_maps(panels: dict[str, pd.DataFrame], groups: pd.Series) -> Figure:
    """Draw one scatter per embedding space, points coloured by group; points are rasterised, text is not.

    Parameters
    ----------
    panels
        Title to coordinates (columns x and y); the rows of all panels are the same things in the same order.
    groups
        Group of every row; the largest groups get a colour of their own, the rest is ``other``.
    """
    from matplotlib.figure import Figure

    counts = groups[groups != "other"].value_counts()
    largest = counts.index[: len(COLOURS) - 1].tolist()
    shown = groups.where(groups.isin(largest), "other")
    names = [*largest, "other"] if (shown == "other").any() else largest
    with figure_style():
        figure = Figure(figsize=(TWO_COLUMNS, 3.2))
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for panel, (title, points) in zip(axes, panels.items(), strict=True):
            for index, name in enumerate(names):
                rows = (shown == name).to_numpy()
                panel.scatter(
                    points["x"].to_numpy()[rows],
                    points["y"].to_numpy()[rows],
                    s=POINT_AREA,
                    c="#BBBBBB" if name == "other" else COLOURS[index],
                    linewidths=0,
                    alpha=0.75,
                    rasterized=True,
                )
            panel.set_title(plain(title))
            panel.set_xticks([])
            panel.set_yticks([])
            panel.spines[:].set_visible(False)
        labels = [plain(str(name)) for name in names]
        figure.legend(axes[0].collections, labels, loc="outside lower center", ncols=len(labels), markerscale=2.5)
    return figure
