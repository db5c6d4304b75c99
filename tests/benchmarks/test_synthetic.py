"""Synthetic input of the benchmarks: counts, skew and seeds."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from benchmarks.evaluation import RELEVANT, SEEN, synthetic_task
from benchmarks.profiles import synthetic_dataset
from benchmarks.synthetic import AMAZON_BOOK, SMALLEST, parse_sizes, synthetic_graph, synthetic_vectors
from spike_kit.data.dataset import SUBJECTS
from spike_kit.training.sampling import NegativeSampler

SMALL = AMAZON_BOOK.scaled(SMALLEST)


def test_a_synthetic_graph_has_exact_counts_nothing_twice_and_degrees_as_skewed_as_real_ones() -> None:
    size = AMAZON_BOOK.scaled(20_011)
    graph = synthetic_graph(size)
    assert graph.n_nodes == size.nodes == 20_011
    assert graph.n_users / size.nodes == pytest.approx(70 / 183, abs=1e-3)
    assert graph.n_edges == 2 * size.triples == 2 * round(size.nodes * 2_500_000 / 183_000)
    assert graph.n_interactions == size.interactions == round(size.nodes * 850_000 / 183_000)
    assert torch.unique(torch.stack([graph.train_user, graph.train_item]), dim=1).shape[1] == graph.n_interactions
    assert torch.unique(torch.stack([graph.head, graph.relation, graph.tail]), dim=1).shape[1] == graph.n_edges
    forward = graph.tail[graph.relation < graph.n_relations]
    assert graph.n_items <= forward.min() <= forward.max() < graph.n_entities
    for index, count in ((graph.train_item, graph.n_items), (graph.train_user, graph.n_users)):
        degree = torch.bincount(index, minlength=count).double()
        assert degree.max() > 10 * degree.mean() > 10 * degree.median()
    heads = torch.bincount(graph.head, minlength=graph.n_entities)
    assert heads[graph.n_items :].max() > 0.02 * graph.n_edges / 2
    assert len(graph.relation.unique()) == 2 * graph.n_relations == 78
    assert len(torch.unique(graph.relation * graph.n_entities + graph.tail)) < 0.5 * graph.n_edges
    NegativeSampler(graph)


@pytest.mark.parametrize(
    "make",
    [
        lambda seed: synthetic_graph(SMALL, seed).tail,
        lambda seed: synthetic_graph(SMALL, seed).train_item,
        lambda seed: synthetic_vectors(SMALL, seed).user,
        lambda seed: synthetic_task(30, 200, seed)[0].users,
        lambda seed: synthetic_task(30, 200, seed)[1].seen_item,
        lambda seed: torch.tensor([hash(synthetic_dataset(f"of-{seed}", 1000, seed).manifest.tables["triples"])]),
    ],
)
def test_the_same_seed_gives_the_same_input(make: Callable[[int], torch.Tensor]) -> None:
    first = make(0)
    assert torch.equal(first, make(0))
    assert not torch.equal(first, make(1))


def test_vectors_have_unit_length_and_sizes_are_read_in_order() -> None:
    vectors = synthetic_vectors(SMALL)
    assert (vectors.user.shape, vectors.entity.shape) == ((SMALL.users, 384), (SMALL.entities, 384))
    np.testing.assert_allclose(vectors.entity.norm(dim=1), 1, rtol=1e-5)
    assert [size.nodes for size in parse_sizes("5000, 1000,amazon-book")] == [5000, 1000, 183_000]


def test_a_synthetic_task_is_sorted_and_disjoint() -> None:
    _, task = synthetic_task(30, 200)
    keys = task.seen_row * task.n_items + task.seen_item
    assert torch.equal(keys, keys.unique())
    assert torch.equal(task.relevant_key, task.relevant_key.unique())
    assert not torch.isin(task.relevant_key, keys).any()
    assert (keys.numel(), task.relevant_key.numel()) == (30 * SEEN, 30 * RELEVANT)
    assert int(keys.max()) < 30 * 200


def test_a_synthetic_data_set_has_about_so_many_subjects_and_material_for_all() -> None:
    data = synthetic_dataset("bench", 1000)
    assert sum(len(data.expected_ids(subject)) for subject in SUBJECTS) == 1000
    assert data.split("train")["user"].nunique() == len(data.users)
