from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable

import pandas as pd
import psutil
import pytest

from spike_kit.base import storage
from spike_kit.base.errors import DataError
from spike_kit.data.dataset import Dataset
from spike_kit.experiments import jobs
from spike_kit.experiments.jobs import END, JOB, LOG, PROCESS, PROGRESS, TrainingJob, forget
from spike_kit.experiments.run import RunConfig, run

SECONDS = 120
GONE = {"pid": 2**22 + 1, "created": 1.0}
"""A process that is no more."""


def job(epochs: int = 3, **training: object) -> TrainingJob:
    settings = {"epochs": epochs, "batch_size": 64, "eval_every": 1, "patience": 0, **training}
    return TrainingJob(RunConfig(model="bprmf", dataset="world", training=settings), threads=1)


def until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def done_here(started: TrainingJob) -> int:
    """Do what a job's process does, in this one; returns its exit code."""
    started.folder.mkdir(parents=True, exist_ok=True)
    storage.write_json(started.folder / JOB, {"config": started.config.model_dump(), "device": "cpu"})
    storage.write_json(started.folder / PROCESS, GONE)
    return jobs.main([str(started.folder)])


def test_a_job_trains_the_run_that_training_here_would_give(data: Dataset) -> None:
    started = job()
    assert started.state == "not trained"
    assert started.history.empty
    assert done_here(started) == 0
    assert storage.read_json(started.folder / END) == {"finished": True}
    assert started.state == "finished"
    assert started.run is not None
    assert started.history["epoch"].tolist() == [1, 2, 3]
    assert {"loss", "bpr", "valid_ndcg@20"} <= set(started.history.columns)
    lines = (started.folder / PROGRESS).read_text().split("\n")
    told = pd.DataFrame([json.loads(line) for line in lines if line])
    pd.testing.assert_frame_equal(told[started.history.columns], started.history)
    started.start()
    assert storage.read_json(started.folder / PROCESS) == GONE
    config = started.config.replace(seed=1)
    assert TrainingJob(config).state == "not trained"
    run(config, progress=False)
    assert TrainingJob(config).state == "finished"


def test_a_stopped_job_is_found_by_others_and_goes_on(data: Dataset) -> None:
    first = job(epochs=100_000)
    first.start()
    until(lambda: len(first.history) > 3)
    other = job(epochs=100_000)
    assert other.state == "training"
    left = other.seconds_left
    assert left is not None
    assert left > 0
    other.start()
    other.stop()
    assert first.wait(SECONDS) == "interrupted"
    done = len(first.history)
    assert first.message == ""
    assert first.seconds_left is None
    first.start()
    until(lambda: len(first.history) > done)
    epochs = first.history["epoch"].tolist()  # read once: the job goes on
    assert epochs == list(range(1, len(epochs) + 1))
    with pytest.raises(DataError, match="is being trained"):
        forget(first)
    pid = storage.read_json(first.folder / PROCESS)["pid"]
    os.kill(pid, signal.SIGKILL)
    assert first.wait(SECONDS) == "interrupted"
    forget(first)
    assert not first.folder.exists()
    assert first.state == "interrupted"


def test_a_job_that_fails_says_why(data: Dataset) -> None:
    broken = job(learning_rate=1e30)
    assert done_here(broken) == 1
    assert broken.state == "failed"
    assert "became" in broken.message


def test_an_error_before_the_end_file_is_in_the_log(data: Dataset) -> None:
    died = job()
    died.folder.mkdir(parents=True)
    storage.write_json(died.folder / PROCESS, GONE)
    (died.folder / LOG).write_text("Traceback (most recent call last)\n  ...\nImportError: no torch\n\n")
    assert died.state == "failed"
    assert died.message == "ImportError: no torch"
    (died.folder / LOG).write_text("WARNING something\n")
    assert died.state == "interrupted"


@pytest.mark.parametrize("content", ["", "[]", '{"pid": "x"}', '{"pid": -5, "created": null}', "{broken"])
def test_damaged_files_of_a_job_are_no_job(data: Dataset, content: str) -> None:
    damaged = job()
    damaged.folder.mkdir(parents=True)
    for name in (PROCESS, END):
        (damaged.folder / name).write_text(content)
    (damaged.folder / PROGRESS).write_text('{"epoch": 1, "loss": 2.0}\nrubbish\n[1]\n{"epoch": "one"}\n{"epoch": 2')
    assert damaged.state == "interrupted"
    assert damaged.history["loss"].tolist() == [2.0]


def test_a_later_process_with_the_same_number_is_not_the_job(data: Dataset) -> None:
    reused = job()
    reused.folder.mkdir(parents=True)
    created = psutil.Process().create_time()
    storage.write_json(reused.folder / PROCESS, {"pid": os.getpid(), "created": created - 3600})
    assert reused.state == "interrupted"
    storage.write_json(reused.folder / PROCESS, {"pid": os.getpid(), "created": created})
    assert reused.state == "training"
