"""What one training step costs in time and memory, beside the bare products of the text projection, and how it grows.

A step is everything the loop does but validation: its share of shuffling an epoch and drawing negatives, its batch, the
model's draws, losses, gradients, and the optimiser. The floor is what no implementation can leave out that projects
every profile: the float32 products of two linear layers with the vectors that the model projects (after whitening,
where the preset whitens them), forward and backward, rows into buffers that exist already.
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice

import torch
from pydantic import Field
from torch import Tensor
from tyro.conf import UseAppendAction

from benchmarks.common import GIB, Measured, Setup, alone, in_turns, main
from benchmarks.synthetic import SyntheticSize, parse_sizes, synthetic_graph, synthetic_vectors
from spike_kit.base.config import Config
from spike_kit.base.devices import deterministic, peak_bytes, resolve_device
from spike_kit.base.errors import ConfigError
from spike_kit.base.seeds import torch_generator
from spike_kit.data.dataset import Dataset
from spike_kit.data.graph import Graph
from spike_kit.data.vectors import ProfileVectors
from spike_kit.experiments.run import RunConfig
from spike_kit.experiments.search import parse_fixed
from spike_kit.models import find_model, find_preset
from spike_kit.models.base import TrainedRecommender
from spike_kit.models.spike import Spike
from spike_kit.training.loop import training_step
from spike_kit.training.sampling import NegativeSampler, epoch_batches

ROUNDS = 5
"""Rounds in which steps and floor take turns."""

GROWTH = ("nodes", "edges", "step_seconds", "seconds_per_million", "peak_rss_gib")
"""What is shown of several sizes."""

_WARM_UP = 5


class TrainSetup(Setup):
    """What `bench_train` measures."""

    model: str = "spike"
    """Name of a model that is trained."""
    preset: str = "recommended"
    """Named setting of the model and its training."""
    fix: UseAppendAction[tuple[str, ...]] = ()
    """A model setting that differs from the preset, as name=value; may be repeated: --fix text_precision=bfloat16."""
    dataset: str = "ml-100k"
    """Data set: a name under data/ or the path of a data-set folder; not looked at where ``synthetic`` is given."""
    synthetic: str = ""
    """Train on a synthetic graph instead: amazon-book, a number of nodes, or several with commas (how cost grows)."""
    steps: int = Field(default=50, ge=30)
    """Training steps to measure, after a warm-up."""
    batch_size: int | None = Field(default=None, ge=1)
    """Train interactions per step; none: what the preset says."""
    device: str = "auto"
    """Device: auto (CUDA where present), cpu, cuda or cuda:N."""


def bench_train(setup: TrainSetup) -> Measured | list[Measured]:
    """Take training steps, beside the bare products of the text projection.

    Several sizes give a table of how cost grows; every size has a process of its own.
    """
    setup = setup.replace(device=str(resolve_device(setup.device)))
    _settings(setup)
    sizes = parse_sizes(setup.synthetic) if setup.synthetic else [None]
    measured = [alone(_measure, setup, size) for size in sizes]
    return [{name: row[name] for name in GROWTH} for row in measured] if len(measured) > 1 else measured[0]


def _settings(setup: TrainSetup) -> Config:
    """Settings of the model, if it is one that is trained."""
    config = RunConfig(model=setup.model, preset=setup.preset)
    if not issubclass(find_model(setup.model), TrainedRecommender):
        raise ConfigError(f"model {setup.model} is not trained: it has no step to measure", "choose another model")
    return find_preset(setup.model, setup.preset).model.replace(**parse_fixed(config, setup.fix))


def _measure(setup: TrainSetup, size: SyntheticSize | None) -> Measured:
    with deterministic():
        model, graph, text = _model(setup, size)
        batch_size = setup.batch_size or find_preset(setup.model, setup.preset).training.batch_size
        shuffles: list[float] = []
        steps, per_round = timed_steps(model, graph, batch_size, shuffles), -(-setup.steps // ROUNDS)
        for _ in range(_WARM_UP):
            next(steps)
        peaks = peak_bytes(), peak_bytes(graph.device)

        def ours() -> float:
            return statistics.median(islice(steps, per_round))

        if text is not None and isinstance(model, Spike):
            products = _floor(model, text)
            seconds, floor, ratio = in_turns(
                ours, lambda: statistics.median(products() for _ in range(per_round)), ROUNDS
            )
        else:
            seconds, floor, ratio = statistics.median(ours() for _ in range(ROUNDS)), None, None
    extra = statistics.median(shuffles) / -(-graph.n_interactions // batch_size)
    seconds += extra
    precision = getattr(model.config, "text_precision", str(next(model.parameters()).dtype).removeprefix("torch."))
    size_in_millions = (graph.n_nodes + graph.n_edges) / 1e6
    return {
        "dataset": (size.name if size else setup.dataset, "data set, or synthetic size"),
        "model": (setup.model, "model"),
        "preset": (setup.preset, "named setting"),
        "device": (str(graph.device), "device"),
        "threads": (torch.get_num_threads(), "threads of torch on the CPU"),
        "precision": (precision, "number format of the products of the text projection, or of the parameters"),
        "nodes": (graph.n_nodes, "users and entities, U + E"),
        "edges": (graph.n_edges, "directed edges of the knowledge graph, inverses included"),
        "interactions": (graph.n_interactions, "train interactions"),
        "text_dim": (text and text.dim, "dimension of the vectors that the model multiplies; none without text"),
        "batch_size": (batch_size, "train interactions per step"),
        "step_seconds": (_rounded(seconds), "seconds per step (median), with its share of shuffling"),
        "seconds_per_million": (_rounded(seconds / size_in_millions), "the same for a million of edges and nodes"),
        "floor_seconds": (floor and _rounded(floor), "seconds of the bare products; SPiKE only"),
        "floor_ratio": (ratio and floor and _rounded(ratio + extra / floor), "step by floor, median over rounds"),
        "peak_rss_gib": (round(peaks[0] / GIB, 3), "largest resident memory in GiB, the interpreter included"),
        "peak_cuda_gib": (
            round(peaks[1] / GIB, 3) if graph.device.type == "cuda" else None,
            "largest CUDA memory in GiB that tensors took; none without CUDA",
        ),
    }


def _model(setup: TrainSetup, size: SyntheticSize | None) -> tuple[TrainedRecommender, Graph, ProfileVectors | None]:
    """Untrained model, its graph, and the vectors that it multiplies."""
    cls = find_model(setup.model)
    if size is not None:
        graph, vectors = synthetic_graph(size), synthetic_vectors(size) if cls.uses_text else None
    else:
        data = Dataset.open(setup.dataset)
        graph, vectors = Graph.from_tables(data.tables), data.vectors() if cls.uses_text else None
    model = cls(_settings(setup), graph.to(setup.device), vectors, torch_generator(0, "init"))
    assert isinstance(model, TrainedRecommender)
    return model, model.graph, getattr(model, "text", vectors)


def timed_steps(model: TrainedRecommender, graph: Graph, batch_size: int, shuffles: list[float]) -> Iterator[float]:
    """Take steps like those of `spike_kit.training.loop.fit`, without end; yields the seconds of each.

    Seconds of shuffling an epoch and drawing its negatives are appended to ``shuffles`` instead.
    """
    sampler, order = NegativeSampler(graph), torch_generator(0, "batches")
    draws = torch_generator(0, "draws", graph.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    model.train()
    while True:
        begun = _now(graph.device)
        for number, batch in enumerate(epoch_batches(graph, sampler, batch_size, order)):
            started = _now(graph.device)
            if number == 0:
                shuffles.append(started - begun)
            training_step(model, batch, model.draw(draws), optimizer)
            yield _now(graph.device) - started


def _floor(model: TrainedRecommender, text: ProfileVectors) -> Callable[[], float]:
    """Function that forms the products of Linear(d_t, d_t) and Linear(d_t, d) over all profiles, and says its seconds.

    They are the forward products and the backward ones to the weights.
    """
    device, dim = model.device, model.config.dim
    generator = torch_generator(0, "floor", device)

    def block(rows: Tensor) -> tuple[Tensor, ...]:
        n, text_dim = rows.shape
        shapes = (text_dim, text_dim), (dim, text_dim), (n, dim)
        tables = (torch.randn(shape, generator=generator, device=device) / text_dim**0.5 for shape in shapes)
        return rows, *tables, rows.new_empty(n, text_dim), rows.new_empty(n, text_dim), rows.new_empty(n, dim)

    blocks = [block(rows) for rows in (text.user.to(device), text.entity.to(device))]

    def products() -> float:
        started = _now(device)
        for rows, first, second, to_output, hidden, to_hidden, output in blocks:
            torch.mm(rows, first.T, out=hidden)
            torch.mm(hidden, second.T, out=output)
            torch.mm(to_output.T, hidden)
            torch.mm(to_output, second, out=to_hidden)
            torch.mm(to_hidden.T, rows)
        return _now(device) - started

    return products


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _rounded(seconds: float) -> float:
    return float(f"{seconds:.4g}")


if __name__ == "__main__":
    sys.exit(main(TrainSetup, bench_train))
