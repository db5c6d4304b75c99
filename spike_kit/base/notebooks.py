"""Executing notebooks in clean kernels and keeping the executed copies."""

from __future__ import annotations

import os
import re
from pathlib import Path

from spike_kit.base import storage
from spike_kit.base.errors import DataError, NotebookError, require

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
"""Folder of the notebooks (in a checkout; a wheel carries none)."""


def execute_notebook(source: Path, target: Path, dataset: str, version: str) -> None:
    """Execute a notebook on a data set and keep the executed copy; a copy of the same version is kept as it is.

    Raises
    ------
    NotebookError
        If a cell fails; the copy up to there is kept under the name ``<target>.failed.ipynb``.
    """
    nbformat, client = require("nbformat", "lab"), require("nbclient", "lab")
    stamp = storage.sha256_text(source.read_text(encoding="utf-8") + version)
    if _stamp_of(target) == stamp:
        return
    notebook = nbformat.read(source, as_version=4)
    runner = client.NotebookClient(
        notebook,
        timeout=1200,
        resources={"metadata": {"path": str(source.parent)}},
        extra_arguments=["--log-level=ERROR"],
    )
    try:
        runner.execute(env=os.environ | {"SPIKE_KIT_DATASET": dataset})
    except (client.exceptions.CellControlSignal, client.exceptions.DeadKernelError) as error:
        failed = target.with_suffix(".failed.ipynb")
        _write(failed, nbformat.writes(notebook))
        raise NotebookError(f"{source.name} failed: {_last_words(str(error))}", f"look at {failed}") from error
    notebook.metadata["spike_kit_version"] = stamp
    _write(target, nbformat.writes(notebook))


def _last_words(message: str) -> str:
    """Last line of an error that says something, without terminal colours."""
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", message).splitlines()]
    return next((line for line in reversed(lines) if line), "no message")


def _stamp_of(target: Path) -> str | None:
    """Version an executed copy was made from; none if there is no readable copy."""
    try:
        return storage.read_json(target)["metadata"]["spike_kit_version"]
    except (DataError, KeyError, TypeError):
        return None


def _write(target: Path, text: str) -> None:
    with storage.atomic_file(target) as temporary:
        temporary.write_text(text, encoding="utf-8")
