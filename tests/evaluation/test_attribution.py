from typing import Any

import numpy as np
import pytest
import torch

from spike_kit.base.errors import DataError
from spike_kit.base.seeds import torch_generator
from spike_kit.data.vectors import ProfileVectors
from spike_kit.models.spike import Spike, SpikeConfig, SpikeDraws
from spike_kit.models.spike_explainer import Removal, SpikeExplainer, what_if
from tests.world import World

FORMS: list[dict[str, Any]] = [
    {},
    {"layers": 1, "loss": "cosine_softmax"},
    {"attention": "mean", "user_to_item": "add"},
    {"user_to_item": "instead", "heads": 4},
    {"user_profiles": False, "remove": False},
    {"item_profiles": False, "auxiliary_profiles": False, "inject": False},
    {"inject": False, "remove": False, "matching": "off"},
]


def made(world: World, **settings: Any) -> Spike:
    config = SpikeConfig(dim=8, rho=0.7).replace(**settings)
    return Spike(config, world.graph, world.vectors, torch_generator(3, "init"))


@pytest.mark.parametrize("settings", [*FORMS, *({"layers": 1, **form} for form in FORMS)], ids=str)
def test_parts_add_up_to_what_the_model_computes(world: World, settings: dict[str, Any]) -> None:
    model = made(world, **settings).double()
    if model.config.uses_text:
        model.text = ProfileVectors(world.vectors.user.double(), world.vectors.entity.double())
    explainer = SpikeExplainer(model)
    with torch.no_grad():
        nodes, scores = torch.cat(model.node_embeddings()), model.score(torch.tensor([5]))[0]
    assert nodes.dtype == torch.float64
    torch.testing.assert_close(explainer.rows.parts.sum((0, 1)), nodes, rtol=0, atol=1e-12)
    torch.testing.assert_close(explainer.scores(5), scores, rtol=0, atol=1e-12)
    parts, n_layers = explainer.contributions(5, range(world.graph.n_items)), model.config.layers + 1
    assert parts.shape == (world.graph.n_items, n_layers, 2, n_layers, 2)
    torch.testing.assert_close(parts.sum((1, 2, 3, 4)), scores, rtol=0, atol=1e-12)
    graph = world.graph
    for weights in explainer.rows.attention:
        total = torch.zeros(graph.n_entities, dtype=torch.float64).index_add(0, graph.head, weights.double())
        torch.testing.assert_close(total[graph.head.unique()], torch.ones(len(graph.head.unique())).double())


def test_the_parts_of_a_layer_can_be_computed_by_hand(world: World) -> None:
    model = made(world, layers=1, attention="mean")
    explainer, graph = SpikeExplainer(model), world.graph
    structure, profile = explainer.rows.parts[1]
    with torch.no_grad():
        ids, z = model.entity_embedding, 0.7 * explainer.profiles[graph.n_users :]
        own = graph.train_item[graph.train_user == 5]
        length = (ids + z)[own].mean(0).norm()
        torch.testing.assert_close(structure[5], ids[own].mean(0) / length)
        torch.testing.assert_close(profile[5], z[own].mean(0) / length)
        edges = graph.head == 3
        tails, relations = graph.tail[edges], model.relation_embedding[graph.relation[edges]]
        length = ((ids + z)[tails] * relations).mean(0).norm()
        torch.testing.assert_close(structure[graph.n_users + 3], (ids[tails] * relations).mean(0) / length)
        torch.testing.assert_close(profile[graph.n_users + 3], (z[tails] * relations).mean(0) / length)


def test_a_profile_that_is_taken_out_has_no_effect_any_more(world: World) -> None:
    model, node = made(world), world.graph.n_users + 7
    before = SpikeExplainer(model)
    explainer = before.without(Removal("profile", (node,)))
    with torch.no_grad():
        kept = before.profiles.clone()
        kept[node] = 0
        expected = model.final_rows(kept, kept, SpikeDraws())
    torch.testing.assert_close(explainer.final, expected)
    torch.testing.assert_close(explainer.rows.parts.sum((0, 1)), expected, rtol=0, atol=1e-5)
    assert not torch.allclose(explainer.final, before.final)


def test_an_edge_that_is_taken_out_leaves_the_graph_without_it(world: World) -> None:
    model, graph = made(world, user_to_item="add"), world.graph
    triple = (int(graph.head[0]), int(graph.relation[0]), int(graph.tail[0]))
    pair = (int(graph.train_user[3]), int(graph.train_item[3]))
    explainer = SpikeExplainer(model).without(Removal("triple", triple), Removal("interaction", pair))
    assert explainer.graph.n_edges == graph.n_edges - 2
    assert explainer.graph.n_interactions == graph.n_interactions - 1
    with torch.no_grad():
        other = Spike(model.config, explainer.graph, world.vectors, torch_generator(0, "init"))
        other.load_state_dict(model.state_dict())
        expected = torch.cat(other.node_embeddings())
    torch.testing.assert_close(explainer.rows.parts.sum((0, 1)), expected, rtol=0, atol=1e-5)
    assert not torch.allclose(explainer.rows.parts.sum((0, 1)), SpikeExplainer(model).rows.parts.sum((0, 1)))


def test_what_is_not_there_is_an_error(world: World) -> None:
    explainer = SpikeExplainer(made(world))
    for removal in (Removal("triple", (0, 0, 0)), Removal("interaction", (0, 9999)), Removal("profile", (10**6,))):
        with pytest.raises(DataError, match=f"no {'node' if removal.kind == 'profile' else removal.kind}"):
            explainer.without(removal)
    for user, item, name in ((999, 0, "user 999"), (0, 10**6, "item 1000000")):
        with pytest.raises(DataError, match=f"no {name}"):
            explainer.contributions(user, [item])


def test_ranks_with_and_without(world: World) -> None:
    model, graph = made(world, layers=1), world.graph
    seen = graph.train_item[graph.train_user == 0].tolist()
    before = SpikeExplainer(model)
    removal = Removal("interaction", (0, seen[0]))
    table = what_if(before, 0, seen, [removal], k=5)
    assert not set(table["item"]) & set(seen)
    assert table["rank"].is_monotonic_increasing
    assert table.loc[table["rank"] <= 5, "item"].tolist() == before.top(0, seen, 5)
    after = table[table["new rank"] <= 5].sort_values("new rank")["item"].tolist()
    assert after == before.without(removal).top(0, seen, 5)
    assert np.allclose(table["change"], table["new score"] - table["score"])
    nothing = what_if(before, 0, seen, [], k=5)
    assert (nothing["change"] == 0).all()
    assert nothing["rank"].tolist() == nothing["new rank"].tolist() == [1, 2, 3, 4, 5]
