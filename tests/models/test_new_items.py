"""What models make of items without train interactions: never negatives, and scored only where that means something."""

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from spike_kit.base.config import TrainingConfig
from spike_kit.base.errors import ConfigError
from spike_kit.base.seeds import torch_generator
from spike_kit.evaluation.ranking import RankingTask, evaluate, new_items
from spike_kit.models import MODELS, find_model, find_preset, losses
from spike_kit.models.base import Recommender, TrainedRecommender
from spike_kit.models.spike import Spike, SpikeConfig
from spike_kit.models.spike_explainer import SpikeExplainer
from spike_kit.models.text_ridge import TextRidge, TextRidgeConfig
from spike_kit.training.loop import fit
from spike_kit.training.sampling import NegativeSampler, epoch_batches
from tests.world import World, build

FAST = TrainingConfig(epochs=40, batch_size=256, learning_rate=2e-2, eval_every=5, patience=3)


def new_task(world: World, split: str = "valid") -> RankingTask:
    new = new_items(world.tables, split)
    return RankingTask.from_tables(world.tables, split, relevant_items=new, candidates=new)


def trained(name: str, world: World, **settings: Any) -> Recommender:
    preset = find_preset(name)
    model = find_model(name)(preset.model.replace(**settings), world.graph, world.vectors, torch_generator(0, "init"))
    if isinstance(model, TrainedRecommender):
        fit(model, world.graph, RankingTask.from_tables(world.tables, "valid"), FAST, seed=0, progress=False)
    return model


@pytest.mark.parametrize("name", list(MODELS))
def test_scores_tell_new_items_apart_exactly_where_a_model_says_so(new_world: World, name: str) -> None:
    model = trained(name, new_world)
    new = torch.from_numpy(new_items(new_world.tables, "valid"))
    scores = model.score(torch.arange(5))
    spread = scores.index_select(1, new).std(dim=1) / scores.std(dim=1)
    assert bool((spread > 1e-3).all()) == model.scores_new
    assert bool((spread > 1e-3).any()) == model.scores_new


@pytest.mark.parametrize("name", ["spike", "text_knn", "text_ridge", "colakg", "kgrec"])
def test_new_items_go_to_those_who_like_their_kind(new_world: World, name: str) -> None:
    assert evaluate(trained(name, new_world), new_task(new_world, "test"), (1,))[0]["recall@1"] > 0.9


def test_negatives_are_all_items_of_train_that_the_user_has_not_and_no_others(new_world: World) -> None:
    graph = new_world.graph
    sampler, generator = NegativeSampler(graph), torch.Generator().manual_seed(0)
    users = torch.arange(graph.n_users).repeat_interleave(2000)
    drawn = sampler.sample(users, generator).view(graph.n_users, -1)
    for user, own in enumerate(drawn):
        seen = graph.train_item[graph.train_user == user]
        assert set(own.tolist()) == set(graph.trained_items.tolist()) - set(seen.tolist())


@pytest.mark.parametrize("loss", ["bpr", "softmax", "cosine_softmax"])
def test_no_loss_moves_the_row_of_a_new_item(new_world: World, loss: str) -> None:
    model = build("bprmf", new_world, loss=loss, l2=1e-2)
    new = torch.tensor(sorted(set(range(new_world.graph.n_items)) - set(new_world.graph.trained_items.tolist())))
    fit(model, new_world.graph, RankingTask.from_tables(new_world.tables, "valid"), FAST, seed=0, progress=False)
    rows = model.tensors()["item_embedding"]
    assert not rows.index_select(0, new).any()
    assert rows.any(dim=1).sum() == new_world.graph.trained_items.numel()


