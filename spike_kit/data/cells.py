"""Cells that hold several names: lists as JSON, pandas, numpy or an API write them, or names with separators."""

import ast
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

_LONGEST = 1 << 20

_NAMING = ("name", "label", "title", "value")
"""Keys of an object that name it, best first."""

_TEXT = r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
_ARRAY = re.compile(rf"\[\s*(?:{_TEXT}(?:\s+{_TEXT})+|[-+.\de]+(?:\s+[-+.\de]+)+)\s*\]")
_WRAPPED = re.compile(r"(?:frozenset|set|tuple|list|array)\((.*?)(?:, dtype=\w+)?\)", re.DOTALL)
_LIST_LIKE = re.compile(r"""\[\s*['"\[{(]|\[[^\]]*,|\{|\(\s*['"\[{]|(?:frozenset|set|tuple|list|array)\([\[{('")]""")


def names_in(cell: str, separator: str) -> list[str]:
    """Names in one cell.

    Lists are known by their brackets: JSON lists, Python's lists, tuples and sets, numpy's arrays; of texts, numbers,
    objects (``{"id": 18, "name": "Drama"}``), or of such lists. A single object is one name. Nothing is executed.

    Parameters
    ----------
    cell
        Text of the cell.
    separator
        What stands between names where the cell is no list.

    Raises
    ------
    ValueError
        If it looks like a list and cannot be read as one, or an object has no name.
    """
    text = cell.strip()
    if text[:1] not in ("[", "{", "(") and not _LIST_LIKE.match(text):
        return cell.split(separator)
    found, value = _parsed(text)
    if found:
        return list(_flat(value))
    if _LIST_LIKE.match(text):
        raise ValueError("it looks like a list, and cannot be read as one")
    return cell.split(separator)


def _parsed(text: str) -> tuple[bool, Any]:
    """Whether a text is a list or an object, and its value."""
    if len(text) > _LONGEST:
        return False, None
    if wrapped := _WRAPPED.fullmatch(text):
        text = wrapped[1] or "[]"
    if _ARRAY.fullmatch(text):
        return True, [ast.literal_eval(part) for part in re.findall(_TEXT, text)] or text[1:-1].split()
    glued = re.search(r"T\s*T", re.sub(_TEXT, "T", text))  # Python would make one text of two
    for read in (json.loads,) if glued else (json.loads, _python):
        with suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            value = read(text)
            return isinstance(value, (list, tuple, set, dict)), value
    return False, None


def _python(text: str) -> Any:
    return ast.literal_eval(re.sub(rf"({_TEXT})|\bnan\b", lambda match: match[1] or "None", text))


def _flat(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        texts = [part for part in value.values() if isinstance(part, str)]
        named = next((value[key] for key in _NAMING if isinstance(value.get(key), str)), None)
        if value and named is None and len(texts) != 1:
            raise ValueError(f"an object has none of the keys {', '.join(_NAMING)}: {str(value)[:60]}")
        yield from texts[:1] if named is None else [named]
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _flat(part)
    elif isinstance(value, set):
        yield from sorted(part for one in value for part in _flat(one))
    elif value is not None and value == value:
        yield str(value)


def parted(cells: Iterable[str], separator: str) -> tuple[dict[str, list[str]], list[int]]:
    """Take cells apart: names by cell, and the places of the cells that cannot be read, which get no name."""
    names: dict[str, list[str]] = {}
    bad = []
    for place, cell in enumerate(cells):
        try:
            names[cell] = names_in(cell, separator)
        except ValueError:
            names[cell] = []
            bad.append(place)
    return names, bad
