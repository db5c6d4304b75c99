"""SPiKE's switches: each does what its name says, and nothing else."""

from __future__ import annotations

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


def batch(world: World, size: int = 64) -> Batch:
    graph = world.graph
    negatives = (graph.train_item[:size] + 17) % graph.n_items
    return Batch(graph.train_user[:size], graph.train_item[:size], negatives)


def noise(vectors: ProfileVectors, subject: str, n_items: int) -> ProfileVectors:
    """Replace the text of one subject by large noise."""
    user, entity = vectors.user.clone(), vectors.entity.clone()
    part = {"user": user, "item": entity[:n_items], "auxiliary": entity[n_items:]}[subject]
    part.normal_(generator=torch.Generator().manual_seed(9)).mul_(50)
    return ProfileVectors(user, entity)


def outputs(model: Spike) -> Tensor:
    with torch.no_grad():
        return torch.cat(model.node_embeddings())


def test_user_text_cannot_change_a_released_prediction(world: World) -> None:
    config = RELEASED_CODE.replace(dim=16)
    changed = noise(world.vectors, "user", world.graph.n_items)
    torch.testing.assert_close(outputs(build(world, config)), outputs(build(world, config, changed)), atol=2e-5, rtol=0)
    loud = noise(world.vectors, "item", world.graph.n_items)
    assert (outputs(build(world, config)) - outputs(build(world, config, loud))).abs().max() > 0.05


@pytest.mark.parametrize("form", ["add", "instead"])
def test_user_text_matters_where_users_send(world: World, form: str) -> None:
    changed = noise(world.vectors, "user", world.graph.n_items)
    items = slice(world.graph.n_users, world.graph.n_users + world.graph.n_items)
    difference = outputs(build(world, user_to_item=form)) - outputs(build(world, vectors=changed, user_to_item=form))
    assert difference[items].abs().max() > 0.01


@pytest.mark.parametrize("subject", ["user", "item", "auxiliary"])
def test_a_subject_without_profiles_is_blind_to_its_text(world: World, subject: str) -> None:
    settings: dict[str, Any] = {f"{subject}_profiles": False}
    changed = noise(world.vectors, subject, world.graph.n_items)
    one, other = build(world, **settings), build(world, vectors=changed, **settings)
    assert torch.equal(outputs(one), outputs(other))
    first = one.training_losses(batch(world), SpikeDraws())
    second = other.training_losses(batch(world), SpikeDraws())
    assert torch.equal(first["matching"], second["matching"])
    seen = build(world, vectors=changed)
    assert not torch.equal(outputs(build(world)), outputs(seen))


@pytest.mark.parametrize("subject", ["user", "item", "auxiliary"])
def test_whitening_is_blind_to_the_text_of_a_subject_without_profiles(world: World, subject: str) -> None:
    settings = {f"{subject}_profiles": False, "text_components": 5}
    changed = noise(world.vectors, subject, world.graph.n_items)
    first, second = build(world, **settings), build(world, vectors=changed, **settings)
    assert torch.equal(first.text_loadings, second.text_loadings)
    assert torch.equal(outputs(first), outputs(second))
    seeing = (build(world, vectors=given, text_components=5) for given in (world.vectors, changed))
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
    assert set(model.training_losses(batch(world), SpikeDraws())) == {"bpr"}
    assert not any("projection" in name for name, _ in model.named_parameters())
    with pytest.raises(ConfigError, match="no profile vectors were given"):
        Spike(PLAIN, world.graph, None, torch.Generator())


