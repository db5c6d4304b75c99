from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from spike_kit import views
from spike_kit.base import paths
from spike_kit.base.errors import ConfigError, DataError, StorageError
from spike_kit.data.dataset import Dataset
from spike_kit.experiments.run import Run
from spike_kit.figures import style
from spike_kit.figures.charts import OTHER
from spike_kit.models.spike import Spike
from spike_kit.views import embedding_map
from spike_kit.views.embedding_map import EmbeddingMap, node_spaces
from tests.views.conftest import HOSTILE, harmless, points, safe, written


@pytest.fixture
def view(data: Dataset) -> EmbeddingMap:
    return EmbeddingMap(data, {"text": points(data), "final": points(data, 1)})


def popularity(view: EmbeddingMap) -> str:
    return next(name for name in view.columns if name.startswith("popularity"))


def test_columns_come_from_the_tables(data: Dataset, view: EmbeddingMap) -> None:
    assert {"kind", "relation: genre", "relation: director"} <= set(view.columns)
    genre = view.columns["relation: genre"]
    assert (genre[0], genre[view.nodes.n_users]) == (OTHER, "comedy")
    assert view.columns[popularity(view)][0] == pytest.approx(np.log10(11))
    scale = [position for position, _ in view.scale["colorscale"]]
    assert scale == sorted(scale)
    view.colour = "nope"
    with pytest.raises(ConfigError, match="no column named 'nope'"):
        _ = view.figure
    with pytest.raises(DataError, match="has 3 rows"):
        EmbeddingMap(data, {"text": points(data).head(3)})


def test_search_and_selection_make_the_table(view: EmbeddingMap) -> None:
    panel = view.panel().parts
    chart = panel["map"]
    panel["search"].value = "comedy film 1"
    assert "Comedy film" in panel["results"].value
    assert view.table["label"].tolist() == [view.nodes.labels[node] for node in view.found]
    assert view.table["profile"][0].startswith("Comedy film 1")
    assert [len(trace.x) for trace in chart.data if trace.marker.symbol == "circle-open"] == [len(view.found)] * 2
    chart.data[0]._select_callbacks[0](None, type("Points", (), {"point_inds": [0, 70, 10**6]})())
    assert view.table["node"].tolist() == [0, 70]
    assert view.nodes.labels[70] in panel["results"].value
    panel["search"].value = "<b>nobody"
    assert "nothing is called" in panel["results"].value
    assert "<b>nobody" not in panel["results"].value
    panel["search"].value = ""
    assert view.selected == view.found == []


@pytest.mark.parametrize(("different", "clusters"), [(1, 1), (3, 3), (20, 12)])
def test_there_are_no_more_clusters_than_different_vectors(view: EmbeddingMap, different: int, clusters: int) -> None:
    vectors = np.eye(20)[np.arange(view.nodes.n_nodes) % different]
    assert view.cluster(vectors).nunique() == clusters


