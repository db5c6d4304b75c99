import os

import psutil
import pytest

from spike_kit.base import storage
from spike_kit.base.errors import ConfigError
from spike_kit.data.dataset import Dataset
from spike_kit.experiments.jobs import LOG, PROCESS, TrainingJob
from spike_kit.experiments.run import Run, RunConfig, describe, run
from tests.conftest import until

SECONDS = 120


def job(data: Dataset, epochs: int = 3, **training: object) -> TrainingJob:
    settings = {"epochs": epochs, "batch_size": 64, "eval_every": 1, "patience": 0, **training}
    config = RunConfig(model="bprmf", dataset="world", training=settings)
    return TrainingJob(config, describe(config, data), threads=1)


def test_a_job_trains_the_run_that_training_here_would_give(data: Dataset) -> None:
    started = job(data)
    assert started.state == "not trained"
    assert started.history.empty
    started.start()
    assert started.wait(SECONDS) == "finished"
    assert started.run is not None
    until(lambda: started._process() is None)
    there = Run(started.run.path.rename(started.run.path.with_name(".aside"))).history
    here = run(started.config, progress=False)
    assert started.run.path == here.path
    assert there.drop(columns="seconds").equals(here.history.drop(columns="seconds"))
    assert started.state == "finished"
    before = storage.read_json(started.folder / PROCESS)
    started.start()
    assert storage.read_json(started.folder / PROCESS) == before


def test_a_job_is_found_by_others_and_interrupted_by_its_end(data: Dataset) -> None:
    first, other = job(data, epochs=100_000), job(data, epochs=100_000)
    first.start()
    until(lambda: len(first.history) > 20)
    assert (first.folder / LOG).stat().st_size < 1000
    assert other.state == "training"
    other.start()
    other.stop()
    assert first.wait(SECONDS) == "interrupted"
    assert first.message == ""
    rows = len(first.history)
    first.start()
    assert other.state == "training"
    psutil.Process(storage.read_json(first.folder / PROCESS)["pid"]).kill()
    assert first.wait(SECONDS) == "interrupted"
    assert len(first.history) >= rows > 1


@pytest.mark.parametrize(
    ("log", "state", "message"),
    [
        ("a note\nerror: no room\n  -> make some\n", "failed", "no room\n  -> make some"),
        ("Traceback (most recent call last)\n  ...\nImportError: no torch\n\n", "failed", "ImportError: no torch"),
        ("WARNING something\n", "interrupted", ""),
    ],
)
def test_an_error_is_read_from_the_log(data: Dataset, log: str, state: str, message: str) -> None:
    died = job(data)
    storage.write_json(died.folder / PROCESS, {"pid": 2**22 + 1, "created": 1.0})
    (died.folder / LOG).write_text(log)
    assert (died.state, died.message) == (state, message)


def test_a_setting_that_no_command_line_carries_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"setting epochs = \[3\] is no option of a command line"):
        RunConfig(training={"epochs": [3]}).command()


def test_a_later_process_with_the_same_number_is_not_the_job(data: Dataset) -> None:
    reused = job(data)
    created = psutil.Process().create_time()
    storage.write_json(reused.folder / PROCESS, {"pid": os.getpid(), "created": created - 3600})
    assert reused.state == "interrupted"
    storage.write_json(reused.folder / PROCESS, {"pid": os.getpid(), "created": created})
    assert reused.state == "training"
