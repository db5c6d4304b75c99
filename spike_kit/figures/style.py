"""How every figure looks, and how it is written: vector files whose bytes are the same on every run."""

from __future__ import annotations

import datetime
import io
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from spike_kit.base import paths, storage
from spike_kit.base.errors import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ONE_COLUMN = 3.33
"""Width of one ACM column in inches."""

TWO_COLUMNS = 7.0
"""Width of both ACM columns in inches."""

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
"""Palette of Okabe and Ito (2008), distinguishable with any colour vision."""

MANY_COLOURS = (
    *COLOURS,
    *("#661100", "#332288", "#94346E", "#666633", "#225555", "#EE3377"),
    *("#73AF48", "#6A3D9A", "#BBCC33", "#EE8866", "#888888"),
)
"""The palette, and colours that differ most from it and each other (also without red or green) in Oklab: for models."""

HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\", "++++")
"""Second coding of bars, for greyscale prints."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "h")
"""Second coding of points and lines; the number of colours is prime, so that no pair comes twice among 171."""

DASHES = ("-", "--", ":", "-.", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (6, 2, 1, 2)), (0, (3, 1, 1, 1, 1, 1)))
"""Second coding of lines; as many."""

FORMATS = ("pdf", "svg", "png")
"""File types of every figure."""

_SETTINGS = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "hatch.linewidth": 0.5,
    "pdf.fonttype": 42,
    "svg.hashsalt": "spike_kit",
    "savefig.dpi": 300,
    "figure.constrained_layout.use": True,
}


@contextmanager
def figure_style() -> Iterator[None]:
    """Apply the house style inside the block, without touching any global state of matplotlib."""
    matplotlib = require("matplotlib", "figures")
    _show_in_notebooks()
    with matplotlib.rc_context(_SETTINGS):
        yield


def picture(figure: Figure, dpi: int = 130) -> bytes:
    """Draw a figure as PNG."""
    file = io.BytesIO()
    with figure_style():
        figure.savefig(file, format="png", dpi=dpi)
    return file.getvalue()


def _show_in_notebooks() -> None:
    """Let IPython show a figure that a cell returns as a picture: without pyplot it does not know how."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is not None:
        formatter = shell.display_formatter.formatters["image/png"]
        if ("matplotlib.figure", "Figure") not in formatter.deferred_printers:
            formatter.for_type_by_name("matplotlib.figure", "Figure", picture)


def line_look(index: int) -> dict[str, Any]:
    """Colour, mark and dash of one of several models."""
    codes = {"color": MANY_COLOURS, "marker": MARKERS, "linestyle": DASHES}
    return {name: values[index % len(values)] for name, values in codes.items()}


def dot_look(is_filled: bool) -> dict[str, Any]:
    """A dot that stands out, or one of the others."""
    ink = COLOURS[0] if is_filled else "#555555"
    look = {"marker": "o", "markersize": 3.5, "markeredgewidth": 0.8, "linestyle": "", "color": ink}
    return look | {"markerfacecolor": ink if is_filled else "white"}


def plain(text: str) -> str:
    """Escape a label from outside, so that matplotlib shows it as it is and does not read it as mathematics."""
    return text.replace("$", r"\$")


def blank_figure(inches: float, height: float, labels: Iterable[str] = ()) -> Figure:
    """An empty figure of a width; above its ``height`` there is room for a legend of these labels (`legend_above`)."""
    names = list(dict.fromkeys(labels))
    make = require("matplotlib.figure", "figures").Figure
    return make(figsize=(inches, height + _LINE * -(-len(names) // legend_columns(names, inches))))


def legend_above(figure: Figure, marks: Mapping[str, Any]) -> None:
    """Put a legend above a figure: the label of each mark (a line, or bars), which may be any text."""
    handles, labels = list(marks.values()), [plain(label) for label in marks]
    columns = legend_columns(list(marks), figure.get_size_inches()[0])
    figure.legend(handles, labels, loc="outside upper center", ncols=columns, handlelength=1.8)


def legend_columns(labels: Sequence[str], inches: float) -> int:
    """Columns of a legend above a figure of some width, so that the labels fit."""
    widest = max((len(label) for label in labels), default=1) * _CHARACTER + _HANDLE
    return max(1, min(len(labels), int(inches / widest)))


_CHARACTER, _HANDLE, _LINE = 0.062, 0.42, 0.145
"""Inches of a character of a legend on average, of the mark before a label, and of a row."""


def export(
    figure: Figure,
    name: str,
    folder: Path | None = None,
    data: pd.DataFrame | None = None,
    formats: Sequence[str] = FORMATS,
) -> list[Path]:
    """Write a figure as PDF, SVG and PNG, and the table it was drawn from as CSV.

    Parameters
    ----------
    figure
        The figure.
    name
        File name without an ending.
    folder
        Where to write; default: figures/.
    data
        The table; none writes no CSV.
    formats
        File types of the figure, of `FORMATS`.

    Returns
    -------
    list of Path
        The files, in the order of ``formats``, the CSV last.
    """
    folder = folder or paths.figures_root()
    date = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    metadata = {"pdf": {"CreationDate": date}, "svg": {"Date": date.isoformat()}, "png": {"Software": "matplotlib"}}
    files = []
    with figure_style():
        for kind in formats:
            file = folder / f"{name}.{kind}"
            with storage.atomic_file(file) as temporary:
                figure.savefig(temporary, format=kind, metadata=metadata[kind])
            files.append(file)
    if data is not None:
        file = folder / f"{name}.csv"
        with storage.atomic_file(file) as temporary:
            data.to_csv(temporary, index=False, float_format="%.6g", lineterminator="\n")
        files.append(file)
    return files
