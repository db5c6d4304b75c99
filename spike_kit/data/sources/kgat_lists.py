"""The files of KGAT's format that name its ids: ``org_id remap_id``, a name and a number on each line."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

from spike_kit.base.errors import DataError
from spike_kit.data.labels import readable
from spike_kit.data.raw import check_readable
from spike_kit.data.workspace import Workspace

Names = dict[int, tuple[str, ...]]
"""Names by id: the original id first, then (of items) the one in the knowledge graph."""

Bound = tuple[int, str]
"""How many ids there may be, and the file that says so."""


LIST_FILES = {name: f"{name}_list.txt" for name in ("user", "item", "entity", "relation")}
"""Names of the files that name the ids."""

_ID = "remap_id"
_NAMES = ("org_id", "freebase_id")
_DIGITS = re.compile(r"[0-9]{1,15}")


def read_names(path: Path, work: Workspace, bound: Bound | None) -> Names:
    """Read a list file.

    The first line names the columns: ``remap_id`` is the number, ``org_id`` and ``freebase_id`` are names, of which the
    first may hold blanks. The item list of KGAT's yelp2018 lacks the blank between its last two columns and repeats the
    first there (``abc 5abc``); that is understood.

    Parameters
    ----------
    path, work
        File and workspace.
    bound
        How many ids there are, and the file that says so; a larger id is bad.

    Raises
    ------
    DataError
        If the file is no text in UTF-8 or lacks its header; or if a line lacks its number, repeats one or names one
        that does not exist (unless bad rows are skipped).
    """
    lines = _lines(path)
    _, header = next(lines)
    columns = header.split()
    known = {_ID, *_NAMES}
    if _ID not in columns or len(columns) < 2 or len(set(columns)) < len(columns) or not known.issuperset(columns):
        raise DataError(
            f"{path} line 1: the columns are {header.strip()[:80]!r}, expected {_ID} and {' or '.join(_NAMES)}",
            "the first line must name the columns",
        )
    wide = next(name for name in _NAMES if name in columns)
    pattern = re.compile(" +".join("([^ ](?:.*[^ ])?)" if name == wide else "([^ ]+)" for name in columns))
    found: Names = {}
    for number, line in lines:
        fields = _fields(line, columns, pattern)
        where = f"{path} line {number}"
        if fields is None:
            work.bad(where, f"{line[:80]!r} does not hold {' '.join(columns)}", "correct the line")
            continue
        key = int(fields[_ID])
        names = tuple(fields[name] for name in _NAMES if name in fields)
        if key in found:
            work.bad(where, f"the id {key} is named a second time", "keep one line for each id")
        elif bound and key >= bound[0]:
            work.bad(where, f"the id {key} is not in {bound[1]}", "take the line out")
        elif any(map(_has_control, names)):
            work.bad(where, "the name holds a control character", "correct the line")
        else:
            found[key] = names
    return found


def _fields(line: str, columns: Sequence[str], pattern: re.Pattern[str]) -> dict[str, str] | None:
    """Values of a line by column; none if it has too few or its id is no number."""
    match = pattern.fullmatch(line)
    fields = dict(zip(columns, match.groups(), strict=True)) if match else {}
    if not _DIGITS.fullmatch(fields.get(_ID, "")):
        name, _, last = line.partition(" ")
        fields = {_NAMES[0]: name, _ID: last.strip(" ").removesuffix(name)}
        if list(columns) != [_NAMES[0], _ID, _NAMES[1]] or last.strip(" ") == fields[_ID]:
            return None
    return fields if _DIGITS.fullmatch(fields[_ID]) else None


def read_titles(path: Path, work: Workspace) -> dict[str, str]:
    """Read titles by original id: the two, apart by a tab, on each line; there is no header.

    Raises
    ------
    DataError
        If the file is no text in UTF-8; or if a line has no tab or gives an id another title (unless bad rows are
        skipped).
    """
    titles: dict[str, str] = {}
    for number, line in _lines(path, tabs=True):
        name, tab, title = line.partition("\t")
        where = f"{path} line {number}"
        if not tab or not title.strip():
            work.bad(where, f"{line[:80]!r} is not an id, a tab and a title", "correct the line")
        elif titles.setdefault(name.strip(), title.strip()) != title.strip():
            work.bad(where, f"{name.strip()[:80]!r} has another title already", "keep one line for each id")
    return titles


def _lines(path: Path, tabs: bool = False) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their numbers; tabs become blanks unless they are wanted."""
    check_readable(path)
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path} line {line}: it is not text in UTF-8", "convert it with: iconv -t UTF-8") from error
    filled = 0
    for number, line in enumerate(text.split("\n"), 1):
        bare = line.removesuffix("\r") if tabs else line.removesuffix("\r").replace("\t", " ").strip(" ")
        if bare.strip():
            filled += 1
            yield number, bare
    if not filled:
        raise DataError(f"{path} holds no line with text", "check that it is the right file")


def _has_control(text: str) -> bool:
    return not text.isprintable() and any(unicodedata.category(sign) in ("Cc", "Zl", "Zp") for sign in text)


def source_ids(names: Sequence[str | None], fallbacks: Sequence[str]) -> list[str]:
    """Choose ids that differ: names that occur once, else the fallbacks.

    Parameters
    ----------
    names
        A name for each row, or none.
    fallbacks
        What a row without a name of its own is called; all differ. A name that equals the fallback of another row that
        needs it counts as taken.
    """
    holder: dict[str, int] = {}
    pending: list[int] = []
    for row, name in enumerate(names):
        if name is None:
            pending.append(row)
        elif name in holder:
            pending += [row] if holder[name] < 0 else [row, holder[name]]
            holder[name] = -1
        else:
            holder[name] = row
    chosen = [name or "" for name in names]
    while pending:
        row = pending.pop()
        chosen[row] = fallbacks[row]
        other = holder.get(fallbacks[row], -1)
        if other >= 0:
            pending.append(other)
            holder[fallbacks[row]] = -1
    return chosen


def label(names: Sequence[str], source_id: str) -> str:
    """Label of a row: the readable part of the first name that is a URI, else its source id."""
    return next((readable(name) for name in names if "://" in name), source_id)
