"""Files of integer lists, ``user item item ...``: how KGAT, SSLRec and CoLaKG write interactions."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from spike_kit.data.raw import check_readable, open_text, unpacking
from spike_kit.data.workspace import Workspace

_DIGITS = 15


def read_lists(path: Path, work: Workspace) -> Iterator[tuple[int, list[int]]]:
    """Read lines of integers: line number and numbers; blank lines are passed over.

    Raises
    ------
    DataError
        If the file is not readable, or a line holds something else than ids (0, 1, 2, ...), unless bad rows are
        skipped.
    """
    check_readable(path)
    with unpacking(path), open_text(path) as file:
        for number, line in enumerate(file, 1):
            parts = line.split()
            broken = next((part for part in parts if not _is_id(part)), None)
            if broken is not None:
                problem = f"{broken[:40]!r} is not an id (0, 1, 2, ...)"
                work.bad(f"{path} line {number}", problem, "correct the line")
            elif parts:
                yield number, [int(part) for part in parts]


def _is_id(part: str) -> bool:
    return part.isascii() and part.isdigit() and len(part) <= _DIGITS


def read_given_lists(files: Mapping[str, Path], work: Workspace) -> pd.DataFrame:
    """Read the files of a given split (by the names train, valid, test): user, item, split.

    Bad rows: a line that names a user again, and a user of valid or test who is not in train.

    Raises
    ------
    DataError
        If a file is not readable, or a line is bad (unless bad rows are skipped).
    """
    train_users: set[int] = set()
    users: list[int] = []
    sizes: list[int] = []
    splits: list[str] = []
    held: list[int] = []
    for split, path in files.items():
        seen: set[int] = set()
        for number, (user, *items) in read_lists(path, work):
            problem = ""
            if user in seen:
                problem = f"user {user} has a line already"
            elif split != "train" and items and user not in train_users:
                problem = f"user {user} is not in {files['train'].name}"
            if problem:
                work.bad(f"{path} line {number}", problem, "correct the line")
                continue
            seen.add(user)
            users.append(user)
            sizes.append(len(items))
            splits.append(split)
            held.extend(items)
        if split == "train":
            train_users = seen
    return pd.DataFrame(
        {
            "user": np.repeat(np.array(users, dtype=np.int64), sizes),
            "item": np.array(held, dtype=np.int64),
            "split": pd.Series(np.repeat(np.array(splits, dtype=object), sizes), dtype="str"),
        }
    )


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
    """Read ``train.txt`` and ``test.txt`` with ``user_map.txt`` and ``item_map.txt``, and register them as sources.

    Raises
    ------
    DataError
        If a file is not readable, or a line is bad (unless bad rows are skipped).
    """
    names = ("user_map.txt", "item_map.txt", "train.txt", "test.txt")
    for name in names:
        check_readable(folder / name)
        work.register(folder / name, licence, origin)
    users, items = _read_map(folder / names[0], work), _read_map(folder / names[1], work)
    train = _read_split(folder / names[2], users, items, "user_map.txt", "item_map.txt", work)
    known_users, known_items = ({row[place] for row in train} for place in (0, 1))
    test = _read_split(folder / names[3], known_users, known_items, "train.txt", "train.txt", work)
    rows = [(users[user], items[item], "train") for user, item in train]
    rows += [(users[user], items[item], "test") for user, item in test]
    return MappedSplit(
        pd.DataFrame(rows, columns=["user", "item", "split"], dtype="str"),
        [users[mapped] for mapped in sorted(users)],
        [items[mapped] for mapped in sorted(items)],
    )


def _read_map(path: Path, work: Workspace) -> dict[int, str]:
    """Read lines of a raw id and the id it is mapped to: raw ids by mapped ids."""
    found: dict[int, str] = {}
    raw_ids: set[int] = set()
    for number, ids in read_lists(path, work):
        problem = ""
        if len(ids) != 2:
            problem = f"it holds {len(ids)} numbers, expected a raw and a mapped id"
        elif ids[0] in raw_ids or ids[1] in found:
            problem = f"the id {ids[0] if ids[0] in raw_ids else ids[1]} stands in an earlier line, too"
        if problem:
            work.bad(f"{path} line {number}", problem, "correct the line")
            continue
        raw_ids.add(ids[0])
        found[ids[1]] = str(ids[0])
    return found


def _read_split(
    path: Path,
    users: Container[int],
    items: Container[int],
    users_from: str,
    items_from: str,
    work: Workspace,
) -> list[tuple[int, int]]:
    """Read lines ``user item item ...``; those whose user or item is unknown are bad."""
    rows: list[tuple[int, int]] = []
    seen: set[int] = set()
    for number, (user, *held) in read_lists(path, work):
        where = f"{path} line {number}"
        if user in seen:
            work.bad(where, f"user {user} has a line already", "join the lines")
            continue
        seen.add(user)
        if user not in users:
            work.bad(where, f"user {user} is not in {users_from}", "correct the line")
            continue
        if unknown := [item for item in held if item not in items]:
            work.bad(where, f"item {unknown[0]} is not in {items_from}", "correct the line", len(unknown))
        rows += [(user, item) for item in held if item in items]
    return rows
