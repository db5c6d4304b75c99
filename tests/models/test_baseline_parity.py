"""The baselines on the user-item graph against the numbers of their reference implementations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from spike_kit.data.graph import Graph
from spike_kit.data.vectors import ProfileVectors
from spike_kit.models.base import Batch, TrainedRecommender
from spike_kit.models.bprmf import BprMf, BprMfConfig
from spike_kit.models.colakg import CoLaKg, CoLaKgConfig, CoLaKgDraws
from spike_kit.models.lightgcl import LightGcl, LightGclConfig
from spike_kit.models.lightgcn import EdgeWeights, LightGcn, PropagatedRecommender
from spike_kit.models.rlmrec import RlmRecCon, RlmRecConConfig, RlmRecGen, RlmRecGenConfig
from spike_kit.models.sgl import Sgl, SglConfig
from tests.fixture_files import Fixture, assert_close, batch_of, settings

VARIANTS = ("off", "sampled")
TABLES = ("user_embedding", "item_embedding")
TEXT_MLP = {
    "text_fc1_weight": "text_mlp.first.weight",
    "text_fc1_bias": "text_mlp.first.bias",
    "text_fc2_weight": "text_mlp.second.weight",
    "text_fc2_bias": "text_mlp.second.bias",
}
COLAKG = {
    "text_user_weight": "user_map.weight",
    "text_user_bias": "user_map.bias",
    "text_item_weight": "item_map.weight",
    "text_item_bias": "item_map.bias",
    "neighbour_w": "attention_weight",
    "neighbour_a": "attention_vector",
}


def graph_of(fixture: Fixture) -> Graph:
    """Only items are entities: these files have no knowledge graph."""
    n_items = fixture.integer("input.n_items")
    return Graph.from_arrays(
        n_users=fixture.integer("input.n_users"),
        n_items=n_items,
        n_entities=n_items,
        n_relations=0,
        interactions=fixture.arrays["input.train"],
        triples=np.empty((0, 3), dtype=np.int64),
    )


def built(
    fixture: Fixture, cls: type[TrainedRecommender], config: Any, names: dict[str, str] | None = None
) -> TrainedRecommender:
    """Model with the weights of the file; ``names`` are parameters by the file's name, the id tables come anyhow."""
    vectors = None
    if "input.text_user" in fixture.arrays:
        vectors = ProfileVectors(fixture.tensor("input.text_user"), fixture.tensor("input.text_item"))
    model = cls(config, graph_of(fixture), vectors, torch.Generator().manual_seed(0))
    known = {**{name: name for name in TABLES}, **(names or {})}
    model.load_state_dict({name: fixture.tensor(f"weight.{key}") for key, name in known.items()}, strict=True)
    return model


def edge_weights(model: PropagatedRecommender, fixture: Fixture, keep: str, scale: float = 1.0) -> EdgeWeights:
    """Weights of the kept edges, from flags per directed edge of the file (users then items in one graph)."""
    n_users = fixture.integer("input.n_users")
    rows = fixture.arrays["derived.adj_edges"]
    kept = dict(zip(map(tuple, rows.tolist()), fixture.arrays[keep].tolist(), strict=True))
    pattern = model.bipartite.pattern
    users, items = pattern.rows.tolist(), (pattern.columns + n_users).tolist()
    to_users = torch.tensor([kept[user, item] for user, item in zip(users, items, strict=True)], dtype=torch.float32)
    to_items = torch.tensor([kept[item, user] for user, item in zip(users, items, strict=True)], dtype=torch.float32)
    weights = model.bipartite.weights
    return weights[0] * to_users / scale, weights[1] * to_items[pattern.transpose_order] / scale


def compare_gradients(
    model: TrainedRecommender, total: Tensor, fixture: Fixture, prefix: str, names: dict[str, str] | None = None
) -> None:
    model.zero_grad()
    total.backward(retain_graph=True)
    compared = 0
    parameters = dict(model.named_parameters())
    for key, name in {**{name: name for name in TABLES}, **(names or {})}.items():
        if f"{prefix}.{key}" in fixture.arrays:
            gradient = parameters[name].grad
            assert gradient is not None
            assert_close(gradient, fixture.arrays[f"{prefix}.{key}"], f"{prefix}.{key}")
            compared += 1
    assert compared >= len(TABLES)


