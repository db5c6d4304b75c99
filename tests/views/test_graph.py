import itertools
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from spike_kit import views
from spike_kit.base.errors import ConfigError, DataError
from spike_kit.base.seeds import numpy_generator
from spike_kit.data.dataset import Dataset
from spike_kit.experiments.run import Run
from spike_kit.models.spike_explainer import SpikeExplainer
from spike_kit.views.graph_view import GraphView, best_paths
from tests.views.conftest import HOSTILE, changed, harmless, written
from tests.world import ITEMS_PER_GROUP


def traces(view: GraphView, mode: str = "") -> list[Any]:
    figure: Any = view.figure
    return [trace for trace in figure.data if mode in trace.mode]


def test_a_neighbourhood_grows_by_expanding(data: Dataset, explainer: SpikeExplainer) -> None:
    view = GraphView(data, explainer, most=5)
    item = view.nodes.node("item", 0)
    view.show(item)
    assert {"genre", "director"} <= set(view.table["relation"])
    assert len(view.positions) == 6
    genre = next(node for node in view.positions if view.nodes.kinds[node] == "genre")
    before = dict(view.positions)
    assert view.expand(genre) == 5
    assert all(view.positions[node] == pytest.approx(place) for node, place in before.items())
    assert f"6 of {ITEMS_PER_GROUP} neighbours shown" in view.shown
    assert view.expand(genre) == 5
    view.show(item)
    assert view.positions == before
    with pytest.raises(DataError, match="is not shown"):
        view.expand(view.nodes.node("item", 40))
    with pytest.raises(DataError, match="no node"):
        view.show(10**6)


def test_edges_carry_attention_both_ways_or_count_by_degree(data: Dataset, explainer: SpikeExplainer) -> None:
    view = GraphView(data, explainer)
    view.show(view.nodes.node("item", 3))
    row = view.table[view.table["relation"] == "genre"].iloc[0]
    graph, n_users = explainer.graph, view.nodes.n_users
    genre = int(data.entities["entity"][data.entities["label"] == row["tail"]].iloc[0])
    weights = explainer.attention()
    assert row["head"] == view.nodes.labels[n_users + 3]
    assert row["to head"] == pytest.approx(float(weights[(graph.head == 3) & (graph.tail == genre)][0]))
    assert row["to tail"] == pytest.approx(float(weights[(graph.head == genre) & (graph.tail == 3)][0]))
    assert str(row["head"]) in str(row["sentence"])
    plain = views.graph(data, most=2)
    assert (plain.explainer, plain.expanded) == (None, [plain.nodes.popular_item])
    assert plain.table["to head"].tolist() == pytest.approx([0.5, 0.5])


def test_the_figure_draws_every_edge_and_node_once(data: Dataset) -> None:
    """Lines between the same nodes do not hide each other, and relations keep their look when others appear."""
    twice = data.triples[data.triples["relation"] == 1].head(1).assign(relation=0)
    view = GraphView(changed(data, triples=pd.concat([data.triples, twice], ignore_index=True)), most=1)
    genre = data.entities.index[data.entities["label"] == "comedy"][0]
    view.show(view.nodes.node("auxiliary", int(genre)))
    before = {trace.name: trace.line for trace in traces(view, "lines")}
    view.most = 20
    for item in (view.nodes.node("item", 0), view.nodes.node("item", int(twice["head"].iloc[0]))):
        view.show(item)
        drawn = traces(view, "lines")
        after = {trace.name: trace.line for trace in drawn}
        assert len(after) == 3 > len(before) == 1
        assert all((after[name].color, after[name].dash) == (line.color, line.dash) for name, line in before.items())
        nodes = [node for trace in traces(view) if trace.customdata is not None for node in trace.customdata]
        assert sorted(nodes) == sorted(view.positions)
        lines = [tuple(trace.x[i : i + 2]) for trace in drawn for i in range(0, len(trace.x), 3)]
        assert len(set(lines)) == len(lines) == len(view.table)


