import logging
import math
import os
import re
import shlex
import signal
import sqlite3
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from spike_kit.base import paths
from spike_kit.base.config import TrainingConfig
from spike_kit.base.errors import ConfigError, StorageError, TrainingError
from spike_kit.cli import main
from spike_kit.data.dataset import Dataset
from spike_kit.evaluation.ranking import RankingTask
from spike_kit.experiments import search as module
from spike_kit.experiments.run import Run, RunConfig
from spike_kit.experiments.search import VALID, parse_fixed, search, space_of
from spike_kit.experiments.tuned import find_tuned
from spike_kit.models import MODELS
from spike_kit.models.base import TrainedRecommender
from spike_kit.models.spaces import Range
from spike_kit.training.checkpoint import EpochRow

SHORT = {"epochs": 2, "batch_size": 512, "learning_rate": 1e-2}
SPACE = {"dim": (8, 16), "l2": (0.0, 1e-4)}
LOSSES = {"loss": ("bpr", "softmax", "cosine_softmax")}
RATES = {"learning_rate": Range(1e-3, 0.1, log=True), "batch_size": (128, 512)}


def config(**settings: Any) -> RunConfig:
    return RunConfig(model="bprmf", dataset="world", training=SHORT, settings=settings)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[TrainingConfig]:
    """Training settings of every training that a search starts."""
    seen: list[TrainingConfig] = []
    original = module.fit

    def noted(*args: Any, **kwargs: Any) -> Any:
        seen.append(args[3])
        return original(*args, **kwargs)

    monkeypatch.setattr(module, "fit", noted)
    return seen


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time that passes by one second per look at it, so that a time limit ends trials at the same epoch anywhere."""
    ticks = iter(range(10**9))
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))


def script(monkeypatch: pytest.MonkeyPatch, *values: list[float] | BaseException) -> None:
    """Let the trainings report these validation values, one list each, or fail."""
    left = iter(values)

    def fit(*_: Any, report: Callable[[EpochRow], None], **__: Any) -> None:
        outcome = next(left)
        if isinstance(outcome, BaseException):
            raise outcome
        for epoch, value in enumerate(outcome, start=1):
            report({"epoch": epoch, VALID: value})

    monkeypatch.setattr(module, "fit", fit)


def test_the_best_trial_is_returned_and_earlier_trials_count(
    data: Dataset, trained: list[TrainingConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    original, splits = RankingTask.from_tables, set()

    def noted(tables: Any, split: str, device: Any = "cpu") -> RankingTask:
        splits.add(split)
        return original(tables, split, device)

    monkeypatch.setattr(RankingTask, "from_tables", noted)
    first = search(config(), 3, SPACE)
    assert len(trained) == len(first.trials) == 3
    second = search(config(), 5, SPACE)
    assert len(trained) == len(second.trials) == 5
    assert second.trials.set_index("trial").loc[first.trials["trial"]].reset_index().equals(first.trials)
    assert len(search(config(), 5, SPACE).trials) == len(trained) == 5
    assert second.valid == second.trials[VALID].max() > 0
    best = second.trials.iloc[0]
    assert second.config.settings == {"dim": best["dim"], "l2": best["l2"]}
    assert second.config.training == SHORT
    assert best["epochs"] == 2
    assert {path.name for path in (paths.data_root() / "searches").iterdir()} == {"bprmf-world.sqlite"}
    others = ((config(), {"dim": (8, 16)}), (config().replace(seed=1), SPACE), (config(dim=8), SPACE))
    results = [search(asked, 1, space) for asked, space in others]
    assert "dim" not in results[-1].trials
    assert results[-1].config.settings["dim"] == 8
    with pytest.raises(TrainingError, match="no trial came to its end"):
        search(config().replace(seed=2), 5, SPACE, timeout=1e-9)
    assert len(trained) == 5 + 3
    assert splits == {"valid"}
    assert not paths.runs_root().exists()


def test_the_preset_is_tried_first_under_every_loss(data: Dataset, trained: list[TrainingConfig]) -> None:
    trials = search(config(), 3, {**LOSSES, "dim": (8, 64)}).trials
    assert set(trials["loss"]) == set(LOSSES["loss"])
    assert set(trials["dim"]) == {64}
    usual = RunConfig(model="bprmf", dataset="world").resolved()[1]
    search(RunConfig(model="bprmf", dataset="world", training={"epochs": 2}), 2, RATES)
    first, second = trained[3:]
    assert first.learning_rate == usual.learning_rate != second.learning_rate
    assert RATES["learning_rate"].low <= second.learning_rate <= RATES["learning_rate"].high
    assert second.learning_rate == float(f"{second.learning_rate:.4g}")
    assert first.batch_size in RATES["batch_size"]


def test_a_trial_whose_loss_becomes_nan_is_counted_and_left_out(
    data: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    start = RunConfig(model="bprmf", dataset="world", training={"epochs": 2, "batch_size": 64}, settings={"l2": 1e30})
    with caplog.at_level(logging.WARNING, "spike_kit"):
        trials = search(start, 6, {"learning_rate": (1e-9, 1e18)}).trials
    states = trials.groupby("learning_rate")["state"].unique().map(list).to_dict()
    assert states == {1e-9: ["complete"], 1e18: ["pruned"]}
    assert len(trials) == 6
    assert re.search(r"loss term '\w+' became (nan|inf)", caplog.text)
    with pytest.raises(TrainingError, match="no trial kept a finite loss; the best of 2"):
        search(start, 2, {"learning_rate": (1e17, 1e18)})


def test_a_trial_below_the_median_is_pruned(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    late = module.WARMUP_EPOCHS + 5
    script(monkeypatch, [0.5] * late, [0.6] * late, [0.7] * late, [0.1] * late, [0.65] * late)
    trials = search(config(), 5, SPACE).trials
    assert trials["state"].tolist() == ["complete"] * 4 + ["pruned"]
    assert trials["trial"].tolist() == [2, 4, 1, 0, 3]
    assert trials["epochs"].tolist() == [late] * 4 + [module.WARMUP_EPOCHS]
    assert set(trials["best_epoch"]) == {1}


def killed_search(home: str) -> None:
    """Search, and be killed within the second trial."""
    os.environ[paths.HOME_VARIABLE] = home
    original, trials = module.fit, iter(range(10))

    def fit(*args: Any, **kwargs: Any) -> Any:
        if next(trials):
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    module.fit = fit
    search(config(), 3, {**LOSSES, **SPACE})


def test_a_killed_search_goes_on(data: Dataset, home: Path, trained: list[TrainingConfig]) -> None:
    process = get_context("spawn").Process(target=killed_search, args=(str(home),))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    with sqlite3.connect(paths.data_root() / "searches" / "bprmf-world.sqlite") as database:
        states = [state for (state,) in database.execute("SELECT state FROM trials ORDER BY number")]
    assert states[:2] == ["COMPLETE", "RUNNING"]
    result = search(config(), 3, {**LOSSES, **SPACE})
    assert len(trained) == 2
    assert set(result.trials["loss"]) == set(LOSSES["loss"])
    assert set(result.trials["state"]) == {"complete"}


def test_a_file_of_trials_that_cannot_be_used_is_named(data: Dataset) -> None:
    file = paths.data_root() / "searches" / "bprmf-world.sqlite"
    file.parent.mkdir()
    file.write_bytes(bytes(range(256)) * 20)
    with pytest.raises(StorageError, match=r"bprmf-world\.sqlite cannot be used: "):
        search(config(), 2, SPACE)


def test_what_optuna_cannot_read_in_a_file_of_trials_is_said(data: Dataset) -> None:
    search(config(), 1, SPACE)
    file = paths.data_root() / "searches" / "bprmf-world.sqlite"
    for changed in ('{"name": "Nothing", "attributes": {}}', "{}", "no JSON"):
        with sqlite3.connect(file) as database:
            database.execute("UPDATE trial_params SET distribution_json = ?", [changed])
        with pytest.raises(StorageError, match=r"(?s)bprmf-world\.sqlite cannot be used: .*move it away"):
            search(config(), 2, SPACE)


def test_what_fails_in_a_training_is_not_the_fault_of_the_file(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(module, "fit", failing)
    for error in (FileNotFoundError(2, "No such file", "/elsewhere/vectors"), ValueError("a bug"), KeyError("a bug")):
        with pytest.raises(type(error)):
            search(config(), 1, SPACE)


@pytest.mark.parametrize("folder", ["q?x", "{a,b}", "back\\slash", "percent%41#x?mode=ro"])
def test_trials_stand_in_their_file_whatever_its_folder_is_called(tmp_path: Path, folder: str) -> None:
    file = tmp_path / folder / "a.sqlite"
    file.parent.mkdir()
    for trials in (1, 2):
        module._study(file, "name", 0, 1, None, prune=True).ask()
        with sqlite3.connect(file) as database:
            assert database.execute("SELECT count(*) FROM trials").fetchall() == [(trials,)]
    assert [path.name for path in tmp_path.iterdir()] == [folder]


def test_every_trained_model_has_a_space_with_the_same_shared_settings() -> None:
    spaces = {}
    for name, model in MODELS.items():
        if issubclass(model, TrainedRecommender):
            spaces[name] = space_of(RunConfig(model=name))
        else:
            assert bool(model.search_space) == (name in ("itemknn", "ease", "ials", "text_knn", "text_ridge"))
    for setting in ("learning_rate", "loss", "temperature", "l2"):
        offered = {name for name, space in spaces.items() if space.get(setting) == spaces["lightgcn"][setting]}
        assert set(spaces) - offered == ({"spike"} if setting == "loss" else set())


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        ("bprmf", {"trials": 0}, "trials = 0"),
        ("bprmf", {"timeout": 0.0}, r"timeout = 0\.0"),
        ("bprmf", {"trial_seconds": math.nan}, "trial_seconds = nan"),
        ("bprmf", {"space": {"dmi": (8,)}}, "neither model bprmf nor its training has a setting named 'dmi'"),
        ("bprmf", {"space": {"dim": (8, 0)}}, "BprMfConfig.dim = 0"),
        ("bprmf", {"space": {"dim": ()}}, "setting 'dim' has no value"),
        ("bprmf", {"space": {"epochs": (1, 2)}}, "nothing is left to search"),
        ("popularity", {}, "popularity has no settings to search"),
    ],
)
def test_nonsense_is_an_error_before_anything_is_trained(
    data: Dataset, trained: list[TrainingConfig], model: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        search(config().replace(model=model), **({"trials": 1, "space": SPACE} | arguments))
    assert trained == []


@pytest.mark.parametrize("bounds", [(1, 1), (2, 1), (0, math.inf), (math.nan, 1), (0, 1, True), (-1, 1, True)])
def test_an_impossible_range_is_an_error(bounds: Any) -> None:
    with pytest.raises(ConfigError, match="is no range"):
        Range(*bounds)


def test_fixed_settings_are_read_as_their_types_say() -> None:
    texts = ["rho=0.3", "user-profiles=false", "matching=off", "epochs=7", "learning_rate=1e-3"]
    fixed = parse_fixed(RunConfig(), texts)
    assert fixed == {"rho": 0.3, "user_profiles": False, "matching": "off", "epochs": 7, "learning_rate": 1e-3}
    together = RunConfig().changed(fixed)
    assert set(together.training) == {"epochs", "learning_rate"}
    assert set(together.settings) == {"rho", "user_profiles", "matching"}


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["rho"], "'rho' fixes nothing"),
        (["=1"], "'=1' fixes nothing"),
        (["ro=1"], r"(?s)setting named 'ro'.*known: .*rho"),
        (["rho=high"], "SpikeConfig.rho = 'high'"),
        (["layers=1.5"], "SpikeConfig.layers = '1.5'"),
        (["epochs=0"], "TrainingConfig.epochs = '0'"),
        (["rho=1", "rho=2"], "'rho' is fixed twice"),
    ],
)
def test_a_setting_that_cannot_be_fixed_is_an_error(texts: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_fixed(RunConfig(), texts)


def test_the_command_prints_and_keeps_the_best_settings(
    data: Dataset, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = "search --dataset world --trials 3 --trial-seconds 60 --fix epochs=1 --fix inject=false --device cpu --save"
    assert main(words.split()) == 0
    table, command = capsys.readouterr().out.strip().split("\n\n")
    command, written = command.splitlines()
    assert len(table.splitlines()) == 4
    assert VALID in table.splitlines()[0]
    assert written.endswith("data/tuned/world/spike.json")
    found = find_tuned("world", "spike")
    assert found is not None
    assert (found.trials, found.trial_seconds, found.training["epochs"]) == (3, 60.0, 1)
    asked: list[RunConfig] = []
    monkeypatch.setattr("spike_kit.experiments.run.run", lambda config, _: asked.append(config) or Run(Path()))
    monkeypatch.setattr(Run, "summary", lambda _: "trained")
    for words in (command, "spike-kit train --dataset world --preset tuned"):
        assert main([*shlex.split(words)[1:], "--device", "cpu"]) == 0
    start = RunConfig(dataset="world").changed({"epochs": 1, "inject": False})
    best = search(start, 3, trial_seconds=60.0).config
    assert [config.resolved() for config in asked] == [best.resolved()] * 2
    assert (best.training["epochs"], best.settings["inject"]) == (1, False)


@pytest.mark.usefixtures("clock")
def test_a_time_limit_ends_a_trial_and_trials_are_compared_after_equal_time(
    data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, [0.1, 0.3, 0.2, *[0.9] * 50], [0.5])
    trials = search(config(), 2, {"dim": (8, 16)}, trial_seconds=6.5).trials.sort_values("trial")
    assert trials["capped"].tolist() == [True, False]
    assert trials["state"].tolist() == ["complete", "complete"]
    first, second = trials.to_dict("records")
    assert second[VALID] == 0.5
    assert first["epochs"] < 10
    assert first[VALID] == [0.1, 0.3, 0.3, *[0.9] * 50][first["epochs"] - 1]
    good, bad = [0.1 * n for n in range(1, 9)], [0.01] * 60
    script(monkeypatch, good, good, good, bad)
    trials = search(config(), 4, {"dim": (8, 16)}, trial_seconds=30).trials.sort_values("trial")
    assert trials["state"].tolist() == ["complete"] * 3 + ["pruned"]
    assert trials["epochs"].tolist()[-1] < 60


def test_a_model_without_training_tries_its_whole_grid(data: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    result = search(RunConfig(model="ease", dataset="world"), 1)
    assert sorted(result.trials["regularisation"]) == [1, 10, 30, 100, 300, 1000, 3000]
    assert result.valid == result.trials[VALID].max() > 0.5
    assert main(["search", "--model", "itemknn", "--dataset", "world"]) == 0
    text = capsys.readouterr().out
    assert "(10 best of 15 trials)" in text
    assert len(text.splitlines()) == 1 + 10 + 1 + 2