def test_removal_undoes_injection_at_layer_zero(world: World) -> None:
    """Users are no source in the released form, so what was injected into them is gone at the end."""
    released: dict[str, Any] = {"user_to_item": "off", "matching": "off"}
    with_users = outputs(build(world, **released))[: world.graph.n_users]
    without_users = outputs(build(world, user_profiles=False, **released))[: world.graph.n_users]
    torch.testing.assert_close(with_users, without_users, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "change",
    [
        {"inject": False},
        {"remove": False},
        {"rho": 0.5},
        {"attention": "mean"},
        {"user_to_item": "off"},
        {"user_to_item": "instead"},
        {"layers": 1},
        {"heads": 4},
        {"item_profiles": False},
        {"user_profiles": False},
        {"auxiliary_profiles": False},
    ],
)
def test_every_structural_switch_changes_the_prediction(world: World, change: dict[str, Any]) -> None:
    assert (outputs(build(world)) - outputs(build(world, **change))).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("change", "term"),
    [
        ({"matching": "sampled"}, "matching"),
        ({"matching_weight": 7.0}, "matching"),
        ({"loss": "softmax"}, "softmax"),
        ({"edge_keep": 0.5}, "bpr"),
        ({"message_dropout": 0.5}, "bpr"),
        ({"text_dropout": 0.5}, "matching"),
        ({"text_dropout": 0.5, "separate_masks": True}, "bpr"),
        ({"dropped_edges": 40}, "bpr"),
        ({"l2": 0.1}, "l2"),
    ],
)
def test_every_training_switch_changes_the_loss(world: World, change: dict[str, Any], term: str) -> None:
    def losses(**settings: Any) -> dict[str, Tensor]:
        model = build(world, **settings)
        return model.training_losses(batch(world), model.draw(torch.Generator().manual_seed(0)))

    before, after = losses(), losses(**change)
    assert term in after
    assert term not in before or not torch.equal(before[term], after[term])


def test_matching_can_be_switched_off(world: World) -> None:
    assert set(build(world, matching="off").training_losses(batch(world), SpikeDraws())) == {"bpr"}


def test_a_sample_of_all_nodes_equals_exact_matching(world: World) -> None:
    model = build(world, matching="sampled", gamma=1.0, repeats=2)
    draws = model.draw(torch.Generator().manual_seed(0))
    assert draws.nodes is not None
    assert draws.nodes.sort(dim=1).values.tolist() == [list(range(world.graph.n_nodes))] * 2
    sampled = model.training_losses(batch(world), draws)["matching"]
    exact = build(world, matching="exact").training_losses(batch(world), SpikeDraws())["matching"]
    torch.testing.assert_close(sampled, exact)


def test_every_relation_learns_unless_the_last_one_is_skipped(world: World) -> None:
    for config, expected in ((SpikeConfig(dim=16), 0), (RELEASED_CODE.replace(dim=16, dropped_edges=0), 1)):
        model = build(world, config)
        terms = model.training_losses(batch(world, 300), model.draw(torch.Generator().manual_seed(0)))
        torch.stack(list(terms.values())).sum().backward()
        gradient = model.relation_embedding.grad
        assert gradient is not None
        assert int((gradient.abs().sum(1) == 0).sum()) == expected
    last = model.relation_embedding.grad
    assert last is not None
    assert float(last[-1].abs().sum()) == 0


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
        message_dropout=0,
        text_dropout=0.5,
    )
    expected = build(world, only_users.replace(user_profiles=False)).training_losses(batch(world), SpikeDraws())
    differences = []
    for seed in range(4):
        draws = SpikeDraws(generator=torch.Generator().manual_seed(seed))
        found = build(world, only_users).training_losses(batch(world), draws)
        differences.append(float((found["bpr"] - expected["bpr"]).detach().abs()))
    assert (max(differences) > 1e-4) is separate
    assert separate or max(differences) < 1e-6


def test_evaluation_draws_nothing(world: World) -> None:
    model = build(world, SpikeConfig(dim=16))
    assert torch.equal(outputs(model), outputs(model))


def test_an_isolated_entity_and_a_user_without_items_stay_finite(world: World) -> None:
    graph = dataclasses.replace(
        world.graph,
        n_users=world.graph.n_users + 1,
        n_entities=world.graph.n_entities + 1,
    )
    vectors = ProfileVectors(
        torch.cat([world.vectors.user, world.vectors.user[:1]]),
        torch.cat([world.vectors.entity, world.vectors.entity[:1]]),
    )
    model = Spike(SpikeConfig(dim=16), graph, vectors, torch.Generator().manual_seed(0))
    terms = model.training_losses(batch(world), model.draw(torch.Generator().manual_seed(0)))
    torch.stack(list(terms.values())).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert torch.isfinite(outputs(model)).all()


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
