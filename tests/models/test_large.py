"""Bounds on memory: what passes in chunks gives what it gives in one piece, and a training that cannot fit says so."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from spike_kit.base.devices import free_memory
from spike_kit.base.errors import ConfigError, DeviceError
from spike_kit.data.dataset import Dataset
from spike_kit.data.graph import Graph
from spike_kit.experiments import run as running
from spike_kit.experiments.run import RunConfig, train
from spike_kit.models.footprint import footprint
from spike_kit.models.layers import ProfileProjection, keep_mask, kept_share
from spike_kit.models.spike import Spike, SpikeConfig
from tests.world import World


@pytest.mark.parametrize("masks", [1, 3])
@pytest.mark.parametrize("budget", [1, 12 * 4 * 40, 10**9])
def test_hidden_rows_that_are_computed_again_meet_the_same_masks(masks: int, budget: int) -> None:
    """Chunks draw other masks than one piece, but backward must see those of forward: compare with differences."""
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(50, 12, dtype=torch.float64, generator=generator)
    weights = torch.randn(masks, 50, 4, dtype=torch.float64, generator=generator)
    projection = ProfileProjection(12, 4, 0.4, generator, torch.device("cpu"), budget).double()

    def value(*_: Tensor) -> Tensor:
        return (torch.stack(projection(text, torch.Generator().manual_seed(2), masks)) * weights).sum()

    assert torch.autograd.gradcheck(value, tuple(projection.parameters()), fast_mode=True)


def test_masks_differ_and_are_unbiased() -> None:
    shape, device = (1000, 333), torch.device("cpu")
    one, other, again = (keep_mask(shape, 0.9, torch.Generator().manual_seed(seed), device) for seed in (0, 1, 0))
    assert torch.equal(again, one)
    assert not torch.equal(one, other)
    assert float(one.double().mean()) == pytest.approx(kept_share(0.9), abs=0.003)
    assert kept_share(0.9) == pytest.approx(0.9, abs=1e-5)
    assert bool(keep_mask(shape, 1.0, torch.Generator(), device).all())
    with pytest.raises(DeviceError, match="the generator draws on cpu, but its numbers are needed on cuda"):
        keep_mask((3,), 0.5, torch.Generator(), torch.device("cuda"))


def test_text_may_stay_in_main_memory_and_products_may_be_short(world: World) -> None:
    changes: list[dict[str, Any]] = [{}, {"text_on": "host", "budget_mib": 1}, {"text_precision": "bfloat16"}]
    rows = []
    for settings in changes:
        model = Spike(SpikeConfig(dim=16, **settings), world.graph, world.vectors, torch.Generator().manual_seed(3))
        with torch.no_grad():
            rows.append(torch.cat(model.node_embeddings()))
    plain, host, short = rows
    assert torch.equal(plain, host)
    assert not torch.equal(plain, short)
    torch.testing.assert_close(plain, short, atol=0.05, rtol=0)


def larger(graph: Graph, factor: int) -> Graph:
    return dataclasses.replace(graph, n_entities=graph.n_entities * factor)


@pytest.mark.parametrize(("free", "reserved", "allocated"), [(700, 300, 100), (5, 0, 0), (0, 90, 90)])
def test_memory_that_torch_holds_and_no_tensor_uses_is_free(
    monkeypatch: pytest.MonkeyPatch, free: int, reserved: int, allocated: int
) -> None:
    asked: list[object] = []
    answers = {"mem_get_info": (free, 10**6), "memory_reserved": reserved, "memory_allocated": allocated}
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, answer=answer: asked.append(device) or answer)
    assert free_memory(torch.device("cuda", 1)) == free + reserved - allocated
    assert set(asked) == {torch.device("cuda", 1)}
    assert free_memory(torch.device("cpu")) > 2**20


@pytest.mark.parametrize("model", ["spike", "bprmf"])
def test_a_training_that_cannot_fit_says_so_and_proposes_settings_that_do(
    data: Dataset, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    config = RunConfig(model=model, dataset="world", training={"epochs": 1})
    monkeypatch.setattr(running, "free_memory", lambda _: 2**20)
    with pytest.raises(ConfigError, match=r"(?s)takes about .* of memory, but only 0.00 GiB are free on cpu.*try "):
        train(config, data, progress=False)
    graph, settings = larger(Graph.from_tables(data.tables), 10_000), SpikeConfig()
    free = footprint(settings, graph, 384, 64).total - 1
    monkeypatch.setattr(running, "free_memory", lambda _: free)
    with pytest.raises(ConfigError, match=r"--budget-mib 128 \(about [\d.]+ GiB\)"):
        running.check_memory(settings, graph, 384, 64, torch.device("cpu"))
    leaner = settings.replace(budget_mib=128)
    assert running.check_memory(leaner, graph, 384, 64, torch.device("cpu")).total < free
