"""The study overview as widgets: filters, leaderboard, learning curves, sensitivity, sparsity groups."""

from __future__ import annotations

from typing import Any

from spike_kit.base.errors import SpikeKitError, require
from spike_kit.views.overview import Overview
from spike_kit.views.safe import html_table, html_text
from spike_kit.views.widgets import chart_box, live_figure, redraw

MOST_ROWS = 50
"""Rows of the leaderboard that are shown."""


class OverviewPanel:
    """An `Overview` as widgets.

    Attributes
    ----------
    widget
        What a notebook shows.
    """

    def __init__(self, view: Overview) -> None:
        widgets = require("ipywidgets", "lab")
        self.view = view
        self.metric = widgets.Dropdown(options=view.metrics, value=view.metric, description="metric")
        self.split = widgets.Dropdown(options=["valid", "test"], value=view.split, description="split")
        size = widgets.Layout(height="6em", width="16em")
        self.models = widgets.SelectMultiple(description="models", tooltip="none: all", layout=size)
        self.presets = widgets.SelectMultiple(description="presets", tooltip="none: all", layout=size)
        self.text = widgets.Text(
            description="label", placeholder="words of it", continuous_update=False, tooltip="type, then press Enter"
        )
        self.at_least = widgets.BoundedIntText(value=1, min=1, max=1000, description="seeds at least")
        self.at_least.style.description_width = "initial"
        self.older = widgets.Checkbox(value=view.older, description="also of older data")
        self.x = widgets.ToggleButtons(options=["epoch", "seconds"], description="curves over")
        self.reload = widgets.Button(description="Reload", tooltip="Look for runs that were finished meanwhile")
        self.status, self.table, self.note = widgets.HTML(), widgets.HTML(), widgets.HTML()
        empty = view.curves()
        self.board, self.curves, self.sensitivity, self.groups = (live_figure(empty) for _ in range(4))
        named = {"metric": self.metric, "filter": self.text, "status": self.status, "leaderboard": self.table}
        for name, widget in named.items():
            widget.add_class(f"spike-{name}")
        line = widgets.Layout(flex_flow="row wrap")
        tabs = widgets.Tab(
            [
                chart_box(self.board),
                chart_box(self.x, self.curves),
                chart_box(self.note, self.sensitivity),
                chart_box(self.groups),
            ]
        )
        tabs.titles = ("leaderboard", "learning curves", "sensitivity", "by sparsity")
        tabs.add_class("spike-overview")
        chosen = widgets.HBox([self.metric, self.split, self.text, self.at_least, self.older, self.reload], layout=line)
        lists = widgets.HBox([self.models, self.presets], layout=line)
        self.widget = widgets.VBox([chosen, lists, self.status, self.table, tabs])
        self.widget.view, self.widget.panel = view, self
        controls = (self.metric, self.split, self.models, self.presets, self.text, self.at_least, self.older)
        for control in controls:
            control.observe(lambda _: self.refresh(), names="value")
        self.x.observe(lambda _: redraw(self.curves, view.curves(self.x.value)), names="value")
        self.reload.on_click(lambda _: self._reload())
        self._offer()

    def _reload(self) -> None:
        self.view.reload()
        self._offer()

    def _offer(self) -> None:
        """Offer what the runs have; what was chosen stays chosen."""
        for control, key in ((self.models, "model"), (self.presets, "preset")):
            chosen = control.value
            control.options = sorted({run.config[key] for run in self.view.all})
            control.value = [value for value in chosen if value in control.options]
        metric, known = self.view.metric, self.view.metrics
        self.metric.options = known
        self.metric.value = metric if metric in known else known[0]
        self.refresh()

    def refresh(self) -> None:
        """Bring the table and all charts up to date with the filters."""
        view = self.view
        view.metric, view.split, view.text = self.metric.value, self.split.value, self.text.value
        view.models, view.presets = self.models.value, self.presets.value
        view.at_least, view.older = self.at_least.value, self.older.value
        table = view.table
        rest = f"; {MOST_ROWS} are listed" if len(table) > MOST_ROWS else ""
        self.status.value = html_text(view.summary + rest)
        self.table.value = html_table(table.head(MOST_ROWS))
        redraw(self.board, view.figure)
        redraw(self.curves, view.curves(self.x.value))
        redraw(self.groups, view.group_figure())
        try:
            redraw(self.sensitivity, view.sensitivity_figure())
            self.note.value = ""
        except SpikeKitError as error:
            redraw(self.sensitivity, view.curves().update_layout(height=60).update_traces(visible=False))
            self.note.value = html_text(error)


def overview_panel(view: Overview) -> Any:
    """Show an `Overview` as widgets: filters, leaderboard, learning curves, sensitivity, sparsity groups.

    Returns
    -------
    VBox
        The widgets; its attributes are ``view`` and ``panel`` (`OverviewPanel`).
    """
    return OverviewPanel(view).widget
