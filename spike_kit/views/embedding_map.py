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

from spike_kit.base.errors import DataError, lookup, require
from spike_kit.data.dataset import Dataset, parts_of, texts_by_subject
from spike_kit.evaluation.maps import aligned, umap_coordinates
from spike_kit.experiments.run import Run
from spike_kit.figures.charts import OTHER, Colouring, embedding_maps
from spike_kit.views.graph_view import explainer_of
from spike_kit.views.safe import html_table, html_text, printed, shown, wrapped
from spike_kit.views.tables import Nodes, origin
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
_RING = {"size": 12, "symbol": "circle-open", "color": "black", "line": {"width": 2}}
_HINT = "click a point, or draw a lasso around some"
_BELOW = {"showarrow": False, "xref": "paper", "yref": "paper", "x": 0, "y": 0, "yanchor": "top"}


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

    Attributes
    ----------
    columns
        What to colour by: kind, degree and popularity, relations with few tails, and those that were given.
    colour
        Name of the column that is shown.
    found, selected
        Nodes that a search found, and those that were clicked or inside a lasso.

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
        self.nodes.expect({**spaces, **(columns or {})})
        self.spaces = aligned(spaces)
        self.columns = {**_columns(data, self.nodes), **(columns or {})}
        self.colour = "kind"
        self.found: list[int] = []
        self.selected: list[int] = []

    @classmethod
    def of(cls, run: Run, spaces: Sequence[str] = SPACES, k: int = 12, device: str = "auto") -> EmbeddingMap:
        """Lay out the vectors of a SPiKE run (cached) and cluster its final ones."""
        vectors = node_spaces(run, spaces, device)
        maps = {name: umap_coordinates(rows) for name, rows in vectors.items()}
        view = cls(run.data, maps, profiles=run.config["profiles"])
        view.cluster(list(vectors.values())[-1], k)
        return view

    @property
    def colouring(self) -> Colouring:
        """How every node is coloured now.

        Raises
        ------
        ConfigError
            If there is no column `colour`.
        """
        return Colouring.of(lookup(self.columns, self.colour, "column"))

    @property
    def legend(self) -> str:
        """What the colours mean, as text for plotly."""
        colours = self.colouring.legend.items()
        dots = [f'<span style="color: {colour}">●</span> {shown(name, 30)}' for name, colour in colours]
        return f"{shown(self.colour, 40)}&nbsp; {'&nbsp; '.join(dots)}"

    @property
    def scale(self) -> dict[str, Any]:
        """Scale of plotly on which the colours of the points are read."""
        n, colours = len(self.colouring.names), self.colouring.colours
        if not n:
            return {"colorscale": "Cividis", "showscale": True}
        steps = [((number + end) / n, colour) for number, colour in enumerate(colours) for end in (0, 1)]
        return {"colorscale": steps, "cmin": -0.5, "cmax": n - 0.5, "showscale": False}

    def cluster(self, vectors: np.ndarray, k: int = 12, seed: int = 0) -> pd.Series:
        """Add a column ``cluster`` (k-means on rows of length 1, at most as many as differ) of vectors ``[n, d]``.

        More than a dozen colours cannot be told apart, and the seven largest get one; the clusters are there to name
        regions of a map, not to find a true number of groups.
        """
        rows = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        n = min(k, len(np.unique(rows, axis=0)))
        kmeans = require("sklearn.cluster", "text").KMeans(n, n_init=1, random_state=seed)
        self.columns["cluster"] = pd.Series([f"cluster {number}" for number in kmeans.fit_predict(rows)])
        return self.columns["cluster"]

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
        return frame.assign(profile=[self.texts[node] for node in nodes])

    @cached_property
    def texts(self) -> list[str]:
        """Profile text of every node; empty where the profile set has none."""
        known = texts_by_subject(self.data.profiles(self.profiles))
        return [known.get(self.nodes.subject(node), "") for node in range(self.nodes.n_nodes)]

    @cached_property
    def hovers(self) -> list[str]:
        """What a hover says of every node: its name, and the first words of its profile."""
        nodes = zip(self.nodes.labels, self.nodes.kinds, self.texts, strict=True)
        return [
            f"<b>{shown(name, 70)}</b> ({shown(kind, 20)})<br>{wrapped(text[:220], 60, 3)}"
            for name, kind, text in nodes
        ]

    def _clouds(self, clouds: Mapping[str, pd.DataFrame], names: Sequence[str], **options: Any) -> Figure:
        """Points of all nodes in several places, coloured as they are now, with the meaning of the colours below."""
        about = {"name": names, "colour": self.colouring.codes}
        frame = pd.concat([places.assign(space=shown(name), **about) for name, places in clouds.items()])
        looks = {"color": "colour", "hover_name": "name", "hover_data": {"x": False, "y": False, "colour": False}}
        chart = require("plotly.express", "lab").scatter(frame, "x", "y", render_mode="webgl", **looks, **options)
        chart.for_each_annotation(lambda title: title.update(text=title.text.partition("=")[2]))
        chart.update_xaxes(visible=False).update_yaxes(visible=False)
        chart.add_annotation(text=self.legend, **_BELOW)
        return chart.update_layout(**LAYOUT, coloraxis=self.scale)

    @property
    def figure(self) -> Figure:
        """All maps side by side; nodes that were found are circled and named."""
        chart = self._clouds(self.spaces, self.hovers, facet_col="space", facet_col_spacing=0.02)
        marker = {"size": 4, "opacity": 0.75}
        chart.update_traces(hovertemplate="%{hovertext}<extra></extra>", marker=marker)
        rings = {"mode": "markers+text", "textposition": "top center", "marker": _RING, "hoverinfo": "skip"}
        for column, points in enumerate(self.spaces.values(), start=1):
            chart.add_scatter(**self.highlight(points), **rings, showlegend=False, row=1, col=column)
        chart.update_xaxes(matches=None).update_yaxes(matches=None)
        return chart.update_layout(height=520, dragmode="lasso")

    def highlight(self, points: pd.DataFrame) -> dict[str, Any]:
        """Places in one map, and names, of what was found."""
        names = [shown(self.nodes.labels[node], 30) for node in self.found] if len(self.found) <= _NAMED else None
        places = points.iloc[self.found]
        return {"x": places["x"].tolist(), "y": places["y"].tolist(), "text": names}

    def morph(self, steps: int = 12) -> Figure:
        """One map that moves from each space to the next; the slider stands at any place between them."""
        stages = dict(list(self.spaces.items())[:1])
        for (before, start), (after, end) in pairwise(self.spaces.items()):
            for share in (step / steps for step in range(1, steps)):
                stages[f"{before} → {after} {share:.0%}"] = (1 - share) * start + share * end
            stages[after] = end
        frame = pd.concat(stages.values())
        room = 0.03 * (frame[["x", "y"]].max() - frame[["x", "y"]].min())
        ranges = {f"range_{axis}": [frame[axis].min() - room[axis], frame[axis].max() + room[axis]] for axis in "xy"}
        names = [shown(label, 40) for label in self.nodes.labels]
        chart = self._clouds(stages, names, animation_frame="space", **ranges)
        return chart.update_yaxes(scaleanchor="x").update_layout(height=720)

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
        rings = {node: printed(self.nodes.labels[node], 30) if len(ringed) <= _NAMED else "" for node in ringed}
        maps = {printed(name, 40): points for name, points in self.spaces.items()}
        return embedding_maps(maps, self.columns[self.colour], rings, printed(self.colour, 60))

    def export(self, folder: Path | None = None) -> list[Path]:
        """Write the maps as they are now as PDF, and `drawn` as CSV; returns the files."""
        return write("map", self.data, self.colour, self.drawing, self.drawn, folder)

    def panel(self) -> Any:
        """Colours, search, hover, click and lasso, and the table of what is chosen; coordinates are sent once."""
        panel, n_maps = Panel(self), len(self.spaces)
        box = panel.chart("map", self.figure)
        chart = panel["map"]

        def recolour(name: str) -> None:
            self.colour = name
            with chart.batch_update():
                for trace in chart.data[:n_maps]:
                    trace.marker.color = self.colouring.codes
                chart.layout.coloraxis = self.scale
                chart.layout.annotations[-1].text = self.legend
            tell()

        def search(text: str) -> None:
            self.selected, found = [], self.search(text)
            with chart.batch_update():
                for trace, places in zip(chart.data[n_maps:], self.spaces.values(), strict=True):
                    trace.update(self.highlight(places))
            tell(f"nothing is called {text!r}" if text and not found else _HINT)

        def select(_: Any, chosen: Any, __: Any = None) -> None:
            if chosen.point_inds:
                self.select(chosen.point_inds)
                tell()

        def tell(hint: str = _HINT) -> None:
            n, table = len(self.selected or self.found), self.table.head(MOST_ROWS)
            rest = f"{MOST_ROWS} of {n} shown" if n > MOST_ROWS else ""
            shown_rows = html_table(table) + html_text(rest) + origin(self.data, self.profiles)
            panel["results"].value = shown_rows if n else html_text(hint)

        for trace in chart.data[:n_maps]:
            trace.on_click(select)
            trace.on_selection(select)
        line = panel.row(
            panel.add("colour", "Dropdown", recolour, options=list(self.columns), value=self.colour),
            panel.add("search", "Text", search, **TYPED),
            panel.exporter(self.export),
        )
        whole = panel.box(line, box, *panel.texts("results"))
        tell()
        return whole


