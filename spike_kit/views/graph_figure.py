"""Drawing a part of the graph, for a screen and for paper: a line per triple or interaction, a mark per node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from spike_kit.base.errors import require
from spike_kit.figures import style
from spike_kit.views.safe import printed, shown, wrapped
from spike_kit.views.search import Nodes
from spike_kit.views.widgets import DASHES, LAYOUT

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing
    from plotly.graph_objects import Figure

LINE_COLOURS = tuple(colour for colour in style.COLOURS if colour != "#F0E442")
"""Colours of relations; yellow lines are too faint on white."""

WIDTHS = ((0.0, 0.8), (0.05, 1.6), (0.15, 2.8), (0.35, 4.5))
"""Least attention, and the width in pixels of an edge that has it: plotly draws one width per trace."""

SYMBOLS = {"user": ("triangle-up", "^"), "item": ("circle", "o"), "auxiliary": ("square", "s")}
"""Mark of a node, as plotly and as matplotlib call it."""

NAMED = 60
"""Most nodes whose names are written; beyond, names show on hover."""

_HOVER_AT = (0.35, 0.5, 0.65)
"""Where on a line the hover answers, as shares of its length."""

_APART = 0.012
"""Distance between lines that join the same two nodes, as a share of the picture."""

Positions = Mapping[int, tuple[float, float]]


def _lines(links: pd.DataFrame, positions: Positions) -> pd.DataFrame:
    """Links with their ``line`` ``[2, 2]`` and ``width``; lines that join the same nodes lie side by side."""
    places = np.array(list(positions.values()) or [(0.0, 0.0)])
    size = float(np.ptp(places, axis=0).max()) or 1.0
    nodes = np.sort(links[["head", "tail"]].to_numpy(dtype=int), axis=1)
    together = links.assign(low=nodes[:, 0], high=nodes[:, 1]).groupby(["low", "high"])["head"]
    shift = together.cumcount() - (together.transform("size") - 1) / 2
    ends = np.array([[positions[low], positions[high]] for low, high in nodes.tolist()]).reshape(-1, 2, 2)
    along = ends[:, 1] - ends[:, 0]
    across = np.stack([-along[:, 1], along[:, 0]], axis=1) / np.maximum(np.linalg.norm(along, axis=1), 1e-12)[:, None]
    moved = ends + (across * (size * _APART * shift.to_numpy())[:, None])[:, None]
    least, widths = zip(*WIDTHS, strict=True)
    weight = links[["to head", "to tail"]].max(axis=1).fillna(0.0)
    width = np.array(widths)[np.searchsorted(least, weight, side="right") - 1]
    return links.assign(line=list(moved), width=width)


def neighbourhood_figure(links: pd.DataFrame, positions: Positions, nodes: Nodes, expanded: Sequence[int]) -> Figure:
    """Draw links and nodes: colour and dash by relation, width by attention, names and sentences on hover.

    Parameters
    ----------
    links
        What to draw: `spike_kit.views.graph_view.GraphView.links`.
    positions
        Where each shown node stands.
    nodes
        Their names.
    expanded
        Nodes whose neighbours are shown; they are larger.
    """
    objects = require("plotly.graph_objects", "lab")
    chart = objects.Figure()
    for _, part in _lines(links, positions).groupby("relation"):
        chart.add_traces(_relation_traces(objects, part))
    chart.add_traces(_node_traces(objects, positions, nodes, expanded))
    legend = {"title": "relation<br>(thick: much attention)", "itemsizing": "trace"}
    chart.update_layout(**LAYOUT, height=600, hovermode="closest", legend=legend)
    return chart.update_xaxes(visible=False).update_yaxes(visible=False)


def _relation_traces(objects: Any, links: pd.DataFrame) -> list[Any]:
    """Lines of one relation, a trace per width class, and invisible points on them that carry the hover."""
    number = int(links["relation"].iloc[0]) + 1
    colour, dash = LINE_COLOURS[number % len(LINE_COLOURS)], DASHES[number % len(DASHES)]
    common = {"name": shown(links["name"].iloc[0], 40), "legendgroup": f"relation {number}"}
    traces = []
    for width, part in links.groupby("width"):
        xs, ys = ([value for line in part["line"] for value in (*line[:, axis], None)] for axis in (0, 1))
        line = {"color": colour, "dash": dash, "width": width}
        options = {"showlegend": not traces, "hoverinfo": "skip", "opacity": 0.75, **common}
        traces.append(objects.Scatter(x=xs, y=ys, mode="lines", line=line, **options))
    spots = np.array([line[0] + share * (line[1] - line[0]) for line in links["line"] for share in _HOVER_AT])
    points = objects.Scatter(
        x=spots[:, 0].tolist(),
        y=spots[:, 1].tolist(),
        mode="markers",
        marker={"size": 9, "color": colour, "opacity": 0},
        text=np.repeat([_hover(link) for link in links.to_dict("records")], len(_HOVER_AT)).tolist(),
        hovertemplate="%{text}<extra></extra>",
        showlegend=False,
        **common,
    )
    return [*traces, points]


def _hover(link: Mapping[Any, Any]) -> str:
    """Relation, sentence (which says the direction), and both weights."""
    parts = [f"<b>{shown(link['name'], 40)}</b>", wrapped(link["sentence"], 60, 3)]
    for weight, text in (("to head", "of the second in the first"), ("to tail", "of the first in the second")):
        if pd.notna(link[weight]):
            parts.append(f"weight {text}: {link[weight]:.3f}")
    return "<br>".join(parts)


def _node_traces(objects: Any, positions: Positions, nodes: Nodes, expanded: Sequence[int]) -> list[Any]:
    """One trace per kind; ``customdata`` holds the node."""
    traces = []
    for subject, (symbol, _) in SYMBOLS.items():
        own = [node for node in positions if nodes.subject(node)[0] == subject]
        names = {node: (shown(nodes.labels[node], 80), shown(nodes.kinds[node], 40)) for node in own}
        marker = {
            "size": [16 if node in expanded else 10 for node in own],
            "symbol": symbol,
            "color": ["#DDDDDD" if node in expanded else "white" for node in own],
            "line": {"color": "black", "width": 1.5},
            "opacity": 1,
        }
        trace = objects.Scatter(
            x=[positions[node][0] for node in own],
            y=[positions[node][1] for node in own],
            mode="markers+text" if len(positions) <= NAMED else "markers",
            text=[shown(nodes.labels[node], 28) for node in own],
            textposition="top center",
            cliponaxis=False,
            textfont={"size": 10, "color": "#222222"},
            marker=marker,
            customdata=own,
            hovertext=[f"<b>{name}</b><br>{kind}, click to expand" for name, kind in names.values()],
            hovertemplate="%{hovertext}<extra></extra>",
            name=subject,
            legendgroup="nodes",
        )
        traces += [trace] if own else []
    return traces


def neighbourhood_drawing(links: pd.DataFrame, positions: Positions, nodes: Nodes, expanded: Sequence[int]) -> Drawing:
    """Draw the same for a page of paper."""
    from matplotlib.figure import Figure

    with style.figure_style():
        figure = Figure(figsize=(style.TWO_COLUMNS, 4.5))
        axes = figure.subplots()
        axes.set_axis_off()
        axes.margins(0.08)
        for _, part in _lines(links, positions).groupby("relation"):
            number = int(part["relation"].iloc[0]) + 1
            look = {"color": LINE_COLOURS[number % len(LINE_COLOURS)], "alpha": 0.75, "zorder": 1}
            look["linestyle"] = style.DASHES[number % len(style.DASHES)]
            for line, width in zip(part["line"], part["width"], strict=True):
                axes.plot(*line.T, linewidth=width * 0.6, **look)
            axes.plot([], [], label=printed(part["name"].iloc[0], 40), **look)
        for subject, (_, marker) in SYMBOLS.items():
            own = [node for node in positions if nodes.subject(node)[0] == subject]
            if own:
                sizes = [45 if node in expanded else 18 for node in own]
                fill = ["#DDDDDD" if node in expanded else "white" for node in own]
                xs, ys = zip(*(positions[node] for node in own), strict=True)
                look = {"marker": marker, "edgecolors": "black", "linewidths": 0.7, "zorder": 2}
                axes.scatter(xs, ys, sizes, fill, label=subject, **look)
        for node, place in positions.items() if len(positions) <= NAMED else ():
            above = {"xytext": (0, 4), "textcoords": "offset points", "ha": "center", "fontsize": 6}
            axes.annotate(printed(nodes.labels[node], 28), place, **above)
        names = axes.get_legend_handles_labels()[1]
        if names:
            columns = style.legend_columns(names, style.TWO_COLUMNS)
            figure.legend(loc="outside lower center", ncols=columns, handlelength=3)
    return figure
