"""Folders in the format of KGAT (Wang et al., KDD 2019), which KGIN, SSLRec, KGRec and others read too.

``train.txt``, ``test.txt`` and, if there is one, ``valid.txt`` hold a user and their items on each line;
``kg_final.txt`` holds a triple on each line. All are integers that count from 0, the items before the other entities,
apart by blanks or tabs. ``user_list.txt``, ``item_list.txt``, ``entity_list.txt`` and ``relation_list.txt`` name them
where they exist (`spike_kit.data.sources.kgat_names`). With the settings of the recipes, which filter nothing, the ids
of the data set are those of the folder.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from spike_kit.base.errors import DataError, some
from spike_kit.data.dataset import Dataset
from spike_kit.data.lists import Known, read_split
from spike_kit.data.pipeline import BuildConfig
from spike_kit.data.raw import Delimited, Field, open_text
from spike_kit.data.reading import registered
from spike_kit.data.recipes import UNFILTERED, Published, Recipe, Source, WriteOptions
from spike_kit.data.sources.kgat_names import LIST_FILES, Names, label, read_names, read_titles, source_ids, write_list
from spike_kit.data.tables import SPLITS
from spike_kit.data.workspace import Workspace

LICENCE = "that of the data underneath (Amazon, Last.fm, Yelp): for research, not to be passed on or sold"
ORIGIN = "a folder in KGAT's format"

AS_IT_IS: dict[str, Any] = {**UNFILTERED, "split": "given"}
"""Settings that filter nothing and keep the split."""

TRAIN, TRIPLES = "train.txt", "kg_final.txt"

_SMALL = 100_000
_TRIPLE = r"[ \t]*([0-9]{1,15})[ \t]+([0-9]{1,15})[ \t]+([0-9]{1,15})[ \t]*"


class KgatConfig(BuildConfig):
    """Settings of a build from a folder in KGAT's format."""

    names: Path | None = None
    """Titles of the items: a file with an original id, a tab and a title on each line, without a header."""


@dataclass(frozen=True)
class Bounds:
    """Ids that are known from elsewhere: others are bad, and these exist even if no file uses them."""

    users: Known | None = None
    items: Known | None = None
    entities: Known | None = None


@dataclass(frozen=True)
class _Lines(Delimited):
    """A text file as one column; blank lines are rows, too."""

    separator: str = "\x01"
    names: tuple[str, ...] = ("line",)
    quoting: bool = False

    def rows(self, name: str = "") -> Iterator[tuple[int, str, Any]]:
        """All lines."""
        del name
        with open_text(self.path) as file:
            yield from ((number, line, line) for number, line in enumerate(file, 1))


def parse(folder: Path, config: KgatConfig, work: Workspace) -> None:
    """Parse a folder.

    Raises
    ------
    DataError
        If a file is missing, damaged or holds a bad row.
    """
    load(folder, config, work, titles=config.names)


def load(
    folder: Path, config: BuildConfig, work: Workspace, bounds: Bounds | None = None, titles: Path | None = None
) -> np.ndarray:
    """Put a folder into a workspace.

    Parameters
    ----------
    folder, config, work
        As for `parse`.
    bounds
        Ids that are known from elsewhere.
    titles
        File with titles of the items (`KgatConfig.names`).

    Returns
    -------
    ndarray
        Ids ``[U]`` of the users that were put, ascending: 0 to U-1, unless users that are missing were skipped.

    Raises
    ------
    DataError
        If a file is missing, damaged or holds a bad row.
    """
    bounds = bounds or Bounds()
    rows, users = _read_interactions(folder, work, bounds)
    names: dict[str, Names] = {}
    known = {"user": Known(range(int(users[-1]) + 1), TRAIN), "item": bounds.items, "entity": bounds.entities}
    for what, file in LIST_FILES.items():
        if (folder / file).exists():
            names[what] = read_names(registered(folder / file, LICENCE, ORIGIN, work), work, known.get(what))
    used_items = {*rows["item"].unique().tolist(), *names.get("item", ())}
    n_items = len(bounds.items.ids) if bounds.items else _size("item", folder / TRAIN, used_items)
    listed = bounds.entities
    if listed is None and "entity" in names:
        file = LIST_FILES["entity"]
        listed = Known(range(_size("entity", folder / file, {*names["entity"], *range(n_items)})), file)
    n_entities, n_relations = _read_triples(folder, work, n_items, listed, names.get("relation"))
    others = range(n_items if "item" in names else 0, n_entities)
    complete = {"user": users.tolist(), "item": range(n_items), "entity": others, "relation": range(n_relations)}
    for what, found in names.items():
        if missing := [number for number in complete[what] if number not in found]:
            problem = f"it does not name the {what} ids {some(missing)}"
            work.bad(str(folder / LIST_FILES[what]), problem, "add a line for each", len(missing))

    _put_nodes(work, users, (n_items, n_entities), names, titles)
    kinds = ["relation"] * n_relations
    relations = _named(work, "relation_ids", range(n_relations), names.get("relation", {}), kinds)
    templates = "{head} is linked to {tail} by " + relations["label"] + "."
    work.put("relations", relations.rename(columns={"id": "relation"}).assign(template=templates))
    work.origins["relations"] = LIST_FILES["relation"]
    _put_rows(work, rows)
    if config.split == "given" and config.valid and not (rows["split"] == SPLITS[1]).any():
        work.notes.append(
            f"the source has no validation file (valid.txt): {config.valid:g} of each user's train interactions were "
            "taken out of train for validation"
        )
    return users


