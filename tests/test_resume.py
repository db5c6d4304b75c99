"""Trainings that are interrupted: killed, stopped, started twice; states that are damaged, disks that are full."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from spike_kit.base import paths
from spike_kit.base.config import TrainingConfig
from spike_kit.base.errors import DataError, StorageError, TrainingError
from spike_kit.base.storage import exclusive
from spike_kit.data.dataset import Dataset
from spike_kit.evaluation.ranking import RankingTask, evaluate
from spike_kit.experiments.run import Run, RunConfig, describe, run, run_path
from spike_kit.models import MODELS
from spike_kit.models.base import TrainedRecommender
from spike_kit.training import loop
from spike_kit.training.checkpoint import LAST, History, write_state
from spike_kit.training.loop import MONITOR
from tests.test_storage import fill_the_disk
from tests.world import World, build

SETTINGS = {"epochs": 7, "batch_size": 100, "eval_every": 2, "patience": 0, "schedule": "cosine", "warmup_steps": 5}
OPTIONS = {"model": "spike", "dataset": "world", "device": "cpu", **SETTINGS}
COMMAND = ["train", *(f"--{name.replace('_', '-')}={value}" for name, value in OPTIONS.items())]
STEPS = 7 * 6
"""Steps of these epochs on the tiny world."""

DRIVER = """
import json, os, signal, sys
import torch
import torch._dynamo
torch.set_num_threads(1)
from spike_kit.base import paths, storage
from spike_kit.training import checkpoint, loop
from spike_kit.cli import main
import spike_kit.experiments.run, spike_kit.models.spike, tyro

loop.SAVE_PAUSE = 0
step, write = loop.training_step, checkpoint.save_file

def done(optimizer):
    return max((int(moments["step"]) for moments in optimizer.state.values()), default=0)

def sitting(arguments, number, at, half_written):
    def training_step(model, batch, draws, optimizer):
        terms = step(model, batch, draws, optimizer)
        if done(optimizer) == at:
            os.kill(os.getpid(), number)
        return terms
    def save_file(tensors, file, *metadata):
        write(tensors, file, *metadata)
        if half_written in str(tensors.keys()):
            os.truncate(file, 1000)
            os.kill(os.getpid(), number)
    loop.training_step = training_step
    if half_written:
        checkpoint.save_file = save_file
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os._exit(main(arguments))

for home, *rest in json.load(sys.stdin):
    child = os.fork()
    if not child:
        os.environ[paths.HOME_VARIABLE] = home
        sitting(*rest)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Runs commands one after the other, each in a process of its own that sends itself a signal after a given step, or
