from __future__ import annotations

from typing import Any

import pytest

from spike_kit.base.errors import DataError
from spike_kit.data.dataset import Dataset
from spike_kit.evaluation.ranking import recommendations
from spike_kit.experiments.run import load_model
from spike_kit.experiments.run_folder import Run
from spike_kit.views import charts, tables
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
    frame = recommendations(data, load_model(spike_run), user=0, k=10)
    assert frame["rank"].tolist() == list(range(1, 11))
    seen = set(tables.train_history(data, 0))
    assert seen.isdisjoint(frame["item"])
    held_out = data.interactions.query("user == 0 and split == 'test'")["item"]
    truth = set(data.items["label"].to_numpy()[held_out])
    assert set(frame.loc[frame["in test"], "item"]) <= truth


def test_final_vectors_exist_for_spike_only(data: Dataset, runs: list[Run]) -> None:
    assert tables.final_entity_vectors(load_model(runs[2])).shape == (len(data.entities), 64)
    with pytest.raises(DataError, match="LightGcn has no embeddings of entities"):
        tables.final_entity_vectors(load_model(runs[1]))


def traces(chart: Any) -> dict[str, list[Any]]:
    """Values of a chart's lines by their names."""
    return {trace.name: list(trace.y) for trace in chart.data}


def test_the_losses_are_drawn(spike_run: Run) -> None:
    assert traces(charts.loss_chart(spike_run))["matching"] == spike_run.history["matching"].tolist()


def test_the_funnel_chart_escapes_and_scales(data: Dataset) -> None:
    step = {"users": 10, "items": 8, "interactions": 50, "triples": 20}
    funnel = ({"step": "<img src=x>", **step}, {"step": "core", **{name: n // 2 for name, n in step.items()}})
    chart: Any = charts.funnel_chart(Dataset(data.path, data.manifest.replace(funnel=funnel)))
    assert traces(chart) == {name: [1.0, 0.5] for name in step}
    assert next(iter(chart.data[0].x)) == "&lt;img src=x&gt;"


def test_a_study_without_a_funnel_has_an_empty_chart(data: Dataset) -> None:
    assert all(values == [] for values in traces(charts.funnel_chart(data)).values())
