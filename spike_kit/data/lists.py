"""Files of integer lists, ``user item item ...``: how KGAT, SSLRec and CoLaKG write interactions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from spike_kit.data.workspace import Workspace, check_readable, open_text, unpacking

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
