"""What every trained model must do, on a world whose right answer is known."""

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from spike_kit.base.config import TrainingConfig
from spike_kit.evaluation.ranking import RankingTask, evaluate
from spike_kit.models import MODELS, find_preset
from spike_kit.models.base import Batch, TrainedRecommender
from spike_kit.training.loop import fit
from spike_kit.training.sampling import NegativeSampler, epoch_batches
from tests.world import World, build

TRAINED = [name for name, model in MODELS.items() if issubclass(model, TrainedRecommender)]


def other_losses(name: str) -> set[str]:
    return {"bpr", "softmax", "cosine_softmax"} - {find_preset(name).model.model_dump()["loss"]}


FORMS: list[tuple[str, str, dict[str, Any]]] = [
    *((name, preset, {}) for name in TRAINED for preset in MODELS[name].presets),
    *(("spike", "recommended", {"user_to_item": form}) for form in ("off", "add", "instead")),
    *((name, "recommended", {"loss": loss}) for name in TRAINED for loss in sorted(other_losses(name))),
]
"""Every preset, and every loss that no preset has, of every model."""

LARGE: list[tuple[str, str, dict[str, Any]]] = [
    ("spike", "recommended", {"text_on": "host", "budget_mib": 1}),
    ("spike", "released_code", {"text_precision": "bfloat16", "text_on": "host"}),
    ("spike", "recommended", {"heads": 4, "layers": 3}),
]
"""Settings for large graphs."""

ON_META = [form for form in FORMS if "loss" not in form[2] or form[0] == "bprmf"] + LARGE
"""Forms whose whole step must run on every device; the losses are the same code for every model."""

FAST = TrainingConfig(epochs=80, batch_size=256, learning_rate=2e-2, eval_every=5, patience=3)


@pytest.mark.parametrize(("name", "preset", "settings"), FORMS)
def test_every_form_recovers_the_planted_item(
    world: World, device: torch.device, name: str, preset: str, settings: dict[str, Any]
) -> None:
    model = build(name, world, preset, device=str(device), **settings)
    valid, test = (RankingTask.from_tables(world.tables, split, device) for split in ("valid", "test"))
    fit(model, world.graph.to(device), valid, FAST, seed=0, progress=False)
    assert len(test.users) == len(world.planted)
    assert evaluate(model, test, (1,))[0]["recall@1"] >= 0.95


@pytest.mark.parametrize("name", TRAINED)
def test_another_seed_gives_other_weights(world: World, name: str) -> None:
    first, second = (build(name, world, seed=seed).tensors() for seed in (0, 1))
    drawn = [key for key, tensor in first.items() if tensor.is_floating_point() and tensor.any()]
    assert set(first) - set(drawn) <= {"mask_token", "kept_edges"}
    drawn = [key for key in drawn if key not in ("attention", "text_centre", "text_loadings")]
    assert not any(torch.equal(first[key], second[key]) for key in drawn)


@pytest.mark.parametrize(("name", "preset", "settings"), ON_META)
def test_a_whole_step_runs_on_the_meta_device(name: str, preset: str, settings: dict[str, Any], world: World) -> None:
    """A tensor left on the CPU meets one on "meta" and raises, as it would on a GPU."""
    with FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True):
        model = build(name, world, preset, device="meta", **settings)
        ids = torch.zeros(8, dtype=torch.int64, device="meta")
        draws = model.draw(torch.Generator())
        terms = model.training_losses(Batch(ids, ids, ids), draws)
        if model.auxiliary_steps:
            terms |= model.auxiliary_losses(0, torch.Generator())
        torch.stack(list(terms.values())).sum().backward()
        model.after_auxiliary()
        users, items = model.embeddings()
    assert {term.device.type for term in terms.values()} == {"meta"}
    assert users.device.type == items.device.type == "meta"
    missing = [key for key, parameter in model.named_parameters() if parameter.grad is None]
    assert missing == []


@pytest.mark.parametrize("name", TRAINED)
def test_terms_sum_to_what_is_optimised_and_batches_are_sampled(world: World, name: str) -> None:
    model = build(name, world, l2=0.1)
    batch = next(epoch_batches(world.graph, NegativeSampler(world.graph), 64, torch.Generator().manual_seed(0)))
    terms = model.training_losses(batch, model.draw(torch.Generator().manual_seed(0)))
    assert "l2" in terms
    assert all(term.ndim == 0 for term in terms.values())
    doubled = build(name, world, l2=0.2).training_losses(batch, model.draw(torch.Generator().manual_seed(0)))
    torch.testing.assert_close(doubled["l2"], 2 * terms["l2"])
