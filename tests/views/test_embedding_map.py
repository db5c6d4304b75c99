from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

from spike_kit.base import paths
from spike_kit.base.errors import ConfigError, DataError
from spike_kit.base.seeds import numpy_generator
from spike_kit.data.dataset import Dataset, create_dataset
from spike_kit.experiments.run import RunConfig, load_model, run
from spike_kit.figures.style import COLOURS
from spike_kit.models.spike import Spike
from spike_kit.profiles.template import TEMPLATE, template_profiles
from spike_kit.views.embedding_map import OTHER, Colouring, EmbeddingMap, map_of_run, node_spaces
from spike_kit.views.embedding_map_panel import map_panel

HOSTILE = '<img src=x onerror="alert(1)"> </script> $x$'


def points(data: Dataset, seed: int = 0) -> pd.DataFrame:
    n = len(data.users) + len(data.entities)
    return pd.DataFrame(numpy_generator(seed, "points").normal(size=(n, 2)), columns=["x", "y"])


@pytest.fixture
def view(data: Dataset) -> EmbeddingMap:
    return EmbeddingMap(data, {"text": points(data), "final": points(data, 1)})


def test_categories_and_numbers_are_coloured() -> None:
    kinds = Colouring.of(pd.Series(["a"] * 3 + ["b"] * 2 + [None, "c"]))
    assert kinds.names == ("a", "b", "c", OTHER)
    assert kinds.codes.tolist() == [0, 0, 0, 1, 1, 3, 2]
    many = Colouring.of(pd.Series([f"v{n}" for n in range(20) for _ in range(20 - n)]))
    assert len(many.names) == len(COLOURS)
    assert (many.codes == len(COLOURS) - 1).sum() == sum(range(1, 14))
    numbers = Colouring.of(pd.Series([1.5, np.nan, 3]))
    assert numbers.names == ()
    assert numbers.codes[[0, 2]].tolist() == [1.5, 3]
    scale = kinds.marker["colorscale"]
    assert [position for position, _ in scale] == sorted(position for position, _ in scale)


def test_columns_come_from_the_tables(data: Dataset, view: EmbeddingMap) -> None:
    assert {"kind", "relation: genre", "relation: director"} <= set(view.columns)
    genre = view.columns["relation: genre"]
    assert genre[0] == OTHER
    assert genre[view.nodes.n_users] == "comedy"
    popularity = next(column for name, column in view.columns.items() if name.startswith("popularity"))
    assert popularity[0] == pytest.approx(np.log10(11))
    with pytest.raises(ConfigError, match="no column 'nope'"):
        view.recolour("nope")
    with pytest.raises(DataError, match="has 3 rows"):
        EmbeddingMap(data, {"text": points(data).head(3)})


def test_search_and_selection_make_the_table(view: EmbeddingMap) -> None:
    found = view.search("comedy film 1")
    assert view.table["label"].tolist() == [view.nodes.labels[node] for node in found]
    assert view.table["profile"][0].startswith("Comedy film 1")
    rings = [trace for trace in view.figure.data if trace.marker.symbol == "circle-open"]
    assert [len(ring.x) for ring in rings] == [len(found)] * 2
    table = view.select([0, 70, 10**6])
    assert table["node"].tolist() == [0, 70]
    assert view.search("zzz") == []


def test_clusters_are_seeded(view: EmbeddingMap) -> None:
    vectors = np.repeat(np.eye(4), view.nodes.n_nodes // 4 + 1, axis=0)[: view.nodes.n_nodes]
    first = view.cluster(vectors, k=4)
    assert first.equals(view.cluster(vectors, k=4))
    assert len(first.groupby(vectors.argmax(1)).agg(lambda part: part.iloc[0]).unique()) == 4
    assert view.colour == "cluster"
    assert "cluster" in view.columns


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
    assert [button["label"] for button in layout["updatemenus"][0]["buttons"]] == ["Play", "Pause"]


def test_spaces_are_those_of_the_run(data: Dataset) -> None:
    done = run(RunConfig(dataset="world", training={"epochs": 1}), progress=False)
    spaces = node_spaces(data, done)
    model = load_model(done, data)
    assert isinstance(model, Spike)
    with torch.no_grad():
        nodes = torch.cat([model.user_embedding, model.entity_embedding])
        profiles = model._projected(None, 1)[0]
        final = torch.cat(model.node_embeddings())
    np.testing.assert_allclose(spaces["injected"], nodes + model.config.rho * profiles, atol=1e-6)
    np.testing.assert_allclose(spaces["final"], final, atol=1e-6)
    view = map_of_run(data, done, ("text", "final"))
    assert list(view.spaces) == ["text", "final"]
    assert view.colour == "kind"
    other = run(RunConfig(model="bprmf", dataset="world", training={"epochs": 1}), progress=False)
    with pytest.raises(DataError, match="no SPiKE"):
        node_spaces(data, other)


def test_the_panel_recolours_without_sending_coordinates(view: EmbeddingMap) -> None:
    panel = map_panel(view).panel
    before = panel.chart.data[0].x
    panel.colour.value = "relation: genre"
    assert panel.chart.data[0].x is before
    assert panel.chart.data[0].marker.color.tolist() == view.colouring.codes.tolist()
    names = {trace.name for trace in panel.chart.data[4:] if trace.visible}
    assert names == {"comedy", "western", "horror", "musical", OTHER}
    panel.colour.value = next(name for name in view.columns if name.startswith("popularity"))
    assert panel.chart.data[0].marker.showscale
    assert not any(trace.visible for trace in panel.chart.data[4:])


def test_the_panel_searches_and_selects(view: EmbeddingMap) -> None:
    panel = map_panel(view).panel
    panel.text.value = "western film"
    assert "Western film" in panel.table.value
    assert len(panel.chart.data[2].x) == len(view.found)
    panel._clicked(None, type("Points", (), {"point_inds": [0, 1]})())
    assert view.nodes.labels[1] in panel.table.value
    panel.text.value = "<b>nobody"
    assert "nothing is called" in panel.table.value
    assert "<b>nobody" not in panel.table.value
    panel.clear.click()
    assert view.selected == view.found == []


def test_hostile_names_are_text(data: Dataset) -> None:
    entities = data.entities.assign(label=HOSTILE, kind=data.entities["kind"])
    tables = dataclasses.replace(data.tables, items=data.items.assign(label=HOSTILE), entities=entities)
    named = create_dataset(paths.data_root() / "named", "named", tables, sources=(), build={}, funnel=())
    named.write_profiles(TEMPLATE, template_profiles(named).assign(text=HOSTILE))
    view = EmbeddingMap(named, {HOSTILE: points(named)}, {HOSTILE: pd.Series([HOSTILE] * len(points(named)))})
    panel = map_panel(view).panel
    panel.colour.value = HOSTILE
    panel.text.value = "onerror"
    for html in (
        str(view.figure.to_json()),
        str(view.morph(2).to_json()),
        panel.table.value,
        *panel.view.hovers[:99:9],
    ):
        assert "<img" not in html
        assert "</script" not in html