def _read_interactions(folder: Path, work: Workspace, bounds: Bounds) -> tuple[pd.DataFrame, np.ndarray]:
    """Read train, valid and test: their rows (user, item, split), and the ids of the users, ascending.

    Users of ``bounds`` that follow the last one of train have no interactions.
    """
    files = {split: folder / f"{split}.txt" for split in SPLITS}
    for split in SPLITS[1:]:
        path = files[split]
        if (path.is_file() and not path.stat().st_size) or (split == SPLITS[1] and not path.exists()):
            del files[split]
    for path in files.values():
        registered(path, LICENCE, ORIGIN, work)
    rows, known = read_split(files, work, bounds.users, bounds.items)
    work.origins |= {"interactions": TRAIN, "users": TRAIN}
    if not known:
        raise DataError(f"{folder / TRAIN} holds no user", "check that it is the right file")
    users = np.array(known, dtype=np.int64)
    size = known[-1] + 1
    if n_missing := size - len(users):
        first = np.setdiff1d(np.arange(min(size, len(users) + 10)), users)[:10]
        shown = f"{', '.join(map(str, first))}{' ...' if n_missing > len(first) else ''}"
        problem = f"users {shown} have no line ({n_missing} are missing; users must count 0 to {size - 1})"
        work.bad(str(folder / TRAIN), problem, "give each a line (it may do without items)", n_missing)
    return rows, np.concatenate([users, np.arange(size, len(bounds.users.ids))]) if bounds.users else users


def _size(what: str, path: Path, used: Collection[int]) -> int:
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


def _part(group: int) -> str:
    """SQL of the first, second or third number of a line."""
    return f"TRY_CAST(regexp_extract(line, '^{_TRIPLE}$', {group}) AS BIGINT)"


def _read_triples(
    folder: Path, work: Workspace, n_items: int, known: Known | None, relation_names: Names | None
) -> tuple[int, int]:
    """Read the triples into the table ``kg_final``; returns the number of entities and of relations."""
    path = registered(folder / TRIPLES, LICENCE, ORIGIN, work)
    blank, triple = "trim(line, ' \t') = ''", f"regexp_full_match(line, '{_TRIPLE}')"
    faults = [(f"NOT ({blank} OR {triple})", "it is not a triple of ids (head relation tail)")]
    if known:
        faults.append((f"greatest({_part(1)}, {_part(3)}) >= {len(known.ids)}", f"an entity is not in {known.where}"))
    n_relations = _size("relation", folder / LIST_FILES["relation"], set(relation_names or ()))
    if relation_names is not None:
        faults.append((f"{_part(2)} >= {n_relations}", f"the relation is not in {LIST_FILES['relation']}"))
    columns = {name: _part(number) for number, name in enumerate(("head", "relation", "tail"), 1)}
    work.read(_Lines(path), "kg_final", {"line": Field("line", "text")}, faults, columns, remedy="correct the line")
    if not work.value("SELECT count(head) FROM kg_final"):
        raise DataError(f"{path} holds no triple", "check that it is the right file")
    if relation_names is None:
        n_relations = _size("relation", path, _ids(work, "SELECT DISTINCT relation FROM kg_final"))
    if known:
        return max(len(known.ids), n_items), n_relations
    nodes = _ids(work, "SELECT head FROM kg_final UNION SELECT tail FROM kg_final")
    return _size("entity", path, nodes | set(range(n_items))), n_relations


def _ids(work: Workspace, sql: str) -> set[int]:
    return {row[0] for row in work.db.execute(sql).fetchall() if row[0] is not None}


def _named(work: Workspace, table: str, numbers: Sequence[int], names: Names, kinds: Sequence[str]) -> pd.DataFrame:
    """Choose ids and labels by number, into a frame and a table (number, id, label).

    Whatever has no name of its own is called by its kind and number.
    """
    named = [names.get(number, ()) for number in numbers]
    fallbacks = [f"{kind}:{number}" for kind, number in zip(kinds, numbers, strict=True)]
    ids = source_ids([name[0] if name else None for name in named], fallbacks)
    frame = pd.DataFrame({"number": numbers, "id": ids, "label": list(map(label, named, ids))})
    work.table(table, frame)
    return frame


