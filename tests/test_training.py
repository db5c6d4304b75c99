import contextlib
import dataclasses
import inspect
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError

from spike_kit.base import devices, paths, storage
from spike_kit.base.config import TrainingConfig
from spike_kit.base.errors import DataError, StorageError, TrainingError
from spike_kit.data.dataset import Dataset, create_dataset
from spike_kit.data.graph import Graph
from spike_kit.data.vectors import ProfileVectors
from spike_kit.evaluation.ranking import RankingTask, evaluate
from spike_kit.experiments import run as experiment
from spike_kit.experiments import versions as declared
from spike_kit.experiments.archive import ROOT, archived_activity, read_archive
from spike_kit.experiments.run import Run, RunConfig, describe, finished_runs, load_model, run, train
from spike_kit.models import MODELS, losses
from spike_kit.models.base import Batch, TrainedRecommender
from spike_kit.models.bprmf import BprMf
from spike_kit.profiles.encode import DEFAULT_ENCODER
from spike_kit.profiles.template import TEMPLATE
from spike_kit.training import loop
from spike_kit.training.checkpoint import History
from spike_kit.training.loop import MONITOR, fit, learning_rate
from spike_kit.training.recorded import RecordedStep
from spike_kit.training.sampling import NegativeSampler, epoch_batches, holds_users, with_negatives
from tests.conftest import several
from tests.test_storage import fill_the_disk
from tests.world import World, build, make_world

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
    assert before.config["versions"] == {"model": 2, "graph": 1, "training": 1, "protocol": 1}
    monkeypatch.setattr(BprMf, "version", 3)
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
    monkeypatch.setattr(BprMf, "version", 1)
    made = run(quick("bprmf"), progress=False)
    old = {name: value for name, value in made.config.items() if name != "versions"} | {"code_sha256": "ab" * 32}
    path = made.path.rename(experiment.run_path(old))
    storage.write_json(path / experiment.CONFIG, old)
    assert run(quick("bprmf"), progress=False).path == path
    assert [done.path for done in finished_runs(data)] == [path]
    monkeypatch.setattr(declared, "PROTOCOL_VERSION", 2)
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


OTHERS = {(0, 0), (2, 3)}
FULL: list[tuple[set[int], list[str] | None, str]] = [
    ({1}, ["ann", "fan", "joe", "kim"], r"4 train .* \(user fan\).*--loss cosine_softmax"),
    ({1, 3}, ["ann", "fan", "joe", "kim"], r"8 train .* \(user fan, user kim\)"),
    ({3}, None, r"4 train .* \(user 3\)"),
]


def with_full(users: set[int]) -> Graph:
    """Four users and five items, of which nobody has the last; these users have all others."""
    return graph_of(OTHERS | {(user, item) for user in users for item in range(4)}, 4, 5)


