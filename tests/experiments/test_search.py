from __future__ import annotations

from typing import Any

import pytest

from spike_kit import paths
from spike_kit.data.study import Study
from spike_kit.errors import ConfigError, TrainingError
from spike_kit.evaluation.protocol import RankingTask
from spike_kit.experiments import search as module
from spike_kit.experiments.run import RunConfig
from spike_kit.experiments.search import SETTINGS_SPACE, search
from spike_kit.models import MODELS, TrainedRecommender

SHORT = {"epochs": 2, "batch_size": 512, "learning_rate": 1e-2}
SPACE = {"dim": (8, 16), "l2": (0.0, 1e-4)}


def config(**settings: Any) -> RunConfig:
    return RunConfig(model="bprmf", dataset="world", training=SHORT, settings=settings)


def test_the_best_trial_is_returned_and_earlier_trials_count(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = []
    original = module.train
    monkeypatch.setattr(module, "train", lambda *args, **kwargs: trained.append(args[0]) or original(*args, **kwargs))
    first = search(config(), 3, SPACE)
    assert len(trained) == len(first.trials) == 3
    second = search(config(), 5, SPACE)
    assert len(trained) == len(second.trials) == 5
    assert second.valid == second.trials["valid_ndcg@20"].max()
    best = second.trials.iloc[0]
    assert second.settings == {"dim": best["dim"], "l2": best["l2"]}
    assert second.training == SHORT


def test_settings_that_are_held_fixed_are_not_searched(study: Study) -> None:
    result = search(config(dim=8), 2, SPACE)
    assert "dim" not in result.trials
    assert result.settings["dim"] == 8


def test_the_test_split_is_never_looked_at(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    original = RankingTask.from_tables

    def only_validation(tables: Any, split: str, device: Any = "cpu") -> RankingTask:
        assert split == "valid"
        return original(tables, split, device)

    monkeypatch.setattr(RankingTask, "from_tables", only_validation)
    search(config(), 2, SPACE)
    assert not paths.runs_root().exists()


def test_every_loss_is_tried_from_the_preset_first(study: Study) -> None:
    space = {"loss": ("bpr", "softmax", "cosine_softmax"), "dim": (8, 64)}
    trials = search(config(), 3, space).trials
    assert sorted(trials["loss"]) == ["bpr", "cosine_softmax", "softmax"]
    assert set(trials["dim"]) == {64}


def test_a_trial_that_fails_is_counted_and_left_out(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    original = module.train

    def fail_once(candidate: RunConfig, *args: Any, **kwargs: Any) -> Any:
        if candidate.settings["dim"] == 8:
            raise TrainingError("loss term 'bpr' became nan")
        return original(candidate, *args, **kwargs)

    monkeypatch.setattr(module, "train", fail_once)
    assert search(config(), 6, SPACE).settings["dim"] == 16


def test_every_trained_model_has_a_space_with_the_same_losses() -> None:
    for name, model in MODELS.items():
        if issubclass(model, TrainedRecommender):
            assert SETTINGS_SPACE[name]["loss"] == ("bpr", "softmax", "cosine_softmax")
            for setting, values in SETTINGS_SPACE[name].items():
                for value in values:
                    model.config_class.parse({setting: value})


def test_a_model_without_settings_cannot_be_searched(study: Study) -> None:
    with pytest.raises(ConfigError, match="popularity has no settings to search"):
        search(RunConfig(model="popularity", dataset="world"), 1)
