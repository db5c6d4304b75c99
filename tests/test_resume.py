"""Trainings that are interrupted: killed, stopped, started twice; states that are damaged, disks that are full."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from spike_kit.base import paths
from spike_kit.base.errors import DataError, StorageError, TrainingError
from spike_kit.base.seeds import torch_generator
from spike_kit.base.storage import exclusive
from spike_kit.cli import main
from spike_kit.data.dataset import Dataset
from spike_kit.evaluation.ranking import RankingTask, evaluate
from spike_kit.experiments import run_folder
from spike_kit.experiments.run import RunConfig, load_model, run, train
from spike_kit.models import MODELS, find_model
from spike_kit.models.base import TrainedRecommender
from spike_kit.models.bprmf import BprMf, BprMfConfig
from spike_kit.training import loop
from spike_kit.training.checkpoint import LAST, write_state
from spike_kit.training.loop import MONITOR
from tests.test_storage import fill_the_disk
from tests.world import World

SETTINGS = {"epochs": 7, "batch_size": 100, "eval_every": 2, "patience": 0, "schedule": "cosine", "warmup_steps": 5}
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


def command(model: str, **changes: Any) -> list[str]:
    options = {"model": model, "dataset": "world", "device": "cpu", **SETTINGS, **changes}
    return ["train", *(f"--{name.replace('_', '-')}={value}" for name, value in options.items())]


def drive(sittings: list[tuple[Path, list[str], int, int, str]]) -> list[int]:
    """How each sitting ended: its home, command, signal, step of the signal, and in which file it dies instead."""
    given = json.dumps([(str(home), *rest) for home, *rest in sittings])
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(DRIVER)], input=given, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return [int(line) for line in ended.stdout.split() if line.lstrip("-").isdigit()]


def copied(data: Dataset, home: Path) -> Path:
    """Another home with the same study."""
    target = home / "data" / "world"
    target.parent.mkdir(parents=True)
    subprocess.run(["cp", "-r", data.path, target], check=True)
    return home


def only_run(home: Path) -> run_folder.Run:
    (path,) = (home / "data" / "runs").iterdir()
    return run_folder.Run(path)


def assert_same(found: run_folder.Run, expected: run_folder.Run) -> None:
    assert found.path.name == expected.path.name
    one, other = found.tensors(), expected.tensors()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert found.history.drop(columns="seconds").equals(expected.history.drop(columns="seconds"))
    assert found.history["seconds"].is_monotonic_increasing
    measured = {"seconds": 0, "peak_gib": 0}
    assert found.metrics | measured == expected.metrics | measured
    assert found.per_user.equals(expected.per_user)
    assert {path.name for path in found.path.iterdir()} == {path.name for path in expected.path.iterdir()}
    assert "state" not in {path.name for path in found.path.iterdir()}


def test_an_interrupted_training_ends_with_the_bits_of_an_uninterrupted_one(data: Dataset, tmp_path: Path) -> None:
    """Ten kills after random steps and one while a state is written; SIGTERM, which loses no step."""
    chance = random.Random(0)
    names = ("spike", "spike-stopped", "spike-killed")
    homes = {name: copied(data, tmp_path / name) for name in names}
    sittings, endings = [], []

    def sit(name: str, ending: int, number: int = 0, step: int = -1, half_written: str = "") -> None:
        sittings.append((homes[name], command("spike"), number, step, half_written))
        endings.append(ending)

    for name in names:
        if name.endswith("stopped"):
            for step in (4, 8, 12, 13, 30, STEPS):
                sit(name, 143, signal.SIGTERM, step)
        elif name.endswith("killed"):
            points = sorted(chance.sample(range(1, STEPS + 1), 10))
            for step in points[:5]:
                sit(name, -signal.SIGKILL, signal.SIGKILL, step)
            sit(name, -signal.SIGKILL, signal.SIGKILL, half_written="generator.draws")
            for step in points[5:]:
                sit(name, -signal.SIGKILL, signal.SIGKILL, step)
        sit(name, 0)
    assert drive(sittings) == endings
    places = {}
    for name in names:
        done = only_run(homes[name])
        assert_same(done, only_run(homes["spike"]))
        places[name] = [(place["epoch"], place["step"]) for place in done.environment["resumed"]]
        assert places[name] == sorted(places[name])
    assert places["spike"] == []
    assert len(set(places["spike-killed"])) > 3
    assert places["spike-stopped"] == [(1, 4), (2, 2), (2, 6), (3, 1), (5, 6), (7, 6)]


def metadata(file: Path) -> dict[str, str]:
    with safe_open(file, framework="pt") as opened:
        return opened.metadata()


def header(file: Path) -> dict[str, Any]:
    return json.loads(metadata(file)["state"])


def test_the_real_command_stops_on_sigterm_and_says_where_it_goes_on(data: Dataset, home: Path) -> None:
    wanted = command("bprmf", epochs=1_000_000, eval_every=1_000_000, schedule="constant")
    environment = os.environ | {paths.HOME_VARIABLE: str(home), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "spike_kit", *wanted], env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )
    deadline = time.monotonic() + 120
    while not list(home.glob(f"data/runs/*/state/{LAST}")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143
    (file,) = home.glob(f"data/runs/*/state/{LAST}")
    stored = header(file)
    assert f"goes on from epoch {stored['epoch']}, step {stored['step']}".encode() in said
    assert b"Traceback" not in said


QUICK = RunConfig(model="bprmf", dataset="world", training=SETTINGS)


class Interrupt(KeyboardInterrupt):
    """Ctrl-C."""


def interrupted(monkeypatch: pytest.MonkeyPatch, after: int = 20, config: RunConfig = QUICK) -> Path:
    """Train until Ctrl-C after some steps; returns the folder of the state."""
    step, count = loop.training_step, iter(range(1, after + 1))

    def training_step(*arguments: Any) -> dict[str, Tensor]:
        if next(count, None) is None:
            raise Interrupt
        return step(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "training_step", training_step)
        with pytest.raises(KeyboardInterrupt):
            run(config, progress=False)
    (folder,) = paths.runs_root().glob("*/state")
    return folder


@pytest.fixture(scope="module")
def uninterrupted(world: World) -> dict[str, Tensor]:
    """Weights of the same training in one sitting (it reads no text)."""
    settings, config = BprMfConfig.parse(dict(QUICK.resolved()[0])), QUICK.resolved()[1]
    model = BprMf(settings, world.graph, None, torch_generator(QUICK.seed, "init"))
    loop.fit(model, world.graph, RankingTask.from_tables(world.tables, "valid"), config, QUICK.seed, False)
    return model.tensors()


Change = Callable[[dict[str, Tensor], dict[str, Any]], object]


def rewritten(change: Change) -> Callable[[Path], None]:
    """Change the tensors and the header of a folder's state, as one that was written so."""

    def write(folder: Path) -> None:
        said, tensors = header(folder / LAST), load_file(folder / LAST)
        change(tensors, said)
        write_state(tensors, said, folder / LAST)

    return write


