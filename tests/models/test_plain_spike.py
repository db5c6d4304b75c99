"""SPiKE against its plain form: every loss term and every gradient, on the tiny world and on an awkward graph."""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from spike_kit.data.graph import Graph
from spike_kit.data.vectors import ProfileVectors
from spike_kit.models.base import Batch
from spike_kit.models.spike import RECOMMENDED, RELEASED_CODE, Spike, SpikeConfig, SpikeDraws
from tests.reference.spike import PlainSpike
from tests.world import World

RELEASED = RELEASED_CODE.replace(dim=16, gamma=0.3, dropped_edges=4)
ALL_TERMS = SpikeConfig(dim=16, l2=0.01)

CONFIGS = {
    "released code": RELEASED,
    "recommended": RECOMMENDED.replace(dim=16, l2=0.01),
    "everything kept": ALL_TERMS.replace(edge_keep=1),
    "mean of edges": ALL_TERMS.replace(attention="mean"),
    "items receive too": ALL_TERMS.replace(user_to_item="add"),
    "items receive from users": RELEASED.replace(user_to_item="instead"),
    "exact matching": RELEASED.replace(matching="exact"),
    "no matching": RELEASED.replace(matching="off"),
    "one layer": ALL_TERMS.replace(layers=1),
    "three layers": RELEASED.replace(layers=3, l2=0.01),
    "one head": ALL_TERMS.replace(heads=1),
    "four heads": RELEASED.replace(heads=4),
    "three masks": ALL_TERMS.replace(separate_masks=True),
    "softmax": ALL_TERMS.replace(loss="softmax"),
    "ids dropped": RECOMMENDED.replace(dim=16, id_dropout=0.4),
    "nothing injected": RELEASED.replace(inject=False),
    "nothing removed": RELEASED.replace(remove=False),
    "items alone have profiles": RELEASED.replace(user_profiles=False, auxiliary_profiles=False),
    "items alone have none": RELEASED.replace(item_profiles=False),
}


def awkward_graph() -> Graph:
    """Nodes without edges, a user without items, heads with one edge, a tail of two relations, one of most heads."""
    rng = np.random.default_rng(5)
    triples = {(int(item), int(relation), 10) for item, relation in zip(range(5), rng.integers(0, 3, 5), strict=True)}
    triples |= {(0, 0, 9), (0, 1, 9), (0, 2, 9), (1, 0, 9), (2, 0, 3), (3, 1, 2), (9, 2, 10), (5, 2, 13)}
    pairs = {(int(user), int(item)) for user, item in zip(rng.integers(0, 11, 40), rng.integers(0, 6, 40), strict=True)}
    return Graph.from_arrays(
        n_users=13,
        n_items=7,
        n_entities=15,
        n_relations=3,
        interactions=np.array(sorted(pairs | {(11, 0)})),
        triples=np.array(sorted(triples)),
    )


@pytest.fixture(params=["tiny world", "awkward graph"])
def place(request: pytest.FixtureRequest, world: World) -> tuple[Graph, ProfileVectors]:
    """A graph and its vectors in float64."""
    if request.param == "tiny world":
        return world.graph, ProfileVectors(world.vectors.user.double(), world.vectors.entity.double())
    graph, generator = awkward_graph(), torch.Generator().manual_seed(6)
    user = torch.randn(graph.n_users, 10, generator=generator, dtype=torch.float64)
    return graph, ProfileVectors(user, torch.randn(graph.n_entities, 10, generator=generator, dtype=torch.float64))


def build(place: tuple[Graph, ProfileVectors], config: SpikeConfig) -> tuple[Spike, PlainSpike, SpikeDraws]:
    """A model in float64, its plain form, and draws of a step (made in float32, as in training) without dropout."""
    graph, vectors = place
    model = Spike(config, graph, vectors, torch.Generator().manual_seed(3))
    draws = model.draw(torch.Generator().manual_seed(7))
    model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    given = whitened(vectors, config.text_components) if config.text_components else vectors
    return model, PlainSpike(model, given), replace(draws, generator=None)


def whitened(vectors: ProfileVectors, dim: int) -> ProfileVectors:
    """Whitened principal components by a singular value decomposition."""
    rows = torch.cat([vectors.user, vectors.entity]).numpy()
    left, sizes, loadings = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    k = min(dim, len(rows) - 1, rows.shape[1])
    signs = np.sign([row[np.abs(row).argmax()] for row in loadings[:k]])
    varies = sizes[:k] > 1e-4 * sizes[0]
    scores = left[:, :k] * signs * varies * np.sqrt(len(rows) - 1)
    user, entity = torch.from_numpy(scores).split([len(vectors.user), len(vectors.entity)])
    return ProfileVectors(user, entity)


