"""Tables of finished runs: what is left of them when their folders are not there.

The archive of this machine is ``data/archive``; that of the repository, docs/study, is only read unless it is named. In
either, ``<data set>/`` holds ``runs.parquet`` (one row per run: configuration, metrics, environment, as JSON) and
``per_user.parquet`` (split, user, number of train interactions, and NDCG@20 of every run in steps of 1/65535; no raw
ids). Where the task is new items, users' values are kept of the new items of the test split alone. Weights and learning
curves stay behind.
"""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from spike_kit.base import paths, storage
from spike_kit.base.errors import DataError
from spike_kit.data.dataset import Dataset
from spike_kit.evaluation.groups import train_interactions
from spike_kit.experiments.run import METRICS, Run, data_version, finished_runs
from spike_kit.experiments.versions import versions
from spike_kit.training.loop import MONITOR

ROOT = Path(__file__).resolve().parent.parent.parent / "docs" / "study"
"""The archive of the repository."""

RUNS, PER_USER = "runs.parquet", "per_user.parquet"

_STEPS = 65_535
"""NDCG is kept as a whole number of so many parts."""

_TRAIN = "train"
"""Column of the numbers of train interactions."""

_PARTS = ("config", "metrics", "environment")


def own_root() -> Path:
    """The archive of this machine."""
    return paths.data_root() / "archive"


def write_archive(runs: Sequence[Run], data: Dataset, root: Path | None = None) -> Path:
    """Write the tables of finished runs of one data set; those of an earlier archive are replaced.

    Parameters
    ----------
    runs
        The runs.
    data
        Their data set.
    root
        The archive; default: that of this machine.

    Raises
    ------
    DataError
        If there are no runs, or not all of the data set as it is.
    """
    builds = {(run.config["dataset"], run.config["data_sha256"]) for run in runs}
    if builds != {(data.name, data_version(data))}:
        raise DataError(
            f"not all runs are of {data.name} as it is built now", "give those of one build of one data set"
        )
    target = (root or own_root()) / data.name
    rows = [{"run": run.path.name, **{part: json.dumps(getattr(run, part)) for part in _PARTS}} for run in runs]
    columns = {run.path.name: _of_users(run, data.task) for run in runs}
    per_user = (pd.DataFrame(columns) * _STEPS).round().astype("UInt16").reset_index()
    per_user.insert(2, _TRAIN, train_interactions(data).reindex(per_user["user"], fill_value=0).to_numpy())
    numbers = {"use_dictionary": False, "use_byte_stream_split": list(columns)}
    for name, table, split in ((PER_USER, per_user, numbers), (RUNS, pd.DataFrame(rows), {})):
        with storage.atomic_file(target / name) as temporary:
            table.to_parquet(temporary, index=False, compression="zstd", compression_level=19, **split)
    return target


def _of_users(run: Run, task: str) -> pd.Series:
    """NDCG@20 by split and user, as far as an archive keeps it."""
    values = run.per_user.set_index(["split", "user"])[MONITOR]
    return values[values.index.isin(["test_new", "test_new_all"], level="split")] if task == "new-items" else values


def read_archive(dataset: str, root: Path | None = None) -> list[Run]:
    """Kept runs of one build of a data set, in their order; none if there are none.

    Without ``root`` those of this machine come first, then what only the repository has.

    Raises
    ------
    DataError
        If the files are damaged.
    """
    kept = list(_kept(dataset, root).values())
    return [run for run in kept if run.config["data_sha256"] == kept[0].config["data_sha256"]]


def _kept(dataset: str, root: Path | None = None) -> dict[str, Run]:
    """Kept runs of a data set by their question."""
    found: dict[str, Run] = {}
    for archive in (root,) if root else (own_root(), ROOT):
        file = archive / dataset / RUNS
        if file.is_file():
            found = found | _read(file.parent, file.stat().st_mtime_ns) | found  # the first one stays, in its place
    return found


