"""Stages of `benchmarks.gpu` that ask whether a GPU computes the same; and what all stages share.

A stage takes the settings, and returns a sentence and what it found.
"""

import dataclasses
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from contextlib import redirect_stderr, redirect_stdout
from functools import cache, partial
from io import StringIO
from pathlib import Path
from subprocess import PIPE, STDOUT
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.cuda import nccl

import spike_kit
from benchmarks.common import GIB, alone, temporary_home
from benchmarks.evaluation import synthetic_task
from benchmarks.profiles import synthetic_dataset
from benchmarks.synthetic import AMAZON_BOOK, SyntheticSize, synthetic_graph, synthetic_vectors
from spike_kit.base.config import Config, TrainingConfig
from spike_kit.base.devices import describe_device, free_memory
from spike_kit.base.seeds import torch_generator
from spike_kit.cli import main as spike_kit_main
from spike_kit.data.graph import Graph
from spike_kit.data.vectors import ProfileVectors
from spike_kit.experiments.run import commit, finished_runs
from spike_kit.models import MODELS, find_model, find_preset
from spike_kit.models.base import Batch, Recommender, TrainedRecommender
from spike_kit.training.checkpoint import History
from spike_kit.training.loop import TrainingStoppedError, fit

ML_100K = SyntheticSize("ml-100k-sized", 938, 938, 4631, 14, 17_618, 41_276)
"""About the ml-100k of the kit, with 938 of its users."""

TOLERANCE = 1e-4
"""Largest difference between CPU and device of a loss or a metric, relative, and of scores as `difference` has it."""

GRADIENT_TOLERANCE = 5e-3
"""The same of gradients. Rounding alone gives about 1e-6; where it turns a ReLU over, one gave 7e-4 (float32 beside
float64 on the CPU)."""

SMALL = 1e-3
"""Share of the longest gradient of a model; a shorter one, of terms that cancel out, is compared with this instead."""

COMPUTED = ("neighbours", "low_rank")
"""What models compute by products while they are built, which may differ by more than rounding: near ties are ordered
otherwise, and factors turned."""

ABORTED = "terminate called without an active exception"
"""What a process says that torch aborts at its exit, now and then, when all is written: a thread of gloo outlived
Python (pytorch, pull request 179291)."""

EPOCHS, STOPPED = 3, 2
"""Epochs of a short training, and the epoch in which SIGTERM comes."""

Found = tuple[str, dict[str, Any]]
"""What a stage says in one sentence, and its numbers."""


class GpuSetup(Config):
    """What `benchmarks.gpu` checks and measures."""

    device: str = "cuda"
    """Device: cuda, cuda:N, or cpu for a dry run."""
    out: Path = Path("gpu.json")
    """JSON file that is written, anew after every stage."""
    quick: bool = False
    """Small sizes and few steps, for a dry run: its times say nothing."""
    minutes: float = Field(default=9.5, gt=0)
    """Time for all stages; what is not done by then is reported as failed."""

    @property
    def small(self) -> SyntheticSize:
        """Size of the graph of checks."""
        return _tiny(1000) if self.quick else ML_100K

    @property
    def large(self) -> SyntheticSize:
        """Size of the large graph."""
        return _tiny(2000) if self.quick else AMAZON_BOOK

    @property
    def short(self) -> TrainingConfig:
        """A training with several steps, validations, and what moments and generators keep from one to the next."""
        size = 2048 if self.quick else 8192
        return TrainingConfig(epochs=EPOCHS, batch_size=size, learning_rate=1e-2, eval_every=1, patience=0)


def _tiny(nodes: int) -> SyntheticSize:
    return dataclasses.replace(AMAZON_BOOK.scaled(nodes), name=f"{nodes} nodes", text_dim=32)


