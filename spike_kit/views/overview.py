"""All runs of a data set: leaderboard with filters, learning curves, sensitivity, sparsity groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from spike_kit.base.errors import lookup
from spike_kit.data.dataset import Dataset
from spike_kit.experiments.archive import known_runs
from spike_kit.experiments.run import Run, data_version, list_runs
from spike_kit.figures.charts import curve_lines, sensitivity_lines, sparsity_slopes
from spike_kit.results import frames
from spike_kit.results.tables import devices
from spike_kit.training.checkpoint import MONITOR
from spike_kit.views.safe import html_table, html_text
from spike_kit.views.tables import fold
from spike_kit.views.widgets import TYPED, Panel, Split, filled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_DRAWN = 8
"""Models whose learning curves, and whose groups of users, are drawn; more cannot be told apart."""
MOST_ROWS = 50
"""Rows of the leaderboard that a panel shows."""


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
    text
        Only runs whose label or preset holds every word of it are shown (case and accents do not matter).
    older
        Whether runs on another version of the data are shown as well; they must not be compared with the others.
    """

    def __init__(
        self, data: Dataset, runs: Sequence[Run] | None = None, *, split: Split = "valid", metric: str = MONITOR
    ) -> None:
        self.data, self.split, self.metric = data, split, metric
        self.text, self.older = "", False
        self.reload(runs)
        if self.all:
            lookup(dict.fromkeys(self.metrics), metric, "metric")

    def reload(self, runs: Sequence[Run] | None = None) -> None:
        """Look for runs again: those that were finished meanwhile."""
        self.all = known_runs(self.data, list_runs(self.data.name)) if runs is None else list(runs)
        self.labelled: Mapping[str, list[Run]] = frames.grouped_by_seed(self.all)
        self._version = data_version(self.data)

    @property
    def metrics(self) -> list[str]:
        """Metrics that every run has."""
        names = [list(run.metrics[self.split]) for run in self.all] or [[MONITOR]]
        return [name for name in names[0] if all(name in others for others in names)]

    def kept(self) -> dict[str, list[Run]]:
        """What the filters leave, best first by the mean of the metric."""
        words = fold(self.text).split()
        found = {}
        for label, group in self.labelled.items():
            config = group[0].config
            named = fold(f"{label} {config['preset']}")
            present = self.older or config["data_sha256"] == self._version
            if present and all(word in named for word in words):
                found[label] = group
        return dict(sorted(found.items(), key=lambda item: -self._values(item[1]).mean()))

    def _values(self, group: list[Run]) -> pd.Series:
        return frames.seed_means(group, self.metric, self.split)

    @property
    def table(self) -> pd.DataFrame:
        """Leaderboard, the best first.

        Returns
        -------
        DataFrame
            rank, model, seeds, the metric (mean over seeds) and its sd (NaN for one seed), seconds (of training) and
            peak_gib (means over seeds), device where runs of several devices are shown, data (``present`` or
            ``older``).
        """
        rows, kept = [], self.kept()
        for rank, (label, group) in enumerate(kept.items(), start=1):
            values = self._values(group)
            row = {"rank": rank, "model": label, "seeds": len(group), self.metric: values.mean(), "sd": values.std()}
            present = group[0].config["data_sha256"] == self._version
            rows.append(row | frames.costs(group) | {"data": "present" if present else "older"})
        table = pd.DataFrame(rows, columns=["rank", "model", "seeds", self.metric, "sd", "seconds", "peak_gib", "data"])
        if any(named := devices(kept.values())):
            table.insert(len(table.columns) - 1, "device", named)
        return table

    @property
    def summary(self) -> str:
        """How many runs there are, and how many the filters leave."""
        kept, by = self.kept(), f"of {self.data.name}, by {self.metric} on {self.split}"
        runs = f"{sum(map(len, kept.values()))} of {len(self.all)} runs"
        return f"{len(kept)} of {len(self.labelled)} configurations ({runs}) {by}"

    def curves(self, x: Literal["epoch", "seconds"] = "epoch") -> Figure:
        """Validation metric of the `MOST_DRAWN` best models over epochs or seconds of training.

        Raises
        ------
        DataError
            If no run has a learning curve.
        """
        frame = frames.curves_frame(self._best(), self.metric)
        return curve_lines(filled(frame, "no run here has a learning curve"), x)

    def sensitivity(self) -> Figure:
        """One panel for every setting in which runs differ, with all else equal.

        Raises
        ------
        DataError
            If no two runs differ in one setting only.
        """
        runs = [run for group in self.kept().values() for run in group]
        frame = frames.sensitivity_frame(runs, self.metric, self.split)
        return sensitivity_lines(filled(frame, "no two of these runs differ in one setting only"))

    def groups(self) -> Figure:
        """Lines of the metric over the sparsity groups of users, of the `MOST_DRAWN` best models.

        Raises
        ------
        DataError
            If the filters leave no run.
        """
        frame = frames.sparsity_frame(self.data, self._best(), self.metric, self.split)
        return sparsity_slopes(filled(frame, "no run is left"))

    def _best(self) -> dict[str, list[Run]]:
        return dict(list(self.kept().items())[:MOST_DRAWN])

    def panel(self) -> Any:
        """Filters, leaderboard, learning curves over epochs, sensitivity, sparsity groups."""
        panel = Panel(self)
        draw = {"curves": self.curves, "sensitivity": self.sensitivity, "groups": self.groups}

        def reload(_: object) -> None:
            self.reload()
            offer()

        def offer() -> None:
            panel.offer("metric", self.metrics, self.metric if self.metric in self.metrics else None)
            refresh()

        def refresh(_: object = None) -> None:
            for name in ("metric", "split", "text", "older"):
                setattr(self, name, panel[name].value)
            table = self.table
            rest = f"; {MOST_ROWS} are listed" if len(table) > MOST_ROWS else ""
            panel["status"].value = html_text(self.summary + rest)
            panel["leaderboard"].value = html_table(table.head(MOST_ROWS))
            show()

        def show(_: object = None) -> None:
            """Draw what the open tab shows."""
            name = list(draw)[tabs.selected_index or 0]
            panel.draw(name, draw[name])

        filters = panel.row(
            panel.add("metric", "Dropdown", refresh, options=self.metrics),
            panel.add("split", "Dropdown", refresh, options=["valid", "test"], value=self.split),
            panel.add("text", "Text", refresh, description="Label", **TYPED),
            panel.add("older", "Checkbox", refresh, value=self.older, description="Also of older data"),
            panel.add("reload", "Button", reload, tooltip="Look for runs that finished meanwhile"),
        )
        tabs = panel.tabs(**{name: panel.picture(name) for name in draw})
        tabs.observe(show, names="selected_index")
        box = panel.box(filters, *panel.texts("status", "leaderboard"), tabs)
        offer()
        return box
