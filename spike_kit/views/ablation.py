"""The ablation panel's logic: combinations of switches, the runs that exist for them, and how they compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from spike_kit.base.errors import require
from spike_kit.data.dataset import Dataset
from spike_kit.evaluation.groups import sparsity_groups
from spike_kit.experiments import ablation
from spike_kit.experiments.jobs import JobState, TrainingJob
from spike_kit.experiments.run import RunConfig, describe, describe_text
from spike_kit.experiments.run_folder import Run
from spike_kit.figures.style import COLOURS
from spike_kit.models.spike import SpikeConfig
from spike_kit.profiles.encode import DEFAULT_ENCODER
from spike_kit.profiles.template import TEMPLATE
from spike_kit.results.frames import over_shared_seeds, per_user_metric
from spike_kit.results.significance import PairedTest, holm, mark, paired_test
from spike_kit.training.checkpoint import MONITOR
from spike_kit.views.charts import DASHES
from spike_kit.views.safe import shown

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

COLUMNS = ("model", "state", "seeds", "mean", "sd", "difference", "low", "high", "p (Holm)", "mark")


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
    """Ablations of SPiKE on one study: what is trained, what it gives, and training what is missing.

    Parameters
    ----------
    data
        The study; it needs profiles and vectors.
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
        Where missing runs are trained, and on how many CPU threads (none: one per core).

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
        device: str = "cpu",
        threads: int | None = None,
    ) -> None:
        self.data, self.seeds, self.preset = data, tuple(seeds), preset
        self.training, self.split, self.metric = dict(training or {}), split, metric
        self.device, self.threads = device, threads
        self.chosen: list[Combination] = []
        self._jobs: dict[Combination, list[TrainingJob]] = {}
        self._tests: dict[tuple[str, ...], PairedTest] = {}
        self._wanted: list[Combination] = []
        self._texts: dict[tuple[str, str, int], dict[str, Any]] = {}

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
            described = describe(config, self.data, self._text(combination))
            self._jobs[combination] = [
                TrainingJob(config.replace(seed=seed), self.device, self.threads, described | {"seed": seed})
                for seed in self.seeds
            ]
        return self._jobs[combination]

    def _text(self, combination: Combination) -> dict[str, Any] | None:
        """What identifies the vectors of a combination; read once as long as their file stays the same."""
        settings = self.settings.replace(**dict(combination.changed))
        if not settings.uses_text:
            return None
        file = self.data.embeddings_path(combination.profiles, combination.encoder)
        stamp = file.stat().st_mtime_ns if file.is_file() else 0
        key = (combination.profiles, combination.encoder, stamp)
        if key not in self._texts:
            self._texts[key] = describe_text(self.data, combination.profiles, combination.encoder)
        return self._texts[key]

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
        rows = [self._row(combination) for combination in (self.full, *self.chosen)]
        frame = pd.DataFrame(rows, columns=list(COLUMNS))
        tested = frame["p (Holm)"].notna()
        if tested.any():
            frame.loc[tested, "p (Holm)"] = holm(frame.loc[tested, "p (Holm)"].to_numpy(dtype=float))
        frame["mark"] = [mark(p) if pd.notna(p) else "" for p in frame["p (Holm)"]]
        return frame

    def _row(self, combination: Combination) -> dict[str, Any]:
        runs = self.runs(combination)
        values = [run.metrics[self.split][self.metric] for run in runs]
        row: dict[str, Any] = dict.fromkeys(COLUMNS, np.nan)
        row |= {"model": combination.label, "state": self.state(combination), "seeds": len(runs), "mark": ""}
        if values:
            row |= {"mean": float(np.mean(values)), "sd": float(np.std(values, ddof=1)) if len(values) > 1 else np.nan}
        test = self._test(combination) if combination != self.full else None
        if test is not None:
            found = {"difference": test.difference, "low": test.low, "high": test.high}
            row |= {**found, "p (Holm)": test.p_permutation}
        return row

    def _test(self, combination: Combination) -> PairedTest | None:
        """Test against the full model over the seeds that both have finished, remembered; none if there are none."""
        ours, full = self._paired(combination)
        if not ours:
            return None
        key = (self.split, self.metric, *(run.path.name for run in (*ours, *full)))
        if key not in self._tests:
            sides = [per_user_metric(runs, self.metric, self.split) for runs in (ours, full)]
            self._tests[key] = paired_test(*sides)
        return self._tests[key]

    def _paired(self, combination: Combination) -> tuple[list[Run], list[Run]]:
        """Runs of a combination and of the full model with the seeds that both have finished."""
        return over_shared_seeds(self.runs(combination), self.runs(self.full))

    @property
    def group_table(self) -> pd.DataFrame:
        """Difference of every chosen, trained combination to the full model in each sparsity group of users.

        Returns
        -------
        DataFrame
            model, group (train interactions), users, difference, low, high (95 % bootstrap interval).
        """
        rows = []
        for combination in self.chosen:
            if self._test(combination) is None:
                continue
            ours, full = (per_user_metric(side, self.metric, self.split) for side in self._paired(combination))
            for name in self.groups.cat.categories:
                users = self.groups.index[self.groups == name].intersection(ours.index)
                if len(users):
                    test = paired_test(ours.loc[users], full.loc[users], permutations=1)
                    found = {"difference": test.difference, "low": test.low, "high": test.high}
                    rows.append({"model": combination.label, "group": name, "users": len(users), **found})
        return pd.DataFrame(rows, columns=["model", "group", "users", "difference", "low", "high"])

    @property
    def figure(self) -> Figure:
        """Bars of the differences to the full model, with intervals and marks; where there is none, why."""
        objects = require("plotly.graph_objects", "lab")
        table = self.table.iloc[1:].reset_index(drop=True)
        trained = table[table["difference"].notna()]
        names = [
            shown(f"{model} {mark}".strip(), 60) for model, mark in zip(table["model"], table["mark"], strict=True)
        ]
        chart = objects.Figure()
        chart.add_bar(
            y=trained.index.tolist(),
            customdata=[names[row] for row in trained.index],
            x=trained["difference"].tolist(),
            orientation="h",
            marker_color=[COLOURS[0] if x >= 0 else COLOURS[5] for x in trained["difference"]],
            error_x=_interval(trained),
            hovertemplate="%{customdata}: %{x:+.4f}<extra></extra>",
        )
        missing = table[table["difference"].isna()]
        if len(missing):
            why = [self._why_missing(*row) for row in zip(missing["state"], missing["seeds"], strict=True)]
            places = {"y": missing.index.tolist(), "x": [0] * len(missing)}
            chart.add_scatter(**places, mode="text", text=why, hoverinfo="skip")
        chart.add_vline(x=0, line_color="black", line_width=1)
        return chart.update_layout(
            template="plotly_white",
            showlegend=False,
            height=120 + 34 * max(len(table), 2),
            margin={"l": 10, "r": 10, "t": 30, "b": 40},
            xaxis_title=f"{shown(self.metric)} minus full model ({shown(self.split)})",
            yaxis={
                "tickvals": list(range(len(names))),
                "ticktext": names,
                "range": [len(names) - 0.5, -0.5],
                "automargin": True,
            },
        )

    def _why_missing(self, state: str, seeds: int) -> str:
        """Why a row of the table has no difference to the full model."""
        if state != "finished":
            return state + (f" ({seeds} of {len(self.seeds)} seeds finished)" if seeds else "")
        return "the full model is not trained"

    @property
    def group_figure(self) -> Figure:
        """Differences to the full model per sparsity group, one colour and hatch per combination."""
        objects = require("plotly.graph_objects", "lab")
        chart = objects.Figure()
        shapes = ("", "/", ".", "x", "\\", "+")
        for number, (name, part) in enumerate(self.group_table.groupby("model", sort=False)):
            chart.add_bar(
                x=[f"{row.group}<br>({row.users} users)" for row in part.itertuples()],
                y=part["difference"].tolist(),
                name=shown(name, 40),
                error_y=_interval(part),
                marker={"color": COLOURS[number % len(COLOURS)], "pattern_shape": shapes[number % len(shapes)]},
                hovertemplate="%{y:+.4f}<extra>" + shown(name, 40) + "</extra>",
            )
        return chart.update_layout(
            template="plotly_white",
            barmode="group",
            height=340,
            margin={"l": 10, "r": 10, "t": 30, "b": 40},
            xaxis={"title": "users by train interactions", "type": "category"},
            yaxis_title=f"{shown(self.metric)} minus full model",
            legend={"orientation": "h", "y": 1.15},
        )

    def curves(self, *combinations: Combination) -> Figure:
        """Loss and validation metric over epochs, finished and running; default: the full model and the chosen ones."""
        subplots = require("plotly.subplots", "lab")
        chart = subplots.make_subplots(rows=1, cols=2, subplot_titles=("loss", f"{shown(self.metric)} on validation"))
        for number, combination in enumerate(combinations or (self.full, *self.chosen)):
            style = {"color": COLOURS[number % len(COLOURS)], "dash": DASHES[number % len(DASHES)], "width": 1.5}
            first = True
            for job in self.jobs(combination):
                history = job.history
                if history.empty:
                    continue
                for column, name in enumerate(("loss", f"valid_{self.metric}"), start=1):
                    rows = history.dropna(subset=[name]) if name in history else history.iloc[:0]
                    chart.add_scatter(
                        x=rows["epoch"].tolist(),
                        y=rows[name].tolist() if name in rows else [],
                        mode="lines",
                        line=style,
                        name=shown(combination.label, 40),
                        legendgroup=str(number),
                        showlegend=first,
                        row=1,
                        col=column,
                    )
                    first = False
        chart.update_xaxes(title="epoch", rangemode="tozero")
        return chart.update_layout(
            template="plotly_white",
            height=320,
            margin={"l": 10, "r": 10, "t": 40, "b": 40},
            legend={"orientation": "h", "y": -0.25},
        )


def _interval(frame: pd.DataFrame) -> dict[str, Any]:
    """Error bars of plotly from columns difference, low, high."""
    above = (frame["high"] - frame["difference"]).tolist()
    below = (frame["difference"] - frame["low"]).tolist()
    return {"type": "data", "symmetric": False, "array": above, "arrayminus": below, "color": "black", "thickness": 1}
