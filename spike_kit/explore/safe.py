"""Text from outside, made safe to show: in plotly, in HTML widgets, in tables.

Titles, reviews and profiles come from strangers. Plotly reads ``<b>`` and ``<a href>`` in labels and hovers, and
``$...$`` as mathematics; an HTML widget reads everything. All of it must show as the characters it is made of.
"""

from __future__ import annotations

import re
import textwrap
from html import escape

import pandas as pd

_INVISIBLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]+")
"""Control characters, and those that hide text or turn its direction around."""


def shown(text: object, length: int | None = None) -> str:
    """Text on one line as plotly shows it unchanged: no tag, no entity, no formula; cut to ``length`` characters."""
    return escape(_line(text, length)).replace("$", "&#36;")


def wrapped(text: object, width: int = 60, lines: int = 6) -> str:
    """Text as plotly shows it in a hover, broken into at most ``lines`` lines of ``width`` characters."""
    parts = textwrap.wrap(_line(text, None), width, max_lines=lines, placeholder=" …")
    return "<br>".join(shown(part) for part in parts)


def html_text(text: object, length: int | None = None) -> str:
    """Text for an HTML widget or an HTML cell: nothing in it is read as HTML; line breaks are kept by ``pre-wrap``."""
    plain = "\n".join(_INVISIBLE.sub(" ", line) for line in str(text).splitlines())
    return escape(plain if length is None else _cut(plain, length))


def html_table(frame: pd.DataFrame, digits: int = 4, index: bool = False) -> str:
    """Table for an HTML widget, in the colours of JupyterLab's theme; every cell and column name is escaped."""
    table = frame.to_html(index=index, escape=True, border=0, float_format=lambda x: f"{x:.{digits}f}", na_rep="")
    return f'<div class="jp-RenderedHTMLCommon jp-RenderedHTML" style="overflow-x: auto">{table}</div>'


def _line(text: object, length: int | None) -> str:
    line = _INVISIBLE.sub(" ", str(text)).strip()
    return line if length is None else _cut(line, length)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: max(length - 1, 0)].rstrip() + "…"
