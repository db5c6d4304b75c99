"""All runs of a data set: leaderboard with filters, learning curves, sensitivity, sparsity groups."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from spike_kit.base.errors import ConfigError, DataError, SpikeKitError, some
from spike_kit.data.dataset import Dataset
from spike_kit.experiments.archive import with_archived
from spike_kit.experiments.run import data_version
from spike_kit.experiments.run_folder import Run, list_runs
from spike_kit.figures.charts import curve_lines, sensitivity_lines, sparsity_bars
from spike_kit.figures.style import picture
from spike_kit.results.frames import (
    costs,
    curves_frame,
    grouped_by_seed,
    seed_means,
    sensitivity_frame,
    sparsity_frame,
)
from spike_kit.training.checkpoint import MONITOR
from spike_kit.views.safe import html_table, html_text
from spike_kit.views.search import fold
from spike_kit.views.widgets import TYPED, Panel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Split = Literal["valid", "test"]

MOST_CURVES = 40
"""Runs whose learning curves are drawn; more cannot be told apart."""
MOST_GROUPS = 8
"""Models whose groups of users are drawn."""
MOST_ROWS = 50
"""Rows of the leaderboard that a panel shows."""


def _all_runs(data: Dataset) -> list[Run]:
    """Runs of a data set's name, on whatever version of the data, then those that only the archive has."""
    return with_archived(data, list_runs(data.name))


