"""The ablation panel: switches and sliders, training in the background, live curves, and the comparison."""

from __future__ import annotations

import threading
from typing import Any

from spike_kit.base.errors import SpikeKitError, require
from spike_kit.data.dataset import Dataset
from spike_kit.views.ablation import AblationStudy, Combination
from spike_kit.views.safe import html_table, html_text
from spike_kit.views.widgets import chart_box, live_figure, redraw

REFRESH_SECONDS = 0.7
"""Time between two looks at a running training."""

_TITLES = {
    "user_profiles": "user profiles",
    "item_profiles": "item profiles",
    "auxiliary_profiles": "auxiliary profiles",
    "inject": "inject",
    "remove": "remove",
}
_ICONS = {True: "check", False: "times"}
_CHOICES = {
    "matching": ("exact", "sampled", "off"),
    "attention": ("attention", "mean"),
    "user_to_item": ("off", "add", "instead"),
}


class _Controls:
    """Widgets of all switches; `values` reads them."""

    def __init__(self, view: AblationStudy) -> None:
        widgets = require("ipywidgets", "lab")
        full, wide = view.settings, {"description_width": "initial"}
        self.toggles = {
            name: widgets.ToggleButton(
                value=bool(getattr(full, name)),
                description=title,
                icon=_ICONS[bool(getattr(full, name))],
                tooltip=f"{name} on or off",
            )
            for name, title in _TITLES.items()
        }
        for toggle in self.toggles.values():
            toggle.observe(lambda change: setattr(change["owner"], "icon", _ICONS[change["new"]]), names="value")
        self.choices = {
            name: widgets.Dropdown(
                options=options, value=getattr(full, name), description=name, tooltip=name, style=wide
            )
            for name, options in _CHOICES.items()
        }
        spans = {"rho": (0.0, 2.0, 0.05), "gamma": (0.05, 1.0, 0.05)}
        self.sliders: dict[str, Any] = {
            name: widgets.FloatSlider(
                value=getattr(full, name),
                min=low,
                max=high,
                step=step,
                description=name,
                continuous_update=False,
                readout_format=".2f",
            )
            for name, (low, high, step) in spans.items()
        }
        self.sliders["layers"] = widgets.IntSlider(
            value=full.layers, min=1, max=4, description="layers", continuous_update=False
        )
        pairs = _texts(view.data)
        self.text = widgets.Dropdown(
            options=[(f"{profiles} by {encoder}", (profiles, encoder)) for profiles, encoder in pairs],
            value=pairs[0],
            description="text",
            tooltip="profile set and encoder",
            layout=widgets.Layout(width="420px"),
        )

    @property
    def all(self) -> list[Any]:
        """Every control."""
        return [*self.toggles.values(), *self.choices.values(), *self.sliders.values(), self.text]

    def combination(self, view: AblationStudy) -> Combination:
        """What the controls say now."""
        settings = {
            name: control.value for part in (self.toggles, self.choices, self.sliders) for name, control in part.items()
        }
        profiles, encoder = self.text.value
        return view.combination(profiles, encoder, **settings)

    def show(self, view: AblationStudy, combination: Combination) -> None:
        """Set the controls to a combination."""
        settings = view.settings.replace(**dict(combination.changed))
        for name, control in (self.toggles | self.choices | self.sliders).items():
            control.value = getattr(settings, name)
        self.text.value = (combination.profiles, combination.encoder)


def _texts(data: Dataset) -> list[tuple[str, str]]:
    """Profile sets with the encoders whose vectors exist, the usual pair first."""
    usual = (Combination().profiles, Combination().encoder)
    found = [pair for pair in data.encoded() if pair != usual]
    return [usual, *found]


