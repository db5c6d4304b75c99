"""Search for settings on validation: Optuna with a sqlite file, resumable, the same budget for every model."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch

from spike_kit import paths, storage
from spike_kit.data.study import Study
from spike_kit.errors import ConfigError, TrainingError, require
from spike_kit.experiments.run import RunConfig, describe, train
from spike_kit.seeds import stream_seed
from spike_kit.training import MONITOR

logger = logging.getLogger(__name__)

TRAINING_SPACE: dict[str, Sequence[Any]] = {"learning_rate": (1e-3, 2e-3, 5e-3)}
"""Choices of training settings, the same for every model."""

_SHARED = {
    "loss": ("bpr", "softmax", "cosine_softmax"),
    "temperature": (0.15, 0.2, 0.25),
    "l2": (0.0, 1e-5, 1e-4),
}
SETTINGS_SPACE: dict[str, dict[str, Sequence[Any]]] = {
    "bprmf": _SHARED,
    "lightgcn": {**_SHARED, "layers": (2, 3, 4)},
    "spike": {
        **_SHARED,
        "layers": (1, 2, 3),
        "rho": (0.25, 0.5, 1.0),
        "matching_weight": (0.5, 5.0, 50.0),
        "edge_keep": (0.5, 0.75, 1.0),
    },
}
"""Choices of model settings by model; every model is offered the same losses."""


WARMUP_EPOCHS = 20
"""A trial is not pruned before this epoch; after it, it is when it is below the median of the trials so far."""


@dataclass(frozen=True)
class SearchResult:
    """Outcome of a search.

    Attributes
    ----------
    settings, training
        The best changes to the preset, for `RunConfig`.
    valid
        Validation NDCG@20 they reached.
    trials
        One row per trial: its choices, ``valid_ndcg@20``, best epoch, seconds.
    """

    settings: dict[str, Any]
    training: dict[str, Any]
    valid: float
    trials: pd.DataFrame


def search(
    config: RunConfig,
    trials: int,
    space: Mapping[str, Sequence[Any]] | None = None,
    device: torch.device | str = "cpu",
) -> SearchResult:
    """Try settings with Optuna's TPE sampler and median pruner until ``trials`` are done; earlier trials count.

    Only validation is looked at, and no run folder is written. The trials stand in data/searches.

    Parameters
    ----------
    config
        Model, data set, seed, and settings that are held fixed (they are not searched).
    trials
        Trials in all.
    space
        Choices of model settings by name; default: `SETTINGS_SPACE`. Training settings: `TRAINING_SPACE`.
    device
        Where to train.

    Raises
    ------
    ConfigError
        If the model has nothing to search.
    """
    optuna = require("optuna", "search")
    given = SETTINGS_SPACE.get(config.model) if space is None else space
    if given is None:
        raise ConfigError(f"model {config.model} has no settings to search")
    choices = {name: values for name, values in given.items() if name not in config.settings}
    training = {name: values for name, values in TRAINING_SPACE.items() if name not in config.training}
    study = Study.open(config.dataset)

    def objective(trial: Any) -> float:
        chosen = {name: trial.suggest_categorical(name, list(values)) for name, values in choices.items()}
        changes = {name: trial.suggest_categorical(name, list(values)) for name, values in training.items()}
        candidate = config.replace(settings={**config.settings, **chosen}, training={**config.training, **changes})
        started = time.perf_counter()

        def report(epoch: int, value: float) -> None:
            trial.report(value, epoch)
            trial.set_user_attr("epochs", epoch)
            trial.set_user_attr("seconds", time.perf_counter() - started)
            if trial.should_prune():
                raise optuna.TrialPruned

        try:
            _, history = train(candidate, study, device, progress=False, report=report)
        except TrainingError as error:
            logger.warning("trial %d: %s", trial.number, error)
            raise optuna.TrialPruned from error
        trial.set_user_attr("best_epoch", history.best_epoch)
        return float(history.frame()[f"valid_{MONITOR}"].max())

    def log(_: Any, trial: Any) -> None:
        shown = "pruned" if trial.value is None else f"{MONITOR} {trial.value:.4f}"
        logger.info("trial %d: %s, %.0f s, %s", trial.number, shown, trial.user_attrs.get("seconds", 0), trial.params)

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    file = paths.data_root() / "searches" / f"{config.model}-{study.name}.sqlite"
    file.parent.mkdir(parents=True, exist_ok=True)
    name = storage.sha256_text(storage.canonical_json([describe(config, study), choices, training]))[:12]
    found = optuna.create_study(storage=f"sqlite:///{file}", study_name=name, direction="maximize", load_if_exists=True)
    done = sum(trial.state.is_finished() for trial in found.trials)
    seed = stream_seed(config.seed, f"search after {done} trials") % 2**32
    found.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(3, trials // 2))
    found.pruner = optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=WARMUP_EPOCHS)
    if not found.trials:
        for start in _starts(config, choices, training):
            found.enqueue_trial(start)
    found.optimize(objective, n_trials=max(0, trials - done), callbacks=[log])
    best = found.best_params
    return SearchResult(
        settings={**config.settings, **{key: best[key] for key in choices}},
        training={**config.training, **{key: best[key] for key in training}},
        valid=found.best_value,
        trials=_trials(found.trials),
    )


def _starts(
    config: RunConfig, choices: Mapping[str, Sequence[Any]], training: Mapping[str, Sequence[Any]]
) -> Iterator[dict[str, Any]]:
    """First trials: the preset as far as it is among the choices, once under each loss."""
    settings, usual = config.resolved()
    values = settings.model_dump() | usual.model_dump()
    known = {name: values[name] for name, options in {**choices, **training}.items() if values[name] in options}
    for loss in choices.get("loss", ()):
        yield {**known, "loss": loss}


def _trials(done: Sequence[Any]) -> pd.DataFrame:
    rows = [{**trial.params, f"valid_{MONITOR}": trial.value, **trial.user_attrs} for trial in done]
    return pd.DataFrame(rows).sort_values(f"valid_{MONITOR}", ascending=False, ignore_index=True)
