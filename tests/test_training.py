from __future__ import annotations

import dataclasses
import inspect
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from spike_kit.base import paths, storage
from spike_kit.base.config import TrainingConfig
from spike_kit.base.errors import ConfigError, DataError, StorageError, TrainingError
from spike_kit.base.seeds import torch_generator
from spike_kit.data.dataset import Dataset, create_dataset
from spike_kit.data.vectors import ProfileVectors
from spike_kit.evaluation.ranking import RankingTask, evaluate
from spike_kit.experiments import run_folder
from spike_kit.experiments.run import RunConfig, describe, finished_runs, load_model, run
from spike_kit.models import MODELS
from spike_kit.models.bprmf import BprMf, BprMfConfig
from spike_kit.profiles.encode import DEFAULT_ENCODER
from spike_kit.profiles.template import TEMPLATE
from spike_kit.training import loop
from spike_kit.training.loop import MONITOR, fit, learning_rate
from tests.test_storage import fill_the_disk
from tests.world import World

QUICK = {"epochs": 4, "batch_size": 256, "eval_every": 1}


def quick(model: str = "spike", **changes: Any) -> RunConfig:
    return RunConfig(model=model, dataset="world", training=QUICK).replace(**changes)


def fit_bprmf(world: World, config: TrainingConfig, **settings: Any) -> tuple[BprMf, Any]:
    model = BprMf(BprMfConfig(**settings), world.graph, None, torch_generator(0, "init"))
    task = RankingTask.from_tables(world.tables, "valid")
    return model, fit(model, world.graph, task, config, seed=0, progress=False)


def test_the_best_weights_are_kept_and_training_stops_early(world: World) -> None:
    config = TrainingConfig(epochs=400, batch_size=256, learning_rate=0.05, eval_every=2, patience=3)
    model, history = fit_bprmf(world, config)
    frame = history.frame()
    validated = frame.dropna(subset=[f"valid_{MONITOR}"])
    best = validated[f"valid_{MONITOR}"].idxmax()
    assert history.best_epoch == validated["epoch"][best]
    assert len(frame) == history.best_epoch + 2 * 3 < 400
    means, _ = evaluate(model, RankingTask.from_tables(world.tables, "valid"))
    assert means[MONITOR] == pytest.approx(validated[f"valid_{MONITOR}"][best], abs=1e-12)


def test_the_last_weights_are_kept_where_asked_and_every_epoch_stands_in_the_history(world: World) -> None:
    config = TrainingConfig(epochs=5, batch_size=256, eval_every=2, patience=0, keep="last")
    _, history = fit_bprmf(world, config)
    assert history.best_epoch == 5
    assert history.frame()["epoch"].tolist() == [1, 2, 3, 4, 5]


def test_patience_counts_from_the_best_even_if_the_last_weights_are_kept(world: World) -> None:
    config = TrainingConfig(epochs=400, batch_size=256, learning_rate=0.05, patience=3, keep="last")
    _, history = fit_bprmf(world, config)
    assert history.best_epoch == len(history.rows) < 400


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1, 1, 1, 1, 1]),
        ("linear", [0.5, 1, 1, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1, 1, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5]),
    ],
)
def test_the_learning_rate_warms_up_and_falls(schedule: str, expected: list[float]) -> None:
    config = TrainingConfig.parse({"learning_rate": 0.2, "schedule": schedule, "warmup_steps": 2})
    rates = [learning_rate(config, step, 6) for step in range(6)]
    assert rates == pytest.approx([0.2 * share for share in expected])


def test_a_warm_up_longer_than_the_training_only_rises() -> None:
    config = TrainingConfig(learning_rate=1.0, schedule="cosine", warmup_steps=8)
    assert [learning_rate(config, step, 4) for step in range(4)] == [1 / 8, 2 / 8, 3 / 8, 4 / 8]
    even = config.replace(warmup_steps=4)
    assert [learning_rate(even, step, 4) for step in range(4)] == [1 / 4, 2 / 4, 3 / 4, 1]


