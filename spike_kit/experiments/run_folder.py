"""The run folder: everything one trained model leaves behind, written at once."""

from __future__ import annotations

import html
import platform
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from spike_kit.base import distributed, paths, storage
from spike_kit.base.devices import describe_device
from spike_kit.base.errors import DataError
from spike_kit.data.dataset import Dataset
from spike_kit.evaluation.ranking import HEADLINE, recommendations
from spike_kit.models.base import Recommender

CONFIG, ENVIRONMENT, METRICS = "config.json", "environment.json", "metrics.json"
HISTORY, PER_USER, MODEL = "history.parquet", "per_user.parquet", "model.safetensors"
STATE = "state"
"""Folder in which a run that is not finished keeps what it needs to go on; the finished run takes its place."""

VERSIONS = ("model", "graph", "training", "protocol")
"""Parts of the kit that declare a version: whoever changes the numbers of one raises its version."""


@dataclass(frozen=True)
class Run:
    """A finished run folder."""

    path: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        """What was run: model, data set, settings, seed, and the hashes of everything that went in."""
        return storage.read_json(self.path / CONFIG)

    @cached_property
    def environment(self) -> dict[str, Any]:
        """Versions, device, number of processes, commit, and where an interrupted training went on (``resumed``)."""
        return storage.read_json(self.path / ENVIRONMENT)

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """``valid`` and ``test`` metrics, ``best_epoch``, ``epochs``, ``seconds``, ``peak_gib``, users not ranked.

        ``peak_gib`` is the largest memory while training: of the whole process, or of tensors on a CUDA device.
        """
        return storage.read_json(self.path / METRICS)

    @cached_property
    def history(self) -> pd.DataFrame:
        """One row per epoch (see `spike_kit.training.loop.History`); empty for a model without training."""
        return storage.read_parquet(self.path / HISTORY)

    @cached_property
    def per_user(self) -> pd.DataFrame:
        """Metrics of every ranked user: split, user, and one column per metric."""
        return storage.read_parquet(self.path / PER_USER)

    @property
    def valid(self) -> dict[str, float]:
        """Metrics on validation, by names such as ``ndcg@20``."""
        return self.metrics["valid"]

    @property
    def test(self) -> dict[str, float]:
        """Metrics on test."""
        return self.metrics["test"]

    @cached_property
    def data(self) -> Dataset:
        """The data set it was trained on, as it is built now."""
        return Dataset.open(self.config["dataset"])

    @cached_property
    def model(self) -> Recommender:
        """The trained model, on the CPU.

        Raises
        ------
        DataError
            If its weights are not kept here, or the data set was rebuilt since.
        """
        from spike_kit.experiments.run import load_model

        return load_model(self, self.data)

    def recommend(self, user: int, n: int = 10) -> pd.DataFrame:
        """Best n items for a user, without those of train and validation, by name; and which of them test holds."""
        return recommendations(self.data, self.model, user, n)

    def summary(self) -> str:
        """Folder, metrics of both splits, and who could not be ranked, in a few lines."""
        lines = [paths.shown(self.path)]
        for split in ("valid", "test"):
            shown = "  ".join(f"{name} {self.metrics[split][name]:.4f}" for name in HEADLINE)
            lines.append(f"{split:5}  {shown}  ({self.metrics['users_ranked'][split]} users)")
        if without := self.metrics["users_without_train"]:
            lines.append(f"not ranked, because they have no train interaction: {without} users")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(self.summary())}</pre>"

    def tensors(self) -> dict[str, Tensor]:
        """Stored tensors of the model.

        Raises
        ------
        DataError
            If the file is missing (an archive keeps no weights) or is not safetensors.
        """
        file = self.path / MODEL
        try:
            return load_file(file)
        except (OSError, SafetensorError) as error:
            raise DataError(f"the weights of {self.path.name} cannot be read: {error}", "train it again") from error


def run_path(config: dict[str, Any]) -> Path:
    """Folder of a run: ``<model>-<dataset>-<hash>-s<seed>``; equal settings, data, vectors and versions, equal hash."""
    identity = storage.sha256_text(storage.canonical_json(config))[:12]
    return paths.runs_root() / f"{config['model']}-{config['dataset']}-{identity}-s{config['seed']}"


def versions(config: Mapping[str, Any]) -> dict[str, int]:
    """Declared versions that a run was made with; runs from before versions were declared count as version 1."""
    return config.get("versions") or dict.fromkeys(VERSIONS, 1)


def find_run(config: dict[str, Any]) -> Run | None:
    """Return the finished run with exactly this configuration, if there is one."""
    path = run_path(config)
    if (path / METRICS).is_file():
        return Run(path)
    # Before versions were declared, a hash over the source files was part of the name.
    for file in sorted(paths.runs_root().glob(f"{config['model']}-{config['dataset']}-*-s{config['seed']}/{METRICS}")):
        old = dict(Run(file.parent).config)
        if old.pop("code_sha256", None) and old | {"versions": versions(old)} == config:
            return Run(file.parent)
    return None


def list_runs(dataset: str | None = None) -> list[Run]:
    """All finished runs, oldest first; of one data set if given."""
    files = paths.runs_root().glob(f"{paths.VISIBLE}/{METRICS}")
    runs = [Run(file.parent) for file in sorted(files, key=lambda file: (file.stat().st_mtime, file))]
    return [run for run in runs if dataset is None or run.config["dataset"] == dataset]


@contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Keep other processes from training the run at ``path`` meanwhile; released with the process, however it ends.

    The lock stands beside the folder and goes once the run is there, so whoever takes it must look for the run again.

    Raises
    ------
    DataError
        If another process holds it.
    """
    lock = path.with_name(f".{path.name}.lock")
    with storage.exclusive(lock, f"another process is training {path.name}"):
        try:
            yield
        finally:
            for folder in (path / STATE, path):
                with suppress(OSError):
                    folder.rmdir()
        with suppress(OSError):
            lock.unlink()


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, device, threads, commit and date (UTC) of this process, and how many train together."""
    packages = ("spike_kit", "torch", "numpy", "pandas", "pyarrow")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: metadata.version(name) for name in packages},
        "device": describe_device(device),
        "threads": torch.get_num_threads(),
        "world_size": distributed.size(),
        "commit": commit(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def commit() -> str | None:
    """Commit of the checkout this package runs from, ``+`` if the package differs from it; none outside a checkout."""
    package = Path(__file__).resolve().parents[1]
    if not (package.parent / ".git").exists():
        return None
    git = ["git", "--no-optional-locks", "-C", str(package)]
    try:
        head, differences = (
            subprocess.run([*git, *words], capture_output=True, text=True, timeout=20, check=True).stdout.strip()
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--", "."))
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{head}+" if differences else head
