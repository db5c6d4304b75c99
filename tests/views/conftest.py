"""What tests of the views share: a hostile world, and checks of what is shown and written."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from spike_kit.base import paths
from spike_kit.base.seeds import torch_generator
from spike_kit.data.dataset import Dataset, create_dataset
from spike_kit.experiments.run import Run
from spike_kit.models.spike import Spike, SpikeConfig
from spike_kit.models.spike_explainer import SpikeExplainer
from spike_kit.profiles.template import TEMPLATE, template_profiles
from tests.world import World

HOSTILE = '<img src=x onerror="alert(1)"> </script> $x$'


@pytest.fixture
def spike_run(runs: dict[str, list[Run]]) -> Run:
    return runs["spike"][0]


@pytest.fixture
def explainer(world: World) -> SpikeExplainer:
    """A small SPiKE as it was initialised."""
    config = SpikeConfig(dim=8, layers=1, loss="cosine_softmax", user_to_item="add")
    return SpikeExplainer(Spike(config, world.graph, world.vectors, torch_generator(0, "init")))


@pytest.fixture
def hostile(data: Dataset) -> Dataset:
    """The tiny world, where every name and every profile tries to run something."""
    names = {name: getattr(data, name).assign(label=HOSTILE) for name in ("users", "items", "entities", "relations")}
    named = changed(data, **names)
    named.write_profiles(TEMPLATE, template_profiles(named).assign(text=f"{HOSTILE} Peculiar onerror."))
    return named


def changed(data: Dataset, **tables: pd.DataFrame) -> Dataset:
    """The tiny world with other tables, under the name ``changed``."""
    path = paths.data_root() / "changed"
    return create_dataset(path, "changed", dataclasses.replace(data.tables, **tables), sources=(), build={}, funnel=())


def points(data: Dataset, seed: int = 0) -> pd.DataFrame:
    """Places of all nodes on a map that was not laid out."""
    n = len(data.users) + len(data.entities)
    return pd.DataFrame(np.random.default_rng(seed).normal(size=(n, 2)), columns=["x", "y"])


def safe(*texts: object) -> None:
    """Check that nothing in what is shown is read as HTML."""
    for text in map(str, texts):
        assert "<img" not in text
        assert "</script" not in text


def harmless(view: Any, *drawings: Any) -> None:
    """Check that hostile names are text in all that a panel shows, also after search and clicks, and on paper."""
    parts = view.panel().parts
    for part in parts.values():
        if type(part).__name__ == "Text":
            part.value = "onerror"
        elif type(part).__name__ == "SelectMultiple":
            part.index = (0,)
    for name in {"what_if", "export"} & parts.keys():
        parts[name].click()
    html = [part.value for part in parts.values() if type(part).__name__ == "HTML"]
    safe(*html, *(part.to_json() for part in parts.values() if hasattr(part, "to_json")))
    assert any("&lt;img" in text for text in html)
    assert not any("$x$" in text.get_text() for drawing in drawings for text in drawing.findobj(Text))
    assert "export" not in parts or "written: " in parts["exported"].value


def whole(box: Any) -> None:
    """Check that the tabs of a panel are as wide as their titles."""
    style, (tabs,) = box.children[0], [part for part in box.children if type(part).__name__ == "Tab"]
    assert "spike-tabs" in tabs._dom_classes
    assert ".spike-tabs > .lm-TabBar .lm-TabBar-tab { min-width: max-content" in style.value
    assert style.layout.display == "none"


def written(view: Any, folder: Path) -> pd.DataFrame:
    """Check that an export is a PDF and a CSV, the same bytes again; gives the table of the CSV."""
    files, again = view.export(folder / "a"), view.export(folder / "b")
    assert [file.suffix for file in files] == [".pdf", ".csv"]
    assert files[0].read_bytes().startswith(b"%PDF")
    assert [file.name for file in files] == [file.name for file in again]
    assert [file.read_bytes() for file in files] == [file.read_bytes() for file in again]
    assert all(file.name.isascii() and "<" not in file.name for file in files)
    return pd.read_csv(files[1])
