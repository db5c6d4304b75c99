"""DiffKG against the numbers of SSLRec's implementation: attention, diffusion, rebuilt graph, losses, gradients."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch

from spike_kit.models.diffkg import DiffKg, DiffKgConfig, DiffKgDraws
from tests.fixture_files import Fixture, assert_close, batch_of, graph_of, positions, settings

PARAMETERS = {
    "user_embedding": "user_embedding",
    "entity_embedding": "entity_embedding",
    "relation_embedding": "relation_embedding",
    "attention_w": "attention_weight",
}
DENOISER = {
    "denoise_time_weight": "denoiser.time.weight",
    "denoise_time_bias": "denoiser.time.bias",
    "denoise_fc1_weight": "denoiser.first.weight",
    "denoise_fc1_bias": "denoiser.first.bias",
    "denoise_fc2_weight": "denoiser.second.weight",
    "denoise_fc2_bias": "denoiser.second.bias",
}


@pytest.fixture(scope="module")
def fixture() -> Fixture:
    return Fixture("diffkg")


def build(fixture: Fixture, predict_on: Literal["original", "denoised"] = "original") -> DiffKg:
    graph = graph_of(fixture)
    names = {
        "layers": "layer_num",
        "kg_layers": "layer_num_kg",
        "per_head": "triplet_num",
        "residual": "res_lambda",
        "message_dropout": "mess_dropout_rate",
        "edge_keep": "keepRate",
        "contrast_weight": "cl_weight",
        "contrast_temperature": "temperature",
        "denoiser_dim": "denoise_hidden",
        "time_dim": "d_emb_size",
        "collaborative_share": "e_loss",
        "l2": "reg_weight",
    }
    same = {name: name for name in ("steps", "noise_scale", "noise_min", "noise_max", "rebuild_k")}
    config = DiffKgConfig(**settings(fixture, **names, **same), predict_on=predict_on, l2_on="all")
    model = DiffKg(config, graph, None, torch.Generator().manual_seed(0))
    known = {name: fixture.tensor(f"weight.{key}") for key, name in {**PARAMETERS, **DENOISER}.items()}
    model.load_state_dict({**known, "kept_edges": model.kept_edges}, strict=True)
    model.original = places(fixture, model, "given.kg_sampled").sort().values
    model.kept_edges = torch.zeros_like(model.kept_edges).index_fill(
        0, places(fixture, model, "rebuild.kg_edges"), True
    )
    return model


def places(fixture: Fixture, model: DiffKg, rows: str) -> torch.Tensor:
    """Where edges of the file stand among the model's."""
    return positions((model.head, model.relation, model.tail), fixture.arrays[rows])


def compare_gradients(model: DiffKg, fixture: Fixture, names: dict[str, str], prefix: str) -> None:
    parameters = dict(model.named_parameters())
    for key, name in names.items():
        gradient = parameters[name].grad
        assert gradient is not None, name
        assert_close(gradient, fixture.arrays[f"{prefix}.{key}"], f"{prefix}.{key}")


def test_diffkg_parity_edges(fixture: Fixture) -> None:
    model = build(fixture)
    found = torch.stack([model.head, model.relation, model.tail], dim=1)
    known = fixture.arrays["derived.kg_edges_deduplicated"]
    assert {tuple(row) for row in found.tolist()} == {tuple(row) for row in known.tolist()}
    assert len(found) == len(known)
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
    aggregate = model.aggregate(model.entity_embedding, model.original)
    assert_close(aggregate, fixture.arrays["eval.layer1_aggregate"], "aggregate")
    assert_close(model.entities(model.original), fixture.arrays["eval.kg_entity"], "entities")
    endings: dict[Literal["original", "denoised"], str] = {"original": "", "denoised": "_denoised_kg"}
    for predict_on, ending in endings.items():
        users, items = build(fixture, predict_on).embeddings()
        assert_close(users, fixture.arrays[f"eval.user{ending}"], f"users, {predict_on}")
        assert_close(items, fixture.arrays[f"eval.item{ending}"], f"items, {predict_on}")


@pytest.mark.parametrize(("predict_on", "variant"), [("denoised", "pattern0"), ("original", "pattern1")])
def test_diffkg_parity_losses_and_gradients(
    fixture: Fixture, predict_on: Literal["original", "denoised"], variant: str
) -> None:
    model = build(fixture, predict_on)
    kept = fixture.tensor("given.rebuild_keep").bool()
    edges = places(fixture, model, "rebuild.kg_edges")[kept].sort().values
    for side, found in zip(("user", "item"), model.view(edges), strict=True):
        assert_close(found, fixture.arrays[f"off.denoised_view_{side}"], f"denoised view, {side}")
    terms = model.training_losses(batch_of(fixture), DiffKgDraws(edges))
    for name, key in (("bpr", "bpr"), ("l2_all", "l2"), ("contrast", "contrast_weighted")):
        assert_close(terms[name], fixture.arrays[f"off.{variant}.loss.{key}"], name)
    total = torch.stack(list(terms.values())).sum()
    assert_close(total, fixture.arrays[f"off.{variant}.loss.total"], "total")
    total.backward()
    compare_gradients(model, fixture, PARAMETERS, f"off.{variant}.grad")


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
    assert_close(noised, fixture.arrays["diffusion.noised_rows"], "noised rows")
    assert_close(model.denoiser(noised, steps), fixture.arrays["diffusion.predicted_rows"], "predicted rows")
    squared, collaborative = model.diffusion_terms(rows, steps, noise)
    assert_close(squared, fixture.arrays["diffusion.loss.weighted_mse_per_row"], "squared error")
    assert_close(collaborative, fixture.arrays["diffusion.loss.collaborative_per_row"], "collaborative error")
    share = model.config.collaborative_share
    total = (1 - share) * squared.mean() + share * collaborative.mean()
    assert_close(total, fixture.arrays["diffusion.loss.total"], "total")
    total.backward()
    compare_gradients(model, fixture, DENOISER, "diffusion.grad")
    assert model.entity_embedding.grad is None


def test_diffkg_parity_rebuilt_graph(fixture: Fixture) -> None:
    model = build(fixture)
    with torch.no_grad():
        rows = model.denoised_rows(torch.arange(fixture.integer("input.n_entities")))
    assert_close(rows, fixture.arrays["diffusion.denoised_rows"], "denoised rows")
    known = model.kept_edges
    model.kept_edges = torch.ones_like(known)
    model.after_auxiliary()
    assert torch.equal(model.kept_edges, known)
