"""What the interactive panels share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spike_kit.errors import require

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
