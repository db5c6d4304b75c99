"""Ablations of SPiKE: combinations of switches, their runs, training in the background, and the comparison."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import pandas as pd

from spike_kit.base.devices import resolve_device
from spike_kit.base.errors import SpikeKitError, require
from spike_kit.data.dataset import Dataset
from spike_kit.evaluation.groups import sparsity_groups
from spike_kit.experiments import ablation
from spike_kit.experiments.jobs import JobState, TrainingJob
from spike_kit.experiments.run import Run, RunConfig, describe
from spike_kit.figures.charts import ablation_forest, sparsity_slopes
from spike_kit.figures.style import MANY_COLOURS
from spike_kit.models.spike import SpikeConfig
from spike_kit.profiles.encode import DEFAULT_ENCODER
from spike_kit.profiles.template import TEMPLATE
from spike_kit.results.comparison import corrected, paired
from spike_kit.results.frames import grouped_by_seed, over_shared_seeds, seed_means
from spike_kit.results.tables import devices
from spike_kit.training.checkpoint import MONITOR
from spike_kit.views.safe import html_table, html_text, shown
from spike_kit.views.widgets import DASHES, LAYOUT, Panel, filled, redraw, write

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing
    from plotly.graph_objects import Figure

REFRESH_SECONDS = 0.7
"""Time between two looks at a running training."""

_STATES: tuple[JobState, ...] = ("training", "failed", "interrupted", "not trained", "finished")
"""Where a combination stands: the first one that one of its seeds is in."""

_CONTROLS = (
    ("user_profiles", "item_profiles", "auxiliary_profiles", "inject", "remove"),
    ("matching", "attention", "user_to_item"),
    ("rho", "gamma", "layers"),
)
"""Rows of settings that a panel changes."""
_SETTINGS = [name for row in _CONTROLS for name in row]
_RANGES = {"rho": (0.0, 2.0, 0.05), "gamma": (0.05, 1.0, 0.05), "layers": (1, 4, 1)}
"""Smallest and largest value, and step, of the sliders."""


@dataclass(frozen=True)
class Combination:
    """One setting of all switches.

    Attributes
    ----------
    changed
        Settings that differ from the preset, as sorted pairs; those without effect are not among them.
    profiles, encoder
        Profile set and text encoder.
    usual
        Those of the full model.
    """

    changed: tuple[tuple[str, Any], ...] = ()
    profiles: str = TEMPLATE
    encoder: str = DEFAULT_ENCODER
    usual: tuple[str, str] = field(default=(TEMPLATE, DEFAULT_ENCODER), compare=False)

    @property
    def label(self) -> str:
        """Name of the ablation, or the settings that differ; with the text where that is another than usual."""
        parts = [ablation.label(dict(self.changed))]
        parts += [f"profiles={self.profiles}"] if self.profiles != self.usual[0] else []
        parts += [f"encoder={self.encoder}"] if self.encoder != self.usual[1] else []
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
    profiles, encoder
        Profile set and text encoder of the full model.
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
        profiles: str = TEMPLATE,
        encoder: str = DEFAULT_ENCODER,
        preset: str = "recommended",
        split: str = "valid",
        metric: str = MONITOR,
        device: str = "auto",
        threads: int | None = None,
    ) -> None:
        self.data, self.seeds, self.preset = data, tuple(seeds), preset
        self.training, self.split, self.metric = dict(training or {}), split, metric
        self.device, self.threads = str(resolve_device(device)), threads
        self.full, self.chosen = Combination((), profiles, encoder, (profiles, encoder)), list[Combination]()
        self._jobs: dict[Combination, list[TrainingJob]] = {}
        self._compared: dict[tuple[Any, ...], dict[str, float]] = {}

    @cached_property
    def settings(self) -> SpikeConfig:
        """Settings of the full model."""
        return SpikeConfig.parse(dict(RunConfig(dataset=self.data.name, preset=self.preset).base().model))

    def combination(self, profiles: str = "", encoder: str = "", **settings: Any) -> Combination:
        """Combine settings of `SpikeConfig`; whatever has no effect in this combination is left out.

        Profile set and encoder are those of the full model unless named.

        Raises
        ------
        ConfigError
            If a setting is unknown or its value not allowed.
        """
        combined = self.settings.replace(**settings)
        changed = tuple(sorted(ablation.changes(combined, self.settings).items()))
        text = (profiles or self.full.profiles, encoder or self.full.encoder) if combined.uses_text else self.full.usual
        return Combination(changed, *text, self.full.usual)

    def named(self) -> list[Combination]:
        """Rows of the ablation table (`spike_kit.experiments.ablation.ABLATIONS`), the full model first."""
        return [self.combination(**row) for row in ablation.ABLATIONS.values()]

    def jobs(self, combination: Combination) -> list[TrainingJob]:
        """One job for every seed."""
        if combination not in self._jobs:
            text = {"profiles": combination.profiles, "encoder": combination.encoder}
            common = {"dataset": str(self.data.path), "preset": self.preset, "training": self.training, **text}
            config = RunConfig(settings=dict(combination.changed), **common)
            described = describe(config, self.data)
            self._jobs[combination] = [
                TrainingJob(config.replace(seed=seed), described | {"seed": seed}, self.device, self.threads)
                for seed in self.seeds
            ]
        return self._jobs[combination]

    def runs(self, combination: Combination) -> list[Run]:
        """Finished runs of a combination, in the order of the seeds; of several versions that with the most seeds."""
        found = [run for job in self.jobs(combination) if (run := job.run) is not None]
        return max(grouped_by_seed(found).values(), key=len, default=[])

    def state(self, combination: Combination) -> JobState:
        """Where a combination stands: the first of `_STATES` that one of its seeds is in."""
        return self._first(combination)[0]

    def _first(self, combination: Combination) -> tuple[JobState, TrainingJob]:
        """The state of a combination, and the job that is in it."""
        jobs: list[tuple[JobState, TrainingJob]] = [(job.state, job) for job in self.jobs(combination)]
        return min(jobs, key=lambda pair: _STATES.index(pair[0]))

    def status(self, combination: Combination) -> str:
        """The state in one line: epochs while training, the error where it failed."""
        (state, job), n = self._first(combination), len(self.seeds)
        seeds = f" ({len(self.runs(combination))} of {n} seeds finished)" if n > 1 else ""
        if state == "training":
            return f"training seed {job.config.seed}: epoch {len(job.history)} of at most {job.epochs}{seeds}"
        words = {"failed": f"failed: {job.message}", "interrupted": "interrupted; Train goes on from the last state"}
        return words.get(state, state) + seeds

    def train(self, combination: Combination, changed: Callable[[], object] = lambda: None) -> str:
        """Train what is missing of a combination, one seed after the other, and wait for it; returns its `status`.

        Every seed is trained in a process of its own, which goes on where the waiting is interrupted. A seed that
        fails, or is stopped, ends the training. ``changed`` is called again and again meanwhile.

        Raises
        ------
        SpikeKitError
            If a training cannot begin.
        """
        for job in self.jobs(combination):
            job.start()
            while job.wait(REFRESH_SECONDS) == "training":
                changed()
            if job.state != "finished":
                break
        return self.status(combination)

    def _train_all(self, queue: list[Combination], changed: Callable[[], object]) -> str:
        """Train what is in a queue until that is empty; returns why a training could not begin."""
        error = ""
        while queue:
            try:
                self.train(queue[0], changed)
            except SpikeKitError as failed:
                error = f"; {failed}"
            del queue[:1]
        return error

    def stop(self, combination: Combination) -> None:
        """Stop the training of a combination, whoever started it; its state is kept."""
        for job in self.jobs(combination):
            job.stop()

    def add(self, combination: Combination) -> None:
        """Compare a combination with the full model."""
        if combination not in self.chosen and combination != self.full:
            self.chosen.append(combination)

    @property
    def table(self) -> pd.DataFrame:
        """The full model and the chosen combinations.

        Returns
        -------
        DataFrame
            model, state, metric, split, seeds (finished ones), mean and sd over seeds; for a combination the mean
            difference to the full model over users (both with the seeds that both have finished), its 95 % bootstrap
            interval, and the permutation test's p (paired by user, Holm's correction over the rows) with its mark;
            device, where runs of several devices are compared. What is not trained is blank.
        """
        rows = []
        for combination in (self.full, *self.chosen):
            runs = self.runs(combination)
            means = seed_means(runs, self.metric, self.split)
            row = {"model": combination.label, "state": self.state(combination), "seeds": len(runs)}
            row |= {"metric": self.metric, "split": self.split, "mean": means.mean(), "sd": means.std()}
            rows.append(row | self._difference(combination))
        compared = ("difference", "low", "high", "p permutation")
        columns = ["model", "state", "metric", "split", "seeds", "mean", "sd", *compared]
        table = corrected(pd.DataFrame(rows, columns=columns)).rename(columns={"p permutation": "p (Holm)"})
        named = devices(self.runs(combination) for combination in (self.full, *self.chosen))
        return table.assign(device=named) if any(named) else table

    def _difference(self, combination: Combination, users: pd.Index | None = None) -> dict[str, float]:
        """What `paired` gives against the full model over the seeds that both have finished, remembered.

        Empty for the full model, and where nothing can be compared.
        """
        ours, full = over_shared_seeds(self.runs(combination), self.runs(self.full))
        if not ours or combination == self.full:
            return {}
        key = (self.split, self.metric, *(() if users is None else users), *(run.path.name for run in (*ours, *full)))
        if key not in self._compared:
            self._compared[key] = paired(ours, full, self.metric, self.split, users)
        return self._compared[key]

    @property
    def group_table(self) -> pd.DataFrame:
        """Difference of every chosen, trained combination to the full model in each sparsity group of users.

        Returns
        -------
        DataFrame
            model, group (train interactions), users, metric, split, difference, low, high (95 % bootstrap interval).
        """
        common, groups = {"metric": self.metric, "split": self.split}, sparsity_groups(self.data)
        groups = groups[groups.index.isin(set(self.data.split(self.split)["user"]))]
        rows = [
            {"model": combination.label, "group": name, **common, **found}
            for combination in self.chosen
            for name, users in groups.groupby(groups, observed=True)
            if (found := self._difference(combination, users.index))
        ]
        return pd.DataFrame(rows, columns=["model", "group", "users", *common, "difference", "low", "high"])

    @property
    def figure(self) -> Drawing:
        """Differences to the full model with intervals and marks; where there is none, why.

        Raises
        ------
        DataError
            If no combination is compared.
        """
        table = filled(self.table.iloc[1:], "nothing is compared with the full model", "set some switches, then Train")
        why = table["model"] + " (" + table["state"].replace("finished", "the full model is not trained") + ")"
        return ablation_forest(table.assign(model=table["model"].where(table["difference"].notna(), why)))

    @property
    def group_figure(self) -> Drawing:
        """Differences to the full model over the sparsity groups, a line per combination.

        Raises
        ------
        DataError
            If no trained combination is compared.
        """
        return sparsity_slopes(filled(self.group_table, "nothing that is compared is trained"), "difference")

    def curves(self, *combinations: Combination) -> Figure:
        """Loss and validation metric over epochs, finished and running; default: the full model and the chosen ones."""
        names = {"loss": "loss", f"valid_{self.metric}": f"{shown(self.metric)} on validation"}
        parts = [pd.DataFrame(columns=["epoch", "what", "value", "model", "seed"])]
        for combination in combinations or (self.full, *self.chosen):
            for job in self.jobs(combination):
                rows = job.history.reindex(columns=["epoch", *names]).melt("epoch", var_name="what").dropna()
                parts.append(rows.assign(model=shown(combination.label, 40), seed=job.config.seed))
        frame = pd.concat([part for part in parts if len(part)] or parts)
        frame["what"] = frame["what"].map(names)
        express = require("plotly.express", "lab")
        looks = {"color": "model", "line_dash": "model", "line_group": "seed", "facet_col": "what"}
        looks |= {"color_discrete_sequence": MANY_COLOURS, "line_dash_sequence": DASHES}
        chart = express.line(frame, x="epoch", y="value", category_orders={"what": list(names.values())}, **looks)
        chart.for_each_annotation(lambda title: title.update(text=title.text.partition("=")[2]))
        chart.update_yaxes(matches=None, showticklabels=True, title=None).update_xaxes(rangemode="tozero")
        return chart.update_layout(**LAYOUT, height=320, legend={"orientation": "h", "y": -0.25, "title": None})

    def export(self, folder: Path | None = None) -> list[Path]:
        """Write `figure` as PDF, and `table` as CSV; returns the files.

        Raises
        ------
        DataError
            If no combination is compared.
        """
        return write("ablation", self.data, f"{self.metric}-{self.split}", self.figure, self.table, folder)

    def panel(self) -> Any:
        """Switches, sliders, Train, Stop, the comparison and live curves."""
        panel, lock, queue, workers = Panel(self), threading.RLock(), list[Combination](), list[threading.Thread]()

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
            queue.append(chosen())
            refresh(charts=True)

        def stop(_: object) -> None:
            for combination in (chosen(), *queue):
                self.stop(combination)
            queue.clear()
            refresh()

        def compare(_: object) -> None:
            others = [one for one in self.chosen if one != chosen()]
            self.chosen = others if len(others) < len(self.chosen) else [*self.chosen, chosen()]
            refresh(charts=True)

        def work() -> None:
            """Train what is in the queue, then watch what another kernel trains."""
            error = self._train_all(queue, show)
            while self.state(chosen()) == "training":
                show()
                time.sleep(REFRESH_SECONDS)
            with lock:
                workers.clear()
                refresh(charts=True)
                panel["status"].value += html_text(error)

        def show() -> None:
            refresh()
            redraw(panel["curves"], self.curves())

        def refresh(_: object = None, charts: bool = False) -> None:
            with lock:
                self._show_state(panel, chosen(), queue)
                if not panel["stop"].disabled and not workers:
                    workers.append(threading.Thread(target=work, name="spike_kit ablation", daemon=True))
                    workers[0].start()
                if charts:
                    panel["table"].value = html_table(self.table)
                    panel.draw("chart", lambda: self.figure)
                    panel.draw("groups", lambda: self.group_figure)
                    redraw(panel["curves"], self.curves())

        rows = self._controls(panel, choose, refresh)
        buttons = (
            panel.add("train", "Button", train, button_style="primary"),
            panel.add("stop", "Button", stop, tooltip="Save the state and end the training"),
            panel.add("compare", "Button", compare, tooltip="Add this combination to the comparison, or take it out"),
            panel.exporter(self.export),
        )
        curves = panel.chart("curves", self.curves())
        tabs = panel.tabs(difference=panel.picture("chart"), by_sparsity=panel.picture("groups"), curves=curves)
        box = panel.box(*rows, panel.row(*buttons), *panel.texts("status", "table"), tabs)
        refresh(charts=True)
        return box

    def _show_state(self, panel: Panel, combination: Combination, queue: Collection[Combination]) -> None:
        """Bring status and buttons of a panel up to date."""
        state = self.state(combination)
        panel["status"].value = f"<b>{html_text(combination.label)}</b>: {html_text(self.status(combination))}"
        panel["train"].disabled = state in ("finished", "training") or combination in queue
        panel["stop"].disabled = state != "training" and not queue
        panel["compare"].description = "Take out" if combination in self.chosen else "Compare"
        panel["compare"].disabled = combination == self.full

    def _controls(self, panel: Panel, choose: Any, changed: Any) -> list[Any]:
        """Rows of a panel with a control for every setting."""
        pairs = [self.full.usual, (TEMPLATE, DEFAULT_ENCODER), *self.data.encoded()]
        pairs += [(f"{TEMPLATE}+{name}", encoder) for name, encoder in pairs if (TEMPLATE, encoder) in pairs]
        pairs = [pair for pair in dict.fromkeys(pairs) if pair[0] != f"{TEMPLATE}+{TEMPLATE}"]
        texts = [(f"{profiles} by {encoder}", (profiles, encoder)) for profiles, encoder in pairs]
        named = [(combination.label, combination) for combination in self.named()]
        wide = {"layout": panel.widgets.Layout(width="400px")}
        text = panel.add("text", "Dropdown", changed, options=texts, description="Profiles", **wide)
        rows = panel.add("rows", "Dropdown", choose, options=named, description="Ablation", **wide)
        settings = [[self._control(panel, name, changed) for name in row] for row in _CONTROLS]
        return [panel.row(*parts) for parts in ([text, rows], *settings)]

    def _control(self, panel: Panel, name: str, changed: Any) -> Any:
        """A switch, a list or a slider for a setting, as its values are."""
        value, names = getattr(self.settings, name), get_args(SpikeConfig.model_fields[name].annotation)
        if isinstance(value, bool):
            return panel.add(name, "Checkbox", changed, value=value, indent=False)
        if names:
            return panel.add(name, "Dropdown", changed, value=value, options=names)
        (low, high, step), kind = _RANGES[name], "IntSlider" if isinstance(value, int) else "FloatSlider"
        return panel.add(name, kind, changed, value=value, min=low, max=high, step=step, continuous_update=False)
