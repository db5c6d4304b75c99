"""DiffKG against the numbers of SSLRec's implementation: attention, diffusion, rebuilt graph, losses, gradients."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch

from spike_kit.models.diffkg import DiffKg, DiffKgConfig, DiffKgDraws
from tests.fixture_files import Fixture, assert_close

View = Literal["original", "denoised"]


@pytest.fixture(scope="module")
def fixture() -> Fixture:
    return Fixture("diffkg")


def build(fixture: Fixture, predict_on: View = "original") -> DiffKg:
    model = fixture.model(DiffKg, fixture.config(DiffKgConfig(), predict_on=predict_on, l2_on="all"))
    model.original = places(fixture, model, "given.kg_sampled").sort().values
    model.kept_edges = model.mask(places(fixture, model, "rebuild.kg_edges"))
    return model


def places(fixture: Fixture, model: DiffKg, key: str) -> torch.Tensor:
    """Where edges of the file stand among the model's."""
    return fixture.places((model.head, model.relation, model.tail), key)


def test_diffkg_parity_edges(fixture: Fixture) -> None:
    model = build(fixture)
    found = torch.stack([model.head, model.relation, model.tail], dim=1)
    known = fixture.arrays["derived.kg_edges_deduplicated"]
    assert sorted(found.tolist()) == sorted(known.tolist())
    fresh = model.some_per_head(torch.Generator().manual_seed(1))
    sizes = np.bincount(known[:, 0], minlength=fixture.integer("input.n_entities"))
    kept = np.bincount(model.head[fresh].numpy(), minlength=len(sizes))
    np.testing.assert_array_equal(kept, np.minimum(sizes, model.config.per_head))
    assert len(fresh) == len(fixture.arrays["given.kg_sampled"])


def test_diffkg_parity_forward(fixture: Fixture) -> None:
    model = build(fixture)
    order = places(fixture, model, "given.kg_sampled").argsort()
    attention = model.attention(model.entity_embedding, model.original)
    assert_close(attention, fixture.arrays["eval.layer1_attention"][order.numpy()], "attention")
    fixture.check(model.aggregate(model.entity_embedding, model.original), "eval.layer1_aggregate")
    fixture.check(model.entities(model.original), "eval.kg_entity")
    fixture.check_sides(model.embeddings(), "eval.")
    users, items = build(fixture, "denoised").embeddings()
    fixture.check(users, "eval.user_denoised_kg")
    fixture.check(items, "eval.item_denoised_kg")


@pytest.mark.parametrize(("predict_on", "variant"), [("denoised", "off.pattern0"), ("original", "off.pattern1")])
def test_diffkg_parity_losses_and_gradients(fixture: Fixture, predict_on: View, variant: str) -> None:
    model = build(fixture, predict_on)
    kept = fixture.tensor("given.rebuild_keep").bool()
    edges = places(fixture, model, "rebuild.kg_edges")[kept].sort().values
    fixture.check_sides(model.view(edges), "off.denoised_view_")
    terms = model.training_losses(fixture.batch, DiffKgDraws(edges))
    total = fixture.check_losses(terms, variant, l2_all="l2", contrast="contrast_weighted")
    fixture.check_gradients(model, total, f"{variant}.grad")


def test_diffkg_parity_schedule(fixture: Fixture) -> None:
    schedule = build(fixture).schedule
    known = {
        "betas": schedule.betas,
        "alphas_cumprod": schedule.kept,
        "sqrt_alphas_cumprod": np.sqrt(schedule.kept),
        "sqrt_one_minus_alphas_cumprod": np.sqrt(1 - schedule.kept),
        "posterior_mean_coef1": schedule.toward_prediction,
        "posterior_mean_coef2": schedule.toward_current,
    }
    for name, values in known.items():
        assert_close(torch.from_numpy(values), fixture.arrays[f"diffusion.{name}"].astype(np.float64), name)


def test_diffkg_parity_diffusion(fixture: Fixture) -> None:
    model = build(fixture)
    rows, steps, noise = (fixture.tensor(f"given.diffusion.{key}") for key in ("rows", "timesteps", "noise"))
    clean = torch.zeros(noise.shape)
    for place, entity in enumerate(rows.tolist()):
        clean[place, model.tail[model.head == entity]] = 1
    noised = model.noised(clean, steps, noise)
    fixture.check(noised, "diffusion.noised_rows")
    fixture.check(model.denoiser(noised, steps), "diffusion.predicted_rows")
    squared, collaborative = model.diffusion_terms(rows, steps, noise)
    fixture.check(squared, "diffusion.loss.weighted_mse_per_row")
    fixture.check(collaborative, "diffusion.loss.collaborative_per_row")
    share = model.config.collaborative_share
    total = (1 - share) * squared.mean() + share * collaborative.mean()
    fixture.check(total, "diffusion.loss.total")
    fixture.check_gradients(model, total, "diffusion.grad")
    assert model.entity_embedding.grad is None


def test_diffkg_parity_rebuilt_graph(fixture: Fixture) -> None:
    model = build(fixture)
    with torch.no_grad():
        fixture.check(model.denoised_rows(torch.arange(model.graph.n_entities)), "diffusion.denoised_rows")
    known = model.kept_edges
    model.kept_edges = torch.ones_like(known)
    model.after_auxiliary()
    assert torch.equal(model.kept_edges, known)
