"""Several processes on 127.0.0.1 that train one model: the same gradients, messages, runs; and no endless waiting."""

import os
import signal
import socket
import subprocess
import sys
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed as dist
from torch.multiprocessing.spawn import start_processes

from spike_kit.base import devices, distributed
from spike_kit.base.errors import ConfigError, DeviceError, StorageError, TrainingError
from spike_kit.base.seeds import torch_generator
from spike_kit.cli import main
from spike_kit.data.dataset import Dataset
from spike_kit.experiments.run import Run, RunConfig, list_runs, run, train
from spike_kit.models.base import Batch, TrainedRecommender
from spike_kit.training import loop
from spike_kit.training.loop import TrainingStoppedError, training_step
from tests.test_storage import fill_the_disk
from tests.world import build, make_world

MODELS = {
    "spike": {"dim": 8, "loss": "bpr", "l2": 0.01, "matching_weight": 5.0},
    "lightgcn": {"dim": 8, "l2": 0.01},
    "bprmf": {"dim": 8, "loss": "bpr", "l2": 0.01},
    "spike released": {"dim": 8, "loss": "cosine_softmax", "separate_masks": True, "matching": "sampled"},
}
SIZES = (7, 64, 1)
"""Batches that two processes cannot share equally; of the last one, the second process gets nothing."""


def built(name: str) -> tuple[TrainedRecommender, list[Batch]]:
    world = make_world()
    model = build(name.split()[0], world, **MODELS[name])
    graph, generator = world.graph, torch_generator(0, "batch")
    batches = []
    for size in SIZES:
        rows = torch.randperm(graph.n_interactions, generator=generator)[:size]
        negatives = torch.randint(graph.n_items, (size,), generator=generator)
        batches.append(Batch(graph.train_user[rows], graph.train_item[rows], negatives))
    return model, batches


def gradients(name: str) -> list[dict[str, torch.Tensor]]:
    """Gradients of a model on each batch, before optimiser steps that change nothing, and the loss terms."""
    model, batches = built(name)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    loss_terms = distributed.shared(model, optimizer)
    found = []
    for batch in batches:
        terms = training_step(loss_terms, batch, model.draw(torch_generator(0, "draws")), optimizer)
        found.append({f"term {name}": term for name, term in distributed.mean(terms).items()})
        found[-1] |= {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}
    return found


def environ(rank: int, size: int, port: int) -> dict[str, str]:
    """What torchrun says to a process."""
    values = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    given = {name: str(value) for name, value in values.items()}
    return {**given, "MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "test"}


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


def member(rank: int, port: int) -> None:
    """What one of two processes checks; an assertion that fails ends both."""
    torch.set_num_threads(1)
    os.environ.update(environ(rank, 2, port))
    expected = {name: gradients(name) for name in MODELS}
    with distributed.group(torch.device("cpu"), timedelta(seconds=60)):
        assert (distributed.rank(), distributed.size()) == (rank, 2)
        for name, wanted in expected.items():
            torch.testing.assert_close(gradients(name), wanted, atol=1e-5, rtol=1e-5, check_dtype=False)
        _check_messages(rank)
        with pytest.raises(ConfigError, match="phase of its own"):
            run(RunConfig(model="kgat", dataset="world", training={"epochs": 1}), progress=False)
        _check_interruptions(rank)


def _check_messages(rank: int) -> None:
    assert distributed.any_of(rank == 1, False) == (True, False)
    assert distributed.agreed(4, 2)
    assert not distributed.agreed(4, rank)
    asked = []
    value = {"ä": [1, None, float("inf")]}
    assert distributed.on_first(lambda: asked.append(rank) or value) == value
    assert asked == ([0] if rank == 0 else [])

    def refuse() -> None:
        raise ConfigError("no such thing", "do another")

    with pytest.raises(ConfigError if rank == 0 else TrainingError, match="no such thing"):
        distributed.on_first(refuse)


SHARED = RunConfig(model="lightgcn", dataset="world", training={"epochs": 6, "batch_size": 100, "eval_every": 2})


def _check_interruptions(rank: int) -> None:
    """SIGTERM to one process stops both after the same epoch; a full disk of the first is told to both; both go on."""
    step, taken = loop.training_step, []

    def training_step(*arguments: Any) -> dict[str, torch.Tensor]:
        taken.append(rank)
        if rank == 1 and len(taken) == 15:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "training_step", training_step)
        with pytest.raises(TrainingStoppedError, match="from epoch 4"):
            run(SHARED, progress=False)
    assert len(taken) == 18
    with pytest.MonkeyPatch.context() as patch:
        if rank == 0:
            fill_the_disk(patch)
        with pytest.raises(StorageError if rank == 0 else TrainingError, match="disk is full"):
            run(SHARED, progress=False)
    done = run(SHARED, progress=False)
    (place,) = done.environment["resumed"]
    assert (place["epoch"], place["processes"]) == (4, 2)
    expected, _ = train(SHARED, Dataset.open("world"), progress=False)
    assert all(torch.equal(tensor, expected.tensors()[name]) for name, tensor in done.tensors().items())


