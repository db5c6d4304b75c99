"""Synthetic input of the benchmarks: counts, skew, seeds, the formats of public files."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from benchmarks.data import write_reviews
from benchmarks.evaluation import RELEVANT, SEEN, synthetic_task
from benchmarks.profiles import synthetic_dataset
from benchmarks.synthetic import AMAZON_BOOK, SMALLEST, parse_sizes, synthetic_graph, synthetic_vectors
from spike_kit.base.errors import ConfigError
from spike_kit.data.dataset import SUBJECTS
from spike_kit.data.sources.amazon import RELEASES
from spike_kit.training.sampling import NegativeSampler


@pytest.mark.parametrize("nodes", [SMALLEST, 20_011])
def test_counts_of_a_synthetic_graph_are_exact_and_nothing_occurs_twice(nodes: int) -> None:
    size = AMAZON_BOOK.scaled(nodes)
    graph = synthetic_graph(size)
    assert graph.n_nodes == size.nodes == nodes
    assert graph.n_users / nodes == pytest.approx(70 / 183, abs=1e-3)
    assert graph.n_items / nodes == pytest.approx(25 / 183, abs=1e-3)
    assert graph.n_edges == 2 * size.triples == 2 * round(nodes * 2_500_000 / 183_000)
    assert graph.n_interactions == size.interactions == round(nodes * 850_000 / 183_000)
    assert len(set(zip(graph.train_user.tolist(), graph.train_item.tolist(), strict=True))) == graph.n_interactions
    edges = torch.stack([graph.head, graph.relation, graph.tail])
    assert torch.unique(edges, dim=1).shape[1] == graph.n_edges
    forward = graph.tail[graph.relation < graph.n_relations]
    assert graph.n_items <= forward.min()
    assert forward.max() < graph.n_entities
    NegativeSampler(graph)


def test_degrees_are_skewed_as_in_real_data() -> None:
    graph = synthetic_graph(AMAZON_BOOK.scaled(20_000))
    for index, size in ((graph.train_item, graph.n_items), (graph.train_user, graph.n_users)):
        degree = torch.bincount(index, minlength=size)
        assert degree.max() > 10 * degree.double().mean()
        assert degree.median() < degree.double().mean()
    heads = torch.bincount(graph.head, minlength=graph.n_entities)
    assert heads[graph.n_items :].max() > 0.02 * graph.n_edges / 2
    assert len(graph.relation.unique()) == 2 * graph.n_relations == 78
    pairs = torch.unique(graph.relation * graph.n_entities + graph.tail)
    assert len(pairs) < 0.5 * graph.n_edges


def test_the_same_seed_gives_the_same_graph_and_vectors() -> None:
    size = AMAZON_BOOK.scaled(SMALLEST)
    one, same, other = (synthetic_graph(size, seed) for seed in (0, 0, 1))
    assert torch.equal(one.tail, same.tail)
    assert torch.equal(one.train_item, same.train_item)
    assert not torch.equal(one.tail, other.tail)
    assert not torch.equal(one.train_item, other.train_item)
    vectors, again, others = (synthetic_vectors(size, seed) for seed in (0, 0, 1))
    assert vectors.user.shape == (size.users, 384)
    assert vectors.entity.shape == (size.entities, 384)
    assert vectors.entity.dtype == torch.float32
    np.testing.assert_allclose(vectors.entity.norm(dim=1), 1, rtol=1e-5)
    assert torch.equal(vectors.user, again.user)
    assert not torch.equal(vectors.user, others.user)


def test_sizes_are_read_in_order_and_impossible_ones_are_refused() -> None:
    assert parse_sizes("amazon-book") == [AMAZON_BOOK]
    assert [size.nodes for size in parse_sizes("5000, 1000,amazon-book")] == [5000, 1000, 183_000]
    small = AMAZON_BOOK.scaled(SMALLEST)
    for size in (replace(small, items=3), replace(small, triples=10**6)):
        with pytest.raises(ConfigError, match="too dense"):
            synthetic_graph(size)


@pytest.mark.parametrize("release", ["2018", "2023"])
def test_synthetic_reviews_have_the_format_of_the_release(tmp_path: Path, release: Literal["2018", "2023"]) -> None:
    path = write_reviews(tmp_path, 500, release)
    content = gzip.decompress(path.read_bytes())
    rows = [json.loads(line) for line in content.splitlines()]
    assert len(rows) == 500
    needed = {field.source for field in RELEASES[release].reviews.values()}
    assert all(needed <= set(row) for row in rows)
    (tmp_path / "again").mkdir()
    assert gzip.decompress(write_reviews(tmp_path / "again", 500, release).read_bytes()) == content


def test_a_synthetic_task_is_sorted_disjoint_and_the_same_for_a_seed() -> None:
    recommender, task = synthetic_task(30, 200)
    keys = task.seen_row * task.n_items + task.seen_item
    assert torch.equal(keys, keys.unique())
    assert torch.equal(task.relevant_key, task.relevant_key.unique())
    assert not torch.isin(task.relevant_key, keys).any()
    assert (keys.numel(), task.relevant_key.numel()) == (30 * SEEN, 30 * RELEVANT)
    assert int(keys.max()) < 30 * 200
    again, other = synthetic_task(30, 200), synthetic_task(30, 200, seed=1)
    assert torch.equal(again[0].users, recommender.users)
    assert torch.equal(again[1].seen_item, task.seen_item)
    assert not torch.equal(other[1].seen_item, task.seen_item)
    with pytest.raises(ConfigError, match="89 items are too few, expected at least 90"):
        synthetic_task(10, 89)


def test_a_synthetic_data_set_has_about_so_many_subjects_and_material_for_all() -> None:
    data = synthetic_dataset("bench", 1000)
    assert sum(len(data.expected_ids(subject)) for subject in SUBJECTS) == 1000
    again, other = (synthetic_dataset(f"seed-{seed}", 1000, seed) for seed in (0, 1))
    assert again.manifest.tables == data.manifest.tables != other.manifest.tables
    assert data.split("train")["user"].nunique() == len(data.users)
