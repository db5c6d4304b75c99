"""What the interactive panels share: live figures, clicks on points, a search box."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import cache
from typing import TYPE_CHECKING, Any

from spike_kit.base.errors import require
from spike_kit.views.search import KINDS, Nodes

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


_FITTING = """
function render({ el }) {
    const fit = () => window.dispatchEvent(new Event("resize"));
    const watcher = new ResizeObserver(fit);
    el.style.width = "100%";
    watcher.observe(el);
    document.addEventListener("plotlywidget-after-render", fit);
    return () => {
        watcher.disconnect();
        document.removeEventListener("plotlywidget-after-render", fit);
    };
}
export default { render };
"""
"""Tells the charts of a page to take the width that they have, when it changes and when one is drawn.

A FigureWidget is drawn before it is part of the page and stays at plotly's 700 pixels; once it is drawn, it listens to
the window only (seen with plotly 7.1 and JupyterLab 4).
"""


def live_figure(figure: Figure) -> Any:
    """Plotly figure as a widget that Python can change afterwards; `chart_box` gives it its width."""
    widget = require("plotly.graph_objects", "lab").FigureWidget(figure)
    widget._config = {**widget._config, "responsive": True}
    return widget


def chart_box(*parts: Any, name: str = "") -> Any:
    """Box around a live figure, and what belongs to it, in which the figure is as wide as the page.

    Parameters
    ----------
    parts
        Widgets, one of them made by `live_figure`.
    name
        Name of the box's CSS class, without ``spike-``.
    """
    box = require("ipywidgets", "lab").VBox([*parts, _fitter()()])
    if name:
        box.add_class(f"spike-{name}")
    return box


@cache
def _fitter() -> type:
    return type("Fitter", (require("anywidget", "lab").AnyWidget,), {"_esm": _FITTING})


def redraw(widget: Any, figure: Figure) -> None:
    """Show another figure in a widget made by `live_figure`."""
    with widget.batch_update():
        widget.data = ()
        widget.layout = figure.layout
        # What a layout does not have is not taken away by itself.
        widget.layout.annotations = figure.layout["annotations"] or ()
        widget.layout.shapes = figure.layout["shapes"] or ()
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
