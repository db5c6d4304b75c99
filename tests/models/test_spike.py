"""SPiKE's switches for text and chance; what its form without chance computes is proved in test_plain_spike.py."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from spike_kit.base.errors import ConfigError
from spike_kit.data.vectors import ProfileVectors
from spike_kit.models.base import Batch
from spike_kit.models.spike import RELEASED_CODE, Spike, SpikeConfig, SpikeDraws
from tests.world import World

PLAIN = SpikeConfig(dim=16, edge_keep=1, message_dropout=0, text_dropout=0, l2=0, user_to_item="add")


def build(world: World, config: SpikeConfig = PLAIN, vectors: ProfileVectors | None = None, **changes: Any) -> Spike:
    generator = torch.Generator().manual_seed(3)
    return Spike(config.replace(**changes), world.graph, vectors or world.vectors, generator)


def losses(world: World, model: Spike, seed: int | None = None) -> dict[str, Tensor]:
    """Loss terms of a batch; with a seed, with the draws of a step."""
    graph = world.graph
    batch = Batch(graph.train_user[:64], graph.train_item[:64], (graph.train_item[:64] + 17) % graph.n_items)
    draws = SpikeDraws() if seed is None else model.draw(torch.Generator().manual_seed(seed))
    return {name: term.detach() for name, term in model.training_losses(batch, draws).items()}


def noise(world: World, subject: str) -> ProfileVectors:
    """Replace the text of one subject by large noise."""
    vectors, n_items = world.vectors, world.graph.n_items
    user, entity = vectors.user.clone(), vectors.entity.clone()
    part = {"user": user, "item": entity[:n_items], "auxiliary": entity[n_items:]}[subject]
    part.normal_(generator=torch.Generator().manual_seed(9)).mul_(50)
    return ProfileVectors(user, entity)


def outputs(model: Spike) -> Tensor:
    with torch.no_grad():
        return torch.cat(model.node_embeddings())


@pytest.mark.parametrize(("form", "matters"), [("off", False), ("add", True), ("instead", True)])
def test_user_text_matters_where_users_send_and_only_there(world: World, form: str, matters: bool) -> None:
    config = RELEASED_CODE.replace(dim=16, user_to_item=form)
    items = slice(world.graph.n_users, world.graph.n_users + world.graph.n_items)
    before = outputs(build(world, config))
    difference = (before - outputs(build(world, config, noise(world, "user")))).abs()
    assert (float(difference[items].max()) > 0.01) is matters
    assert matters or difference.max() < 2e-5
    assert (before - outputs(build(world, config, noise(world, "item")))).abs().max() > 0.05


@pytest.mark.parametrize("components", [0, 5])
@pytest.mark.parametrize("subject", ["user", "item", "auxiliary"])
def test_a_subject_without_profiles_is_blind_to_its_text(world: World, subject: str, components: int) -> None:
    """Not even the components that text is reduced to look at it."""
    settings: dict[str, Any] = {f"{subject}_profiles": False, "text_components": components}
    changed = noise(world, subject)
    one, other = build(world, **settings), build(world, vectors=changed, **settings)
    assert not components or torch.equal(one.text_loadings, other.text_loadings)
    assert torch.equal(outputs(one), outputs(other))
    assert torch.equal(losses(world, one)["matching"], losses(world, other)["matching"])
    seeing = (build(world, vectors=given, text_components=components) for given in (world.vectors, changed))
    assert not torch.equal(*map(outputs, seeing))


def test_stored_components_reduce_the_text_of_a_loaded_model(world: World) -> None:
    trained, loaded = build(world, text_components=5), build(world, text_components=5)
    assert trained.text.dim == 5
    assert trained.user_projection.first.weight.shape == (5, 5)
    turned = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(1))).Q
    stored = trained.tensors()
    loaded.load_tensors(stored | {"text_loadings": stored["text_loadings"] @ turned})
    torch.testing.assert_close(loaded.text.entity, trained.text.entity @ turned)
    loaded.load_tensors(stored)
    assert torch.equal(outputs(loaded), outputs(trained))


def test_without_any_profile_no_text_is_needed_and_nothing_is_matched(world: World) -> None:
    config = PLAIN.replace(user_profiles=False, item_profiles=False, auxiliary_profiles=False)
    model = Spike(config, world.graph, None, torch.Generator().manual_seed(3))
    assert set(losses(world, model)) == {"bpr"}
    assert not any("projection" in name for name, _ in model.named_parameters())
    with pytest.raises(ConfigError, match="no profile vectors were given"):
        Spike(PLAIN, world.graph, None, torch.Generator())


@pytest.mark.parametrize("separate", [False, True])
def test_dropout_masks_differ_between_uses_only_when_asked(world: World, separate: bool) -> None:
    """With one mask, removal undoes injection in training too; with three, dropout noise is left in the users."""
    only_users = RELEASED_CODE.replace(
        dim=16,
        separate_masks=separate,
        item_profiles=False,
        auxiliary_profiles=False,
        matching="off",
        edge_keep=1,
        dropped_edges=0,
        skip_last_relation=False,
        message_dropout=0,
        text_dropout=0.5,
    )
    expected = losses(world, build(world, only_users.replace(user_profiles=False)))["bpr"]
    found = [losses(world, build(world, only_users), seed)["bpr"] for seed in range(4)]
    largest = max(float((term - expected).abs()) for term in found)
    assert largest > 1e-4 if separate else largest < 1e-6


def test_dropping_edges_leaves_half_of_the_sample(world: World) -> None:
    """With one relation the released code samples few edges; what it drops must not be all of them."""
    graph = dataclasses.replace(
        world.graph, n_relations=1, relation=(world.graph.relation >= world.graph.n_relations).long()
    )
    model = Spike(RELEASED_CODE.replace(dim=16), graph, world.vectors, torch.Generator().manual_seed(3))
    draws = model.draw(torch.Generator().manual_seed(0))
    n_sampled = int((graph.relation == 0).sum()) // 2
    assert draws.edges is not None
    assert n_sampled // 2 <= draws.edges.numel() < n_sampled