@lru_cache(maxsize=8)
def _read(folder: Path, _: int) -> dict[str, Run]:
    """Runs of an archive's two files, which are read again when they were written anew."""
    table, values = storage.read_parquet(folder / RUNS), storage.read_parquet(folder / PER_USER)
    found: dict[str, Run] = {}
    try:
        for row in table.to_dict("records"):
            own = values[["split", "user", row["run"]]].dropna().rename(columns={row["run"]: MONITOR})
            own[MONITOR] = own[MONITOR].astype(np.float64) / _STEPS
            run, parts = Run(folder / str(row["run"])), {part: json.loads(row[part]) for part in _PARTS}
            vars(run).update(parts, history=pd.DataFrame(), per_user=own.reset_index(drop=True))
            found.setdefault(_question(run.config), run)
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise DataError(f"{folder} is damaged: {error!r}", "take the files of the repository again") from error
    return found


def archived_activity(dataset: str) -> pd.Series:
    """Train interactions of every user that the archive of a data set knows, as `train_interactions` of the data set.

    Raises
    ------
    DataError
        If there is no archive, or it is damaged.
    """
    own = own_root() / dataset / PER_USER
    table = storage.read_parquet(own if own.is_file() else ROOT / dataset / PER_USER)
    counts = table.drop_duplicates("user").set_index("user")[_TRAIN].sort_index()
    return counts[counts > 0]


def keep_run(run: Run, data: Dataset, root: Path | None = None) -> None:
    """Add a finished run to an archive, in the place of one with the same question if there is one.

    Raises
    ------
    DataError
        If the archive holds another build of the data set, or is damaged.
    """
    kept = _kept(data.name, root or own_root())
    before = kept.pop(_question(run.config), None)
    if before is None or before.config != run.config:
        write_archive([*kept.values(), run], data, root)


def find_kept(config: Mapping[str, Any], root: Path | None = None) -> Run | None:
    """The kept run of a configuration, whatever versions it was made with; of all archives without ``root``.

    Raises
    ------
    DataError
        If an archive is damaged.
    """
    return _kept(config["dataset"], root).get(_question(config))


def known_runs(data: Dataset, here: Sequence[Run] | None = None) -> list[Run]:
    """Finished runs of a data set; what was not run here is taken from the archive, if it is of its present build.

    Two runs are the same one here if they differ in nothing but the declared versions, and the vectors' last bits.
    Seeds of different versions are not averaged: as soon as one seed was run here by another version, the archive's
    other seeds are left out.

    Parameters
    ----------
    data
        The data set.
    here
        Runs of this machine; default: `spike_kit.experiments.run.finished_runs`.
    """
    here = finished_runs(data) if here is None else here
    declared: dict[str, set[str]] = {}
    for run in here:
        declared.setdefault(_question(run.config, "seed"), set()).add(_version(run.config))
    known, build = {_question(run.config) for run in here}, data_version(data)
    return [*here] + [
        run
        for question, run in _kept(data.name).items()
        if run.config["data_sha256"] == build
        and question not in known
        and _version(run.config) in declared.get(_question(run.config, "seed"), {_version(run.config)})
    ]


def _question(config: Mapping[str, Any], *left_out: str) -> str:
    """What a run answers, whatever the version of the code; that of all its seeds where ``seed`` is left out."""
    rest = config.keys() - {"versions", "code_sha256", "vectors_sha256", *left_out}
    return storage.canonical_json({name: config[name] for name in rest})


def _version(config: Mapping[str, Any]) -> str:
    """Declared versions, and the vectors."""
    return storage.canonical_json([versions(config), config.get("vectors_sha256", "")])


def find_runs(names: Sequence[str]) -> list[Run]:
    """Finished runs by the names or paths of their folders; or, for one data set, all that are known of it.

    Raises
    ------
    DataError
        If there is no such run, or no such data set.
    """
    found: list[Run] = []
    for name in names:
        here = [folder for folder in (paths.runs_root() / name, Path(name)) if (folder / METRICS).is_file()]
        if not here and len(names) == 1:
            return known_runs(Dataset.open(name))
        if not here:
            raise DataError(f"there is no finished run {name!r}", f"runs are in {paths.shown(paths.runs_root())}")
        found.append(Run(here[0]))
    return found
