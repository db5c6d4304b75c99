"""SPiKE against the numbers of the released code: forward pass, every loss term, every gradient."""

from __future__ import annotations

import pytest
import torch

from spike_kit.models.spike import RELEASED_CODE, Spike, SpikeDraws
from tests.fixture_files import Fixture, total_of

both_variants = pytest.mark.parametrize("variant", ["off", "sampled"])


@pytest.fixture(scope="module")
def fixture() -> Fixture:
    return Fixture("spike")


def build(fixture: Fixture, l2: bool = False) -> Spike:
    own = {"edge_keep": 1 - fixture.real("hp.node_dropout_rate"), "l2": fixture.real("hp.decay_weight") if l2 else 0.0}
    return fixture.model(Spike, fixture.config(RELEASED_CODE, **own))


def draws_of(fixture: Fixture, model: Spike, variant: str) -> SpikeDraws:
    nodes, graph = fixture.tensor(f"given.{variant}.anchors"), model.graph
    if variant == "off":
        return SpikeDraws(nodes=nodes)
    edges = fixture.places((graph.head, graph.relation, graph.tail), "given.sampled.kg_used_by_encoder")
    kept = fixture.places((graph.train_user, graph.train_item), "given.sampled.interaction_edges")
    interactions = torch.zeros(graph.n_interactions, dtype=torch.bool).index_fill(0, kept, True)
    return SpikeDraws(edges.sort().values, interactions, nodes=nodes)


def test_parity_forward(fixture: Fixture) -> None:
    model = build(fixture)
    fixture.check_evaluation(model)
    fixture.check(model.node_embeddings()[1], "eval.entity")


def test_parity_rationale_scores(fixture: Fixture) -> None:
    model = build(fixture)
    order = fixture.places((model.graph.head, model.graph.relation, model.graph.tail), "derived.kg_edges")
    fixture.check(model.rationale_scores().index_select(0, order), "eval.rationale_score")


@both_variants
@pytest.mark.parametrize("l2", [False, True])
def test_parity_losses_and_gradients(fixture: Fixture, variant: str, l2: bool) -> None:
    model, ending = build(fixture, l2), "_with_l2" if l2 else ""
    terms = model.training_losses(fixture.batch, draws_of(fixture, model, variant))
    names = {"bpr": "bpr", "matching": "match"} | ({"l2": "l2_not_returned"} if l2 else {})
    assert set(terms) == set(names)
    for name, key in names.items():
        fixture.check(terms[name], f"{variant}.loss.{key}")
    fixture.check(total_of(terms), f"{variant}.loss.total{ending}")
    fixture.check_gradients(model, total_of(terms), f"{variant}.grad{ending}")


@both_variants
def test_parity_gradient_of_bpr_alone(fixture: Fixture, variant: str) -> None:
    model = build(fixture)
    bpr = model.training_losses(fixture.batch, draws_of(fixture, model, variant))["bpr"]
    fixture.check_gradients(model, bpr, f"{variant}.grad_bpr_only")


def test_draws_have_the_sizes_of_the_released_samplers(fixture: Fixture) -> None:
    model = build(fixture)
    draws = model.draw(torch.Generator().manual_seed(1))
    assert draws.edges is not None
    assert draws.nodes is not None
    assert draws.nodes.shape == fixture.arrays["given.sampled.anchors"].shape
    sampled = len(fixture.arrays["given.sampled.kg_after_relation_sampling"])
    largest = 2 * model.config.dropped_edges
    assert largest / 2 <= sampled - draws.edges.numel() <= largest
    last = fixture.integer("quirk.last_relation_row")
    assert (model.graph.relation[draws.edges] == last).sum() == fixture.integer("quirk.sampled.edges_of_last_relation")
