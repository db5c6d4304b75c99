from __future__ import annotations

import itertools
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from spike_kit import views
from spike_kit.base import paths
from spike_kit.base.errors import ConfigError, DataError
from spike_kit.base.seeds import numpy_generator, torch_generator
from spike_kit.data.dataset import Dataset
from spike_kit.experiments.run_folder import Run
from spike_kit.models.spike import Spike, SpikeConfig
from spike_kit.models.spike_explainer import SpikeExplainer
from spike_kit.views.graph_view import GraphView, best_paths
from tests.views.conftest import HOSTILE, changed, safe, written
from tests.world import ITEMS_PER_GROUP, World


@pytest.fixture
def explainer(world: World) -> SpikeExplainer:
    return SpikeExplainer(Spike(SpikeConfig(dim=8), world.graph, world.vectors, torch_generator(0, "init")))


def traces(view: GraphView) -> list[Any]:
    figure: Any = view.figure
    return list(figure.data)


def test_a_neighbourhood_grows_by_expanding(data: Dataset, explainer: SpikeExplainer) -> None:
    view = GraphView(data, explainer, most=5)
    item = view.nodes.node("item", 0)
    view.show(item)
    assert set(view.table["relation"]) == {"genre", "director"}
    assert len(view.positions) == 3
    genre = next(node for node in view.positions if view.nodes.kinds[node] == "genre")
    before = dict(view.positions)
    assert view.expand(genre) == 5
    assert all(view.positions[node] == pytest.approx(place) for node, place in before.items())
    assert f"6 of {ITEMS_PER_GROUP} neighbours shown" in view.shown
    assert view.expand(genre) == 5
    view.show(item)
    assert len(view.positions) == 3
    with pytest.raises(DataError, match="is not shown"):
        view.expand(view.nodes.node("item", 40))
    with pytest.raises(DataError, match="no node"):
        view.show(10**6)


def test_edges_carry_attention_both_ways(data: Dataset, explainer: SpikeExplainer) -> None:
    view = GraphView(data, explainer)
    view.show(view.nodes.node("item", 3))
    row = view.table[view.table["relation"] == "genre"].iloc[0]
    graph, n_users = explainer.graph, view.nodes.n_users
    genre = int(data.entities["entity"][data.entities["label"] == row["tail"]].iloc[0])
    to_head = (graph.head == 3) & (graph.tail == genre)
    to_tail = (graph.head == genre) & (graph.tail == 3)
    weights = explainer.attention()
    assert row["head"] == view.nodes.labels[n_users + 3]
    assert row["to head"] == pytest.approx(float(weights[to_head][0]))
    assert row["to tail"] == pytest.approx(float(weights[to_tail][0]))
    assert str(row["head"]) in str(row["sentence"])


def test_without_a_model_edges_count_by_degree(data: Dataset) -> None:
    view = GraphView(data)
    view.show(view.nodes.node("item", 0))
    assert view.table["to head"].tolist() == pytest.approx([0.5, 0.5])


def test_the_figure_draws_every_edge_and_node_once(data: Dataset, explainer: SpikeExplainer) -> None:
    view = GraphView(data, explainer, users=True)
    view.show(view.nodes.node("item", 0))
    drawn_traces = traces(view)
    nodes = [node for trace in drawn_traces if trace.customdata is not None for node in trace.customdata]
    assert sorted(nodes) == sorted(view.positions)
    drawn = sum(list(trace.x).count(None) for trace in drawn_traces if trace.mode == "lines")
    assert drawn == len(view.table)
    assert {trace.name for trace in drawn_traces if trace.mode == "lines"} == {"interaction", "genre", "director"}
    again = GraphView(data, explainer, users=True)
    again.show(view.nodes.node("item", 0))
    assert again.positions == view.positions


def test_paths_go_from_a_user_to_an_item(data: Dataset, explainer: SpikeExplainer) -> None:
    view = GraphView(data, explainer, users=True)
    train = data.split("train")
    own = train.loc[train["user"] == 0, "item"].tolist()
    target = next(item for item in range(ITEMS_PER_GROUP) if item not in own)
    strongest, shortest = view.paths(0, target, 6), view.paths(0, target, 6, strongest=False)
    assert strongest["strength"].is_monotonic_decreasing
    assert shortest["edges"].is_monotonic_increasing
    assert shortest["edges"][0] == 3
    names = strongest["path"][0].split(" → ")
    assert names[0] == data.users["label"][0]
    assert names[-1] == data.items["label"][target]
    edges = view.edges.set_index(["source", "target"])["weight"]
    lookup = {label: node for node, label in enumerate(view.nodes.labels)}
    assert not any("User" in name for name in names[1:])
    assert edges.loc[(lookup[names[0]], lookup[names[1]])].max() == pytest.approx(1 / len(own))
    steps = [edges.loc[(lookup[a], lookup[b])].max() for a, b in pairwise(names)]
    assert strongest["strength"][0] == pytest.approx(math.prod(steps))
    assert "in train" in strongest["sentences"][0]
    assert view.paths(0, target, longest=2).empty
    others = view.paths(0, target, 50, through_users=True)
    assert others["path"].str.contains("User [1-9]", regex=True).any()
    with pytest.raises(DataError, match="has no users"):
        GraphView(data, explainer).paths(0, target)


