"""The baselines on the user-item graph against the numbers of their reference implementations."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from spike_kit.models.base import Batch
from spike_kit.models.bprmf import BprMf, BprMfConfig
from spike_kit.models.colakg import CoLaKg, CoLaKgConfig, CoLaKgDraws
from spike_kit.models.lightgcl import LightGcl, LightGclConfig
from spike_kit.models.lightgcn import EdgeWeights, LightGcn, PropagatedConfig, PropagatedRecommender
from spike_kit.models.rlmrec import RlmRecCon, RlmRecConConfig, RlmRecGen, RlmRecGenConfig
from spike_kit.models.sgl import Sgl, SglConfig
from tests.fixture_files import Fixture, assert_close, total_of

both_variants = pytest.mark.parametrize("variant", ["off", "sampled"])


def edge_weights(
    model: PropagatedRecommender, fixture: Fixture, variant: str, name: str = "adj_keep", scale: float = 1.0
) -> EdgeWeights | None:
    """Weights of the kept edges, from flags per directed edge of the file (users then items in one graph)."""
    if variant == "off":
        return None
    n_users = fixture.integer("input.n_users")
    rows = fixture.arrays["derived.adj_edges"]
    kept = dict(zip(map(tuple, rows.tolist()), fixture.arrays[f"given.sampled.{name}"].tolist(), strict=True))
    pattern = model.bipartite.pattern
    users, items = pattern.rows.tolist(), (pattern.columns + n_users).tolist()
    to_users = torch.tensor([kept[user, item] for user, item in zip(users, items, strict=True)], dtype=torch.float32)
    to_items = torch.tensor([kept[item, user] for user, item in zip(users, items, strict=True)], dtype=torch.float32)
    weights = model.bipartite.weights
    return weights[0] * to_users / scale, weights[1] * to_items[pattern.transpose_order] / scale


def mean_of(fixture: Fixture, variant: str, term: str) -> np.ndarray:
    """Mean over the batch of a term without negatives, from its sums."""
    sums = [fixture.arrays[f"{variant}.loss.{term}_{part}_sum"] for part in ("users", "positive_items")]
    return np.asarray(np.sum(sums) / len(fixture.batch.users))


@pytest.mark.parametrize("l2", [False, True])
def test_bprmf_parity(l2: bool) -> None:
    fixture = Fixture("bpr")
    decay = fixture.real("hp.decay")
    model = fixture.model(BprMf, fixture.config(BprMfConfig(), l2=decay if l2 else 0.0))
    fixture.check_evaluation(model)
    terms = model.training_losses(fixture.batch, None)
    fixture.check(terms["bpr"], "off.loss.bpr_softplus")
    if l2:
        fixture.check(terms["l2"], "off.loss.l2_unweighted", decay)
        fixture.check(total_of(terms), "off.loss.total_with_l2")
    fixture.check_gradients(model, total_of(terms), "off.grad_with_l2" if l2 else "off.grad")


@both_variants
def test_lightgcn_parity(variant: str) -> None:
    fixture = Fixture("lightgcn")
    model = fixture.model(LightGcn, fixture.config(PropagatedConfig(), combine="sum", l2_on="all"))
    fixture.check_evaluation(model)
    draws = edge_weights(model, fixture, variant, "adj_keep_view1")
    fixture.check_sides(model.propagated(draws), f"{variant}.")
    fixture.check_losses(model, model.training_losses(fixture.batch, draws), variant, l2_all="l2")


@both_variants
def test_sgl_parity(variant: str) -> None:
    fixture = Fixture("sgl")
    config = fixture.config(SglConfig(), combine="sum", contrast_negatives=True, l2_on="all")
    model = fixture.model(Sgl, config)
    fixture.check_evaluation(model)
    first, second = (edge_weights(model, fixture, variant, f"adj_keep_view{number}") for number in (1, 2))
    for number, view in enumerate((first, second), start=1):
        fixture.check_sides(model.propagated(view), f"{variant}.view{number}_")
    terms = model.training_losses(fixture.batch, (first, second))
    fixture.check_losses(model, terms, variant, l2_all="l2", contrast="contrast_weighted")
    fixture.check_gradients(model, terms["contrast"], f"{variant}.grad_contrast_only")
    fewer = fixture.model(Sgl, config.replace(contrast_negatives=False)).training_losses(fixture.batch, (first, second))
    assert_close(fewer["contrast"], config.contrast_weight * mean_of(fixture, variant, "contrast"), "no negatives")


def test_lightgcl_parity() -> None:
    fixture = Fixture("lightgcl")
    config = fixture.config(LightGclConfig(), l2_on="all")
    model = fixture.model(LightGcl, config)
    left, right = fixture.tensor("given.svd_u_t").T, fixture.tensor("given.svd_v_t").T
    model.low_rank = left, (left * fixture.tensor("given.svd_u_times_s")).sum(0), right
    fixture.check_evaluation(model)
    fixture.check_sides(model.both_views()[1], "eval.svd_view_")
    terms = model.training_losses(fixture.batch, None)
    # The reference owns matrices that nothing uses; they shrink under L2 and are no parameters here.
    unused = [array for key, array in fixture.arrays.items() if key.startswith("weight.unused_w")]
    terms["l2_all"] = terms["l2_all"] + config.l2 * sum(float(np.square(array, dtype="f8").sum()) for array in unused)
    fixture.check_losses(model, terms, "off", contrast="contrast_weighted", l2_all="l2")
    fixture.check_gradients(model, terms["contrast"], "off.grad_contrast_only")


@both_variants
def test_rlmrec_con_parity(variant: str) -> None:
    fixture = Fixture("rlmrec_con")
    config = fixture.config(RlmRecConConfig(), combine="sum", l2_on="all")
    model = fixture.model(RlmRecCon, config)
    fixture.check_evaluation(model)
    fixture.check(model.text_mlp(model.user_text), "eval.text_user_projected")
    fixture.check(model.text_mlp(model.item_text), "eval.text_item_projected")
    draws = edge_weights(model, fixture, variant)
    terms = model.training_losses(fixture.batch, draws)
    fixture.check_losses(model, terms, variant, l2_all="l2", text="text_weighted")
    fixture.check_gradients(model, terms["text"], f"{variant}.grad_text_only")
    fewer = fixture.model(RlmRecCon, config.replace(text_negatives=False)).training_losses(fixture.batch, draws)
    assert_close(fewer["text"], config.text_weight * mean_of(fixture, variant, "text"), "without negatives")


def test_rlmrec_con_counts_an_item_as_often_as_it_is_in_the_batch() -> None:
    fixture = Fixture("rlmrec_con")
    config = fixture.config(RlmRecConConfig(), text_weight=1.0, text_negatives=False)
    model, given = fixture.model(RlmRecCon, config), fixture.batch
    repeated = Batch(given.users, given.positives % 5, given.negatives)
    assert len(repeated.positives.unique()) == 5
    parameters = [model.item_embedding, *model.text_mlp.parameters()]
    text = model.training_losses(repeated, None)["text"]
    gradients = torch.autograd.grad(text, parameters, retain_graph=True)

    users, items = model.propagated()
    plain = torch.zeros(())
    for rows, texts, ids, others in (
        (users, model.user_text, repeated.users, torch.arange(len(users))),
        (items, model.item_text, repeated.positives, repeated.positives),
    ):
        mapped = functional.normalize(model.text_mlp(texts)[others])
        scores = functional.normalize(rows[ids]) @ mapped.T / config.text_temperature
        plain = plain + functional.cross_entropy(scores, ids if rows is users else torch.arange(len(scores)))
    torch.testing.assert_close(text, plain, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradients, torch.autograd.grad(plain, parameters), rtol=1e-4, atol=1e-6)


@both_variants
def test_rlmrec_gen_parity(variant: str) -> None:
    fixture = Fixture("rlmrec_gen")
    model = fixture.model(RlmRecGen, fixture.config(RlmRecGenConfig(), combine="sum", l2_on="all"))
    fixture.check_evaluation(model)
    hidden, edges = fixture.tensor(f"given.{variant}.masked_nodes"), edge_weights(model, fixture, variant)
    assert model.draw(torch.Generator())[0].shape == hidden.shape
    users, items = model.without(hidden, edges)
    fixture.check_sides((users, items), f"{variant}.")
    fixture.check(model.reconstructed(users, items, hidden)[0], f"{variant}.reconstructed_text")
    terms = model.training_losses(fixture.batch, (hidden, edges))
    fixture.check_losses(model, terms, variant, l2_all="l2", text="reconstruction_weighted")
    fixture.check_gradients(model, terms["text"], f"{variant}.grad_text_only")


@both_variants
def test_colakg_parity(variant: str) -> None:
    fixture = Fixture("colakg")
    config = fixture.config(CoLaKgConfig())
    model = fixture.model(CoLaKg, config)
    (ours, order), (known, theirs) = model.neighbours.sort(1), fixture.tensor("derived.neighbours").sort(1)
    assert torch.equal(ours, known)
    expected = np.take_along_axis(fixture.arrays["eval.neighbour_attention"], theirs.numpy(), 1)
    assert_close(model.neighbour_attention().gather(1, order), expected, "attention")
    fixture.check_sides(model.merged(CoLaKgDraws())[0], "eval.layer0_")
    fixture.check_sides(model.embeddings(), "eval.")
    fixture.check(model.score(fixture.batch.users).sigmoid(), "eval.rating_sigmoid_batch")
    edges = edge_weights(model, fixture, variant, scale=fixture.real("hp.keep_prob"))
    terms = model.training_losses(fixture.batch, CoLaKgDraws(edges))
    fixture.check(terms["l2"], f"{variant}.loss.l2_unweighted", config.l2)
    fixture.check_losses(model, terms, variant)
