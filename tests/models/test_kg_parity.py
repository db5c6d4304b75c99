"""SPiKE, KGRec and DiffKG against the numbers of their implementations: forward pass, loss terms, gradients."""

from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from spike_kit.data.graph import Graph
from spike_kit.models.diffkg import DiffKg, DiffKgConfig
from spike_kit.models.kgrec import KgRec, KgRecConfig, KgRecDraws, most
from spike_kit.models.spike import RELEASED_CODE, Spike, SpikeDraws
from tests.fixture_files import Fixture, assert_close, total_of

both_variants = pytest.mark.parametrize("variant", ["off", "sampled"])


@pytest.fixture(scope="module")
def of_spike() -> Fixture:
    return Fixture("spike")


@pytest.fixture(scope="module")
def of_kgrec() -> Fixture:
    return Fixture("kgrec")


@pytest.fixture(scope="module")
def of_diffkg() -> Fixture:
    return Fixture("diffkg")


def triples_at(fixture: Fixture, graph: Graph | DiffKg, key: str) -> Tensor:
    """Where triples of the file stand among those of a graph."""
    return fixture.places((graph.head, graph.relation, graph.tail), key)


def interactions_at(fixture: Fixture, graph: Graph, key: str) -> Tensor:
    return fixture.places((graph.train_user, graph.train_item), key)


def kept_interactions(fixture: Fixture, graph: Graph) -> Tensor:
    kept = interactions_at(fixture, graph, "given.sampled.interaction_edges")
    return torch.zeros(graph.n_interactions, dtype=torch.bool).index_fill(0, kept, True)


def spike(fixture: Fixture, l2: bool = False) -> Spike:
    own = {"edge_keep": 1 - fixture.real("hp.node_dropout_rate"), "l2": fixture.real("hp.decay_weight") if l2 else 0.0}
    return fixture.model(Spike, fixture.config(RELEASED_CODE, **own))


def spike_draws(fixture: Fixture, model: Spike, variant: str) -> SpikeDraws:
    draws = SpikeDraws(nodes=fixture.tensor(f"given.{variant}.anchors"))
    if variant == "off":
        return draws
    edges = triples_at(fixture, model.graph, "given.sampled.kg_used_by_encoder").sort().values
    return replace(draws, edges=edges, interactions=kept_interactions(fixture, model.graph))


def test_parity_forward(of_spike: Fixture) -> None:
    model = spike(of_spike)
    of_spike.check_evaluation(model)
    of_spike.check(model.node_embeddings()[1], "eval.entity")


def test_parity_rationale_scores(of_spike: Fixture) -> None:
    model = spike(of_spike)
    order = triples_at(of_spike, model.graph, "derived.kg_edges")
    of_spike.check(model.rationale_scores().index_select(0, order), "eval.rationale_score")


@both_variants
@pytest.mark.parametrize("l2", [False, True])
def test_parity_losses_and_gradients(of_spike: Fixture, variant: str, l2: bool) -> None:
    model, ending = spike(of_spike, l2), "_with_l2" if l2 else ""
    terms = model.training_losses(of_spike.batch, spike_draws(of_spike, model, variant))
    names = {"bpr": "bpr", "matching": "match"} | ({"l2": "l2_not_returned"} if l2 else {})
    assert set(terms) == set(names)
    for name, key in names.items():
        of_spike.check(terms[name], f"{variant}.loss.{key}")
    of_spike.check(total_of(terms), f"{variant}.loss.total{ending}")
    of_spike.check_gradients(model, total_of(terms), f"{variant}.grad{ending}")


@both_variants
def test_parity_gradient_of_bpr_alone(of_spike: Fixture, variant: str) -> None:
    model = spike(of_spike)
    bpr = model.training_losses(of_spike.batch, spike_draws(of_spike, model, variant))["bpr"]
    of_spike.check_gradients(model, bpr, f"{variant}.grad_bpr_only")


def test_draws_have_the_sizes_of_the_released_samplers(of_spike: Fixture) -> None:
    model = spike(of_spike)
    draws = model.draw(torch.Generator().manual_seed(1))
    assert draws.edges is not None
    assert draws.nodes is not None
    assert draws.nodes.shape == of_spike.arrays["given.sampled.anchors"].shape
    sampled = len(of_spike.arrays["given.sampled.kg_after_relation_sampling"])
    largest = 2 * model.config.dropped_edges
    assert largest / 2 <= sampled - draws.edges.numel() <= largest
    of_last = (model.graph.relation[draws.edges] == of_spike.integer("quirk.last_relation_row")).sum()
    assert of_last == of_spike.integer("quirk.sampled.edges_of_last_relation")


