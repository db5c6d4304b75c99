from __future__ import annotations

import pytest

from spike_kit.base.errors import DataError
from spike_kit.data.dataset import Dataset
from spike_kit.experiments.run import Run
from spike_kit.views import tables
from tests.views.conftest import changed


def test_triples_carry_names_and_sentences(data: Dataset) -> None:
    frame = tables.named_triples(data, 5)
    assert len(frame) == 5
    for row in frame.itertuples():
        assert str(row.head) in str(row.sentence)
        assert str(row.tail) in str(row.sentence)
    assert len(tables.named_triples(data, 10**6)) == len(data.triples)


def test_the_graph_is_described(data: Dataset) -> None:
    facts = tables.graph_statistics(data).set_index("what")["value"]
    assert facts["triples"] == 96
    assert facts["connected components"] == 4
    assert facts["entities in the largest component"] == 12 + 1 + 4
    assert facts["items without a triple"] == 0
    relations = tables.relation_statistics(data)
    assert relations["triples"].tolist() == [48, 48]
    assert dict(zip(relations["name"], relations["tails"], strict=True)) == {"genre": 4, "director": 16}


def test_an_item_without_a_triple_is_counted(data: Dataset) -> None:
    other = changed(data, triples=data.triples[data.triples["head"] != 0])
    facts = tables.graph_statistics(other).set_index("what")["value"]
    assert facts["items without a triple"] == 1
    assert facts["connected components"] == 5


def test_the_funnel_is_a_table_with_blanks(data: Dataset) -> None:
    funnel = ({"step": "raw files", "users": 3, "bad_rows": 1}, {"step": "core", "users": 2})
    shown = tables.funnel_table(Dataset(data.path, data.manifest.replace(funnel=funnel)))
    assert shown.to_numpy().tolist() == [["raw files", 3, 1], ["core", 2, ""]]


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
