from typing import Any

import pytest

from spike_kit.base.errors import DataError
from spike_kit.data.dataset import Dataset
from spike_kit.experiments.run import Run
from spike_kit.views import tables
from spike_kit.views.tables import Nodes
from tests.views.conftest import changed


def test_triples_carry_names_and_sentences(data: Dataset) -> None:
    frame = tables.named_triples(data, 5)
    assert len(frame) == 5
    assert all(row["head"] in row["sentence"] and row["tail"] in row["sentence"] for row in frame.to_dict("records"))
    assert len(tables.named_triples(data, 10**6)) == len(data.triples)


def test_the_graph_is_described(data: Dataset) -> None:
    one_less = changed(data, triples=data.triples[data.triples["head"] != 0])
    facts = tables.graph_statistics(one_less).set_index("what")["value"]
    assert facts["triples"] == 94
    assert facts["connected components"] == 4 + 1
    assert facts["entities in the largest component"] == 12 + 1 + 4
    assert facts["items without a triple"] == 1
    relations = tables.relation_statistics(one_less)
    assert relations["triples"].tolist() == [47, 47]
    assert dict(zip(relations["name"], relations["tails"], strict=True)) == {"genre": 4, "director": 16}


@pytest.mark.parametrize(
    ("funnel", "columns", "rows"),
    [
        (
            [{"step": "raw files", "users": 3, "bad_rows": 1}, {"step": "core", "users": 2}],
            ["step", "users", "also"],
            [["raw files", 3, "1 bad rows"], ["core", 2, ""]],
        ),
        (
            [{"step": "raw files", "items": 3}, {"step": "joined", "items": 2, "triples": 4, "merged": 1200, "cut": 0}],
            ["step", "items", "triples", "also"],
            [["raw files", 3, "", ""], ["joined", 2, 4, "1,200 merged, 0 cut"]],
        ),
    ],
)
def test_the_funnel_is_a_narrow_table_with_blanks(
    data: Dataset, funnel: list[dict[str, Any]], columns: list[str], rows: list[list[Any]]
) -> None:
    shown = tables.funnel_table(Dataset(data.path, data.manifest.replace(funnel=funnel)))
    assert shown.columns.tolist() == columns
    assert shown.to_numpy().tolist() == rows


def test_profiles_by_subject_and_id(data: Dataset) -> None:
    assert tables.profile_of(data, "item", 0).startswith("Comedy film 0.")
    with pytest.raises(DataError, match="world has no user 4711"):
        tables.profile_of(data, "user", 4711)


def test_neighbours_share_the_topic_and_exclude_oneself(data: Dataset) -> None:
    frame = tables.neighbours(data, data.vectors().entity, 0, 5)
    assert "Comedy film 0" not in frame["label"].tolist()
    assert frame["cosine"].is_monotonic_decreasing
    assert frame["cosine"].iloc[0] > 0.7


def test_recommendations_have_names_and_truth(data: Dataset, spike_run: Run) -> None:
    frame = spike_run.recommend(user=0, n=10)
    assert frame["rank"].tolist() == list(range(1, 11))
    seen = set(tables.train_history(data, 0))
    assert seen.isdisjoint(frame["item"])
    held_out = data.interactions.query("user == 0 and split == 'test'")["item"]
    truth = set(data.items["label"].to_numpy()[held_out])
    assert set(frame.loc[frame["in test"], "item"]) <= truth


@pytest.fixture
def nodes(data: Dataset) -> Nodes:
    entities = data.entities.copy()
    names = ["Amélie", "The Amelie Show", "Am\u00e9lie II", "Straße der Amelien", "$x$ <b>"]
    entities.loc[: len(names) - 1, "label"] = names
    items = data.items.copy()
    items.loc[: len(names) - 1, "label"] = names
    return Nodes(changed(data, entities=entities, items=items))


def names(nodes: Nodes, text: str, most: int = 20) -> list[str]:
    return [nodes.labels[node] for node in nodes.search(text, most)]


def test_names_are_found_whatever_case_and_accents(nodes: Nodes) -> None:
    assert names(nodes, "amelie") == ["Amélie", "Amélie II", "The Amelie Show", "Straße der Amelien"]
    assert names(nodes, "  AMÉLIE ii ") == ["Amélie II"]
    assert names(nodes, "strasse") == ["Straße der Amelien"]
    assert names(nodes, "show amelie") == ["The Amelie Show"]
    assert names(nodes, "amelie", most=1) == ["Amélie"]
    assert names(nodes, "$x$") == ["$x$ <b>"]
    assert names(nodes, "") == names(nodes, "no such name") == []


def test_nodes_are_users_then_entities(data: Dataset) -> None:
    nodes, n_items = Nodes(data), len(data.items)
    first_other = nodes.n_users + n_items
    for node in (0, nodes.n_users - 1, nodes.n_users, first_other, nodes.n_nodes - 1):
        assert nodes.node(*nodes.subject(node)) == node
    assert nodes.subject(first_other) == ("auxiliary", n_items)
    assert nodes.table([0, nodes.n_users])["label"].tolist() == [data.users["label"][0], data.items["label"][0]]
    for wrong in (-1, nodes.n_nodes):
        with pytest.raises(DataError, match="no node"):
            nodes.subject(wrong)
    with pytest.raises(DataError, match="no item"):
        nodes.node("item", n_items)
