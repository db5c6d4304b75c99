"""KGRec against the numbers of SSLRec's implementation: forward pass, every loss term, every gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from spike_kit.models.kgrec import KgRec, KgRecConfig, KgRecDraws, most
from tests.fixture_files import Fixture

both_variants = pytest.mark.parametrize("variant", ["off", "sampled"])


@pytest.fixture(scope="module")
def fixture() -> Fixture:
    return Fixture("kgrec")


def build(fixture: Fixture) -> KgRec:
    keep = 1 - fixture.real("hp.node_dropout_rate")
    return fixture.model(KgRec, fixture.config(KgRecConfig(), edge_keep=keep, skip_last_relation=True))


def edges_of(fixture: Fixture, model: KgRec, variant: str) -> torch.Tensor:
    """Positions of the variant's edges, in the file's order."""
    rows = "derived.kg_edges" if variant == "off" else "given.sampled.kg_after_relation_sampling"
    return fixture.places((model.graph.head, model.graph.relation, model.graph.tail), rows)


def draws_of(fixture: Fixture, model: KgRec, variant: str) -> KgRecDraws:
    edges, graph = edges_of(fixture, model, variant), model.graph
    interactions = None
    trained = graph.train_user, graph.train_item
    if variant == "sampled":
        kept = fixture.places(trained, "given.sampled.interaction_edges")
        interactions = torch.zeros(graph.n_interactions, dtype=torch.bool).index_fill(0, kept, True)
    hidden = fixture.tensor(f"given.{variant}.mae_mask").bool()
    return KgRecDraws(
        edges=edges[~hidden].sort().values,
        interactions=interactions,
        hidden=edges[hidden],
        view_edges=edges[fixture.tensor(f"given.{variant}.cl_kg_keep").bool()].sort().values,
        view_interactions=fixture.places(trained, f"given.{variant}.cl_ui_edges"),
        permutation=fixture.tensor(f"given.{variant}.cl_permutation"),
    )


def test_kgrec_parity_forward(fixture: Fixture) -> None:
    model = build(fixture)
    fixture.check_evaluation(model)
    fixture.check(model.rationale_scores(edges_of(fixture, model, "off")), "eval.rationale_score")


@both_variants
def test_kgrec_parity_of_what_is_chosen(fixture: Fixture, variant: str) -> None:
    """The noise of the file chooses the edges of the file."""
    model = build(fixture)
    edges = edges_of(fixture, model, variant)
    scores = model.rationale_scores(edges)
    fixture.check(scores, f"given.{variant}.rationale_score")
    fixture.check(model.item_rationales(edges, scores), f"{variant}.item_rationale_mean")
    noisy = scores - (-fixture.tensor(f"given.{variant}.gumbel_uniform").log()).log()
    hidden = noisy.topk(model.config.hidden_edges).indices
    assert set(hidden.tolist()) == set(np.flatnonzero(fixture.arrays[f"given.{variant}.mae_topk_mask"]).tolist())
    if variant == "sampled":
        kept = most(noisy, 1 - model.config.contrast_drop)
        np.testing.assert_array_equal(kept.numpy(), np.flatnonzero(fixture.arrays["given.sampled.cl_kg_keep"]))


@both_variants
def test_kgrec_parity_losses_and_gradients(fixture: Fixture, variant: str) -> None:
    model = build(fixture)
    draws = draws_of(fixture, model, variant)
    fixture.check(model.interaction_view(draws.view_interactions), f"{variant}.item_view_interactions")
    fixture.check(model.knowledge_view(draws.view_edges), f"{variant}.item_view_kg")
    terms = model.training_losses(fixture.batch, draws)
    fixture.check_gradients(model, fixture.check_losses(terms, variant, l2="l2"), f"{variant}.grad")
    fixture.check_gradients(model, terms["bpr"], f"{variant}.grad_bpr_only")
    for name, key in {"reconstruction": "mae", "contrast": "contrast"}.items():
        unweighted = terms[name] / getattr(model.config, f"{name}_weight")
        fixture.check(unweighted, f"{variant}.loss.{key}_unweighted")
        fixture.check_gradients(model, unweighted, f"{variant}.grad_{key}_only")