def kgrec(fixture: Fixture, variant: str = "off") -> tuple[KgRec, Tensor]:
    """A model, and where the variant's edges stand, in the file's order."""
    keep = 1 - fixture.real("hp.node_dropout_rate")
    model = fixture.model(KgRec, fixture.config(KgRecConfig(), edge_keep=keep, skip_last_relation=True))
    rows = "derived.kg_edges" if variant == "off" else "given.sampled.kg_after_relation_sampling"
    return model, triples_at(fixture, model.graph, rows)


def test_kgrec_parity_forward(of_kgrec: Fixture) -> None:
    model, edges = kgrec(of_kgrec)
    of_kgrec.check_evaluation(model)
    of_kgrec.check(model.rationale_scores(edges), "eval.rationale_score")


@both_variants
def test_kgrec_parity_of_what_is_chosen(of_kgrec: Fixture, variant: str) -> None:
    """The noise of the file chooses the edges of the file."""
    model, edges = kgrec(of_kgrec, variant)
    scores = model.rationale_scores(edges)
    of_kgrec.check(scores, f"given.{variant}.rationale_score")
    of_kgrec.check(model.item_rationales(edges, scores), f"{variant}.item_rationale_mean")
    noisy = scores - (-of_kgrec.tensor(f"given.{variant}.gumbel_uniform").log()).log()
    hidden = noisy.topk(model.config.hidden_edges).indices
    assert set(hidden.tolist()) == set(np.flatnonzero(of_kgrec.arrays[f"given.{variant}.mae_topk_mask"]).tolist())
    if variant == "sampled":
        kept = most(noisy, 1 - model.config.contrast_drop)
        np.testing.assert_array_equal(kept.numpy(), np.flatnonzero(of_kgrec.arrays["given.sampled.cl_kg_keep"]))


@both_variants
def test_kgrec_parity_losses_and_gradients(of_kgrec: Fixture, variant: str) -> None:
    model, edges = kgrec(of_kgrec, variant)
    hidden = of_kgrec.tensor(f"given.{variant}.mae_mask").bool()
    draws = KgRecDraws(
        edges=edges[~hidden].sort().values,
        interactions=kept_interactions(of_kgrec, model.graph) if variant == "sampled" else None,
        hidden=edges[hidden],
        view_edges=edges[of_kgrec.tensor(f"given.{variant}.cl_kg_keep").bool()].sort().values,
        view_interactions=interactions_at(of_kgrec, model.graph, f"given.{variant}.cl_ui_edges"),
        permutation=of_kgrec.tensor(f"given.{variant}.cl_permutation"),
    )
    of_kgrec.check(model.interaction_view(draws.view_interactions), f"{variant}.item_view_interactions")
    of_kgrec.check(model.knowledge_view(draws.view_edges), f"{variant}.item_view_kg")
    terms = model.training_losses(of_kgrec.batch, draws)
    of_kgrec.check_losses(model, terms, variant, l2="l2")
    of_kgrec.check_gradients(model, terms["bpr"], f"{variant}.grad_bpr_only")
    for name, key in {"reconstruction": "mae", "contrast": "contrast"}.items():
        unweighted = terms[name] / getattr(model.config, f"{name}_weight")
        of_kgrec.check(unweighted, f"{variant}.loss.{key}_unweighted")
        of_kgrec.check_gradients(model, unweighted, f"{variant}.grad_{key}_only")


View = Literal["original", "denoised"]


def diffkg(fixture: Fixture, predict_on: View = "original") -> DiffKg:
    model = fixture.model(DiffKg, fixture.config(DiffKgConfig(), predict_on=predict_on, l2_on="all"))
    model.original = triples_at(fixture, model, "given.kg_sampled").sort().values
    model.kept_edges = model.mask(triples_at(fixture, model, "rebuild.kg_edges"))
    return model