def test_clusters_are_seeded(view: EmbeddingMap) -> None:
    vectors = np.repeat(np.eye(4), view.nodes.n_nodes // 4 + 1, axis=0)[: view.nodes.n_nodes]
    first = view.cluster(vectors, k=4)
    assert first.equals(view.cluster(vectors, k=4))
    assert len(first.groupby(vectors.argmax(1)).agg(lambda part: part.iloc[0]).unique()) == 4
    assert view.columns["cluster"].equals(first)


def test_the_morph_ends_in_every_space(view: EmbeddingMap) -> None:
    chart = view.morph(steps=4)
    assert len(chart.frames) == 5
    np.testing.assert_allclose(chart.frames[-1].data[0].x, view.spaces["final"]["x"], atol=1e-6)
    middle = (view.spaces["text"]["x"] + view.spaces["final"]["x"]) / 2
    np.testing.assert_allclose(chart.frames[2].data[0].x, middle, atol=1e-6)
    layout = chart.to_plotly_json()["layout"]
    for name in ("x", "y"):
        places = np.concatenate([frame.data[0][name] for frame in chart.frames])
        low, high = layout[f"{name}axis"]["range"]
        assert low < places.min() < places.max() < high


def test_spaces_are_those_of_the_run(
    data: Dataset, runs: dict[str, list[Run]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs["spike"][0]
    spaces, model = node_spaces(run, device="cpu"), run.model
    assert isinstance(model, Spike)
    with torch.no_grad():
        nodes = torch.cat([model.user_embedding, model.entity_embedding])
        profiles = model.projected(None, 1)[0]
        final = torch.cat(model.node_embeddings())
    np.testing.assert_allclose(spaces["injected"], torch.add(nodes, profiles, alpha=model.config.rho), atol=1e-6)
    np.testing.assert_allclose(spaces["final"], final, atol=1e-6)
    vectors = data.vectors()
    np.testing.assert_array_equal(spaces["text"], torch.cat([vectors.user, vectors.entity]))
    with pytest.raises(DataError, match="no SPiKE"):
        node_spaces(runs["lightgcn"][0])
    monkeypatch.setattr(embedding_map, "umap_coordinates", lambda rows: pd.DataFrame(rows[:, :2], columns=["x", "y"]))
    view = views.map(run, ("text", "final"), device="cpu")
    assert list(view.spaces) == ["text", "final"]
    assert view.colour == "kind"
    assert "cluster" in view.columns


def test_the_panel_recolours_without_sending_coordinates(view: EmbeddingMap) -> None:
    panel = view.panel().parts
    chart = panel["map"]
    before = chart.data[0].x
    panel["colour"].value = "relation: genre"
    assert chart.data[0].x is before
    assert chart.data[0].marker.color.tolist() == view.colouring.codes.tolist()
    legend = chart.layout.annotations[-1].text
    assert all(name in legend for name in ("comedy", "western", "horror", "musical", OTHER))
    panel["colour"].value = popularity(view)
    assert chart.layout.coloraxis.showscale
    assert "●" not in chart.layout.annotations[-1].text


def test_an_export_holds_what_the_maps_show(
    view: EmbeddingMap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    view.colour = "relation: genre"
    found, selected = view.search("comedy film 1"), view.select([0, 70])
    table = written(view, tmp_path)
    assert table.loc[table["found"], "node"].tolist() == sorted(found)
    assert table.loc[table["selected"], "node"].tolist() == selected["node"].tolist()
    assert table["relation: genre"].tolist() == view.columns["relation: genre"].tolist()
    np.testing.assert_allclose(table[["final x", "final y"]], view.spaces["final"], atol=1e-5)
    panels: list[Any] = list(view.drawing.axes)
    first, second = panels
    assert len(first.collections[0].get_offsets()) == view.nodes.n_nodes
    assert len(second.collections[1].get_offsets()) == len({*found, 0, 70})
    panel = view.panel().parts
    for colour in ("kind", popularity(view)):
        panel["colour"].value = colour
        panel["export"].click()
    names = [file.name for file in paths.figures_root().iterdir()]
    assert [name in panel["exported"].value for name in sorted(names)] == [False, False, True, True]

    def full(*_: object, **__: object) -> None:
        raise StorageError("no space is left for <figures>")

    monkeypatch.setattr(style, "export", full)
    panel["export"].click()
    assert panel["exported"].value == "no space is left for &lt;figures&gt;"


def test_hostile_names_are_text(hostile: Dataset, tmp_path: Path) -> None:
    view = EmbeddingMap(hostile, {HOSTILE: points(hostile)}, {HOSTILE: pd.Series([HOSTILE] * len(points(hostile)))})
    view.colour = HOSTILE
    harmless(view, view.drawing)
    safe(view.morph(2).to_json())
    assert written(view, tmp_path)["label"][0] == HOSTILE
    assert view.drawing.axes[0].get_title().startswith("<img")