def _columns(data: Dataset, nodes: Nodes) -> dict[str, pd.Series]:
    """What nodes can be coloured by: kind, degree and popularity (logarithms), relations with few tails."""
    train, n_entities = data.split("train"), len(data.entities)
    of_users = np.bincount(train["user"], minlength=nodes.n_users)
    of_items = np.bincount(train["item"], minlength=n_entities)
    triples = np.bincount(np.r_[data.triples["head"], data.triples["tail"]], minlength=n_entities)
    columns = {
        "kind": nodes.kinds,
        "popularity (log10 of train interactions)": pd.Series(np.log10(np.r_[of_users, of_items] + 1)),
        "degree (log10 of triples; of users, interactions)": pd.Series(np.log10(np.r_[of_users, triples] + 1)),
    }
    labels = data.entities["label"].to_numpy()
    for relation, label in zip(data.relations["relation"], data.relations["label"], strict=True):
        part = data.triples[data.triples["relation"] == relation].drop_duplicates("head")
        if 1 < part["tail"].nunique() <= MOST_VALUES:
            values = pd.Series([OTHER] * nodes.n_nodes, dtype="str")
            values.iloc[nodes.n_users + part["head"].to_numpy()] = labels[part["tail"]]
            columns[f"relation: {label}"] = values
    return columns


