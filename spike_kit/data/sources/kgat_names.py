"""The lists of KGAT's format that name its ids: ``org_id remap_id``, a name and a number on each line."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from spike_kit.base.errors import DataError, some
from spike_kit.data.labels import readable
from spike_kit.data.lists import Known, is_id, read_lines
from spike_kit.data.workspace import Workspace

Names = dict[int, tuple[str, ...]]
"""Names by id: the original id first, then (of items) the one in the knowledge graph."""

LIST_FILES = {name: f"{name}_list.txt" for name in ("user", "item", "entity", "relation")}
"""Names of the files that name the ids."""

_ID = "remap_id"
_NAMES = ("org_id", "freebase_id")


def read_names(path: Path, work: Workspace, known: Known | None) -> Names:
    """Read a list file.

    The first line names the columns: ``remap_id`` is the number, ``org_id`` and ``freebase_id`` are names, of which the
    first may hold blanks. The item list of KGAT's yelp2018 lacks the blank between its last two columns and repeats the
    first there (``abc 5abc``); that is understood.

    Parameters
    ----------
    path, work
        File and workspace.
    known
        Ids there are, and the file that says so; another id is bad.

    Raises
    ------
    DataError
        If the file is no text in UTF-8 or lacks its header; or if a line lacks its number, repeats one or names one
        that does not exist (unless bad rows are skipped).
    """
    lines = ((number, line.replace("\t", " ").strip(" ")) for number, line in read_lines(path, work))
    _, header = next(lines, (1, ""))
    columns = header.split()
    if _ID not in columns or len(columns) < 2 or len(set(columns)) < len(columns) or not {_ID, *_NAMES} >= {*columns}:
        raise DataError(
            f"{path} line 1: the columns are {header[:80]!r}, expected {_ID} and {' or '.join(_NAMES)}",
            "the first line must name the columns",
        )
    wide = next(name for name in _NAMES if name in columns)
    pattern = re.compile(" +".join("([^ ](?:.*[^ ])?)" if name == wide else "([^ ]+)" for name in columns))
    found: Names = {}
    for number, line in lines:
        fields = _fields(line, columns, pattern)
        where = f"{path} line {number}"
        key = int(fields.pop(_ID, "-1"))
        names = tuple(fields[name] for name in _NAMES if name in fields)
        if key < 0:
            work.bad(where, f"{line[:80]!r} does not hold {' '.join(columns)}", "correct the line")
        elif key in found:
            work.bad(where, f"the id {key} is named a second time", "keep one line for each id")
        elif known and key not in known.ids:
            work.bad(where, f"the id {key} is not in {known.where}", "take the line out")
        elif any(map(_has_control, names)):
            work.bad(where, "the name holds a control character", "correct the line")
        else:
            found[key] = names
    return found


def _fields(line: str, columns: Sequence[str], pattern: re.Pattern[str]) -> dict[str, str]:
    """Values of a line by column; none if it has too few or its id is no number."""
    match = pattern.fullmatch(line)
    fields = dict(zip(columns, match.groups(), strict=True)) if match else {}
    if not is_id(fields.get(_ID, "")) and list(columns) == [_NAMES[0], _ID, _NAMES[1]]:
        name, _, last = line.partition(" ")
        fields = {_NAMES[0]: name, _ID: last.strip(" ").removesuffix(name)} if last.endswith(name) else {}
    return fields if is_id(fields.get(_ID, "")) else {}


def read_titles(path: Path, work: Workspace) -> dict[str, str]:
    """Read titles by original id: the two, apart by a tab, on each line; there is no header.

    Raises
    ------
    DataError
        If the file is no text in UTF-8; or if a line has no tab or gives an id another title (unless bad rows are
        skipped).
    """
    titles: dict[str, str] = {}
    for number, line in read_lines(path, work):
        name, _, title = (part.strip() for part in line.partition("\t"))
        where = f"{path} line {number}"
        if not title:
            work.bad(where, f"{line[:80]!r} is not an id, a tab and a title", "correct the line")
        elif titles.setdefault(name, title) != title:
            work.bad(where, f"{name[:80]!r} has another title already", "keep one line for each id")
    return titles


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
    times = Counter(names)
    holder = {name: row for row, name in enumerate(names) if name is not None and times[name] == 1}
    chosen = [name if name in holder else "" for name in names]
    pending = [row for row, name in enumerate(chosen) if name not in holder]
    while pending:
        row = pending.pop()
        chosen[row] = fallbacks[row]
        if (other := holder.pop(fallbacks[row], None)) is not None:
            pending.append(other)
    return chosen


def label(names: Sequence[str], source_id: str) -> str:
    """Label of a row: the readable part of the first name that is a URI, else its source id."""
    return next((readable(name) for name in names if "://" in name), source_id)


def write_list(folder: Path, name: str, ids: pd.Series, second: pd.Series | None = None) -> None:
    """Write the list of original ids by number (the index), with a second name for each if there is one.

    Raises
    ------
    DataError
        If an id begins or ends in a blank.
    """
    bad = ids[ids.str.strip() != ids]
    if len(bad):
        raise DataError(
            f"the format of KGAT cannot hold {name} ids that begin or end in a blank: {some(map(repr, bad))}",
            "rename them in the raw files, or export as recbole",
        )
    lines = ids + " " + ids.index.astype("str") + ("" if second is None else " " + second)
    header = " ".join((_NAMES[0], _ID, *(() if second is None else _NAMES[1:])))
    (folder / LIST_FILES[name]).write_text("".join(f"{line}\n" for line in [header, *lines]), "utf-8", newline="\n")
