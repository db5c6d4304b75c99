"""Ablations of SPiKE: combinations of switches, their runs, training in the background, and the comparison."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from spike_kit.base.devices import resolve_device
from spike_kit.base.errors import DataError, SpikeKitError, require
from spike_kit.data.dataset import Dataset
from spike_kit.evaluation.groups import sparsity_groups
from spike_kit.experiments import ablation
from spike_kit.experiments.jobs import JobState, TrainingJob
from spike_kit.experiments.run import RunConfig, describe
from spike_kit.experiments.run_folder import Run
from spike_kit.figures.charts import ablation_bars
from spike_kit.figures.style import COLOURS
from spike_kit.models.spike import SpikeConfig
from spike_kit.profiles.encode import DEFAULT_ENCODER
from spike_kit.profiles.template import TEMPLATE
from spike_kit.results.comparison import corrected, paired
from spike_kit.results.frames import over_shared_seeds, seed_means
from spike_kit.training.checkpoint import MONITOR
from spike_kit.views.safe import html_table, html_text, shown
from spike_kit.views.widgets import DASHES, LAYOUT, PATTERNS, Panel, redraw, write

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

REFRESH_SECONDS = 0.7
"""Time between two looks at a running training."""

_COMPARED = ("difference", "low", "high", "p permutation")
_ICONS = {True: "check", False: "times"}
_TOGGLES = ("user_profiles", "item_profiles", "auxiliary_profiles", "inject", "remove")
_LIST = {"style": {"description_width": "initial"}}
_SLIDER = {"continuous_update": False}
_CONTROLS: tuple[dict[str, tuple[str, dict[str, Any]]], ...] = (
    dict.fromkeys(_TOGGLES, ("ToggleButton", {})),
    {
        "matching": ("Dropdown", {"options": ("exact", "sampled", "off"), **_LIST}),
        "attention": ("Dropdown", {"options": ("attention", "mean"), **_LIST}),
        "user_to_item": ("Dropdown", {"options": ("off", "add", "instead"), **_LIST}),
    },
    {
        "rho": ("FloatSlider", {"min": 0.0, "max": 2.0, "step": 0.05, **_SLIDER}),
        "gamma": ("FloatSlider", {"min": 0.05, "max": 1.0, "step": 0.05, **_SLIDER}),
        "layers": ("IntSlider", {"min": 1, "max": 4, **_SLIDER}),
    },
)
"""Rows of controls, one for each setting that a panel changes: kind of widget, and its options."""
_SETTINGS = [name for row in _CONTROLS for name in row]


@dataclass(frozen=True)
class Combination:
    """One setting of all switches.

    Attributes
    ----------
    changed
        Settings that differ from the preset, as sorted pairs; those without effect are not among them.
    profiles, encoder
        Profile set and text encoder.
    """

    changed: tuple[tuple[str, Any], ...] = ()
    profiles: str = TEMPLATE
    encoder: str = DEFAULT_ENCODER

    @property
    def label(self) -> str:
        """Name of the ablation, or the settings that differ; with the text where that is another than usual."""
        parts = [ablation.label(dict(self.changed))]
        parts += [f"profiles={self.profiles}"] if self.profiles != TEMPLATE else []
        parts += [f"encoder={self.encoder}"] if self.encoder != DEFAULT_ENCODER else []
        return ", ".join(parts)


class AblationStudy:
    """Ablations of SPiKE on one data set: what is trained, what it gives, and training what is missing.

    Parameters
    ----------
    data
        The data set; it needs profiles and vectors.
    seeds
        Seeds of every combination.
    training
        Training settings that differ from the preset (fewer epochs for a quick look, say).
    preset
        Preset of the full model; ``tuned`` stands for the settings that a search kept.
    split
        ``valid``, by which one may choose, or ``test``.
    metric
        Metric of the comparison.
    device, threads
        Where missing runs are trained (``auto``: on a GPU where there is one), and on how many CPU threads (none: one
        per core).

    Attributes
    ----------
    chosen
        Combinations that are compared with the full model.
    """

    def __init__(
        self,
        data: Dataset,
        seeds: Sequence[int] = (0,),
        training: dict[str, Any] | None = None,
        *,
        preset: str = "recommended",
        split: str = "valid",
        metric: str = MONITOR,
        device: str = "auto",
        threads: int | None = None,
    ) -> None:
        self.data, self.seeds, self.preset = data, tuple(seeds), preset
        self.training, self.split, self.metric = dict(training or {}), split, metric
        self.device, self.threads = str(resolve_device(device)), threads
        self.chosen: list[Combination] = []
        self._jobs: dict[Combination, list[TrainingJob]] = {}
        self._compared: dict[tuple[Any, ...], dict[str, float]] = {}
        self._wanted: list[Combination] = []

    @cached_property
    def settings(self) -> SpikeConfig:
        """Settings of the full model."""
        return SpikeConfig.parse(dict(RunConfig(dataset=self.data.name, preset=self.preset).base().model))

    @property
    def full(self) -> Combination:
        """The full model: nothing differs from the preset."""
        return Combination()

    @cached_property
    def groups(self) -> pd.Series:
        """Sparsity group of every user."""
        return sparsity_groups(self.data)

    def combination(self, profiles: str = TEMPLATE, encoder: str = DEFAULT_ENCODER, **settings: Any) -> Combination:
        """Combine settings of `SpikeConfig`; whatever has no effect in this combination is left out.

        Raises
        ------
        ConfigError
            If a setting is unknown or its value not allowed.
        """
        combined = self.settings.replace(**settings)
        changed = tuple(sorted(ablation.changes(combined, self.settings).items()))
        if not combined.uses_text:
            profiles, encoder = TEMPLATE, DEFAULT_ENCODER
        return Combination(changed, profiles, encoder)

    def named(self) -> list[Combination]:
        """Rows of the ablation table (`spike_kit.experiments.ablation.ABLATIONS`), the full model first."""
        return [self.combination(**row) for row in ablation.ABLATIONS.values()]

    def jobs(self, combination: Combination) -> list[TrainingJob]:
        """One job for every seed."""
        if combination not in self._jobs:
            config = RunConfig(
                dataset=str(self.data.path),
                preset=self.preset,
                settings=dict(combination.changed),
                training=self.training,
                profiles=combination.profiles,
                encoder=combination.encoder,
            )
            described = describe(config, self.data)
            self._jobs[combination] = [
                TrainingJob(config.replace(seed=seed), described | {"seed": seed}, self.device, self.threads)
                for seed in self.seeds
            ]
        return self._jobs[combination]

    def runs(self, combination: Combination) -> list[Run]:
        """Finished runs of a combination, in the order of the seeds."""
        return [run for job in self.jobs(combination) if (run := job.run) is not None]

    def state(self, combination: Combination) -> JobState:
        """Where a combination stands, over all seeds: finished only if every seed is."""
        states = [job.state for job in self.jobs(combination)]
        if all(state == "finished" for state in states):
            return "finished"
        order: tuple[JobState, ...] = ("training", "failed", "interrupted", "not trained")
        return next(state for state in order if state in states)

    def status(self, combination: Combination) -> str:
        """The state in one line: epochs and seconds left while training, the error where it failed."""
        state, jobs = self.state(combination), self.jobs(combination)
        done = len(self.runs(combination))
        seeds = f" ({done} of {len(jobs)} seeds finished)" if len(jobs) > 1 else ""
        if state == "training":
            job = next(job for job in jobs if job.state == "training")
            left = job.seconds_left
            rest = "" if left is None else f", at most {left:.0f} s left"
            return f"training seed {job.config.seed}: epoch {len(job.history)} of at most {job.epochs}{rest}{seeds}"
        if state == "failed":
            message = next(job.message for job in jobs if job.state == "failed")
            return f"failed: {message}{seeds}"
        if state == "interrupted":
            return f"interrupted; Train goes on from the last state{seeds}"
        return f"{state}{seeds}"

    def busy(self, *combinations: Combination) -> bool:
        """Whether anything that was asked for here, or one of some combinations, is being trained.

        A training that another kernel started counts as well where it belongs to ``combinations``.
        """
        return any(job.state == "training" for one in (*self._wanted, *combinations) for job in self.jobs(one))

    def progress(self, combination: Combination) -> float:
        """Share of the epochs that are done at most, over all seeds, in [0, 1]."""
        jobs = self.jobs(combination)
        return sum(1.0 if job.run else len(job.history) / job.epochs for job in jobs) / len(jobs)

    def train(self, combination: Combination) -> None:
        """Start training what is missing of a combination, one seed after the other; call `advance` now and then."""
        if combination not in self._wanted:
            self._wanted.append(combination)
        self.advance()

    def stop(self, *combinations: Combination) -> None:
        """Stop what is being trained: what was asked for here, and ``combinations``, whoever started them.

        Their state is kept, and nothing more is started.
        """
        wanted, self._wanted = self._wanted, []
        for combination in (*wanted, *combinations):
            for job in self.jobs(combination):
                job.stop()

    def advance(self) -> bool:
        """Start the next missing seed if nothing is being trained; returns whether anything is."""
        for combination in list(self._wanted):
            jobs = self.jobs(combination)
            if any(job.state == "training" for job in jobs):
                return True
            missing = [job for job in jobs if job.state in ("not trained", "interrupted")]
            if missing and not any(job.state == "failed" for job in jobs):
                missing[0].start()
                return True
            self._wanted.remove(combination)
        return False

    def retry(self, combination: Combination) -> None:
        """Train what failed once more, and what is missing."""
        for job in self.jobs(combination):
            if job.state == "failed":
                job.start()
                break
        self.train(combination)

    def add(self, combination: Combination) -> None:
        """Compare a combination with the full model."""
        if combination not in self.chosen and combination != self.full:
            self.chosen.append(combination)

    def remove(self, combination: Combination) -> None:
        """Compare it no longer."""
        if combination in self.chosen:
            self.chosen.remove(combination)

    @property
    def table(self) -> pd.DataFrame:
        """The full model and the chosen combinations.

        Returns
        -------
        DataFrame
            model, state, seeds (finished ones), mean and sd over seeds; for a combination the mean difference to the
            full model over users (both with the seeds that both have finished), its 95 % bootstrap interval, and the
            permutation test's p (paired by user, Holm's correction over the rows) with its mark. What is not trained is
            blank.
        """
        rows = []
        for combination in (self.full, *self.chosen):
            runs = self.runs(combination)
            row = {"model": combination.label, "state": self.state(combination), "seeds": len(runs)}
            means = seed_means(runs, self.metric, self.split) if runs else pd.Series(dtype=float)
            rows.append(row | {"mean": means.mean(), "sd": means.std()} | self._difference(combination))
        frame = corrected(pd.DataFrame(rows, columns=["model", "state", "seeds", "mean", "sd", *_COMPARED]))
        return frame.rename(columns={"p permutation": "p (Holm)"})

    def _difference(self, combination: Combination, group: str = "") -> dict[str, float]:
        """What `paired` gives against the full model over the seeds that both have finished, remembered.

        Empty for the full model, and where nothing can be compared.
        """
        ours, full = over_shared_seeds(self.runs(combination), self.runs(self.full))
        if not ours or combination == self.full:
            return {}
        key = (self.split, self.metric, group, *(run.path.name for run in (*ours, *full)))
        if key not in self._compared:
            users = self.groups.index[self.groups == group] if group else None
            self._compared[key] = paired(ours, full, self.metric, self.split, users)
        return self._compared[key]

    @property
    def group_table(self) -> pd.DataFrame:
        """Difference of every chosen, trained combination to the full model in each sparsity group of users.

        Returns
        -------
        DataFrame
            model, group (train interactions), users, difference, low, high (95 % bootstrap interval).
        """
        ranked = set(self.data.split(self.split)["user"])
        present = self.groups[self.groups.index.isin(ranked)]
        groups = [group for group in self.groups.cat.categories if (present == group).any()]
        rows = [
            {"model": combination.label, "group": group, **found}
            for combination in self.chosen
            for group in groups
            if (found := self._difference(combination, group))
        ]
        return pd.DataFrame(rows, columns=["model", "group", "users", "difference", "low", "high"])

    @property
    def figure(self) -> Figure:
        """Bars of the differences to the full model, with intervals and marks; where there is none, why."""
        objects = require("plotly.graph_objects", "lab")
        table = self.table.iloc[1:].reset_index(drop=True)
        names = [shown(f"{row.model} {row.mark}".strip(), 60) for row in table.itertuples()]
        trained, missing = table[table["difference"].notna()], table[table["difference"].isna()]
        chart = objects.Figure()
        chart.add_bar(
            y=trained.index.tolist(),
            customdata=[names[row] for row in trained.index],
            x=trained["difference"].tolist(),
            orientation="h",
            marker_color=[COLOURS[0] if x >= 0 else COLOURS[5] for x in trained["difference"]],
            error_x={
                "symmetric": False,
                "array": (trained["high"] - trained["difference"]).tolist(),
                "arrayminus": (trained["difference"] - trained["low"]).tolist(),
                "color": "black",
                "thickness": 1,
            },
            hovertemplate="%{customdata}: %{x:+.4f}<extra></extra>",
        )
        if len(missing):
            why = [self._why_missing(row.state, row.seeds) for row in missing.itertuples()]
            places = {"y": missing.index.tolist(), "x": [0] * len(missing)}
            chart.add_scatter(**places, mode="text", text=why, hoverinfo="skip")
        chart.add_vline(x=0, line_color="black", line_width=1)
        ticks = {"tickvals": list(range(len(names))), "ticktext": names, "range": [len(names) - 0.5, -0.5]}
        return chart.update_layout(
            **LAYOUT,
            showlegend=False,
            height=120 + 34 * max(len(table), 2),
            xaxis_title=f"{shown(self.metric)} minus full model ({shown(self.split)})",
            yaxis={**ticks, "automargin": True},
        )

    def _why_missing(self, state: Any, seeds: Any) -> str:
        """Why a row of the table has no difference to the full model."""
        if state != "finished":
            return state + (f" ({seeds} of {len(self.seeds)} seeds finished)" if seeds else "")
        return "the full model is not trained"

    @property
    def group_figure(self) -> Figure:
        """Differences to the full model per sparsity group, one colour and hatch per combination."""
        express = require("plotly.express", "lab")
        frame = self.group_table
        frame["model"] = [shown(model, 40) for model in frame["model"]]
        frame["group"] = [f"{row.group}<br>({row.users} users)" for row in frame.itertuples()]
        frame["above"], frame["below"] = frame["high"] - frame["difference"], frame["difference"] - frame["low"]
        looks = {"color_discrete_sequence": COLOURS, "pattern_shape_sequence": PATTERNS, "barmode": "group"}
        errors = {"error_y": "above", "error_y_minus": "below"}
        chart = express.bar(frame, x="group", y="difference", color="model", pattern_shape="model", **errors, **looks)
        chart.update_xaxes(title="users by train interactions", type="category")
        chart.update_yaxes(title=f"{shown(self.metric)} minus full model")
        return chart.update_layout(**LAYOUT, height=340, legend={"orientation": "h", "y": 1.15, "title": None})

    def curves(self, *combinations: Combination) -> Figure:
        """Loss and validation metric over epochs, finished and running; default: the full model and the chosen ones."""
        express = require("plotly.express", "lab")
        parts, names = [], {"loss": "loss", f"valid_{self.metric}": f"{shown(self.metric)} on validation"}
        for combination in combinations or (self.full, *self.chosen):
            for job in self.jobs(combination):
                rows = job.history.reindex(columns=["epoch", *names]).melt("epoch", var_name="what").dropna()
                parts.append(rows.assign(model=shown(combination.label, 40), seed=job.config.seed))
        frame = pd.concat(parts) if parts else pd.DataFrame(columns=["epoch", "what", "value", "model", "seed"])
        looks = {"color_discrete_sequence": COLOURS, "line_dash_sequence": DASHES, "line_group": "seed"}
        frame["what"] = frame["what"].map(names)
        facets = {"facet_col": "what", "category_orders": {"what": list(names.values())}}
        chart = express.line(frame, x="epoch", y="value", color="model", line_dash="model", **looks, **facets)
        chart.for_each_annotation(lambda title: title.update(text=title.text.partition("=")[2]))
        chart.update_yaxes(matches=None, showticklabels=True, title=None).update_xaxes(rangemode="tozero")
        return chart.update_layout(**LAYOUT, height=320, legend={"orientation": "h", "y": -0.25, "title": None})

    def export(self, folder: Path | None = None) -> list[Path]:
        """Write the comparison as PDF, and `table` as CSV; returns the files.

        Raises
        ------
        DataError
            If nothing can be compared yet.
        """
        table = self.table.assign(metric=self.metric, split=self.split)
        drawn = table[table["difference"].notna()]
        if drawn.empty:
            raise DataError("there is no comparison to export", "train the full model, and compare a combination")
        return write("ablation", self.data, f"{self.metric}-{self.split}", ablation_bars(drawn), table, folder)

    def panel(self) -> Any:
        """Switches, sliders, Train, Stop, the comparison and live curves."""
        panel, lock, watchers = Panel(self), threading.RLock(), list[threading.Thread]()

        def chosen() -> Combination:
            settings = {name: panel[name].value for name in _SETTINGS}
            return self.combination(*panel["text"].value, **settings)

        def choose(combination: Combination) -> None:
            settings = self.settings.replace(**dict(combination.changed))
            for name in _SETTINGS:
                panel[name].value = getattr(settings, name)
            panel["text"].value = (combination.profiles, combination.encoder)

        def train(_: object) -> None:
            self.add(chosen())
            try:
                self.retry(chosen())
            except SpikeKitError as error:
                panel["status"].value = html_text(error)
                return
            refresh(charts=True)

        def stop(_: object) -> None:
            self.stop(chosen())
            refresh()

        def compare(_: object) -> None:
            (self.remove if chosen() in self.chosen else self.add)(chosen())
            refresh(charts=True)

        def watch() -> None:
            pause = threading.Event()
            while self.advance() or self.busy(chosen()):
                refresh()
                redraw(panel["curves"], self.curves())
                pause.wait(REFRESH_SECONDS)
            refresh(charts=True)

        def refresh(_: object = None, charts: bool = False) -> None:
            with lock:
                self._show_state(panel, chosen())
                if not panel["stop"].disabled and not any(watcher.is_alive() for watcher in watchers):
                    watchers[:] = [threading.Thread(target=watch, name="spike_kit ablation", daemon=True)]
                    watchers[0].start()
                if charts:
                    panel["table"].value = html_table(self.table)
                    for name, figure in self._charts().items():
                        redraw(panel[name], figure)

        rows = self._controls(panel, choose, refresh)
        buttons = (
            panel.add("train", "Button", train, description="Train", button_style="primary"),
            panel.add("stop", "Button", stop, description="Stop", tooltip="Save the state and end the training"),
            panel.add("compare", "Button", compare, tooltip="Add this combination to the comparison, or take it out"),
            panel.add("bar", "FloatProgress", max=1.0),
            panel.exporter(self),
        )
        charts = {name: panel.chart(name, figure) for name, figure in self._charts().items()}
        tabs = panel.tabs(difference=charts["chart"], by_sparsity=charts["groups"], learning_curves=charts["curves"])
        box = panel.box(*rows, panel.row(*buttons), *panel.texts("status", "table"), tabs)
        refresh(charts=True)
        return box

    def _charts(self) -> dict[str, Figure]:
        return {"chart": self.figure, "groups": self.group_figure, "curves": self.curves()}

    def _show_state(self, panel: Panel, combination: Combination) -> None:
        """Bring status and buttons of a panel up to date."""
        panel["status"].value = f"<b>{html_text(combination.label)}</b>: {html_text(self.status(combination))}"
        panel["train"].disabled = self.state(combination) in ("finished", "training")
        panel["stop"].disabled = not self.busy(combination)
        panel["compare"].description = "Take out" if combination in self.chosen else "Compare"
        panel["compare"].disabled = combination == self.full
        panel["bar"].value = self.progress(combination)
        for name in _TOGGLES:
            panel[name].icon = _ICONS[panel[name].value]

    def _controls(self, panel: Panel, choose: Any, changed: Any) -> list[Any]:
        """Rows of a panel with a control for every setting."""
        usual, full = (TEMPLATE, DEFAULT_ENCODER), self.settings
        pairs = [usual, *(pair for pair in self.data.encoded() if pair != usual)]
        texts = [(f"{profiles} by {encoder}", (profiles, encoder)) for profiles, encoder in pairs]
        named = [(combination.label, combination) for combination in self.named()]
        wide = {**_LIST, "layout": panel.widgets.Layout(width="400px")}
        rows = panel.add("rows", "Dropdown", choose, options=named, description="ablation", **wide)
        text = panel.add("text", "Dropdown", changed, options=texts, description="text", **wide)
        settings = [
            [
                panel.add(name, kind, changed, value=getattr(full, name), description=name.replace("_", " "), **options)
                for name, (kind, options) in row.items()
            ]
            for row in _CONTROLS
        ]
        return [panel.row(*parts) for parts in ([rows, text], *settings)]