def node_spaces(run: Run, spaces: Sequence[str] = SPACES, device: str = "auto") -> dict[str, np.ndarray]:
    """Vectors of all nodes of a SPiKE run, users first: ``[U + E, d]`` for each of `SPACES` that is asked for.

    The text of a composed profile set is one space for each of its parts. The name of a profile set stands for its
    vectors by the run's encoder.

    Raises
    ------
    DataError
        If the run is no SPiKE with profiles.
    """
    if "profiles" not in run.config:
        raise DataError(f"{run.path.name} is no SPiKE with profiles", "choose such a run")
    explainer = explainer_of(run, device)
    model, config = explainer.model, explainer.model.config
    parts = parts_of(run.config["profiles"])
    texts = {
        "text" if len(parts) == 1 else f"text: {part}": run.data.vectors(part, run.config["encoder"]) for part in parts
    }
    with torch.no_grad():
        ids = torch.cat([model.user_embedding, model.entity_embedding])
        found = {
            "text": {name: torch.cat([vectors.user, vectors.entity]) for name, vectors in texts.items()},
            "injected": {"injected": ids + config.rho * explainer.profiles * config.inject},
            "final": {"final": explainer.final},
        }
    for name in set(spaces).intersection(run.data.profile_sets()):
        vectors = run.data.vectors(name, run.config["encoder"])
        found[name] = {f"text: {name}": torch.cat([vectors.user, vectors.entity])}
    return {name: rows.cpu().numpy() for space in spaces for name, rows in lookup(found, space, "space").items()}
