"""Text from outside into one clean line: titles, descriptions, reviews; and labels from identifiers.

Graphs that come without names are named by their ids: ``res:The_Prophet_(book)`` is The Prophet (book).
"""

import html
import re
import unicodedata
from urllib.parse import unquote

MAX_REVIEW_CHARACTERS = 2000
"""Characters kept of a review; what is longer ends in ``...``."""

CONTROL = r"[\x{00}-\x{1f}\x{7f}-\x{9f}\x{2028}\x{2029}]"
"""Characters that no text of a data-set folder may hold, as a regular expression of RE2 (pyarrow, duckdb)."""

FREEBASE_ID = re.compile(r"[mg]\.[0-9a-z_]+")
"""Ids of Freebase: no name can be read from them."""

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S*")
_PREFIXED = re.compile(r"[A-Za-z][A-Za-z0-9.-]*:(?=[^\s/:])(\S+)")
_ONTOLOGY = re.compile(r"^(?:dbo|dbp|wdt|schema)[ :](?=\S)")
_ARTICLES = "the|a|an|le|la|les|l'|il|lo|gli|el|los|las|der|die|das|den|det|un|une|het|o"
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


def plain(text: str) -> str:
    """Turn a title, a description or a review, possibly HTML, into one clean line (`without_markup`, then `clean`)."""
    return clean(without_markup(text))


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


def readable(identifier: str) -> str:
    """Turn a URI or a prefixed name into a label; other identifiers only lose their underscores and escapes.

    A URI stands for its fragment, or else for the last part of its path; ``prefix:Name`` stands for its name. Angle
    brackets around it are passed over, ``%28`` is decoded and underscores become blanks. Ids of Freebase (``m.0dl567``)
    stay as they are.

    Parameters
    ----------
    identifier
        Id of an entity or a relation.

    Returns
    -------
    str
        A clean line; the identifier itself (cleaned) if nothing would be left.
    """
    whole = identifier.strip()
    inner = whole[1:-1].strip() if whole.startswith("<") and whole.endswith(">") else whole
    if _ADDRESS.fullmatch(inner):
        path, _, fragment = inner.partition("#")
        name = fragment.strip("/") or path.rstrip("/").rpartition("/")[2]
    else:
        prefixed = _PREFIXED.fullmatch(inner)
        name = prefixed[1] if prefixed else inner
    if FREEBASE_ID.fullmatch(name):
        return name
    decoded = unquote(name, errors="replace").replace("_", " ")
    return plain(decoded) or plain(whole)


def relation_name(identifier: str) -> str:
    """Turn the id of a relation into words: ``dbo_musicComposer`` and ``dbo:musicComposer`` are music composer.

    A short lower-case prefix before a colon or an underscore that names an ontology (``dbo``, ``dbp``, ``wdt``,
    ``schema``) is dropped, and words that are written together are taken apart.
    """
    name = _ONTOLOGY.sub("", readable(identifier))
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)
    return apart.lower() if apart != name else name


def turned(title: str) -> str:
    """Title with a trailing article put first, inside and outside of parentheses: "Crow, The" is The Crow."""
    parts = re.split(r"([()])", title)
    return "".join(re.sub(rf"^(.*), ({_ARTICLES})(\s*)$", _article_first, part, flags=re.IGNORECASE) for part in parts)


def _article_first(match: re.Match[str]) -> str:
    space = "" if match[2].endswith("'") else " "
    return f"{match[2]}{space}{match[1]}{match[3]}"


def without_article(title: str) -> str:
    """Title in lower case without its leading article, unless nothing would be left."""
    return re.sub(rf"^({_ARTICLES}) (?=.)", "", title)