def test_hovers_say_relation_direction_and_both_weights(data: Dataset) -> None:
    view = GraphView(data)
    view.show(view.nodes.node("item", 0))
    hovers = "".join(text for trace in traces(view, "markers") for text in trace.text)
    said = "<b>director</b><br>Comedy film 0 was directed by Director 0.<br>weight of the second in the first: 0.500"
    assert said in hovers
    assert "weight of the first in the second: 0.333" in hovers


def test_relations_take_turns_and_users_come_last(data: Dataset) -> None:
    genre = data.triples[data.triples["relation"] == 0].iloc[0]
    more = pd.DataFrame({"head": 0, "relation": 0, "tail": range(len(data.items) + 1, len(data.items) + 4)})
    linked = changed(data, triples=pd.concat([data.triples, more], ignore_index=True))
    view = GraphView(linked, most=3)
    view.show(view.nodes.node("item", int(genre["head"])))
    assert sorted(view.links["name"]) == ["director", "genre", "genre"]
    view.most = 50
    view.expand(view.nodes.node("item", int(genre["head"])))
    assert "interaction" in set(view.links["name"])


@pytest.mark.parametrize(("many", "one"), [(0, 1), (1, 0)])
def test_a_popular_item_shows_each_of_its_relations_before_users(data: Dataset, many: int, one: int) -> None:
    others = range(len(data.items), len(data.items) + 9)
    cast = pd.DataFrame({"head": 0, "relation": many, "tail": others})
    lone = pd.DataFrame({"head": [0], "relation": one, "tail": [len(data.entities) - 1]})
    fans = data.interactions[data.interactions["user"] != 0].drop_duplicates("user").assign(item=0, split="train")
    rest = data.interactions[data.interactions["item"] != 0]
    triples = pd.concat([data.triples[data.triples["head"] != 0], cast, lone], ignore_index=True)
    linked = changed(data, triples=triples, interactions=pd.concat([rest, fans], ignore_index=True))
    view = GraphView(linked, most=4)
    item, near = view.nodes.node("item", 0), 10 + len(fans)
    assert view.expanded == [item]
    assert view.links["relation"].tolist() == sorted([many] * 3 + [one])
    assert view.shown.endswith(f": 4 of {near} neighbours shown")
    view.most = 8
    assert view.expand(item) == 8
    assert (view.links["relation"] == -1).sum() == 2
    assert view.shown.endswith(f": 12 of {near} neighbours shown")


@pytest.mark.parametrize("item", [0, 17])
def test_users_fill_the_places_that_entities_leave(data: Dataset, explainer: SpikeExplainer, item: int) -> None:
    view = GraphView(data, explainer, most=5)
    node, fans = view.nodes.node("item", item), (data.split("train")["item"] == item).sum()
    view.show(node)
    kinds = view.nodes.kinds[[other for other in view.positions if other != node]].tolist()
    assert sorted(kinds) == ["director", "genre", *["user"] * 3]
    assert view.shown.endswith(f": 5 of {2 + fans} neighbours shown")


def test_paths_go_from_a_user_to_an_item(data: Dataset, explainer: SpikeExplainer) -> None:
    view = GraphView(data, explainer)
    train = data.split("train")
    own = train.loc[train["user"] == 0, "item"].tolist()
    target = next(item for item in range(ITEMS_PER_GROUP) if item not in own)
    found = view.paths(0, target, 6)
    assert found["strength"].is_monotonic_decreasing
    names = found["path"][0].split(" → ")
    assert (names[0], names[-1]) == (data.users["label"][0], data.items["label"][target])
    assert not any("User" in name for name in names[1:])
    weights = view.edges.set_index(["source", "target"])["weight"]
    steps = weights.loc[list(pairwise(map(view.nodes.labels.index, names)))]
    assert steps.iloc[0] == pytest.approx(1 / len(own))
    assert found["strength"][0] == pytest.approx(steps.prod())
    assert found["sentences"][0].startswith(f"{names[0]} has {names[1]} in train. ")
    assert view.paths(0, target, longest=2).empty
    others = view.paths(0, target, 50, through_users=True)
    assert others["path"].str.contains("User [1-9]", regex=True).any()


