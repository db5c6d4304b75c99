"""Times the plain step of SPiKE beside the kit's: ``python -m tests.reference.spike_step --dataset ml-100k``."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from spike_kit.base.config import TrainingConfig
from spike_kit.base.seeds import numpy_generator, torch_generator
from spike_kit.data.dataset import Dataset
from spike_kit.data.graph import Graph
from spike_kit.models import find_preset
from spike_kit.models.base import Batch
from spike_kit.models.spike import Spike, SpikeConfig
from spike_kit.profiles.encode import DEFAULT_ENCODER
from spike_kit.profiles.template import TEMPLATE
from spike_kit.training.loop import training_step
from spike_kit.training.sampling import NegativeSampler, epoch_batches
from tests.reference.spike import PlainSpike

_WARM_UP = 2

Step = Callable[[Batch], dict[str, Tensor]]


def compare(dataset: str, preset: str, rounds: int, steps: int) -> tuple[float, float, float]:
    """Median seconds of the plain step and of the kit's, in rounds that take turns, and the median of their ratios."""
    data = Dataset.open(dataset)
    graph, vectors = Graph.from_tables(data.tables), data.vectors(TEMPLATE, DEFAULT_ENCODER)
    named = find_preset("spike", preset)
    config = SpikeConfig.parse(dict(named.model))
    models = [Spike(config, graph, vectors, _generator("init")) for _ in range(2)]
    plain = PlainSpike(models[0], vectors, numpy_generator(0, "edges"))
    takers = (_plain_step(plain, named.training), _our_step(models[1], named.training))
    batches = _batches(graph, named.training.batch_size)
    for take in takers:
        for _ in range(_WARM_UP):
            take(next(batches))
    seconds = [[_median(take, batches, steps) for take in takers] for _ in range(rounds)]
    return (
        statistics.median(theirs for theirs, _ in seconds),
        statistics.median(ours for _, ours in seconds),
        statistics.median(theirs / ours for theirs, ours in seconds),
    )


def _plain_step(plain: PlainSpike, training: TrainingConfig) -> Step:
    optimizer = torch.optim.Adam(plain.parameters.values(), lr=training.learning_rate, foreach=False, fused=False)
    draws = _generator("draws")

    def step(batch: Batch) -> dict[str, Tensor]:
        terms = plain.training_losses(batch, plain.draw(draws))
        optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()
        return terms

    return step


def _our_step(model: Spike, training: TrainingConfig) -> Step:
    optimizer = torch.optim.Adam(model.parameters(), lr=training.learning_rate, fused=True)
    draws = _generator("draws")
    return lambda batch: training_step(model, batch, model.draw(draws), optimizer)


def _batches(graph: Graph, batch_size: int) -> Iterator[Batch]:
    """Full batches of one epoch after another."""
    sampler, generator = NegativeSampler(graph), _generator("batches")
    while True:
        for batch in epoch_batches(graph, sampler, batch_size, generator):
            if batch.users.numel() == min(batch_size, graph.n_interactions):
                yield batch


def _median(take: Step, batches: Iterator[Batch], steps: int) -> float:
    seconds = []
    for _ in range(steps):
        batch = next(batches)
        started = time.perf_counter()
        take(batch)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def _generator(stream: str) -> torch.Generator:
    return torch_generator(0, stream)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--preset", default="released_code")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6, help="steps of each kind in a round")
    options = parser.parse_args()
    theirs, ours, ratio = compare(options.dataset, options.preset, options.rounds, options.steps)
    threads = torch.get_num_threads()
    sys.stdout.write(f"plain step {theirs:.4f} s, kit's {ours:.4f} s, ratio {ratio:.2f} ({threads} threads)\n")