def test_softmax_over_candidates_is_that_over_their_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    users, items = (torch.randn(n, 6, generator=generator, requires_grad=True) for n in (9, 30))
    candidates = torch.arange(1, 30, 3)
    ids = torch.randint(9, (40,), generator=generator)
    positives = candidates[torch.randint(len(candidates), (40,), generator=generator)]
    scores = (users @ items.T)[ids]
    masses = scores[:, candidates].logsumexp(1)
    expected = (masses - scores.gather(1, positives.unsqueeze(1)).squeeze(1)).mean()
    found = losses.softmax(users, items, ids, positives, candidates)
    torch.testing.assert_close(found, expected)
    for one, other in zip(*(torch.autograd.grad(loss, (users, items)) for loss in (found, expected)), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("settings", [{}, {"layers": 2}, {"id_dropout": 0.3}, {"remove": False}, {"inject": False}])
def test_the_final_row_of_a_new_item_is_its_profile_and_what_it_hears(
    new_world: World, settings: dict[str, Any]
) -> None:
    model = build("spike", new_world, **settings)
    assert isinstance(model, Spike)
    fit(model, new_world.graph, new_task(new_world), FAST.replace(epochs=3), seed=0, progress=False)
    new = new_items(new_world.tables, "valid")
    known = np.delete(np.arange(new_world.graph.n_items), np.concatenate([new, new_items(new_world.tables, "test")]))
    ids = model.tensors()["entity_embedding"]
    assert not ids[new].any()
    explainer = SpikeExplainer(model)
    structure, profile = explainer.rows.parts[0, :, new_world.graph.n_users :]
    expected = model.config.rho * explainer.profiles[new_world.graph.n_users :]
    inside = expected if model.config.inject else torch.zeros_like(expected)
    torch.testing.assert_close(profile[new], inside[new])
    torch.testing.assert_close(structure[known], ids[known])
    removed = expected if model.config.remove else torch.zeros_like(expected)
    torch.testing.assert_close(profile[known], (inside - removed)[known])


def test_parts_of_the_score_of_a_scaled_new_item_add_up(new_world: World) -> None:
    model = build("spike", new_world, new_item_scale=1.5)
    assert isinstance(model, Spike)
    explainer, items = SpikeExplainer(model), [0, 5, 12]
    parts = explainer.contributions(3, items).sum(dim=(1, 2, 3, 4))
    torch.testing.assert_close(parts, model.score(torch.tensor([3]))[0, items], atol=1e-5, rtol=0)
    plain = build("spike", new_world).score(torch.tensor([3]))[0]
    torch.testing.assert_close(parts.detach(), plain[items] * torch.tensor([1.5, 1.0, 1.5]), atol=1e-5, rtol=0)


def test_a_step_treats_a_share_of_the_items_as_new(new_world: World) -> None:
    model = build("spike", new_world, id_dropout=0.4)
    graph, n_users = new_world.graph, new_world.graph.n_users
    drawn = torch.stack([model.draw(torch.Generator().manual_seed(seed)).known for seed in range(200)]).squeeze(2)
    assert drawn[:, :n_users].all()
    assert drawn[:, n_users + graph.n_items :].all()
    items = drawn[:, n_users : n_users + graph.n_items]
    new = torch.ones(graph.n_items, dtype=torch.bool).index_fill(0, graph.trained_items, False)
    assert not items[:, new].any()
    assert items[:, ~new].mean().item() == pytest.approx(0.6, abs=0.02)


def test_where_every_item_is_known_nothing_is_treated_as_new(world: World) -> None:
    one, other = (build("spike", world, new_items=treated) for treated in (True, False))
    assert isinstance(one, Spike)
    assert one.known is None
    assert torch.equal(one.score(torch.arange(4)), other.score(torch.arange(4)))


def test_settings_that_came_later_have_no_part_in_the_name_of_a_run() -> None:
    usual = SpikeConfig().model_dump(mode="json")
    assert not {"new_items", "id_dropout", "new_item_scale"} & set(usual)
    changed = SpikeConfig(new_items=False, new_item_scale=1.2).model_dump(mode="json")
    assert (changed["new_items"], changed["new_item_scale"]) == (False, 1.2)
    assert SpikeConfig.parse(changed).new_items is False


def test_dropping_ids_needs_new_items() -> None:
    with pytest.raises((ConfigError, ValidationError), match="id_dropout"):
        SpikeConfig.parse({"new_items": False, "id_dropout": 0.1})


def test_text_ridge_is_the_regression_of_every_user_on_the_texts_of_known_items(new_world: World) -> None:
    graph, strength = new_world.graph, 2.5
    model = TextRidge(TextRidgeConfig(regularisation=strength), graph, new_world.vectors)
    texts = new_world.vectors.entity[: graph.n_items].double().numpy()
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    known = texts[graph.trained_items.numpy()]
    for user in (0, 30):
        liked = np.isin(graph.trained_items.numpy(), graph.train_item[graph.train_user == user].numpy()).astype(float)
        padded = np.vstack([known, np.sqrt(strength) * np.eye(known.shape[1])])
        weights = np.linalg.lstsq(padded, np.concatenate([liked, np.zeros(known.shape[1])]), rcond=None)[0]
        np.testing.assert_allclose(model.score(torch.tensor([user]))[0], texts @ weights, atol=1e-5)


def test_epochs_hold_no_new_item(new_world: World) -> None:
    graph = new_world.graph
    batches = list(epoch_batches(graph, NegativeSampler(graph), 64, torch.Generator().manual_seed(0)))
    for batch in batches:
        assert torch.isin(batch.negatives, graph.trained_items).all()
        assert torch.isin(batch.positives, graph.trained_items).all()
