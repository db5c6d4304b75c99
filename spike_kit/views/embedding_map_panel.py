"""The embedding map as widgets: colour, search, hover, click and lasso."""

from __future__ import annotations

from typing import Any

from spike_kit.base.errors import require
from spike_kit.views.embedding_map import EmbeddingMap
from spike_kit.views.safe import html_table, html_text, shown
from spike_kit.views.widgets import chart_box, live_figure

MOST_ROWS = 30
"""Rows of the table that are shown."""


class MapPanel:
    """An `EmbeddingMap` as widgets; coordinates and hovers are sent once.

    Attributes
    ----------
    widget
        What a notebook shows.
    """

    def __init__(self, view: EmbeddingMap) -> None:
        widgets = require("ipywidgets", "lab")
        self.view = view
        self.colour = widgets.Dropdown(options=list(view.columns), value=view.colour, description="colour by")
        self.text = widgets.Text(
            description="search",
            placeholder="part of a name",
            continuous_update=False,
            tooltip="type, then press Enter",
        )
        self.clear = widgets.Button(description="Clear", tooltip="Forget what was found and selected")
        self.table = widgets.HTML(html_text("click a point, or draw a lasso around some"))
        self.chart = live_figure(view.figure)
        for widget, name in ((self.colour, "colour"), (self.text, "search"), (self.table, "results")):
            widget.add_class(f"spike-{name}")
        self.colour.observe(lambda change: self._recolour(change["new"]), names="value")
        self.text.observe(lambda change: self._search(change["new"]), names="value")
        self.clear.on_click(lambda _: self._clear())
        self._points = list(self.chart.data[: len(view.spaces)])
        self._rings = list(self.chart.data[len(view.spaces) : 2 * len(view.spaces)])
        self._legend = list(self.chart.data[2 * len(view.spaces) :])
        for trace in self._points:
            trace.on_click(self._clicked)
            trace.on_selection(self._clicked)
        line = widgets.HBox([self.colour, self.text, self.clear], layout=widgets.Layout(flex_flow="row wrap"))
        self.widget = widgets.VBox([line, chart_box(self.chart, name="map"), self.table])
        self.widget.view, self.widget.panel = view, self

    def _recolour(self, name: str) -> None:
        marker = self.view.recolour(name).marker
        with self.chart.batch_update():
            for number, trace in enumerate(self._points):
                trace.marker.update({**marker, "showscale": marker["showscale"] and number == 0})
            for trace, entry in zip(self._legend, self.view.legend(), strict=True):
                trace.update(name=entry.name, visible=entry.visible, marker={"color": entry.marker.color})
            self.chart.layout.legend.title = shown(name, 40)
        self._tell()

    def _search(self, text: str) -> None:
        self.view.selected = []
        found = self.view.search(text)
        with self.chart.batch_update():
            for trace, points in zip(self._rings, self.view.spaces.values(), strict=True):
                ring = self.view.highlight(points)
                trace.update(x=ring["x"], y=ring["y"], text=ring["text"])
        self._tell()
        if text and not found:
            self.table.value = html_text(f"nothing is called {text!r}")

    def _clicked(self, _: Any, points: Any, __: Any = None) -> None:
        if points.point_inds:
            self.view.select(points.point_inds)
            self._tell()

    def _clear(self) -> None:
        self.view.selected = []
        self.text.value = ""
        self._search("")

    def _tell(self) -> None:
        nodes = self.view.selected or self.view.found
        if not nodes:
            self.table.value = html_text("click a point, or draw a lasso around some")
            return
        rest = "" if len(nodes) <= MOST_ROWS else html_text(f"{MOST_ROWS} of {len(nodes)} shown")
        self.table.value = html_table(self.view.table.head(MOST_ROWS)) + rest


def map_panel(view: EmbeddingMap) -> Any:
    """Show an `EmbeddingMap` as widgets: colours, search, hover, click and lasso, and the table of what is chosen.

    Returns
    -------
    VBox
        The widgets; its attributes are ``view`` and ``panel`` (`MapPanel`).
    """
    return MapPanel(view).widget
