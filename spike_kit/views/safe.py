"""Text from outside, made safe to show: in plotly, in matplotlib, in HTML widgets, in tables.

Titles, reviews and profiles come from strangers. Plotly reads ``<b>`` and ``<a href>`` in labels and hovers, and
``$...$`` as mathematics; an HTML widget reads everything. All of it must show as the characters it is made of.
"""

import math
import re
import textwrap
from collections.abc import Sequence
from html import escape

import pandas as pd
from pandas.api.types import is_bool_dtype, is_float_dtype, is_numeric_dtype

from spike_kit.figures.style import plain

_INVISIBLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]+")
"""Control characters, and those that hide text or turn its direction around."""


def shown(text: object, length: int | None = None) -> str:
    """Text on one line as plotly shows it unchanged: no tag, no entity, no formula; cut to ``length`` characters."""
    return escape(_line(text, length), quote=False).replace("$", "&#36;")


def wrapped(text: object, width: int = 60, lines: int = 6) -> str:
    """Text as plotly shows it in a hover, broken into at most ``lines`` lines of ``width`` characters."""
    parts = textwrap.wrap(_line(text, None), width, max_lines=lines, placeholder=" …")
    return "<br>".join(shown(part) for part in parts)


def printed(text: object, length: int | None = None) -> str:
    """Text on one line as matplotlib prints it unchanged: no formula; cut to ``length`` characters."""
    return plain(_line(text, length))


def html_text(text: object) -> str:
    """Text for an HTML widget or an HTML cell: nothing in it is read as HTML; line breaks are kept by ``pre-wrap``."""
    return escape("\n".join(_INVISIBLE.sub(" ", line) for line in str(text).splitlines()))


def html_table(frame: pd.DataFrame, digits: int = 4) -> str:
    """Table for an HTML widget; every cell and column name is escaped, text stands left and numbers right.

    Numbers get ``digits`` digits after the point, from 10 on one, in a column of whole numbers none.
    """
    columns = [(frame.iloc[:, number], is_numeric_dtype(frame.iloc[:, number])) for number in range(frame.shape[1])]
    left = [not numeric or is_bool_dtype(column) for column, numeric in columns]
    cells = [[html_text(text) for text in _cells(column, digits)] for column, _ in columns]
    return html_rows([html_text(name) for name in frame.columns], list(zip(*cells, strict=True)), left)


def html_rows(header: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[bool] | None = None) -> str:
    """Table for an HTML widget, in the colours of JupyterLab's theme, of cells that are HTML already.

    Parameters
    ----------
    header
        Names of the columns; may be empty.
    rows
        The cells.
    left
        Which columns stand left, the others right; default: all.
    """

    def line(cells: Sequence[str], tag: str) -> str:
        sides = ["left" if left is None or left[number] else "right" for number in range(len(cells))]
        return "".join(
            f'<{tag} style="text-align: {side}">{cell}</{tag}>' for side, cell in zip(sides, cells, strict=True)
        )

    head = f"<thead><tr>{line(header, 'th')}</tr></thead>" if header else ""
    body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    table = f"<table>{head}<tbody>{body}</tbody></table>"
    return f'<div class="jp-RenderedHTMLCommon jp-RenderedHTML" style="overflow-x: auto">{table}</div>'


def _cells(column: pd.Series, digits: int) -> list[str]:
    if is_bool_dtype(column):
        return ["yes" if value else "no" for value in column]
    if not is_float_dtype(column):
        return ["" if missing else str(value) for value, missing in zip(column, column.isna(), strict=True)]
    whole = bool((column.dropna() % 1 == 0).all())
    return ["" if math.isnan(x) else f"{x:z.{0 if whole else digits if abs(x) < 10 else 1}f}" for x in column]


def _line(text: object, length: int | None) -> str:
    line = _INVISIBLE.sub(" ", str(text)).strip()
    return line if length is None or len(line) <= length else line[: max(length - 1, 0)].rstrip() + "…"
