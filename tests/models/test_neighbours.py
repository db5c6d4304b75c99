"""Models without training: item-kNN and EASE^R against their definitions; the low-rank view against numpy."""

import numpy as np
import pytest
import torch

from spike_kit.base.errors import ConfigError
from spike_kit.evaluation.ranking import RankingTask, evaluate
from spike_kit.models import ease, find_model
from spike_kit.models.ease import Ease, EaseConfig
from spike_kit.models.itemknn import ItemKnn, ItemKnnConfig
from spike_kit.models.lightgcl import low_rank
from spike_kit.models.lightgcn import Bipartite
from tests.world import World


def matrix(world: World) -> np.ndarray:
    graph = world.graph
    seen = np.zeros((graph.n_users, graph.n_items))
    seen[graph.train_user.numpy(), graph.train_item.numpy()] = 1
    return seen


@pytest.mark.parametrize(("shrinkage", "chunk"), [(0.0, 2**20), (3.0, 300)])
def test_item_knn_sums_the_similarities_of_the_nearest(
    world: World, monkeypatch: pytest.MonkeyPatch, shrinkage: float, chunk: int
) -> None:
    monkeypatch.setattr("spike_kit.models.itemknn._CHUNK", chunk)
    k, seen = 4, matrix(world)
    together = seen.T @ seen
    alike = together / (np.sqrt(np.outer(together.diagonal(), together.diagonal())) + shrinkage)
    np.fill_diagonal(alike, 0)
    for row in alike:
        row[np.argsort(-row, kind="stable")[k:]] = 0
    model = ItemKnn(ItemKnnConfig(neighbours=k, shrinkage=shrinkage), world.graph)
    found = np.zeros_like(alike)
    np.put_along_axis(found, model.fitted["items"].numpy(), model.fitted["similarities"].numpy(), axis=1)
    np.testing.assert_allclose(np.sort(found, axis=1), np.sort(alike, axis=1), atol=1e-6)
    users = torch.tensor([3, 40, 3])
    np.testing.assert_allclose(model.score(users).numpy(), seen[users.numpy()] @ found.T, atol=1e-5)


def test_ease_solves_its_regression(world: World) -> None:
    """Each column of B minimises the squared error of its item plus the penalty, without looking at the item itself."""
    penalty, seen = 20.0, matrix(world)
    weights = Ease(EaseConfig(regularisation=penalty), world.graph).fitted["weights"].numpy()
    assert not weights.diagonal().any()
    for item in (0, 17, 47):
        others = np.delete(np.arange(seen.shape[1]), item)
        x = seen[:, others]
        expected = np.linalg.solve(x.T @ x + penalty * np.eye(len(others)), x.T @ seen[:, item])
        np.testing.assert_allclose(weights[others, item], expected, atol=1e-5)


def test_ease_says_that_it_does_not_fit(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ease, "free_memory", lambda _: 1000)
    with pytest.raises(ConfigError, match=r"EASE\^R on 48 items takes about .* GiB, but .* GiB are free"):
        Ease(EaseConfig(), world.graph).score(torch.tensor([0]))


@pytest.mark.parametrize("name", ["itemknn", "ease", "ials"])
def test_untrained_models_find_the_planted_item_and_come_back(world: World, name: str) -> None:
    cls, test = find_model(name), RankingTask.from_tables(world.tables, "test")
    model, again = (cls(cls.presets["recommended"].model, world.graph, None, torch.Generator()) for _ in range(2))
    assert evaluate(model, test, (1,))[0]["recall@1"] >= 0.95
    again.load_tensors(model.tensors())
    assert torch.equal(again.score(test.users), model.score(test.users))


def test_the_low_rank_view_has_the_leading_singular_values(world: World) -> None:
    graph = Bipartite(world.graph)
    dense = np.zeros((graph.pattern.n_rows, graph.pattern.n_columns))
    dense[graph.pattern.rows.numpy(), graph.pattern.columns.numpy()] = graph.weights[0].numpy()
    left, values, right = low_rank(graph, 4, torch.Generator().manual_seed(0))
    expected = np.linalg.svd(dense, compute_uv=False)
    np.testing.assert_allclose(values.numpy(), expected[:4], rtol=1e-5)
    rest = dense - ((left * values) @ right.T).numpy()
    assert np.linalg.norm(rest) == pytest.approx(np.linalg.norm(expected[4:]), rel=1e-4)
    assert torch.equal(low_rank(graph, 4, torch.Generator().manual_seed(0))[0], left)
