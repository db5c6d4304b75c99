"""What one training step costs in time and memory, beside the bare products of the text projection, and how it grows.

A step is everything the loop does but validation: its share of shuffling an epoch and drawing negatives, its batch, the
model's draws, losses, gradients, and the optimiser. The floor is what no implementation can leave out that projects
every profile: the float32 products of two linear layers, forward and backward, into buffers that exist already.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from tqdm.auto import tqdm

from benchmarks.measure import alone
from benchmarks.synthetic import SyntheticSize, synthetic_graph, synthetic_vectors
from spike_kit.base.config import Config
from spike_kit.base.devices import deterministic, peak_bytes
from spike_kit.base.errors import ConfigError
from spike_kit.base.seeds import torch_generator
from spike_kit.data.dataset import Dataset
from spike_kit.data.graph import Graph
from spike_kit.data.vectors import ProfileVectors
from spike_kit.models import find_model, find_preset
from spike_kit.models.recommender import Batch, TrainedRecommender
from spike_kit.models.spike import Spike
from spike_kit.profiles.encode import DEFAULT_ENCODER
from spike_kit.profiles.template import TEMPLATE
from spike_kit.training.loop import training_step
from spike_kit.training.sampling import NegativeSampler, epoch_batches

ROUNDS = 5
"""Rounds in which steps and floor take turns."""

_WARM_UP = 5
_GIB = 2**30


class TrainSetup(Config):
    """What `bench_train` measures."""

    model: str = "spike"
    """Name of a model that is trained."""
    preset: str = "recommended"
    """Named setting of the model and its training."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Model settings that differ from the preset."""
    dataset: str = "ml-100k"
    """Data set: a name under data/ or the path of a data-set folder; not looked at where ``synthetic`` is given."""
    synthetic: SyntheticSize | None = None
    """Size of a synthetic study, made in memory."""
    steps: int = Field(default=50, ge=30)
    """Training steps to measure, after a warm-up."""
    batch_size: int | None = Field(default=None, ge=1)
    """Train interactions per step; none: what the preset says."""
    device: str = "cpu"
    """Device, such as cpu or cuda:0."""
    seed: int = 0
    """Seed of the synthetic study and of everything the steps draw."""


class TrainBenchmark(Config):
    """What `bench_train` measured."""

    dataset: str
    """Data set, or synthetic size."""
    model: str
    """Model."""
    preset: str
    """Named setting."""
    device: str
    """Device."""
    threads: int
    """Threads of torch on the CPU."""
    precision: str
    """Number format of the products of the text projection, or of the parameters where there is none."""
    nodes: int
    """Users and entities, U + E."""
    edges: int
    """Directed edges of the knowledge graph, inverses included."""
    interactions: int
    """Train interactions."""
    text_dim: int | None
    """Dimension d_t of the profile vectors; none if the model uses no text."""
    batch_size: int
    """Train interactions per step."""
    step_seconds: float
    """Seconds per training step: median, and a step's share of shuffling an epoch."""
    floor_seconds: float | None
    """Seconds of the bare products of the projection of all profiles, forward and backward (median); SPiKE only."""
    floor_ratio: float | None
    """Median over rounds of the first by the second."""
    peak_rss_gib: float
    """Largest resident memory of the stepping process in GiB, the interpreter and its libraries included."""
    peak_cuda_gib: float | None
    """Largest CUDA memory in GiB that tensors took during the steps; none without CUDA."""


class GrowthRow(Config):
    """One row of the growth curve of `bench_growth`."""

    nodes: int
    """Users and entities, U + E."""
    edges: int
    """Directed edges of the knowledge graph, inverses included."""
    step_seconds: float
    """Seconds per training step."""
    seconds_per_million: float
    """Seconds per step for every million of edges and nodes together."""
    peak_rss_gib: float
    """Largest resident memory in GiB, the interpreter and its libraries included."""


def bench_train(setup: TrainSetup) -> TrainBenchmark:
    """Take training steps in a process of its own, and the floor in turns with them.

    Raises
    ------
    ConfigError, DataError
        If the model is unknown or not trained, or there is no such data set.
    """
    _check(setup)
    return alone(_measure, setup, True)


def bench_growth(setup: TrainSetup, sizes: Sequence[SyntheticSize]) -> list[GrowthRow]:
    """Take training steps on synthetic studies of several sizes, each in a process of its own, without a floor.

    Raises
    ------
    ConfigError
        If the model is unknown or not trained.
    """
    _check(setup)
    rows = []
    for size in tqdm(sizes, desc="bench train", unit="size"):
        measured = alone(_measure, setup.replace(synthetic=size), False)
        rows.append(
            GrowthRow(
                nodes=measured.nodes,
                edges=measured.edges,
                step_seconds=measured.step_seconds,
                seconds_per_million=_rounded(1e6 * measured.step_seconds / (measured.nodes + measured.edges)),
                peak_rss_gib=measured.peak_rss_gib,
            )
        )
    return rows


def _check(setup: TrainSetup) -> None:
    find_preset(setup.model, setup.preset).model.replace(**setup.settings)
    if not issubclass(find_model(setup.model), TrainedRecommender):
        raise ConfigError(f"model {setup.model} is not trained: it has no step to measure", "choose another model")


