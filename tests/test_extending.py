"""The examples of CONTRIBUTING.md, run as they stand there on the tiny world."""

import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pandas as pd
import pytest
import torch

import spike_kit as sk
from spike_kit.base import paths
from spike_kit.base.errors import Registry
from spike_kit.data import sources
from spike_kit.data.dataset import Dataset
from spike_kit.evaluation import ranking
from spike_kit.figures import gallery
from spike_kit.models import MODELS
from spike_kit.profiles import ENCODERS
from spike_kit.views import VIEWS

GUIDE = Path(__file__).resolve().parents[1] / "CONTRIBUTING.md"
REGISTRIES = (MODELS, ENCODERS, VIEWS, ranking.METRICS, gallery.FIGURES, sources.SOURCES, sources.RECIPES)


def examples(what: str) -> list[str]:
    """Python blocks of a section of the guide."""
    section = GUIDE.read_text(encoding="utf-8").split(f"\n## {what}\n")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)


def run_example(code: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(code.replace("ml-100k", "world"), str(GUIDE), "exec"), names)
    return names


@pytest.fixture(autouse=True)
def registries() -> Iterator[None]:
    """What an example registers is gone after its test."""
    with ExitStack() as stack:
        for registry in REGISTRIES:
            entries: dict[str, Any] = registry.data if isinstance(registry, Registry) else registry
            stack.enter_context(patch.dict(entries))
        yield


def test_a_model_in_a_package_of_ones_own(data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, use = examples("A model")
    package = tmp_path / "elsewhere" / "mylab"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "biased_mf.py").write_text(module, encoding="utf-8")
    monkeypatch.syspath_prepend(package.parent)
    for name in ("mylab", "mylab.biased_mf"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    run = run_example(use)["run"]
    assert run.model.bias.abs().max() > 0
    assert run.history["epoch"].max() == 20
    assert sk.evaluate(run)["ndcg@20"] == pytest.approx(run.test["ndcg@20"])
    assert sk.table(run)["model"].tolist() == ["Biased MF epochs=20"]
    assert sk.train("biased_mf", data, epochs=20).path == run.path


def test_an_encoder(data: Dataset) -> None:
    vectors = run_example(examples("A text encoder")[0])["vectors"]
    assert vectors.user.shape == (len(data.users), 256)
    run = sk.train("spike", data, encoder="words:256", epochs=1)
    assert run.config["encoder"] == "words:256"


def test_a_metric(data: Dataset) -> None:
    names = run_example(examples("A metric")[0])
    (value,) = names["table"]["map@10"]
    assert 0 < value < 1
    hits = ranking.ranking_metrics(torch.tensor([[True, False, True]]), torch.tensor([2]), (3,))
    assert float(hits["map@3"]) == pytest.approx((1 + 2 / 3) / 2)


def test_a_figure(data: Dataset) -> None:
    (line,) = run_example(examples("A figure")[0])["figure"].axes[0].lines
    assert sum(line.get_ydata()) == len(data.split("train"))


def test_a_view(data: Dataset) -> None:
    assert data.items["label"][0] in run_example(examples("A view")[0])["panel"].value


def test_a_reader(tmp_path: Path) -> None:
    raw = paths.data_root() / "raw" / "films"
    raw.mkdir(parents=True)
    pairs = [(user, (user + step) % 8) for user in range(8) for step in range(6)]
    pd.DataFrame(pairs, columns=["user", "item"]).assign(stars=5).to_csv(raw / "ratings.csv", index=False)
    films = pd.DataFrame({"item": range(8), "title": [f"Film {n}" for n in range(8)], "genres": "Drama|Comedy"})
    films.to_csv(raw / "films.csv", index=False)
    code = examples("A reader")[0].replace('"data/raw/films"', repr(str(raw)))
    data = run_example(code)["data"]
    assert (len(data.users), len(data.items), len(data.triples)) == (8, 8, 16)
    assert "{head} is a {tail} film." in data.relations["template"].tolist()
