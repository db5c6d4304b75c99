"""Where a training step has to wait for a GPU: wherever it reads a number back, since only then it knows a shape.

A model is taken to the meta device, whose tensors have no numbers. What would ask for one there is counted, by the
function of the package that asks, and gets an answer that could be.
"""

import io
import sys
from collections import Counter
from collections.abc import Iterable
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from spike_kit.base import devices
from spike_kit.models import MODELS
from spike_kit.models.base import Batch, TrainedRecommender
from spike_kit.models.edges import RelationalEdges
from spike_kit.training.loop import training_step
from spike_kit.training.sampling import NegativeSampler, epoch_batches
from tests.world import World, build

WAITS: dict[str, dict[str, int]] = {
    "kgrec": {"KgRec.draw": 3, "most": 2},
    "kgcl": {"Kgcl.draw": 2},
    "diffkg": {"DiffKg.draw": 1},
}
"""How often a step waits, by model and function. Each of these draws edges or interactions by chance, one by one, or
those of some set whose members may coincide, and goes on with as many as there are. KGRec's hidden edges are drawn
twice, so they may coincide, and its views take a share of what was kept by chance. KGCL and DiffKG keep each edge by
chance, and only those of a set. SPiKE keeps a fixed number of edges of each relation instead, and interactions by
weights of 0 and 1."""

DISTINCT = {"sgl", "lightgcl", "kgcl", "diffkg", "rlmrec_con"}
"""Models whose steps also look for the distinct nodes of a batch on the device, for a contrast between them."""

FORMS = [
    (name, preset)
    for name, model in MODELS.items()
    if issubclass(model, TrainedRecommender)
    for preset in model.presets
]
SIZES = (40, 400)
"""Fewer rows than users, and more."""


def asker() -> str:
    """Function of the package that called torch."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and "/spike_kit/" not in frame.f_code.co_filename:
        frame = frame.f_back
    return frame.f_code.co_qualname.split(".<locals>")[0] if frame else ""


def half(x: Tensor, *shape: int) -> Tensor:
    return x.new_empty(max(x.numel() // 2, 1), *shape, dtype=torch.int64)


def answer(name: str, x: Tensor, arguments: Iterable[Any], device: Any) -> Any:
    """What torch might say if it had numbers, where it needs them to say it."""
    if name in {"_local_scalar_dense", "equal", "is_nonzero"}:
        return 1
    if name in {"nonzero", "repeat_interleave", "masked_select"}:
        return half(x, x.ndim) if name == "nonzero" else half(x)
    if name in {"_unique2", "unique_dim", "unique_consecutive"}:
        return half(x), torch.empty_like(x), half(x)
    if name.startswith("index") and any(isinstance(a, list) and any_mask(a) for a in arguments):
        return half(x)
    return torch.zeros(x.shape, dtype=x.dtype) if name == "_to_copy" and str(device) == "cpu" else None


def any_mask(chosen: list[Any]) -> bool:
    return any(isinstance(x, Tensor) and x.dtype == torch.bool for x in chosen)


class Waiting(TorchDispatchMode):
    """Counts who asks for numbers on a kind of device, and answers on the meta device."""

    def __init__(self, device: str, names: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.device, self.names, self.found = device, names, Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        own = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x.device.type == self.device]
        name = func.overloadpacket.__name__
        said = answer(name, own[0], args, kwargs.get("device")) if own else None
        if said is None or (self.names and name not in self.names):
            return func(*args, **kwargs)
        self.found[asker()] += 1
        return said if self.device == "meta" else func(*args, **kwargs)


def on_meta(model: TrainedRecommender) -> TrainedRecommender:
    """The same model on the meta device, wherever its tensors stand."""
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, map_location="meta", weights_only=False)


def step(model: TrainedRecommender, batch: Batch) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    training_step(model, batch, model.draw(torch.Generator().manual_seed(1)), optimizer)


def batch_of(world: World, size: int, device: str) -> Batch:
    given = next(epoch_batches(world.graph, NegativeSampler(world.graph), size, torch.Generator().manual_seed(0)))
    ids = (x.to(device) for x in (given.users, given.positives, given.negatives))
    return Batch(*ids, host_users=given.users)


@pytest.mark.parametrize(("name", "preset"), FORMS)
def test_a_step_waits_for_no_number_but_those_that_are_listed(
    name: str, preset: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(devices.CHUNKS, "meta", devices.CHUNKS["cuda"])
    model = on_meta(build(name, world, preset))
    for size in SIZES:
        batch = batch_of(world, size, "meta")
        with Waiting("meta"):
            step(model, batch)  # the first one also makes what stays
        with Waiting("meta") as waiting:
            step(model, batch)
        assert dict(waiting.found) == WAITS.get(name, {})
        assert not (model.is_static(size) and waiting.found)


@pytest.mark.parametrize(("name", "preset"), FORMS)
def test_distinct_users_are_looked_for_where_they_are_drawn(name: str, preset: str, world: World) -> None:
    """On the CPU, since the meta device does not look for them; in a step of fewer rows than users."""
    with Waiting("cpu", ("_unique2",)) as waiting:
        step(build(name, world, preset), batch_of(world, SIZES[0], "cpu"))
    assert (set(waiting.found) - {"Batch.rows_of"} != set()) is (name in DISTINCT)


def test_steps_of_the_same_shapes_are_known(world: World) -> None:
    """SPiKE's, but not where distinct users are counted, texts are sent, masks are drawn again, or edges in blocks."""
    recommended = build("spike", world)
    assert recommended.is_static(world.graph.n_users)
    assert not recommended.is_static(world.graph.n_users - 1)
    assert build("spike", world, loss="bpr").is_static(1)
    assert build("spike", world, text=False).is_static(400)
    assert not build("spike", world, text_on="host").is_static(400)
    assert not build("lightgcn", world).is_static(400)


def test_a_step_with_edges_in_blocks_is_not_the_same_each_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    model, blocks = build("spike", world), RelationalEdges.of(world.graph, 64, 2, 16 * 4 * 7)
    assert len(blocks.blocks) > 1
    monkeypatch.setitem(vars(model), "edges", blocks)
    assert not model.is_static(400)


def test_a_step_that_draws_its_masks_again_is_not_the_same_each_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(build("spike", world)), "_budget", 1)
    assert not build("spike", world).is_static(400)
