"""Formats of other toolkits, written from a study folder; the sources of the same names read them back."""

from __future__ import annotations

from pathlib import Path

from spike_kit.data.formats.kgat import export_kgat
from spike_kit.data.formats.recbole import export_recbole
from spike_kit.data.formats.spike_release import export_spike_release
from spike_kit.data.study import Study
from spike_kit.errors import lookup

FORMATS = {"kgat": "KGAT, KGIN, SSLRec, KGRec", "recbole": "RecBole", "spike-release": "the authors' code of SPiKE"}
"""Formats by name, with the codes that read them."""


def export(
    study: Study,
    name: str,
    folder: Path,
    *,
    merge_valid: bool = False,
    vectors: tuple[str, str] = ("template", "all-MiniLM-L6-v2"),
    overwrite: bool = False,
) -> Path:
    """Write a study folder in a format of `FORMATS`; all files or none.

    Parameters
    ----------
    study
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
        return export_recbole(study, folder, overwrite)
    if name == "kgat":
        return export_kgat(study, folder, merge_valid, overwrite)
    return export_spike_release(study, folder, *vectors, merge_valid=merge_valid, overwrite=overwrite)
