"""Training in a process of its own, for those who must not wait: a notebook, an interactive view.

A job lives in ``data/runs/.jobs/<name of its run>/``: ``job.json`` (what to train, on what), ``process.json`` (who
trains it), ``progress.jsonl`` (one line per epoch), ``end.json`` (how it ended) and ``log.txt``. All is read from these
files, so another kernel finds a running job again, and a job outlives the kernel that started it.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import psutil

from spike_kit.base import paths, storage
from spike_kit.base.devices import resolve_device
from spike_kit.base.errors import DataError, SpikeKitError
from spike_kit.data.dataset import Dataset
from spike_kit.experiments import run_folder
from spike_kit.experiments.archive import find_kept
from spike_kit.experiments.run import RunConfig, describe, run
from spike_kit.experiments.run_folder import Run
from spike_kit.training.checkpoint import EpochRow
from spike_kit.training.loop import TrainingStoppedError

JOB, PROCESS, PROGRESS, END, LOG = "job.json", "process.json", "progress.jsonl", "end.json", "log.txt"

JobState = Literal["finished", "training", "interrupted", "failed", "not trained"]
"""Where a run stands. An interrupted one goes on from its last state when it is started again."""

_RECENT = 20
"""Epochs whose seconds tell how long the others will take."""
_LOG_BYTES = 4000


@dataclass(frozen=True)
class TrainingJob:
    """The run of a configuration, as a job: start it, watch it, stop it.

    Parameters
    ----------
    config
        What is trained.
    device
        Where, for example ``"cpu"`` or ``"cuda:0"``.
    threads
        Threads of torch on the CPU; none: one per core.
    known
        `described`, where it is known already: working it out reads the data set's vectors.
    """

    config: RunConfig
    device: str = "cpu"
    threads: int | None = None
    known: dict[str, Any] | None = field(default=None, compare=False, repr=False)

    @cached_property
    def described(self) -> dict[str, Any]:
        """Everything that decides the result (see `spike_kit.experiments.run.describe`)."""
        return self.known or describe(self.config, Dataset.open(self.config.dataset))

    @cached_property
    def folder(self) -> Path:
        """Folder of the job's files."""
        return paths.runs_root() / ".jobs" / run_folder.run_path(self.described).name

    @property
    def run(self) -> Run | None:
        """The finished run, if there is one: its folder, or what the archive kept of it."""
        return run_folder.find_run(self.described) or find_kept(self.described)

    @property
    def state(self) -> JobState:
        """Where the run stands."""
        if self.run is not None:
            return "finished"
        if self._process() is not None:
            return "training"
        if not (self.folder / PROCESS).is_file():
            has_state = (run_folder.run_path(self.described) / run_folder.STATE).is_dir()
            return "interrupted" if has_state else "not trained"
        return "failed" if self._end().get("failed") else "interrupted"

    @property
    def message(self) -> str:
        """Why the job failed: its error, or the last words of its log; empty otherwise."""
        return str(self._end().get("failed", "")) if self.state == "failed" else ""

    @property
    def history(self) -> pd.DataFrame:
        """Rows of the epochs so far (`spike_kit.training.checkpoint.History`), from the run or from the job."""
        found = self.run
        return found.history if found is not None else pd.DataFrame(self._rows())

    @property
    def epochs(self) -> int:
        """Most epochs of the training; it may stop earlier."""
        return self.config.resolved()[1].epochs

    @property
    def seconds_left(self) -> float | None:
        """Estimated seconds until the last epoch if training does not stop early; none while nothing is known."""
        rows = self._rows()
        if self.state != "training" or len(rows) < 2:
            return None
        recent = rows[-_RECENT - 1 :]
        per_epoch = (recent[-1]["seconds"] - recent[0]["seconds"]) / (len(recent) - 1)
        return max(0.0, per_epoch * (self.epochs - recent[-1]["epoch"]))

    def start(self) -> None:
        """Begin, or go on from the last state; does nothing where the run is finished or being trained.

        Raises
        ------
        StorageError
            If the job's files cannot be written.
        ConfigError, DataError
            If a setting or the data is not as it must be.
        """
        if self.state in ("finished", "training"):
            return
        resumes = (run_folder.run_path(self.described) / run_folder.STATE).is_dir()
        with storage.storage_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            for name in (PROCESS, END, *(() if resumes else (PROGRESS,))):
                (self.folder / name).unlink(missing_ok=True)
            storage.write_json(self.folder / JOB, {"config": self.config.model_dump(), "device": self.device})
            with (self.folder / LOG).open("wb") as log:
                process = psutil.Popen(
                    [sys.executable, "-m", "spike_kit.experiments.jobs", str(self.folder)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    env=os.environ | ({} if self.threads is None else {"OMP_NUM_THREADS": str(self.threads)}),
                )
            # The time tells the process from a later one with the same number.
            storage.write_json(self.folder / PROCESS, {"pid": process.pid, "created": process.create_time()})

    def stop(self) -> None:
        """Ask a running job to save its state and end."""
        process = self._process()
        if process is not None:
            process.terminate()

    def wait(self, seconds: float) -> JobState:
        """Wait until the job has ended, but not longer than ``seconds``; returns its state then."""
        deadline = time.monotonic() + seconds
        while self.state == "training" and time.monotonic() < deadline:
            time.sleep(0.05)
        return self.state

    def _process(self) -> psutil.Process | None:
        """The process that trains this run, if it is alive."""
        known = _read(self.folder / PROCESS)
        try:
            process = psutil.Process(int(known.get("pid", -1)))
            same = abs(process.create_time() - float(known["created"])) < 1
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except (psutil.Error, ValueError, TypeError, KeyError):
            return None

    def _end(self) -> dict[str, Any]:
        """How the job ended; where it could not say so, the last words of its log are its error."""
        end = self.folder / END
        if end.is_file():
            return _read(end)
        words = _error_in(self.folder / LOG)
        return {"failed": words} if words else {}

    def _rows(self) -> list[EpochRow]:
        """Rows of the progress file; of an epoch that was trained twice the last one, broken lines are left out."""
        by_epoch: dict[int, EpochRow] = {}
        file = self.folder / PROGRESS
        if not file.is_file():
            return []
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
                by_epoch[int(row["epoch"])] = row
            except (json.JSONDecodeError, KeyError, TypeError, ValueError):
                continue
        return [by_epoch[epoch] for epoch in sorted(by_epoch)]


def forget(job: TrainingJob) -> None:
    """Remove the files of a job that is not running; its run, or the state of its training, stays.

    Raises
    ------
    DataError
        If the job is running.
    """
    if job.state == "training":
        raise DataError(f"{job.folder.name} is being trained", "stop it first")
    shutil.rmtree(job.folder, ignore_errors=True)


def _read(file: Path) -> dict[str, Any]:
    """Content of a small JSON file that may not be there, or not be whole."""
    try:
        values = storage.read_json(file) if file.is_file() else {}
    except DataError:
        return {}
    return values if isinstance(values, dict) else {}


def _error_in(log: Path) -> str:
    """Last line of a log that ends with a traceback; empty where it does not."""
    if not log.is_file():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _LOG_BYTES))
        words = file.read().decode("utf-8", errors="replace").strip()
    return words.splitlines()[-1].strip() if "Traceback" in words else ""


def main(arguments: Sequence[str]) -> int:
    """Train what a job's folder says; the entry of the job's process."""
    folder = Path(arguments[0])
    job = storage.read_json(folder / JOB)
    config, device = RunConfig.parse(job["config"]), resolve_device(job["device"])
    logging.basicConfig(level=logging.WARNING)
    try:
        with (folder / PROGRESS).open("a", encoding="utf-8", buffering=1) as progress:
            # A line that a kill cut off must not swallow the first new one.
            progress.write("\n")
            run(config, device, progress=False, report=lambda row: _append(progress, row))
    except TrainingStoppedError:
        storage.write_json(folder / END, {"stopped": True})
        return 143
    except (SpikeKitError, RuntimeError, OSError, MemoryError) as error:
        storage.write_json(folder / END, {"failed": str(error) or type(error).__name__})
        return 1
    storage.write_json(folder / END, {"finished": True})
    return 0


def _append(progress: Any, row: EpochRow) -> None:
    progress.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