def compare_embeddings(model: TrainedRecommender, fixture: Fixture) -> None:
    users, items = model.embeddings()
    assert_close(users, fixture.arrays["eval.user"], "users")
    assert_close(items, fixture.arrays["eval.item"], "items")


def compare_evaluation(model: TrainedRecommender, fixture: Fixture) -> None:
    """Final embeddings, and the scores of the items that a user has not seen."""
    compare_embeddings(model, fixture)
    expected = fixture.arrays["eval.scores_batch_masked"]
    open_ = expected > -1e7
    scores = model.score(fixture.tensor("batch.users")).numpy()
    assert_close(torch.from_numpy(scores[open_]), expected[open_], "scores")


def compare_losses(terms: dict[str, Tensor], fixture: Fixture, variant: str, **keys: str) -> Tensor:
    """Compare terms (by their keys in the file) and their sum, which is returned."""
    for name, key in {"bpr": "bpr", **keys}.items():
        assert_close(terms[name], fixture.arrays[f"{variant}.loss.{key}"], name)
    total = total_of(terms)
    assert_close(total, fixture.arrays[f"{variant}.loss.total"], "total")
    return total


def total_of(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(terms.values())).sum()


@pytest.mark.parametrize("l2", [False, True])
def test_bprmf_parity(l2: bool) -> None:
    fixture = Fixture("bpr")
    decay = fixture.real("hp.decay")
    model = built(fixture, BprMf, BprMfConfig(dim=fixture.integer("hp.embedding_size"), l2=decay if l2 else 0.0))
    compare_embeddings(model, fixture)
    assert_close(model.score(fixture.tensor("batch.users")), fixture.arrays["eval.scores_batch"], "scores")
    terms = model.training_losses(batch_of(fixture), None)
    assert_close(terms["bpr"], fixture.arrays["off.loss.bpr_softplus"], "bpr")
    if l2:
        assert_close(terms["l2"], decay * fixture.arrays["off.loss.l2_unweighted"], "l2")
        assert_close(total_of(terms), fixture.arrays["off.loss.total_with_l2"], "total")
    compare_gradients(model, total_of(terms), fixture, "off.grad_with_l2" if l2 else "off.grad")


@pytest.mark.parametrize("variant", VARIANTS)
def test_lightgcn_parity(variant: str) -> None:
    fixture = Fixture("lightgcn")
    given = settings(fixture, layers="layer_num", l2="reg_weight")
    config = LightGcn.presets["reference"].model.replace(**given)
    model = built(fixture, LightGcn, config)
    assert isinstance(model, LightGcn)
    compare_evaluation(model, fixture)
    draws = edge_weights(model, fixture, "given.sampled.adj_keep_view1") if variant == "sampled" else None
    users, items = model.propagated(draws)
    assert_close(users, fixture.arrays[f"{variant}.user"], "users of the loss")
    assert_close(items, fixture.arrays[f"{variant}.item"], "items of the loss")
    terms = model.training_losses(batch_of(fixture), draws)
    total = compare_losses(terms, fixture, variant, l2_all="l2")
    compare_gradients(model, total, fixture, f"{variant}.grad")


@pytest.mark.parametrize("variant", VARIANTS)
def test_sgl_parity(variant: str) -> None:
    fixture = Fixture("sgl")
    names = {"layers": "layer_num", "contrast_weight": "cl_weight", "contrast_temperature": "temperature"}
    given = settings(fixture, **names, l2="reg_weight")
    config = SglConfig(**given, combine="sum", contrast_negatives=True, l2_on="all")
    model = built(fixture, Sgl, config)
    assert isinstance(model, Sgl)
    compare_evaluation(model, fixture)
    draws: tuple[EdgeWeights | None, ...] = None, None
    if variant == "sampled":
        draws = tuple(edge_weights(model, fixture, f"given.sampled.adj_keep_view{n}") for n in (1, 2))
    for number, view in enumerate(draws, start=1):
        for side, found in zip(("user", "item"), model.propagated(view), strict=True):
            assert_close(found, fixture.arrays[f"{variant}.view{number}_{side}"], f"view {number}, {side}")
    terms = model.training_losses(batch_of(fixture), draws)
    total = compare_losses(terms, fixture, variant, l2_all="l2", contrast="contrast_weighted")
    compare_gradients(model, total, fixture, f"{variant}.grad")
    compare_gradients(model, terms["contrast"], fixture, f"{variant}.grad_contrast_only")
    sums = [fixture.arrays[f"{variant}.loss.contrast_{part}_sum"] for part in ("users", "positive_items")]
    fewer = built(fixture, Sgl, config.replace(contrast_negatives=False)).training_losses(batch_of(fixture), draws)
    expected = config.contrast_weight * np.sum(sums) / fixture.arrays["batch.users"].size
    assert_close(fewer["contrast"], np.asarray(expected), "contrast without negatives")


