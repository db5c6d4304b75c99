"""A data-set folder as the authors' code of SPiKE reads it: KGAT's files of rows and the text vectors as npz."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from spike_kit.base import storage
from spike_kit.base.errors import DataError
from spike_kit.data.dataset import Dataset
from spike_kit.data.formats.kgat import write_rows
from spike_kit.data.formats.target import check_free


def export_spike_release(
    data: Dataset, folder: Path, source: str, encoder: str, *, merge_valid: bool = False, overwrite: bool = False
) -> Path:
    """Write train.txt, valid.txt, test.txt, kg_final.txt and {user,item,entity}_embeddings.npz; all of them or none.

    Parameters
    ----------
    data
        The study.
    folder
        Folder for the files.
    source, encoder
        Profile source and encoder of the vectors.
    merge_valid
        Put the validation part into train.txt (the authors' code knows two files only).
    overwrite
        Replace a folder that is not empty.

    Returns
    -------
    Path
        The folder; the entity file holds the auxiliary entities, ids I..E-1.

    Raises
    ------
    DataError
        If the folder may not be replaced, the study has no such vectors, or its last relations have no triple.
    StorageError
        If the disk is full.
    """
    check_free(data, folder, overwrite)
    last = int(data.triples["relation"].max())
    if last + 1 < len(data.relations):
        raise DataError(
            f"the format cannot hold relations without a triple after the last one that has some: relation {last + 1}",
            "build the study with --min-relation-triples 1",
        )
    vectors = data.vectors(source, encoder)
    n_items = len(data.items)
    parts = {
        "user": (0, vectors.user.numpy()),
        "item": (0, vectors.entity[:n_items].numpy()),
        "entity": (n_items, vectors.entity[n_items:].numpy()),
    }
    with storage.atomic_folder(folder) as temporary:
        write_rows(data.tables, temporary, merge_valid)
        for name, (first, rows) in parts.items():
            ids = np.arange(first, first + len(rows), dtype=np.int64)
            np.savez(temporary / f"{name}_embeddings.npz", ids=ids, embeddings=rows.astype(np.float32))
    return folder
