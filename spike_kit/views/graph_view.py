"""Neighbourhoods and paths in the knowledge graph, with SPiKE's attention on the edges."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.sparse import csgraph

from spike_kit.base.devices import resolve_device
from spike_kit.base.errors import ConfigError, DataError, require
from spike_kit.data.dataset import Dataset
from spike_kit.data.graph import Graph
from spike_kit.experiments.run import Run, load_model
from spike_kit.figures import style
from spike_kit.models.spike import Spike
from spike_kit.models.spike_explainer import SpikeExplainer
from spike_kit.profiles.template import fill
from spike_kit.views.safe import html_table, html_text, printed, shown, wrapped
from spike_kit.views.tables import Nodes
from spike_kit.views.widgets import DASHES, LAYOUT, Panel, redraw, write

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing
    from plotly.graph_objects import Figure

INTERACTION = "interaction"
"""Name of the edges between users and their train items."""

LEAST_WEIGHT = 1e-12
"""Weights below count as this much, so that every edge has a finite cost."""

LINE_COLOURS = tuple(colour for colour in style.COLOURS if colour != "#F0E442")
"""Colours of relations; yellow lines are too faint on white."""

ATTENTION, WIDTHS = (0.05, 0.15, 0.35), (0.8, 1.6, 2.8, 4.5)
"""Attention from which an edge is wider, and the widths in pixels: plotly draws one width per trace."""

SYMBOLS = {"user": ("triangle-up", "^"), "item": ("circle", "o"), "auxiliary": ("square", "s")}
"""Mark of a node, as plotly and as matplotlib call it."""

NAMED = 60
"""Most nodes whose names are written; beyond, names show on hover."""

_HOVER_AT = (0.35, 0.5, 0.65)
"""Where on a line the hover answers, as shares of its length."""

_APART = 0.012
"""Distance between lines that join the same two nodes, as a share of the picture."""

_TRIED = 2_000
"""Paths that one search looks at, at most: those that are too long count as well."""
_STEPS = 60
"""Iterations of the layout."""
_DISTANCE = 0.9
"""What the layout aims at between neighbours."""


def explainer_of(run: Run, device: str = "auto") -> SpikeExplainer:
    """Load the trained SPiKE of a run, ready to be explained.

    Raises
    ------
    DataError
        If the run is no SPiKE, or was trained on other data.
    """
    model = load_model(run, run.data, resolve_device(device))
    if not isinstance(model, Spike):
        raise DataError(f"{run.path.name} is no SPiKE", "choose such a run")
    return SpikeExplainer(model)


class GraphView:
    """A part of the graph around a node, the most popular item to begin with, that grows by expanding nodes.

    Parameters
    ----------
    data
        The data set.
    explainer
        A trained SPiKE, whose attention weighs the edges; none: an edge counts 1 / degree of its head.
    most
        Most neighbours that one expansion adds: of every relation in turn the one with the most weight, and users
        where there is nothing else.

    Attributes
    ----------
    positions
        Where each shown node stands.
    expanded
        Nodes whose neighbours are shown, the first one in the centre.
    """

    def __init__(self, data: Dataset, explainer: SpikeExplainer | None = None, *, most: int = 15) -> None:
        self.data, self.nodes, self.explainer, self.most = data, Nodes(data), explainer, most
        self.show(self.nodes.popular_item)

    @classmethod
    def of(cls, run: Run | Dataset, device: str = "auto", most: int = 15) -> GraphView:
        """The graph with the attention of a SPiKE run, or that of a data set without."""
        explainer = None if isinstance(run, Dataset) else explainer_of(run, device)
        return cls(run if isinstance(run, Dataset) else run.data, explainer, most=most)

    @cached_property
    def edges(self) -> pd.DataFrame:
        """Directed edges with their weight: a message goes from ``source`` to ``target``.

        Of the edges to a node, those that an expansion prefers come first: relations take turns, each gives its edges
        by weight, interactions come last.

        Returns
        -------
        DataFrame
            source, target (nodes), relation (0..R-1, -1 for an interaction), inverse (whether it reads from
            target to source; an interaction reads from user to item), weight of the source in the target's message.
            What a user gives to an item counts 1 / (the user's train items) instead: it is the item's weight in the
            user's mean, and by default items take no message from users at all.
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
        user, item = graph.train_user.numpy(), graph.train_item.numpy() + n_users
        taken = {"relation": -1, "weight": 1 / np.bincount(user)[user]}
        parts = (
            pd.DataFrame(ends | about | {"weight": weight}),
            pd.DataFrame({"source": item, "target": user, "inverse": True, **taken}),
            pd.DataFrame({"source": user, "target": item, "inverse": False, **taken}),
        )
        edges = pd.concat(parts).sort_values("weight", ascending=False, kind="stable")
        turns = edges.assign(user=edges["relation"] < 0, turn=edges.groupby(["target", "relation"]).cumcount())
        return turns.sort_values(["user", "turn"], kind="stable", ignore_index=True).drop(columns=["user", "turn"])

    def _neighbours(self, node: int) -> list[int]:
        return self.edges.loc[self.edges["target"] == node, "source"].unique().tolist()

    def show(self, node: int) -> None:
        """Begin anew with a node and its neighbours.

        Raises
        ------
        DataError
            If there is no such node.
        """
        self.nodes.subject(node)
        self.positions: dict[int, tuple[float, float]] = {node: (0.0, 0.0)}
        self.expanded: list[int] = []
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
        self.expanded.append(node)
        if fresh:
            self._place(node, fresh)
        return len(fresh)

    def _place(self, node: int, fresh: Sequence[int]) -> None:
        """Lay new neighbours out around a node."""
        networkx = require("networkx", "lab")
        fixed, (x, y) = list(self.positions), self.positions[node]
        circle = np.linspace(0, 2 * math.pi, len(fresh), endpoint=False)
        begin = {new: (x + math.cos(a), y + math.sin(a)) for new, a in zip(fresh, circle, strict=True)}
        graph = networkx.Graph(self._inside([*fixed, *fresh])[["source", "target"]].to_numpy().tolist())
        graph.add_nodes_from([*fixed, *fresh])
        options = {"pos": {**self.positions, **begin}, "fixed": fixed, "iterations": _STEPS, "seed": 0, "k": _DISTANCE}
        placed = networkx.spring_layout(graph, **options)
        self.positions = {one: tuple(place.tolist()) for one, place in placed.items()}

    def _inside(self, nodes: Sequence[int]) -> pd.DataFrame:
        """Edges among some nodes."""
        return self.edges[self.edges["target"].isin(nodes) & self.edges["source"].isin(nodes)]

    @property
    def shown(self) -> str:
        """How much of the neighbourhood of the last expanded node is shown, in words."""
        node, near = self.expanded[-1], self._neighbours(self.expanded[-1])
        n = sum(other in self.positions for other in near)
        return f"{self.nodes.labels[node]}: {n} of {len(near)} neighbours shown"

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
        inside, keys = self._inside(list(self.positions)), ["relation", "head", "tail"]
        ways = inside.assign(
            head=inside["target"].where(inside["inverse"], inside["source"]),
            tail=inside["source"].where(inside["inverse"], inside["target"]),
            way=np.where(inside["inverse"], "to head", "to tail"),
        )
        links = ways.pivot_table(index=keys, columns="way", values="weight", aggfunc="last")
        links = links.reindex(columns=["to head", "to tail"]).reset_index().rename_axis(columns=None)
        words = [self.words(*link) for link in links[keys].to_numpy(dtype=int).tolist()]
        return links.assign(name=[name for name, _ in words], sentence=[sentence for _, sentence in words])

    def words(self, relation: int, head: int, tail: int) -> tuple[str, str]:
        """Name of a relation, and the sentence a triple makes, or that a user interacted with an item in train."""
        head_label, tail_label = self.nodes.labels[head], self.nodes.labels[tail]
        if relation < 0:
            return INTERACTION, f"{head_label} has {tail_label} in train."
        row = self.data.relations.iloc[relation]
        return str(row["label"]), fill(str(row["template"]), head_label, tail_label)

    @property
    def table(self) -> pd.DataFrame:
        """`links` by name: head, relation, tail, sentence, ``to head``, ``to tail``, and where both ends stand."""
        links, labels = self.links, np.array(self.nodes.labels, dtype=object)
        named = {"head": labels[links["head"]], "relation": links["name"], "tail": labels[links["tail"]]}
        table = pd.DataFrame(named | {name: links[name] for name in ("sentence", "to head", "to tail")})
        places = pd.DataFrame(self.positions, index=["x", "y"]).T
        for end in ("head", "tail"):
            table[[f"{end} x", f"{end} y"]] = places.reindex(links[end]).to_numpy()
        return table

    def _lines(self) -> dict[int, pd.DataFrame]:
        """Links by relation, with their ``line`` ``[2, 2]`` and ``width``; those of the same nodes lie side by side."""
        links, places = self.links, np.array(list(self.positions.values()))
        size = float(np.ptp(places, axis=0).max()) or 1.0
        nodes = np.sort(links[["head", "tail"]].to_numpy(dtype=int), axis=1)
        together = links.assign(low=nodes[:, 0], high=nodes[:, 1]).groupby(["low", "high"])["head"]
        shift = together.cumcount() - (together.transform("size") - 1) / 2
        ends = np.array([[self.positions[node] for node in pair] for pair in nodes.tolist()]).reshape(-1, 2, 2)
        x, y = (ends[:, 1] - ends[:, 0]).T
        across = np.stack([-y, x], axis=1) / np.maximum(np.hypot(x, y), 1e-12)[:, None]
        moved = ends + (across * (size * _APART * shift.to_numpy())[:, None])[:, None]
        weight = links[["to head", "to tail"]].max(axis=1).fillna(0.0)
        drawn = links.assign(line=list(moved), width=np.array(WIDTHS)[np.digitize(weight, ATTENTION)])
        return {int(str(relation)): part for relation, part in drawn.groupby("relation")}

    def _marks(self) -> pd.DataFrame:
        """The shown nodes: node, kind, label, x, y, subject, and a fill that tells which are expanded."""
        frame = self.nodes.table(list(self.positions))
        frame[["x", "y"]] = list(self.positions.values())
        frame["subject"] = [self.nodes.subject(node)[0] for node in self.positions]
        return frame.assign(fill=np.where(frame["node"].isin(self.expanded), "#BBBBBB", "white"))

    @property
    def figure(self) -> Figure:
        """Nodes and edges: colour and dash by relation, width by attention, names and sentences on hover."""
        marks = self._marks()
        marks["name"] = [shown(label, 28) if len(marks) <= NAMED else "" for label in marks["label"]]
        told = zip(marks["label"], marks["kind"], strict=True)
        marks["hover"] = [f"<b>{shown(label, 80)}</b><br>{shown(kind, 40)}, click to expand" for label, kind in told]
        chart = require("plotly.graph_objects", "lab").Figure()
        for relation, links in self._lines().items():
            _add_relation(chart, relation + 1, links)
        for subject, own in marks.groupby("subject"):
            look = {"symbol": SYMBOLS[str(subject)][0], "size": 12, "line": {"color": "black", "width": 1.5}}
            named = {"text": own["name"], "textposition": "top center", "textfont": {"size": 10, "color": "#222222"}}
            hover = {"hovertext": own["hover"], "hovertemplate": "%{hovertext}<extra></extra>"}
            options = {"mode": "markers+text", "cliponaxis": False, "legendgroup": "nodes", "customdata": own["node"]}
            marker = {**look, "color": own["fill"], "opacity": 1}
            chart.add_scatter(x=own["x"], y=own["y"], name=subject, marker=marker, **named, **hover, **options)
        legend = {"title": "relation<br>(thick: much attention)", "itemsizing": "trace"}
        chart.update_layout(**LAYOUT, height=600, hovermode="closest", legend=legend)
        return chart.update_xaxes(visible=False).update_yaxes(visible=False)

    @property
    def drawing(self) -> Drawing:
        """The same for a page of paper."""
        collections = require("matplotlib.collections", "figures")
        handles: dict[str, Any] = {}
        with style.figure_style():
            figure = style.blank_figure(style.TWO_COLUMNS, 4.5)
            axes = figure.subplots()
            axes.set_axis_off()
            axes.margins(0.08)
            for relation, links in self._lines().items():
                colour, dash = (looks[(relation + 1) % len(looks)] for looks in (LINE_COLOURS, style.DASHES))
                look = {"color": colour, "linestyle": dash, "alpha": 0.75, "zorder": 1}
                drawn = collections.LineCollection(links["line"].tolist(), linewidths=0.6 * links["width"], **look)
                handles[links["name"].iloc[0][:40]] = axes.add_collection(drawn)
            for subject, own in self._marks().groupby("subject"):
                look = {"marker": SYMBOLS[str(subject)][1], "edgecolors": "black", "linewidths": 0.7, "zorder": 2}
                handles[str(subject)] = axes.scatter(own["x"], own["y"], 24, own["fill"], **look)
            for node, place in self.positions.items() if len(self.positions) <= NAMED else ():
                above = {"xytext": (0, 4), "textcoords": "offset points", "ha": "center", "fontsize": 6}
                axes.annotate(printed(self.nodes.labels[node], 28), place, **above)
            style.legend_above(figure, handles)
        return figure

    def export(self, folder: Path | None = None) -> list[Path]:
        """Write the graph as it is now as PDF, and `table` as CSV; returns the files."""
        centre = self.nodes.labels[self.expanded[0]]
        return write("graph", self.data, centre, self.drawing, self.table, folder)

    def paths(self, user: int, item: int, k: int = 5, *, longest: int = 4, through_users: bool = False) -> pd.DataFrame:
        """Strongest paths from a user over a train item and the graph to an item.

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
        longest
            Most edges of a path.
        through_users
            Whether paths may pass other users who share train items.

        Returns
        -------
        DataFrame
            path (names, an arrow between them), edges (their number), strength (product of the weights; the largest
            first), sentences.

        Raises
        ------
        DataError
            If there is no such user or item.
        ConfigError
            If ``k`` or ``longest`` is not positive.
        """
        start, end = self.nodes.node("user", user), self.nodes.node("item", item)
        edges = self.edges if through_users else self.edges[self.edges["target"] >= self.nodes.n_users]
        found = [self._path(path) for path in best_paths(edges, start, end, k, longest)]
        return pd.DataFrame(found, columns=["path", "edges", "strength", "sentences"])

    def _path(self, path: Sequence[Mapping[str, Any]]) -> tuple[str, int, float, str]:
        """A row of `paths`."""
        strength, names, sentences = 1.0, [self.nodes.labels[path[0]["source"]]], []
        for edge in path:
            ends = (edge["target"], edge["source"]) if edge["inverse"] else (edge["source"], edge["target"])
            sentences.append(self.words(edge["relation"], *ends)[1])
            names.append(self.nodes.labels[edge["target"]])
            strength *= edge["weight"]
        return " → ".join(names), len(path), strength, " ".join(sentences)

    def panel(self) -> Any:
        """A search box, and the graph: click a node to expand it."""
        panel = Panel(self)

        def show(node: int) -> None:
            self.show(node)
            refresh()

        def click(trace: Any, points: Any, _: Any) -> None:
            if points.point_inds:
                self.expand(int(trace.customdata[points.point_inds[0]]))
                refresh()

        def refresh() -> None:
            panel["shown"].value, panel["table"].value = html_text(self.shown), html_table(self.table.iloc[:, :6])
            redraw(panel["graph"], self.figure)
            for trace in panel["graph"].select_traces(lambda trace: trace.customdata is not None):
                trace.on_click(click)

        rows = [panel.search("centre", self.nodes, show), panel.exporter(self.export), *panel.texts("shown")]
        edges = panel.widgets.Accordion(panel.texts("table"), titles=("edges that are shown",))
        rows += [panel.chart("graph", self.figure), edges]
        refresh()
        return panel.box(*rows)


def _add_relation(chart: Any, number: int, links: pd.DataFrame) -> None:
    """Lines of one relation, a trace per width class, and invisible points on them that carry the hover."""
    colour, dash = LINE_COLOURS[number % len(LINE_COLOURS)], DASHES[number % len(DASHES)]
    common = {"name": shown(links["name"].iloc[0], 40), "legendgroup": f"relation {number}"}
    for index, (width, part) in enumerate(links.groupby("width")):
        xs, ys = ([value for line in part["line"] for value in (*line[:, axis], None)] for axis in (0, 1))
        options = {"showlegend": index == 0, "hoverinfo": "skip", "opacity": 0.75, **common}
        chart.add_scatter(x=xs, y=ys, mode="lines", line={"color": colour, "dash": dash, "width": width}, **options)
    xs, ys = np.concatenate([line[0] + np.outer(_HOVER_AT, line[1] - line[0]) for line in links["line"]]).T.tolist()
    text = [_hover(link) for link in links.to_dict("records") for _ in _HOVER_AT]
    look = {"mode": "markers", "marker": {"size": 9, "color": colour, "opacity": 0}, "showlegend": False, **common}
    chart.add_scatter(x=xs, y=ys, text=text, hovertemplate="%{text}<extra></extra>", **look)


def _hover(link: Mapping[Any, Any]) -> str:
    """Relation, sentence (which says the direction), and both weights."""
    parts = [f"<b>{shown(link['name'], 40)}</b>", wrapped(link["sentence"], 60, 3)]
    for weight, text in (("to head", "of the second in the first"), ("to tail", "of the first in the second")):
        if pd.notna(link[weight]):
            parts.append(f"weight {text}: {link[weight]:.3f}")
    return "<br>".join(parts)


def best_paths(edges: pd.DataFrame, start: int, end: int, k: int, longest: int = 4) -> list[list[dict[str, Any]]]:
    """Paths that visit no node twice, by the product of their weights, the largest first (Yen's algorithm of networkx).

    Only what lies on a walk of at most ``longest`` edges is searched, and at most some thousand paths are looked at.

    Parameters
    ----------
    edges
        source, target and weight (at most 1); of several edges from a node to another one the heaviest counts.
    start, end
        Nodes.
    k
        Most paths.
    longest
        Most edges of a path.

    Returns
    -------
    list
        Of every path its edges: what ``edges`` holds of them.

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
    links = sparse.coo_array((np.ones(len(edges)), (source, target)), shape=(n_nodes, n_nodes)).tocsr()
    hops: dict[str, Any] = {"unweighted": True, "limit": longest}
    there, back = (csgraph.dijkstra(ways, indices=[one], **hops)[0] for ways, one in ((links, start), (links.T, end)))
    near = edges[there[source] + 1 + back[target] <= longest].sort_values("weight", kind="stable")
    costs = near.assign(cost=-np.log(near["weight"].clip(lower=LEAST_WEIGHT)))
    graph = networkx.from_pandas_edgelist(costs, edge_attr=True, create_using=networkx.DiGraph)
    if start not in graph or end not in graph:
        return []
    paths = islice(networkx.shortest_simple_paths(graph, start, end, "cost"), _TRIED)
    short = islice((path for path in paths if len(path) <= longest + 1), k)
    return [[{"source": a, "target": b, **graph.edges[a, b]} for a, b in pairwise(path)] for path in short]
