"""The whole pipeline in one call: from the package index to a results table, figures and executed notebooks."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from tqdm.auto import tqdm

from spike_kit import __version__
from spike_kit.base import paths, storage
from spike_kit.base.errors import DataError, NotebookError, require
from spike_kit.data.build import open_or_build
from spike_kit.data.dataset import Dataset
from spike_kit.experiments.archive import known_runs
from spike_kit.experiments.run import RunConfig, data_version, run
from spike_kit.experiments.run_folder import Run
from spike_kit.figures.gallery import export_all
from spike_kit.models import find_model
from spike_kit.models.recommender import TrainedRecommender
from spike_kit.profiles.encode import DEFAULT_ENCODER, ensure_vectors
from spike_kit.profiles.template import TEMPLATE, ensure_profiles
from spike_kit.results.frames import results_table
from spike_kit.results.tables import as_markdown

logger = logging.getLogger(__name__)

MODELS = ("popularity", "bprmf", "lightgcn", "spike")
"""Models of the results table."""

RAW = "ml-100k"
"""Source of the demo."""

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
"""Folder of the notebooks (in a checkout; a wheel carries none)."""


def run_demo(
    dataset: str,
    max_users: int | None,
    seeds: int,
    epochs: int | None,
    device: torch.device,
    notebooks: bool,
) -> str:
    """Run every stage that is not done yet.

    Parameters
    ----------
    dataset
        Name of the data-set folder.
    max_users
        Size of a small cut; none takes everyone.
    seeds
        Seeds per model.
    epochs
        Cap on the epochs of every model; none keeps the presets.
    device
        Device of encoder and training.
    notebooks
        Execute the notebooks too.

    Returns
    -------
    str
        Results table, paths of all artefacts, and how to go on.
    """
    started = time.perf_counter()
    data = prepare(dataset, max_users, device)
    cap = {} if epochs is None else {"epochs": epochs}
    finished: list[Run] = []
    for model in MODELS:
        with _stage(f"train {model}"):
            trained = issubclass(find_model(model), TrainedRecommender)
            for seed in range(seeds if trained else 1):
                changes = cap if trained else {}
                finished.append(run(RunConfig(model=model, dataset=dataset, training=changes, seed=seed), device))
    with _stage("figures"):
        drawn = export_all(data, known_runs(data))
        figures = [file for artefact in drawn for file in artefact.files if file.suffix != ".csv"]
    executed = _execute_notebooks(data, dataset) if notebooks else []
    table = results_table(finished)
    run_folders = [done.path for done in finished]
    artefacts = {"study": [data.path], "run": run_folders, "figure": figures, "notebook": executed}
    return "\n".join(
        [
            "",
            f"{data.name}: test split, weights chosen on validation",
            "",
            as_markdown(table),
            "",
            *_artefacts(artefacts),
            *(f"not run    {artefact.name}: {artefact.missing}" for artefact in drawn if artefact.missing),
            "",
            f"finished in {time.perf_counter() - started:.0f} s; open the notebooks in JupyterLab with: make lab",
        ]
    )


def prepare(dataset: str, max_users: int | None, device: torch.device) -> Dataset:
    """Fetch, build, profile and encode, as far as this is not done; an existing data-set folder is kept."""
    with _stage("data"):
        data = open_or_build(dataset, RAW, max_users=max_users)
    with _stage("profiles"):
        ensure_profiles(data)
    with _stage("vectors"):
        ensure_vectors(data, TEMPLATE, DEFAULT_ENCODER, device)
    return data


def execute_notebook(source: Path, target: Path, dataset: str, version: str) -> None:
    """Execute a notebook on a data set in a clean kernel and keep the executed copy; a current copy is kept as it is.

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
    environment = os.environ | {"SPIKE_KIT_DATASET": dataset}
    try:
        runner.execute(env=environment)
    except (client.exceptions.CellControlSignal, client.exceptions.DeadKernelError) as error:
        failed = target.with_suffix(".failed.ipynb")
        _write_notebook(failed, nbformat.writes(notebook))
        raise NotebookError(f"{source.name} failed: {_last_words(str(error))}", f"look at {failed}") from error
    notebook.metadata["spike_kit_version"] = stamp
    _write_notebook(target, nbformat.writes(notebook))


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


def _write_notebook(target: Path, text: str) -> None:
    with storage.atomic_file(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _execute_notebooks(data: Dataset, dataset: str) -> list[Path]:
    sources = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    folder = paths.data_root() / "notebooks" / data.name
    version = data_version(data) + __version__
    targets = [folder / source.name for source in sources]
    logging.getLogger("traitlets").setLevel(logging.WARNING)
    with _stage("notebooks"):
        for source, target in tqdm(list(zip(sources, targets, strict=True)), desc="notebooks", unit="notebook"):
            execute_notebook(source, target, dataset, version)
    return targets


@contextmanager
def _stage(name: str) -> Iterator[None]:
    started = time.perf_counter()
    logger.info("== %s", name)
    yield
    logger.info("   %s: %.1f s", name, time.perf_counter() - started)


def _artefacts(groups: dict[str, list[Path]]) -> list[str]:
    return [f"{name:10} {paths.shown(path)}" for name, files in groups.items() for path in files]
