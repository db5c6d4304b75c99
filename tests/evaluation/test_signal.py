from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch

from spike_kit.base.errors import DataError
from spike_kit.data.dataset import Dataset
from spike_kit.data.vectors import ProfileVectors
from spike_kit.evaluation.signal import REFERENCE, TRAIN_ITEMS, USER_PROFILE, RandomOrder, signal_table
from spike_kit.experiments.run import Run
from spike_kit.models.text_knn import TextKnn, TextKnnConfig
from tests.world import World


def test_profiles_of_the_planted_groups_rank_far_above_random(data: Dataset, world: World) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = world.vectors.user.shape, world.vectors.entity.shape
    noise = ProfileVectors(*(torch.randn(shape, generator=generator) for shape in shapes))
    table = signal_table(data, {"template": world.vectors, "noise": noise}, cutoffs=(2, 20))
    assert list(table.columns) == ["profiles", "scorer", "recall@2", "ndcg@2", "recall@20", "ndcg@20", "users"]
    recall = table.set_index(["profiles", "scorer"])["recall@2"]
    ranked = [
        *product(("template", "noise"), (USER_PROFILE, TRAIN_ITEMS)),
        (REFERENCE, "popularity"),
        (REFERENCE, "random"),
    ]
    assert recall.index.tolist() == ranked
    assert recall.loc["template"].min() > 0.9
    assert recall.drop("template", level="profiles").max() < 0.3
    assert set(table["users"]) == {len(data.users)}


def test_popularity_has_the_number_of_its_run(data: Dataset, runs: dict[str, list[Run]]) -> None:
    table = signal_table(data, {}).set_index("scorer")
    assert table["ndcg@20"]["popularity"] == runs["popularity"][0].valid["ndcg@20"]


def test_the_test_split_stays_closed(data: Dataset, world: World) -> None:
    items = torch.eye(len(data.entities))
    perfect = ProfileVectors(items[torch.from_numpy(world.planted)], items)
    recall = signal_table(data, {"oracle of the test split": perfect}, cutoffs=(1,))["recall@1"]
    assert recall[0] == 0


def test_the_mean_of_train_items_by_hand(world: World) -> None:
    entity = torch.rand(len(world.tables.entities), 6, generator=torch.Generator().manual_seed(0)) * 5
    vectors = ProfileVectors(torch.zeros(1, 6), entity)
    scores = TextKnn(TextKnnConfig(text_components=0), world.graph, vectors).score(torch.tensor([3]))
    own = world.tables.interactions.query("user == 3 and split == 'train'")["item"].to_numpy()
    unit = (entity / entity.norm(dim=1, keepdim=True)).numpy()
    mean = unit[own].mean(0)
    expected = unit[: len(world.tables.items)] @ mean / np.linalg.norm(mean)
    np.testing.assert_allclose(scores[0].numpy(), expected, atol=1e-6)


def test_random_scores_depend_on_seed_and_user_only(data: Dataset, world: World, resized: Callable[..., None]) -> None:
    users = torch.tensor([4, 0, 7])
    scores = RandomOrder(world.graph, seed=1).score(users)
    assert torch.equal(scores[2:], RandomOrder(world.graph, seed=1).score(users[2:]))
    assert not torch.equal(scores, RandomOrder(world.graph, seed=2).score(users))
    assert not torch.equal(scores[0], scores[1])
    whole = signal_table(data, {})
    resized(ranked_scores=1)
    assert signal_table(data, {}).equals(whole)
    assert set(whole["profiles"]) == {REFERENCE}


def test_vectors_that_do_not_fit_are_named(data: Dataset, world: World) -> None:
    short = ProfileVectors(world.vectors.user[:-1], world.vectors.entity)
    with pytest.raises(DataError, match=r"vectors of gpt: user has shape \[55, 24\]"):
        signal_table(data, {"gpt": short})
