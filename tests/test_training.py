import dataclasses
import inspect
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError

from spike_kit.base import paths, storage
from spike_kit.base.config import TrainingConfig
from spike_kit.base.errors import DataError, StorageError
from spike_kit.data.dataset import Dataset, create_dataset
from spike_kit.data.graph import Graph
from spike_kit.data.vectors import ProfileVectors
from spike_kit.evaluation.ranking import RankingTask, evaluate
from spike_kit.experiments import run as experiment
from spike_kit.experiments.run import Run, RunConfig, describe, finished_runs, load_model, run
from spike_kit.models import MODELS
from spike_kit.models.base import TrainedRecommender
from spike_kit.models.bprmf import BprMf
from spike_kit.profiles.encode import DEFAULT_ENCODER
from spike_kit.profiles.template import TEMPLATE
from spike_kit.training.checkpoint import History
from spike_kit.training.loop import MONITOR, fit, learning_rate
from spike_kit.training.sampling import NegativeSampler, epoch_batches
from tests.test_storage import fill_the_disk
from tests.world import World, build

Runs = dict[str, list[Run]]
QUICK = {"epochs": 4, "batch_size": 256, "eval_every": 1}


def quick(model: str = "spike", **changes: Any) -> RunConfig:
    return RunConfig(model=model, dataset="world", training=QUICK).replace(**changes)


def fit_bprmf(world: World, config: TrainingConfig) -> tuple[TrainedRecommender, History]:
    model = build("bprmf", world)
    task = RankingTask.from_tables(world.tables, "valid")
    return model, fit(model, world.graph, task, config, seed=0, progress=False)


LONG = TrainingConfig(epochs=400, batch_size=256, learning_rate=0.05, patience=3)


def test_the_best_weights_are_kept_and_training_stops_early(world: World) -> None:
    model, history = fit_bprmf(world, LONG.replace(eval_every=2))
    frame = history.frame()
    validated = frame.dropna(subset=[f"valid_{MONITOR}"])
    best: Any = validated[f"valid_{MONITOR}"].idxmax()
    assert history.best_epoch == validated["epoch"][best]
    assert frame["epoch"].tolist() == list(range(1, history.best_epoch + 2 * 3 + 1))
    assert len(frame) < 400
    means, _ = evaluate(model, RankingTask.from_tables(world.tables, "valid"))
    assert means[MONITOR] == pytest.approx(validated[f"valid_{MONITOR}"][best], abs=1e-12)


def test_the_last_weights_are_kept_where_asked_and_patience_counts_from_the_best(world: World) -> None:
    for epochs, patience in ((400, 3), (5, 0)):
        _, history = fit_bprmf(world, LONG.replace(keep="last", epochs=epochs, patience=patience))
        assert history.best_epoch == len(history.rows)
        assert (len(history.rows) < epochs) is (patience > 0)


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 2, [0.5, 1, 1, 1, 1, 1]),
        ("linear", 2, [0.5, 1, 1, 0.75, 0.5, 0.25]),
        ("cosine", 2, [0.5, 1, 1, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5]),
        ("cosine", 8, [1 / 8, 2 / 8, 3 / 8, 4 / 8]),
        ("cosine", 4, [1 / 4, 2 / 4, 3 / 4, 1]),
    ],
)
def test_the_learning_rate_warms_up_and_falls(schedule: str, warmup: int, expected: list[float]) -> None:
    config = TrainingConfig.parse({"learning_rate": 0.2, "schedule": schedule, "warmup_steps": warmup})
    rates = [learning_rate(config, step, len(expected)) for step in range(len(expected))]
    assert rates == pytest.approx([0.2 * share for share in expected])


def test_logged_terms_sum_to_the_logged_loss(runs: Runs) -> None:
    history = runs["spike"][0].history
    terms = history[["cosine_softmax", "l2", "matching"]]
    assert (history["loss"] - terms.sum(axis=1)).abs().max() < 1e-12
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]


def test_a_run_folder_holds_everything_and_is_never_made_twice(data: Dataset) -> None:
    first = run(quick(), progress=False)
    stamp = (first.path / "metrics.json").stat().st_mtime_ns
    assert run(quick(), progress=False).path == first.path
    assert (first.path / "metrics.json").stat().st_mtime_ns == stamp
    per_user = first.per_user.query("split == 'test'")
    assert len(per_user) == len(data.users)
    assert per_user["ndcg@20"].mean() == pytest.approx(first.metrics["test"]["ndcg@20"])


