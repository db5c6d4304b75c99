"""Result tables as text: names of runs and metrics, Markdown, LaTeX."""

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from spike_kit.base.config import TrainingConfig
from spike_kit.evaluation.ranking import HEADLINE
from spike_kit.experiments import ablation
from spike_kit.experiments.remarks import remarks
from spike_kit.experiments.run import Run, settings_of
from spike_kit.models import find_model, find_preset
from spike_kit.models.spike import SpikeConfig
from spike_kit.profiles.encode import DEFAULT_ENCODER
from spike_kit.profiles.template import TEMPLATE

USUAL_TEXT = {"profiles": TEMPLATE, "encoder": DEFAULT_ENCODER}
TEXT = tuple(USUAL_TEXT)
"""Text that a model reads unless it is told otherwise."""


PLAIN = {"best": "{}", "second": "{}", "mark": "{}", "sd": " ± {}"}
MARKDOWN = PLAIN | {"best": "**{}**"}
LATEX = {
    "best": r"\textbf{{{}}}",
    "second": r"\underline{{{}}}",
    "mark": r"\textsuperscript{{{}}}",
    "sd": r" {{\scriptsize $\pm$ {}}}",
}
"""Styles of a column of means: how the best, the second, a mark of significance and a standard deviation are set."""

_ESCAPES = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


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
        here, usually = (all_settings(config["model"], part, stored) for stored in (config[part], expected))
        changed = {key: value for key, value in here.items() if usually.get(key) != value}
        row = ablation.row_of(changed) if changed and config["model"] == "spike" else ""
        changes += [row] if row else [f"{key}={value}" for key, value in changed.items()]
    changes += [f"{key}={value}" for key, value in _other_text(run, USUAL_TEXT).items()]
    if config.get("possibly_leaky"):
        changes.append("possibly leaky profiles")
    return f"{name} {', '.join(changes)}" if changes else name


def group_remarks(runs: Sequence[Run]) -> str:
    """What `remarks` finds in runs that differ in the seed: the first of each kind, and how many runs have one."""
    by_kind: dict[str, list[str]] = {}
    for kind, text in (pair for run in runs for pair in remarks(run).items()):
        by_kind.setdefault(kind, []).append(text)
    counted = (f" ({len(texts)} of {len(runs)} runs)" if len(runs) > 1 else "" for texts in by_kind.values())
    return ", ".join(texts[0] + said for texts, said in zip(by_kind.values(), counted, strict=True))


def devices(groups: Iterable[Sequence[Run]]) -> list[str]:
    """Models of the devices of the runs of each row of a table; all empty where the whole table has but one."""
    named = [sorted({run.device or "unknown" for run in group}) for group in groups]
    several = len({name for names in named for name in names}) > 1
    return [", ".join(names) if several else "" for names in named]


def about_runs(table: pd.DataFrame | Mapping[str, Iterable[str]]) -> list[tuple[Hashable, Iterable[Any]]]:
    """Columns ``device`` and ``remarks`` of a table for Markdown, those of them that say anything."""
    columns = ((name, list(table.get(name, []))) for name in ("device", "remarks"))
    return [(name, cells) for name, cells in columns if any(cells)]


def device_column(groups: Iterable[Sequence[Run]]) -> list[tuple[Hashable, Iterable[Any]]]:
    """Column of `devices` for a Markdown table; none where there is but one."""
    return about_runs({"device": devices(groups)})


def all_settings(model: str, part: str, stored: Mapping[str, Any]) -> dict[str, Any]:
    """Stored settings, with those that are not stored because they are as they were before they came."""
    cls = TrainingConfig if part == "training_settings" else type(find_preset(model).model)
    later = {name: field.default for name, field in cls.model_fields.items() if field.exclude_if}
    return {**stored, **{name: value for name, value in later.items() if name not in stored}}


def ablation_label(run: Run, full: Run) -> str:
    """What differs from the full SPiKE, by the name of the ablation where it has one."""
    if run.config["model"] != "spike":
        return run_label(run)
    usual = SpikeConfig.parse(usual_settings(run)["model_settings"])
    changed = ablation.changes(SpikeConfig.parse(run.config["model_settings"]), usual)
    words = {"profiles": "profiles from", "encoder": "encoded by"}
    text = [f"{words[key]} {value}" for key, value in _other_text(run, full.config).items()]
    return ", ".join(([ablation.label(changed)] if changed or not text else []) + text)


def _other_text(run: Run, usual: Mapping[str, Any]) -> dict[str, str]:
    """Profile set and encoder of a run where they are not the usual ones."""
    return {key: run.config[key] for key in TEXT if run.config.get(key, usual[key]) != usual[key]}