@pytest.mark.parametrize(("settings", "highest"), [({}, 0.05), ({"schedule": "linear", "warmup_steps": 3}, 0.05)])
def test_every_step_has_its_learning_rate(
    world: World, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], highest: float
) -> None:
    step, rates = loop.training_step, []

    def training_step(model: Any, batch: Any, draws: Any, optimizer: torch.optim.Optimizer) -> Any:
        rates.append(optimizer.param_groups[0]["lr"])
        return step(model, batch, draws, optimizer)

    monkeypatch.setattr(loop, "training_step", training_step)
    config = TrainingConfig(epochs=3, batch_size=100, learning_rate=0.05, patience=0).replace(**settings)
    fit_bprmf(world, config)
    assert len(rates) == 3 * -(-world.graph.n_interactions // 100)
    assert rates == [learning_rate(config, step, len(rates)) for step in range(len(rates))]
    assert max(rates) == highest


def test_a_schedule_is_another_result(world: World) -> None:
    config = TrainingConfig(epochs=3, batch_size=100, patience=0, keep="last")
    plain, _ = fit_bprmf(world, config)
    cosine, _ = fit_bprmf(world, config.replace(schedule="cosine"))
    assert not torch.equal(plain.user_embedding, cosine.user_embedding)


def test_logged_terms_sum_to_the_logged_loss(data: Dataset) -> None:
    history = run(quick(), progress=False).history
    terms = history[["cosine_softmax", "l2", "matching"]]
    assert (history["loss"] - terms.sum(axis=1)).abs().max() < 1e-12
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]


def test_a_loss_that_becomes_nan_stops_with_its_name_and_epoch(world: World) -> None:
    with pytest.raises(TrainingError, match=r"loss term '(bpr|l2)' became (inf|nan) in epoch \d"):
        fit_bprmf(world, TrainingConfig(epochs=30, learning_rate=1e18, batch_size=64), l2=1e30)


def test_a_run_folder_holds_everything_and_is_never_made_twice(data: Dataset) -> None:
    first = run(quick(), progress=False)
    names = (
        run_folder.CONFIG,
        run_folder.ENVIRONMENT,
        run_folder.HISTORY,
        run_folder.METRICS,
        run_folder.PER_USER,
        run_folder.MODEL,
    )
    assert {file.name for file in first.path.iterdir()} == set(names)
    stamp = (first.path / "metrics.json").stat().st_mtime_ns
    assert run(quick(), progress=False).path == first.path
    assert (first.path / "metrics.json").stat().st_mtime_ns == stamp
    assert first.path.name.startswith("spike-world-")
    assert first.path.name.endswith("-s0")
    assert {"python", "packages", "device", "threads", "commit", "date"} <= set(first.environment)
    per_user = first.per_user.query("split == 'test'")
    assert len(per_user) == len(data.users)
    assert per_user["ndcg@20"].mean() == pytest.approx(first.metrics["test"]["ndcg@20"])


def test_the_commit_is_marked_if_the_package_differs_and_only_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "spike_kit"
    package.mkdir()
    (package / "experiments").mkdir()
    (package / "experiments" / "run_folder.py").write_text("pass\n")
    monkeypatch.setattr(run_folder, "__file__", str(package / "experiments" / "run_folder.py"))
    assert run_folder.commit() is None
    who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    for words in (["init", "--quiet"], ["add", "."], [*who, "commit", "--quiet", "--message", "a"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    clean = run_folder.commit()
    assert clean is not None
    assert re.fullmatch("[0-9a-f]{40}", clean)
    (tmp_path / "results.md").write_text("a table\n")
    assert run_folder.commit() == clean
    (package / "new.py").write_text("pass\n")
    assert run_folder.commit() == f"{clean}+"


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"settings": {"rho": 0.3}}, {"training": {**QUICK, "learning_rate": 0.1}}, {"model": "bprmf"}],
)
def test_another_configuration_is_another_run(data: Dataset, change: dict[str, Any]) -> None:
    assert path_of(quick(), data) != path_of(quick(**change), data)


def path_of(config: RunConfig, data: Dataset) -> Path:
    return run_folder.run_path(describe(config, data))


def test_other_vectors_are_another_run_for_models_that_read_them(data: Dataset, world: World) -> None:
    before = {name: path_of(quick(name), data) for name in ("spike", "bprmf")}
    file = data.embeddings_path(TEMPLATE, DEFAULT_ENCODER)
    ProfileVectors(world.vectors.user + 1, world.vectors.entity).save(file, {})
    assert path_of(quick("spike"), data) != before["spike"]
    assert path_of(quick("bprmf"), data) == before["bprmf"]


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
    described, before = describe(quick("bprmf"), data), path_of(quick("bprmf"), data)
    assert set(described) == {
        *("model", "dataset", "preset", "seed", "model_settings", "training_settings", "data_sha256", "versions"),
    }
    assert set(describe(quick("spike"), data)) - set(described) == {"profiles", "encoder", "vectors_sha256"}
    MODELS["relative"] = Relative
    request.addfinalizer(lambda: MODELS.pop("relative"))
    monkeypatch.setattr(Path, "read_bytes", _refuse)
    monkeypatch.setattr(inspect, "getsource", _refuse)
    monkeypatch.setattr(BprMf, "__doc__", "Edited.")
    assert path_of(quick("bprmf"), data) == before
    assert path_of(quick("relative"), data) != before