def test_lightgcl_parity() -> None:
    fixture = Fixture("lightgcl")
    names = {"layers": "layer_num", "rank": "svd_q", "contrast_weight": "cl_weight", "contrast_temperature": "temp"}
    config = LightGclConfig(**settings(fixture, **names, l2="reg_weight"), l2_on="all")
    model = built(fixture, LightGcl, config)
    assert isinstance(model, LightGcl)
    left, right = fixture.tensor("given.svd_u_t").T, fixture.tensor("given.svd_v_t").T
    values = (left * fixture.tensor("given.svd_u_times_s")).sum(0)
    model.low_rank = left, values, right
    compare_evaluation(model, fixture)
    _, views = model.both_views()
    for side, found in zip(("user", "item"), views, strict=True):
        assert_close(found, fixture.arrays[f"eval.svd_view_{side}"], f"view, {side}")
    terms = model.training_losses(batch_of(fixture), None)
    assert_close(terms["bpr"], fixture.arrays["off.loss.bpr"], "bpr")
    assert_close(terms["contrast"], fixture.arrays["off.loss.contrast_weighted"], "contrast")
    # The reference owns matrices that nothing uses; they shrink under L2 and are no parameters here.
    unused = sum(
        float(np.square(array.astype(np.float64)).sum())
        for key, array in fixture.arrays.items()
        if key.startswith("weight.unused_w")
    )
    assert_close(terms["l2_all"] + config.l2 * unused, fixture.arrays["off.loss.l2"], "l2")
    assert_close(total_of(terms) + config.l2 * unused, fixture.arrays["off.loss.total"], "total")
    compare_gradients(model, total_of(terms), fixture, "off.grad")
    compare_gradients(model, terms["contrast"], fixture, "off.grad_contrast_only")


@pytest.mark.parametrize("variant", VARIANTS)
def test_rlmrec_con_parity(variant: str) -> None:
    fixture = Fixture("rlmrec_con")
    names = {"layers": "layer_num", "text_weight": "kd_weight", "text_temperature": "kd_temperature"}
    config = RlmRecConConfig(**settings(fixture, **names, l2="reg_weight"), combine="sum", l2_on="all")
    model = built(fixture, RlmRecCon, config, TEXT_MLP)
    assert isinstance(model, RlmRecCon)
    compare_evaluation(model, fixture)
    assert_close(model.text_mlp(model.user_text), fixture.arrays["eval.text_user_projected"], "mapped users")
    assert_close(model.text_mlp(model.item_text), fixture.arrays["eval.text_item_projected"], "mapped items")
    draws = edge_weights(model, fixture, "given.sampled.adj_keep") if variant == "sampled" else None
    terms = model.training_losses(batch_of(fixture), draws)
    total = compare_losses(terms, fixture, variant, l2_all="l2", text="text_weighted")
    compare_gradients(model, total, fixture, f"{variant}.grad", TEXT_MLP)
    compare_gradients(model, terms["text"], fixture, f"{variant}.grad_text_only")
    sums = [fixture.arrays[f"{variant}.loss.text_{part}_sum"] for part in ("users", "positive_items")]
    without = built(fixture, RlmRecCon, config.replace(text_negatives=False), TEXT_MLP)
    expected = config.text_weight * np.sum(sums) / fixture.arrays["batch.users"].size
    assert_close(without.training_losses(batch_of(fixture), draws)["text"], np.asarray(expected), "without negatives")