def test_an_item_without_an_edge_has_no_path(data: Dataset) -> None:
    train = data.interactions[data.interactions["item"] != 0]
    view = GraphView(changed(data, triples=data.triples[data.triples["head"] != 0], interactions=train))
    assert view.paths(0, 0).empty
    view.show(view.nodes.node("item", 0))
    assert view.table.empty
    assert len(traces(view)) == 1


def test_hostile_names_are_text(hostile: Dataset, tmp_path: Path) -> None:
    view = GraphView(hostile)
    harmless(view, view.drawing)
    assert set(written(view, tmp_path)["head"]) == {HOSTILE}
    assert HOSTILE[:20] in view.drawing.axes[0].texts[0].get_text()


def test_the_panel_searches_and_expands(data: Dataset, explainer: SpikeExplainer) -> None:
    view = GraphView(data, explainer)
    panel = view.panel().parts
    panel["centre-text"].value = "comedy film 0"
    assert panel["centre"].label.startswith("Comedy film 0")
    before = len(view.positions)
    assert before > 3
    drawn = [trace for trace in panel["graph"].data if trace.customdata is not None]
    assert sum(len(trace.customdata) for trace in drawn) == len(view.positions)
    genre = drawn[0].customdata.tolist().index(next(n for n in view.positions if view.nodes.kinds[n] == "genre"))
    drawn[0]._click_callbacks[0](drawn[0], type("Points", (), {"point_inds": [genre]})(), None)
    assert view.expanded[-1] == drawn[0].customdata[genre]
    assert len(view.positions) > before


def test_an_export_holds_the_edges_that_are_shown(spike_run: Run, tmp_path: Path) -> None:
    view = views.graph(spike_run, device="cpu")
    assert view.expanded == [view.nodes.popular_item]
    table = written(view, tmp_path)
    pd.testing.assert_frame_equal(table, view.table, atol=1e-5, check_dtype=False)
    first: Any = table.loc[0, ["head x", "head y"]]
    assert first.tolist() == pytest.approx(view.positions[view.nodes.labels.index(table["head"][0])], abs=1e-4)
    (axes,) = view.drawing.axes
    drawn: list[Any] = [lines for lines in axes.collections if hasattr(lines, "get_segments")]
    assert sum(len(lines.get_segments()) for lines in drawn) == len(table)
    assert {text.get_text() for text in axes.texts} == {view.nodes.labels[node] for node in view.positions}
    assert any(view.expand(node) for node in list(view.positions))
    assert not {file.name for file in view.export(tmp_path / "a")} & {file.name for file in (tmp_path / "b").iterdir()}


@pytest.mark.parametrize("longest", [1, 2, 3, 5])
def test_paths_are_those_of_trying_everything(longest: int) -> None:
    rng = numpy_generator(0, "paths")
    source, target = (rng.integers(0, 8, 60) for _ in range(2))
    edges = pd.DataFrame({"source": source, "target": target, "weight": rng.uniform(0.01, 1, 60)})
    heaviest = edges.groupby(["source", "target"])["weight"].max().to_dict()
    expected = {}
    for n in range(longest):
        for middle in itertools.permutations(range(2, 8), n):
            steps = list(pairwise((0, *middle, 1)))
            if all(step in heaviest for step in steps):
                expected[tuple(steps)] = math.prod(heaviest[step] for step in steps)
    found = best_paths(edges, 0, 1, 1000, longest)
    steps = [tuple((edge["source"], edge["target"]) for edge in path) for path in found]
    assert steps == sorted(expected, key=lambda path: -expected[path])
    assert [math.prod(edge["weight"] for edge in path) for path in found] == pytest.approx(
        sorted(expected.values(), reverse=True)
    )
    assert best_paths(edges, 0, 1, 2, longest) == found[:2]
    assert best_paths(edges.head(0), 0, 1, 5) == best_paths(edges[edges["target"] != 1], 0, 1, 5) == []
    for wrong in ((0, longest), (1, 0)):
        with pytest.raises(ConfigError, match="at least 1"):
            best_paths(edges, 0, 1, *wrong)
