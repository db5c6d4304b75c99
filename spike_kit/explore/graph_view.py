"""Neighbourhoods and paths in the knowledge graph, with SPiKE's attention on the edges."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from spike_kit.data.graph import Graph
from spike_kit.data.study import Study
from spike_kit.errors import DataError, require
from spike_kit.evaluation.attribution import SpikeExplainer
from spike_kit.explore.safe import shown
from spike_kit.explore.search import Nodes
from spike_kit.figures.style import COLOURS
from spike_kit.profiles.wording import fill

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
"""Second coding of relations."""

WIDTHS = ((0.0, 0.8), (0.05, 1.6), (0.15, 2.8), (0.35, 4.5))
"""Least attention, and the width in pixels of an edge that has it: plotly draws one width per trace."""

INTERACTION = "interaction"
"""Name of the edges between users and their train items."""

_STEPS = 60
"""Iterations of the layout."""


class GraphView:
    """A part of the graph around a node, that grows by expanding nodes.

    Parameters
    ----------
    study
        The study.
    explainer
        A trained SPiKE, whose attention weighs the edges; none: an edge counts 1 / degree of its head.
    most
        Most neighbours that one expansion adds, those with the most attention first.
    users
        Whether users, and their train interactions, are part of the graph.
    seed
        Seed of the layout.
    """

    def __init__(
        self,
        study: Study,
        explainer: SpikeExplainer | None = None,
        *,
        most: int = 25,
        users: bool = False,
        seed: int = 0,
    ) -> None:
        self.study, self.nodes, self.most, self.users, self.seed = study, Nodes(study), most, users, seed
        self.explainer = explainer
        self.positions: dict[int, tuple[float, float]] = {}
        self.expanded: list[int] = []

    @cached_property
    def edges(self) -> pd.DataFrame:
        """Directed edges with their weight: a message goes from ``source`` to ``target``.

        Returns
        -------
        DataFrame
            source, target (nodes), relation (0..R-1, -1 for an interaction), inverse (whether the triple reads from
            target to source), weight.
        """
        graph = Graph.from_tables(self.study.tables) if self.explainer is None else self.explainer.graph.to("cpu")
        n_users, n_relations = graph.n_users, graph.n_relations
        head, relation, tail = (x.numpy() for x in (graph.head, graph.relation, graph.tail))
        if self.explainer is None:
            weight = 1 / np.bincount(head, minlength=graph.n_entities)[head]
        else:
            weight = self.explainer.attention().detach().cpu().numpy()
        parts = [
            pd.DataFrame(
                {
                    "source": tail + n_users,
                    "target": head + n_users,
                    "relation": relation % max(n_relations, 1),
                    "inverse": relation < n_relations,
                    "weight": weight,
                }
            )
        ]
        if self.users:
            user, item = graph.train_user.numpy(), graph.train_item.numpy() + n_users
            of_user, of_item = 1 / np.bincount(user)[user], 1 / np.bincount(item)[item]
            common = {"relation": -1, "inverse": False}
            parts.append(pd.DataFrame({"source": item, "target": user, "weight": of_user, **common}))
            parts.append(pd.DataFrame({"source": user, "target": item, "weight": of_item, **common}))
        return pd.concat(parts, ignore_index=True)

    @cached_property
    def _by_target(self) -> dict[int, np.ndarray]:
        """Rows of `edges` by target, those with the most weight first."""
        order = np.lexsort([-self.edges["weight"].to_numpy(), self.edges["target"].to_numpy()])
        targets = self.edges["target"].to_numpy()[order]
        starts = np.flatnonzero(np.r_[True, targets[1:] != targets[:-1]])
        return {int(targets[start]): rows for start, rows in zip(starts, np.split(order, starts[1:]), strict=True)}

    def show(self, node: int) -> None:
        """Begin anew with a node and its neighbours.

        Raises
        ------
        DataError
            If there is no such node.
        """
        self.nodes.subject(node)
        self.positions, self.expanded = {node: (0.0, 0.0)}, []
        self.expand(node)

    def expand(self, node: int) -> int:
        """Add the neighbours of a node that is shown; returns how many are new. Those that are shown stay in place.

        Raises
        ------
        DataError
            If the node is not shown.
        """
        if node not in self.positions:
            raise DataError(f"node {node} is not shown", "show it, or expand a neighbour of it first")
        sources = self.edges["source"].to_numpy()[self._by_target.get(node, np.array([], dtype=int))]
        fresh = [int(source) for source in dict.fromkeys(sources.tolist()) if source not in self.positions][: self.most]
        if node not in self.expanded:
            self.expanded.append(node)
        self._place(node, fresh)
        return len(fresh)

    def _place(self, node: int, fresh: Sequence[int]) -> None:
        networkx = require("networkx", "lab")
        if not fresh:
            return
        x, y = self.positions[node]
        fixed = list(self.positions)
        circle = np.linspace(0, 2 * math.pi, len(fresh), endpoint=False)
        begin = {new: (x + math.cos(a), y + math.sin(a)) for new, a in zip(fresh, circle, strict=True)}
        graph = networkx.Graph()
        graph.add_nodes_from([*fixed, *fresh])
        inside = self._inside({*fixed, *fresh})
        graph.add_edges_from(zip(inside["source"].tolist(), inside["target"].tolist(), strict=True))
        placed = networkx.spring_layout(
            graph, pos={**self.positions, **begin}, fixed=fixed, iterations=_STEPS, seed=self.seed, k=0.6
        )
        self.positions = {one: (float(p[0]), float(p[1])) for one, p in placed.items()}

    def _inside(self, nodes: set[int]) -> pd.DataFrame:
        """Edges among some nodes."""
        rows = [self._by_target[node] for node in nodes if node in self._by_target]
        edges = self.edges.iloc[np.concatenate(rows)] if rows else self.edges.iloc[:0]
        return edges[edges["source"].isin(nodes)]

    @property
    def shown(self) -> str:
        """How much of the neighbourhoods is shown, in words."""
        missing = []
        for node in self.expanded:
            around = set(self.edges["source"].to_numpy()[self._by_target.get(node, np.array([], dtype=int))].tolist())
            here = len(around & self.positions.keys())
            missing.append(f"{self.nodes.labels[node]}: {here} of {len(around)} neighbours shown")
        return "; ".join(missing)

    @property
    def table(self) -> pd.DataFrame:
        """Edges that are shown, one row per triple or interaction: head, relation, tail, sentence, attention both ways.

        ``to head`` is the weight of the tail in the head's message, ``to tail`` that of the head in the tail's.
        """
        inside = self._inside(set(self.positions))
        rows: dict[tuple[int, int, int], dict[str, Any]] = {}
        for source, target, relation, inverse, weight in _plain(inside):
            to_head = inverse if relation >= 0 else target < self.nodes.n_users
            head, tail = (target, source) if to_head else (source, target)
            row = rows.setdefault((head, relation, tail), self._named(head, relation, tail))
            row["to head" if to_head else "to tail"] = weight
        columns = ["head", "relation", "tail", "sentence", "to head", "to tail"]
        frame = pd.DataFrame(list(rows.values()), columns=columns)
        return frame.sort_values(["relation", "head", "tail"], kind="stable").reset_index(drop=True)

    def _named(self, head: int, relation: int, tail: int) -> dict[str, Any]:
        labels = self.nodes.labels
        return {
            "head": labels[head],
            "relation": self.relation_name(relation),
            "tail": labels[tail],
            "sentence": self.sentence(head, relation, tail),
            "to head": np.nan,
            "to tail": np.nan,
        }

    def relation_name(self, relation: int) -> str:
        """Name of a relation, -1 for interactions."""
        return INTERACTION if relation < 0 else str(self.study.relations["label"].iloc[relation])

    def sentence(self, head: int, relation: int, tail: int) -> str:
        """The sentence a triple makes, or that a user interacted with an item in train."""
        labels = self.nodes.labels
        if relation < 0:
            return f"{labels[head]} has {labels[tail]} in train."
        return fill(str(self.study.relations["template"].iloc[relation]), labels[head], labels[tail])

    @property
    def figure(self) -> Figure:
        """Nodes and edges: colour and dash by relation, width by attention, names on hover."""
        objects = require("plotly.graph_objects", "lab")
        chart = objects.Figure()
        inside = self._inside(set(self.positions))
        for number, relation in enumerate(sorted(set(inside["relation"].tolist()))):
            self._draw_edges(chart, relation, inside[inside["relation"] == relation], number)
        chart.add_traces(self._node_traces(objects))
        axis = {"visible": False, "showgrid": False}
        return chart.update_layout(
            template="plotly_white",
            height=560,
            xaxis=axis,
            yaxis={**axis, "scaleanchor": "x"},
            margin={"l": 10, "r": 10, "t": 10, "b": 10},
            hovermode="closest",
            legend={"title": "relation"},
        )

    def _draw_edges(self, chart: Any, relation: int, part: pd.DataFrame, number: int) -> None:
        """One trace per width class, and one of invisible points in the middle that carry the hover."""
        strongest: dict[tuple[int, int], float] = {}
        for source, target, _, _, weight in _plain(part):
            pair = (min(source, target), max(source, target))
            strongest[pair] = max(strongest.get(pair, 0.0), weight)
        classes = np.searchsorted([low for low, _ in WIDTHS], list(strongest.values()), side="right") - 1
        line = {"color": COLOURS[number % len(COLOURS)], "dash": DASHES[number % len(DASHES)]}
        name, first = shown(self.relation_name(relation), 40), True
        for index in sorted(set(classes.tolist())):
            xs: list[float | None] = []
            ys: list[float | None] = []
            for pair, own in zip(strongest, classes, strict=True):
                if own == index:
                    (x0, y0), (x1, y1) = (self.positions[node] for node in pair)
                    xs += [x0, x1, None]
                    ys += [y0, y1, None]
            width = WIDTHS[index][1]
            options = {"name": name, "legendgroup": name, "showlegend": first, "hoverinfo": "skip"}
            chart.add_scatter(x=xs, y=ys, mode="lines", line={**line, "width": width}, opacity=0.7, **options)
            first = False
        middle = [np.mean([self.positions[node] for node in pair], axis=0) for pair in strongest]
        hover = [f"{name}, attention {weight:.3f}<br>{self._pair(pair)}" for pair, weight in strongest.items()]
        chart.add_scatter(
            x=[float(x) for x, _ in middle],
            y=[float(y) for _, y in middle],
            mode="markers",
            marker={"size": 9, "color": line["color"], "opacity": 0},
            text=hover,
            hovertemplate="%{text}<extra></extra>",
            showlegend=False,
        )

    def _pair(self, pair: tuple[int, int]) -> str:
        return " and ".join(shown(self.nodes.labels[node], 50) for node in pair)

    def _node_traces(self, objects: Any) -> list[Any]:
        """One trace per kind; ``customdata`` holds the node."""
        symbols = {"user": "triangle-up", "item": "circle", "auxiliary": "square"}
        traces = []
        for subject, symbol in symbols.items():
            own = [node for node in self.positions if self.nodes.subject(node)[0] == subject]
            if not own:
                continue
            names = [shown(self.nodes.labels[node], 28) for node in own]
            hover = [
                f"{shown(self.nodes.labels[node], 80)}<br>{shown(self.nodes.kinds[node])}, click to expand"
                for node in own
            ]
            traces.append(
                objects.Scatter(
                    x=[self.positions[node][0] for node in own],
                    y=[self.positions[node][1] for node in own],
                    mode="markers+text" if len(self.positions) <= 60 else "markers",
                    text=names,
                    textposition="top center",
                    textfont={"size": 10},
                    marker={
                        "size": [15 if node in self.expanded else 10 for node in own],
                        "symbol": symbol,
                        "color": "white",
                        "line": {"color": "black", "width": 1.5},
                    },
                    customdata=own,
                    hovertext=hover,
                    hovertemplate="%{hovertext}<extra></extra>",
                    name=subject,
                    legendgroup="nodes",
                )
            )
        return traces

    @cached_property
    def _network(self) -> Any:
        """Directed graph of networkx; of several edges between two nodes the strongest."""
        networkx = require("networkx", "lab")
        network = networkx.DiGraph()
        for source, target, relation, inverse, weight in _plain(self.edges.sort_values("weight", kind="stable")):
            network.add_edge(source, target, cost=-math.log(max(weight, 1e-12)), relation=relation, inverse=inverse)
        return network

    def paths(self, user: int, item: int, k: int = 5, *, strongest: bool = True) -> pd.DataFrame:
        """Simple paths along which messages go from a user's train items, through the graph, to an item.

        Parameters
        ----------
        user, item
            Where a path begins and ends (ids, not nodes). The user's own train interaction with the item, if there is
            one, is a path like any other.
        k
            Most paths.
        strongest
            By the product of the weights of their edges, the largest first; otherwise by their number of edges.

        Returns
        -------
        DataFrame
            path (names, an arrow between them), edges (their number), strength (product of the weights), sentences.

        Raises
        ------
        DataError
            If the view has no users, or there is no such user or item.
        """
        networkx = require("networkx", "lab")
        if not self.users:
            raise DataError("this view has no users", "make it with users=True")
        source, target = self.nodes.node("user", user), self.nodes.node("item", item)
        columns = ["path", "edges", "strength", "sentences"]
        if source not in self._network or target not in self._network:
            return pd.DataFrame(columns=columns)
        found = networkx.shortest_simple_paths(self._network, source, target, weight="cost" if strongest else None)
        rows = []
        try:
            for path in islice(found, k):
                rows.append(self._path(path))
        except networkx.NetworkXNoPath:
            return pd.DataFrame(columns=columns)
        return pd.DataFrame(rows, columns=columns)

    def _path(self, path: Sequence[int]) -> dict[str, Any]:
        steps = [self._network.edges[pair] for pair in pairwise(path)]
        sentences = []
        for (before, after), step in zip(pairwise(path), steps, strict=True):
            relation = step["relation"]
            swapped = step["inverse"] if relation >= 0 else after < self.nodes.n_users
            sentences.append(self.sentence(*((after, relation, before) if swapped else (before, relation, after))))
        return {
            "path": " → ".join(self.nodes.labels[node] for node in path),
            "edges": len(steps),
            "strength": math.exp(-sum(step["cost"] for step in steps)),
            "sentences": " ".join(sentences),
        }


def _plain(edges: pd.DataFrame) -> Iterator[tuple[int, int, int, bool, float]]:
    """Rows of `GraphView.edges` as Python values: source, target, relation, inverse, weight."""
    columns = (edges[name].tolist() for name in ("source", "target", "relation", "inverse", "weight"))
    return zip(*columns, strict=True)