def test_rlmrec_con_counts_an_item_as_often_as_it_is_in_the_batch() -> None:
    fixture = Fixture("rlmrec_con")
    config = RlmRecConConfig(dim=fixture.integer("hp.embedding_size"), text_weight=1.0, text_negatives=False)
    model = built(fixture, RlmRecCon, config, TEXT_MLP)
    assert isinstance(model, RlmRecCon)
    given = batch_of(fixture)
    repeated = Batch(given.users, given.positives % 5, given.negatives)
    assert len(repeated.positives.unique()) == 5
    parameters = [model.item_embedding, *model.text_mlp.parameters()]
    text = model.training_losses(repeated, None)["text"]
    gradients = torch.autograd.grad(text, parameters, retain_graph=True)

    users, items = model.propagated()
    plain = torch.zeros(())
    for rows, texts, ids in (
        (users, model.user_text, (repeated.users, torch.arange(len(users)))),
        (items, model.item_text, (repeated.positives, repeated.positives)),
    ):
        mapped = model.text_mlp(texts)[ids[1]]
        scores = functional.normalize(rows[ids[0]]) @ functional.normalize(mapped).T / config.text_temperature
        own = repeated.users if rows is users else torch.arange(len(scores))
        plain = plain + functional.cross_entropy(scores, own)
    torch.testing.assert_close(text, plain, rtol=1e-5, atol=1e-6)
    for found, expected in zip(gradients, torch.autograd.grad(plain, parameters), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_rlmrec_gen_parity(variant: str) -> None:
    fixture = Fixture("rlmrec_gen")
    names = {**TEXT_MLP, "mask_token": "mask_token"}
    hyper = {"mask_share": "mask_ratio", "text_weight": "recon_weight", "text_temperature": "re_temperature"}
    given = settings(fixture, layers="layer_num", l2="reg_weight", **hyper)
    config = RlmRecGenConfig(**given, combine="sum", l2_on="all")
    model = built(fixture, RlmRecGen, config, names)
    assert isinstance(model, RlmRecGen)
    compare_evaluation(model, fixture)
    masked = fixture.tensor(f"given.{variant}.masked_nodes")
    assert model.draw(torch.Generator())[0].shape == masked.shape
    edges = edge_weights(model, fixture, "given.sampled.adj_keep") if variant == "sampled" else None
    draws = masked, edges
    users, items = model.without(masked, edges)
    assert_close(users, fixture.arrays[f"{variant}.user"], "users of the loss")
    assert_close(items, fixture.arrays[f"{variant}.item"], "items of the loss")
    mapped, _ = model.reconstructed(users, items, masked)
    assert_close(mapped, fixture.arrays[f"{variant}.reconstructed_text"], "reconstructed text")
    terms = model.training_losses(batch_of(fixture), draws)
    total = compare_losses(terms, fixture, variant, l2_all="l2", text="reconstruction_weighted")
    compare_gradients(model, total, fixture, f"{variant}.grad", names)
    compare_gradients(model, terms["text"], fixture, f"{variant}.grad_text_only")


@pytest.mark.parametrize("variant", VARIANTS)
def test_colakg_parity(variant: str) -> None:
    fixture = Fixture("colakg")
    decay = fixture.real("hp.decay")
    config = CoLaKgConfig(**settings(fixture, layers="layer_num", neighbours="neighbor_k", l2="decay"))
    model = built(fixture, CoLaKg, config, COLAKG)
    assert isinstance(model, CoLaKg)
    known = fixture.arrays["derived.neighbours"]
    assert [set(row) for row in model.neighbours.tolist()] == [set(row) for row in known.tolist()]
    attention = model.neighbour_attention()
    order = torch.from_numpy(known).argsort(1), model.neighbours.argsort(1)
    assert_close(
        attention.gather(1, order[1]),
        np.take_along_axis(fixture.arrays["eval.neighbour_attention"], order[0].numpy(), 1),
        "attention",
    )
    (users, items), _ = model.merged(CoLaKgDraws())
    assert_close(users, fixture.arrays["eval.layer0_user"], "layer 0, users")
    assert_close(items, fixture.arrays["eval.layer0_item"], "layer 0, items")
    compare_embeddings(model, fixture)
    ratings = model.score(fixture.tensor("batch.users")).sigmoid()
    assert_close(ratings, fixture.arrays["eval.rating_sigmoid_batch"], "ratings")
    edges = None
    if variant == "sampled":
        edges = edge_weights(model, fixture, "given.sampled.adj_keep", scale=fixture.real("hp.keep_prob"))
    terms = model.training_losses(batch_of(fixture), CoLaKgDraws(edges))
    assert_close(terms["bpr"], fixture.arrays[f"{variant}.loss.bpr"], "bpr")
    assert_close(terms["l2"], decay * fixture.arrays[f"{variant}.loss.l2_unweighted"], "l2")
    assert_close(total_of(terms), fixture.arrays[f"{variant}.loss.total"], "total")
    compare_gradients(model, total_of(terms), fixture, f"{variant}.grad", COLAKG)
