"""Neighbourhoods and paths in the knowledge graph, with SPiKE's attention on the edges."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from spike_kit.base.errors import DataError, require
from spike_kit.data.dataset import Dataset
from spike_kit.data.graph import Graph
from spike_kit.models.spike_explainer import SpikeExplainer
from spike_kit.profiles.facts import fill
from spike_kit.views.graph_figure import Link, neighbourhood_figure
from spike_kit.views.graph_paths import PathFinder
from spike_kit.views.search import Nodes

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

INTERACTION = "interaction"
"""Name of the edges between users and their train items."""

_STEPS = 60
"""Iterations of the layout."""
_APART = 0.9
"""Distance that the layout aims at between neighbours."""


class GraphView:
    """A part of the graph around a node, that grows by expanding nodes.

    Parameters
    ----------
    data
        The study.
    explainer
        A trained SPiKE, whose attention weighs the edges; none: an edge counts 1 / degree of its head.
    most
        Most neighbours that one expansion adds.
    by
        Which these are: those with the most ``attention``, or those with the highest ``degree``.
    users
        Whether users, and their train interactions, are part of the graph.
    seed
        Seed of the layout.
    """

    def __init__(
        self,
        data: Dataset,
        explainer: SpikeExplainer | None = None,
        *,
        most: int = 25,
        by: Literal["attention", "degree"] = "attention",
        users: bool = False,
        seed: int = 0,
    ) -> None:
        self.data, self.nodes, self.most, self.users, self.seed = data, Nodes(data), most, users, seed
        self.explainer, self.by = explainer, by
        self.positions: dict[int, tuple[float, float]] = {}
        self.expanded: list[int] = []

    @cached_property
    def edges(self) -> pd.DataFrame:
        """Directed edges with their weight: a message goes from ``source`` to ``target``.

        Returns
        -------
        DataFrame
            source, target (nodes), relation (0..R-1, -1 for an interaction), inverse (whether the triple reads from
            target to source), weight of the source in the target's message. What a user gives to an item counts 1 /
            (the user's train items) instead: it is the item's weight in the user's mean, and by default items take no
            message from users at all.
        """
        graph = Graph.from_tables(self.data.tables) if self.explainer is None else self.explainer.graph.to("cpu")
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
            of_user = 1 / np.bincount(user)[user]
            common = {"relation": -1, "inverse": False}
            parts.append(pd.DataFrame({"source": item, "target": user, "weight": of_user, **common}))
            parts.append(pd.DataFrame({"source": user, "target": item, "weight": of_user, **common}))
        return pd.concat(parts, ignore_index=True)

    @cached_property
    def _by_target(self) -> dict[int, np.ndarray]:
        """Rows of `edges` by target, those that an expansion prefers first."""
        preference = self.edges["weight"].to_numpy()
        if self.by == "degree":
            source = self.edges["source"].to_numpy()
            preference = np.bincount(source, minlength=self.nodes.n_nodes)[source]
        order = np.lexsort([-preference, self.edges["target"].to_numpy()])
        targets = self.edges["target"].to_numpy()[order]
        found, starts = np.unique(targets, return_index=True)
        return dict(zip(found.tolist(), np.split(order, starts[1:]), strict=False))

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
        out = np.array([x, y]) - np.mean(list(self.positions.values()), axis=0)
        x, y = np.array([x, y]) + 1.5 * out / (float(np.hypot(*out)) or 1.0)
        circle = np.linspace(0, 2 * math.pi, len(fresh), endpoint=False)
        begin = {new: (x + math.cos(a), y + math.sin(a)) for new, a in zip(fresh, circle, strict=True)}
        graph = networkx.Graph()
        graph.add_nodes_from([*fixed, *fresh])
        inside = self._inside({*fixed, *fresh})
        graph.add_edges_from(zip(inside["source"].tolist(), inside["target"].tolist(), strict=True))
        placed = networkx.spring_layout(
            graph, pos={**self.positions, **begin}, fixed=fixed, iterations=_STEPS, seed=self.seed, k=_APART
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
    def _links(self) -> list[Link]:
        """Triples and interactions among the shown nodes, by relation, head and tail."""
        inside = self._inside(set(self.positions))
        found: dict[tuple[int, int, int], list[float]] = {}
        for source, target, relation, inverse, weight in _plain(inside):
            to_head = inverse if relation >= 0 else target < self.nodes.n_users
            head, tail = (target, source) if to_head else (source, target)
            found.setdefault((relation, head, tail), [math.nan, math.nan])[0 if to_head else 1] = weight
        return [Link(head, relation, tail, *weights) for (relation, head, tail), weights in sorted(found.items())]

    @property
    def table(self) -> pd.DataFrame:
        """Edges that are shown, one row per triple or interaction: head, relation, tail, sentence, weight both ways.

        ``to head`` is the weight of the tail in the head's message, ``to tail`` that of the head in the tail's.
        """
        labels = self.nodes.labels
        rows = []
        for link in self._links:
            name, sentence = self._words(link)
            rows.append((labels[link.head], name, labels[link.tail], sentence, link.to_head, link.to_tail))
        return pd.DataFrame(rows, columns=["head", "relation", "tail", "sentence", "to head", "to tail"])

    def relation_name(self, relation: int) -> str:
        """Name of a relation, -1 for interactions."""
        return INTERACTION if relation < 0 else str(self.data.relations["label"].iloc[relation])

    def sentence(self, head: int, relation: int, tail: int) -> str:
        """The sentence a triple makes, or that a user interacted with an item in train."""
        labels = self.nodes.labels
        if relation < 0:
            return f"{labels[head]} has {labels[tail]} in train."
        return fill(str(self.data.relations["template"].iloc[relation]), labels[head], labels[tail])

    @property
    def figure(self) -> Figure:
        """Nodes and edges: colour and dash by relation, width by attention, names and sentences on hover."""
        return neighbourhood_figure(self._links, self.positions, self.nodes, self.expanded, self._words)

    def _words(self, link: Link) -> tuple[str, str]:
        return self.relation_name(link.relation), self.sentence(link.head, link.relation, link.tail)

    @cached_property
    def _finder(self) -> PathFinder:
        source, target, weight = (self.edges[name].to_numpy() for name in ("source", "target", "weight"))
        return PathFinder(source, target, weight, self.nodes.n_nodes)

    def paths(
        self,
        user: int,
        item: int,
        k: int = 5,
        *,
        strongest: bool = True,
        longest: int = 4,
        through_users: bool = False,
    ) -> pd.DataFrame:
        """Paths from a user over a train item and the graph to an item.

        An edge of the graph counts the weight with which its second node takes the message of the first; the first
        edge counts the weight of the train item in the user's mean. Of several triples between two nodes the one with
        the most weight is taken.

        Parameters
        ----------
        user, item
            Where a path begins and ends (ids, not nodes). The user's own train interaction with the item, if there is
            one, is a path like any other.
        k
            Most paths.
        strongest
            By the product of the weights of their edges, the largest first; otherwise by the number of edges, then by
            that product.
        longest
            Most edges of a path.
        through_users
            Whether paths may pass other users who share train items.

        Returns
        -------
        DataFrame
            path (names, an arrow between them), edges (their number), strength (product of the weights), sentences.

        Raises
        ------
        DataError
            If the view has no users, or there is no such user or item.
        ConfigError
            If ``k`` or ``longest`` is not positive.
        """
        if not self.users:
            raise DataError("this view has no users", "make it with users=True")
        start, end = self.nodes.node("user", user), self.nodes.node("item", item)
        closed = None if through_users else np.arange(self.nodes.n_nodes) < self.nodes.n_users
        found = self._finder.find(start, end, k, longest=longest, strongest=strongest, closed=closed)
        return pd.DataFrame([self._path(path) for path in found], columns=["path", "edges", "strength", "sentences"])

    def _path(self, path: Sequence[int]) -> dict[str, Any]:
        strength, sentences = 1.0, []
        for before, after in pairwise(path):
            _, _, relation, inverse, weight = next(_plain(self.edges.iloc[[self._finder.edge(before, after)]]))
            swapped = inverse if relation >= 0 else after < self.nodes.n_users
            sentences.append(self.sentence(*((after, relation, before) if swapped else (before, relation, after))))
            strength *= weight
        return {
            "path": " → ".join(self.nodes.labels[node] for node in path),
            "edges": len(path) - 1,
            "strength": strength,
            "sentences": " ".join(sentences),
        }


def _plain(edges: pd.DataFrame) -> Iterator[tuple[int, int, int, bool, float]]:
    """Rows of `GraphView.edges` as Python values: source, target, relation, inverse, weight."""
    columns = (edges[name].tolist() for name in ("source", "target", "relation", "inverse", "weight"))
    return zip(*columns, strict=True)
