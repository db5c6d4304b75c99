"""Results that live in the repository: what is left of finished runs when their folders are not there.

``docs/study/<data set>/`` holds ``runs.parquet`` (one row per run: configuration, metrics, environment, as JSON) and
``per_user.parquet`` (split, user, number of train interactions, and NDCG@20 of every run in steps of 1/65535; no raw
ids). Weights and learning curves stay behind.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from spike_kit.base import paths, storage
from spike_kit.base.errors import DataError
from spike_kit.data.dataset import Dataset
from spike_kit.evaluation.groups import train_interactions
from spike_kit.experiments import run_folder
from spike_kit.experiments.run import data_version, finished_runs
from spike_kit.experiments.run_folder import Run
from spike_kit.training.loop import MONITOR

ROOT = Path(__file__).resolve().parent.parent.parent / "docs" / "study"
"""Where the tables live."""

RUNS, PER_USER = "runs.parquet", "per_user.parquet"

_STEPS = 65_535
"""NDCG is kept as a whole number of so many parts."""

_TRAIN = "train"
"""Column of the numbers of train interactions."""

_PARTS = ("config", "metrics", "environment")


@dataclass(frozen=True)
class ArchivedRun(Run):
    """A run of which only the tables are left; it reads like any other, but has no weights and no learning curve."""

    parts: dict[str, Any] = field(default_factory=dict, compare=False)
    values: pd.DataFrame = field(default_factory=pd.DataFrame, compare=False)

    @cached_property
    def config(self) -> dict[str, Any]:
        """What was run."""
        return self.parts["config"]

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """Metrics of both splits, epochs, seconds, memory."""
        return self.parts["metrics"]

    @cached_property
    def environment(self) -> dict[str, Any]:
        """Versions, device and commit."""
        return self.parts["environment"]

    @cached_property
    def history(self) -> pd.DataFrame:
        """Empty: learning curves are not kept."""
        return pd.DataFrame()

    @cached_property
    def per_user(self) -> pd.DataFrame:
        """Split, user, NDCG@20."""
        return self.values

    def tensors(self) -> dict[str, Tensor]:
        """Refuse: weights are not kept.

        Raises
        ------
        DataError
            Always.
        """
        raise DataError(f"the weights of {self.path.name} are not kept in {self.path.parent}", "train it again")


def write_archive(runs: Sequence[Run], data: Dataset, folder: Path | None = None) -> Path:
    """Write the tables of finished runs of one data set; those of an earlier archive are replaced.

    Parameters
    ----------
    runs
        The runs.
    data
        Their data set.
    folder
        Where; default: that of their data set in `ROOT`.

    Raises
    ------
    DataError
        If there are no runs, or not all of the study as it is.
    """
    builds = {(run.config["dataset"], run.config["data_sha256"]) for run in runs}
    if builds != {(data.name, data_version(data))}:
        raise DataError(f"not all runs are of {data.name} as it is built now", "give those of one build of one study")
    target = folder or ROOT / runs[0].config["dataset"]
    rows = [{"run": run.path.name, **{part: json.dumps(getattr(run, part)) for part in _PARTS}} for run in runs]
    columns = {}
    for run in runs:
        values = run.per_user.set_index(["split", "user"])[MONITOR]
        columns[run.path.name] = (values * _STEPS).round().astype("UInt16")
    with storage.storage_errors(target):
        target.mkdir(parents=True, exist_ok=True)
    per_user = pd.DataFrame(columns).reset_index()
    per_user.insert(2, _TRAIN, train_interactions(data).reindex(per_user["user"], fill_value=0).to_numpy())
    for name, table, numbers in ((PER_USER, per_user, list(columns)), (RUNS, pd.DataFrame(rows), [])):
        with storage.atomic_file(target / name) as temporary:
            table.to_parquet(
                temporary,
                index=False,
                compression="zstd",
                compression_level=19,
                use_dictionary=False,
                use_byte_stream_split=numbers,
            )
    return target


def read_archive(dataset: str, folder: Path | None = None) -> list[Run]:
    """Runs of a data set in the archive, in its order; none if it has none.

    Raises
    ------
    DataError
        If the files are damaged.
    """
    folder = folder or ROOT / dataset
    if not (folder / RUNS).is_file():
        return []
    table, values = storage.read_parquet(folder / RUNS), storage.read_parquet(folder / PER_USER)
    found: list[Run] = []
    try:
        for row in table.to_dict("records"):
            parts = {part: json.loads(row[part]) for part in _PARTS}
            own = values[["split", "user", row["run"]]].dropna().rename(columns={row["run"]: MONITOR})
            own[MONITOR] = own[MONITOR].astype(np.float64) / _STEPS
            found.append(ArchivedRun(folder / str(row["run"]), parts, own.reset_index(drop=True)))
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise DataError(f"{folder} is damaged: {error!r}", "take the files of the repository again") from error
    return found


def archived_activity(dataset: str, folder: Path | None = None) -> pd.Series:
    """Train interactions of every user that the archive of a data set knows, as `train_interactions` of the study.

    Raises
    ------
    DataError
        If there is no archive, or it is damaged.
    """
    folder = folder or ROOT / dataset
    table = storage.read_parquet(folder / PER_USER)
    if not {"user", _TRAIN} <= set(table):
        raise DataError(f"{folder} is damaged", "take the files of the repository again")
    counts = table.drop_duplicates("user").set_index("user")[_TRAIN].sort_index()
    return counts[counts > 0]


def keep_run(run: Run, data: Dataset, folder: Path | None = None) -> None:
    """Add a finished run to the archive, in the place of one with the same question if there is one.

    Raises
    ------
    DataError
        If the archive holds another build of the data set, or is damaged.
    """
    same = find_kept(run.config, folder)
    if same is not None and same.config == run.config:
        return
    kept = read_archive(data.name, folder)
    question = _question(run.config)
    write_archive([*(other for other in kept if _question(other.config) != question), run], data, folder)


def find_kept(config: Mapping[str, Any], folder: Path | None = None) -> Run | None:
    """The archive's run of a configuration, whatever the version of the code it was made with.

    Raises
    ------
    DataError
        If the archive is damaged.
    """
    where = folder or ROOT / config["dataset"]
    stamps = tuple(file.stat().st_mtime_ns for name in (RUNS, PER_USER) if (file := where / name).is_file())
    return _by_question(where, stamps).get(_question(config))


@lru_cache(maxsize=8)
def _by_question(folder: Path, stamps: tuple[int, ...]) -> dict[str, Run]:  # noqa: ARG001 (read again when they change)
    """Kept runs of a folder by their question."""
    return {_question(run.config): run for run in read_archive(folder.name, folder)}


def known_runs(data: Dataset) -> list[Run]:
    """Finished runs of a data set, with what only the archive has (`with_archived`)."""
    return with_archived(data, finished_runs(data))


def with_archived(data: Dataset, here: Sequence[Run]) -> list[Run]:
    """Runs of this machine; what was not run here is taken from the archive, if it is of the study's present build.

    Two runs are the same one here if they differ in nothing but the declared versions, and the vectors' last bits.
    Seeds of different versions are not averaged: as soon as one seed was run here by another version, the archive's
    other seeds are left out.
    """
    versions: dict[str, set[str]] = {}
    for run in here:
        versions.setdefault(_question(run.config, seed=False), set()).add(_version(run.config))
    known = {_question(run.config) for run in here}
    build = data_version(data)
    return [*here] + [
        run
        for run in read_archive(data.name)
        if run.config["data_sha256"] == build
        and _question(run.config) not in known
        and _version(run.config) in versions.get(_question(run.config, seed=False), {_version(run.config)})
    ]


_VERSIONS = ("versions", "code_sha256", "vectors_sha256")


def _question(config: Mapping[str, Any], seed: bool = True) -> str:
    """What a run answers, whatever the version of the code; that of all its seeds without ``seed``."""
    left_out = _VERSIONS if seed else (*_VERSIONS, "seed")
    return storage.canonical_json({name: value for name, value in config.items() if name not in left_out})


def _version(config: Mapping[str, Any]) -> str:
    """Declared versions, and the vectors."""
    return storage.canonical_json([run_folder.versions(config), config.get("vectors_sha256", "")])


def find_runs(names: Sequence[str]) -> list[Run]:
    """Finished runs by the names or paths of their folders; or, for one data set, all that are known of it.

    Raises
    ------
    DataError
        If there is no such run, or no such data set.
    """
    found: list[Run] = []
    for name in names:
        folders = (paths.runs_root() / name, Path(name))
        folder = next((folder for folder in folders if (folder / run_folder.METRICS).is_file()), None)
        if folder is None and len(names) == 1:
            return known_runs(Dataset.open(name))
        if folder is None:
            where = paths.shown(paths.runs_root())
            raise DataError(f"there is no finished run {name!r}", f"run folders are in {where}")
        found.append(Run(folder))
    return found
