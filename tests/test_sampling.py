import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spike_kit.base.errors import DataError
from spike_kit.data.graph import Graph
from spike_kit.training.sampling import NegativeSampler, epoch_batches
from tests.world import World


def graph_of(pairs: set[tuple[int, int]], n_users: int, n_items: int) -> Graph:
    return Graph.from_arrays(
        n_users=n_users,
        n_items=n_items,
        n_entities=n_items + 1,
        n_relations=1,
        interactions=np.array(sorted(pairs)).reshape(-1, 2),
        triples=np.array([[0, 0, n_items]]),
    )


@given(st.sets(st.tuples(st.integers(0, 4), st.integers(0, 5)), min_size=1, max_size=30), st.integers(0, 2**31))
def test_a_negative_is_never_a_train_positive(pairs: set[tuple[int, int]], seed: int) -> None:
    graph = graph_of(pairs, 5, 7)
    sampler = NegativeSampler(graph)
    users = torch.arange(5).repeat(40)
    negatives = sampler.sample(users, torch.Generator().manual_seed(seed))
    assert ((negatives >= 0) & (negatives < 7)).all()
    positives = set(zip(graph.train_user.tolist(), graph.train_item.tolist(), strict=True))
    assert positives.isdisjoint(zip(users.tolist(), negatives.tolist(), strict=True))


def test_negatives_are_uniform_over_unseen_items() -> None:
    graph = graph_of({(0, 1), (0, 2), (0, 5), (1, 0)}, 2, 8)
    draws = NegativeSampler(graph).sample(torch.zeros(50_000, dtype=torch.int64), torch.Generator().manual_seed(0))
    counts = torch.bincount(draws, minlength=8)
    assert counts[[1, 2, 5]].sum() == 0
    assert counts[[0, 3, 4, 6, 7]].min() > 9_500
    assert counts[[0, 3, 4, 6, 7]].max() < 10_500


def test_a_user_who_has_seen_everything_is_an_error() -> None:
    with pytest.raises(DataError, match="users 1 have every item"):
        NegativeSampler(graph_of({(1, 0), (1, 1), (0, 0)}, 2, 2))


def test_an_epoch_holds_every_interaction_once_and_redraws_negatives(world: World) -> None:
    sampler, generator = NegativeSampler(world.graph), torch.Generator().manual_seed(0)
    epochs = [list(epoch_batches(world.graph, sampler, 100, generator)) for _ in range(2)]
    for batches in epochs:
        pairs = [pair for b in batches for pair in zip(b.users.tolist(), b.positives.tolist(), strict=True)]
        expected = zip(world.graph.train_user.tolist(), world.graph.train_item.tolist(), strict=True)
        assert sorted(pairs) == sorted(expected)
    first, second = (torch.cat([batch.negatives for batch in batches]) for batches in epochs)
    assert not torch.equal(first, second)
