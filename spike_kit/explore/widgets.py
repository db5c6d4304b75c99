"""What the interactive panels share: live figures, clicks on points, a search box."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from spike_kit.errors import require
from spike_kit.explore.search import KINDS, Nodes

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def live_figure(figure: Figure) -> Any:
    """Plotly figure as a widget that Python can change afterwards."""
    return require("plotly.graph_objects", "lab").FigureWidget(figure)


def redraw(widget: Any, figure: Figure) -> None:
    """Show another figure in a widget made by `live_figure`."""
    with widget.batch_update():
        widget.data = ()
        widget.layout = figure.layout
        widget.add_traces(figure.data)


def clickable(widget: Any, chosen: Callable[[int], None]) -> None:
    """Tell which point of a live figure was clicked: its ``customdata``, a node; call again after `redraw`."""

    def on_click(trace: Any, points: Any, _: Any) -> None:
        if points.point_inds:
            chosen(int(trace.customdata[points.point_inds[0]]))

    for trace in widget.data:
        if trace.customdata is not None:
            trace.on_click(on_click)


class SearchBox:
    """A text box and a list of what it finds.

    Parameters
    ----------
    nodes
        What can be found.
    name
        Description of the box.
    on_choice
        Called with the node that is chosen.
    kinds
        What to search: ``user``, ``item``, ``auxiliary``.
    most
        Most results.

    Attributes
    ----------
    widget
        What a panel shows.
    chosen
        Node of the last choice, if there was one.
    """

    def __init__(
        self,
        nodes: Nodes,
        name: str,
        on_choice: Callable[[int], None],
        *,
        kinds: Collection[str] = KINDS,
        most: int = 20,
    ) -> None:
        widgets = require("ipywidgets", "lab")
        self.nodes, self.kinds, self.most, self.on_choice = nodes, kinds, most, on_choice
        self.chosen: int | None = None
        self.text = widgets.Text(
            description=name, placeholder="part of a name", continuous_update=False, tooltip="type, then press Enter"
        )
        self.results = widgets.Dropdown(options=[], tooltip="what was found")
        self.text.observe(lambda change: self._find(change["new"]), names="value")
        self.results.observe(self._chosen, names="value")
        self.widget = widgets.HBox([self.text, self.results])
        self.text.add_class("spike-search")
        self.results.add_class("spike-results")

    def _find(self, text: str) -> None:
        found = self.nodes.search(text, self.most, self.kinds)
        kinds, labels = self.nodes.kinds, self.nodes.labels
        self.results.unobserve(self._chosen, names="value")
        self.results.options = [(f"{labels[node][:60]} ({kinds[node]})", node) for node in found]
        self.results.index = 0 if found else None
        self.results.observe(self._chosen, names="value")
        self._choose(self.results.value)

    def _chosen(self, change: dict[str, Any]) -> None:
        self._choose(change["new"])

    def _choose(self, node: int | None) -> None:
        if node is not None:
            self.chosen = node
            self.on_choice(node)