def usual_settings(run: Run) -> dict[str, dict[str, Any]]:
    """What a run started from, ``model_settings`` and ``training_settings``: its preset, or what had been tuned."""
    config = run.config
    if "base" in config:
        return config["base"]
    found = find_preset(config["model"], config["preset"])
    return settings_of(found.model, found.training)


def plain(values: Iterable[float], form: str = ".4f") -> list[str]:
    """Numbers as text; empty where there is none."""
    return ["" if pd.isna(value) else format(value, form) for value in values]


def means(table: pd.DataFrame, name: Hashable, style: dict[str, str] = MARKDOWN, digits: int = 4) -> list[str]:
    """A column of means as text in a style, with what its columns ``"<name> mark"`` and ``"<name> sd"`` hold.

    The best and the second are chosen before rounding; equal means share their rank.
    """
    ranks = table[name].rank(method="min", ascending=False).map({1: "best", 2: "second"})
    cells = []
    for place, text, row in zip(ranks, plain(table[name], f".{digits}f"), table.to_dict("records"), strict=True):
        mark, sd = row.get(f"{name} mark", ""), plain([row.get(f"{name} sd", math.nan)], f".{digits}f")[0]
        cell = style.get(place, "{}").format(text)
        cells.append(cell + (style["mark"].format(mark) if mark else "") + (style["sd"].format(sd) if sd else ""))
    return cells


def differences(table: pd.DataFrame, interval: bool = False) -> list[str]:
    """Differences to a reference with their marks, and their intervals if asked for; empty for the reference."""
    cells = []
    for row in table.to_dict("records"):
        low, high = plain((row["low"], row["high"]), "+.4f")
        # These asterisks mean nothing in Markdown.
        mark = row["mark"].replace("*", "\N{ASTERISK OPERATOR}")
        shown = f"{row['difference']:+.4f}{f' [{low}, {high}]' if interval else ''}{mark}"
        cells.append("" if pd.isna(row["difference"]) else shown)
    return cells


def markdown_table(columns: Iterable[tuple[Hashable, Iterable[Any]]], padded: bool = False) -> str:
    """Markdown table of columns with their names; ``padded`` fills all cells to one width, for a terminal."""
    escaped = [[str(cell).replace("|", "\\|") for cell in (name, *cells)] for name, cells in columns]
    widths = [max(map(len, cells)) if padded else 0 for cells in escaped]
    header, *rows = zip(*escaped, strict=True)
    rule = ["-" * max(width, 3) for width in widths]
    shown = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in [header, rule, *rows])
    return "\n".join("| " + " | ".join(line) + " |" for line in shown)


def as_markdown(table: pd.DataFrame, metrics: Sequence[str] = HEADLINE, digits: int = 4) -> str:
    """Format a `spike_kit.results.frames.results_table`; the best mean of each column is bold."""
    columns: list[tuple[Hashable, Iterable[Any]]] = [(name, means(table, name, digits=digits)) for name in metrics]
    columns = [("model", table["model"]), ("seeds", table["seeds"]), *columns, *about_runs(table)]
    return markdown_table(columns, padded=True)


def latex_text(text: str) -> str:
    """Text as LaTeX prints it unchanged, on one line: every character with a meaning is escaped."""
    return "".join(_ESCAPES.get(character, character) for character in " ".join(text.split()))


def latex_table(table: pd.DataFrame, metrics: Sequence[str] = HEADLINE, digits: int = 4) -> str:
    """Format a results table: mean +- sd, the best mean of each column bold, the second underlined.

    Parameters
    ----------
    table
        As `spike_kit.results.frames.results_table` gives it; marks of significance in a column ``"<metric> mark"``.
    metrics
        Columns.
    digits
        Digits after the point.

    Returns
    -------
    str
        A ``tabular``; it needs the package booktabs.
    """
    columns = [["Model", *map(latex_text, table["model"])]]
    columns += [[latex_text(metric_name(name)), *means(table, name, LATEX, digits)] for name in metrics]
    columns += [["Device", *map(latex_text, cells)] for name, cells in about_runs(table) if name == "device"]
    header, *rows = (" & ".join(cells) + r" \\" for cells in zip(*columns, strict=True))
    aligned = "l" + "r" * len(metrics) + "l" * (len(columns) - len(metrics) - 1)
    begin, end = rf"\begin{{tabular}}{{{aligned}}}", r"\end{tabular}"
    return "\n".join([begin, r"\toprule", header, r"\midrule", *rows, r"\bottomrule", end, ""])
