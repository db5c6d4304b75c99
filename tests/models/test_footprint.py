"""The estimate of memory against what a training really takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

STATUS = Path("/proc/self/status")

MEASURE = """
import dataclasses, json, os, sys
from pathlib import Path
import torch
from benchmarks.synthetic import AMAZON_BOOK, synthetic_graph, synthetic_vectors
from spike_kit.models import find_model, find_preset
from spike_kit.models.footprint import footprint
from spike_kit.training.loop import training_step
from spike_kit.training.sampling import NegativeSampler, epoch_batches

torch.set_num_threads(1)
size = dataclasses.replace(AMAZON_BOOK, text_dim=64).scaled(20_000)
graph, vectors = synthetic_graph(size), synthetic_vectors(size)

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":")) * 1024

def measured(name, preset, settings):
    # Mapped pages (libraries) only grow: the peak without them is at least the whole peak less those at the end.
    config = find_preset(name, preset).model.replace(**settings)
    before = status("RssAnon")
    model = find_model(name)(config, graph, vectors, torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    generator = torch.Generator().manual_seed(0)
    batches = epoch_batches(graph, NegativeSampler(graph), 1024, generator)
    for _ in range(2):
        training_step(model, next(batches), model.draw(generator), optimizer)
    with torch.no_grad():
        model.embeddings()
    taken = status("VmHWM") - status("RssFile") - status("RssShmem") - before
    return [taken, footprint(config, graph, vectors.dim, 1024).total]

for case in json.loads(sys.argv[1]):
    child = os.fork()
    if not child:
        print(json.dumps(measured(*case)), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""
"""Trains each case in a process of its own; prints what it took apart from mapped pages, and the estimate."""

CASES = {
    "spike": ("spike", "recommended", {}),
    "spike in chunks": ("spike", "recommended", {"budget_mib": 8, "text_on": "host"}),
    "spike released": ("spike", "released_code", {"layers": 3}),
    "lightgcn": ("lightgcn", "recommended", {}),
}
"""Model, preset, settings."""


def test_the_estimate_is_an_upper_bound_and_not_a_wild_one() -> None:
    if not STATUS.is_file() or "RssAnon:" not in STATUS.read_text():
        pytest.skip("this system does not tell mapped pages from memory")
    command = [sys.executable, "-c", MEASURE, json.dumps(list(CASES.values()))]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    for case, line in zip(CASES, ended.stdout.splitlines(), strict=True):
        taken, estimated = json.loads(line)
        assert taken <= estimated <= 4 * taken + 200 * 2**20, case