class CheckError(Exception):
    """Something is not as it must be; what else was found comes along."""

    def __init__(self, message: str, found: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.found = found or {}


class SkippedError(Exception):
    """A stage needs what the machine has not."""


def machine(setup: GpuSetup) -> Found:
    """Device, versions and memory."""
    device = torch.device(setup.device)
    found: dict[str, Any] = {
        "device": describe_device(device),
        "spike_kit": f"{spike_kit.__version__}, commit {commit()}",
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "float32_products": torch.get_float32_matmul_precision(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "free_gib": round(free_memory(device) / GIB, 2),
    }
    if device.type == "cuda":
        facts = torch.cuda.get_device_properties(device)
        found |= {
            "gpus": torch.cuda.device_count(),
            "capability": f"{facts.major}.{facts.minor}",
            "multiprocessors": facts.multi_processor_count,
            "total_gib": round(facts.total_memory / GIB, 2),
            "nccl": ".".join(map(str, nccl.version())),
        }
    return f"{found['device']}, torch {found['torch']}, CUDA {found['cuda']}, {found['free_gib']} GiB free", found


def first_product(setup: GpuSetup) -> Found:
    """Train every model in a process that multiplied before deterministic arithmetic was first asked for."""
    found = alone(_multiply_and_train, setup)
    return f"{len(found)} models are trained after a plain product", found


def _multiply_and_train(setup: GpuSetup) -> dict[str, float]:
    plain = torch.ones(8, 8, device=setup.device)
    if float((plain @ plain).sum()) != 512:
        raise CheckError("the sum of a product of ones is not what it must be")

    def loss(model: str, preset: str) -> float:
        return _trained(setup, model, preset)[1].rows[-1]["loss"]

    return each(loss, recommended())


def parity(setup: GpuSetup) -> Found:
    """Loss terms and gradients of one step of every model and preset: the same draws on the CPU and on the device.

    Dropout is left out, whose masks no two kinds of device draw alike. Of models without training: the scores.
    """
    found = each(partial(_differences, setup), [(name, preset) for name in MODELS for preset in MODELS[name].presets])
    worst = max(found, key=lambda name: found[name])
    return f"{len(found)} forms; largest difference {found[worst]:.1e} ({worst})", found


def _differences(setup: GpuSetup, model: str, preset: str) -> float:
    graph, _ = inputs(setup.small)
    one, other = (build(model, preset, inputs(setup.small), device) for device in ("cpu", setup.device))
    if not isinstance(one, TrainedRecommender) or not isinstance(other, TrainedRecommender):
        users = torch.arange(64)
        expected, found = ({"scores": built.score(users.to(built.device)).cpu()} for built in (one, other))
        return difference(expected, found, TOLERANCE)
    _align(one, other)
    rows = torch.randperm(graph.n_interactions, generator=torch_generator(0, "rows"))[:512]
    users, items = graph.train_user[rows], graph.train_item[rows]
    batch, draws = Batch(users, items, items.roll(1)), one.draw(torch_generator(0, "draws"))
    (terms, gradients), (other_terms, other_gradients) = (_gradients(built, batch, draws) for built in (one, other))
    apart = difference(terms, other_terms, TOLERANCE)
    return max(apart, difference(gradients, other_gradients, GRADIENT_TOLERANCE, SMALL))


def _align(one: TrainedRecommender, other: TrainedRecommender) -> None:
    """Give a model what another of the same form has: its tensors, and what it computed while it was built."""
    computed = {name: value for name, value in vars(one).items() if name in COMPUTED}
    vars(other).update(moved(computed, other.device))
    other.load_tensors(one.tensors())


def _gradients(model: TrainedRecommender, batch: Batch, draws: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    terms = model.training_losses(moved(batch, model.device), moved(draws, model.device))
    torch.stack(list(terms.values())).sum().backward()
    gradients = {name: one.grad.cpu() for name, one in model.named_parameters() if one.grad is not None}
    return {name: term.detach().cpu() for name, term in terms.items()}, gradients


def moved(value: Any, device: torch.device | str) -> Any:
    """Tensors in tuples, lists, dicts and dataclasses on another device; none for a generator, so nothing drops out."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, torch.Generator):
        return None
    if isinstance(value, dict):
        return {name: moved(one, device) for name, one in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(moved(one, device) for one in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
        return dataclasses.replace(value, **moved(fields, device))
    return value


def difference(expected: dict[str, Tensor], found: dict[str, Tensor], allowed: float, small: float = 0.0) -> float:
    """Largest difference of two tensors of one name: its length by that of the expected one.

    Parameters
    ----------
    expected, found
        Tensors by name.
    allowed
        Largest difference that is none.
    small
        Share of the longest tensor that stands for the length of a shorter one.

    Raises
    ------
    CheckError
        If a difference is larger, or no number, or the names differ.
    """
    if not expected or expected.keys() != found.keys():
        raise CheckError(f"there is {', '.join(found)}, expected {', '.join(expected)}")
    lengths = {name: float(value.norm()) for name, value in expected.items()}
    least = small * max(lengths.values()) or torch.finfo(torch.float32).tiny
    apart = {name: float((found[name] - expected[name]).norm()) / max(lengths[name], least) for name in expected}
    if larger := [f"{name} by {share:.1e}" for name, share in apart.items() if not share <= allowed]:
        raise CheckError(f"{', '.join(larger)} of its length, allowed are {allowed:.0e}")
    return max(apart.values())


def determinism(setup: GpuSetup) -> Found:
    """Train every form twice; the weights must be the same bits."""

    def check(model: str, preset: str) -> int:
        return _same_bits(_plain(setup.device, setup.quick, model, preset), _trained(setup, model, preset)[0])

    found = each(check, recommended() if setup.quick else every_preset())
    return f"{len(found)} forms trained twice, {EPOCHS} epochs: the same bits", found


def resume(setup: GpuSetup) -> Found:
    """Stop the training of every model by SIGTERM and go on; it must end with the bits of one that was not stopped."""

    def check(model: str, preset: str) -> int:
        with tempfile.TemporaryDirectory() as folder:
            try:
                _trained(setup, model, preset, Path(folder), stop=STOPPED)
            except TrainingStoppedError:
                resumed, history = _trained(setup, model, preset, Path(folder))
            else:
                raise CheckError("SIGTERM did not stop the training")
        if [row["epoch"] for row in history.resumed] != [STOPPED + 1]:
            raise CheckError(f"the training did not go on from epoch {STOPPED + 1}: {history.resumed}")
        return _same_bits(_plain(setup.device, setup.quick, model, preset), resumed)

    found = each(check, recommended())
    return f"{len(found)} models stopped after epoch {STOPPED} of {EPOCHS}, resumed: the same bits", found


def _trained(
    setup: GpuSetup, model: str, preset: str, state: Path | None = None, stop: int = 0
) -> tuple[TrainedRecommender, History]:
    """Train on the small graph; SIGTERM comes in the epoch ``stop``."""
    built = build(model, preset, inputs(setup.small), setup.device)
    assert isinstance(built, TrainedRecommender)
    _, task = synthetic_task(built.graph.n_users, built.graph.n_items)

    def report(row: dict[str, Any]) -> None:
        if row["epoch"] == stop:
            signal.raise_signal(signal.SIGTERM)

    history = fit(built, built.graph, moved(task, setup.device), setup.short, 0, False, report, state=state)
    return built, history


@cache
def _plain(device: str, quick: bool, model: str, preset: str) -> dict[str, Tensor]:
    """Tensors after a training without interruption, on the CPU."""
    built, _ = _trained(GpuSetup(device=device, quick=quick), model, preset)
    return moved(built.tensors(), "cpu")


def _same_bits(expected: dict[str, Tensor], model: TrainedRecommender) -> int:
    """Count the tensors of a model, which must be equal to the expected ones."""
    found = model.tensors()
    if differing := [name for name, value in expected.items() if not torch.equal(value, found[name].cpu())]:
        raise CheckError(f"other bits in {', '.join(differing)}")
    return len(expected)


def beyond(setup: GpuSetup) -> Found:
    """Train by the command, and let ``evaluate --beyond`` look at the lists of the run."""
    with temporary_home():
        data = synthetic_dataset("beyond", 1000, valid=0.1, test=0.2)
        where = ["--device", setup.device]
        _command("train", "--model", "bprmf", "--epochs", "2", "--dataset", data.name, *where)
        shown = _command("evaluate", data.name, "--beyond", "10", *where)
    if "coverage" not in shown:
        raise CheckError(f"evaluate --beyond shows no coverage: {shown[:200]}")
    return "train, then evaluate --beyond 10", {"shown": shown}


def processes(setup: GpuSetup) -> Found:
    """Train in two processes of torchrun, with NCCL on two GPUs: losses must be those of one process."""
    kind = torch.device(setup.device).type
    if kind == "cuda" and torch.cuda.device_count() < 2:
        raise SkippedError("needs two GPUs")
    words = ["train", "--model", "lightgcn", "--epochs", "3", "--batch-size", "512", "--device", kind]
    losses, printed = [], ""
    for train in (_command, _torchrun):
        with temporary_home():
            data = synthetic_dataset("processes", 1000, valid=0.1, test=0.2)
            printed = train(*words, "--dataset", data.name)
            (run,) = finished_runs(data)
            losses.append(run.history["loss"].to_numpy())
    apart = float(np.abs(losses[1] / losses[0] - 1).max())
    found = {"losses": [one.tolist() for one in losses], "largest_difference": apart}
    if not apart <= TOLERANCE:
        raise CheckError(f"losses differ by {apart:.1e}, allowed are {TOLERANCE:.0e}", found)
    said = f"two processes ({'NCCL' if kind == 'cuda' else 'gloo'}): losses differ by {apart:.1e} at most"
    return f"{said}; one aborted at its exit, after all was written" if ABORTED in printed else said, found


def _command(*words: str) -> str:
    """What a command of the kit prints."""
    printed, said = StringIO(), StringIO()
    with redirect_stdout(printed), redirect_stderr(said):
        try:
            code = spike_kit_main(words)
        except SystemExit as end:
            code = end.code
    if code:
        raise CheckError(f"spike-kit {' '.join(words)} ended with {code}: {said.getvalue().strip()[-800:]}")
    return printed.getvalue()


def _torchrun(*words: str) -> str:
    """What two processes print that carry out a command of the kit."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    with subprocess.Popen([*launch, "-m", "spike_kit", *words], stdout=PIPE, stderr=STDOUT, text=True) as launched:
        try:
            said, _ = launched.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            launched.terminate()  # torchrun then ends its processes
            raise
    if launched.returncode and ABORTED not in said:
        raise CheckError(f"torchrun ended with {launched.returncode}", {"printed": said.splitlines()[-200:]})
    return said


@cache
def inputs(size: SyntheticSize) -> tuple[Graph, ProfileVectors]:
    """Synthetic graph and vectors of a size, on the CPU."""
    return synthetic_graph(size), synthetic_vectors(size)


def build(model: str, preset: str, given: tuple[Graph, ProfileVectors], device: torch.device | str) -> Recommender:
    """Untrained model of a preset on a device, the same at every call."""
    graph, vectors = given
    config = find_preset(model, preset).model
    return find_model(model)(config, graph.to(device), vectors, torch_generator(0, "init"))


def every_preset() -> list[tuple[str, str]]:
    """Trained models of the registry, each with all its presets."""
    models = ((name, model) for name, model in MODELS.items() if issubclass(model, TrainedRecommender))
    return [(name, preset) for name, model in models for preset in model.presets]


def recommended() -> list[tuple[str, str]]:
    """Trained models of the registry, each with its recommended preset."""
    return [form for form in every_preset() if form[1] == "recommended"]


def each(work: Callable[..., Any], forms: Iterable[tuple[str, ...]]) -> dict[str, Any]:
    """What comes out for each form, by its name.

    Raises
    ------
    CheckError
        At the end, if some failed: it says which and why, and brings along what the others gave.
    """
    found: dict[str, Any] = {}
    failed: dict[str, str] = {}
    for form in forms:
        try:
            found["/".join(form)] = work(*form)
        except Exception as error:
            failed["/".join(form)] = f"{type(error).__name__}: {str(error)[:300]}"
    if failed:
        said = "; ".join(f"{name}: {why}" for name, why in failed.items())
        raise CheckError(f"{len(failed)} of {len(failed) + len(found)} failed: {said}", {"failed": failed, **found})
    return found
