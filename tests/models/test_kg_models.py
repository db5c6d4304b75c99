"""KGAT, KGIN and KGCL against plain loops over edges, nodes and intents."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from spike_kit.models.kgat import BiInteraction, Kgat, KgatConfig
from spike_kit.models.kgcl import LEAST, MOST, Kgcl, KgclConfig
from spike_kit.models.kgin import Kgin, KginConfig, distance_correlation
from spike_kit.models.lightgcn import Bipartite
from tests.world import World


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def kgat(world: World) -> Kgat:
    return Kgat(KgatConfig(dim=8, relation_dim=6, layers=2, triple_batch=64), world.graph, None, generator())


def plain_attention(model: Kgat) -> torch.Tensor:
    nodes = torch.cat([model.user_embedding, model.entity_embedding])
    rows, columns = model.pattern.rows.tolist(), model.pattern.columns.tolist()
    scores = [
        (nodes[tail] @ model.relation_map[r])
        @ (nodes[head] @ model.relation_map[r] + model.relation_embedding[r]).tanh()
        for head, r, tail in zip(rows, model.relation.tolist(), columns, strict=True)
    ]
    found = torch.stack(scores)
    for head in set(rows):
        own = model.pattern.rows == head
        found[own] = found[own].softmax(0)
    return found


def test_kgat_attends_over_both_graphs(world: World) -> None:
    model, graph = kgat(world), world.graph
    known = {
        (h + graph.n_users, r, t + graph.n_users)
        for h, r, t in zip(graph.head.tolist(), graph.relation.tolist(), graph.tail.tolist(), strict=True)
    }
    for user, item in zip(graph.train_user.tolist(), graph.train_item.tolist(), strict=True):
        node = item + graph.n_users
        known |= {(user, 2 * graph.n_relations, node), (node, 2 * graph.n_relations + 1, user)}
    edges = zip(model.pattern.rows.tolist(), model.relation.tolist(), model.pattern.columns.tolist(), strict=True)
    assert set(edges) == known
    assert len(model.relation) == len(known)
    with torch.no_grad():
        expected = plain_attention(model)
        torch.testing.assert_close(model.edge_attention(), expected, atol=1e-6, rtol=1e-5)
    before = model.attention.clone()
    model.after_auxiliary()
    torch.testing.assert_close(model.attention, expected, atol=1e-6, rtol=1e-5)
    assert not torch.equal(before, model.attention)


def test_kgat_puts_normalised_layers_side_by_side(world: World) -> None:
    model = kgat(world)
    model.after_auxiliary()
    dense = torch.zeros(world.graph.n_nodes, world.graph.n_nodes)
    for row, column, weight in zip(model.pattern.rows, model.pattern.columns, model.attention, strict=True):
        dense[row, column] += weight
    nodes = torch.cat([model.user_embedding, model.entity_embedding])
    layers = [nodes]
    for layer in model.aggregators:
        assert isinstance(layer, BiInteraction)
        received = dense @ nodes
        one = functional.leaky_relu((nodes + received) @ layer.sum.weight.T + layer.sum.bias)
        nodes = one + functional.leaky_relu((nodes * received) @ layer.product.weight.T + layer.product.bias)
        layers.append(nodes / nodes.norm(dim=1, keepdim=True))
    expected = torch.cat(layers, dim=1)[: world.graph.n_users + world.graph.n_items]
    assert expected.shape[1] == 8 + 8 + 4
    torch.testing.assert_close(torch.cat(model.embeddings()), expected)


def test_kgat_sees_every_edge_once_in_its_phase(world: World) -> None:
    model, seen = kgat(world), []
    for step in range(model.auxiliary_steps):
        terms = model.auxiliary_losses(step, generator())
        assert set(terms) == {"transr", "transr_l2"}
        assert all(torch.isfinite(term) for term in terms.values())
        seen += model._order[step * 64 : (step + 1) * 64].tolist()
    assert sorted(seen) == list(range(len(model.relation)))


def test_kgin_users_weigh_their_items_by_intents(world: World) -> None:
    model = Kgin(KginConfig(dim=8, intents=3, layers=1), world.graph, None, generator())
    graph = world.graph
    users, entities = model.user_embedding.detach(), model.entity_embedding.detach()
    intents = model.intent_relations.softmax(1) @ model.relation_embedding
    expected = []
    for user in range(graph.n_users):
        mean = entities[graph.train_item[graph.train_user == user]].mean(0)
        share = (users[user] @ model.intent_embedding.T).softmax(0)
        mixed = sum(share[p] * intents[p] for p in range(3))
        row = mean * (1 + mixed)
        expected.append(users[user] + row / row.norm())
    found, _ = model.embeddings()
    torch.testing.assert_close(found, torch.stack(expected))


@pytest.mark.parametrize("seed", range(3))
def test_distance_correlation_agrees_with_its_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(2, 12))
    centred = []
    for sample in (x, y):
        apart = np.abs(np.subtract.outer(sample, sample))
        centred.append(apart - apart.mean(0) - apart.mean(1)[:, None] + apart.mean())
    squares = (centred[0] * centred[1]).mean(), (centred[0] ** 2).mean(), (centred[1] ** 2).mean()
    expected = np.sqrt(squares[0] / np.sqrt(squares[1] * squares[2]))
    one, other = torch.from_numpy(x), torch.from_numpy(y)
    assert float(distance_correlation(one, other)) == pytest.approx(expected, abs=1e-5)
    assert float(distance_correlation(one, 3 * one - 1)) == pytest.approx(1, abs=1e-5)
    constant = torch.ones(12, dtype=torch.float64)
    assert float(distance_correlation(one, constant)) < 1e-2


def kgcl(world: World, **settings: float) -> Kgcl:
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
    model = kgcl(world, interaction_keep=0.5)
    one = functional.normalize(torch.randn(50, 16, generator=torch.Generator().manual_seed(2)))
    other = one.clone()
    other[:10] = -one[:10]
    share = model.keep_probability(one, other)
    assert (share[:10] < share[10:].min()).all()
    mean = (10 * LEAST + 40 * 1.0) / 50
    torch.testing.assert_close(share[:10], torch.full((10,), 0.5 * LEAST / mean))
    torch.testing.assert_close(share[10:], torch.full((40,), 0.5 / mean))
    assert float(share.mean()) == pytest.approx(0.5, abs=1e-6)
    assert float(kgcl(world, interaction_keep=1.0).keep_probability(one, other).max()) == pytest.approx(MOST)


def test_views_keep_the_shares_they_are_told(world: World) -> None:
    model = kgcl(world, view_keep=0.5, interaction_keep=0.6)
    generator = torch.Generator().manual_seed(4)
    allowed = set(model.original.tolist())
    edges, interactions = [], []
    for _ in range(40):
        for kept, weights in model.draw(generator)[0]:
            assert set(kept.tolist()) <= allowed
            edges.append(len(kept) / len(allowed))
            interactions.append(float((weights[0] > 0).float().mean()))
    assert np.mean(edges) == pytest.approx(0.5, abs=0.03)
    assert 0.5 < np.mean(interactions) < 0.65
