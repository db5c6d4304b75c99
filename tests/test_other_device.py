"""What evaluates, compares or explains a model works where the model is, and gives there what it gives here."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from spike_kit.data.dataset import Dataset
from spike_kit.evaluation.beyond import BeyondAccuracy, listed_items, measure_lists, recommended
from spike_kit.evaluation.groups import by_train_interactions
from spike_kit.evaluation.ranking import RankingTask, evaluate, recommendations
from spike_kit.evaluation.signal import signal_table
from spike_kit.experiments.run import Run, RunConfig, load_model, run
from spike_kit.experiments.unseen import score_new
from spike_kit.models import MODELS
from spike_kit.models.base import FixedEmbeddings, Recommender
from spike_kit.results.report import lists_markdown, ranked_table
from spike_kit.views import embedding_map, graph_view
from spike_kit.views.explanation import Explanation
from spike_kit.views.item_explorer import NewItem
from tests.conftest import SHORT, several
from tests.other_device import Elsewhere, other_device
from tests.world import World


def build(name: str, world: World, device: str | torch.device) -> Recommender:
    cls = MODELS[name]
    config, generator = cls.presets["recommended"].model, torch.Generator().manual_seed(0)
    made = cls(config, world.graph.to(device), world.vectors, generator)
    return made.eval() if isinstance(made, torch.nn.Module) else made


def test_the_other_device_refuses_tensors_of_the_cpu() -> None:
    rows = torch.arange(3)
    with other_device() as device:
        there = rows.to(device)
        assert isinstance(there + there, Elsewhere)
        assert (there + 1).cpu().tolist() == [1, 2, 3]
        assert not isinstance(there.cpu(), Elsewhere)
        for mixed in (lambda: there + rows, lambda: there.index_select(0, rows), lambda: torch.cat([rows, there])):
            with pytest.raises(RuntimeError, match="same device"):
                mixed()
        with pytest.raises(TypeError, match="no numpy array"):
            there.numpy()


@pytest.mark.parametrize("name", MODELS)
def test_every_model_is_ranked_where_it_is(world: World, name: str) -> None:
    """Whether the task was made there or here."""
    task = RankingTask.from_tables(world.tables, "test")
    here = build(name, world, "cpu")
    expected = evaluate(here, task), recommended(here, task, 5), listed_items(here, task, 5)
    with other_device() as device:
        model = build(name, world, device)
        assert isinstance(model.score(torch.zeros(1, dtype=torch.long, device=device)), Elsewhere)
        for where in (device, torch.device("cpu")):
            means, per_user = evaluate(model, task.to(where))
            lists, listed = recommended(model, task.to(where), 5), listed_items(model, task.to(where), 5)
            assert means == expected[0][0]
            pd.testing.assert_frame_equal(per_user, expected[0][1])
            assert np.array_equal(lists, expected[1])
            assert listed == expected[2]


def test_measures_beyond_accuracy(data: Dataset, new_data: Dataset, world: World, device: torch.device) -> None:
    """On the devices of this machine, and on the other one."""

    def measured(where: torch.device) -> list[Any]:
        models = [(name, build(name, world, where)) for name in ("bprmf", "popularity", "text_knn")]
        tables = measure_lists(data, models, k=5)
        items = FixedEmbeddings(*(table.to(where) for table in embeddings))
        signal = signal_table(data, {"template": data.vectors()}, device=where)
        return [*tables.values(), by_train_interactions(new_data, items, "valid"), signal]

    generator = torch.Generator().manual_seed(0)
    embeddings = [torch.randn(len(rows), 4, generator=generator) for rows in (new_data.users, new_data.items)]
    expected = measured(torch.device("cpu"))
    assert len(measured(device)) == len(expected)
    with other_device() as other:
        for found, wanted in zip(measured(other), expected, strict=True):
            assert found.equals(wanted) if isinstance(wanted, pd.DataFrame) else found == wanted
    assert BeyondAccuracy(data).task.users.device.type == "cpu"


def test_stored_runs_are_ranked_and_listed_anew(data: Dataset, runs: dict[str, list[Run]]) -> None:
    finished = [Run(one.path) for one in several(runs)]

    def tables(where: torch.device) -> list[Any]:
        again = [Run(one.path) for one in finished]
        model = load_model(again[0], data, where)
        ranked = ranked_table(data, again, "test", ["ndcg", "mrr"], [3, 60], where)
        return [ranked, lists_markdown(data, again, "valid", 5, where), recommendations(data, model, 3).to_csv()]

    expected = tables(torch.device("cpu"))
    with other_device() as other:
        assert tables(other) == expected


def test_models_without_training_are_run(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole run, as far as no gradient is needed."""
    monkeypatch.setattr("spike_kit.experiments.run.find_run", lambda _: None)
    for model in ("itemknn", "text_knn"):
        here = run(RunConfig(model=model, dataset="world"), progress=False)
        with other_device() as device:
            there = run(RunConfig(model=model, dataset="world", seed=1), device, progress=False)
        assert {split: there.metrics[split] for split in ("valid", "test", "listed")} == {
            split: here.metrics[split] for split in ("valid", "test", "listed")
        }
        assert there.device == "meta"


def test_views_explain_where_the_model_is(data: Dataset, runs: dict[str, list[Run]], monkeypatch: Any) -> None:
    one = runs["spike"][0]
    monkeypatch.setattr(graph_view, "resolve_device", torch.device)

    def shown(where: str) -> list[Any]:
        why = Explanation.of(Run(one.path), 3, where, k=5)
        removals = why.removals(why.items[0])[:3]
        graph = graph_view.GraphView.of(Run(one.path), where)
        spaces = embedding_map.node_spaces(Run(one.path), ("text", "injected", "final"), where)
        parts = [why.table, why.what_if(*removals), why.influence(why.items[0], removals), why.paths(why.items[0])]
        return [*parts, graph.edges, *map(pd.DataFrame, spaces.values())]

    expected = shown("cpu")
    with other_device() as device:
        for found, wanted in zip(shown(str(device)), expected, strict=True):
            pd.testing.assert_frame_equal(found, wanted)


def test_new_items_are_scored_where_the_model_is(new_data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_view, "resolve_device", torch.device)
    monkeypatch.setattr("spike_kit.experiments.unseen.encode_texts", lambda *_, **__: np.ones((1, 24), np.float32))
    done = run(RunConfig(dataset="new", training=SHORT), progress=False)
    text = dict.fromkeys(["template"], "a film")

    def shown(where: str) -> list[pd.DataFrame]:
        view = NewItem(Run(done.path), device=where)
        parts = [view.users(), view.what_if(next(iter(view.removals()))), view.influence()]
        view.write(text, [(0, 0)])
        return [*parts, view.users(), score_new(Run(done.path), text, [(0, 0)], where)]

    expected = shown("cpu")
    with other_device() as device:
        for found, wanted in zip(shown(str(device)), expected, strict=True):
            pd.testing.assert_frame_equal(found, wanted)
