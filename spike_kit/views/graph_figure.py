"""Drawing a part of the graph: a line per triple or interaction, a mark per node."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from spike_kit.base.errors import require
from spike_kit.figures.style import COLOURS
from spike_kit.views.charts import DASHES
from spike_kit.views.safe import shown, wrapped
from spike_kit.views.search import Nodes

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

LINE_COLOURS = tuple(colour for colour in COLOURS if colour != "#F0E442")
"""Colours of relations; yellow lines are too faint on white."""

WIDTHS = ((0.0, 0.8), (0.05, 1.6), (0.15, 2.8), (0.35, 4.5))
"""Least attention, and the width in pixels of an edge that has it: plotly draws one width per trace."""

SYMBOLS = {"user": "triangle-up", "item": "circle", "auxiliary": "square"}
"""Mark of a node."""

NAMED = 60
"""Most nodes whose names are written; beyond, names show on hover."""

_HOVER_AT = (0.35, 0.5, 0.65)
"""Where on a line the hover answers, as shares of its length."""

_APART = 0.012
"""Distance between lines that join the same two nodes, as a share of the picture."""


@dataclass(frozen=True)
class Link:
    """A triple or interaction between two shown nodes.

    Attributes
    ----------
    head, relation, tail
        Nodes, and the relation (-1: the user ``head`` has the item ``tail`` in train).
    to_head, to_tail
        Weight of the tail in the head's message, and of the head in the tail's; NaN where there is no such message.
    """

    head: int
    relation: int
    tail: int
    to_head: float
    to_tail: float

    @property
    def weight(self) -> float:
        """The larger of the two weights."""
        return float(np.nanmax([self.to_head, self.to_tail, 0.0]))


def neighbourhood_figure(
    links: Sequence[Link],
    positions: Mapping[int, tuple[float, float]],
    nodes: Nodes,
    expanded: Sequence[int],
    words: Callable[[Link], tuple[str, str]],
) -> Figure:
    """Draw links and nodes: colour and dash by relation, width by attention, names and sentences on hover.

    Parameters
    ----------
    links
        What to draw.
    positions
        Where each shown node stands.
    nodes
        Their names.
    expanded
        Nodes whose neighbours are shown; they are larger.
    words
        Gives the name of a link's relation and its sentence, as they came from outside.
    """
    objects = require("plotly.graph_objects", "lab")
    chart = objects.Figure()
    ends = _ends(links, positions)
    for relation in sorted({link.relation for link in links}):
        chart.add_traces(
            _relation_traces(objects, {link: ends[link] for link in links if link.relation == relation}, words)
        )
    chart.add_traces(_node_traces(objects, positions, nodes, expanded))
    axis = {"visible": False, "showgrid": False}
    return chart.update_layout(
        template="plotly_white",
        height=600,
        xaxis=axis,
        yaxis=axis,
        margin={"l": 10, "r": 10, "t": 40, "b": 10},
        hovermode="closest",
        legend={"title": "relation<br>(thick: much attention)", "itemsizing": "trace"},
    )


def _ends(links: Sequence[Link], positions: Mapping[int, tuple[float, float]]) -> dict[Link, np.ndarray]:
    """Ends ``[2, 2]`` of every line; those that join the same nodes lie side by side."""
    places = np.array(list(positions.values()) or [(0.0, 0.0)])
    size = float(np.ptp(places, axis=0).max()) or 1.0
    together: dict[tuple[int, int], list[Link]] = defaultdict(list)
    for link in links:
        together[min(link.head, link.tail), max(link.head, link.tail)].append(link)
    found = {}
    for (low, high), group in together.items():
        ends = np.array([positions[low], positions[high]])
        along = ends[1] - ends[0]
        across = np.array([-along[1], along[0]]) / (float(np.hypot(*along)) or 1.0)
        for number, link in enumerate(group):
            found[link] = ends + across * size * _APART * (number - (len(group) - 1) / 2)
    return found


def _relation_traces(
    objects: Any, ends: Mapping[Link, np.ndarray], words: Callable[[Link], tuple[str, str]]
) -> list[Any]:
    """Lines of one relation, a trace per width class, and invisible points on them that carry the hover."""
    number = next(iter(ends)).relation + 1
    colour, dash = LINE_COLOURS[number % len(LINE_COLOURS)], DASHES[number % len(DASHES)]
    name = shown(words(next(iter(ends)))[0], 40)
    least = [low for low, _ in WIDTHS]
    by_class: dict[int, list[np.ndarray]] = defaultdict(list)
    for link, line in ends.items():
        by_class[int(np.searchsorted(least, link.weight, side="right")) - 1].append(line)
    traces = []
    for index, lines in sorted(by_class.items()):
        xs, ys = ([value for line in lines for value in (*line[:, axis].tolist(), None)] for axis in (0, 1))
        style = {"color": colour, "dash": dash, "width": WIDTHS[index][1]}
        options = {"name": name, "legendgroup": f"relation {number}", "showlegend": not traces, "hoverinfo": "skip"}
        traces.append(objects.Scatter(x=xs, y=ys, mode="lines", line=style, opacity=0.75, **options))
    spots = [line[0] + share * (line[1] - line[0]) for line in ends.values() for share in _HOVER_AT]
    hover = [text for text in (_hover(link, *words(link)) for link in ends) for _ in _HOVER_AT]
    points = objects.Scatter(
        x=[float(x) for x, _ in spots],
        y=[float(y) for _, y in spots],
        mode="markers",
        marker={"size": 9, "color": colour, "opacity": 0},
        text=hover,
        hovertemplate="%{text}<extra></extra>",
        legendgroup=f"relation {number}",
        showlegend=False,
    )
    return [*traces, points]


def _hover(link: Link, relation: str, sentence: str) -> str:
    """Relation, sentence (which says the direction), and both weights."""
    parts = [f"<b>{shown(relation, 40)}</b>", wrapped(sentence, 60, 3)]
    for weight, text in ((link.to_head, "of the second in the first"), (link.to_tail, "of the first in the second")):
        if not np.isnan(weight):
            parts.append(f"weight {text}: {weight:.3f}")
    return "<br>".join(parts)


def _node_traces(
    objects: Any, positions: Mapping[int, tuple[float, float]], nodes: Nodes, expanded: Sequence[int]
) -> list[Any]:
    """One trace per kind; ``customdata`` holds the node."""
    traces = []
    for subject, symbol in SYMBOLS.items():
        own = [node for node in positions if nodes.subject(node)[0] == subject]
        if not own:
            continue
        hover = [
            f"<b>{shown(nodes.labels[node], 80)}</b><br>{shown(nodes.kinds[node], 40)}, click to expand" for node in own
        ]
        traces.append(
            objects.Scatter(
                x=[positions[node][0] for node in own],
                y=[positions[node][1] for node in own],
                mode="markers+text" if len(positions) <= NAMED else "markers",
                text=[shown(nodes.labels[node], 28) for node in own],
                textposition="top center",
                cliponaxis=False,
                textfont={"size": 10, "color": "#222222"},
                marker={
                    "size": [16 if node in expanded else 10 for node in own],
                    "symbol": symbol,
                    "color": ["#DDDDDD" if node in expanded else "white" for node in own],
                    "line": {"color": "black", "width": 1.5},
                    "opacity": 1,
                },
                customdata=own,
                hovertext=hover,
                hovertemplate="%{hovertext}<extra></extra>",
                name=subject,
                legendgroup="nodes",
            )
        )
    return traces
