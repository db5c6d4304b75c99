"""The estimate of memory against what a training really takes."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import pytest

MEASURE = """
import json, sys
import torch
from spike_kit.devices import peak_bytes
from benchmarks.synthetic import AMAZON_BOOK, synthetic_graph, synthetic_vectors
from spike_kit.models import find_model, find_preset
from spike_kit.models.footprint import footprint
from spike_kit.sampling import NegativeSampler, epoch_batches
from spike_kit.training.loop import training_step

torch.set_num_threads(1)
name, preset, nodes, settings = json.loads(sys.argv[1])
size = AMAZON_BOOK.replace(text_dim=64).scaled(nodes)
graph, vectors = synthetic_graph(size), synthetic_vectors(size)
config = find_preset(name, preset).model.replace(**settings)
before = peak_bytes()
model = find_model(name)(config, graph, vectors, torch.Generator().manual_seed(0))
optimizer = torch.optim.Adam(model.parameters(), fused=True)
generator = torch.Generator().manual_seed(0)
batches = epoch_batches(graph, NegativeSampler(graph), 1024, generator)
for _ in range(2):
    training_step(model, next(batches), model.draw(generator), optimizer)
with torch.no_grad():
    model.embeddings()
print(json.dumps([peak_bytes() - before, footprint(config, graph, vectors.dim, 1024).total]))
"""


@pytest.mark.parametrize(
    ("name", "preset", "settings"),
    [
        ("spike", "recommended", {}),
        ("spike", "recommended", {"budget_mib": 8, "text_on": "host"}),
        ("spike", "released_code", {"layers": 3}),
        ("lightgcn", "recommended", {}),
    ],
)
def test_the_estimate_is_an_upper_bound_and_not_a_wild_one(name: str, preset: str, settings: dict[str, object]) -> None:
    given = json.dumps([name, preset, 20_000, settings])
    command = [sys.executable, "-c", textwrap.dedent(MEASURE), given]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    taken, estimated = json.loads(ended.stdout)
    assert taken <= estimated <= 4 * taken + 200 * 2**20
