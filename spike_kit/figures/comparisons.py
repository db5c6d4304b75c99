"""Figures that compare runs: ablation, hyper-parameters, sparsity groups, efficiency, learning curves."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from spike_kit.base import storage
from spike_kit.base.errors import DataError
from spike_kit.data.dataset import Dataset
from spike_kit.evaluation.groups import sparsity_groups
from spike_kit.experiments import ablation
from spike_kit.experiments.run_folder import Run, versions
from spike_kit.experiments.tuned import TUNED
from spike_kit.figures.style import (
    COLOURS,
    DASHES,
    HATCHES,
    MARKERS,
    ONE_COLUMN,
    TWO_COLUMNS,
    figure_style,
    legend_columns,
    legend_height,
    metric_name,
    plain,
)
from spike_kit.models import MODELS
from spike_kit.models.recommender import TrainedRecommender
from spike_kit.models.spike import SpikeConfig
from spike_kit.profiles.encode import DEFAULT_ENCODER
from spike_kit.profiles.template import TEMPLATE
from spike_kit.results.frames import grouped_by_seed
from spike_kit.results.significance import (
    bootstrap_interval,
    holm,
    mark,
    over_shared_seeds,
    paired_test,
    per_user_metric,
)
from spike_kit.results.tables import run_label, usual_settings
from spike_kit.training.checkpoint import MONITOR

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TRAINED = {name for name, model in MODELS.items() if issubclass(model, TrainedRecommender)}
"""Models with a training loop."""

_LABEL = 28
"""Letters of a line of an ablation's name."""


def ablation_frame(
    full: Sequence[Run], others: Sequence[Run], metric: str = MONITOR, split: str = "test"
) -> pd.DataFrame:
    """Data of `ablation_bars`: every ablation against the full model, paired by user.

    Parameters
    ----------
    full
        Runs of the full model, one per seed.
    others
        Runs of the ablations, each compared over the seeds it shares with the full model; without any it is left out.

    Returns
    -------
    DataFrame
        model, metric, split, seeds (shared ones), mean and sd over these seeds (NaN for one), difference to the full
        model, low, high (95 % bootstrap interval over users), p (permutation test, Holm-corrected over the rows) and
        its mark.
    """
    rows = []
    for group in grouped_by_seed(others).values():
        ours, whole = over_shared_seeds(group, full)
        if not ours:
            continue
        test = paired_test(per_user_metric(ours, metric, split), per_user_metric(whole, metric, split))
        values = pd.Series([run.metrics[split][metric] for run in ours])
        row = {"model": ablation_label(ours[0]), "metric": metric, "split": split, "seeds": len(ours)}
        found = {"difference": test.difference, "low": test.low, "high": test.high}
        rows.append({**row, "mean": values.mean(), "sd": values.std(), **found, "p": test.p_permutation})
    columns = ["model", "metric", "split", "seeds", "mean", "sd", "difference", "low", "high", "p"]
    frame = pd.DataFrame(rows, columns=columns)
    frame["p"] = holm(frame["p"].to_numpy(dtype=float))
    frame["mark"] = [mark(p) for p in frame["p"]]
    return frame


def ablation_label(run: Run) -> str:
    """What differs from the full SPiKE, by the name of the ablation where it has one."""
    if run.config["model"] != "spike":
        return run_label(run)
    usual = SpikeConfig.parse(usual_settings(run)["model_settings"])
    changed = ablation.changes(SpikeConfig.parse(run.config["model_settings"]), usual)
    usual_text = {"profiles": (TEMPLATE, "profiles from"), "encoder": (DEFAULT_ENCODER, "encoded by")}
    text = [
        f"{words} {run.config[key]}" for key, (name, words) in usual_text.items() if run.config.get(key, name) != name
    ]
    return ", ".join(([ablation.label(changed)] if changed or not text else []) + text)


def ablation_bars(frame: pd.DataFrame) -> Figure:
    """Draw the differences of `ablation_frame` as horizontal bars with intervals and marks of significance."""
    from matplotlib.figure import Figure

    places = np.arange(len(frame))[::-1]
    labels = [plain(textwrap.fill(f"{row.model} {row.mark}", _LABEL)) for row in frame.itertuples()]
    lines = max(label.count("\n") + 1 for label in labels)
    with figure_style():
        figure = Figure(figsize=(ONE_COLUMN, 0.8 + max(0.24, 0.12 * lines) * len(frame)))
        axes = figure.subplots()
        errors = np.vstack([frame["difference"] - frame["low"], frame["high"] - frame["difference"]]).clip(0)
        is_gain = frame["difference"] >= 0
        axes.barh(
            places,
            frame["difference"],
            0.62,
            xerr=errors,
            color=np.where(is_gain, COLOURS[0], COLOURS[5]),
            hatch=["" if gain else "////" for gain in is_gain],
            edgecolor="white",
            linewidth=0.4,
            error_kw={"elinewidth": 0.7, "capsize": 1.5},
        )
        axes.axvline(0, color="black", linewidth=0.6)
        axes.locator_params(axis="x", nbins=3)
        axes.set_yticks(places, labels)
        first = frame.iloc[0]
        axes.set_xlabel(f"Δ {metric_name(first['metric'])} ({plain(first['split'])})")
    return figure