class AblationPanel:
    """An `AblationStudy` as widgets.

    Parameters
    ----------
    view
        The study behind the panel.

    Attributes
    ----------
    widget
        What a notebook shows.
    """

    def __init__(self, view: AblationStudy) -> None:
        widgets = require("ipywidgets", "lab")
        self.view, self.controls = view, _Controls(view)
        button = widgets.Button
        self.train = button(description="Train", button_style="primary", tooltip="Train this combination")
        self.stop = button(description="Stop", tooltip="Save the state and end the training")
        self.compare = button(description="Compare", tooltip="Add this combination to the comparison, or take it out")
        self.rows = widgets.Dropdown(
            options=[(combination.label, combination) for combination in view.named()],
            description="ablation",
            tooltip="set all switches to a row of the ablation table",
            layout=widgets.Layout(width="360px"),
        )
        self.status = widgets.HTML()
        self.bar = widgets.FloatProgress(min=0.0, max=1.0, layout=widgets.Layout(width="40%"))
        self.table = widgets.HTML()
        empty = require("plotly.graph_objects", "lab").Figure()
        self.chart, self.group_chart, self.curves = (live_figure(empty) for _ in range(3))
        for control, name in (
            (self.train, "train"),
            (self.stop, "stop"),
            (self.status, "status"),
            (self.table, "table"),
        ):
            control.add_class(f"spike-{name}")
        self.compare.add_class("spike-compare")
        self._connect()
        self.widget = self._layout(widgets)
        self.widget.view, self.widget.panel = view, self
        self._lock, self._watcher = threading.RLock(), None
        self.refresh(charts=True)

    def _layout(self, widgets: Any) -> Any:
        controls = self.controls
        line = widgets.Layout(flex_flow="row wrap")
        charts = (self.chart, "chart"), (self.group_chart, "groups"), (self.curves, "curves")
        tabs = widgets.Tab([chart_box(chart, name=name) for chart, name in charts])
        tabs.titles = ("difference", "by sparsity", "learning curves")
        return widgets.VBox(
            [
                widgets.HBox([self.rows, controls.text], layout=line),
                widgets.HBox(list(controls.toggles.values()), layout=line),
                widgets.HBox(list(controls.choices.values()), layout=line),
                widgets.HBox(list(controls.sliders.values()), layout=line),
                widgets.HBox([self.train, self.stop, self.compare, self.bar], layout=line),
                self.status,
                self.table,
                tabs,
            ]
        )

    def _connect(self) -> None:
        for control in self.controls.all:
            control.observe(lambda _: self.refresh(), names="value")
        self.rows.observe(lambda change: self.controls.show(self.view, change["new"]), names="value")
        self.train.on_click(lambda _: self._begin())
        self.stop.on_click(lambda _: self._end())
        self.compare.on_click(lambda _: self._toggle())

    def _begin(self) -> None:
        combination = self.controls.combination(self.view)
        self.view.add(combination)
        try:
            self.view.retry(combination)
        except SpikeKitError as error:
            self.status.value = html_text(str(error))
            return
        self.refresh(charts=True)

    def _end(self) -> None:
        self.view.stop(self.controls.combination(self.view))
        self.refresh()

    def _toggle(self) -> None:
        combination = self.controls.combination(self.view)
        if combination in self.view.chosen:
            self.view.remove(combination)
        else:
            self.view.add(combination)
        self.refresh(charts=True)

    def _watch(self) -> None:
        """Look at the running training until nothing more is trained."""
        pause = threading.Event()
        while self.view.advance() or self.view.busy(self.controls.combination(self.view)):
            self.refresh(charts=False)
            redraw(self.curves, self.view.curves())
            pause.wait(REFRESH_SECONDS)
        self.refresh(charts=True)

    def refresh(self, charts: bool = False) -> None:
        """Bring status and buttons up to date; with ``charts`` the comparison too."""
        with self._lock:
            combination = self.controls.combination(self.view)
            state = self.view.state(combination)
            self.status.value = f"<b>{html_text(combination.label)}</b>: {html_text(self.view.status(combination))}"
            self.train.disabled = state in ("finished", "training")
            self.stop.disabled = not self.view.busy(combination)
            if not self.stop.disabled and (self._watcher is None or not self._watcher.is_alive()):
                self._watcher = threading.Thread(target=self._watch, name="spike_kit ablation", daemon=True)
                self._watcher.start()
            chosen = combination in self.view.chosen
            self.compare.description = "Take out" if chosen else "Compare"
            self.compare.disabled = combination == self.view.full
            self.bar.value = self.view.progress(combination)
            if charts:
                self.table.value = html_table(self.view.table)
                redraw(self.chart, self.view.figure)
                redraw(self.group_chart, self.view.group_figure)
                redraw(self.curves, self.view.curves())


def ablation_panel(view: AblationStudy) -> Any:
    """Show an `AblationStudy` as widgets: switches, sliders, Train, Stop, the comparison and live curves.

    Returns
    -------
    VBox
        The widgets; its attributes are ``view`` and ``panel`` (`AblationPanel`).
    """
    return AblationPanel(view).widget
