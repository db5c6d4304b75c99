"""English from labels and relation templates: hostile labels go in, one clean paragraph comes out."""

from __future__ import annotations

import re
from collections.abc import Sequence

_SLOT = re.compile(r"(\{head\}|\{tail\})")
_ARTICLE = re.compile(r"\b([Aa])n? $")


def listed(names: Sequence[str], total: int | None = None, last: str = "and") -> str:
    """Join names in words: ``"A, B and C"``, or ``"A, B and 7 more"`` when ``total`` exceeds the names given."""
    parts = list(names)
    if total is not None and total > len(parts):
        parts.append(f"{total - len(parts)} more")
    if len(parts) < 2:
        return "".join(parts)
    return f"{', '.join(parts[:-1])} {last} {parts[-1]}"


def fill(template: str, head: str, tail: str) -> str:
    """Put names into a relation's sentence; braces inside a name are plain characters.

    ``a`` before a slot becomes ``an`` where the name asks for it, and the sentence ends in one full stop.
    """
    values = {"{head}": head, "{tail}": tail}
    text = ""
    for part in _SLOT.split(template):
        value = values.get(part)
        if value:
            vowel = value[0].lower() in "aeiou"
            text = _ARTICLE.sub(r"\1n " if vowel else r"\1 ", text)
        text += part if value is None else value
    return sentence(text)


def sentence(text: str) -> str:
    """End a text like a sentence: one full stop, unless it ends in other punctuation or in an ellipsis."""
    text = text.strip()
    if text.endswith("..") and not text.endswith("..."):
        return text[:-1]
    return text if text.endswith((".", "!", "?")) else f"{text}."


def starts_with_head(template: str) -> bool:
    """Whether a relation's sentence begins with its head as a subject, which ``It`` can replace."""
    return template.startswith("{head} ")


def paragraph(sentences: Sequence[str], max_words: int) -> str:
    """Join sentences in order, leaving out whole sentences that no longer fit; the first one always stays."""
    kept, used = [], 0
    for position, text in enumerate(sentences):
        words = len(text.split())
        if position == 0 or used + words <= max_words:
            kept.append(text)
            used += words
    return " ".join(kept)