def _refuse(*_: object) -> None:
    raise AssertionError("a file of the package is read")


def test_a_run_from_before_versions_is_found_as_version_1(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    made = run(quick("bprmf"), progress=False)
    old = {name: value for name, value in made.config.items() if name != "versions"} | {"code_sha256": "ab" * 32}
    path = made.path.rename(run_folder.run_path(old))
    storage.write_json(path / run_folder.CONFIG, old)
    assert run(quick("bprmf"), progress=False).path == path
    assert [done.path for done in finished_runs(data)] == [path]
    monkeypatch.setattr("spike_kit.experiments.run.PROTOCOL_VERSION", 2)
    assert finished_runs(data) == []
    assert run(quick("bprmf"), progress=False).path != path


def test_equal_seeds_give_equal_metrics(data: Dataset, tmp_path: Path) -> None:
    first = run(quick(), progress=False)
    first.path.rename(tmp_path / "aside")
    second = run(quick(), progress=False)
    assert storage.read_json(tmp_path / "aside" / run_folder.METRICS)["test"] == second.metrics["test"]


@pytest.mark.parametrize("model", ["spike", "lightgcn", "bprmf", "popularity"])
def test_a_stored_model_gives_the_stored_metrics(data: Dataset, model: str) -> None:
    done = run(quick(model), progress=False)
    means, _ = evaluate(load_model(done), RankingTask.from_tables(data.tables, "test"))
    assert means == pytest.approx(done.metrics["test"], abs=1e-12)


def test_a_rebuilt_data_set_is_refused(data: Dataset, world: World) -> None:
    done = run(quick("bprmf"), progress=False)
    manifest = storage.read_json(data.path / paths.MANIFEST)
    storage.write_json(data.path / paths.MANIFEST, manifest | {"notes": ["another build"]})
    with pytest.raises(DataError, match="trained on another build of data set world"):
        load_model(done)


class Interrupt(KeyboardInterrupt):
    """Ctrl-C."""


def left() -> set[str]:
    """Everything under data/runs but locks, by its place in the run folder."""
    root = paths.runs_root()
    found = (path.relative_to(root).parts for path in root.rglob("*"))
    return {"/".join(parts[1:]) for parts in found if not parts[0].endswith(".lock")}


@pytest.mark.parametrize(
    ("at", "stays"),
    [
        ("spike_kit.training.loop.training_step", set()),
        (
            "spike_kit.experiments.run.save_file",
            {"", "state", "state/last.safetensors", "state/best-N.safetensors"},
        ),
    ],
)
def test_ctrl_c_leaves_no_run_folder(data: Dataset, monkeypatch: pytest.MonkeyPatch, at: str, stays: set[str]) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise Interrupt

    monkeypatch.setattr(at, interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(quick(), progress=False)
    assert {re.sub(r"best-\d+", "best-N", name) for name in left()} == stays
    assert run_folder.list_runs() == []


def test_a_full_disk_leaves_no_run_folder(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    fill_the_disk(monkeypatch)
    with pytest.raises(StorageError, match="disk is full"):
        run(quick("bprmf"), progress=False)
    assert left() == set()


def test_a_model_is_not_loaded_onto_other_vectors(data: Dataset, world: World) -> None:
    done = run(quick(), progress=False)
    file = data.embeddings_path(TEMPLATE, DEFAULT_ENCODER)
    ProfileVectors(world.vectors.user + 1, world.vectors.entity).save(file, {})
    with pytest.raises(DataError, match="was trained with other vectors of template by all-MiniLM-L6-v2"):
        load_model(done)
    assert finished_runs(data) == []


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


def test_a_full_disk_inside_the_tensor_writer_is_explained(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("spike_kit.experiments.run.save_file", no_space)
    with pytest.raises(StorageError, match="disk is full"):
        run(quick("bprmf"), progress=False)
    assert run_folder.list_runs() == []
    assert {name.partition("/")[0] for name in left()} == {"", "state"}


def test_unknown_names_and_settings_are_errors(data: Dataset) -> None:
    with pytest.raises(ConfigError, match=r"(?s)no model named 'spkie'.*known: spike"):
        run(quick("spkie"))
    with pytest.raises(ConfigError, match=r"(?s)no preset of model spike named 'best'.*released_code"):
        run(quick(preset="best"))
    with pytest.raises(ConfigError, match="unknown setting 'ro'"):
        run(quick(settings={"ro": 1}))


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
