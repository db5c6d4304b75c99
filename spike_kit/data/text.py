"""Text from outside into one clean line: titles, descriptions, reviews."""

from __future__ import annotations

import html
import re
import unicodedata

MAX_REVIEW_CHARACTERS = 2000
"""Characters kept of a review; what is longer ends in ``...``."""

CONTROL = r"[\x{00}-\x{1f}\x{7f}-\x{9f}\x{2028}\x{2029}]"
"""Characters that no text of a data-set folder may hold, as a regular expression of RE2 (pyarrow, duckdb)."""

_JOINERS = "\u200c\u200d"
_TAG = re.compile(r"</?(?:a|b|br|div|em|font|h[1-6]|hr|i|img|li|ol|p|span|strong|sub|sup|u|ul)(?:[\s/][^<>]*)?>", re.I)
_HIDDEN = re.compile(r"<(script|style)\b[^<>]*>.*?(?:</\1\s*>|$)", re.I | re.S)
_LATIN_END = "\u024f"


def clean(text: str, max_words: int | None = None) -> str:
    """Normalise a label or a description: NFC, no control or invisible characters, single spaces.

    Parameters
    ----------
    text
        Text from outside.
    max_words
        Words kept; a longer text ends in ``...``.
    """
    composed = text if text.isascii() else unicodedata.normalize("NFC", text)
    if not composed.isprintable():
        odd = {character for character in set(composed) if not character.isprintable()}
        composed = composed.translate({ord(character): _visible(character) for character in odd})
    elif max_words is None and "  " not in composed and composed[:1] != " " and composed[-1:] != " ":
        return composed
    words = composed.split()
    if max_words is not None and len(words) > max_words:
        return " ".join(words[:max_words]).rstrip(".,;:") + "..."
    return " ".join(words)


def _visible(character: str) -> str:
    category = unicodedata.category(character)
    if category == "Cc":
        return " "
    return "" if category in ("Cf", "Cs", "Co") and character not in _JOINERS else character


def without_markup(text: str) -> str:
    """Resolve HTML entities and take out HTML tags; what is no known tag (``a < b``) stays."""
    if "&" in text:
        text = html.unescape(text)
    if "<" in text:
        text = _TAG.sub(" ", _HIDDEN.sub(" ", text))
    return text


def plain(text: str, max_characters: int | None = None) -> str:
    """Turn a title, a description or a review into one clean line (`without_markup`, then `clean`).

    Parameters
    ----------
    text
        Text from outside, possibly HTML.
    max_characters
        Longest result; a longer text is cut at a word and ends in ``...``.
    """
    line = clean(without_markup(text))
    return line if max_characters is None else cut(line, max_characters)


def cut(line: str, max_characters: int) -> str:
    """Shorten a clean line to at most so many characters, at a word; a shortened one ends in ``...``."""
    if len(line) <= max_characters:
        return line
    head = line[: max_characters - 2]
    space = head.rfind(" ")
    return head[: space if space > 0 else max_characters - 3].rstrip(" .,;:") + "..."


def mostly_not_latin(text: str) -> bool:
    """Whether more than half of the letters belong to another script than Latin; a count, never a reason to drop."""
    if text.isascii():
        return False
    letters = [character for character in text if character.isalpha()]
    return 2 * sum(character > _LATIN_END for character in letters) > len(letters)