def sensitivity_frame(runs: Sequence[Run], metric: str = MONITOR, split: str = "valid") -> pd.DataFrame:
    """Data of `sensitivity_lines`: runs that differ in one setting (and the seed), for every such setting.

    Returns
    -------
    DataFrame
        model, setting, value, metric, split, seeds, mean, sd over seeds (NaN for one); sorted by value. Of several
        series of one setting the one with the most values is kept.
    """
    flat = [(_flat(run), run.metrics[split][metric]) for run in runs]
    settings = dict.fromkeys(name for config, _ in flat for name in config if name.startswith(_SETTING))
    parts = []
    for name in settings:
        series: dict[str, list[tuple[Any, float]]] = {}
        for config, result in flat:
            if name in config:
                rest = {key: value for key, value in config.items() if key != name}
                series.setdefault(storage.canonical_json(rest), []).append((config[name], result))
        key, longest = max(series.items(), key=lambda item: len({str(value) for value, _ in item[1]}))
        if len({str(value) for value, _ in longest}) > 1:
            frame = pd.DataFrame(longest, columns=["value", "result"])
            groups = frame.groupby("value", sort=True)["result"].agg(seeds="count", mean="mean", sd="std").reset_index()
            groups["value"] = groups["value"].astype(object)
            about = {"model": json.loads(key)["model"], "setting": name.removeprefix(_SETTING)}
            parts.append(groups.assign(**about, metric=metric, split=split))
    columns = ["model", "setting", "value", "metric", "split", "seeds", "mean", "sd"]
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)


_SETTING = "setting."


def _flat(run: Run) -> dict[str, Any]:
    """What may differ between runs besides the seed: settings, text, data and code."""
    config = run.config
    kept = ("model", "data_sha256", "profiles", "encoder", "vectors_sha256")
    settings = config["model_settings"] | config["training_settings"]
    known = {key: config.get(key, "") for key in kept} | {"versions": versions(config)}
    return known | {f"{_SETTING}{key}": value for key, value in settings.items()}


