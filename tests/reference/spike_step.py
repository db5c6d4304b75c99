"""Times the plain step of SPiKE beside the kit's: ``python -m tests.reference.spike_step --dataset ml-100k``."""

from __future__ import annotations

import itertools
import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch
from pydantic import Field

from benchmarks.common import Measured, Setup, in_turns, main, seconds_of
from spike_kit.base.seeds import numpy_generator, torch_generator
from spike_kit.data.dataset import Dataset
from spike_kit.data.graph import Graph
from spike_kit.models import find_preset
from spike_kit.models.spike import Spike, SpikeConfig
from spike_kit.training.loop import training_step
from spike_kit.training.sampling import NegativeSampler, epoch_batches
from tests.reference.spike import PlainSpike


class StepSetup(Setup):
    """What `bench_step` measures."""

    dataset: str = "ml-100k"
    """Data set: a name under data/ or the path of a data-set folder."""
    preset: str = "released_code"
    """Named setting of SPiKE."""
    rounds: int = Field(default=5, ge=1)
    """Rounds in which the two take turns."""
    steps: int = Field(default=6, ge=1)
    """Steps of each in a round."""


def bench_step(setup: StepSetup) -> Measured:
    """Take plain steps and the kit's in turns."""
    data = Dataset.open(setup.dataset)
    graph, vectors, named = Graph.from_tables(data.tables), data.vectors(), find_preset("spike", setup.preset)
    config = SpikeConfig.parse(dict(named.model))
    copied, model = (Spike(config, graph, vectors, torch_generator(0, "init")) for _ in range(2))
    plain = PlainSpike(copied, vectors, numpy_generator(0, "edges"))
    sampler, order, size = NegativeSampler(graph), torch_generator(0, "batches"), named.training.batch_size
    epochs = (epoch_batches(graph, sampler, size, order) for _ in itertools.count())
    batches = (batch for epoch in epochs for batch in epoch)

    def steps_of(model: Spike, loss_terms: Callable, draw: Callable, **adam: Any) -> Callable[[], float]:
        optimizer = torch.optim.Adam(model.parameters(), lr=named.training.learning_rate, **adam)
        draws = torch_generator(0, "draws")

        def step() -> None:
            training_step(loss_terms, next(batches), draw(draws), optimizer)

        step()
        return lambda: statistics.median(seconds_of(step) for _ in range(setup.steps))

    plain_steps = steps_of(copied, plain.training_losses, plain.draw, foreach=False, fused=False)
    theirs, ours, ratio = in_turns(plain_steps, steps_of(model, model, model.draw, fused=True), setup.rounds)
    return {
        "plain_seconds": (round(theirs, 4), "seconds of a plain step (median)"),
        "seconds": (round(ours, 4), "seconds of the kit's"),
        "ratio": (round(ratio, 2), "median over rounds of the first by the second"),
        "threads": (torch.get_num_threads(), "threads of torch"),
    }


if __name__ == "__main__":
    sys.exit(main(StepSetup, bench_step))
