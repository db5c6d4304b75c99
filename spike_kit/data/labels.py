"""Labels from identifiers, for graphs that come without names: ``res:The_Prophet_(book)`` is The Prophet (book)."""

from __future__ import annotations

import re
from urllib.parse import unquote

from spike_kit.data.text import plain

FREEBASE_ID = re.compile(r"[mg]\.[0-9a-z_]+")
"""Ids of Freebase: no name can be read from them."""

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S*")
_PREFIXED = re.compile(r"[A-Za-z][A-Za-z0-9.-]*:(?=[^\s/:])(\S+)")


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


_ONTOLOGY = re.compile(r"^(?:dbo|dbp|wdt|schema)[ :](?=\S)")

_ARTICLES = "the|a|an|le|la|les|l'|il|lo|gli|el|los|las|der|die|das|den|det|un|une|het|o"


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
