"""The files of rows in KGAT's format: interactions (``user item item ...``) and triples (``head relation tail``)."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import islice, repeat
from pathlib import Path

import numpy as np
import pandas as pd

from spike_kit.base.errors import DataError, some
from spike_kit.data.lists import read_lists
from spike_kit.data.raw import Delimited, Field, open_text
from spike_kit.data.sources.kgat_lists import LIST_FILES, Bound, Names
from spike_kit.data.tables import SPLITS
from spike_kit.data.workspace import Workspace

LICENCE = "that of the data underneath (Amazon, Last.fm, Yelp): for research, not to be passed on or sold"

ORIGIN = "a folder in KGAT's format"

TRAIN = SPLITS[0]

TRIPLES = "kg_final.txt"
"""Name of the file of triples."""


@dataclass(frozen=True)
class Bounds:
    """Sizes that are known from elsewhere; ids beyond them are bad, and ids below them exist even if no file uses them.

    Attributes
    ----------
    users, items, entities
        Number of each (items are entities), if it is known.
    """

    users: Bound | None = None
    items: Bound | None = None
    entities: Bound | None = None


@dataclass(frozen=True)
class _Lines(Delimited):
    """A text file as one column; blank lines are rows, too."""

    separator: str = "\x01"
    names: tuple[str, ...] = ("line",)
    quoting: bool = False

    def line_of(self, ordinal: int) -> tuple[int, str]:
        """Line number and text of the row with this ordinal, both from 1."""
        with open_text(self.path) as file:
            return ordinal, next(islice(file, ordinal - 1, None), "")


def read_interactions(folder: Path, work: Workspace, bounds: Bounds) -> tuple[pd.DataFrame, np.ndarray]:
    """Read train, valid and test: their rows (user, item, split), and the ids of the users."""
    parts = []
    known: dict[int, int] = {}
    for split in SPLITS:
        path = folder / f"{split}.txt"
        if (split == SPLITS[1] and not path.exists()) or (split != TRAIN and _is_empty(path)):
            continue
        user_column, item_column, lines = array("q"), array("q"), {}
        for number, (user, *items) in read_lists(path, work):
            where = f"{path} line {number}"
            if user in lines:
                work.bad(where, f"user {user} has a line already (line {lines[user]})", "make one line of the two")
            elif bounds.users and user >= bounds.users[0]:
                work.bad(where, f"user {user} is not in {bounds.users[1]}", "complete that file")
            elif split != TRAIN and user not in known:
                work.bad(where, f"user {user} has no line in train.txt", "add one (it may do without items)")
            else:
                lines[user] = number
                kept = _within(where, items, bounds.items, work)
                user_column.extend(repeat(user, len(kept)))
                item_column.extend(kept)
        if split == TRAIN:
            known = lines
            if not known:
                raise DataError(f"{path} holds no user", "check that it is the right file")
        columns = {"user": np.array(user_column, dtype=np.int64), "item": np.array(item_column, dtype=np.int64)}
        parts.append(pd.DataFrame(columns).assign(split=split))
        work.register(path, LICENCE, ORIGIN)
    work.origins |= {"interactions": "train.txt", "users": "train.txt"}
    return pd.concat(parts, ignore_index=True), _user_ids(folder / "train.txt", known, bounds.users, work)


def _is_empty(path: Path) -> bool:
    return path.is_file() and not path.stat().st_size


def _within(where: str, items: list[int], bound: Bound | None, work: Workspace) -> list[int]:
    """Items of a line that are no larger than they may be."""
    beyond = [item for item in items if bound and item >= bound[0]]
    if not bound or not beyond:
        return items
    work.bad(where, f"item {some(beyond)} is not in {bound[1]}", "complete that file", len(beyond))
    return [item for item in items if item < bound[0]]


def _user_ids(path: Path, known: Iterable[int], bound: Bound | None, work: Workspace) -> np.ndarray:
    """Ids of the users, ascending; those of ``bound`` that follow the last one of train have no interactions."""
    users = np.array(sorted(known), dtype=np.int64)
    size = int(users[-1]) + 1
    if n_missing := size - len(users):
        first = np.setdiff1d(np.arange(min(size, len(users) + 10)), users)[:10]
        shown = f"{', '.join(map(str, first))}{' ...' if n_missing > len(first) else ''}"
        problem = f"users {shown} have no line ({n_missing} are missing; users must count 0 to {size - 1})"
        work.bad(str(path), problem, "give each a line (it may do without items)", n_missing)
    return np.concatenate([users, np.arange(size, bound[0])]) if bound else users


def size(what: str, path: Path, used: Collection[int]) -> int:
    """Number of ids if the largest of ``used`` is the last one.

    Raises
    ------
    DataError
        If next to none of the ids up to the largest are used: they do not count from 0 then.
    """
    size = max(used, default=-1) + 1
    if size > _SMALL and size > 10 * len(used):
        raise DataError(
            f"{path}: the largest {what} id is {size - 1}, but only {len(used)} ids are used",
            f"{what} ids must count from 0; these seem to be those of another source",
        )
    return size


_SMALL = 100_000

_TRIPLE = r"[ \t]*([0-9]{1,15})[ \t]+([0-9]{1,15})[ \t]+([0-9]{1,15})[ \t]*"


def _part(group: int) -> str:
    """SQL of the first, second or third number of a line."""
    return f"TRY_CAST(regexp_extract(line, '^{_TRIPLE}$', {group}) AS BIGINT)"


def read_triples(
    folder: Path,
    work: Workspace,
    n_items: int,
    bound: Bound | None,
    entity_names: Names | None,
    relation_names: Names | None,
) -> tuple[int, int]:
    """Read the triples into the table ``kg_final``; returns the number of entities and of relations."""
    path = folder / TRIPLES
    n_relations = 0
    if bound is None and entity_names is not None:
        known = set(entity_names) | set(range(n_items))
        bound = (size("entity", folder / LIST_FILES["entity"], known), LIST_FILES["entity"])
    faults = [
        (
            f"trim(line, ' \t') <> '' AND NOT regexp_full_match(line, '{_TRIPLE}')",
            "it is not a triple of ids (head relation tail)",
        )
    ]
    if bound:
        faults.append((f"greatest({_part(1)}, {_part(3)}) >= {bound[0]}", f"an entity is not in {bound[1]}"))
    if relation_names is not None:
        n_relations = size("relation", folder / LIST_FILES["relation"], set(relation_names))
        faults.append((f"{_part(2)} >= {n_relations}", f"the relation is not in {LIST_FILES['relation']}"))
    work.read(
        _Lines(path),
        "kg_final",
        {"line": Field("line", "text")},
        faults=faults,
        extra={name: _part(number) for number, name in enumerate(("head", "relation", "tail"), 1)},
        remedy="correct the line",
    )
    work.register(path, LICENCE, ORIGIN)
    if not work.value("SELECT count(head) FROM kg_final"):
        raise DataError(f"{path} holds no triple", "check that it is the right file")
    if relation_names is None:
        n_relations = size("relation", path, _ids(work, "SELECT DISTINCT relation FROM kg_final"))
    if bound:
        return max(bound[0], n_items), n_relations
    nodes = _ids(work, "SELECT head FROM kg_final UNION SELECT tail FROM kg_final")
    return size("entity", path, nodes | set(range(n_items))), n_relations


def _ids(work: Workspace, sql: str) -> set[int]:
    return {row[0] for row in work.db.execute(sql).fetchall() if row[0] is not None}