def batch(graph: Graph) -> Batch:
    generator = torch.Generator().manual_seed(8)
    rows = torch.randint(graph.n_interactions, (50,), generator=generator)
    negatives = torch.randint(graph.n_items, (50,), generator=generator)
    return Batch(graph.train_user[rows], graph.train_item[rows], negatives)


def gradients(model: Spike, loss: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return dict(zip(names, found, strict=True))


def shuffled(draws: SpikeDraws) -> SpikeDraws:
    if draws.edges is None:
        return draws
    order = torch.randperm(len(draws.edges), generator=torch.Generator().manual_seed(1))
    return replace(draws, edges=draws.edges[order])


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("attention", ["attention", "mean"])
@pytest.mark.parametrize("budget", [None, 16 * 4 * 7])
def test_silent_edges_are_as_good_as_none(
    place: tuple[Graph, ProfileVectors],
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
    attention: Literal["attention", "mean"],
    budget: int | None,
) -> None:
    """Also where all edges of an entity are silent, and where one is named twice."""
    if budget is not None:
        monkeypatch.setattr(Spike, "_budget", budget)
    model, _, draws = build(place, SpikeConfig(dim=16, loss="softmax", attention=attention))
    graph, generator = place[0], torch.Generator().manual_seed(seed)
    edges = torch.randperm(graph.n_edges, generator=generator)[: graph.n_edges // 2].sort().values
    silent = (graph.head[edges] == graph.head[edges[0]]) | (torch.rand(edges.shape, generator=generator) < 0.3)
    without = replace(draws, edges=edges[~silent])
    named = replace(draws, edges=edges, silent=edges[silent].repeat(2))
    found = []
    for one in (without, named):
        terms = model.training_losses(batch(graph), one)
        found.append((terms, gradients(model, torch.stack(list(terms.values())).sum())))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("sizes", [{"bag_rows": 3}, {"loss_scores": 1, "text_bytes": 256}, {"pair_bytes": 16 * 4 * 7}])
@pytest.mark.parametrize("name", CONFIGS)
def test_what_passes_at_once_changes_no_loss_and_no_gradient(
    place: tuple[Graph, ProfileVectors],
    monkeypatch: pytest.MonkeyPatch,
    resized: Callable[..., None],
    name: str,
    sizes: dict[str, int],
) -> None:
    found = []
    for changed in ({}, sizes):
        resized(**changed)
        monkeypatch.setattr("spike_kit.models.losses.CHUNK_ROWS", 2)
        model, _, draws = build(place, CONFIGS[name])
        assert (len(model.edges.blocks) > 1) is ("pair_bytes" in changed)
        terms = model.training_losses(batch(place[0]), draws)
        found.append((terms, gradients(model, torch.stack(list(terms.values())).sum())))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("budget", [None, 16 * 4 * 7])
@pytest.mark.parametrize("name", CONFIGS)
def test_equal_draws_give_equal_losses_and_gradients(
    place: tuple[Graph, ProfileVectors], monkeypatch: pytest.MonkeyPatch, name: str, budget: int | None
) -> None:
    """In one piece, and with a small budget in chunks of text and blocks of edges."""
    if budget is not None:
        monkeypatch.setattr(Spike, "_budget", budget)
    config = CONFIGS[name]
    model, plain, draws = build(place, config)
    assert (len(model.edges.blocks) > 1) is (budget is not None)
    terms = {config.loss: True, "matching": config.matching != "off", "l2": config.l2 > 0}
    expected = {term for term, there in terms.items() if there}
    for term in sorted(expected):
        ours = model.training_losses(batch(place[0]), draws)
        theirs = plain.training_losses(batch(place[0]), shuffled(draws))
        assert set(ours) == set(theirs) == expected
        assert ours[term].dtype == torch.float64
        assert theirs[term] > 0
        torch.testing.assert_close(ours[term], theirs[term], rtol=1e-6, atol=1e-9)
        left, right = gradients(model, ours[term]), gradients(model, theirs[term])
        assert sum(bool(gradient.abs().max() > 1e-6) for gradient in right.values()) >= 3
        for parameter, gradient in right.items():
            torch.testing.assert_close(left[parameter], gradient, rtol=1e-6, atol=1e-9, msg=f"{term}: {parameter}")
