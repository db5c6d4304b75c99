"""A data-set folder as RecBole atomic files (Zhao et al., CIKM 2021), with its split as RecBole's benchmark files.

Besides RecBole's own files it writes ``.ent`` and ``.rel`` with the names of entities and relations;
`spike_kit.data.sources.recbole` reads all of it back exactly. Reviews, profiles and vectors stay with the study.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from spike_kit.base import storage
from spike_kit.base.errors import DataError
from spike_kit.data.dataset import Dataset
from spike_kit.data.formats.target import check_free
from spike_kit.data.tables import SPLITS, Tables
from spike_kit.data.text import clean, plain

MAX_TIMESTAMP = 2**53
"""Largest timestamp that a field of the type float holds exactly."""

_BATCH_ROWS = 500_000
_JOINER = "\u2060"
MISSING = frozenset(
    "#N/A|#N/A N/A|#NA|-1.#IND|-1.#QNAN|-NaN|-nan|1.#IND|1.#QNAN|<NA>|N/A|NA|NULL|NaN|None|n/a|nan|null".split("|")  # noqa: SIM905
)
"""Tokens that RecBole takes for a missing value (it reads with the defaults of pandas)."""


def export_recbole(data: Dataset, folder: Path, overwrite: bool = False) -> Path:
    """Write a data set as RecBole atomic files ``<name>.train.inter``, ``.item``, ``.kg``, ...; all of them or none.

    Titles and descriptions are read back through `spike_kit.data.text.plain`; the few that would change under it are
    written with escaped ``&`` or with invisible word joiners.

    Parameters
    ----------
    data
        The study.
    folder
        Folder for the files.
    overwrite
        Replace a folder that is not empty.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    DataError
        If the folder is not empty or holds a data set, or something cannot be held by the format: an id that RecBole
        takes for a quoted or a missing value, a text that is no clean line, an infinite rating, a timestamp beyond
        `MAX_TIMESTAMP`.
    StorageError
        If the disk is full.
    """
    check_free(data, folder, overwrite)
    tables = data.tables
    _check_ids(tables)
    _check_numbers(tables.interactions)
    with storage.atomic_folder(folder) as temporary:
        _write_tables(tables, temporary, data.name)
    return folder


def _check_ids(tables: Tables) -> None:
    """Refuse ids that RecBole would not read as they are."""
    for name in ("users", "entities", "relations"):
        for source_id in getattr(tables, name)["source_id"]:
            if source_id.startswith('"') or source_id in MISSING:
                what = "the start of a quoted value" if source_id.startswith('"') else "a missing value"
                raise DataError(
                    f"table {name}: RecBole takes the id {source_id!r} for {what}", "rename it in the raw files"
                )


def _check_numbers(interactions: pd.DataFrame) -> None:
    infinite = np.flatnonzero(np.isinf(interactions["rating"].to_numpy()))
    if len(infinite):
        raise DataError(f"table interactions row {infinite[0]}: the rating is infinite", "correct the raw files")
    stamps = interactions["timestamp"].dropna()
    beyond = stamps[(stamps > MAX_TIMESTAMP) | (stamps < -MAX_TIMESTAMP)]
    if len(beyond):
        raise DataError(
            f"table interactions row {beyond.index[0]}: the timestamp {beyond.iloc[0]} is too large for a float",
            "build the study with timestamps in seconds",
        )


def _write_tables(tables: Tables, folder: Path, name: str) -> None:
    items, entities, relations = tables.items, tables.entities, tables.relations
    users, nodes = _ids(tables.users), _ids(entities)
    auxiliary = entities.iloc[len(items) :]
    for split in SPLITS:
        part = tables.interactions[tables.interactions["split"] == split]
        header = ("user_id:token", "item_id:token", "rating:float", "timestamp:float")
        _write(folder / f"{name}.{split}.inter", header, _interaction_rows(part, users, nodes))
    _write(
        folder / f"{name}.item",
        ("item_id:token", "title:token_seq", "description:token_seq"),
        zip(items["source_id"], _texts(items, "label"), _texts(items, "description"), strict=True),
    )
    _write(
        folder / f"{name}.user",
        ("user_id:token", "label:token_seq"),
        zip(users, _texts(tables.users, "label"), strict=True),
    )
    triples = _triple_rows(tables.triples, nodes, _ids(relations))
    _write(folder / f"{name}.kg", ("head_id:token", "relation_id:token", "tail_id:token"), triples)
    _write(folder / f"{name}.link", ("item_id:token", "entity_id:token"), ((item, item) for item in items["source_id"]))
    if len(auxiliary):
        _write(
            folder / f"{name}.ent",
            ("entity_id:token", "label:token_seq", "kind:token"),
            zip(auxiliary["source_id"], _texts(auxiliary, "label"), _texts(auxiliary, "kind", clean), strict=True),
        )
    _write(
        folder / f"{name}.rel",
        ("relation_id:token", "label:token_seq", "template:token_seq"),
        zip(relations["source_id"], _texts(relations, "label"), _texts(relations, "template", clean), strict=True),
    )


def _write(path: Path, header: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write("\t".join(header) + "\n")
        file.writelines("\t".join(row) + "\n" for row in rows)


def _ids(table: pd.DataFrame) -> np.ndarray:
    return table["source_id"].to_numpy(dtype=object)


def _interaction_rows(part: pd.DataFrame, users: np.ndarray, items: np.ndarray) -> Iterator[tuple[str, ...]]:
    for start in range(0, len(part), _BATCH_ROWS):
        batch = part.iloc[start : start + _BATCH_ROWS]
        ratings = ["" if rating != rating else repr(rating) for rating in batch["rating"].tolist()]
        stamps = ["" if stamp is pd.NA else str(stamp) for stamp in batch["timestamp"].tolist()]
        yield from zip(users[batch["user"]], items[batch["item"]], ratings, stamps, strict=True)


def _triple_rows(triples: pd.DataFrame, nodes: np.ndarray, relations: np.ndarray) -> Iterator[tuple[str, ...]]:
    for start in range(0, len(triples), _BATCH_ROWS):
        batch = triples.iloc[start : start + _BATCH_ROWS]
        yield from zip(nodes[batch["head"]], relations[batch["relation"]], nodes[batch["tail"]], strict=True)


def _texts(table: pd.DataFrame, column: str, read: Callable[[str], str] = plain) -> Iterator[str]:
    """Texts of a column in a form that ``read`` (what the source does with them) turns back into the same text."""
    for source_id, text in zip(table["source_id"], table[column], strict=True):
        loose = "".join(character if character.isascii() else _JOINER + character for character in text)
        forms = (text, text.replace("&", "&amp;"), loose, _JOINER.join(text))
        marked = (_JOINER + form if text.startswith('"') else form for form in forms)
        found = next((form for form in marked if read(form) == text), None)
        if found is None:
            raise DataError(f"{column} of {source_id!r} is no clean line: {text[:80]!r}", "build the study again")
        yield found
