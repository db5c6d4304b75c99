"""Result tables: runs grouped over seeds, means and standard deviations, as data frames and as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch

from spike_kit.base import storage
from spike_kit.base.errors import ConfigError, some
from spike_kit.data.dataset import Dataset
from spike_kit.evaluation.beyond import measure_lists
from spike_kit.evaluation.ranking import HEADLINE, RankingTask, evaluate
from spike_kit.experiments.run import load_model
from spike_kit.experiments.run_folder import Run
from spike_kit.models import find_model, find_preset
from spike_kit.profiles.encode import DEFAULT_ENCODER
from spike_kit.profiles.template import TEMPLATE


def run_label(run: Run) -> str:
    """Short name of a run: model, preset unless it is the recommended one, and whatever differs from the usual."""
    config = run.config
    usual = usual_settings(run)
    title = find_model(config["model"]).title
    name = title if config["preset"] == "recommended" else f"{title} ({config['preset']})"
    changes = []
    for part, expected in usual.items():
        changes += [f"{key}={value}" for key, value in config[part].items() if expected.get(key) != value]
    for key, default in (("profiles", TEMPLATE), ("encoder", DEFAULT_ENCODER)):
        if config.get(key, default) != default:
            changes.append(f"{key}={config[key]}")
    if config.get("possibly_leaky"):
        changes.append("possibly leaky profiles")
    return f"{name} {', '.join(changes)}" if changes else name


def usual_settings(run: Run) -> dict[str, dict[str, Any]]:
    """What a run started from, ``model_settings`` and ``training_settings``: its preset, or what had been tuned."""
    config = run.config
    if "base" in config:
        return config["base"]
    found = find_preset(config["model"], config["preset"])
    return {
        "model_settings": found.model.model_dump(mode="json"),
        "training_settings": found.training.model_dump(mode="json"),
    }


def results_table(
    runs: Sequence[Run],
    split: str = "test",
    metrics: Sequence[str] = HEADLINE,
    values: Sequence[Mapping[str, float]] | None = None,
) -> pd.DataFrame:
    """Average runs that differ in nothing but the seed.

    Parameters
    ----------
    runs
        Finished runs; the order of first appearance is kept.
    split
        ``valid`` or ``test``.
    metrics
        Columns to show.
    values
        Metrics of each run; default: those stored in the run folders.

    Returns
    -------
    DataFrame
        model, seeds, and for every metric its mean and ``"<metric> sd"`` over seeds (NaN for a single seed).

    Raises
    ------
    ConfigError
        If a metric is unknown.
    """
    given = [run.metrics[split] for run in runs] if values is None else values
    rows = []
    for run, means in zip(runs, given, strict=True):
        unknown = [name for name in metrics if name not in means]
        if unknown:
            raise ConfigError(f"no metric named {some(unknown)}", f"known: {some(sorted(means), limit=20)}")
        group = storage.canonical_json({key: value for key, value in run.config.items() if key != "seed"})
        row = {"group": group, "model": run_label(run), "seed": run.config["seed"]}
        rows.append(row | {name: means[name] for name in metrics})
    groups = pd.DataFrame(rows, columns=["group", "model", "seed", *metrics]).groupby("group", sort=False)
    table = groups[list(metrics)].mean()
    spread = groups[list(metrics)].std().add_suffix(" sd")
    table.insert(0, "seeds", groups["seed"].nunique())
    table.insert(0, "model", groups["model"].first())
    return table.join(spread).reset_index(drop=True)


def markdown_table(lines: Sequence[Sequence[str]]) -> str:
    """Markdown table of a header and rows."""
    header, *rows = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, ["---"] * len(header), *rows])


def as_markdown(table: pd.DataFrame, metrics: Sequence[str] = HEADLINE, digits: int = 4) -> str:
    """Format a results table for a terminal or a Markdown file; the best mean of each column is bold."""
    best = {name: table[name].max() for name in metrics}
    header = ["model", "seeds", *metrics]
    rows = []
    for _, row in table.iterrows():
        cells = [str(row["model"]), str(row["seeds"])]
        for name in metrics:
            mean, spread = row[name], row[f"{name} sd"]
            text = f"{mean:.{digits}f}" if pd.isna(spread) else f"{mean:.{digits}f} ± {spread:.{digits}f}"
            cells.append(f"**{text}**" if mean == best[name] else text)
        rows.append(cells)
    widths = [max(len(line[column]) for line in [header, *rows]) for column in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def ranked_table(
    data: Dataset,
    runs: Sequence[Run],
    split: str,
    metrics: Sequence[str],
    cutoffs: Sequence[int],
    device: torch.device,
) -> str:
    """Results of runs in Markdown; cut-offs that were not stored are ranked anew from the stored weights.

    Raises
    ------
    ConfigError
        If a metric is unknown or a cut-off is not positive.
    """
    names = [f"{metric}@{k}" for metric in metrics for k in cutoffs]
    values = None
    if not all(name in run.metrics[split] for run in runs for name in names):
        task = RankingTask.from_tables(data.tables, split, device)
        values = [evaluate(load_model(run, data, device), task, cutoffs)[0] for run in runs]
    return as_markdown(results_table(runs, split, names, values), names)


def lists_markdown(data: Dataset, runs: Sequence[Run], split: str, k: int, device: torch.device) -> str:
    """What the lists of k items are like beyond accuracy, a Markdown table for each aspect."""
    models = ((run_label(run), load_model(run, data, device)) for run in runs)
    parts = []
    for title, table in measure_lists(data, models, split, k).items():
        numbers = table.set_index("model").map("{:.4f}".format).replace("nan", "")
        rows = [[str(model), *cells] for model, cells in zip(numbers.index, numbers.to_numpy(), strict=True)]
        shown = markdown_table([[str(name) for name in table], *rows])
        parts.append(f"{title}, lists of {k}, {split} split\n\n{shown}\n")
    return "\n".join(parts)
