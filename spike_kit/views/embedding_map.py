"""Maps of embeddings: text, injected and final vectors of all nodes, coloured, searched, selected."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from spike_kit.base.errors import ConfigError, DataError, require, some
from spike_kit.data.dataset import Dataset
from spike_kit.evaluation.maps import aligned, umap_coordinates
from spike_kit.experiments.run import load_model
from spike_kit.experiments.run_folder import Run
from spike_kit.figures.style import COLOURS
from spike_kit.models.spike import Spike
from spike_kit.models.spike_explainer import SpikeExplainer
from spike_kit.views.safe import shown, wrapped
from spike_kit.views.search import Nodes

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

SPACES = ("text", "injected", "final")
"""Vectors of a SPiKE run: of the profiles' text, of the nodes after injection, of the nodes at the end."""

OTHER = "other"
"""Name of what has no colour of its own."""

MOST_VALUES = 60
"""A relation with more tails than this is no colouring."""

_GREY = "#BBBBBB"
_HIGHLIGHT = "#000000"


@dataclass(frozen=True)
class Colouring:
    """How every node is coloured.

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
        counts = text[text != OTHER].value_counts()
        kept = counts.index[: len(COLOURS) - 1].tolist()
        places = {value: number for number, value in enumerate(kept)}
        codes = np.array([places.get(value, len(kept)) for value in text], dtype=np.float64)
        return cls(codes, (*map(str, kept), OTHER))

    @property
    def marker(self) -> dict[str, Any]:
        """Marker of plotly: colours of all points, and the scale they are read on."""
        if not self.names:
            return {"color": self.codes, "colorscale": "Cividis", "showscale": True, "cmin": None, "cmax": None}
        n = len(self.names)
        colours = [*COLOURS[: n - 1], _GREY]
        steps = [(edge / n, colour) for number, colour in enumerate(colours) for edge in (number, number + 1)]
        return {"color": self.codes, "colorscale": steps, "cmin": -0.5, "cmax": n - 0.5, "showscale": False}


class EmbeddingMap:
    """Maps of all nodes side by side, sharing colours, search and selection.

    Parameters
    ----------
    data
        The study.
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

    @cached_property
    def columns(self) -> dict[str, pd.Series]:
        """What to colour by: kind, degree and popularity (logarithms), relations with few tails, and the extra."""
        data, nodes = self.data, self.nodes
        n_users, n_entities = nodes.n_users, len(data.entities)
        train = data.split("train")
        triples = np.bincount(np.r_[data.triples["head"], data.triples["tail"]], minlength=n_entities)
        interactions = np.r_[
            np.bincount(train["user"], minlength=n_users), np.bincount(train["item"], minlength=n_entities)
        ]
        degree = np.r_[np.bincount(train["user"], minlength=n_users), triples]
        columns = {
            "kind": nodes.kinds,
            "popularity (log10 of train interactions)": pd.Series(_log(interactions)),
            "degree (log10 of triples; of users, interactions)": pd.Series(_log(degree)),
        }
        for relation in data.relations.to_dict("records"):
            part = data.triples[data.triples["relation"] == relation["relation"]].drop_duplicates("head")
            if 1 < part["tail"].nunique() <= MOST_VALUES:
                labels = data.entities["label"].to_numpy()
                values = pd.Series([OTHER] * nodes.n_nodes, dtype="str")
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

    def cluster(self, vectors: np.ndarray, k: int = 12, seed: int = 0) -> pd.Series:
        """Colour by clusters (k-means on rows of length 1) of vectors ``[n, d]``.

        More than a dozen colours cannot be told apart, and the seven largest get one; the clusters are there to name
        regions of a map, not to find a true number of groups.
        """
        kmeans = require("sklearn.cluster", "text").KMeans(k, n_init=1, random_state=seed)
        rows = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        column = pd.Series([f"cluster {number}" for number in kmeans.fit_predict(rows)])
        self.extra["cluster"] = column
        self.columns["cluster"] = column
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
        return self._profiles.get(self.nodes.subject(node), "")

    @cached_property
    def _profiles(self) -> dict[tuple[str, int], str]:
        table = self.data.profiles(self.profiles)
        return dict(zip(zip(table["subject"], table["id"], strict=True), table["text"], strict=True))

    @cached_property
    def hovers(self) -> list[str]:
        """What a hover says of every node: its name, and the first words of its profile."""
        kinds, labels = self.nodes.kinds.tolist(), self.nodes.labels
        return [
            f"<b>{shown(labels[node], 70)}</b> ({shown(kinds[node], 20)})<br>{wrapped(self.profile(node)[:220], 60, 3)}"
            for node in range(self.nodes.n_nodes)
        ]

    @property
    def figure(self) -> Figure:
        """All maps side by side; nodes that were found are circled and named."""
        subplots = require("plotly.subplots", "lab")
        titles = [shown(name) for name in self.spaces]
        chart = subplots.make_subplots(rows=1, cols=len(titles), subplot_titles=titles, horizontal_spacing=0.02)
        marker = self.colouring.marker
        for column, points in enumerate(self.spaces.values(), start=1):
            chart.add_scattergl(
                x=points["x"].to_numpy(),
                y=points["y"].to_numpy(),
                mode="markers",
                marker={"size": 4, "opacity": 0.75, **marker, "showscale": marker["showscale"] and column == 1},
                customdata=np.arange(self.nodes.n_nodes),
                hovertext=self.hovers,
                hovertemplate="%{hovertext}<extra></extra>",
                showlegend=False,
                row=1,
                col=column,
            )
        for column, points in enumerate(self.spaces.values(), start=1):
            chart.add_scatter(**self.highlight(points), row=1, col=column)
        chart.add_traces(self.legend())
        chart.update_xaxes(visible=False)
        chart.update_yaxes(visible=False)
        return chart.update_layout(
            template="plotly_white",
            height=520,
            margin={"l": 10, "r": 10, "t": 40, "b": 10},
            dragmode="lasso",
            legend={"title": shown(self.colour, 40), "itemsizing": "constant", "orientation": "h", "y": -0.02},
        )

    def highlight(self, points: pd.DataFrame) -> dict[str, Any]:
        """Trace that circles and names what was found, in one map."""
        place = points.iloc[self.found]
        return {
            "x": place["x"].tolist(),
            "y": place["y"].tolist(),
            "text": [shown(self.nodes.labels[node], 30) for node in self.found] if len(self.found) <= 12 else None,
            "mode": "markers+text",
            "textposition": "top center",
            "marker": {"size": 12, "symbol": "circle-open", "color": _HIGHLIGHT, "line": {"width": 2}},
            "hoverinfo": "skip",
            "showlegend": False,
        }

    def legend(self) -> list[Any]:
        """Empty traces for the legend, always as many: one per category, the rest invisible."""
        objects, colouring = require("plotly.graph_objects", "lab"), self.colouring
        names = colouring.names[:-1]
        entries = [(shown(name, 30), colour, True) for name, colour in zip(names, COLOURS, strict=False)]
        entries.append((OTHER, _GREY, bool(colouring.names) and bool((colouring.codes == len(names)).any())))
        entries += [("", _GREY, False)] * (len(COLOURS) - len(entries))
        return [
            objects.Scatter(
                x=[None], y=[None], mode="markers", name=name, marker={"color": colour, "size": 9}, visible=visible
            )
            for name, colour, visible in entries
        ]

    def morph(self, steps: int = 12) -> Figure:
        """One map that moves from each space to the next; the slider stands at any place between them."""
        objects = require("plotly.graph_objects", "lab")
        names, clouds = list(self.spaces), [points.to_numpy() for points in self.spaces.values()]
        stages = [(names[0], clouds[0])]
        for number in range(1, len(clouds)):
            for step in range(1, steps + 1):
                share = step / steps
                name = names[number] if step == steps else f"{names[number - 1]} → {names[number]} {share:.0%}"
                stages.append((name, (1 - share) * clouds[number - 1] + share * clouds[number]))
        marker = {"size": 4, "opacity": 0.75, **self.colouring.marker}
        chart = objects.Figure(
            [
                objects.Scattergl(
                    x=stages[0][1][:, 0],
                    y=stages[0][1][:, 1],
                    mode="markers",
                    marker=marker,
                    hovertext=self.hovers,
                    hovertemplate="%{hovertext}<extra></extra>",
                    showlegend=False,
                ),
                *self.legend(),
            ]
        )
        chart.frames = [
            objects.Frame(name=str(number), data=[objects.Scattergl(x=cloud[:, 0], y=cloud[:, 1])], traces=[0])
            for number, (_, cloud) in enumerate(stages)
        ]
        moves = {"frame": {"duration": 0, "redraw": True}, "mode": "immediate", "transition": {"duration": 0}}
        slider = {
            "steps": [
                {"args": [[str(number)], moves], "label": shown(name, 40), "method": "animate"}
                for number, (name, _) in enumerate(stages)
            ],
            "currentvalue": {"prefix": ""},
        }
        play = {"frame": {"duration": 80, "redraw": True}, "fromcurrent": True, "transition": {"duration": 0}}
        buttons = {
            "type": "buttons",
            "direction": "left",
            "buttons": [
                {"label": "Play", "method": "animate", "args": [None, play]},
                {"label": "Pause", "method": "animate", "args": [[None], moves]},
            ],
            "x": 0.0,
            "y": 1.0,
            "xanchor": "left",
            "yanchor": "top",
        }
        low, high = np.concatenate(clouds).min(axis=0), np.concatenate(clouds).max(axis=0)
        edge = 0.03 * (high - low)
        x_axis, y_axis = (
            {"visible": False, "range": [start - room, end + room]}
            for start, end, room in zip(low.tolist(), high.tolist(), edge.tolist(), strict=True)
        )
        return chart.update_layout(
            template="plotly_white",
            height=620,
            xaxis=x_axis,
            yaxis={**y_axis, "scaleanchor": "x"},
            sliders=[slider],
            updatemenus=[buttons],
            margin={"l": 10, "r": 10, "t": 10, "b": 10},
        )