def test_diffkg_parity_edges(of_diffkg: Fixture) -> None:
    model = diffkg(of_diffkg)
    found = torch.stack([model.head, model.relation, model.tail], dim=1)
    known = of_diffkg.arrays["derived.kg_edges_deduplicated"]
    assert sorted(found.tolist()) == sorted(known.tolist())
    fresh = model.some_per_head(torch.Generator().manual_seed(1))
    sizes = np.bincount(known[:, 0], minlength=of_diffkg.integer("input.n_entities"))
    kept = np.bincount(model.head[fresh].numpy(), minlength=len(sizes))
    np.testing.assert_array_equal(kept, np.minimum(sizes, model.config.per_head))
    assert len(fresh) == len(of_diffkg.arrays["given.kg_sampled"])


def test_diffkg_parity_forward(of_diffkg: Fixture) -> None:
    model = diffkg(of_diffkg)
    order = triples_at(of_diffkg, model, "given.kg_sampled").argsort()
    attention = model.attention(model.entity_embedding, model.original)
    assert_close(attention, of_diffkg.arrays["eval.layer1_attention"][order.numpy()], "attention")
    of_diffkg.check(model.aggregate(model.entity_embedding, model.original), "eval.layer1_aggregate")
    of_diffkg.check(model.entities(model.original), "eval.kg_entity")
    of_diffkg.check_sides(model.embeddings(), "eval.")
    for side, rows in zip(("user", "item"), diffkg(of_diffkg, "denoised").embeddings(), strict=True):
        of_diffkg.check(rows, f"eval.{side}_denoised_kg")


@pytest.mark.parametrize(("predict_on", "variant"), [("denoised", "off.pattern0"), ("original", "off.pattern1")])
def test_diffkg_parity_losses_and_gradients(of_diffkg: Fixture, predict_on: View, variant: str) -> None:
    model = diffkg(of_diffkg, predict_on)
    kept = of_diffkg.tensor("given.rebuild_keep").bool()
    edges = triples_at(of_diffkg, model, "rebuild.kg_edges")[kept].sort().values
    of_diffkg.check_sides(model.view(edges), "off.denoised_view_")
    terms = model.training_losses(of_diffkg.batch, (edges, None))
    of_diffkg.check_losses(model, terms, variant, l2_all="l2", contrast="contrast_weighted")


def test_diffkg_parity_schedule(of_diffkg: Fixture) -> None:
    schedule = diffkg(of_diffkg).schedule
    known = {
        "betas": schedule.betas,
        "alphas_cumprod": schedule.kept,
        "posterior_mean_coef1": schedule.toward_prediction,
        "posterior_mean_coef2": schedule.toward_current,
    }
    for name, values in known.items():
        assert_close(torch.from_numpy(values), of_diffkg.arrays[f"diffusion.{name}"].astype(np.float64), name)


def test_diffkg_parity_diffusion(of_diffkg: Fixture) -> None:
    model = diffkg(of_diffkg)
    rows, steps, noise = (of_diffkg.tensor(f"given.diffusion.{key}") for key in ("rows", "timesteps", "noise"))
    clean = torch.zeros(noise.shape)
    for place, entity in enumerate(rows.tolist()):
        clean[place, model.tail[model.head == entity]] = 1
    noised = model.noised(clean, steps, noise)
    of_diffkg.check(noised, "diffusion.noised_rows")
    of_diffkg.check(model.denoiser(noised, steps), "diffusion.predicted_rows")
    squared, collaborative = model.diffusion_terms(rows, steps, noise)
    of_diffkg.check(squared, "diffusion.loss.weighted_mse_per_row")
    of_diffkg.check(collaborative, "diffusion.loss.collaborative_per_row")
    share = model.config.collaborative_share
    total = (1 - share) * squared.mean() + share * collaborative.mean()
    of_diffkg.check(total, "diffusion.loss.total")
    of_diffkg.check_gradients(model, total, "diffusion.grad")
    assert model.entity_embedding.grad is None


def test_diffkg_parity_rebuilt_graph(of_diffkg: Fixture) -> None:
    model = diffkg(of_diffkg)
    with torch.no_grad():
        of_diffkg.check(model.denoised_rows(torch.arange(model.graph.n_entities)), "diffusion.denoised_rows")
    known = model.kept_edges
    model.kept_edges = torch.ones_like(known)
    model.after_auxiliary()
    assert torch.equal(model.kept_edges, known)
