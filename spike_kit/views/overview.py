"""Overview of a data set: leaderboard of all runs with filters, learning curves, sensitivity, sparsity groups."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from spike_kit.base.errors import ConfigError, DataError, require, some
from spike_kit.data.dataset import Dataset
from spike_kit.evaluation.groups import sparsity_groups
from spike_kit.experiments.archive import with_archived
from spike_kit.experiments.run import data_version
from spike_kit.experiments.run_folder import Run, list_runs
from spike_kit.figures.style import COLOURS
from spike_kit.results.frames import curves_frame, group_means, grouped_by_seed, sensitivity_frame
from spike_kit.training.checkpoint import MONITOR
from spike_kit.views.charts import DASHES, PATTERNS
from spike_kit.views.safe import shown
from spike_kit.views.search import fold

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Split = Literal["valid", "test"]

MOST_CURVES = 40
"""Runs whose learning curves are drawn; more cannot be told apart."""
_LABEL = 60


def _all_runs(data: Dataset) -> list[Run]:
    """Runs of a data set's name, on whatever version of the data, then those that only the archive has."""
    return with_archived(data, list_runs(data.name))


class Overview:
    """All finished runs of a data set, filtered.

    Parameters
    ----------
    data
        The study.
    runs
        Finished runs; default: all of the study's name, oldest first, then what only the archive has
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

    @cached_property
    def groups(self) -> pd.Series:
        """Sparsity group of every user."""
        return sparsity_groups(self.data)

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
        return dict(sorted(found.items(), key=lambda item: -self._mean(item[1])))

    @property
    def runs(self) -> list[Run]:
        """Runs that the filters leave."""
        return [run for group in self.kept().values() for run in group]

    def _mean(self, group: Sequence[Run]) -> float:
        return float(np.mean([run.metrics[self.split][self.metric] for run in group]))

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
            values = [run.metrics[self.split][self.metric] for run in group]
            row = {"rank": rank, "model": label, "seeds": len(group), self.metric: float(np.mean(values))}
            row |= {"sd": float(np.std(values, ddof=1)) if len(values) > 1 else np.nan}
            for name, key in (("best epoch", "best_epoch"), *((key, key) for key in ("epochs", "seconds", "peak_gib"))):
                known = [run.metrics[key] for run in group if run.metrics.get(key) is not None]
                row[name] = float(np.mean(known)) if known else np.nan
            row["data"] = "present" if group[0].config["data_sha256"] == self._data_version else "older"
            rows.append(row)
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

    @property
    def sensitivity(self) -> pd.DataFrame:
        """Runs that differ in one setting, for every such setting; see `sensitivity_frame`."""
        return sensitivity_frame(self.runs, self.metric, self.split)

    @property
    def group_table(self) -> pd.DataFrame:
        """Mean of the metric in every sparsity group of users: group, users, and a column for every model."""
        kept = self.kept()
        if not kept:
            return pd.DataFrame(columns=["group", "users"])
        return group_means(kept, self.groups, self.metric, self.split)

    @property
    def figure(self) -> Figure:
        """Leaderboard as points with the spread over seeds."""
        objects = require("plotly.graph_objects", "lab")
        table = self.table
        names = [f"{rank}. {shown(model, _LABEL)}" for rank, model in zip(table["rank"], table["model"], strict=True)]
        spread = {"type": "data", "array": table["sd"].fillna(0).tolist(), "color": COLOURS[0]}
        chart = objects.Figure()
        chart.add_scatter(
            x=table[self.metric].tolist(),
            y=names,
            mode="markers",
            marker={"size": 9, "color": COLOURS[0]},
            error_x=spread,
            customdata=table["seeds"].tolist(),
            hovertemplate="%{y}<br>%{x:.4f}, %{customdata} seed(s)<extra></extra>",
        )
        chart.update_xaxes(title=f"{shown(self.metric)} on {self.split} (bars: sd over seeds)")
        chart.update_yaxes(autorange="reversed", automargin=True)
        return _laid_out(chart, 120 + 26 * max(len(names), 2))

    def curves(self, x: Literal["epoch", "seconds"] = "epoch") -> Figure:
        """Validation metric of the runs that the filters leave, over epochs or seconds of training; seeds look alike.

        Of more than `MOST_CURVES` runs those of the best models are drawn.
        """
        objects = require("plotly.graph_objects", "lab")
        drawn, left = dict[str, list[Run]](), MOST_CURVES
        for label, group in self.kept().items():
            drawn[label] = group[:left]
            left -= len(drawn[label])
        frame = curves_frame(drawn, self.metric)
        chart = objects.Figure()
        models = frame["model"].unique().tolist()
        for (model, seed), part in frame.groupby(["model", "seed"], sort=False):
            number = models.index(model)
            name = shown(model, _LABEL)
            chart.add_scatter(
                x=part[x].tolist(),
                y=part["value"].tolist(),
                mode="lines",
                line={"color": COLOURS[number % len(COLOURS)], "dash": DASHES[number % len(DASHES)], "width": 1.5},
                name=name,
                legendgroup=str(number),
                showlegend=bool(seed == frame.loc[frame["model"] == model, "seed"].iloc[0]),
                hovertemplate=f"%{{y:.4f}}<extra>{name}, seed {seed}</extra>",
            )
        chart.update_xaxes(title={"epoch": "epoch", "seconds": "training, s"}[x], rangemode="tozero")
        chart.update_yaxes(title=f"{shown(self.metric)} on validation")
        return _laid_out(chart, 360 + 18 * len(models))

    def sensitivity_figure(self, columns: int = 3) -> Figure:
        """One panel for every setting of `sensitivity`.

        Raises
        ------
        DataError
            If no two runs differ in one setting only.
        """
        frame = self.sensitivity
        if frame.empty:
            raise DataError("no two of these runs differ in one setting only", "train some: see notebook 05")
        subplots = require("plotly.subplots", "lab")
        panels = list(frame.groupby(["model", "setting"], sort=False))
        titles = [shown(f"{model}: {setting}", 40) for (model, setting), _ in panels]
        n_rows = -(-len(panels) // columns)
        chart = subplots.make_subplots(n_rows, columns, subplot_titles=titles, shared_yaxes=True)
        for number, (_, part) in enumerate(panels):
            numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in part["value"])
            row, column = number // columns + 1, number % columns + 1
            chart.add_scatter(
                x=part["value"].tolist() if numbers else [shown(value, 30) for value in part["value"]],
                y=part["mean"].tolist(),
                error_y={"type": "data", "array": part["sd"].fillna(0).tolist()},
                mode="lines+markers",
                line={"color": COLOURS[0]},
                customdata=part["seeds"].tolist(),
                hovertemplate="%{x}: %{y:.4f}, %{customdata} seed(s)<extra></extra>",
                showlegend=False,
                row=row,
                col=column,
            )
            if not numbers:
                chart.update_xaxes(type="category", row=row, col=column)
        chart.update_yaxes(title=f"{shown(self.metric)} ({self.split})", col=1)
        return _laid_out(chart, 90 + 230 * n_rows)

    def group_figure(self, most: int = 8) -> Figure:
        """Bars of `group_table`, one colour and pattern per model; the ``most`` best models."""
        objects = require("plotly.graph_objects", "lab")
        table = self.group_table
        chart = objects.Figure()
        axis = [f"{group}<br>({users} users)" for group, users in zip(table["group"], table["users"], strict=True)]
        for number, model in enumerate(list(self.kept())[:most]):
            name = shown(model, _LABEL)
            chart.add_bar(
                x=axis,
                y=table[model].tolist(),
                name=name,
                marker={"color": COLOURS[number % len(COLOURS)], "pattern_shape": PATTERNS[number % len(PATTERNS)]},
                hovertemplate=f"%{{y:.4f}}<extra>{name}</extra>",
            )
        chart.update_xaxes(title="users by train interactions", type="category")
        chart.update_yaxes(title=f"{shown(self.metric)} on {self.split}")
        return _laid_out(chart.update_layout(barmode="group"), 360 + 18 * min(most, len(self.kept())))


def _laid_out(chart: Figure, height: int) -> Figure:
    """House style of these charts: legend below, where long names have room."""
    return chart.update_layout(
        template="plotly_white",
        height=height,
        margin={"l": 10, "r": 10, "t": 40, "b": 40},
        legend={"orientation": "h", "yanchor": "top", "y": -0.2, "entrywidth": 0.48, "entrywidthmode": "fraction"},
    )
