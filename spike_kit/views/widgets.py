"""What the views share: live figures, panels of named widgets, a search box, and the export of what is shown."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pandas as pd

from spike_kit.base import paths
from spike_kit.base.errors import SpikeKitError, require
from spike_kit.data.dataset import Dataset
from spike_kit.figures import style
from spike_kit.views.safe import html_text
from spike_kit.views.search import KINDS, Nodes, fold

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing
    from plotly.graph_objects import Figure

LAYOUT = {"template": "plotly_white", "margin": {"l": 10, "r": 10, "t": 40, "b": 40}}
"""House style of the interactive figures."""

DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
PATTERNS = ("", "/", ".", "x", "\\", "+", "-", "|")
"""Second codings of lines and bars, for those who see no colours."""

TYPED = {"placeholder": "part of a name", "continuous_update": False, "tooltip": "type, then press Enter"}
"""Options of a text box for names."""

_FOUND = 20
"""Most nodes that a search lists."""

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


class Exportable(Protocol):
    """A view that can write what it shows."""

    def export(self, folder: Path | None = None) -> list[Path]:
        """Write the present state as PDF and CSV; returns the files."""
        ...


def write(
    view: str, data: Dataset, state: str, figure: Drawing, table: pd.DataFrame, folder: Path | None
) -> list[Path]:
    """Write a figure of a view as PDF and its table as CSV; equal tables give equal files, byte for byte.

    Parameters
    ----------
    view, data, state
        What the file names begin with: the view, the name of the data set, and what is shown in words from outside.
        They end with a hash of the table, so that two states never share a file.
    figure, table
        The figure, and the table that it was drawn from.
    folder
        Where to write; default: figures/.

    Raises
    ------
    StorageError
        If a file cannot be written.
    """
    digest = hashlib.sha256(table.to_csv(index=False).encode()).hexdigest()[:8]
    name = re.sub(r"[^A-Za-z0-9._]+", "-", f"{view}-{data.name}-{fold(state)[:40]}-{digest}")
    return style.export(figure, name, folder, table, formats=("pdf",))


def live_figure(figure: Figure) -> Any:
    """Plotly figure as a widget that Python can change afterwards; `Panel.chart` gives it its width."""
    widget = require("plotly.graph_objects", "lab").FigureWidget(figure)
    widget._config = {**widget._config, "responsive": True}
    return widget


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


class Panel:
    """Widgets of a view by their names; a widget's name is its CSS class too, after ``spike-``.

    Parameters
    ----------
    view
        The view behind the widgets.

    Attributes
    ----------
    parts
        Every widget by its name.
    """

    def __init__(self, view: object) -> None:
        self.view = view
        self.widgets = require("ipywidgets", "lab")
        self.parts: dict[str, Any] = {}
        self._quiet = False

    def __getitem__(self, name: str) -> Any:
        return self.parts[name]

    def add(self, name: str, kind: str, change: Callable[[Any], object] | None = None, **options: Any) -> Any:
        """Make a widget of some kind of ipywidgets; ``change`` is called with its new value, or at a click."""
        widget = getattr(self.widgets, kind)(**options)
        widget.add_class(f"spike-{name}")
        if change is not None and kind == "Button":
            widget.on_click(lambda _: change(widget))
        elif change is not None:
            widget.observe(lambda event: None if self._quiet else change(event["new"]), names="value")
        self.parts[name] = widget
        return widget

    def offer(self, name: str, options: list[Any], value: Any = None) -> None:
        """Give a list other options and choose a value, by default the first one; nobody is told of it."""
        self._quiet = True
        self[name].options = options
        if value is not None:
            self[name].value = value
        else:
            self[name].index = 0 if options else None
        self._quiet = False

    def texts(self, *names: str) -> list[Any]:
        """Make empty HTML widgets."""
        return [self.add(name, "HTML") for name in names]

    def chart(self, name: str, figure: Figure, *others: Any) -> Any:
        """Make a live figure and return the box, with ``others`` above it, in which it is as wide as the page."""
        self.parts[name] = live_figure(figure)
        box = self.widgets.VBox([*others, self.parts[name], _fitter()()])
        box.add_class(f"spike-{name}")
        return box

    def search(
        self,
        name: str,
        nodes: Nodes,
        chosen: Callable[[int], object] | None = None,
        label: str = "search",
        kinds: Collection[str] = KINDS,
    ) -> Any:
        """Make a text box and a list of the nodes it finds (the widget of that name); returns what shows both.

        ``chosen`` is called with the node of a choice.
        """

        def find(text: str) -> None:
            found = nodes.search(text, _FOUND, kinds)
            self.offer(name, [(f"{nodes.labels[node][:60]} ({nodes.kinds[node]})", node) for node in found])
            choose(self[name].value)

        def choose(node: int | None) -> None:
            if node is not None and chosen is not None:
                chosen(node)

        text = self.add(f"{name}-text", "Text", find, description=label, **TYPED)
        box = self.widgets.HBox([text, self.add(name, "Dropdown", choose, tooltip="what was found")])
        box.add_class(f"spike-{name}-search")
        return box

    def row(self, *parts: Any) -> Any:
        """Put widgets beside each other, in several lines where the page is narrow."""
        return self.widgets.HBox(list(parts), layout=self.widgets.Layout(flex_flow="row wrap"))

    def tabs(self, **parts: Any) -> Any:
        """Put each widget on a tab of its own; the names are the titles, with spaces for underscores."""
        tabs = self.widgets.Tab(list(parts.values()))
        tabs.titles = tuple(name.replace("_", " ") for name in parts)
        return tabs

    def exporter(self, view: Exportable) -> Any:
        """Make a button that writes what the view shows, and a line with the files that were written."""

        def export(_: object) -> None:
            try:
                files = "written: " + ", ".join(paths.shown(file) for file in view.export())
            except SpikeKitError as error:
                files = str(error)
            self["exported"].value = html_text(files)

        button = self.add("export", "Button", export, description="Export", tooltip="Write what is shown: PDF and CSV")
        return self.row(button, *self.texts("exported"))

    def box(self, *rows: Any) -> Any:
        """What a notebook shows: a VBox with the attributes ``view`` and ``parts``."""
        box = self.widgets.VBox(list(rows))
        box.view, box.parts = self.view, self.parts
        return box
