"""Result tables as text: names of runs and metrics, and Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from spike_kit.evaluation.ranking import HEADLINE
from spike_kit.experiments import ablation
from spike_kit.experiments.run_folder import Run
from spike_kit.models import find_model, find_preset
from spike_kit.models.spike import SpikeConfig
from spike_kit.profiles.encode import DEFAULT_ENCODER
from spike_kit.profiles.template import TEMPLATE

USUAL_TEXT = {"profiles": TEMPLATE, "encoder": DEFAULT_ENCODER}
"""Text that a model reads unless it is told otherwise."""


def metric_name(metric: str) -> str:
    """Name of a metric as a paper writes it: ``ndcg@20`` is NDCG@20."""
    name, *cutoff = metric.split("@")
    written = {"ndcg": "NDCG", "mrr": "MRR"}.get(name, name.replace("_", " ").capitalize())
    return "@".join([written, *cutoff])


def run_label(run: Run) -> str:
    """Short name of a run: model, preset unless it is the recommended one, and whatever differs from the usual."""
    config = run.config
    usual = usual_settings(run)
    title = find_model(config["model"]).title
    name = title if config["preset"] == "recommended" else f"{title} ({config['preset']})"
    changes = []
    for part, expected in usual.items():
        changes += [f"{key}={value}" for key, value in config[part].items() if expected.get(key) != value]
    changes += [f"{key}={value}" for key, value in _unusual_text(run).items()]
    if config.get("possibly_leaky"):
        changes.append("possibly leaky profiles")
    return f"{name} {', '.join(changes)}" if changes else name


def ablation_label(run: Run) -> str:
    """What differs from the full SPiKE, by the name of the ablation where it has one."""
    if run.config["model"] != "spike":
        return run_label(run)
    usual = SpikeConfig.parse(usual_settings(run)["model_settings"])
    changed = ablation.changes(SpikeConfig.parse(run.config["model_settings"]), usual)
    words = {"profiles": "profiles from", "encoder": "encoded by"}
    text = [f"{words[key]} {value}" for key, value in _unusual_text(run).items()]
    return ", ".join(([ablation.label(changed)] if changed or not text else []) + text)


def _unusual_text(run: Run) -> dict[str, str]:
    """Profile set and encoder of a run where they are not the usual ones."""
    return {key: run.config[key] for key, usual in USUAL_TEXT.items() if run.config.get(key, usual) != usual}


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


def markdown_table(lines: Sequence[Sequence[str]], padded: bool = False) -> str:
    """Markdown table of a header and rows; ``padded`` fills all cells of a column to one width, for a terminal."""
    header, *rows = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    widths = [max(map(len, column)) if padded else 0 for column in zip(header, *rows, strict=True)]
    rule = ["-" * max(width, 3) for width in widths]
    shown = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in [header, rule, *rows])
    return "\n".join("| " + " | ".join(line) + " |" for line in shown)


def as_markdown(table: pd.DataFrame, metrics: Sequence[str] = HEADLINE, digits: int = 4) -> str:
    """Format a `spike_kit.results.frames.results_table`; the best mean of each column is bold."""
    best = {name: table[name].max() for name in metrics}
    lines = [["model", "seeds", *metrics]]
    for row in table.to_dict("records"):
        cells = [str(row["model"]), str(row["seeds"])]
        for name in metrics:
            text = f"{row[name]:.{digits}f}{spread(row[f'{name} sd'], digits)}"
            cells.append(f"**{text}**" if row[name] == best[name] else text)
        lines.append(cells)
    return markdown_table(lines, padded=True)


def spread(sd: float, digits: int = 4) -> str:
    """A standard deviation as it stands behind a mean; nothing where it is not known."""
    return "" if pd.isna(sd) else f" ± {sd:.{digits}f}"
