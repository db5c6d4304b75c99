"""Result tables: runs grouped over seeds, means and standard deviations, as data frames and as text."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from spike_kit.models import find_preset
from spike_kit.runs import Run

HEADLINE = ("recall@10", "recall@20", "recall@40", "ndcg@10", "ndcg@20", "ndcg@40")
"""Metrics of the main table."""


def run_label(run: Run) -> str:
    """Short name of a run: model, preset unless it is the recommended one, and the settings that differ from it."""
    config = run.config
    preset = find_preset(config["model"], config["preset"])
    name = config["model"] if config["preset"] == "recommended" else f"{config['model']} ({config['preset']})"
    changes = []
    for part, usual in (("model_settings", preset.model), ("training_settings", preset.training)):
        expected = usual.model_dump(mode="json")
        changes += [f"{key}={value}" for key, value in config[part].items() if expected.get(key) != value]
    return f"{name} {', '.join(changes)}" if changes else name


def results_table(runs: Sequence[Run], split: str = "test", metrics: Sequence[str] = HEADLINE) -> pd.DataFrame:
    """Average runs that differ in nothing but the seed.

    Parameters
    ----------
    runs
        Finished runs; the order of first appearance is kept.
    split
        ``valid`` or ``test``.
    metrics
        Columns to show.

    Returns
    -------
    DataFrame
        model, seeds, and for every metric its mean and ``"<metric> sd"`` over seeds (NaN for a single seed).
    """
    rows = [
        {"model": run_label(run), "seed": run.config["seed"], **{name: run.metrics[split][name] for name in metrics}}
        for run in runs
    ]
    frame = pd.DataFrame(rows, columns=["model", "seed", *metrics])
    groups = frame.groupby("model", sort=False)
    table = groups[list(metrics)].mean()
    spread = groups[list(metrics)].std().add_suffix(" sd")
    table.insert(0, "seeds", groups["seed"].nunique())
    return table.join(spread).reset_index()


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