once it has written half a state; prints how each ended."""


@pytest.fixture(autouse=True)
def every_epoch_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "SAVE_PAUSE", 0)


def assert_same(found: Run, expected: Run) -> None:
    assert found.path.name == expected.path.name
    assert equal(found.tensors(), expected.tensors())
    assert found.history.drop(columns="seconds").equals(expected.history.drop(columns="seconds"))
    assert found.history["seconds"].is_monotonic_increasing
    measured = {"seconds": 0, "peak_gib": 0}
    assert found.metrics | measured == expected.metrics | measured
    assert found.per_user.equals(expected.per_user)
    names = {path.name for path in found.path.iterdir()}
    assert "state" not in names == {path.name for path in expected.path.iterdir()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_an_interrupted_training_ends_with_the_bits_of_an_uninterrupted_one(data: Dataset, tmp_path: Path) -> None:
    """Kills after a step and while a state is written; Ctrl-C; SIGTERM, which loses nothing, even at the end."""
    homes = tmp_path / "interrupted", tmp_path / "whole"
    for home in homes:
        shutil.copytree(data.path, home / "data" / "world")
    term, kill, ctrl_c = int(signal.SIGTERM), int(signal.SIGKILL), int(signal.SIGINT)
    ends = [(term, 4, ""), (kill, 8, ""), (kill, -1, "generator.draws"), (kill, 14, ""), (term, 18, "")]
    ends += [(ctrl_c, 19, ""), (kill, 23, ""), (term, STEPS, ""), (0, -1, "")]
    sittings = [(str(homes[0]), COMMAND, *end) for end in ends]
    given = json.dumps([*sittings, (str(homes[1]), COMMAND, 0, -1, "")])
    ended = subprocess.run([sys.executable, "-c", DRIVER], input=given, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    codes = {term: 143, kill: -kill, ctrl_c: 130, 0: 0}
    shown = [int(line) for line in ended.stdout.split() if line.lstrip("-").isdigit()]
    assert shown == [*(codes[number] for number, *_ in ends), 0]
    assert [line[-1] for line in ended.stderr.splitlines() if "asked to stop" in line] == ["2", "4", "8"]
    assert ended.stderr.count("the same command goes on from the last epoch") == 1
    assert "Traceback" not in ended.stderr
    done, expected = (Run(next((home / "data" / "runs").iterdir())) for home in homes)
    assert_same(done, expected)
    # A place is stored with the next state, so those of sittings that were killed before are forgotten.
    assert [place["epoch"] for place in done.environment["resumed"]] == [2, 3, 4, 8]
    assert expected.environment["resumed"] == []


class Interrupt(KeyboardInterrupt):
    """Ctrl-C."""


Trained = tuple[TrainedRecommender, History]


def trained(world: World, state: Path | None = None, stop_in: int = 0, name: str = "bprmf", **limits: Any) -> Trained:
    """A model and its history, trained with one seed; Ctrl-C ends the training at the end of an epoch, if one is given.

    The state is then the one after the epoch before.
    """
    model = build(name, world)

    def report(row: dict[str, Any]) -> None:
        if row["epoch"] == stop_in:
            raise Interrupt

    config = TrainingConfig.parse(SETTINGS | limits)
    valid = RankingTask.from_tables(world.tables, "valid")
    history = loop.fit(model, world.graph, valid, config, 0, False, report, state=state)
    return model, history


@pytest.fixture(scope="module")
def whole(world: World) -> Trained:
    """The training in one sitting."""
    return trained(world)


@pytest.fixture
def folder(world: World, tmp_path: Path) -> Path:
    """State of the same training after three of its epochs, the second of which was the best."""
    with pytest.raises(KeyboardInterrupt):
        trained(world, tmp_path / "state", stop_in=4)
    assert (header(tmp_path / "state" / LAST)["epoch"], len(list((tmp_path / "state").iterdir()))) == (4, 2)
    return tmp_path / "state"


def metadata(file: Path) -> dict[str, str]:
    with safe_open(file, framework="pt") as opened:
        return opened.metadata()


def header(file: Path) -> dict[str, Any]:
    return json.loads(metadata(file)["state"])


Change = Callable[[dict[str, Tensor], dict[str, Any]], object]


def rewrite(file: Path, change: Change, damaged: bool = False) -> None:
    """Change tensors and header of a state, as one that was written so; or leave the hash of what was written."""
    before, said, tensors = metadata(file), header(file), load_file(file)
    change(tensors, said)
    write_state(tensors, said, file)
    if damaged:
        save_file(load_file(file), file, metadata(file) | {"sha256": before["sha256"]})


def flip(file: Path) -> None:
    """Flip one bit in the middle of a file."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


SPOILED: dict[str, Callable[[Path], object]] = {
    "last: truncated": lambda file: os.truncate(file, 5000),
    "last: text": lambda file: file.write_text("a state " * 1000),
    "last: no header": lambda file: save_file(load_file(file), file),
    "last: deep json": lambda file: save_file(load_file(file), file, {"state": "[" * 100_000}),
    "last: a bit": flip,
    "last: another step": lambda file: rewrite(file, lambda _, said: said.update(epoch=10**30), damaged=True),
    "last: no tensor": lambda file: rewrite(file, lambda tensors, _: tensors.popitem(), damaged=True),
    "last: earlier version": lambda file: rewrite(file, lambda _, said: said.pop("machine")),
    "last: more epochs": lambda file: rewrite(file, lambda _, said: said["training"].update(epochs=70)),
    "last: another model": lambda file: rewrite(
        file, lambda tensors, _: tensors.update({"model.user_embedding": torch.zeros(3, 4)})
    ),
    "best: gone": Path.unlink,
    "best: empty": lambda file: file.write_bytes(b""),
    "best: another": lambda file: save_file({"a": torch.zeros(2)}, file),
}


