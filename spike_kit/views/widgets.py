"""What the views share: live figures, panels of named widgets, a search box, and the export of what is shown."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from spike_kit.base import paths
from spike_kit.base.errors import DataError, SpikeKitError, require
from spike_kit.data.dataset import Dataset
from spike_kit.figures import style
from spike_kit.views.safe import html_text
from spike_kit.views.tables import Nodes, fold

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing
    from plotly.graph_objects import Figure

LAYOUT = {"template": "plotly_white", "margin": {"l": 10, "r": 10, "t": 40, "b": 40}}
"""House style of the interactive figures."""

DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
"""Second coding of lines, for those who see no colours."""

Split = Literal["valid", "test"]
"""What a view is of: ``valid``, by which one may choose, or ``test``."""

TYPED = {"placeholder": "part of a name", "continuous_update": False, "tooltip": "type, then press Enter"}
"""Options of a text box for names."""

_FOUND = 20
"""Most nodes that a search lists."""

_FITTING = """
export default {
    render({ el, signal }) {
        const fit = () => window.dispatchEvent(new Event("resize"));
        el.style.width = "100%";
        new ResizeObserver(fit).observe(el);
        document.addEventListener("plotlywidget-after-render", fit, { signal });
    },
};
"""
"""Tells the charts of a page to take the width that they have, when it changes and when one is drawn.

A FigureWidget is drawn before it is part of the page and stays at plotly's 700 pixels; once it is drawn, it listens to
the window only (seen with plotly 7.1 and JupyterLab 4).
"""

_WHOLE = "<style>.spike-tabs > .lm-TabBar .lm-TabBar-tab { min-width: max-content !important; }</style>"
"""Makes tabs at least as wide as their titles; ipywidgets cuts titles off at 144 pixels, in narrow pages before."""


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


def filled(frame: pd.DataFrame, missing: str, hint: str = "") -> pd.DataFrame:
    """A table that is to be drawn, if it is not empty.

    Raises
    ------
    DataError
        If it is; with what is ``missing``.
    """
    if frame.empty:
        raise DataError(missing, hint)
    return frame


@cache
def _fitter() -> type:
    return type("Fitter", (require("anywidget", "lab").AnyWidget,), {"_esm": _FITTING})


def redraw(widget: Any, figure: Figure) -> None:
    """Show another figure in the widget of a `Panel.chart`."""
    with widget.batch_update():
        widget.data = ()
        widget.layout = figure.layout
        # A layout without annotations does not take them away by itself.
        widget.layout.annotations = figure.layout["annotations"] or ()
        widget.add_traces(figure.data)


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
        self._styles: list[Any] = []

    def __getitem__(self, name: str) -> Any:
        return self.parts[name]

    def add(self, name: str, kind: str, change: Callable[[Any], object] | None = None, **options: Any) -> Any:
        """Make a widget of some kind of ipywidgets; ``change`` is called with its new value, or at a click.

        What can be changed is described by its name, unless a ``description`` is given.
        """
        if kind not in ("HTML", "Image", "FloatProgress"):
            options.setdefault("description", name.replace("_", " ").capitalize())
        if kind in ("Dropdown", "FloatSlider", "BoundedIntText"):
            options.setdefault("style", {"description_width": "initial"})
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

    def chart(self, name: str, figure: Figure) -> Any:
        """Make a figure that Python can change afterwards; returns the box in which it is as wide as the page."""
        live = self.parts[name] = require("plotly.graph_objects", "lab").FigureWidget(figure)
        live._config = {**live._config, "responsive": True}
        box = self.widgets.VBox([live, _fitter()()])
        box.add_class(f"spike-{name}")
        return box

    def picture(self, name: str) -> Any:
        """Make a place for a figure on paper, and for the reason why there is none."""
        layout = self.widgets.Layout(align_self="flex-start", max_width="100%")
        return self.widgets.VBox([self.add(name, "Image", format="png", layout=layout), *self.texts(f"{name}-note")])

    def draw(self, name: str, make: Callable[[], Drawing]) -> None:
        """Show what ``make`` draws in a `picture`, or the error it raises."""
        note = ""
        try:
            self[name].value = style.picture(make())
        except SpikeKitError as error:
            note = html_text(error)
        self[f"{name}-note"].value, self[name].layout.display = note, "none" if note else None

    def search(self, name: str, nodes: Nodes, chosen: Callable[[int], object]) -> Any:
        """Make a text box and a list of the nodes it finds (the widget of that name); returns what shows both.

        ``chosen`` is called with the node of a choice.
        """

        def find(text: str) -> None:
            found = nodes.search(text, _FOUND)
            self.offer(name, [(f"{nodes.labels[node][:60]} ({nodes.kinds[node]})", node) for node in found])
            if found:
                chosen(found[0])

        text = self.add(f"{name}-text", "Text", find, description=name, **TYPED)
        box = self.row(text, self.add(name, "Dropdown", chosen, description="", tooltip="what was found"))
        box.add_class(f"spike-{name}-search")
        return box

    def row(self, *parts: Any) -> Any:
        """Put widgets beside each other, in several lines where the page is narrow."""
        return self.widgets.HBox(list(parts), layout=self.widgets.Layout(flex_flow="row wrap"))

    def tabs(self, **parts: Any) -> Any:
        """Put each widget on a tab of its own; the names are the titles, with spaces for underscores."""
        tabs = self.widgets.Tab(list(parts.values()))
        tabs.titles = tuple(name.replace("_", " ") for name in parts)
        tabs.add_class("spike-tabs")
        self._styles = [self.widgets.HTML(_WHOLE, layout=self.widgets.Layout(display="none"))]
        return tabs

    def exporter(self, write: Callable[[], list[Path]]) -> Any:
        """Make a button that writes what is shown, and a line with the files that were written."""

        def export(_: object) -> None:
            try:
                files = "written: " + ", ".join(paths.shown(file) for file in write())
            except SpikeKitError as error:
                files = str(error)
            self["exported"].value = html_text(files)

        button = self.add("export", "Button", export, tooltip="Write what is shown: PDF and CSV")
        return self.row(button, *self.texts("exported"))

    def box(self, *rows: Any) -> Any:
        """What a notebook shows: a VBox with the attributes ``view`` and ``parts``."""
        box = self.widgets.VBox([*self._styles, *rows])
        box.view, box.parts = self.view, self.parts
        return box