def _put_nodes(
    work: Workspace, user_ids: np.ndarray, sizes: tuple[int, int], names: Mapping[str, Names], titles: Path | None
) -> None:
    """Put users, and items and entities (of which there are so many), under their names."""
    n_items, n_entities = sizes
    users = _named(work, "user_ids", user_ids.tolist(), names.get("user", {}), ["user"] * len(user_ids))
    work.put("users", users.rename(columns={"id": "user"}))
    items, others = names.get("item", {}), names.get("entity", {})
    both = {node: items.get(node, ()) + others.get(node, ()) for node in range(n_entities)}
    kinds = ["item"] * n_items + ["entity"] * (n_entities - n_items)
    nodes = _named(work, "node_ids", range(n_entities), both, kinds)
    if titles:
        _entitle(work, titles, [both[item] for item in range(n_items)], nodes)
    work.put("items", nodes[:n_items].rename(columns={"id": "item"}))
    work.put("entities", nodes[n_items:].rename(columns={"id": "entity"}).assign(kind="entity"))
    work.origins |= {"items": LIST_FILES["item"], "entities": LIST_FILES["entity"]}


def _entitle(work: Workspace, path: Path, named: Sequence[tuple[str, ...]], nodes: pd.DataFrame) -> None:
    """Replace the labels of the items by their titles."""
    titles = read_titles(registered(path, LICENCE, "titles of the items", work), work)
    found = {item: titles[name] for item, names in enumerate(named) if (name := next(filter(titles.get, names), None))}
    if not found:
        raise DataError(f"{path} names no item of the folder", "its first column must hold the original ids of items")
    nodes.loc[list(found), "label"] = list(found.values())


def _put_rows(work: Workspace, rows: pd.DataFrame) -> None:
    """Put interactions and triples, under source ids."""
    work.table("rows_read", rows)
    work.db.execute(
        """INSERT INTO interactions ("user", item, split) SELECT u.id, i.id, split FROM rows_read
           JOIN user_ids AS u ON u.number = "user" JOIN node_ids AS i ON i.number = item"""
    )
    work.db.execute(
        """INSERT INTO triples SELECT h.id, r.id, t.id FROM kg_final JOIN node_ids AS h ON h.number = head
           JOIN relation_ids AS r ON r.number = relation JOIN node_ids AS t ON t.number = tail"""
    )


def write(data: Dataset, folder: Path, options: WriteOptions) -> None:
    """Write train.txt, valid.txt, test.txt, kg_final.txt and the four lists of original ids.

    Labels, ratings, timestamps, reviews and profiles have no place in them.

    Raises
    ------
    DataError
        If an id of the source begins or ends in a blank, which the lists cannot hold.
    """
    tables = data.tables
    write_rows(data, folder, options.merge_valid)
    items = tables.items["source_id"]
    write_list(folder, "user", tables.users["source_id"])
    write_list(folder, "item", items, items if not items.str.contains(" ").any() else None)
    write_list(folder, "entity", tables.entities["source_id"][len(items) :])
    write_list(folder, "relation", tables.relations["source_id"])


def write_rows(data: Dataset, folder: Path, merge_valid: bool) -> None:
    """Write the interactions, every user on a line of train.txt, and the triples; an empty valid.txt is left out."""
    rows = data.tables.interactions
    splits = rows["split"].replace(SPLITS[1], SPLITS[0]) if merge_valid else rows["split"]
    for split in SPLITS:
        held = rows[splits == split].astype({"item": "str"}).groupby("user")["item"].agg(" ".join)
        if split == SPLITS[0]:
            held = held.reindex(range(len(data.tables.users)), fill_value="")
        if len(held) or split != SPLITS[1]:
            with (folder / f"{split}.txt").open("w", encoding="utf-8", newline="\n") as file:
                file.writelines(f"{user} {items}".rstrip() + "\n" for user, items in held.items())
    data.tables.triples.to_csv(folder / TRIPLES, sep=" ", header=False, index=False, lineterminator="\n")


_PAPER = "Table 1 of the KGAT paper"
_KGAT = KgatConfig(**AS_IT_IS)

SOURCE = Source(
    parse,
    {
        "kgat": Recipe(_KGAT, "any folder in the format of KGAT, KGIN, SSLRec or KGRec"),
        "kgat-amazon-book": Recipe(
            _KGAT,
            "Amazon-book of KGAT: books with facts of Freebase",
            Published(_PAPER, 70_679, 24_915, 847_733, 88_572, 39, 2_557_746),
            ("amazon-book",),
        ),
        "kgat-last-fm": Recipe(
            _KGAT,
            "Last-FM of KGAT: songs with facts of Freebase",
            Published(_PAPER, 23_566, 48_123, 3_034_796, 58_266, 9, 464_567),
            ("last-fm",),
        ),
        "kgat-yelp2018": Recipe(
            _KGAT,
            "Yelp2018 of KGAT: businesses with their attributes",
            Published(_PAPER, 45_919, 45_538, 1_185_068, 90_961, 42, 1_853_704),
            ("yelp2018",),
        ),
    },
    write=write,
)
"""The reader and the writer, with the data sets of the KGAT paper."""
