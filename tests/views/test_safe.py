import math
import re
from html import unescape

import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from spike_kit.views.safe import html_table, html_text, printed, shown, wrapped


@given(st.text())
def test_nothing_is_left_that_a_page_or_plotly_reads(text: str) -> None:
    for safe in (shown(text), html_text(text), wrapped(text, lines=100).replace("<br>", "")):
        assert not set(safe) & set("<>")
    assert not set(html_text(text)) & set("\"'")
    assert "$" not in shown(text) + wrapped(text)


@given(st.text(alphabet=st.characters(categories=("L", "N", "P", "S")), max_size=40))
def test_what_is_shown_is_what_was_given(text: str) -> None:
    assert unescape(shown(text)) == text
    assert unescape(html_text(text)) == text
    assert printed(text).replace(r"\$", "$") == text
    assert printed(text).count("$") == printed(text).count(r"\$")


def test_invisible_characters_go_and_long_text_is_cut() -> None:
    assert shown("a\u202eb\x00c\nd") == "a b c d"
    assert shown("abcdef", 4) == "abc…"
    assert html_text("one\ntwo\u200b") == "one\ntwo "
    assert wrapped("word " * 100, width=20, lines=2).count("<br>") == 1


def test_tables_show_numbers_as_far_as_they_mean_something() -> None:
    frame = pd.DataFrame(
        {"a": [1.0, math.nan], "b": [0.12345, 71.2345], "c": [True, False], "d": [3, 4], "<i>": ["x", None]}
    )
    cells = re.findall(r'<td style="text-align: (\w+)">([^<]*)</td>', html_table(frame, digits=3))
    first, second = cells[:5], cells[5:]
    assert first == [("right", "1"), ("right", "0.123"), ("left", "yes"), ("right", "3"), ("left", "x")]
    assert second == [("right", ""), ("right", "71.2"), ("left", "no"), ("right", "4"), ("left", "")]
    assert "&lt;i&gt;</th>" in html_table(frame)
    assert "<td" not in html_table(frame.head(0))
