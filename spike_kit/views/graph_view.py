"""Neighbourhoods and paths in the knowledge graph, with SPiKE's attention on the edges."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from spike_kit.base.devices import resolve_device
from spike_kit.base.errors import ConfigError, DataError, SpikeKitError, require
from spike_kit.data.dataset import Dataset
from spike_kit.data.graph import Graph
from spike_kit.experiments.run import load_model
from spike_kit.experiments.run_folder import Run
from spike_kit.models.spike import Spike
from spike_kit.models.spike_explainer import SpikeExplainer
from spike_kit.profiles.template import fill
from spike_kit.views.graph_figure import neighbourhood_drawing, neighbourhood_figure
from spike_kit.views.safe import html_table, html_text
from spike_kit.views.search import Nodes
from spike_kit.views.widgets import Panel, clickable, redraw, write

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing
    from plotly.graph_objects import Figure

INTERACTION = "interaction"
"""Name of the edges between users and their train items."""

LEAST_WEIGHT = 1e-12
"""Weights below count as this much, so that every edge has a finite cost."""

_TRIED = 2_000
"""Paths that one search looks at, at most: those that are too long or not asked for count as well."""
_STEPS = 60
"""Iterations of the layout."""
_APART = 0.9
"""Distance that the layout aims at between neighbours."""


def explainer_of(run: Run, data: Dataset | None = None, device: str = "auto") -> SpikeExplainer:
    """Load the trained SPiKE of a run, ready to be explained.

    Raises
    ------
    DataError
        If the run is no SPiKE, or was trained on other data.
    """
    model = load_model(run, data, resolve_device(device))
    if not isinstance(model, Spike):
        raise DataError(f"{run.path.name} is no SPiKE", "choose such a run")
    return SpikeExplainer(model)


class GraphView:
    """A part of the graph around a node, that grows by expanding nodes.

    Parameters
    ----------
    data
        The data set.
    explainer
        A trained SPiKE, whose attention weighs the edges; none: an edge counts 1 / degree of its head.
    most
        Most neighbours that one expansion adds: of every relation in turn the one with the most weight, and users
        where there is nothing else.
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
        users: bool = False,
        seed: int = 0,
    ) -> None:
        self.data, self.nodes, self.most, self.users, self.seed = data, Nodes(data), most, users, seed
        self.explainer = explainer
        self.positions: dict[int, tuple[float, float]] = {}
        self.expanded: list[int] = []

    @classmethod
    def of(cls, run: Run | Dataset, device: str = "auto", **options: Any) -> GraphView:
        """The graph around the most popular item, with the attention of a SPiKE run, or of a data set without."""
        data = run if isinstance(run, Dataset) else Dataset.open(run.config["dataset"])
        explainer = None if isinstance(run, Dataset) else explainer_of(run, data, device)
        view = cls(data, explainer, **{"most": 15, "users": True, **options})
        view.show(view.nodes.popular_item)
        return view

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
        ends = {"source": tail + n_users, "target": head + n_users}
        about = {"relation": relation % max(n_relations, 1), "inverse": relation < n_relations}
        parts = [pd.DataFrame(ends | about | {"weight": weight})]
        if self.users:
            user, item = graph.train_user.numpy(), graph.train_item.numpy() + n_users
            common = {"relation": -1, "inverse": False, "weight": 1 / np.bincount(user)[user]}
            parts += [pd.DataFrame({"source": a, "target": b, **common}) for a, b in ((item, user), (user, item))]
        return pd.concat(parts, ignore_index=True)

    @cached_property
    def _around(self) -> dict[int, pd.DataFrame]:
        """Edges by their target, those that an expansion prefers first: relations take turns, interactions come last.

        Every relation gives its edges in the order of their weight.
        """
        edges = self.edges.sort_values("weight", ascending=False, kind="stable")
        edges["turn"] = edges.groupby(["target", "relation"]).cumcount()
        edges["user"] = edges["relation"] < 0
        edges = edges.sort_values(["user", "turn"], kind="stable")
        return {int(target): part for target, part in edges.groupby("target")}  # pyright: ignore[reportArgumentType]

    def _neighbours(self, node: int) -> list[int]:
        return list(dict.fromkeys(self._around[node]["source"].tolist())) if node in self._around else []

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
        fresh = [other for other in self._neighbours(node) if other not in self.positions][: self.most]
        if node not in self.expanded:
            self.expanded.append(node)
        if fresh:
            self._place(node, fresh)
        return len(fresh)

    def _place(self, node: int, fresh: Sequence[int]) -> None:
        """Lay new neighbours out around a node, away from what is shown."""
        networkx = require("networkx", "lab")
        fixed, here = list(self.positions), np.array(self.positions[node])
        out = here - np.mean(list(self.positions.values()), axis=0)
        x, y = here + 1.5 * out / (float(np.hypot(*out)) or 1.0)
        circle = np.linspace(0, 2 * math.pi, len(fresh), endpoint=False)
        begin = {new: (x + math.cos(a), y + math.sin(a)) for new, a in zip(fresh, circle, strict=True)}
        graph = networkx.Graph()
        graph.add_nodes_from([*fixed, *fresh])
        graph.add_edges_from(self._inside({*fixed, *fresh})[["source", "target"]].to_numpy().tolist())
        placed = networkx.spring_layout(
            graph, pos={**self.positions, **begin}, fixed=fixed, iterations=_STEPS, seed=self.seed, k=_APART
        )
        self.positions = {one: (float(p[0]), float(p[1])) for one, p in placed.items()}

    def _inside(self, nodes: set[int]) -> pd.DataFrame:
        """Edges among some nodes."""
        parts = [self._around[node] for node in nodes if node in self._around]
        edges = pd.concat(parts) if parts else self.edges.iloc[:0]
        return edges[edges["source"].isin(nodes)]

    @property
    def shown(self) -> str:
        """How much of the neighbourhoods is shown, in words."""
        around = {node: set(self._neighbours(node)) for node in self.expanded}
        return "; ".join(
            f"{self.nodes.labels[node]}: {len(near & self.positions.keys())} of {len(near)} neighbours shown"
            for node, near in around.items()
        )

    @property
    def links(self) -> pd.DataFrame:
        """Triples and interactions among the shown nodes, sorted by relation, head and tail.

        Returns
        -------
        DataFrame
            relation (-1: the user ``head`` has the item ``tail`` in train), head and tail (nodes), ``to head`` (weight
            of the tail in the head's message) and ``to tail`` (of the head in the tail's; NaN where there is no such
            message), name of the relation, sentence.
        """
        inside = self._inside(set(self.positions))
        is_user = inside["relation"] < 0
        to_head = np.where(is_user, inside["target"] < self.nodes.n_users, inside["inverse"])
        ends = inside[["source", "target"]].to_numpy()
        head, tail = (np.where(to_head, ends[:, one], ends[:, other]) for one, other in ((1, 0), (0, 1)))
        way = np.where(to_head, "to head", "to tail")
        frame = pd.DataFrame({"relation": inside["relation"].to_numpy(), "head": head, "tail": tail, "way": way})
        frame["weight"] = inside["weight"].to_numpy()
        keys = ["relation", "head", "tail"]
        links = frame.pivot_table(index=keys, columns="way", values="weight", aggfunc="last")
        links = links.reindex(columns=["to head", "to tail"]).reset_index().rename_axis(columns=None)
        words = [self._words(*link) for link in links[keys].to_numpy(dtype=int).tolist()]
        return links.assign(name=[name for name, _ in words], sentence=[sentence for _, sentence in words])

    def _words(self, relation: int, head: int, tail: int) -> tuple[str, str]:
        """Name of a relation, and the sentence a triple makes, or that a user interacted with an item in train."""
        head_label, tail_label = self.nodes.labels[head], self.nodes.labels[tail]
        if relation < 0:
            return INTERACTION, f"{head_label} has {tail_label} in train."
        row = self.data.relations.iloc[relation]
        return str(row["label"]), fill(str(row["template"]), head_label, tail_label)

    def sentence(self, head: int, relation: int, tail: int) -> str:
        """The sentence a triple makes, or that a user interacted with an item in train."""
        return self._words(relation, head, tail)[1]

    @property
    def table(self) -> pd.DataFrame:
        """`links` by name: head, relation, tail, sentence, ``to head``, ``to tail``."""
        links, labels = self.links, np.array(self.nodes.labels, dtype=object)
        named = {"head": labels[links["head"].to_numpy(int)], "relation": links["name"]}
        named["tail"] = labels[links["tail"].to_numpy(int)]
        return pd.DataFrame(named | {name: links[name] for name in ("sentence", "to head", "to tail")})

    @property
    def figure(self) -> Figure:
        """Nodes and edges: colour and dash by relation, width by attention, names and sentences on hover."""
        return neighbourhood_figure(self.links, self.positions, self.nodes, self.expanded)

    @property
    def drawing(self) -> Drawing:
        """The same for a page of paper."""
        return neighbourhood_drawing(self.links, self.positions, self.nodes, self.expanded)

    @property
    def drawn(self) -> pd.DataFrame:
        """What is drawn: `table`, and the places of both ends."""
        links, places = self.links, pd.DataFrame(self.positions, index=["x", "y"]).T
        table = self.table
        for end in ("head", "tail"):
            table[[f"{end} x", f"{end} y"]] = places.reindex(links[end]).to_numpy()
        return table

    def export(self, folder: Path | None = None) -> list[Path]:
        """Write the graph as it is now as PDF, and `drawn` as CSV; returns the files."""
        centre = self.nodes.labels[self.expanded[0]] if self.expanded else "empty"
        return write("graph", self.data, centre, self.drawing, self.drawn, folder)

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
        edges = self._strongest
        if not through_users:
            edges = edges[edges["target"] >= self.nodes.n_users]
        found = best_paths(edges, start, end, k, longest, strongest)
        return pd.DataFrame([self._path(path) for path in found], columns=["path", "edges", "strength", "sentences"])

    @cached_property
    def _strongest(self) -> pd.DataFrame:
        """The strongest edge from each node to each other one."""
        return self.edges.sort_values("weight", ascending=False, kind="stable").drop_duplicates(["source", "target"])

    @cached_property
    def _between(self) -> pd.DataFrame:
        return self._strongest.set_index(["source", "target"]).sort_index()

    def _path(self, path: Sequence[int]) -> dict[str, Any]:
        strength, sentences = 1.0, []
        for before, after in pairwise(path):
            edge: Any = self._between.loc[(before, after)]
            relation, inverse, weight = edge.tolist()
            swapped = inverse if relation >= 0 else after < self.nodes.n_users
            sentences.append(self.sentence(*((after, relation, before) if swapped else (before, relation, after))))
            strength *= weight
        names = " → ".join(self.nodes.labels[node] for node in path)
        return {"path": names, "edges": len(path) - 1, "strength": strength, "sentences": " ".join(sentences)}

    def panel(self) -> Any:
        """A search box, the graph (click a node to expand it), and the path finder."""
        panel = Panel(self)

        def show(node: int) -> None:
            self.show(node)
            refresh()

        def expand(node: int | None) -> None:
            if node is not None:
                self.expand(node)
                refresh()

        def refresh() -> None:
            labels = self.nodes.labels
            panel.offer("names", [(labels[node][:60], node) for node in self.positions])
            panel["shown"].value, panel["table"].value = html_text(self.shown), html_table(self.table)
            redraw(panel["graph"], self.figure)
            clickable(panel["graph"], expand)

        search = panel.search("centre", self.nodes, show, "centre")
        names = panel.add("names", "Dropdown", description="expand", tooltip="a node that is shown")
        button = panel.add("expand", "Button", lambda _: expand(names.value), description="Expand")
        rows = [search, panel.row(names, button, panel.exporter(self)), *panel.texts("shown")]
        rows.append(panel.chart("graph", self.figure))
        if self.users:
            rows += self._path_finder(panel)
        rows.append(panel.widgets.Accordion(panel.texts("table"), titles=("edges that are shown",)))
        refresh()
        return panel.box(*rows)

    def _path_finder(self, panel: Panel) -> list[Any]:
        """Rows of the panel that find paths."""

        def find(_: object) -> None:
            if panel["item"].value is None:
                panel["paths"].value = html_text("choose an item first")
                return
            _, item = self.nodes.subject(panel["item"].value)
            chosen = {name: panel[name].value for name in ("longest", "strongest", "through_users")}
            try:
                found = self.paths(panel["user"].value, item, **chosen)
            except SpikeKitError as error:
                panel["paths"].value = html_text(error)
                return
            none = "no path leads from this user to this item"
            panel["paths"].value = html_table(found) if len(found) else html_text(none)

        user = panel.add("user", "BoundedIntText", min=0, max=self.nodes.n_users - 1, description="user")
        item = panel.search("item", self.nodes, label="item", kinds=("item",))
        options = (
            panel.add("longest", "BoundedIntText", value=4, min=1, max=6, description="edges"),
            panel.add("strongest", "Checkbox", value=True, description="strongest first (else shortest)"),
            panel.add("through_users", "Checkbox", description="through other users"),
            panel.add("path", "Button", find, description="Find paths", tooltip="From the user's train items"),
        )
        return [panel.row(user, item), panel.row(*options), *panel.texts("paths")]