def _log(counts: np.ndarray) -> np.ndarray:
    return np.log10(np.maximum(counts, 0) + 1)


def node_spaces(data: Dataset, run: Run, spaces: Sequence[str] = SPACES) -> dict[str, np.ndarray]:
    """Vectors of all nodes of a SPiKE run, users first: ``[U + E, d]`` for each of `SPACES` that is asked for.

    Raises
    ------
    DataError
        If the run is no SPiKE with profiles.
    """
    model = load_model(run, data)
    if not isinstance(model, Spike) or "profiles" not in run.config:
        raise DataError(f"{run.path.name} is no SPiKE with profiles", "choose such a run")
    explainer, config = SpikeExplainer(model), model.config
    found: dict[str, np.ndarray] = {}
    with torch.no_grad():
        if "text" in spaces:
            vectors = data.vectors(run.config["profiles"], run.config["encoder"])
            found["text"] = torch.cat([vectors.user, vectors.entity]).numpy()
        if "injected" in spaces:
            ids = torch.cat([model.user_embedding, model.entity_embedding])
            found["injected"] = (ids + config.rho * explainer.profiles * config.inject).numpy()
        if "final" in spaces:
            found["final"] = torch.cat(model.node_embeddings()).numpy()
    return found


def map_of_run(data: Dataset, run: Run, spaces: Sequence[str] = SPACES, k: int = 12) -> EmbeddingMap:
    """Lay out the vectors of a SPiKE run (cached) and cluster its final ones.

    The first layout of some thousand nodes takes half a minute.
    """
    vectors = node_spaces(data, run, spaces)
    view = EmbeddingMap(
        data, {name: umap_coordinates(rows) for name, rows in vectors.items()}, profiles=run.config["profiles"]
    )
    view.cluster(vectors[spaces[-1]], k)
    view.recolour("kind")
    return view
