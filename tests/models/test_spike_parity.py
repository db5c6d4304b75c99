"""SPiKE against the numbers of the released code: forward pass, every loss term, every gradient."""

from __future__ import annotations

import pytest
import torch

from spike_kit.data.vectors import ProfileVectors
from spike_kit.models.spike import RELEASED_CODE, Spike, SpikeDraws
from tests.fixture_files import Fixture, assert_close, batch_of, graph_of, positions

PARAMETERS = {
    "user_embedding": "user_embedding",
    "entity_embedding": "entity_embedding",
    "relation_embedding": "relation_embedding",
    "attention_w": "attention_weight",
    "text_user_fc1_weight": "user_projection.first.weight",
    "text_user_fc1_bias": "user_projection.first.bias",
    "text_user_fc2_weight": "user_projection.second.weight",
    "text_user_fc2_bias": "user_projection.second.bias",
    "text_entity_fc1_weight": "entity_projection.first.weight",
    "text_entity_fc1_bias": "entity_projection.first.bias",
    "text_entity_fc2_weight": "entity_projection.second.weight",
    "text_entity_fc2_bias": "entity_projection.second.bias",
}


@pytest.fixture(scope="module")
def fixture() -> Fixture:
    return Fixture("spike")


def build(fixture: Fixture, l2: bool = False) -> Spike:
    graph = graph_of(fixture)
    entity_text = torch.cat([fixture.tensor("input.text_item"), fixture.tensor("input.text_aux_entity")])
    config = RELEASED_CODE.replace(
        dim=fixture.integer("hp.embedding_size"),
        layers=fixture.integer("hp.layer_num"),
        heads=fixture.integer("hp.n_heads"),
        rho=fixture.real("hp.text_rho"),
        matching_weight=fixture.real("hp.align_coef"),
        gamma=fixture.real("hp.anchor_ratio"),
        repeats=fixture.integer("hp.num_repeat"),
        edge_keep=1 - fixture.real("hp.node_dropout_rate"),
        message_dropout=fixture.real("hp.mess_dropout_rate"),
        text_dropout=fixture.real("hp.text_dropout_rate"),
        dropped_edges=fixture.integer("hp.mae_msize"),
        l2=fixture.real("hp.decay_weight") if l2 else 0.0,
    )
    vectors = ProfileVectors(fixture.tensor("input.text_user"), entity_text)
    model = Spike(config, graph, vectors, torch.Generator().manual_seed(0))
    state = {name: fixture.tensor(f"weight.{key}") for key, name in PARAMETERS.items()}
    model.load_state_dict(state, strict=True)
    return model


def draws_of(fixture: Fixture, model: Spike, variant: str) -> SpikeDraws:
    nodes = fixture.tensor(f"given.{variant}.anchors")
    if variant == "off":
        return SpikeDraws(nodes=nodes)
    graph = model.graph
    edges = positions((graph.head, graph.relation, graph.tail), fixture.arrays["given.sampled.kg_used_by_encoder"])
    kept = positions((graph.train_user, graph.train_item), fixture.arrays["given.sampled.interaction_edges"])
    interactions = torch.zeros(graph.n_interactions, dtype=torch.bool).index_fill(0, kept, True)
    return SpikeDraws(edges.sort().values, interactions, nodes=nodes)


def test_parity_forward(fixture: Fixture) -> None:
    model = build(fixture)
    users, entities = model.node_embeddings()
    assert_close(users, fixture.arrays["eval.user"], "users")
    assert_close(entities, fixture.arrays["eval.entity"], "entities")
    assert_close(entities[: model.graph.n_items], fixture.arrays["eval.item"], "items")
    scores = model.score(fixture.tensor("batch.users"))
    assert_close(scores, fixture.arrays["eval.scores_batch"], "scores")


def test_parity_rationale_scores(fixture: Fixture) -> None:
    model = build(fixture)
    graph = model.graph
    order = positions((graph.head, graph.relation, graph.tail), fixture.arrays["derived.kg_edges"])
    assert_close(
        model.rationale_scores().index_select(0, order), fixture.arrays["eval.rationale_score"], "rationale scores"
    )


@pytest.mark.parametrize("variant", ["off", "sampled"])
@pytest.mark.parametrize("l2", [False, True])
def test_parity_losses_and_gradients(fixture: Fixture, variant: str, l2: bool) -> None:
    model = build(fixture, l2)
    terms = model.training_losses(batch_of(fixture), draws_of(fixture, model, variant))
    names = {"bpr": "bpr", "matching": "match"} | ({"l2": "l2_not_returned"} if l2 else {})
    assert set(terms) == set(names)
    for name, key in names.items():
        assert_close(terms[name], fixture.arrays[f"{variant}.loss.{key}"], name)
    total = torch.stack(list(terms.values())).sum()
    assert_close(total, fixture.arrays[f"{variant}.loss.total{'_with_l2' if l2 else ''}"], "total")
    total.backward()
    prefix = f"{variant}.grad{'_with_l2' if l2 else ''}"
    known = [key for key in PARAMETERS if f"{prefix}.{key}" in fixture.arrays]
    assert set(known) >= ({"user_embedding", "entity_embedding"} if l2 else set(PARAMETERS))
    for key in known:
        gradient = model.get_parameter(PARAMETERS[key]).grad
        assert gradient is not None
        assert_close(gradient, fixture.arrays[f"{prefix}.{key}"], f"gradient of {PARAMETERS[key]}")


@pytest.mark.parametrize("variant", ["off", "sampled"])
def test_parity_gradient_of_bpr_alone(fixture: Fixture, variant: str) -> None:
    model = build(fixture)
    model.training_losses(batch_of(fixture), draws_of(fixture, model, variant))["bpr"].backward()
    for name in ("user_embedding", "entity_embedding"):
        gradient = model.get_parameter(name).grad
        assert gradient is not None
        assert_close(gradient, fixture.arrays[f"{variant}.grad_bpr_only.{name}"], f"gradient of {name}")


def test_draws_have_the_sizes_of_the_released_samplers(fixture: Fixture) -> None:
    model = build(fixture)
    draws = model.draw(torch.Generator().manual_seed(1))
    assert draws.edges is not None
    assert draws.nodes is not None
    assert draws.nodes.shape == fixture.arrays["given.sampled.anchors"].shape
    sampled = len(fixture.arrays["given.sampled.kg_after_relation_sampling"])
    dropped = sampled - draws.edges.numel()
    largest = 2 * model.config.dropped_edges
    assert largest / 2 <= dropped <= largest
    last = fixture.integer("quirk.last_relation_row")
    assert (model.graph.relation[draws.edges] == last).sum() == fixture.integer("quirk.sampled.edges_of_last_relation")