def _measure(setup: TrainSetup, with_floor: bool) -> TrainBenchmark:
    with deterministic():
        loop = _Loop(setup)
        for _ in range(_WARM_UP):
            loop.step()
        floor, peak, steps, floors = None, (0, None), [], []
        for number in tqdm(range(ROUNDS), desc="bench train", unit="round", disable=not with_floor):
            steps.append([loop.step() for _ in range(-(-setup.steps // ROUNDS))])
            if number == 0:
                peak = peak_bytes(), _peak_cuda(loop.graph.device)
                floor = _Floor(loop) if with_floor and loop.projects else None
            if floor is not None:
                floors.append([floor.products() for _ in steps[-1]])
    extra = loop.epoch_share()
    ratios = [
        (statistics.median(ours) + extra) / statistics.median(bare) for ours, bare in zip(steps, floors, strict=False)
    ]
    return TrainBenchmark(
        dataset=setup.synthetic.name if setup.synthetic else setup.dataset,
        model=setup.model,
        preset=setup.preset,
        device=str(loop.graph.device),
        threads=torch.get_num_threads(),
        precision=_precision(loop.model),
        nodes=loop.graph.n_nodes,
        edges=loop.graph.n_edges,
        interactions=loop.graph.n_interactions,
        text_dim=loop.vectors.dim if loop.vectors else None,
        batch_size=loop.batch_size,
        step_seconds=_rounded(_median(steps) + extra),
        floor_seconds=_rounded(_median(floors)) if floors else None,
        floor_ratio=round(statistics.median(ratios), 3) if ratios else None,
        peak_rss_gib=round(peak[0] / _GIB, 3),
        peak_cuda_gib=None if peak[1] is None else round(peak[1] / _GIB, 3),
    )


def _precision(model: TrainedRecommender) -> str:
    parameters = str(next(model.parameters()).dtype).removeprefix("torch.")
    return getattr(model.config, "text_precision", parameters)


class _Loop:
    """A model on its data, and steps like those of `spike_kit.training.loop.fit`."""

    def __init__(self, setup: TrainSetup) -> None:
        cls, preset = find_model(setup.model), find_preset(setup.model, setup.preset)
        self.graph, self.vectors = _data(setup, cls.uses_text)
        model = cls(
            preset.model.replace(**setup.settings), self.graph, self.vectors, torch_generator(setup.seed, "init")
        )
        assert isinstance(model, TrainedRecommender)
        self.model = model
        self.projects = isinstance(model, Spike) and model.config.uses_text
        self.batch_size = setup.batch_size or preset.training.batch_size
        self.sampler = NegativeSampler(self.graph)
        self.order = torch_generator(setup.seed, "batches")
        self.draws = torch_generator(setup.seed, "draws", self.graph.device)
        self.optimizer = torch.optim.Adam(model.parameters(), lr=preset.training.learning_rate, fused=True)
        self.batches: Iterator[Batch] = iter(())
        self.epoch_seconds: list[float] = []
        model.train()

    def step(self) -> float:
        """Take the next step; returns its seconds, without those of shuffling where an epoch begins."""
        started = _now(self.graph.device)
        batch = next(self.batches, None)
        if batch is None:
            self.batches = epoch_batches(self.graph, self.sampler, self.batch_size, self.order)
            batch = next(self.batches)
            begun = _now(self.graph.device)
            self.epoch_seconds.append(begun - started)
            started = begun
        training_step(self.model, batch, self.model.draw(self.draws), self.optimizer)
        return _now(self.graph.device) - started

    def epoch_share(self) -> float:
        """Seconds of shuffling an epoch and drawing its negatives, for each of its steps."""
        n_steps = -(-self.graph.n_interactions // self.batch_size)
        return statistics.median(self.epoch_seconds) / n_steps


class _Floor:
    """Products of Linear(d_t, d_t) and Linear(d_t, d) over all profiles: forward, and backward to the weights."""

    def __init__(self, loop: _Loop) -> None:
        assert loop.vectors is not None
        self.device = loop.graph.device
        vectors = loop.vectors.to(self.device)
        self.blocks = [_Block(text, loop.model.config.dim) for text in (vectors.user, vectors.entity)]

    def products(self) -> float:
        """Seconds of all products once."""
        started = _now(self.device)
        for block in self.blocks:
            block.products()
        return _now(self.device) - started


class _Block:
    def __init__(self, text: Tensor, dim: int) -> None:
        generator = torch_generator(0, "floor", text.device)
        n, text_dim = text.shape

        def table(rows: int, columns: int) -> Tensor:
            return torch.randn(rows, columns, generator=generator, device=text.device) / text_dim**0.5

        self.text, self.first, self.second = text, table(text_dim, text_dim), table(dim, text_dim)
        self.hidden, self.to_hidden = text.new_empty(n, text_dim), text.new_empty(n, text_dim)
        self.output, self.to_output = text.new_empty(n, dim), table(n, dim)
        self.to_first, self.to_second = torch.empty_like(self.first), torch.empty_like(self.second)

    def products(self) -> None:
        torch.mm(self.text, self.first.T, out=self.hidden)
        torch.mm(self.hidden, self.second.T, out=self.output)
        torch.mm(self.to_output.T, self.hidden, out=self.to_second)
        torch.mm(self.to_output, self.second, out=self.to_hidden)
        torch.mm(self.to_hidden.T, self.text, out=self.to_first)


def _data(setup: TrainSetup, uses_text: bool) -> tuple[Graph, ProfileVectors | None]:
    if setup.synthetic is not None:
        graph = synthetic_graph(setup.synthetic, setup.seed)
        vectors = synthetic_vectors(setup.synthetic, setup.seed) if uses_text else None
    else:
        data = Dataset.open(setup.dataset)
        graph = Graph.from_tables(data.tables)
        vectors = data.vectors(TEMPLATE, DEFAULT_ENCODER) if uses_text else None
    return graph.to(setup.device), vectors


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _peak_cuda(device: torch.device) -> int | None:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def _median(rounds: list[list[float]]) -> float:
    return statistics.median(seconds for measured in rounds for seconds in measured)


def _rounded(seconds: float) -> float:
    return float(f"{seconds:.4g}")
