"""Memory: the estimate against what a training really takes; vectors are mapped from their file."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.common import alone
from benchmarks.synthetic import AMAZON_BOOK, synthetic_graph, synthetic_vectors
from spike_kit.base.devices import peak_bytes, reset_peak
from spike_kit.data.vectors import ProfileVectors
from spike_kit.models import MODELS, find_model, find_preset
from spike_kit.models.base import TrainedConfig, TrainedRecommender
from spike_kit.models.footprint import footprint
from spike_kit.training.loop import training_step
from spike_kit.training.sampling import NegativeSampler, epoch_batches
from tests.world import World

STATUS = Path("/proc/self/status")
pytestmark = pytest.mark.skipif(
    not STATUS.is_file() or "RssAnon:" not in STATUS.read_text(encoding="utf-8"),
    reason="this system does not tell mapped pages from memory",
)


def status(name: str) -> int:
    return 1024 * sum(map(int, re.findall(rf"{name}:\s*(\d+)", STATUS.read_text(encoding="utf-8"))))


def measured(name: str, preset: str, settings: dict[str, Any]) -> tuple[int, int]:
    """What a training takes apart from mapped pages, and the estimate; for a fresh process.

    Mapped pages (libraries) only grow: the peak without them is at least the whole peak less those at the end.
    """
    torch.set_num_threads(1)
    size = dataclasses.replace(AMAZON_BOOK, text_dim=64).scaled(20_000)
    graph, vectors = synthetic_graph(size), synthetic_vectors(size)
    config = find_preset(name, preset).model.replace(**settings)
    assert isinstance(config, TrainedConfig)
    reset_peak()
    before, generator = status("RssAnon"), torch.Generator().manual_seed(0)
    model: Any = find_model(name)(config, graph, vectors, generator)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    batches = epoch_batches(graph, NegativeSampler(graph), 1024, generator)
    for _ in range(2):
        training_step(model, next(batches), model.draw(generator), optimizer)
    with torch.no_grad():
        model.embeddings()
    taken = peak_bytes() - status("Rss(?:File|Shmem)") - before
    return taken, footprint(config, graph, vectors.dim, 1024).total


@pytest.mark.parametrize(
    ("name", "preset", "settings"),
    [
        ("spike", "recommended", {"budget_mib": 8, "text_on": "host"}),
        ("spike", "released_code", {"layers": 3}),
        ("lightgcn", "recommended", {}),
    ],
)
def test_the_estimate_is_an_upper_bound_and_not_a_wild_one(name: str, preset: str, settings: dict[str, Any]) -> None:
    taken, estimated = alone(measured, name, preset, settings)
    assert taken <= estimated <= 4 * taken + 200 * 2**20


@pytest.mark.parametrize("more", [1, 10**8])
@pytest.mark.parametrize("model", [name for name in MODELS if issubclass(MODELS[name], TrainedRecommender)])
def test_a_batch_is_not_larger_than_the_data(world: World, model: str, more: int) -> None:
    for preset in MODELS[model].presets.values():
        assert isinstance(preset.model, TrainedConfig)
        n = world.graph.n_interactions
        whole, half = (footprint(preset.model, world.graph, 24, size) for size in (n, n // 2))
        assert footprint(preset.model, world.graph, 24, n + more) == whole
        assert half.batch < whole.batch


def test_vectors_are_mapped_not_read(tmp_path: Path) -> None:
    """Opening a file of vectors takes no memory of its own size."""
    file = tmp_path / "vectors.safetensors"
    ProfileVectors(torch.zeros(10, 384), torch.zeros(50_000, 384)).save(file, {})
    before = status("RssAnon")
    vectors = ProfileVectors.load(file)
    assert float(vectors.entity.sum()) == 0
    assert status("RssAnon") - before < 30 * 2**20