def best_paths(
    edges: pd.DataFrame, start: int, end: int, k: int, longest: int = 4, strongest: bool = True
) -> list[list[int]]:
    """Paths that visit no node twice, the best first (Yen's algorithm, of networkx).

    Only what lies on a walk of at most ``longest`` edges is searched, and at most some thousand paths are looked at.

    Parameters
    ----------
    edges
        source, target (at most one edge from a node to another) and weight (at most 1).
    start, end
        Nodes.
    k
        Most paths.
    longest
        Most edges of a path.
    strongest
        By the product of the weights, the largest first; otherwise by the number of edges, and of equally many by that
        product.

    Raises
    ------
    ConfigError
        If ``k`` or ``longest`` is not positive.
    """
    if k < 1 or longest < 1:
        raise ConfigError(f"k and longest must be at least 1, not {k} and {longest}")
    networkx = require("networkx", "lab")
    source, target = edges["source"].to_numpy(), edges["target"].to_numpy()
    n_nodes = int(max(source.max(initial=0), target.max(initial=0), start, end)) + 1
    there = _hops(start, source, target, n_nodes, longest)[source]
    back = _hops(end, target, source, n_nodes, longest)[target]
    near = there + 1 + back <= longest
    per_edge = 0.0 if strongest else -(longest + 1) * math.log(LEAST_WEIGHT)
    cost = per_edge - np.log(np.maximum(edges["weight"].to_numpy()[near], LEAST_WEIGHT))
    graph = networkx.DiGraph()
    graph.add_weighted_edges_from(zip(source[near].tolist(), target[near].tolist(), cost.tolist(), strict=True))
    if start not in graph or end not in graph:
        return []
    paths = islice(networkx.shortest_simple_paths(graph, start, end, "weight"), _TRIED)
    return list(islice((path for path in paths if len(path) <= longest + 1), k))


def _hops(start: int, source: np.ndarray, target: np.ndarray, n_nodes: int, most: int) -> np.ndarray:
    """Number of edges from a node to every other one, ``[n_nodes]``; beyond ``most`` it is ``most + 1``."""
    hops = np.full(n_nodes, most + 1)
    hops[start] = 0
    for number in range(1, most + 1):
        reached = target[hops[source] == number - 1]
        hops[reached] = np.minimum(hops[reached], number)
    return hops