def sensitivity_lines(frame: pd.DataFrame, columns: int = 4) -> Figure:
    """Draw one small panel per setting of `sensitivity_frame`; numbers stand at their place, names side by side."""
    from matplotlib.figure import Figure

    groups = list(frame.groupby(["model", "setting"], sort=False))
    n_rows = -(-len(groups) // columns)
    with figure_style():
        figure = Figure(figsize=(TWO_COLUMNS, 0.3 + 1.45 * n_rows))
        panels = figure.subplots(n_rows, min(columns, len(groups)), sharey=True, squeeze=False)
        for axes, ((model, setting), part) in zip(panels.flat, groups, strict=False):
            is_number = all(isinstance(value, int | float) and not isinstance(value, bool) for value in part["value"])
            x = part["value"].astype(float).to_numpy() if is_number else np.arange(len(part))
            axes.errorbar(x, part["mean"], part["sd"].fillna(0), color=COLOURS[0], marker="o", ms=3, lw=1, capsize=1.5)
            if not is_number:
                axes.set_xticks(x, [plain(str(value)) for value in part["value"]])
                axes.margins(x=0.2)
            elif (x > 0).all() and x.max() / x.min() >= 50:
                axes.set_xscale("log")
            title = setting if len(set(frame["model"])) == 1 else f"{model}: {setting}"
            axes.set_title(plain(str(title).replace("_", " ")))
        for axes in panels.flat[len(groups) :]:
            axes.set_visible(False)
        first = frame.iloc[0]
        figure.supylabel(f"{metric_name(first['metric'])} ({plain(first['split'])})", fontsize=8)
    return figure


def sparsity_frame(
    data: Dataset, runs: Sequence[Run], metric: str = MONITOR, split: str = "test", n: int = 4
) -> pd.DataFrame:
    """Data of `sparsity_bars`: each model in each group of users by train interactions.

    Returns
    -------
    DataFrame
        model, group (train interactions), users, metric, split, mean, low, high (95 % bootstrap interval over users).
    """
    groups, rows = sparsity_groups(data, n), []
    for label, group in grouped_by_seed(runs).items():
        values = per_user_metric(group, metric, split)
        for name in groups.cat.categories:
            inside = values[values.index.isin(groups.index[groups == name])]
            if len(inside):
                low, high = bootstrap_interval(inside.to_numpy())
                row = {"model": label, "group": name, "users": len(inside), "metric": metric, "split": split}
                rows.append(row | {"mean": float(inside.mean()), "low": low, "high": high})
    return pd.DataFrame(rows)


def sparsity_bars(frame: pd.DataFrame) -> Figure:
    """Draw grouped bars of `sparsity_frame`: one group per range of train interactions, one bar per model."""
    from matplotlib.figure import Figure

    models, groups = frame["model"].unique().tolist(), frame["group"].unique().tolist()
    places, width = np.arange(len(groups)), 0.84 / len(models)
    labels, inches = [plain(model) for model in models], ONE_COLUMN if len(models) <= _FEW else TWO_COLUMNS
    with figure_style():
        figure = Figure(figsize=(inches, 1.8 + legend_height(labels, inches)))
        axes = figure.subplots()
        for index, model in enumerate(models):
            own = frame[frame["model"] == model].set_index("group").reindex(groups)
            axes.bar(
                places + (index - (len(models) - 1) / 2) * width,
                own["mean"],
                width,
                yerr=np.vstack([own["mean"] - own["low"], own["high"] - own["mean"]]).clip(0),
                label=labels[index],
                color=COLOURS[index % len(COLOURS)],
                hatch=HATCHES[index % len(HATCHES)],
                edgecolor="white",
                linewidth=0.4,
                error_kw={"elinewidth": 0.6, "capsize": 1.2},
            )
        counts = frame.drop_duplicates("group").set_index("group")["users"]
        axes.set_xticks(places, [f"{name}\n({counts[name]})" for name in groups])
        axes.set_xlabel("train interactions (users)")
        axes.set_ylabel(f"{metric_name(frame['metric'].iloc[0])} ({plain(frame['split'].iloc[0])})")
        figure.legend(loc="outside upper center", ncols=legend_columns(labels, inches), handlelength=1.4)
    return figure


_FEW = 6
"""Models whose bars are still told apart in one column of a page."""


def efficiency_frame(runs: Sequence[Run], metric: str = MONITOR, split: str = "test") -> pd.DataFrame:
    """Data of `efficiency_points`: what a model's training takes, and what it gives; means over seeds.

    Returns
    -------
    DataFrame
        model, metric, split, seeds, quality, seconds of training, peak_gib (largest memory of the training process;
        NaN where it was not recorded), device.
    """
    rows = []
    for label, group in grouped_by_seed(runs).items():
        means = {
            "quality": np.mean([run.metrics[split][metric] for run in group]),
            "seconds": np.mean([run.metrics["seconds"] for run in group]),
            "peak_gib": np.mean([run.metrics.get("peak_gib", np.nan) for run in group]),
        }
        row = {"model": label, "metric": metric, "split": split, "seeds": len(group)}
        rows.append(row | means | {"device": group[0].environment["device"]})
    return pd.DataFrame(rows)


def efficiency_points(frame: pd.DataFrame) -> Figure:
    """Draw quality over seconds of training, and over peak memory where it is known; one mark per model."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    costs = {"seconds": "training, s", "peak_gib": "peak memory, GiB"}
    known = [name for name in costs if frame[name].notna().all()]
    with figure_style():
        inches = ONE_COLUMN if len(known) == 1 else TWO_COLUMNS * 0.75
        figure = Figure(figsize=(inches, 2.0 + legend_height([plain(str(name)) for name in frame["model"]], inches)))
        panels = figure.subplots(1, len(known), sharey=True, squeeze=False)[0]
        for axes, name in zip(panels, known, strict=True):
            for index, row in enumerate(frame.itertuples()):
                colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
                axes.plot(getattr(row, name), row.quality, marker, color=colour, ms=6, label=plain(str(row.model)))
            if name == "seconds" and (frame[name] > 0).all():
                axes.set_xscale("log")
                axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axes.xaxis.set_major_formatter(FuncFormatter(_number))
                axes.xaxis.set_minor_formatter(NullFormatter())
            axes.margins(0.08)
            axes.set_xlabel(costs[name])
            axes.grid(linewidth=0.3, color="#CCCCCC")
        panels[0].set_ylabel(f"{metric_name(frame['metric'].iloc[0])} ({plain(frame['split'].iloc[0])})")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=legend_columns(labels, inches))
    return figure


def _number(value: float, _: int) -> str:
    return f"{value:g}"


def curves_frame(runs: Sequence[Run] | Mapping[str, list[Run]], metric: str = MONITOR) -> pd.DataFrame:
    """Data of `curve_lines`: validation metric of every validated epoch: model, seed, epoch, seconds, metric, value.

    ``runs`` may be grouped already (`grouped_by_seed`).
    """
    column, parts = f"valid_{metric}", []
    for label, group in grouped_by_seed(runs).items():
        for run in group:
            if column in run.history:
                rows = run.history.dropna(subset=[column])
                part = pd.DataFrame({"epoch": rows["epoch"], "seconds": rows["seconds"], "value": rows[column]})
                parts.append(part.assign(model=label, seed=run.config["seed"], metric=metric))
    columns = ["model", "seed", "epoch", "seconds", "metric", "value"]
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)


def curve_lines(frame: pd.DataFrame) -> Figure:
    """Draw the validation metric over seconds of training, a line per run; seeds of a model look alike."""
    from matplotlib.figure import Figure

    models = frame["model"].unique().tolist()
    with figure_style():
        figure = Figure(figsize=(ONE_COLUMN, 2.0 + legend_height([plain(str(name)) for name in models], ONE_COLUMN)))
        axes = figure.subplots()
        for (model, _), part in frame.groupby(["model", "seed"], sort=False):
            index = models.index(model)
            style = {"color": COLOURS[index % len(COLOURS)], "linestyle": DASHES[index % len(DASHES)]}
            label = plain(str(model)) if model not in axes.get_legend_handles_labels()[1] else "_seed"
            axes.plot(part["seconds"], part["value"], linewidth=1.1, label=label, **style)
        axes.set_xlabel("training, s")
        axes.set_ylabel(f"{metric_name(frame['metric'].iloc[0])} (validation)")
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=legend_columns(labels, ONE_COLUMN))
    return figure


def main_runs(runs: Sequence[Run]) -> list[Run]:
    """Runs of every model at its best: tuned where it was, else as it is recommended, else trained otherwise.

    In the same order for every data set, so that a model keeps its colour: those without training, the trained ones,
    SPiKE.
    """
    chosen: list[Run] = []
    names = list(MODELS)
    known = {run.config["model"] for run in runs}
    for model in sorted(known, key=lambda name: (name == "spike", name in _TRAINED, names.index(name))):
        try:
            full, _ = full_model(runs, model)
        except DataError:
            continue
        chosen += preset_runs(runs, model, full[0].config["preset"]) or full
    return chosen


def preset_runs(runs: Sequence[Run], model: str, preset: str = "recommended") -> list[Run]:
    """Runs of a model as its preset says, with the usual text, of the versions of the last of them."""
    usual = [run for run in _unchanged(runs, model, preset) if _same_as_usual(run, "training_settings")]
    return [run for run in usual if versions(run.config) == versions(usual[-1].config)]


def _same_as_usual(run: Run, part: str) -> bool:
    return run.config[part] == usual_settings(run)[part]


def _unchanged(runs: Sequence[Run], model: str, preset: str) -> list[Run]:
    """Runs of a model with the settings of a preset and the usual text, however trained."""
    text = {"profiles": TEMPLATE, "encoder": DEFAULT_ENCODER}
    return [
        run
        for run in runs
        if run.config["model"] == model
        and run.config["preset"] == preset
        and _same_as_usual(run, "model_settings")
        and all(run.config.get(key, value) == value for key, value in text.items())
    ]


def full_model(runs: Sequence[Run], model: str = "spike") -> tuple[list[Run], list[Run]]:
    """Part the runs of a model into those of its tuned form, or else its recommended preset, and its ablations.

    Ablations share preset and training settings with the full model; where there are several such settings, those with
    the most ablations are taken.

    Raises
    ------
    DataError
        If the full model was not run.
    """
    for preset in (TUNED, "recommended"):
        unchanged = _unchanged(runs, model, preset)
        groups: dict[str, tuple[list[Run], list[Run]]] = {}
        for run in runs:
            config = run.config
            if config["model"] == model and config["preset"] == preset:
                same = [config["training_settings"], config["data_sha256"], versions(config)]
                full, others = groups.setdefault(storage.canonical_json(same), ([], []))
                (full if run in unchanged else others).append(run)
        found = [group for group in groups.values() if group[0]]
        if found:
            return max(found, key=lambda group: len(grouped_by_seed(group[1])))
    raise DataError(f"the full model of {model} was not run", f"train it: spike-kit train --model {model}")