@pytest.mark.usefixtures("data")
def test_gradients_messages_and_interruptions_of_two_processes() -> None:
    start_processes(member, (free_port(),), nprocs=2, start_method="spawn")


def unlike(rank: int, port: int, models: list[str]) -> None:
    """A process with a GPU of one of these models is told all of them, and does not train."""
    os.environ.update(environ(rank, len(models), port))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "device_model", lambda _: models[rank])
        with pytest.raises(DeviceError) as refused, distributed.group(torch.device("cpu"), timedelta(seconds=60)):
            pytest.fail("it trained")
    assert all(f"{model} (process {number})" in str(refused.value) for number, model in enumerate(models))
    dist.destroy_process_group()


def test_devices_of_two_models_are_refused_by_name() -> None:
    start_processes(unlike, (free_port(), ["NVIDIA H200", "Tesla T4"]), nprocs=2, start_method="spawn")


@pytest.mark.parametrize("models", [["cpu"] * 3, ["NVIDIA H200"] * 2, ["a" * 200] * 2, ["cpu", "GPU é", "cpu"]])
def test_all_devices_are_of_one_model(monkeypatch: pytest.MonkeyPatch, models: list[str]) -> None:
    said: list[torch.Tensor] = []

    def all_gather(parts: list[torch.Tensor], own: torch.Tensor) -> None:
        said.append(own.clone())
        for part, other in zip(parts, said, strict=False):
            part.copy_(other)

    monkeypatch.setattr(dist, "all_gather", all_gather)
    for number, model in enumerate(models, start=1):
        monkeypatch.setattr(distributed, "size", lambda number=number: number)
        expected = pytest.raises(DeviceError, match="é") if "GPU é" in models[:number] else nullcontext()
        with expected:
            distributed._check_models(model)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (dist.DistBackendError("NCCL communicator was aborted on rank 1"), TrainingError),
        (RuntimeError("Watchdog caught collective operation timeout: ProcessGroupNCCL"), TrainingError),
        (RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer"), TrainingError),
        (RuntimeError("CUDA error: device-side assert triggered"), RuntimeError),
    ],
)
def test_what_gloo_and_nccl_say_of_lost_processes_is_explained(
    monkeypatch: pytest.MonkeyPatch, error: Exception, expected: type[Exception]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    for name, value in environ(0, 2, 1).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr(dist, "init_process_group", fail)
    with pytest.raises(expected) as raised, distributed.group(torch.device("cpu")):
        pass
    assert ("process 0 of 2 lost the others" in str(raised.value)) == (expected is TrainingError)


def lonely(rank: int, port: int) -> None:
    os.environ.update(environ(rank, 2, port))
    with distributed.group(torch.device("cpu"), timedelta(seconds=3)):
        dist.barrier()
        if rank == 1:
            os.read(os.pipe()[0], 1)
        distributed.on_first(lambda: distributed.any_of(False))


@pytest.mark.pipeline
def test_a_process_that_is_silent_ends_the_others() -> None:
    context = start_processes(lonely, (free_port(),), nprocs=2, start_method="spawn", join=False)
    assert context is not None
    with pytest.raises(Exception, match="lost the others"):
        while not context.join(timeout=60):
            pass


@pytest.mark.pipeline
def test_torchrun_trains_one_model_to_the_metrics_of_one_process(data: Dataset, home: Path) -> None:
    settings = {"epochs": 8, "batch_size": 100, "learning_rate": 0.01}
    options = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
    command += ["-m", "spike_kit", "train", "--model=spike", "--dataset=world", "--device=cpu", *options]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240)
    # Threads of gloo may outlive Python, which ends a process with SIGABRT after everything is written.
    assert ended.returncode == 0 or "terminate called without an active exception" in ended.stderr, ended.stderr
    (shared,) = list_runs()
    assert ended.stdout.count(shared.path.name) == 1
    assert ended.stderr.count("8/8") > 0
    shared = Run(shared.path.rename(home / "shared"))
    alone = run(RunConfig(dataset="world", training=settings), progress=False)
    assert alone.path.name in ended.stdout
    assert [done.environment["world_size"] for done in (shared, alone)] == [2, 1]
    assert shared.history["loss"].tolist() == pytest.approx(alone.history["loss"].tolist(), rel=1e-3)
    for split in ("valid", "test"):
        assert shared.metrics[split] == pytest.approx(alone.metrics[split], abs=0.03)
    assert {path.name for path in shared.path.iterdir()} == {path.name for path in alone.path.iterdir()}


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices.resolve_device("cuda") == torch.device("cuda")
    for name, value in environ(1, 2, 1).items():
        monkeypatch.setenv(name, value)
    assert devices.resolve_device("cuda") == devices.resolve_device("auto") == torch.device("cuda:1")
    assert devices.resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(DeviceError, match="2 processes of torchrun cannot all use cuda:0"):
        devices.resolve_device("cuda:0")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(DeviceError, match="there is no cuda:2"):
        devices.resolve_device("cuda")


def test_only_train_is_shared(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in environ(1, 2, 1).items():
        monkeypatch.setenv(name, value)
    assert main(["demo"]) == 1
    assert "processes of torchrun cannot share 'demo'" in capsys.readouterr().err