class Overview:
    """All finished runs of a data set, filtered.

    Parameters
    ----------
    data
        The data set.
    runs
        Finished runs; default: all of the data set's name, oldest first, then what only the archive has
        (`spike_kit.experiments.archive`).
    split
        ``valid``, by which one may choose, or ``test``.
    metric
        Metric by which runs are sorted and drawn.

    Attributes
    ----------
    models, presets
        Only runs of these are shown; empty: all.
    text
        Only runs whose label holds every word of it are shown (case and accents do not matter).
    at_least
        Only configurations with as many seeds are shown.
    older
        Whether runs on another version of the data are shown as well; they must not be compared with the others.
    """

    def __init__(
        self, data: Dataset, runs: Sequence[Run] | None = None, *, split: Split = "valid", metric: str = MONITOR
    ) -> None:
        self.data, self.all = data, list(_all_runs(data) if runs is None else runs)
        self.split: Split = split
        self.metric = metric
        self.models: Collection[str] = ()
        self.presets: Collection[str] = ()
        self.text, self.at_least, self.older = "", 1, False
        if self.all and metric not in self.metrics:
            raise ConfigError(f"no metric named {metric!r}", f"known: {some(self.metrics, limit=20)}")

    def reload(self) -> None:
        """Look for runs again: those that were finished meanwhile."""
        self.all = _all_runs(self.data)
        self.__dict__.pop("labelled", None)

    @property
    def metrics(self) -> list[str]:
        """Metrics that every run has."""
        if not self.all:
            return [MONITOR]
        shared = set.intersection(*({*run.metrics[self.split]} for run in self.all))
        return [name for name in self.all[0].metrics[self.split] if name in shared]

    @cached_property
    def labelled(self) -> Mapping[str, list[Run]]:
        """Runs that differ in the seed only, under their label."""
        return grouped_by_seed(self.all)

    @cached_property
    def _data_version(self) -> str:
        return data_version(self.data)

    def kept(self) -> dict[str, list[Run]]:
        """What the filters leave, best first by the mean of the metric."""
        words = fold(self.text).split()
        found = {}
        for label, group in self.labelled.items():
            config = group[0].config
            wanted = not self.models or config["model"] in self.models
            wanted &= not self.presets or config["preset"] in self.presets
            wanted &= len(group) >= self.at_least and all(word in fold(label) for word in words)
            if wanted and (self.older or config["data_sha256"] == self._data_version):
                found[label] = group
        return dict(sorted(found.items(), key=lambda item: -seed_means(item[1], self.metric, self.split).mean()))

    @property
    def runs(self) -> list[Run]:
        """Runs that the filters leave."""
        return [run for group in self.kept().values() for run in group]

    @property
    def table(self) -> pd.DataFrame:
        """Leaderboard, the best first.

        Returns
        -------
        DataFrame
            rank, model, seeds, the metric (mean over seeds) and its sd (NaN for one seed), best epoch, epochs, seconds
            (of training) and peak_gib (means over seeds), data (``present`` or ``older``).
        """
        rows = []
        for rank, (label, group) in enumerate(self.kept().items(), start=1):
            values = seed_means(group, self.metric, self.split)
            row = {"rank": rank, "model": label, "seeds": len(group), self.metric: values.mean(), "sd": values.std()}
            counts = pd.DataFrame([{name: run.metrics.get(name) for name in ("best_epoch", "epochs")} for run in group])
            row |= counts.astype(float).mean().rename({"best_epoch": "best epoch"}).to_dict() | costs(group)
            present = group[0].config["data_sha256"] == self._data_version
            rows.append(row | {"data": "present" if present else "older"})
        columns = ["rank", "model", "seeds", self.metric, "sd", "best epoch", "epochs", "seconds", "peak_gib", "data"]
        return pd.DataFrame(rows, columns=columns)

    @property
    def summary(self) -> str:
        """How many runs there are, and how many the filters leave."""
        kept = self.kept()
        runs = sum(map(len, kept.values()))
        return (
            f"{len(kept)} of {len(self.labelled)} configurations ({runs} of {len(self.all)} runs) "
            f"of {self.data.name}, by {self.metric} on {self.split}"
        )

    def curves(self, x: Literal["epoch", "seconds"] = "epoch") -> Figure:
        """Validation metric of the runs that the filters leave, over epochs or seconds of training.

        Of more than `MOST_CURVES` runs those of the best models are drawn.

        Raises
        ------
        DataError
            If no run has a learning curve.
        """
        drawn, left = dict[str, list[Run]](), MOST_CURVES
        for label, group in self.kept().items():
            drawn[label] = group[:left]
            left -= len(drawn[label])
        return curve_lines(_some(curves_frame(drawn, self.metric), "no run here has a learning curve"), x)

    def sensitivity(self) -> Figure:
        """One panel for every setting in which runs differ, with all else equal.

        Raises
        ------
        DataError
            If no two runs differ in one setting only.
        """
        frame = sensitivity_frame(self.runs, self.metric, self.split)
        return sensitivity_lines(_some(frame, "no two of these runs differ in one setting only"))

    def groups(self) -> Figure:
        """Bars of the metric in every sparsity group of users, of the `MOST_GROUPS` best models.

        Raises
        ------
        DataError
            If the filters leave no run.
        """
        best = dict(list(self.kept().items())[:MOST_GROUPS])
        return sparsity_bars(_some(sparsity_frame(self.data, best, self.metric, self.split), "no run is left"))

    def panel(self) -> Any:
        """Filters, leaderboard, learning curves, sensitivity, sparsity groups."""
        panel = Panel(self)
        filters = ("metric", "split", "models", "presets", "text", "at_least", "older")
        draw: dict[str, Callable[[], Figure]] = {
            "curves": lambda: self.curves(panel["x"].value),
            "sensitivity": self.sensitivity,
            "groups": self.groups,
        }

        def reload(_: object = None) -> None:
            self.reload()
            offer()

        def offer() -> None:
            for name, key in (("models", "model"), ("presets", "preset")):
                known = sorted({run.config[key] for run in self.all})
                panel.offer(name, known, [value for value in panel[name].value if value in known])
            known = self.metrics
            panel.offer("metric", known, self.metric if self.metric in known else known[0])
            refresh()

        def refresh(_: object = None) -> None:
            for name in filters:
                setattr(self, name, panel[name].value)
            table = self.table
            rest = f"; {MOST_ROWS} are listed" if len(table) > MOST_ROWS else ""
            panel["status"].value = html_text(self.summary + rest)
            panel["leaderboard"].value = html_table(table.head(MOST_ROWS))
            show()

        def show(_: object = None) -> None:
            """Draw what the open tab shows."""
            name = list(draw)[tabs.selected_index or 0]
            panel["note"].value, panel[name].layout.display = "", None
            try:
                panel[name].value = picture(draw[name]())
            except SpikeKitError as error:
                panel["note"].value, panel[name].layout.display = html_text(error), "none"

        rows = self._filters(panel, refresh, reload)
        x = panel.add("x", "ToggleButtons", show, options=["epoch", "seconds"], description="over")
        pictures = {name: panel.add(name, "Image", format="png") for name in draw}
        pictures["curves"] = panel.widgets.VBox([x, pictures["curves"]])
        tabs = panel.tabs(
            learning_curves=pictures["curves"], sensitivity=pictures["sensitivity"], by_sparsity=pictures["groups"]
        )
        tabs.observe(show, names="selected_index")
        box = panel.box(*rows, *panel.texts("status", "leaderboard", "note"), tabs)
        offer()
        return box

    def _filters(self, panel: Panel, refresh: Callable[[Any], None], reload: Callable[[Any], None]) -> list[Any]:
        """Rows of a panel with the filters."""
        size = panel.widgets.Layout(height="6em", width="16em")
        wide = {"description": "seeds at least", "style": {"description_width": "initial"}}
        metrics = {"options": self.metrics, "value": self.metric}
        splits = {"options": ["valid", "test"], "value": self.split}
        line = panel.row(
            panel.add("metric", "Dropdown", refresh, description="metric", **metrics),
            panel.add("split", "Dropdown", refresh, description="split", **splits),
            panel.add("text", "Text", refresh, description="label", **TYPED),
            panel.add("at_least", "BoundedIntText", refresh, value=1, min=1, max=1000, **wide),
            panel.add("older", "Checkbox", refresh, value=self.older, description="also of older data"),
            panel.add(
                "reload", "Button", reload, description="Reload", tooltip="Look for runs that finished meanwhile"
            ),
        )
        lists = (
            panel.add(name, "SelectMultiple", refresh, description=name, tooltip="none: all", layout=size)
            for name in ("models", "presets")
        )
        return [line, panel.row(*lists)]


def _some(frame: pd.DataFrame, missing: str) -> pd.DataFrame:
    """A table that is not empty."""
    if frame.empty:
        raise DataError(missing, "change the filters, or train some: see notebook 05")
    return frame
