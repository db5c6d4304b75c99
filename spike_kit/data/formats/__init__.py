"""Formats of other toolkits, written from a data-set folder; the sources of the same names read them back."""

from __future__ import annotations

from pathlib import Path

from spike_kit.base.errors import lookup
from spike_kit.data.dataset import Dataset
from spike_kit.data.formats.kgat import export_kgat
from spike_kit.data.formats.recbole import export_recbole
from spike_kit.data.formats.spike_release import export_spike_release

FORMATS = {"kgat": "KGAT, KGIN, SSLRec, KGRec", "recbole": "RecBole", "spike-release": "the authors' code of SPiKE"}
"""Formats by name, with the codes that read them."""


def export(
    data: Dataset,
    name: str,
    folder: Path,
    *,
    merge_valid: bool = False,
    vectors: tuple[str, str] = ("template", "all-MiniLM-L6-v2"),
    overwrite: bool = False,
) -> Path:
    """Write a data-set folder in a format of `FORMATS`; all files or none.

    Parameters
    ----------
    data
        The study.
    name
        Name of the format.
    folder
        Folder to write.
    merge_valid
        Put the validation part into train, for codes that know two files only (not recbole).
    vectors
        Profile source and encoder whose vectors are written (spike-release only).
    overwrite
        Replace a folder that is not empty.

    Raises
    ------
    ConfigError
        If there is no such format.
    DataError
        If the folder may not be replaced, the vectors are missing, or the format cannot hold something.
    StorageError
        If the disk is full.
    """
    lookup(FORMATS, name, "format")
    if name == "recbole":
        return export_recbole(data, folder, overwrite)
    if name == "kgat":
        return export_kgat(data, folder, merge_valid, overwrite)
    return export_spike_release(data, folder, *vectors, merge_valid=merge_valid, overwrite=overwrite)
