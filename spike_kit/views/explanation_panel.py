"""Why this recommendation, as widgets."""

from __future__ import annotations

from typing import Any

from spike_kit.base.errors import SpikeKitError, require
from spike_kit.views.explanation import Explanation
from spike_kit.views.safe import html_table, html_text
from spike_kit.views.widgets import chart_box, live_figure, redraw

_NOTE = "The model computes the list again without what is chosen; its parameters stay as they were trained."
_SHOWN = 15
"""Train items that are named."""


class ExplanationPanel:
    """An `Explanation` as widgets.

    Attributes
    ----------
    widget
        What a notebook shows.
    """

    def __init__(self, view: Explanation) -> None:
        widgets = require("ipywidgets", "lab")
        self.view = view
        self.user = widgets.BoundedIntText(
            value=view.user, min=0, max=view.nodes.n_users - 1, description="user", continuous_update=False
        )
        self.by = widgets.ToggleButtons(
            options=["origin", "layer"], description="parts by", tooltips=["structure or profile", "layer 0 to L"]
        )
        self.items = widgets.Dropdown(description="item", tooltip="an item of the list")
        self.out = widgets.SelectMultiple(description="take out", rows=6, tooltip="what is taken out")
        self.compute = widgets.Button(description="What if", tooltip="Compute the list again without what is chosen")
        self.out.layout = widgets.Layout(width="70%")
        names = ("table", "train", "paths", "passages", "answer")
        self.table, self.train, self.paths, self.passages, self.answer = (widgets.HTML() for _ in names)
        self.chart = live_figure(view.figure)
        for widget, name in ((self.user, "user"), (self.items, "item"), (self.compute, "whatif")):
            widget.add_class(f"spike-{name}")
        self.answer.add_class("spike-answer")
        self.user.observe(lambda change: self._user(change["new"]), names="value")
        self.by.observe(lambda _: redraw(self.chart, self.view.figure_of(self.by.value)), names="value")
        self.items.observe(self._item_changed, names="value")
        self.compute.on_click(lambda _: self._what_if())
        note = widgets.HTML(html_text(_NOTE))
        what_if = widgets.VBox([note, self.out, self.compute, self.answer])
        details = widgets.Tab([self.paths, self.passages, what_if])
        details.titles = ("paths", "shared passages", "what if")
        chart = chart_box(self.chart, name="why")
        self.widget = widgets.VBox([self.user, self.train, self.table, self.by, chart, self.items, details])
        self.widget.view, self.widget.panel = view, self
        self._refresh()

    def _user(self, user: int) -> None:
        self.view.choose(user)
        self._refresh()

    def _refresh(self) -> None:
        view, labels = self.view, self.view.data.items["label"]
        self.table.value = html_table(view.table)
        first = ", ".join(str(labels.iloc[item]) for item in view.train[:_SHOWN])
        rest = f" and {len(view.train) - _SHOWN} more" if len(view.train) > _SHOWN else ""
        self.train.value = f"in train: {html_text(first)}{rest}"
        redraw(self.chart, view.figure_of(self.by.value))
        self.items.unobserve(self._item_changed, names="value")
        self.items.options = [
            (f"{rank}. {str(labels.iloc[item])[:60]}", item) for rank, item in enumerate(view.items, 1)
        ]
        self.items.index = 0 if view.items else None
        self.items.observe(self._item_changed, names="value")
        self._item(self.items.value)

    def _item_changed(self, change: dict[str, Any]) -> None:
        self._item(change["new"])

    def _item(self, item: int | None) -> None:
        if item is None:
            self.paths.value = self.passages.value = self.answer.value = ""
            self.out.options = []
            return
        found = self.view.paths(item)
        self.paths.value = html_table(found) if len(found) else html_text("no path leads from the user to this item")
        self.passages.value = self.view.passages_html(item)
        self.out.options = list(self.view.removals(item))
        self.answer.value = ""

    def _what_if(self) -> None:
        if not self.out.value:
            self.answer.value = html_text("choose what is taken out first")
            return
        known = self.view.removals(self.items.value)
        try:
            self.answer.value = html_table(self.view.what_if(*(known[name] for name in self.out.value)))
        except SpikeKitError as error:
            self.answer.value = html_text(error)


def explanation_panel(view: Explanation) -> Any:
    """Show an `Explanation` as widgets: the list, parts of the scores, paths, shared passages, what if.

    Returns
    -------
    VBox
        The widgets; its attributes are ``view`` and ``panel`` (`ExplanationPanel`).
    """
    return ExplanationPanel(view).widget
