"""Executing notebooks in clean kernels and keeping the executed copies."""

import os
from contextlib import suppress
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
    with suppress(DataError, KeyError, TypeError):
        if storage.read_json(target)["metadata"]["spike_kit_version"] == stamp:
            return
    notebook = nbformat.read(source, as_version=4)
    place = {"metadata": {"path": str(source.parent)}}
    runner = client.NotebookClient(notebook, timeout=1200, resources=place, extra_arguments=["--log-level=ERROR"])
    try:
        runner.execute(env=os.environ | {"SPIKE_KIT_DATASET": dataset})
    except (client.exceptions.CellControlSignal, client.exceptions.DeadKernelError) as error:
        failed = target.with_suffix(".failed.ipynb")
        storage.write_json(failed, notebook)
        raised = isinstance(error, client.exceptions.CellExecutionError)
        said = f"{error.ename}: {error.evalue}" if raised else error
        raise NotebookError(f"{source.name} failed: {said}", f"look at {failed}") from error
    notebook.metadata["spike_kit_version"] = stamp
    storage.write_json(target, notebook)