def test_the_commit_is_marked_if_the_package_differs_and_only_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "spike_kit" / "experiments" / "run.py"
    module.parent.mkdir(parents=True)
    module.touch()
    monkeypatch.setattr(experiment, "__file__", str(module))
    assert experiment.commit() is None
    who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    for words in (["init", "--quiet"], ["add", "."], [*who, "commit", "--quiet", "--message", "a"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    clean = experiment.commit()
    assert re.fullmatch("[0-9a-f]{40}", str(clean))
    (tmp_path / "results.md").touch()
    assert experiment.commit() == clean
    (module.parent / "new.py").touch()
    assert experiment.commit() == f"{clean}+"


def path_of(config: RunConfig, data: Dataset) -> Path:
    return experiment.run_path(describe(config, data))


def save_other_vectors(data: Dataset, world: World) -> None:
    file = data.embeddings_path(TEMPLATE, DEFAULT_ENCODER)
    ProfileVectors(world.vectors.user + 1, world.vectors.entity).save(file, {})


def test_other_settings_or_vectors_that_are_read_are_another_run(data: Dataset, world: World) -> None:
    changes: list[dict[str, Any]] = [{}, {"seed": 1}, {"settings": {"rho": 0.3}}, {"model": "bprmf"}]
    configs = [quick(**change) for change in (*changes, {"training": {**QUICK, "learning_rate": 0.1}})]
    before = [path_of(config, data) for config in configs]
    assert len(set(before)) == len(before)
    save_other_vectors(data, world)
    kept = [path_of(config, data) == path for config, path in zip(configs, before, strict=True)]
    assert kept == [config.model == "bprmf" for config in configs]


def test_another_version_is_another_run(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    before = run(quick("bprmf"), progress=False)
    assert before.config["versions"] == {"model": 1, "graph": 1, "training": 1, "protocol": 1}
    monkeypatch.setattr(BprMf, "version", 2)
    after = run(quick("bprmf"), progress=False)
    assert after.path != before.path
    assert [done.path for done in finished_runs(data)] == [after.path]


class Relative(BprMf):
    """A model that somebody registers at run time."""


def test_neither_an_edited_file_nor_a_new_model_is_another_run(
    data: Dataset, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """What names a run is declared: settings, hashes of the data, versions; no byte of a source file."""
    before = path_of(quick("bprmf"), data)
    MODELS["relative"] = Relative
    request.addfinalizer(lambda: MODELS.pop("relative"))
    for owner, reader in ((Path, "read_bytes"), (inspect, "getsource")):
        monkeypatch.setattr(owner, reader, lambda *_: pytest.fail("a file of the package is read"))
    monkeypatch.setattr(BprMf, "__doc__", "Edited.")
    assert path_of(quick("bprmf"), data) == before
    assert path_of(quick("relative"), data) != before


def test_a_run_from_before_versions_is_found_as_version_1(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    made = run(quick("bprmf"), progress=False)
    old = {name: value for name, value in made.config.items() if name != "versions"} | {"code_sha256": "ab" * 32}
    path = made.path.rename(experiment.run_path(old))
    storage.write_json(path / experiment.CONFIG, old)
    assert run(quick("bprmf"), progress=False).path == path
    assert [done.path for done in finished_runs(data)] == [path]
    monkeypatch.setattr(experiment, "PROTOCOL_VERSION", 2)
    assert finished_runs(data) == []
    assert run(quick("bprmf"), progress=False).path != path


@pytest.mark.parametrize("model", ["spike", "lightgcn", "bprmf", "popularity"])
def test_a_stored_model_gives_the_stored_metrics(data: Dataset, runs: Runs, model: str) -> None:
    done = runs[model][0]
    means, _ = evaluate(load_model(done), RankingTask.from_tables(data.tables, "test"))
    assert means == pytest.approx(done.metrics["test"], abs=1e-12)


def left() -> set[str]:
    """Everything under data/runs but locks, by its place in the run folder."""
    root = paths.runs_root()
    found = (path.relative_to(root).parts for path in root.rglob("*"))
    return {"/".join(parts[1:]) for parts in found if not parts[0].endswith(".lock")}


def test_a_full_disk_leaves_no_run_folder(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        fill_the_disk(patch)
        with pytest.raises(StorageError, match="disk is full"):
            run(quick("bprmf"), progress=False)
    assert left() == set()

    def no_space(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(experiment, "save_file", no_space)
    with pytest.raises(StorageError, match="disk is full"):
        run(quick("bprmf"), progress=False)
    assert experiment.list_runs() == []
    assert {name.partition("/")[0] for name in left()} == {"", "state"}


def test_a_model_is_not_loaded_onto_another_data_set_or_other_vectors(data: Dataset, world: World, runs: Runs) -> None:
    save_other_vectors(data, world)
    with pytest.raises(DataError, match="was trained with other vectors of template by all-MiniLM-L6-v2"):
        load_model(runs["spike"][0])
    assert {done.config["model"] for done in finished_runs(data)} == {"popularity", "lightgcn", "bprmf"}
    manifest = storage.read_json(data.path / paths.MANIFEST)
    storage.write_json(data.path / paths.MANIFEST, manifest | {"notes": ["another build"]})
    with pytest.raises(DataError, match="trained on another build of data set world"):
        load_model(runs["bprmf"][0])


def test_vectors_of_older_texts_are_refused(data: Dataset) -> None:
    profiles = data.profiles()
    profiles.loc[0, "text"] = "rewritten"
    data.write_profiles(TEMPLATE, profiles)
    with pytest.raises(DataError, match=r"(?s)belong to older texts.*spike-kit encode world"):
        run(quick(), progress=False)
    assert run(quick("bprmf"), progress=False).path.is_dir()


@pytest.mark.parametrize("split", ["valid", "test"])
def test_an_empty_split_is_an_error_before_training(data: Dataset, world: World, split: str) -> None:
    rows = world.tables.interactions
    tables = dataclasses.replace(world.tables, interactions=rows[rows["split"] != split].reset_index(drop=True))
    create_dataset(paths.data_root() / "cut", "cut", tables, sources=(), build={}, funnel=())
    with pytest.raises(DataError, match="nothing to rank"):
        run(quick("bprmf", dataset="cut"), progress=False)
    assert left() == set()


def test_the_test_split_does_not_touch_training(data: Dataset, world: World) -> None:
    """Moving test items elsewhere changes no weight."""
    first = run(quick(), progress=False).tensors()
    rows = world.tables.interactions.copy()
    is_test = rows["split"] == "test"
    rows.loc[is_test, "item"] = (rows.loc[is_test, "item"] + 12) % len(world.tables.items)

    moved = dataclasses.replace(world.tables, interactions=rows)
    create_dataset(paths.data_root() / "moved", "moved", moved, sources=(), build={}, funnel=())
    target = Dataset.open("moved")
    target.write_profiles(TEMPLATE, data.profiles())
    world.vectors.save(target.embeddings_path(TEMPLATE, DEFAULT_ENCODER), {})
    second = run(quick(dataset="moved"), progress=False).tensors()
    assert all(torch.equal(first[name], second[name]) for name in first)


def graph_of(pairs: set[tuple[int, int]], n_users: int, n_items: int) -> Graph:
    return Graph.from_arrays(
        n_users=n_users,
        n_items=n_items,
        n_entities=n_items,
        n_relations=0,
        interactions=np.array(sorted(pairs)).reshape(-1, 2),
        triples=np.empty((0, 3), dtype=np.int64),
    )


@given(st.sets(st.tuples(st.integers(0, 4), st.integers(0, 5)), min_size=1, max_size=30), st.integers(0, 2**31))
def test_a_negative_is_never_a_train_positive(pairs: set[tuple[int, int]], seed: int) -> None:
    graph = graph_of(pairs | {(5, 6)}, 6, 7)
    sampler = NegativeSampler(graph)
    users = torch.arange(5).repeat(40)
    negatives = sampler.sample(users, torch.Generator().manual_seed(seed))
    assert ((negatives >= 0) & (negatives < 7)).all()
    positives = set(zip(graph.train_user.tolist(), graph.train_item.tolist(), strict=True))
    assert positives.isdisjoint(zip(users.tolist(), negatives.tolist(), strict=True))


def test_negatives_are_uniform_over_unseen_items() -> None:
    others = {(1, item) for item in (0, 3, 4, 6, 7)}
    graph = graph_of({(0, 1), (0, 2), (0, 5), *others}, 2, 8)
    draws = NegativeSampler(graph).sample(torch.zeros(50_000, dtype=torch.int64), torch.Generator().manual_seed(0))
    counts = torch.bincount(draws, minlength=8)
    assert counts[[1, 2, 5]].sum() == 0
    assert counts[[0, 3, 4, 6, 7]].min() > 9_500
    assert counts[[0, 3, 4, 6, 7]].max() < 10_500


def test_a_user_who_has_seen_everything_is_an_error() -> None:
    with pytest.raises(DataError, match="users 1 have every item"):
        NegativeSampler(graph_of({(1, 0), (1, 1), (0, 0)}, 2, 2))


def test_an_epoch_holds_every_interaction_once_and_redraws_negatives(world: World) -> None:
    sampler, generator = NegativeSampler(world.graph), torch.Generator().manual_seed(0)
    epochs = [list(epoch_batches(world.graph, sampler, 100, generator)) for _ in range(2)]
    for batches in epochs:
        pairs = [pair for b in batches for pair in zip(b.users.tolist(), b.positives.tolist(), strict=True)]
        expected = zip(world.graph.train_user.tolist(), world.graph.train_item.tolist(), strict=True)
        assert sorted(pairs) == sorted(expected)
    first, second = (torch.cat([batch.negatives for batch in batches]) for batches in epochs)
    assert not torch.equal(first, second)
