"""A data-set folder in the format of KGAT (Wang et al., KDD 2019), which KGIN, SSLRec and KGRec read too.

`spike_kit.data.sources.kgat` reads it back: the same ids, splits and triples. Labels, ratings, timestamps, reviews and
profiles have no place in it.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from spike_kit.base import storage
from spike_kit.base.errors import DataError, some
from spike_kit.data.dataset import Dataset
from spike_kit.data.formats.target import check_free
from spike_kit.data.sources.kgat_lists import LIST_FILES
from spike_kit.data.tables import SPLITS, Tables


def export_kgat(data: Dataset, folder: Path, merge_valid: bool = False, overwrite: bool = False) -> Path:
    """Write train.txt, valid.txt, test.txt, kg_final.txt and the four lists of original ids; all of them or none.

    Parameters
    ----------
    data
        The study.
    folder
        Folder for the files.
    merge_valid
        Put the validation part into train.txt, since the other codes know two files only; without it there is a
        valid.txt where the study has such a part.
    overwrite
        Replace a folder that is not empty.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    DataError
        If the folder may not be replaced, or an id of the source begins or ends in a blank, which the lists cannot
        hold.
    StorageError
        If the disk is full.
    """
    check_free(data, folder, overwrite)
    tables = data.tables
    n_items = len(tables.items)
    with storage.atomic_folder(folder) as temporary:
        write_rows(tables, temporary, merge_valid)
        _write_list(temporary, "user", tables.users["source_id"])
        items = tables.items["source_id"]
        _write_list(temporary, "item", items, items if not items.str.contains(" ").any() else None)
        _write_list(temporary, "entity", tables.entities["source_id"], first=n_items)
        _write_list(temporary, "relation", tables.relations["source_id"])
    return folder


def write_rows(tables: Tables, folder: Path, merge_valid: bool) -> None:
    """Write the interactions, every user on a line of train.txt, and the triples."""
    interactions = tables.interactions
    splits = interactions["split"]
    if merge_valid:
        splits = splits.replace(SPLITS[1], SPLITS[0])
    for split in SPLITS:
        part = interactions[splits == split]
        if split == SPLITS[1] and part.empty:
            continue
        held = part.groupby("user")["item"].agg(lambda items: " ".join(map(str, items)))
        lines = dict(zip(held.index.tolist(), held.tolist(), strict=True))
        users = range(len(tables.users)) if split == SPLITS[0] else sorted(lines)
        with (folder / f"{split}.txt").open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(f"{user} {lines[user]}\n" if user in lines else f"{user}\n" for user in users)
    tables.triples.to_csv(folder / "kg_final.txt", sep=" ", header=False, index=False, lineterminator="\n")


def _write_list(folder: Path, name: str, ids: pd.Series, second: pd.Series | None = None, first: int = 0) -> None:
    """Write the list of original ids from number ``first`` on, with a second name for each if there is one."""
    bad = ids[ids.str.strip() != ids]
    if len(bad):
        raise DataError(
            f"the format of KGAT cannot hold {name} ids that begin or end in a blank: {some(map(repr, bad))}",
            "rename them in the raw files, or export as recbole",
        )
    header = "org_id remap_id" if second is None else "org_id remap_id freebase_id"
    names = [""] * len(ids) if second is None else [f" {text}" for text in second]
    rows = list(zip(ids, names, strict=True))[first:]
    with (folder / LIST_FILES[name]).open("w", encoding="utf-8", newline="\n") as file:
        file.write(f"{header}\n")
        file.writelines(f"{identifier} {first + place}{text}\n" for place, (identifier, text) in enumerate(rows))