def test_relations_take_turns_and_users_come_last(data: Dataset) -> None:
    genre = data.triples[data.triples["relation"] == 0].iloc[0]
    more = pd.DataFrame({"head": 0, "relation": 0, "tail": range(len(data.items) + 1, len(data.items) + 4)})
    linked = changed(data, triples=pd.concat([data.triples, more], ignore_index=True))
    view = GraphView(linked, users=True, most=3)
    view.show(view.nodes.node("item", int(genre["head"])))
    relations = [name for name in view.links["name"] if name != "interaction"]
    assert sorted(relations) == ["director", "genre", "genre"]
    view.most = 50
    view.expand(view.nodes.node("item", int(genre["head"])))
    assert "interaction" in set(view.links["name"])


def test_relations_keep_their_look_when_others_appear(data: Dataset) -> None:
    view = GraphView(data, most=1, users=True)
    genre = data.entities.index[data.entities["label"] == "comedy"][0]
    view.show(view.nodes.node("auxiliary", int(genre)))
    before = {trace.name: trace.line for trace in traces(view) if trace.mode == "lines"}
    view.expand(next(node for node in view.positions if view.nodes.subject(node)[0] == "item"))
    after = {trace.name: trace.line for trace in traces(view) if trace.mode == "lines"}
    assert len(after) > len(before) == 1
    assert all((after[name].color, after[name].dash) == (line.color, line.dash) for name, line in before.items())


def test_lines_between_the_same_nodes_do_not_hide_each_other(data: Dataset) -> None:
    twice = data.triples[data.triples["relation"] == 1].head(1).assign(relation=0)
    view = GraphView(changed(data, triples=pd.concat([data.triples, twice], ignore_index=True)))
    view.show(view.nodes.node("item", int(twice["head"].iloc[0])))
    assert len(view.table) == 3
    lines = [
        tuple(trace.x[i : i + 2]) for trace in traces(view) if trace.mode == "lines" for i in range(0, len(trace.x), 3)
    ]
    assert len(set(lines)) == 3
    largest = view.edges.groupby(["source", "target"])["weight"].max()
    pd.testing.assert_series_equal(view._between["weight"], largest.loc[view._between.index])
    assert len(view._between) == len(view.edges) - 2


def test_hovers_say_relation_direction_and_both_weights(data: Dataset) -> None:
    view = GraphView(data)
    view.show(view.nodes.node("item", 0))
    hovers = [text for trace in traces(view) if trace.mode == "markers" for text in trace.text or ()]
    assert (
        "<b>director</b><br>Comedy film 0 was directed by Director 0.<br>weight of the second in the first: 0.500"
        in "".join(hovers)
    )
    assert "weight of the first in the second: 0.333" in "".join(hovers)


def test_an_item_without_an_edge_has_no_path(data: Dataset) -> None:
    train = data.interactions[data.interactions["item"] != 0]
    triples = data.triples[data.triples["head"] != 0]
    view = GraphView(changed(data, triples=triples, interactions=train), users=True)
    assert view.paths(0, 0).empty
    view.show(view.nodes.node("item", 0))
    assert view.table.empty
    assert len(traces(view)) == 1


def test_hostile_names_are_text(hostile: Dataset, tmp_path: Path) -> None:
    view = GraphView(hostile, users=True)
    panel = view.panel().parts
    panel["centre-text"].value = "onerror"
    panel["item-text"].value = "onerror"
    panel["path"].click()
    safe(panel["graph"].to_json(), panel["table"].value, panel["shown"].value, panel["paths"].value)
    assert "&lt;img" in panel["paths"].value
    assert len(view.positions) > 1
    files = view.export(tmp_path)
    assert all(file.parent == tmp_path and "<" not in file.name for file in files)
    assert set(pd.read_csv(files[1])["head"]) == {HOSTILE}
    assert HOSTILE.replace("$", r"\$")[:20] in view.drawing.axes[0].texts[0].get_text()