@pytest.mark.parametrize("how", SPOILED)
def test_a_state_that_cannot_be_used_is_named_and_training_starts_over(
    world: World, folder: Path, whole: Trained, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    (file,) = folder.glob(f"{how.partition(':')[0]}*")
    SPOILED[how](file)
    model, history = trained(world, folder)
    assert f"{file} cannot be used, training starts over" in caplog.text
    assert history.resumed == []
    assert equal(model.tensors(), whole[0].tensors())


def test_another_machine_is_warned_of_and_all_sittings_are_recorded(
    world: World, folder: Path, whole: Trained, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def elsewhere(_: object, said: dict[str, Any]) -> None:
        said["machine"] |= {"threads": 96, "device": "cuda:3", "torch": "2.0"}
        said["history"]["earlier_seconds"] = 5000.0
        for row, odd in zip(said["history"]["rows"], ("nan", "inf", "-inf"), strict=True):
            row["loss"] = float(odd)

    (tmp_path / "copy").mkdir()
    for file in folder.iterdir():
        (tmp_path / "copy" / file.name).write_bytes(file.read_bytes())
    model, history = trained(world, folder)
    assert equal(model.tensors(), whole[0].tensors())
    assert len(history.resumed) == 1
    assert "differ" not in caplog.text
    rewrite(tmp_path / "copy" / LAST, elsewhere)
    _, history = trained(world, tmp_path / "copy")
    assert "last bits may differ" in caplog.text
    assert "threads 96 -> " in caplog.text
    (place,) = history.resumed
    assert (place["epoch"], place["device"], place["threads"]) == (4, "cpu", torch.get_num_threads())
    assert history.frame()["loss"].head(3).map(str).tolist() == ["nan", "inf", "-inf"]
    assert 6000 > history.rows[-1]["seconds"] > 5000 > history.rows[2]["seconds"]


@pytest.mark.parametrize("name", [name for name, cls in MODELS.items() if issubclass(cls, TrainedRecommender)])
def test_every_model_goes_on_to_the_same_bits(world: World, tmp_path: Path, name: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        trained(world, tmp_path, 2, name, epochs=3)
    resumed, history = trained(world, tmp_path, 0, name, epochs=3)
    assert [place["epoch"] for place in history.resumed] == [2]
    assert equal(resumed.tensors(), trained(world, name=name, epochs=3)[0].tensors())


@pytest.mark.parametrize(
    "change",
    [
        lambda training: training.pop("cuda_graph"),
        lambda training: training.pop("stop_on"),
        lambda training: training.update(cuda_graph=not training["cuda_graph"]),
    ],
)
def test_a_state_goes_on_with_settings_that_came_later_or_change_no_number(
    world: World, folder: Path, whole: Trained, change: Callable[[dict[str, Any]], object]
) -> None:
    rewrite(folder / LAST, lambda _, said: change(said["training"]))
    model, history = trained(world, folder)
    assert [place["epoch"] for place in history.resumed] == [4]
    assert equal(model.tensors(), whole[0].tensors())


def test_short_epochs_are_not_all_saved(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "SAVE_PAUSE", 1e9)
    written = []
    monkeypatch.setattr(loop.TrainingState, "save", lambda now, _: written.append(now.epoch))
    trained(world, tmp_path)
    assert written == [2, 8]


def test_a_full_disk_leaves_the_state_that_was_there(
    world: World, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with monkeypatch.context() as patch:
        fill_the_disk(patch)
        with pytest.raises(StorageError, match="disk is full"):
            trained(world, folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert trained(world, folder)[1].resumed


def test_a_loss_that_breaks_leaves_the_best_weights_and_names_their_file(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, count, models = loop.training_step, iter(range(1, 100)), []

    def training_step(model: Any, *arguments: Any) -> dict[str, Tensor]:
        models.append(model)
        terms = step(model, *arguments)
        return {name: term * float("nan") if next(count) > 30 else term for name, term in terms.items()}

    monkeypatch.setattr(loop, "training_step", training_step)
    with pytest.raises(TrainingError, match=r"loss term 'bpr' became nan in epoch \d.*best-\d\.safetensors") as raised:
        trained(world, tmp_path)
    (file,) = tmp_path.glob("best-*")
    assert str(file) in raised.value.message
    assert equal(models[0].tensors(), load_file(file))
    rows = {f"best-{row['epoch']}": row for row in header(tmp_path / LAST)["history"]["rows"]}
    means, _ = evaluate(models[0], RankingTask.from_tables(world.tables, "valid"))
    assert means[MONITOR] == rows[file.stem][f"valid_{MONITOR}"]


def test_sigterm_is_handled_only_while_a_state_is_kept(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, handlers = signal.getsignal(signal.SIGTERM), []
    monkeypatch.setattr(loop, "_set_rate", lambda *_: handlers.append(signal.getsignal(signal.SIGTERM)))
    trained(world)
    assert set(handlers) == {before}
    trained(world, tmp_path)
    assert before not in handlers[STEPS:]
    assert signal.getsignal(signal.SIGTERM) == before


def test_one_process_trains_a_run(data: Dataset) -> None:
    config = RunConfig(model="popularity", dataset="world")
    path = run_path(describe(config, data))
    with (
        exclusive(path.with_name(f".{path.name}.lock"), ""),
        pytest.raises(DataError, match=f"another process is training {path.name}"),
    ):
        run(config, progress=False)
    assert run(config, progress=False).path == path
    assert [*paths.runs_root().iterdir()] == [path]
