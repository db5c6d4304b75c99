import pytest

from spike_kit.base.errors import DataError
from spike_kit.data.dataset import Dataset
from spike_kit.views.search import Nodes
from tests.views.conftest import changed


@pytest.fixture
def nodes(data: Dataset) -> Nodes:
    entities = data.entities.copy()
    names = ["Amélie", "The Amelie Show", "Am\u00e9lie II", "Straße der Amelien", "$x$ <b>"]
    entities.loc[: len(names) - 1, "label"] = names
    items = data.items.copy()
    items.loc[: len(names) - 1, "label"] = names
    return Nodes(changed(data, entities=entities, items=items))


def names(nodes: Nodes, text: str, **options: object) -> list[str]:
    return [nodes.labels[node] for node in nodes.search(text, **options)]  # type: ignore[arg-type]


def test_names_are_found_whatever_case_and_accents(nodes: Nodes) -> None:
    assert names(nodes, "amelie") == ["Amélie", "Amélie II", "The Amelie Show", "Straße der Amelien"]
    assert names(nodes, "  AMÉLIE ii ") == ["Amélie II"]
    assert names(nodes, "strasse") == ["Straße der Amelien"]
    assert names(nodes, "show amelie") == ["The Amelie Show"]
    assert names(nodes, "amelie", most=1) == ["Amélie"]
    assert names(nodes, "amelie", subjects=("user",)) == []
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
