"""Where an export may be written."""

from __future__ import annotations

from pathlib import Path

from spike_kit.base import paths
from spike_kit.base.errors import DataError
from spike_kit.data.dataset import Dataset


def check_free(data: Dataset, folder: Path, overwrite: bool) -> None:
    """Check that an export may take the place of a folder.

    Raises
    ------
    DataError
        If it is a file, holds a data set, or is not empty (unless ``overwrite``).
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise DataError(f"{folder} is a file, expected a folder", "choose another folder")
    if (folder / paths.MANIFEST).exists() or data.path.resolve().is_relative_to(folder.resolve()):
        raise DataError(f"{folder} holds a data set; it is not replaced", "choose another folder")
    if any(folder.iterdir()) and not overwrite:
        raise DataError(f"{folder} is not empty; it is not replaced", "choose another folder, or overwrite it")