def test_the_panel_searches_expands_and_finds_paths(data: Dataset, explainer: SpikeExplainer) -> None:
    view = GraphView(data, explainer, users=True)
    panel = view.panel().parts
    panel["centre-text"].value = "comedy film 0"
    assert panel["centre"].label.startswith("Comedy film 0")
    assert len(view.positions) > 3
    before = len(view.positions)
    panel["names"].value = next(node for node in view.positions if view.nodes.kinds[node] == "genre")
    panel["expand"].click()
    assert len(view.positions) > before
    traces = [trace for trace in panel["graph"].data if trace.customdata is not None]
    assert sum(len(trace.customdata) for trace in traces) == len(view.positions)
    panel["path"].click()
    assert "choose an item" in panel["paths"].value
    panel["item-text"].value = "comedy film 1"
    panel["path"].click()
    assert "→" in panel["paths"].value
    assert np.isfinite(view.table[["to head", "to tail"]].to_numpy(float)).any()


def test_an_export_holds_the_edges_that_are_shown(spike_run: Run, tmp_path: Path) -> None:
    view = views.graph(spike_run, device="cpu")
    assert view.expanded == [view.nodes.popular_item]
    table = written(view.export(tmp_path / "a"), view.export(tmp_path / "b"))
    pd.testing.assert_frame_equal(table[list(view.table)], view.table, atol=1e-5, check_dtype=False)
    first: Any = table.loc[0, ["head x", "head y"]]
    places = view.positions[view.nodes.labels.index(table["head"][0])]
    assert first.tolist() == pytest.approx(places, abs=1e-4)
    (axes,) = view.drawing.axes
    assert len([line for line in axes.lines if len(line.get_xdata())]) == len(table)
    assert {text.get_text() for text in axes.texts} == {view.nodes.labels[node] for node in view.positions}
    before = {file.name for file in view.export(tmp_path / "a")}
    view.expand(list(view.positions)[1])
    panel = view.panel().parts
    panel["export"].click()
    names = {file.name for file in paths.figures_root().iterdir()}
    assert len(names - before) == 2
    assert all(name in panel["exported"].value for name in names)


def test_a_graph_of_a_data_set_has_no_model(data: Dataset) -> None:
    view = views.graph(data, most=2, users=False)
    assert (view.explainer, view.most, view.users) == (None, 2, False)
    empty = GraphView(data)
    assert traces(empty) == []
    assert len(empty.export()) == 2


Edges = pd.DataFrame


@pytest.fixture
def edges() -> Edges:
    rng = numpy_generator(0, "paths")
    source, target = (rng.integers(0, 8, 40) for _ in range(2))
    frame = pd.DataFrame({"source": source, "target": target, "weight": rng.uniform(0.01, 1, 40)})
    return frame.sort_values("weight", ascending=False).drop_duplicates(["source", "target"])


def all_paths(edges: Edges, longest: int) -> dict[tuple[int, ...], float]:
    """Every path from 0 to 1 by trying all sequences of nodes."""
    best = edges.set_index(["source", "target"])["weight"].to_dict()
    found = {}
    for n in range(longest):
        for middle in itertools.permutations(range(2, 8), n):
            path = (0, *middle, 1)
            if all(pair in best for pair in pairwise(path)):
                found[path] = math.prod(best[pair] for pair in pairwise(path))
    return found


@pytest.mark.parametrize("longest", [1, 2, 3, 5])
def test_paths_are_those_of_trying_everything(edges: Edges, longest: int) -> None:
    expected = all_paths(edges, longest)
    strongest = [tuple(path) for path in best_paths(edges, 0, 1, 1000, longest)]
    assert strongest == sorted(expected, key=lambda path: -expected[path])
    shortest = [tuple(path) for path in best_paths(edges, 0, 1, 1000, longest, strongest=False)]
    assert shortest == sorted(expected, key=lambda path: (len(path), -expected[path]))
    assert best_paths(edges, 0, 1, 2, longest) == [list(path) for path in strongest[:2]]


def test_no_edges_no_paths_and_numbers_are_checked(edges: Edges) -> None:
    assert best_paths(edges.head(0), 0, 1, 5) == []
    assert best_paths(edges[edges["target"] != 1], 0, 1, 5) == []
    for k, longest in ((0, 4), (1, 0)):
        with pytest.raises(ConfigError, match="at least 1"):
            best_paths(edges, 0, 1, k, longest)