def damaged(change: Change) -> Callable[[Path], None]:
    """The same, but leave the hash of what was written."""

    def write(folder: Path) -> None:
        before = metadata(folder / LAST)
        rewritten(change)(folder)
        save_file(load_file(folder / LAST), folder / LAST, metadata(folder / LAST) | {"sha256": before["sha256"]})

    return write


def flipped(file: Path) -> None:
    """Flip one bit in the middle of a file."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


SPOILED: dict[str, Callable[[Path], object]] = {
    "truncated": lambda folder: os.truncate(folder / LAST, 5000),
    "empty": lambda folder: (folder / LAST).write_bytes(b""),
    "text": lambda folder: (folder / LAST).write_text("a state " * 1000),
    "no header": lambda folder: save_file(load_file(folder / LAST), folder / LAST),
    "no json": lambda folder: save_file(load_file(folder / LAST), folder / LAST, {"state": "{"}),
    "deep json": lambda folder: save_file(load_file(folder / LAST), folder / LAST, {"state": "[" * 100_000}),
    "a list": lambda folder: save_file(load_file(folder / LAST), folder / LAST, {"state": "[]"}),
    "a bit": lambda folder: flipped(folder / LAST),
    "a gap": damaged(lambda _, said: said["rows"].pop(0)),
    "past the end": damaged(lambda _, said: said.update(step=10**30)),
    "no best": damaged(lambda _, said: said.update(best_epoch=0)),
    "best of later": damaged(lambda _, said: said.update(best_epoch=6)),
    "no tensor": damaged(lambda tensors, _: tensors.pop("model.user_embedding")),
    "no moments": damaged(lambda tensors, _: tensors.pop("adam.exp_avg.user_embedding")),
    "a shape": damaged(lambda tensors, _: tensors.update({"model.user_embedding": torch.zeros(3, 4)})),
    "a type": damaged(lambda tensors, _: tensors.update({"adam.step.user_embedding": torch.zeros(5)})),
    "a generator": damaged(lambda tensors, _: tensors.update({"generator.batches": torch.zeros(7)})),
    "no machine": rewritten(lambda _, said: said.pop("machine")),
    "text as number": rewritten(lambda _, said: said.update(epoch="4")),
    "more epochs": rewritten(lambda _, said: said.update(epochs=70)),
    "other batches": rewritten(lambda _, said: said.update(n_steps=70)),
    "another model": rewritten(lambda _, said: said["layout"].update(user_embedding="torch.float32 [3, 4]")),
    "best is gone": lambda folder: next(folder.glob("best-*")).unlink(),
    "best is empty": lambda folder: next(folder.glob("best-*")).write_bytes(b""),
    "best is another": lambda folder: save_file({"a": torch.zeros(2)}, next(folder.glob("best-*"))),
}


@pytest.mark.parametrize("how", SPOILED)
def test_a_state_that_cannot_be_used_is_named_and_training_starts_over(
    data: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    uninterrupted: dict[str, Tensor],
    how: str,
) -> None:
    folder = interrupted(monkeypatch)
    best = next(folder.glob("best-*"))
    SPOILED[how](folder)
    done = run(QUICK, progress=False)
    named = best if how.startswith("best is") else folder / LAST
    assert f"{named} cannot be used, training starts over" in caplog.text
    assert done.environment["resumed"] == []
    assert all(torch.equal(tensor, uninterrupted[name]) for name, tensor in done.tensors().items())


def test_another_machine_is_warned_of_and_recorded(
    data: Dataset, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = interrupted(monkeypatch)

    def elsewhere(_: object, said: dict[str, Any]) -> None:
        said["machine"] |= {"threads": 96, "device": "cuda:3", "torch": "2.0"}

    rewritten(elsewhere)(folder)
    done = run(QUICK, progress=False)
    assert "last bits may differ" in caplog.text
    assert "threads 96 -> " in caplog.text
    (place,) = done.environment["resumed"]
    assert place["epoch"] == 4
    assert place["step"] == 0
    assert place["device"] == "cpu"
    assert place["threads"] == torch.get_num_threads()


def test_the_same_machine_is_not_warned_of(
    data: Dataset, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    interrupted(monkeypatch)
    assert len(run(QUICK, progress=False).environment["resumed"]) == 1
    assert "differ" not in caplog.text


def test_seconds_count_all_sittings(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = interrupted(monkeypatch)
    rewritten(lambda _, said: said.update(seconds=5000.0))(folder)
    done = run(QUICK, progress=False)
    assert 5000 < done.metrics["seconds"] < 6000
    assert done.history["seconds"].iloc[-1] > 5000 > done.history["seconds"].iloc[2]


def test_values_that_are_not_finite_survive(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = interrupted(monkeypatch)
    odd = [float("nan"), float("inf"), float("-inf")]
    rewritten(lambda _, said: [row.update(loss=value) for row, value in zip(said["rows"], odd, strict=True)])(folder)
    assert run(QUICK, progress=False).history["loss"].head(3).map(str).tolist() == ["nan", "inf", "-inf"]


def test_a_long_epoch_is_saved_within(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "SAVE_SECONDS", -1)
    folder = interrupted(monkeypatch, after=20)
    assert (header(folder / LAST)["epoch"], header(folder / LAST)["step"]) == (4, 2)
    (place,) = run(QUICK, progress=False).environment["resumed"]
    assert (place["epoch"], place["step"]) == (4, 2)


@pytest.mark.parametrize("name", [name for name, cls in MODELS.items() if issubclass(cls, TrainedRecommender)])
def test_every_model_goes_on_within_an_epoch_to_the_same_bits(
    data: Dataset, world: World, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(loop, "SAVE_SECONDS", -1)
    limits = {**SETTINGS, "epochs": 3, "batch_size": 100}
    config = RunConfig(model=name, dataset="world", training=limits)
    folder = interrupted(monkeypatch, 9, config)
    assert (header(folder / LAST)["epoch"], header(folder / LAST)["step"]) == (2, 3)
    finished = load_model(run(config, progress=False), data)
    settings, limits_of = config.resolved()
    other = find_model(name)(settings, world.graph, world.vectors, torch_generator(config.seed, "init"))
    assert isinstance(other, TrainedRecommender)
    valid = RankingTask.from_tables(world.tables, "valid")
    loop.fit(other, world.graph, valid, limits_of, config.seed, progress=False)
    assert {key: torch.equal(tensor, finished.tensors()[key]) for key, tensor in other.tensors().items()} == (
        dict.fromkeys(other.tensors(), True)
    )


def test_short_epochs_are_not_all_saved(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "SAVE_PAUSE", 1e9)
    written = []
    monkeypatch.setattr(loop.TrainingState, "save", lambda now, _: written.append((now.epoch, now.step)))
    run(RunConfig(model="bprmf", dataset="world", training=SETTINGS), progress=False)
    assert written == [(2, 0), (8, 0)]


def test_a_full_disk_leaves_the_state_that_was_there(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = interrupted(monkeypatch)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert len(before) == 2
    with monkeypatch.context() as patch:
        fill_the_disk(patch)
        with pytest.raises(StorageError, match="disk is full"):
            run(QUICK, progress=False)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert run(QUICK, progress=False).environment["resumed"]


def test_a_loss_that_breaks_leaves_the_best_weights_and_names_their_file(
    data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, count, models = loop.training_step, iter(range(1, 100)), []

    def training_step(model: Any, *arguments: Any) -> dict[str, Tensor]:
        models.append(model)
        terms = step(model, *arguments)
        return {name: term * float("nan") if next(count) > 30 else term for name, term in terms.items()}

    monkeypatch.setattr(loop, "training_step", training_step)
    with pytest.raises(TrainingError, match=r"loss term 'bpr' became nan in epoch \d.*best-\d\.safetensors") as raised:
        run(QUICK, progress=False)
    (file,) = paths.runs_root().glob("*/state/best-*")
    assert str(file) in raised.value.message
    stored = load_file(file)
    assert all(torch.equal(tensor, stored[name]) for name, tensor in models[0].tensors().items())
    epoch = int(file.stem.removeprefix("best-"))
    rows = {row["epoch"]: row for row in header(file.parent / LAST)["rows"]}
    means, _ = evaluate(models[0], RankingTask.from_tables(data.tables, "valid"))
    assert means[MONITOR] == rows[epoch][f"valid_{MONITOR}"]


def test_only_one_process_trains_a_run(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = interrupted(monkeypatch)
    name = folder.parent.name
    with (
        exclusive(paths.runs_root() / f".{name}.lock", ""),
        pytest.raises(DataError, match=f"another process is training {name}"),
    ):
        run(QUICK, progress=False)
    run(QUICK, progress=False)
    assert [path.name for path in paths.runs_root().iterdir()] == [name]


def test_sigterm_is_handled_only_while_a_state_is_kept(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    handlers: list[Any] = []
    step = loop.training_step

    def training_step(*arguments: Any) -> dict[str, Tensor]:
        handlers.append(signal.getsignal(signal.SIGTERM))
        return step(*arguments)

    monkeypatch.setattr(loop, "training_step", training_step)
    train(QUICK, data, progress=False)
    assert set(handlers) == {before}
    run(QUICK, progress=False)
    assert before not in handlers[STEPS:]
    assert signal.getsignal(signal.SIGTERM) == before


def test_ctrl_c_says_what_is_true(
    data: Dataset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise Interrupt

    interrupted(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "training_step", interrupt)
        assert main(command("bprmf")) == 130
    assert "the same command goes on from the last epoch" in capsys.readouterr().err
    (folder,) = paths.runs_root().glob("*/state")
    assert header(folder / LAST)["epoch"] == 4
