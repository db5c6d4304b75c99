"""Training in a process of its own, for those who must not wait: a notebook, an interactive view.

A job is ``spike-kit train`` in the background. ``data/runs/.jobs/<name of its run>/`` holds ``process.json`` (who
trains it) and ``log.txt`` (what it said); how far it is stands in the state of its training. All is read from these
files, so another kernel finds a running job again, and a job outlives the kernel that started it.
"""

import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import psutil

from spike_kit.base import paths, storage
from spike_kit.experiments.archive import find_kept
from spike_kit.experiments.run import STATE, Run, RunConfig, find_run, run_path
from spike_kit.training.checkpoint import stored_rows

PROCESS, LOG = "process.json", "log.txt"

JobState = Literal["finished", "training", "interrupted", "failed", "not trained"]
"""Where a run stands. An interrupted one goes on from its last state when it is started again."""


@dataclass(frozen=True)
class TrainingJob:
    """The run of a configuration, as a job: start it, watch it, stop it.

    Parameters
    ----------
    config
        What is trained.
    described
        Everything that decides the result (`spike_kit.experiments.run.describe`).
    device
        Where, for example ``"cpu"`` or ``"cuda:0"``.
    threads
        Threads of torch on the CPU; none: one per core.
    """

    config: RunConfig
    described: dict[str, Any] = field(compare=False, repr=False)
    device: str = "cpu"
    threads: int | None = None

    @property
    def folder(self) -> Path:
        """Folder of the job's files."""
        return paths.runs_root() / ".jobs" / run_path(self.described).name

    @property
    def run(self) -> Run | None:
        """The finished run, if there is one: its folder, or what the archive kept of it."""
        return find_run(self.described) or find_kept(self.described)

    @property
    def state(self) -> JobState:
        """Where the run stands."""
        if self.run is not None:
            return "finished"
        if self._process() is not None:
            return "training"
        if self.message:
            return "failed"
        has_begun = (run_path(self.described) / STATE).is_dir() or (self.folder / PROCESS).is_file()
        return "interrupted" if has_begun else "not trained"

    @property
    def message(self) -> str:
        """What its log ends with, if that is an error; empty otherwise."""
        log = self.folder / LOG
        said = log.read_text(encoding="utf-8", errors="replace").strip() if log.is_file() else ""
        if "Traceback (most recent call last)" in said:
            return said.splitlines()[-1].strip()
        return f"\n{said}".partition("\nerror: ")[2]

    @property
    def history(self) -> pd.DataFrame:
        """Rows of the epochs so far (`spike_kit.training.checkpoint.History`), from the run or its training's state."""
        found = self.run
        return found.history if found is not None else pd.DataFrame(stored_rows(run_path(self.described) / STATE))

    @property
    def epochs(self) -> int:
        """Most epochs of the training; it may stop earlier."""
        return self.described["training_settings"]["epochs"]

    def start(self) -> None:
        """Begin, or go on from the last state; does nothing where the run is finished or being trained.

        Raises
        ------
        StorageError
            If the job's files cannot be written.
        """
        if self.state in ("finished", "training"):
            return
        words = shlex.split(self.config.command())[1:]
        threads = {} if self.threads is None else {"OMP_NUM_THREADS": str(self.threads)}
        with storage.storage_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / LOG).open("wb") as log:
                process = psutil.Popen(
                    [sys.executable, "-m", "spike_kit", *words, "--device", self.device],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    env=os.environ | {"TQDM_MININTERVAL": "inf"} | threads,
                )
            # The time tells the process from a later one with the same number.
            storage.write_json(self.folder / PROCESS, {"pid": process.pid, "created": process.create_time()})

    def stop(self) -> None:
        """Ask a running job to save its state and end."""
        if process := self._process():
            process.terminate()

    def wait(self, seconds: float) -> JobState:
        """Wait until the job has ended, but not longer than ``seconds``; returns its state then."""
        deadline = time.monotonic() + seconds
        while self.state == "training" and time.monotonic() < deadline:
            time.sleep(0.05)
        return self.state

    def _process(self) -> psutil.Process | None:
        """The process that trains this run, if it is alive."""
        if not (self.folder / PROCESS).is_file():
            return None
        known = storage.read_json(self.folder / PROCESS)
        try:
            process = psutil.Process(known["pid"])
            same = abs(process.create_time() - known["created"]) < 1
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.Error:
            return None
