"""A data-set folder in the format of another toolkit; the readers of the same names read it back."""

from __future__ import annotations

from pathlib import Path

from spike_kit.base import paths, storage
from spike_kit.base.errors import DataError, lookup
from spike_kit.data.dataset import Dataset
from spike_kit.data.sources import SOURCES

FORMATS = {name: source.write for name, source in SOURCES.items() if source.write}
"""Writers by the name of their format: every reader that has one."""


def export(
    data: Dataset,
    name: str,
    folder: Path,
    *,
    merge_valid: bool = False,
    vectors: tuple[str, str] = ("template", "all-MiniLM-L6-v2"),
    overwrite: bool = False,
) -> Path:
    """Write a data set in a format of `FORMATS`; all files or none.

    Parameters
    ----------
    data
        The data set.
    name
        Name of the format.
    folder
        Folder to write.
    merge_valid, vectors
        See `spike_kit.data.recipes.Source`.
    overwrite
        Replace a folder that is not empty.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    ConfigError
        If there is no such format.
    DataError
        If the folder is a file, holds a data set or is not empty (unless ``overwrite``), the vectors are missing, or
        the format cannot hold something.
    StorageError
        If the disk is full.
    """
    write = lookup(FORMATS, name, "format")
    if folder.exists():
        if not folder.is_dir():
            raise DataError(f"{folder} is a file, expected a folder", "choose another folder")
        if (folder / paths.MANIFEST).exists() or data.path.resolve().is_relative_to(folder.resolve()):
            raise DataError(f"{folder} holds a data set; it is not replaced", "choose another folder")
        if any(folder.iterdir()) and not overwrite:
            raise DataError(f"{folder} is not empty; it is not replaced", "choose another folder, or overwrite it")
    with storage.atomic_folder(folder) as temporary:
        write(data, temporary, merge_valid, vectors)
    return folder
