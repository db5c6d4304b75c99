"""KGCL: what its views keep, and how both graphs are thinned."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from spike_kit.models.kgcl import LEAST, MOST, Kgcl, KgclConfig
from spike_kit.models.lightgcn import Bipartite
from tests.world import World


def build(world: World, **settings: float) -> Kgcl:
    return Kgcl(KgclConfig(dim=16, **settings), world.graph, None, torch.Generator().manual_seed(0))  # type: ignore[arg-type]


def test_a_thinned_graph_has_its_own_degrees(world: World) -> None:
    graph = world.graph
    bipartite = Bipartite(graph)
    kept = torch.rand(graph.n_interactions, generator=torch.Generator().manual_seed(1)) < 0.4
    dense = np.zeros((graph.n_users, graph.n_items))
    dense[graph.train_user[kept].numpy(), graph.train_item[kept].numpy()] = 1
    scale = np.sqrt(np.outer(dense.sum(1), dense.sum(0)))
    expected = np.divide(dense, scale, out=np.zeros_like(dense), where=scale > 0)
    identities = torch.eye(graph.n_users), torch.eye(graph.n_items)
    to_users, to_items = bipartite.step(*identities, bipartite.thinned(kept))
    np.testing.assert_allclose(to_users.numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(to_items.numpy(), expected.T, atol=1e-6)


def test_agreement_decides_what_is_kept(world: World) -> None:
    model = build(world, interaction_keep=0.5)
    one = torch.nn.functional.normalize(torch.randn(50, 16, generator=torch.Generator().manual_seed(2)))
    other = one.clone()
    other[:10] = -one[:10]
    share = model.keep_probability(one, other)
    assert (share[:10] < share[10:].min()).all()
    mean = (10 * LEAST + 40 * 1.0) / 50
    torch.testing.assert_close(share[:10], torch.full((10,), 0.5 * LEAST / mean))
    torch.testing.assert_close(share[10:], torch.full((40,), 0.5 / mean))
    assert float(share.mean()) == pytest.approx(0.5, abs=1e-6)
    assert float(build(world, interaction_keep=1.0).keep_probability(one, other).max()) == pytest.approx(MOST)


def test_views_keep_the_shares_they_are_told(world: World) -> None:
    model = build(world, view_keep=0.5, interaction_keep=0.6)
    generator = torch.Generator().manual_seed(4)
    allowed = set(model.original.tolist())
    edges, interactions = [], []
    for _ in range(40):
        for kept, weights in model.draw(generator).views:
            assert set(kept.tolist()) <= allowed
            edges.append(len(kept) / len(allowed))
            interactions.append(float((weights[0] > 0).float().mean()))
    assert np.mean(edges) == pytest.approx(0.5, abs=0.03)
    assert 0.5 < np.mean(interactions) < 0.65
