"""Maps of embeddings: text, injected and final vectors of all nodes, coloured, searched, selected."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from spike_kit.base.errors import ConfigError, DataError, require, some
from spike_kit.data.dataset import Dataset
from spike_kit.evaluation.maps import aligned, umap_coordinates
from spike_kit.experiments.run_folder import Run
from spike_kit.figures.maps import GREY, OTHER, Colouring, embedding_maps
from spike_kit.figures.style import COLOURS
from spike_kit.views.graph_view import explainer_of
from spike_kit.views.safe import html_table, html_text, printed, shown, wrapped
from spike_kit.views.search import Nodes
from spike_kit.views.widgets import LAYOUT, TYPED, Panel, write

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing
    from plotly.graph_objects import Figure

SPACES = ("text", "injected", "final")
"""Vectors of a SPiKE run: of the profiles' text, of the nodes after injection, of the nodes at the end."""

MOST_VALUES = 60
"""A relation with more tails than this is no colouring."""

MOST_ROWS = 30
"""Rows of the table that a panel shows."""

_NAMED = 12
"""Most nodes whose names are written beside their rings."""


class EmbeddingMap:
    """Maps of all nodes side by side, sharing colours, search and selection.

    Parameters
    ----------
    data
        The data set.
    spaces
        Title of every map and its coordinates (columns x, y; users first, then entities), for example of the text, the
        injected and the final vectors, or of one space at several epochs; later maps are laid over the first one.
    columns
        More columns to colour by: one value per node.
    profiles
        Profile set of the hover texts.

    Raises
    ------
    DataError
        If a map or a column does not have one row per node.
    """

    def __init__(
        self,
        data: Dataset,
        spaces: Mapping[str, pd.DataFrame],
        columns: Mapping[str, pd.Series] | None = None,
        profiles: str = "template",
    ) -> None:
        self.data, self.nodes, self.profiles = data, Nodes(data), profiles
        for name, rows in {**spaces, **(columns or {})}.items():
            if len(rows) != self.nodes.n_nodes:
                raise DataError(f"{name} has {len(rows)} rows, but {data.name} has {self.nodes.n_nodes} nodes")
        self.spaces = aligned(spaces)
        self.extra = dict(columns or {})
        self.colour = "kind"
        self.found: list[int] = []
        self.selected: list[int] = []

    @classmethod
    def of(cls, run: Run, spaces: Sequence[str] = SPACES, k: int = 12, device: str = "auto") -> EmbeddingMap:
        """Lay out the vectors of a SPiKE run (cached) and cluster its final ones."""
        data = Dataset.open(run.config["dataset"])
        vectors = node_spaces(data, run, spaces, device)
        maps = {name: umap_coordinates(rows) for name, rows in vectors.items()}
        view = cls(data, maps, profiles=run.config["profiles"])
        view.cluster(vectors[spaces[-1]], k)
        view.colour = "kind"
        return view

    @cached_property
    def columns(self) -> dict[str, pd.Series]:
        """What to colour by: kind, degree and popularity (logarithms), relations with few tails, and the extra."""
        data, n_users, n_entities = self.data, self.nodes.n_users, len(self.data.entities)
        train = data.split("train")
        of_users = np.bincount(train["user"], minlength=n_users)
        of_items = np.bincount(train["item"], minlength=n_entities)
        triples = np.bincount(np.r_[data.triples["head"], data.triples["tail"]], minlength=n_entities)
        columns = {
            "kind": self.nodes.kinds,
            "popularity (log10 of train interactions)": pd.Series(np.log10(np.r_[of_users, of_items] + 1)),
            "degree (log10 of triples; of users, interactions)": pd.Series(np.log10(np.r_[of_users, triples] + 1)),
        }
        labels = data.entities["label"].to_numpy()
        for relation in data.relations.to_dict("records"):
            part = data.triples[data.triples["relation"] == relation["relation"]].drop_duplicates("head")
            if 1 < part["tail"].nunique() <= MOST_VALUES:
                values = pd.Series([OTHER] * self.nodes.n_nodes, dtype="str")
                values.iloc[n_users + part["head"].to_numpy()] = labels[part["tail"]]
                columns[f"relation: {relation['label']}"] = values
        return columns | self.extra

    def recolour(self, name: str) -> Colouring:
        """Colour by a column.

        Raises
        ------
        ConfigError
            If there is no such column.
        """
        if name not in self.columns:
            raise ConfigError(f"there is no column {name!r}", f"there are {some(self.columns, 30)}")
        self.colour = name
        return self.colouring

    @property
    def colouring(self) -> Colouring:
        """How every node is coloured now."""
        return Colouring.of(self.columns[self.colour])

    @property
    def marker(self) -> dict[str, Any]:
        """Marker of plotly: colours of all points, and the scale they are read on."""
        colouring, n = self.colouring, len(self.colouring.names)
        if not n:
            return {"color": colouring.codes, "colorscale": "Cividis", "showscale": True, "cmin": None, "cmax": None}
        edges = [(number, number + 1) for number in range(n)]
        steps = [(at / n, colour) for both, colour in zip(edges, colouring.colours, strict=True) for at in both]
        return {"color": colouring.codes, "colorscale": steps, "cmin": -0.5, "cmax": n - 0.5, "showscale": False}

    def cluster(self, vectors: np.ndarray, k: int = 12, seed: int = 0) -> pd.Series:
        """Colour by clusters (k-means on rows of length 1) of vectors ``[n, d]``.

        More than a dozen colours cannot be told apart, and the seven largest get one; the clusters are there to name
        regions of a map, not to find a true number of groups.
        """
        kmeans = require("sklearn.cluster", "text").KMeans(k, n_init=1, random_state=seed)
        rows = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        column = pd.Series([f"cluster {number}" for number in kmeans.fit_predict(rows)])
        self.extra["cluster"] = self.columns["cluster"] = column
        self.colour = "cluster"
        return column

    def search(self, text: str, most: int = 50) -> list[int]:
        """Nodes with a name like ``text``; they are highlighted."""
        self.found = self.nodes.search(text, most)
        return self.found

    def select(self, nodes: Collection[int]) -> pd.DataFrame:
        """Choose nodes (clicked or inside a lasso) and return `table`."""
        self.selected = [node for node in nodes if 0 <= node < self.nodes.n_nodes]
        return self.table

    @property
    def table(self) -> pd.DataFrame:
        """The selected nodes, or those that were found: node, kind, label, the colouring's value, profile."""
        nodes = self.selected or self.found
        frame = self.nodes.table(nodes)
        frame[self.colour] = self.columns[self.colour].to_numpy()[nodes]
        return frame.assign(profile=[self.profile(node) for node in nodes])

    def profile(self, node: int) -> str:
        """Profile text of a node; empty where the profile set has none."""
        return self._texts.get(self.nodes.subject(node), "")

    @cached_property
    def _texts(self) -> dict[tuple[str, int], str]:
        return self.nodes.texts(self.profiles)

    @cached_property
    def hovers(self) -> list[str]:
        """What a hover says of every node: its name, and the first words of its profile."""
        kinds, labels = self.nodes.kinds.tolist(), self.nodes.labels
        return [
            f"<b>{shown(labels[node], 70)}</b> ({shown(kinds[node], 20)})<br>{wrapped(self.profile(node)[:220], 60, 3)}"
            for node in range(self.nodes.n_nodes)
        ]

    def _points(self, points: pd.DataFrame) -> dict[str, Any]:
        """Trace of all nodes in one map."""
        return {
            "x": points["x"].to_numpy(),
            "y": points["y"].to_numpy(),
            "mode": "markers",
            "marker": {"size": 4, "opacity": 0.75, **self.marker},
            "customdata": np.arange(self.nodes.n_nodes),
            "hovertext": self.hovers,
            "hovertemplate": "%{hovertext}<extra></extra>",
            "showlegend": False,
        }

    @property
    def figure(self) -> Figure:
        """All maps side by side; nodes that were found are circled and named."""
        subplots = require("plotly.subplots", "lab")
        titles = [shown(name) for name in self.spaces]
        chart = subplots.make_subplots(rows=1, cols=len(titles), subplot_titles=titles, horizontal_spacing=0.02)
        for column, points in enumerate(self.spaces.values(), start=1):
            chart.add_scattergl(**self._points(points), row=1, col=column)
        chart.update_traces(marker_showscale=False, selector=lambda trace: trace is not chart.data[0])
        for column, points in enumerate(self.spaces.values(), start=1):
            chart.add_scatter(**self.highlight(points), row=1, col=column)
        chart.add_traces(self.legend())
        chart.update_xaxes(visible=False)
        chart.update_yaxes(visible=False)
        legend = {"title": shown(self.colour, 40), "itemsizing": "constant", "orientation": "h", "y": -0.02}
        return chart.update_layout(**LAYOUT, height=520, dragmode="lasso", legend=legend)

    def highlight(self, points: pd.DataFrame) -> dict[str, Any]:
        """Trace that circles and names what was found, in one map."""
        place = points.iloc[self.found]
        return {
            "x": place["x"].tolist(),
            "y": place["y"].tolist(),
            "text": [shown(self.nodes.labels[node], 30) for node in self.found] if len(self.found) <= _NAMED else None,
            "mode": "markers+text",
            "textposition": "top center",
            "marker": {"size": 12, "symbol": "circle-open", "color": "black", "line": {"width": 2}},
            "hoverinfo": "skip",
            "showlegend": False,
        }

    def legend(self) -> list[Any]:
        """Empty traces for the legend, always as many: one per category, the rest invisible."""
        objects = require("plotly.graph_objects", "lab")
        entries = [(shown(name, 30), colour, True) for name, colour in self.colouring.legend.items()]
        entries += [("", GREY, False)] * (len(COLOURS) - len(entries))
        return [
            objects.Scatter(
                x=[None], y=[None], mode="markers", name=name, marker={"color": colour, "size": 9}, visible=visible
            )
            for name, colour, visible in entries
        ]

    def morph(self, steps: int = 12) -> Figure:
        """One map that moves from each space to the next; the slider stands at any place between them."""
        objects = require("plotly.graph_objects", "lab")
        stages = list(self.spaces.items())[:1]
        for (before, start), (after, end) in pairwise(self.spaces.items()):
            shares = [step / steps for step in range(1, steps)]
            stages += [(f"{before} → {after} {part:.0%}", (1 - part) * start + part * end) for part in shares]
            stages.append((after, end))
        chart = objects.Figure([objects.Scattergl(**self._points(stages[0][1])), *self.legend()])
        chart.frames = [
            objects.Frame(name=str(number), data=[objects.Scattergl(x=cloud["x"], y=cloud["y"])], traces=[0])
            for number, (_, cloud) in enumerate(stages)
        ]
        still = {"frame": {"duration": 0, "redraw": True}, "mode": "immediate", "transition": {"duration": 0}}
        play = {"frame": {"duration": 80, "redraw": True}, "fromcurrent": True, "transition": {"duration": 0}}
        moves = (("Play", [None, play]), ("Pause", [[None], still]))
        steps_of_slider = [
            {"args": [[str(number)], still], "label": shown(name, 40), "method": "animate"}
            for number, (name, _) in enumerate(stages)
        ]
        buttons = [{"label": name, "method": "animate", "args": args} for name, args in moves]
        places = pd.concat([cloud for _, cloud in stages])
        room = 0.03 * (places.max() - places.min())
        low, high = places.min() - room, places.max() + room
        return chart.update_layout(
            **LAYOUT,
            height=620,
            xaxis={"visible": False, "range": [low["x"], high["x"]]},
            yaxis={"visible": False, "range": [low["y"], high["y"]], "scaleanchor": "x"},
            sliders=[{"steps": steps_of_slider, "currentvalue": {"prefix": ""}}],
            updatemenus=[{"type": "buttons", "direction": "left", "buttons": buttons, "x": 0.0, "xanchor": "left"}],
        )

    @property
    def drawn(self) -> pd.DataFrame:
        """Everything the maps show: node, kind, label, the colouring's value, found, selected, places by map."""
        frame = self.nodes.table(range(self.nodes.n_nodes))
        frame[self.colour] = self.columns[self.colour].to_numpy()
        frame["found"], frame["selected"] = (frame["node"].isin(nodes) for nodes in (self.found, self.selected))
        for name, points in self.spaces.items():
            frame[[f"{name} x", f"{name} y"]] = points[["x", "y"]].to_numpy()
        return frame

    @property
    def drawing(self) -> Drawing:
        """The maps for a page of paper; what was found or selected has a ring."""
        ringed = list(dict.fromkeys([*self.found, *self.selected]))
        names = [printed(self.nodes.labels[node], 30) if len(ringed) <= _NAMED else "" for node in ringed]
        maps = {printed(name, 40): points for name, points in self.spaces.items()}
        rings = dict(zip(ringed, names, strict=True))
        return embedding_maps(maps, self.columns[self.colour], rings, printed(self.colour, 60))

    def export(self, folder: Path | None = None) -> list[Path]:
        """Write the maps as they are now as PDF, and `drawn` as CSV; returns the files."""
        return write("map", self.data, self.colour, self.drawing, self.drawn, folder)

    def panel(self) -> Any:
        """Colours, search, hover, click and lasso, and the table of what is chosen; coordinates are sent once."""
        panel, n_maps = Panel(self), len(self.spaces)
        chart_box = panel.chart("map", self.figure)
        chart = panel["map"]
        points, rings, legend = chart.data[:n_maps], chart.data[n_maps : 2 * n_maps], chart.data[2 * n_maps :]

        def recolour(name: str) -> None:
            self.recolour(name)
            marker = self.marker
            with chart.batch_update():
                for number, trace in enumerate(points):
                    trace.marker.update({**marker, "showscale": marker["showscale"] and number == 0})
                for trace, entry in zip(legend, self.legend(), strict=True):
                    trace.update(name=entry.name, visible=entry.visible, marker={"color": entry.marker.color})
                chart.layout.legend.title = shown(name, 40)
            tell()

        def search(text: str) -> None:
            self.selected, found = [], self.search(text)
            with chart.batch_update():
                for trace, places in zip(rings, self.spaces.values(), strict=True):
                    ring = self.highlight(places)
                    trace.update(x=ring["x"], y=ring["y"], text=ring["text"])
            tell(f"nothing is called {text!r}" if text and not found else None)

        def select(_: Any, chosen: Any, __: Any = None) -> None:
            if chosen.point_inds:
                self.select(chosen.point_inds)
                tell()

        def clear(_: object) -> None:
            panel["search"].value = ""
            search("")

        def tell(answer: str | None = None) -> None:
            nodes = self.selected or self.found
            answer = answer or ("" if nodes else "click a point, or draw a lasso around some")
            rest = f"{MOST_ROWS} of {len(nodes)} shown" if len(nodes) > MOST_ROWS else answer
            panel["results"].value = (html_table(self.table.head(MOST_ROWS)) if nodes else "") + html_text(rest)

        colours = {"options": list(self.columns), "value": self.colour}
        line = panel.row(
            panel.add("colour", "Dropdown", recolour, description="colour by", **colours),
            panel.add("search", "Text", search, description="search", **TYPED),
            panel.add("clear", "Button", clear, description="Clear", tooltip="Forget what was found and selected"),
            panel.exporter(self),
        )
        box = panel.box(line, chart_box, *panel.texts("results"))
        for trace in points:
            trace.on_click(select)
            trace.on_selection(select)
        tell()
        return box


def node_spaces(data: Dataset, run: Run, spaces: Sequence[str] = SPACES, device: str = "cpu") -> dict[str, np.ndarray]:
    """Vectors of all nodes of a SPiKE run, users first: ``[U + E, d]`` for each of `SPACES` that is asked for.

    Raises
    ------
    DataError
        If the run is no SPiKE with profiles.
    """
    if "profiles" not in run.config:
        raise DataError(f"{run.path.name} is no SPiKE with profiles", "choose such a run")
    explainer = explainer_of(run, data, device)
    model = explainer.model
    found: dict[str, np.ndarray] = {}
    with torch.no_grad():
        if "text" in spaces:
            vectors = data.vectors(run.config["profiles"], run.config["encoder"])
            found["text"] = torch.cat([vectors.user, vectors.entity]).numpy()
        if "injected" in spaces:
            ids = torch.cat([model.user_embedding, model.entity_embedding])
            found["injected"] = (ids + model.config.rho * explainer.profiles * model.config.inject).cpu().numpy()
        if "final" in spaces:
            found["final"] = torch.cat(model.node_embeddings()).cpu().numpy()
    return found
