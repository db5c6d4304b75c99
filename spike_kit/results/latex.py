"""Result tables as LaTeX with booktabs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from spike_kit.evaluation.ranking import HEADLINE
from spike_kit.results.tables import metric_name

_ESCAPES = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


def latex_text(text: str) -> str:
    """Text as LaTeX prints it unchanged, on one line: every character with a meaning is escaped."""
    return "".join(_ESCAPES.get(character, character) for character in " ".join(text.split()))


def latex_table(
    table: pd.DataFrame,
    metrics: Sequence[str] = HEADLINE,
    digits: int = 4,
    marks: Mapping[str, Mapping[str, str]] | None = None,
) -> str:
    """Format a results table: mean +- sd, the best mean of each column bold, the second underlined.

    Parameters
    ----------
    table
        As `spike_kit.results.frames.results_table` gives it.
    metrics
        Columns.
    digits
        Digits after the point; the best is chosen before rounding, and equal means share the mark.
    marks
        Significance marks by metric, then by model.

    Returns
    -------
    str
        A ``tabular``; it needs the package booktabs.
    """
    ranks = {name: table[name].rank(method="min", ascending=False) for name in metrics}
    lines = [
        rf"\begin{{tabular}}{{l{'r' * len(metrics)}}}",
        r"\toprule",
        " & ".join(["Model", *(latex_text(metric_name(name)) for name in metrics)]) + r" \\",
        r"\midrule",
    ]
    for place, row in enumerate(table.to_dict("records")):
        cells = [latex_text(str(row["model"]))]
        for name in metrics:
            text = f"{row[name]:.{digits}f}"
            rank = ranks[name].iloc[place]
            text = rf"\textbf{{{text}}}" if rank == 1 else rf"\underline{{{text}}}" if rank == 2 else text
            sign = (marks or {}).get(name, {}).get(str(row["model"]), "")
            text += rf"\textsuperscript{{{latex_text(sign)}}}" if sign else ""
            spread = row.get(f"{name} sd", float("nan"))
            cells.append(text if pd.isna(spread) else rf"{text} {{\scriptsize $\pm$ {spread:.{digits}f}}}")
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])
