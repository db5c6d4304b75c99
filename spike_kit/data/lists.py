"""Files of lists, ``user item item ...``: how KGAT, SSLRec, the authors of SPiKE and CoLaKG write interactions."""

from __future__ import annotations

import re
from array import array
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import numpy as np
import pandas as pd

from spike_kit.base.errors import some
from spike_kit.data.raw import check_readable, open_text, unpacking
from spike_kit.data.reading import registered
from spike_kit.data.tables import SPLITS
from spike_kit.data.workspace import Workspace

_DIGITS = 15
_BROKEN = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Known:
    """Ids that exist, and the file that says so."""

    ids: Collection[int]
    where: str


def read_lines(path: Path, work: Workspace) -> Iterator[tuple[int, str]]:
    """Read the lines of a text file with their numbers; blank ones are passed over, one that is not UTF-8 is bad.

    Raises
    ------
    DataError
        If the file is not readable, or a line is bad (unless bad rows are skipped).
    """
    check_readable(path)
    with unpacking(path), open_text(path, errors="surrogateescape") as file:
        for number, line in enumerate(file, 1):
            if not line.isascii() and _BROKEN.search(line):
                work.bad(f"{path} line {number}", "it is not text in UTF-8", "convert it with: iconv -t UTF-8")
            elif line.strip():
                yield number, line.rstrip("\r\n")


def is_id(part: str) -> bool:
    """Whether a text is an id (0, 1, 2, ...)."""
    return part.isascii() and part.isdigit() and len(part) <= _DIGITS


def _read_ids(path: Path, work: Workspace) -> Iterator[tuple[int, list[int]]]:
    """Read lines of ids: line number and ids; a line that holds something else is bad."""
    for number, line in read_lines(path, work):
        parts = line.split()
        broken = next((part for part in parts if not is_id(part)), None)
        if broken is None:
            yield number, [int(part) for part in parts]
        else:
            work.bad(f"{path} line {number}", f"{broken[:40]!r} is not an id (0, 1, 2, ...)", "correct the line")


def read_split(
    files: Mapping[str, Path],
    work: Workspace,
    users: Known | None = None,
    items: Known | None = None,
    items_from_train: bool = False,
) -> tuple[pd.DataFrame, list[int]]:
    """Read the files of a given split (by the names train, valid, test): rows (user, item, split), and train's users.

    Bad rows: a line that names a user again, or one who is unknown (of valid and test: has no line in train), and an
    unknown item.

    Parameters
    ----------
    files
        Files by split, train first.
    work
        Workspace.
    users, items
        Ids that exist, if that is known from elsewhere.
    items_from_train
        Whether an item of valid and test must be in train.

    Raises
    ------
    DataError
        If a file is not readable, or a line is bad (unless bad rows are skipped).
    """
    parts, train_users = [], {}
    for split, path in files.items():
        lines: dict[int, int] = {}
        user_column, item_column = array("q"), array("q")
        for number, (user, *held) in _read_ids(path, work):
            where = f"{path} line {number}"
            if user in lines:
                work.bad(where, f"user {user} has a line already (line {lines[user]})", "make one line of the two")
            elif users and user not in users.ids and (held or split == SPLITS[0]):
                work.bad(where, f"user {user} is not in {users.where}", "add the user there (without items will do)")
            else:
                lines[user] = number
                if items and (unknown := [item for item in held if item not in items.ids]):
                    problem = f"item {some(unknown)} is not in {items.where}"
                    work.bad(where, problem, "add it there, or correct the line", len(unknown))
                    held = [item for item in held if item in items.ids]
                user_column.extend(repeat(user, len(held)))
                item_column.extend(held)
        columns = {"user": np.array(user_column, dtype=np.int64), "item": np.array(item_column, dtype=np.int64)}
        parts.append(pd.DataFrame(columns).assign(split=split))
        if split == SPLITS[0]:
            users, train_users = Known(lines, path.name), lines
            items = Known(set(item_column), path.name) if items_from_train else items
    return pd.concat(parts, ignore_index=True), sorted(train_users)


@dataclass(frozen=True)
class MappedSplit:
    """A split in mapped ids, as CoLaKG writes it, brought back to raw ids.

    Attributes
    ----------
    rows
        user, item, split (train or test), raw ids.
    users, items
        Raw ids in the order of the mapped ones.
    """

    rows: pd.DataFrame
    users: list[str]
    items: list[str]


def read_mapped_split(folder: Path, work: Workspace, licence: str, origin: str) -> MappedSplit:
    """Read ``train.txt`` and ``test.txt`` with ``user_map.txt`` and ``item_map.txt``, and register them.

    Raises
    ------
    DataError
        If a file is not readable, or a line is bad (unless bad rows are skipped).
    """
    names = ("user_map.txt", "item_map.txt", "train.txt", "test.txt")
    paths = [registered(folder / name, licence, origin, work) for name in names]
    users, items = (_read_map(path, work) for path in paths[:2])
    files = {"train": paths[2], "test": paths[3]}
    rows, _ = read_split(files, work, Known(users, names[0]), Known(items, names[1]), items_from_train=True)
    rows = rows.assign(user=rows["user"].map(users), item=rows["item"].map(items)).astype("str")
    return MappedSplit(rows, *([names[mapped] for mapped in sorted(names)] for names in (users, items)))


def _read_map(path: Path, work: Workspace) -> dict[int, str]:
    """Read lines of a raw id and the id it is mapped to: raw ids by mapped ids."""
    found: dict[int, str] = {}
    raw_ids: set[int] = set()
    for number, ids in _read_ids(path, work):
        where = f"{path} line {number}"
        if len(ids) != 2:
            work.bad(where, f"it holds {len(ids)} numbers, expected a raw and a mapped id", "correct the line")
        elif ids[0] in raw_ids or ids[1] in found:
            again = ids[0] if ids[0] in raw_ids else ids[1]
            work.bad(where, f"the id {again} stands in an earlier line, too", "correct the line")
        else:
            raw_ids.add(ids[0])
            found[ids[1]] = str(ids[0])
    return found
