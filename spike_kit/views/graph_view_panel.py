"""The graph view as widgets: search, click to expand, paths between a user and an item."""

from __future__ import annotations

from typing import Any

from spike_kit.base.errors import SpikeKitError, require
from spike_kit.views.graph_view import GraphView
from spike_kit.views.safe import html_table, html_text
from spike_kit.views.widgets import SearchBox, chart_box, clickable, live_figure, redraw


class GraphPanel:
    """A `GraphView` as widgets.

    Attributes
    ----------
    widget
        What a notebook shows.
    """

    def __init__(self, view: GraphView) -> None:
        widgets = require("ipywidgets", "lab")
        self.view = view
        self.search = SearchBox(view.nodes, "centre", self._show)
        self.names = widgets.Dropdown(options=[], description="expand", tooltip="a node that is shown")
        self.expand = widgets.Button(description="Expand", tooltip="Add the neighbours of the chosen node")
        self.status, self.table = widgets.HTML(), widgets.HTML()
        self.chart = live_figure(view.figure)
        self.user = widgets.BoundedIntText(value=0, min=0, max=view.nodes.n_users - 1, description="user")
        self.item = SearchBox(view.nodes, "item", lambda _: None, kinds=("item",))
        self.strongest = widgets.Checkbox(value=True, description="strongest first (else shortest)")
        self.others = widgets.Checkbox(value=False, description="through other users")
        self.longest = widgets.BoundedIntText(
            value=4, min=1, max=6, description="edges", tooltip="most edges of a path", continuous_update=False
        )
        self.find = widgets.Button(description="Find paths", tooltip="Paths from the user's train items to the item")
        self.paths = widgets.HTML()
        self.expand.on_click(lambda _: self._expand(self.names.value))
        self.find.on_click(lambda _: self._paths())
        for widget, name in (
            (self.expand, "expand"),
            (self.find, "path"),
            (self.paths, "paths"),
            (self.status, "shown"),
        ):
            widget.add_class(f"spike-{name}")
        self.search.widget.add_class("spike-graph-search")
        chart = chart_box(self.chart, name="graph")
        parts = [self.search.widget, widgets.HBox([self.names, self.expand]), self.status, chart]
        if view.users:
            finder = widgets.HBox([self.user, self.item.widget], layout=widgets.Layout(flex_flow="row wrap"))
            options = [self.longest, self.strongest, self.others, self.find]
            search = widgets.HBox(options, layout=widgets.Layout(flex_flow="row wrap"))
            parts += [finder, search, self.paths]
        edges = widgets.Accordion([self.table], titles=("edges that are shown",))
        self.widget = widgets.VBox([*parts, edges])
        self.widget.view, self.widget.panel = view, self
        self._refresh()

    def _show(self, node: int) -> None:
        self.view.show(node)
        self._refresh()

    def _expand(self, node: int | None) -> None:
        if node is not None:
            self.view.expand(node)
            self._refresh()

    def _paths(self) -> None:
        node = self.item.chosen
        if node is None:
            self.paths.value = html_text("choose an item first")
            return
        try:
            _, item = self.view.nodes.subject(node)
            found = self.view.paths(
                self.user.value,
                item,
                strongest=self.strongest.value,
                longest=self.longest.value,
                through_users=self.others.value,
            )
        except SpikeKitError as error:
            self.paths.value = html_text(error)
            return
        self.paths.value = html_table(found) if len(found) else html_text("no path leads from this user to this item")

    def _refresh(self) -> None:
        view = self.view
        view_names = view.nodes.labels
        self.names.options = [(view_names[node][:60], node) for node in view.positions]
        self.names.index = 0 if view.positions else None
        self.status.value = html_text(view.shown)
        self.table.value = html_table(view.table)
        redraw(self.chart, view.figure)
        clickable(self.chart, self._expand)


def graph_panel(view: GraphView) -> Any:
    """Show a `GraphView` as widgets: a search box, the graph (click a node to expand it), and the path finder.

    Returns
    -------
    VBox
        The widgets; its attributes are ``view`` and ``panel`` (`GraphPanel`).
    """
    return GraphPanel(view).widget