@pytest.mark.parametrize(("users", "names", "message"), FULL)
def test_who_has_every_item_is_passed_over_with_a_warning(
    users: set[int], names: list[str] | None, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    graph = with_full(users)
    left = with_negatives(graph, names)
    assert set(zip(left.train_user.tolist(), left.train_item.tolist(), strict=True)) == OTHERS
    assert torch.equal(left.trained_items, graph.trained_items)
    assert re.search(message, caplog.text)
    negatives = NegativeSampler(graph).sample(torch.arange(4).repeat(50), torch.Generator().manual_seed(0))
    assert set(negatives.view(50, 4)[:, min(users)].tolist()) == {0, 1, 2, 3}


def test_nobody_is_passed_over_where_everybody_lacks_an_item(world: World, caplog: pytest.LogCaptureFixture) -> None:
    assert with_negatives(world.graph) is world.graph
    assert caplog.text == ""


@pytest.mark.parametrize(("pairs", "who"), [({(1, 0), (1, 1)}, "user 1"), ({(0, 0), (2, 0)}, "user 0, user 2")])
def test_nothing_left_to_learn_from_is_an_error(pairs: set[tuple[int, int]], who: str) -> None:
    with pytest.raises(DataError, match=rf"(?s)every user .*\({who}\).*-> .*cosine_softmax"):
        with_negatives(graph_of(pairs, 3, 4))


@pytest.fixture(scope="module")
def full_world(world: World) -> World:
    """The world in which the first user has every item in train."""
    rows = world.tables.interactions
    train, user = rows[rows["split"] == "train"], rows.iloc[:1]
    every = pd.concat([user.assign(item=item, split="train") for item in range(len(world.tables.items))])
    tables = dataclasses.replace(world.tables, interactions=pd.concat([every, train[train["user"] > 0]]))
    return dataclasses.replace(world, tables=tables, graph=Graph.from_tables(tables))


@pytest.mark.parametrize("loss", ["bpr", "softmax", "cosine_softmax"])
@pytest.mark.parametrize("model", [name for name in MODELS if issubclass(MODELS[name], TrainedRecommender)])
def test_every_model_learns_beside_a_user_who_has_every_item(
    full_world: World, model: str, loss: str, caplog: pytest.LogCaptureFixture
) -> None:
    built, valid = build(model, full_world, loss=loss, dim=4), RankingTask.from_tables(make_world().tables, "valid")
    history = fit(built, full_world.graph, valid, TrainingConfig(epochs=1, batch_size=10**8), 0, progress=False)
    assert history.steps == 1
    assert np.isfinite(history.rows[0]["loss"])
    assert ("passed over" in caplog.text) is (loss == "bpr")


def state_after(epoch: int, waited: int, **settings: Any) -> Any:
    return SimpleNamespace(epoch=epoch + 1, waited=waited, config=TrainingConfig.parse(settings))


@pytest.mark.parametrize(
    ("settings", "n", "epoch", "waited", "ends"),
    [
        ({}, 40_000, 22, 10, True),
        ({}, 40_000, 22, 9, False),
        ({"patience": 0}, 40_000, 299, 200, False),
        ({}, 4_000, 22, 10, False),  # 20 steps since the best
        ({}, 4_000, 60, 25, True),
        ({}, 1_000, 60, 25, False),  # a quarter of a batch each
        ({"batch_size": 65_536, "eval_every": 5}, 41_276, 85, 10, True),
        ({"batch_size": 65_536, "eval_every": 5}, 10_000, 75, 10, False),
        ({"batch_size": 65_536, "eval_every": 5}, 10_000, 330, 10, True),
        ({"batch_size": 10**8, "eval_every": 5}, 41_276, 85, 10, True),
        ({"batch_size": 64, "eval_every": 1, "patience": 1}, 560, 2, 1, True),
    ],
)
def test_patience_ends_no_training_before_a_least_number_of_steps(
    settings: dict[str, Any], n: int, epoch: int, waited: int, ends: bool
) -> None:
    assert loop._is_enough(state_after(epoch, waited, **settings), n) is ends


@pytest.mark.parametrize("dataset", ["ml-100k", "lastfm-colakg", "ml-1m-colakg"])
def test_every_training_of_the_archive_ends_where_it_did(dataset: str) -> None:
    n = int(archived_activity(dataset).sum())
    for done in read_archive(dataset, ROOT):
        settings, epochs, best = done.config["training_settings"], done.metrics["epochs"], done.metrics["best_epoch"]
        waited = (epochs - best) // settings["eval_every"]
        if epochs and waited >= settings["patience"]:
            assert loop._is_enough(state_after(epochs, waited, **settings), n), done.path.name


@pytest.mark.parametrize("model", ["popularity", "itemknn", "ease", "ials", "text_knn", "text_ridge"])
def test_what_is_computed_once_is_computed_while_the_clock_runs(data: Dataset, model: str) -> None:
    built, history = train(RunConfig(model=model, dataset="world"), data, progress=False)
    assert vars(built)["fitted"] is built.tensors()
    assert history.rows == []


SAME: list[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    ("ease", {}, {"epochs": 5}, {}),
    ("popularity", {}, {"epochs": 2, "learning_rate": 0.1}, {}),
    ("itemknn", {"neighbours": 3}, {"patience": 1}, {"neighbours": 3}),
    ("text_knn", {"text_components": 128}, {}, {}),
    ("bprmf", {"temperature": 0.9}, {"epochs": 3}, {"epochs": 3}),
    ("spike", {"gamma": 0.3, "temperature": 0.3}, {}, {"temperature": 0.3}),
    ("spike", {"text": False}, {}, {"inject": False, "remove": False, "matching": "off"}),
    ("spike", {"matching_weight": 0.0, "gamma": 0.3}, {}, {"matching": "off"}),
    (
        "spike",
        {"user_profiles": False, "item_profiles": False, "auxiliary_profiles": False, "rho": 2.0},
        {"epochs": 2},
        {"inject": False, "remove": False, "matching": "off", "epochs": 2},
    ),
]


@pytest.mark.parametrize(("model", "settings", "training", "counted"), SAME)
def test_settings_without_effect_name_no_run(
    data: Dataset, model: str, settings: dict[str, Any], training: dict[str, Any], counted: dict[str, Any]
) -> None:
    config = RunConfig(model=model, dataset="world", settings=settings, training=training)
    assert config.used().changes() == counted
    plain = RunConfig(model=model, dataset="world").changed(counted)
    assert path_of(config, data) == path_of(plain, data)


def test_an_equal_run_is_found_and_the_log_says_why(data: Dataset, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    plain = run(RunConfig(model="ease", dataset="world"), progress=False)
    assert "the same as" not in caplog.text
    assert run(RunConfig(model="ease", dataset="world", training={"epochs": 5}), progress=False).path == plain.path
    assert "model ease with epochs=5 is the same as with its preset" in caplog.text


def test_a_run_holds_its_steps_and_how_many_items_its_lists_hold(runs: Runs) -> None:
    assert [one.metrics["steps"] for one in (runs["popularity"][0], runs["lightgcn"][0])] == [0, 12]
    for one in several(runs):
        assert 0 < one.metrics["listed"]["items"] <= one.metrics["listed"]["of"] == 48


@pytest.mark.parametrize("batch_size", [40, 100])
def test_batches_of_whole_users_hold_few_users_and_every_interaction_once(world: World, batch_size: int) -> None:
    graph, generator = world.graph, torch.Generator().manual_seed(0)
    epochs = [list(epoch_batches(graph, None, batch_size, generator, by_user=True)) for _ in range(2)]
    for batches in epochs:
        users = [user for batch in batches for user in batch.users.unique().tolist()]
        assert len(users) <= graph.train_user.unique().numel() + len(batches) - 1
        pairs = torch.stack([torch.cat([getattr(b, name) for b in batches]) for name in ("users", "positives")], 1)
        order = pairs[:, 0].mul(graph.n_items).add(pairs[:, 1]).argsort()
        assert torch.equal(pairs[order], torch.stack([graph.train_user, graph.train_item], 1))
        assert {batch.negatives.numel() for batch in batches} == {0}
        assert [batch.users.numel() for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert not torch.equal(epochs[0][0].users, epochs[1][0].users)


def test_what_is_shuffled_depends_on_no_reader_of_negatives(world: World) -> None:
    both = [
        [batch.positives for _ in range(2) for batch in epoch_batches(world.graph, sampler, 100, generator)]
        for sampler in (None, NegativeSampler(world.graph))
        for generator in [torch.Generator().manual_seed(0)]
    ]
    assert all(torch.equal(one, other) for one, other in zip(*both, strict=True))


@pytest.mark.parametrize(
    ("model", "batches", "loss", "batch_size", "by_user"),
    [
        *(("spike", "auto", "cosine_softmax", 99, True), ("spike", "auto", "softmax", 100, False)),
        *(("lightgcn", "auto", "softmax", 99, True), ("lightgcn", "auto", "bpr", 1, False)),
        *(("lightgcl", "auto", "softmax", 99, False), ("lightgcl", "users", "bpr", 99, True)),
        *(("spike", "users", "bpr", 100, False), ("spike", "interactions", "softmax", 1, False)),
    ],
)
def test_the_softmax_losses_take_whole_users_where_a_batch_is_less_than_all(
    model: str, batches: Any, loss: str, batch_size: int, by_user: bool
) -> None:
    config = TrainingConfig(batches=batches, batch_size=batch_size)
    assert holds_users(config, MODELS[model], loss, 100) is by_user


def test_runs_in_batches_of_whole_users_have_another_version(runs: Runs) -> None:
    config, data = runs["lightgcn"][0].config, Dataset.open(runs["lightgcn"][0].config["dataset"])
    wanted = RunConfig(model="lightgcn", dataset=data.name)
    whole, small = (describe(wanted.changed({"batch_size": size}), data) for size in (10**6, 10))
    assert [found["versions"]["training"] for found in (config, whole, small)] == [1, 1, 2]
    shuffled = describe(wanted.changed({"batch_size": 10, "batches": "interactions"}), data)
    assert shuffled["versions"]["training"] == 1
    assert "batches" not in small["training_settings"]
    assert shuffled["training_settings"]["batches"] == "interactions"


class Elsewhere(Graph):
    """A graph whose device does not have the name of the one that batches are drawn on, as a GPU has not."""

    @property
    def device(self) -> torch.device:
        return torch.device("cpu:0")


@pytest.mark.parametrize("size", [40, 56, 64, 100, 552, 10_000])
def test_batches_off_the_cpu_bring_their_users_along_where_they_have_few_rows(world: World, size: int) -> None:
    """The world has 56 users and 560 interactions: 60 are left of hundreds, 56 of 56s, 48 of 64s, 8 of 552."""
    graph = Elsewhere(**vars(Graph.from_tables(world.tables)))
    batches = list(epoch_batches(graph, NegativeSampler(world.graph), size, torch.Generator().manual_seed(0)))
    plain = list(epoch_batches(world.graph, NegativeSampler(world.graph), size, torch.Generator().manual_seed(0)))
    for found, expected in zip(batches, plain, strict=True):
        assert torch.equal(found.users, expected.users)
        assert expected.host_users is None
        assert (found.host_users is not None) is (len(found.users) < 56)
        assert found.host_users is None or torch.equal(found.host_users, found.users)


@pytest.mark.parametrize("size", [20, 55])
@pytest.mark.parametrize("loss", ["softmax", "cosine_softmax"])
@pytest.mark.parametrize("name", ["bprmf", "lightgcn"])
def test_distinct_users_found_in_main_memory_give_the_same_bits(world: World, name: str, loss: str, size: int) -> None:
    batch = next(epoch_batches(world.graph, NegativeSampler(world.graph), size, torch.Generator().manual_seed(0)))
    found = []
    for one in (batch, dataclasses.replace(batch, host_users=batch.users)):
        model = build(name, world, loss=loss)
        torch.stack(list(model.training_losses(one, None).values())).sum().backward()
        found.append({key: parameter.grad for key, parameter in model.named_parameters()})
    torch.testing.assert_close(*found, atol=0, rtol=0)


def stepped(model: TrainedRecommender, world: World, size: int, recorded: bool) -> list[dict[str, float]]:
    """Train for two epochs; the loss terms of every step."""
    optimizer, draws = torch.optim.Adam(model.parameters(), lr=0.01), torch.Generator().manual_seed(3)

    def step(batch: Batch) -> dict[str, torch.Tensor]:
        return loop.training_step(model, batch, model.draw(draws), optimizer)

    take, batches = RecordedStep(step, draws) if recorded else step, torch.Generator().manual_seed(4)
    rows = (one for _ in range(2) for one in epoch_batches(world.graph, NegativeSampler(world.graph), size, batches))
    return [{name: float(term) for name, term in take(batch).items()} for batch in rows]


@pytest.mark.parametrize("size", [100, 560, 1000])
@pytest.mark.parametrize(
    ("name", "preset"), [("spike", "recommended"), ("spike", "released_code"), ("bprmf", "recommended")]
)
def test_steps_on_batches_in_one_place_have_the_same_bits(world: World, name: str, preset: str, size: int) -> None:
    """What a GPU would replay; here every step is taken anew. The last batch of 560 by hundreds is smaller."""
    models = [build(name, world, preset) for _ in range(2)]
    terms = [stepped(model, world, size, recorded) for model, recorded in zip(models, (False, True), strict=True)]
    assert terms[0] == terms[1]
    assert all(torch.equal(*pair) for pair in zip(*(model.parameters() for model in models), strict=True))


class FakeCuda:
    """Stands for ``torch.cuda``: it takes note of what is asked of it, and repeats nothing."""

    def __init__(self, failure: str = "") -> None:
        self.asked: list[str] = []
        self.failure = failure
        for name in ("Stream", "CUDAGraph", "current_stream"):
            setattr(self, name, lambda: self)

    def wait_stream(self, other: Any) -> None:
        assert other is self

    def register_generator_state(self, generator: torch.Generator) -> None:
        assert isinstance(generator, torch.Generator)

    def replay(self) -> None:
        self.asked.append("replay")

    def stream(self, stream: Any) -> Any:
        self.asked.append("aside")
        return contextlib.nullcontext(stream)

    @contextlib.contextmanager
    def graph(self, graph: Any) -> Iterator[None]:
        assert graph is self
        self.asked.append("record")
        yield
        if self.failure:
            raise RuntimeError(self.failure)


def test_a_step_is_recorded_once_after_a_few_and_replayed_from_there(monkeypatch: pytest.MonkeyPatch) -> None:
    ids, taken = torch.arange(3), list[Batch]()
    cuda = FakeCuda()
    monkeypatch.setattr(torch, "cuda", cuda)

    def step(batch: Batch) -> dict[str, torch.Tensor]:
        taken.append(batch)
        return {"loss": batch.users.sum()}

    recorded = RecordedStep(step, torch.Generator())
    terms = [recorded._on_cuda(Batch(ids, ids, ids)) for _ in range(6)]
    assert cuda.asked == ["aside"] * 3 + ["record"] + ["replay"] * 3
    assert len(taken) == 4
    assert all(one == {"loss": torch.tensor(3)} for one in terms)


def test_a_step_that_cannot_be_recorded_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "cuda", FakeCuda("operation not permitted when stream is capturing"))
    recorded = RecordedStep(lambda batch: {"loss": batch.users}, torch.Generator())
    recorded.taken = 3
    with pytest.raises(TrainingError, match=r"(?s)not permitted when stream is capturing.*without --cuda-graph"):
        recorded._on_cuda(Batch(*[torch.arange(3)] * 3))


def test_how_a_gpu_computes_names_a_run_only_where_it_changes_numbers(data: Dataset) -> None:
    plain = path_of(quick("lightgcn"), data)
    assert path_of(quick("lightgcn", training={**QUICK, "cuda_graph": True}), data) == plain
    assert path_of(quick("lightgcn", settings={"softmax_tf32": False}), data) == plain
    assert path_of(quick("lightgcn", settings={"softmax_tf32": True}), data) != plain
    assert path_of(quick("bprmf", settings={"softmax_tf32": True}), data) == path_of(quick("bprmf"), data)
    assert path_of(quick(settings={"softmax_tf32": True, "loss": "bpr"}), data) == path_of(
        quick(settings={"loss": "bpr"}), data
    )


@pytest.fixture
def matmul() -> Iterator[Any]:
    """The settings of torch for products on CUDA, put back afterwards."""
    yield torch.backends.cuda.matmul
    torch.backends.cuda.matmul.allow_tf32 = False


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("before", ["tf32", "ieee"])
def test_tf32_is_allowed_inside_only_and_changes_nothing_on_a_cpu(matmul: Any, asked: bool, before: str) -> None:
    matmul.fp32_precision = before
    with pytest.raises(ZeroDivisionError), devices.tf32(asked):
        assert matmul.fp32_precision == ("tf32" if asked else before)
        _ = 1 / 0
    assert matmul.fp32_precision == before
    rows, ids = torch.randn(20, 8, generator=torch.Generator().manual_seed(0)), torch.arange(20)
    assert torch.equal(*(losses.softmax(rows, rows, ids, ids, tf32=allowed) for allowed in (True, False)))


@pytest.mark.parametrize("allowed", [True, False])
def test_tf32_of_an_older_torch_is_put_back(monkeypatch: pytest.MonkeyPatch, allowed: bool) -> None:
    """Its switch alone exists there."""
    older = SimpleNamespace(allow_tf32=allowed)
    monkeypatch.setattr(torch.backends.cuda, "matmul", older)
    with devices.tf32(active=True):
        assert older.allow_tf32
    assert older.allow_tf32 is allowed


@pytest.mark.parametrize("rate", [0.25, torch.tensor(0.5)])
def test_the_rate_of_a_step_is_set_where_the_optimiser_has_it(rate: Any) -> None:
    config = TrainingConfig(learning_rate=0.5, schedule="linear", epochs=2)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=rate)
    now: Any = SimpleNamespace(config=config, epoch=2, optimizer=optimizer)
    loop._set_rate(now, 1, 4)
    (group,) = optimizer.param_groups
    assert float(group["lr"]) == 0.5 * 3 / 8
    assert (group["lr"] is rate) is isinstance(rate, torch.Tensor)


def test_an_epoch_holds_every_interaction_once_and_redraws_negatives(world: World) -> None:
    sampler, generator = NegativeSampler(world.graph), torch.Generator().manual_seed(0)
    epochs = [list(epoch_batches(world.graph, sampler, 100, generator)) for _ in range(2)]
    for batches in epochs:
        pairs = [pair for b in batches for pair in zip(b.users.tolist(), b.positives.tolist(), strict=True)]
        expected = zip(world.graph.train_user.tolist(), world.graph.train_item.tolist(), strict=True)
        assert sorted(pairs) == sorted(expected)
    first, second = (torch.cat([batch.negatives for batch in batches]) for batches in epochs)
    assert not torch.equal(first, second)
