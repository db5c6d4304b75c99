"""KGRec against the numbers of SSLRec's implementation: forward pass, every loss term, every gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from spike_kit.models.kgrec import KgRec, KgRecConfig, KgRecDraws, most
from tests.fixture_files import Fixture, assert_close, batch_of, graph_of, positions

VARIANTS = ("off", "sampled")
PARAMETERS = {
    "user_embedding": "user_embedding",
    "entity_embedding": "entity_embedding",
    "relation_embedding": "relation_embedding",
    "attention_w": "attention_weight",
    "contrast_ui_fc1_weight": "interaction_mlp.first.weight",
    "contrast_ui_fc1_bias": "interaction_mlp.first.bias",
    "contrast_ui_fc2_weight": "interaction_mlp.second.weight",
    "contrast_ui_fc2_bias": "interaction_mlp.second.bias",
    "contrast_kg_fc1_weight": "knowledge_mlp.first.weight",
    "contrast_kg_fc1_bias": "knowledge_mlp.first.bias",
    "contrast_kg_fc2_weight": "knowledge_mlp.second.weight",
    "contrast_kg_fc2_bias": "knowledge_mlp.second.bias",
}
TERMS = {"reconstruction": "mae", "contrast": "contrast"}


@pytest.fixture(scope="module")
def fixture() -> Fixture:
    return Fixture("kgrec")


def build(fixture: Fixture) -> KgRec:
    graph = graph_of(fixture)
    config = KgRecConfig(
        skip_last_relation=True,
        dim=fixture.integer("hp.embedding_size"),
        layers=fixture.integer("hp.layer_num"),
        heads=fixture.integer("hp.n_heads"),
        edge_keep=1 - fixture.real("hp.node_dropout_rate"),
        message_dropout=fixture.real("hp.mess_dropout_rate"),
        reconstruction_weight=fixture.real("hp.mae_coef"),
        hidden_edges=fixture.integer("hp.mae_msize"),
        contrast_weight=fixture.real("hp.cl_coef"),
        contrast_temperature=fixture.real("hp.tau"),
        contrast_drop=fixture.real("hp.cl_drop_ratio"),
        l2=fixture.real("hp.decay_weight"),
    )
    model = KgRec(config, graph, None, torch.Generator().manual_seed(0))
    state = {name: fixture.tensor(f"weight.{key}") for key, name in PARAMETERS.items()}
    model.load_state_dict(state, strict=True)
    return model


def edges_of(fixture: Fixture, model: KgRec, variant: str) -> torch.Tensor:
    """Positions of the variant's edges, in the file's order."""
    rows = "derived.kg_edges" if variant == "off" else "given.sampled.kg_after_relation_sampling"
    graph = model.graph
    return positions((graph.head, graph.relation, graph.tail), fixture.arrays[rows])


def draws_of(fixture: Fixture, model: KgRec, variant: str) -> KgRecDraws:
    edges, graph = edges_of(fixture, model, variant), model.graph
    interactions = None
    trained = graph.train_user, graph.train_item
    if variant == "sampled":
        kept = positions(trained, fixture.arrays["given.sampled.interaction_edges"])
        interactions = torch.zeros(graph.n_interactions, dtype=torch.bool).index_fill(0, kept, True)
    hidden = fixture.tensor(f"given.{variant}.mae_mask").bool()
    return KgRecDraws(
        edges=edges[~hidden].sort().values,
        interactions=interactions,
        hidden=edges[hidden],
        view_edges=edges[fixture.tensor(f"given.{variant}.cl_kg_keep").bool()].sort().values,
        view_interactions=positions(trained, fixture.arrays[f"given.{variant}.cl_ui_edges"]),
        permutation=fixture.tensor(f"given.{variant}.cl_permutation"),
    )


def test_kgrec_parity_forward(fixture: Fixture) -> None:
    model = build(fixture)
    users, items = model.embeddings()
    assert_close(users, fixture.arrays["eval.user"], "users")
    assert_close(items, fixture.arrays["eval.item"], "items")
    assert_close(model.score(fixture.tensor("batch.users")), fixture.arrays["eval.scores_batch"], "scores")
    scores = model.rationale_scores(edges_of(fixture, model, "off"))
    assert_close(scores, fixture.arrays["eval.rationale_score"], "rationale scores")


@pytest.mark.parametrize("variant", VARIANTS)
def test_kgrec_parity_of_what_is_chosen(fixture: Fixture, variant: str) -> None:
    """The noise of the file chooses the edges of the file."""
    model = build(fixture)
    edges = edges_of(fixture, model, variant)
    scores = model.rationale_scores(edges)
    assert_close(scores, fixture.arrays[f"given.{variant}.rationale_score"], "rationale scores")
    means = model.item_rationales(edges, scores)
    assert_close(means, fixture.arrays[f"{variant}.item_rationale_mean"], "item rationales")
    noisy = scores - (-fixture.tensor(f"given.{variant}.gumbel_uniform").log()).log()
    hidden = noisy.topk(model.config.hidden_edges).indices
    assert set(hidden.tolist()) == set(np.flatnonzero(fixture.arrays[f"given.{variant}.mae_topk_mask"]).tolist())
    if variant == "sampled":
        kept = most(noisy, 1 - model.config.contrast_drop)
        np.testing.assert_array_equal(kept.numpy(), np.flatnonzero(fixture.arrays["given.sampled.cl_kg_keep"]))


@pytest.mark.parametrize("variant", VARIANTS)
def test_kgrec_parity_losses_and_gradients(fixture: Fixture, variant: str) -> None:
    model = build(fixture)
    draws = draws_of(fixture, model, variant)
    view = model.interaction_view(draws.view_interactions)
    assert_close(view, fixture.arrays[f"{variant}.item_view_interactions"], "view of the interactions")
    assert_close(model.knowledge_view(draws.view_edges), fixture.arrays[f"{variant}.item_view_kg"], "view of the graph")
    terms = model.training_losses(batch_of(fixture), draws)
    weights = {"reconstruction": model.config.reconstruction_weight, "contrast": model.config.contrast_weight}
    for name in ("bpr", "l2"):
        assert_close(terms[name], fixture.arrays[f"{variant}.loss.{name}"], name)
    for name, key in TERMS.items():
        assert_close(terms[name] / weights[name], fixture.arrays[f"{variant}.loss.{key}_unweighted"], name)
    total = torch.stack(list(terms.values())).sum()
    assert_close(total, fixture.arrays[f"{variant}.loss.total"], "total")
    parts = {"grad": total, "grad_bpr_only": terms["bpr"]}
    parts |= {f"grad_{key}_only": terms[name] / weights[name] for name, key in TERMS.items()}
    parameters = dict(model.named_parameters())
    for prefix, loss in parts.items():
        model.zero_grad()
        loss.backward(retain_graph=True)
        known = [key for key in PARAMETERS if f"{variant}.{prefix}.{key}" in fixture.arrays]
        assert len(known) == (len(PARAMETERS) if prefix == "grad" else 2)
        for key in known:
            gradient = parameters[PARAMETERS[key]].grad
            expected = fixture.arrays[f"{variant}.{prefix}.{key}"]
            found = torch.zeros(expected.shape) if gradient is None else gradient
            assert_close(found, expected, f"{prefix}.{key}")
