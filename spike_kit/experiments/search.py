"""Search for settings on validation: Optuna with a sqlite file, resumable, the same budget for every model."""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from spike_kit.base import paths, storage
from spike_kit.base.errors import ConfigError, TrainingError, require
from spike_kit.base.seeds import stream_seed
from spike_kit.data.dataset import Dataset
from spike_kit.data.graph import Graph
from spike_kit.evaluation.ranking import evaluate
from spike_kit.experiments.run import (
    RunConfig,
    build_model,
    commit,
    data_version,
    describe,
    validation_task,
)
from spike_kit.experiments.tuned import Tuned
from spike_kit.experiments.versions import declared_for
from spike_kit.models import find_model
from spike_kit.models.base import TrainedRecommender
from spike_kit.models.spaces import Range, Space
from spike_kit.training.checkpoint import MONITOR, EpochRow
from spike_kit.training.loop import fit

logger = logging.getLogger(__name__)

WARMUP_EPOCHS = 20
"""A trial is not pruned before this epoch; after it, it is when it is below the median of the trials so far."""

SHARES = 18
"""Where a trial has a time limit, trials are compared after equal time, at each of so many shares of the limit."""
WARMUP_SHARES = 4
"""Shares of the limit before which such a trial is not pruned."""

DIGITS = 4
"""Significant digits of a number drawn from a range; a setting is to be read and typed."""

VALID = f"valid_{MONITOR}"

_REACHED = "reached"
_ENDED = ("COMPLETE", "PRUNED")
"""States of trials that came to their end; one that was interrupted or killed did not."""
_UNREADABLE = (ValueError, LookupError, RuntimeError, TypeError, AssertionError)
"""What optuna raises of a file whose content it cannot read."""


@dataclass(frozen=True)
class SearchResult:
    """Outcome of a search.

    Attributes
    ----------
    config
        The configuration that was searched, with the best settings in it.
    valid
        Validation NDCG@20 of the best trial.
    seconds
        Its training time.
    trials
        One row per finished trial, best first: trial, state (complete or pruned), its choices, ``valid_ndcg@20`` (the
        best it reached), epochs, seconds, capped (whether the time limit ended it).
    """

    config: RunConfig
    valid: float
    seconds: float
    trials: pd.DataFrame


def search(
    config: RunConfig,
    trials: int,
    space: Space | None = None,
    device: torch.device | str = "cpu",
    timeout: float | None = None,
    trial_seconds: float | None = None,
    *,
    prune: bool = True,
) -> SearchResult:
    """Try settings with Optuna's TPE sampler until ``trials`` are done; earlier trials count.

    Only validation is looked at, and no run folder is written. The trials stand in data/searches: whatever ends a
    search loses no more than the trial it was at, and the same call goes on with the others. Pruned trials count, those
    that were cut off from outside do not. A model without training tries every combination of its choices instead.

    Parameters
    ----------
    config
        Model, data set, seed, and settings that are held fixed (they are not searched).
    trials
        Trials in all.
    space
        Values by name of a setting, of the model or of its training; default: the model's own ``search_space``.
    device
        Where to train.
    timeout
        Seconds after which no further trial starts.
    trial_seconds
        Seconds after which a trial ends at its next epoch, with the best it reached; it belongs to the identity of the
        search. A trial that ends so before its first validation is pruned.
    prune
        Whether a trial is given up that is worse than the median of the others.

    Raises
    ------
    ConfigError
        If a number is out of range, a name or a value of the space is unknown, or the model has nothing to search.
    TrainingError
        If no trial completed: no loss stayed finite.
    """
    for name, number in {"trials": trials, "timeout": timeout, "trial_seconds": trial_seconds}.items():
        if number is not None and not 0 < number < math.inf:
            raise ConfigError(f"{name} = {number}", "give more than 0")
    space = space_of(config, space)
    data = Dataset.open(config.dataset)
    file = paths.data_root() / "searches" / f"{config.model}-{data.name}.sqlite"
    values = {name: vars(options) if isinstance(options, Range) else options for name, options in space.items()}
    # Searches in files of earlier versions go on because their question has the empty list too.
    question = storage.canonical_json([describe(config, data), values, [], trial_seconds])
    planned, trials = _planned(config, space, trials)
    errors = require("sqlalchemy.exc", "search").SQLAlchemyError, require("optuna", "search").exceptions.OptunaError
    with storage.database_errors(file, *errors):
        file.parent.mkdir(parents=True, exist_ok=True)
        with storage.database_errors(file, *_UNREADABLE):
            study = _study(file, storage.sha256_text(question)[:12], config.seed, trials, trial_seconds, prune)
            counted = [trial for trial in study.trials if trial.state.name in (*_ENDED, "WAITING")]
        known = [trial.system_attrs.get("fixed_params") for trial in counted]
        for params in planned:
            if params not in known:
                study.enqueue_trial(params)
        objective = _objective(config, data, space, device, trial_seconds)
        study.optimize(objective, trials - len(_ended(study)), timeout)
        return _result(config, space, _ended(study))


def _study(file: Path, name: str, seed: int, trials: int, trial_seconds: float | None, prune: bool) -> Any:
    """Optuna's study of a search, new or gone on with."""
    optuna = require("optuna", "search")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    # As a URI no character of the path means anything to optuna, sqlalchemy or sqlite.
    where = require("sqlalchemy", "search").URL.create("sqlite", database=file.as_uri(), query={"uri": "true"})
    address = where.render_as_string()
    study = optuna.create_study(storage=address, study_name=name, direction="maximize", load_if_exists=True)
    seed = stream_seed(seed, f"search after {len(_ended(study))} trials") % 2**32
    study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(3, trials // 3), constant_liar=False)
    warmup = WARMUP_EPOCHS if trial_seconds is None else WARMUP_SHARES
    median = optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=warmup)
    study.pruner = median if prune else optuna.pruners.NopPruner()
    return study


def _ended(study: Any) -> list[Any]:
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state.name in _ENDED]


def space_of(config: RunConfig, given: Space | None = None) -> Space:
    """Space of a search, without the settings that the configuration fixes.

    Parameters
    ----------
    config
        Model, preset, and fixed settings.
    given
        Space to take instead of the model's ``search_space``.

    Raises
    ------
    ConfigError
        If the model has nothing to search, a name or a value is unknown, or nothing is left.
    """
    model = find_model(config.model)
    if not (issubclass(model, TrainedRecommender) or model.search_space):
        raise ConfigError(f"model {config.model} has no settings to search", "choose a model that is trained")
    space = given if given is not None else model.search_space
    left = {name: values for name, values in space.items() if name not in {**config.settings, **config.training}}
    for name, values in left.items():
        options = (values.low, values.high) if isinstance(values, Range) else values
        if not options:
            raise ConfigError(f"setting {name!r} has no value to choose from", "give at least one")
        for value in options:
            config.changed({name: value}).resolved()
    if not left:
        raise ConfigError("every setting of the space is fixed: nothing is left to search", "fix fewer of them")
    return left


def _planned(config: RunConfig, space: Space, trials: int) -> tuple[list[dict[str, Any]], int]:
    """First trials, and how many there are in all.

    The first ones are the preset as far as the space holds it, once under each loss; without training, all choices.
    """
    choices = {name: values for name, values in space.items() if isinstance(values, Sequence)}
    if not issubclass(find_model(config.model), TrainedRecommender) and choices == space:
        every = [dict(zip(choices, values, strict=True)) for values in product(*choices.values())]
        return every, len(every)
    settings, training = config.resolved()
    usual = {**dict(settings), **dict(training)}
    preset = {name: usual[name] for name, values in space.items() if usual[name] in values}
    return [preset | {"loss": loss} for loss in choices["loss"]] if "loss" in choices else [preset], trials


def parse_fixed(config: RunConfig, texts: Sequence[str]) -> dict[str, Any]:
    """Read ``name=value`` pairs as settings of the model or of its training, values as their types say.

    Raises
    ------
    ConfigError
        If a text is no such pair, a name is unknown or given twice, or a value is not allowed.
    """
    pairs: dict[str, str] = {}
    for text in texts:
        name, _, value = text.partition("=")
        name = name.replace("-", "_")
        if not (name and value):
            raise ConfigError(f"{text!r} fixes nothing", "write --fix name=value, for example --fix epochs=50")
        if name in pairs:
            raise ConfigError(f"setting {name!r} is fixed twice", "give it once")
        pairs[name] = value
    settings, training = config.changed(pairs).resolved()
    parsed = {**dict(settings), **dict(training)}
    return {name: parsed[name] for name in pairs}


def chosen(params: Mapping[str, Any], space: Space) -> dict[str, Any]:
    """Settings a trial stands for: its parameters, those of ranges rounded to `DIGITS` digits."""
    rounded = {name: float(f"{params[name]:.{DIGITS}g}") for name in space if isinstance(space[name], Range)}
    return {name: rounded.get(name, params[name]) for name in space}


class _StopTrial(Exception):  # noqa: N818 (nothing went wrong)
    """Ends the training of a trial whose time is over."""


class _Watch:
    """Follows one trial: notes what it reached, and ends it where that is decided.

    Parameters
    ----------
    trial
        Optuna's trial.
    trial_seconds
        As in `search`.
    """

    def __init__(self, trial: Any, trial_seconds: float | None) -> None:
        self.trial, self.trial_seconds = trial, trial_seconds
        self.reached = {VALID: 0.0, "best_epoch": 0, "epochs": 0, "seconds": 0.0, "capped": False}
        self._told, self._started = 0, time.perf_counter()

    def note(self, epoch: int, value: float) -> None:
        """Note a validation."""
        self.reached.update(epochs=epoch, seconds=time.perf_counter() - self._started)
        if value > self.reached[VALID]:
            self.reached.update({VALID: value, "best_epoch": epoch})

    def __call__(self, row: EpochRow) -> None:
        """Look at an epoch of the training."""
        capped = time.perf_counter() - self._started > (self.trial_seconds or math.inf)
        if VALID in row:
            self.note(int(row["epoch"]), row[VALID])
            if self._is_worse(int(row["epoch"]), row[VALID]):
                raise require("optuna", "search").TrialPruned
        if capped:
            self.reached["capped"] = True
            raise _StopTrial if self.reached[VALID] else require("optuna", "search").TrialPruned

    def _is_worse(self, epoch: int, value: float) -> bool:
        """Tell Optuna how far the trial is; whether it is to be given up.

        Without a limit trials are compared after equally many epochs. With one, they are after equal time: epochs of
        large batches are cheap, and would lose every comparison by number.
        """
        if self.trial_seconds is None:
            self.trial.report(value, epoch)
        else:
            share = int(self.reached["seconds"] / self.trial_seconds * SHARES)
            for step in range(self._told, share + 1):
                self.trial.report(self.reached[VALID], step)
            self._told = max(self._told, share + 1)
        return self.trial.should_prune()


def _objective(
    config: RunConfig, data: Dataset, space: Space, device: torch.device | str, trial_seconds: float | None
) -> Callable[[Any], float]:
    """What trains with a trial's choices; it gives the best validation NDCG@20."""
    graph = Graph.from_tables(data.tables).to(device)
    validation = validation_task(data, find_model(config.model), config.resolved()[1], device)
    validation.check()
    names = data.users["source_id"].tolist()

    def objective(trial: Any) -> float:
        for name, values in space.items():
            if isinstance(values, Range):
                trial.suggest_float(name, values.low, values.high, log=values.log)
            else:
                trial.suggest_categorical(name, values)
        candidate = config.changed(chosen(trial.params, space))
        model, watch = build_model(candidate, data, graph, to_train=True), _Watch(trial, trial_seconds)
        try:
            if isinstance(model, TrainedRecommender):
                training = candidate.resolved()[1]
                fit(model, graph, validation, training, candidate.seed, False, report=watch, names=names)
            else:
                watch.note(0, evaluate(model, validation, (20,))[0][MONITOR])
        except _StopTrial:
            logger.debug("trial %d: stopped", trial.number)
        except TrainingError as error:
            logger.warning("trial %d: %s", trial.number, error)
            raise require("optuna", "search").TrialPruned from error
        finally:
            trial.set_user_attr(_REACHED, watch.reached)
            reached = f"{watch.reached[VALID]:.4f} in {watch.reached['seconds']:.1f} s"
            logger.info("trial %d: %s %s with %s", trial.number, MONITOR, reached, trial.params)
        return watch.reached[VALID]

    return objective


def _result(config: RunConfig, space: Space, ended: Sequence[Any]) -> SearchResult:
    """Trials that ended as a table, the best first, and what it chose."""
    if not ended:
        raise TrainingError("no trial came to its end", "give the search more time")
    parts = [(trial, chosen(trial.params, space), trial.user_attrs[_REACHED]) for trial in ended]
    rows = [{"trial": t.number, "state": t.state.name.lower(), **choices, **reached} for t, choices, reached in parts]
    best, *_ = rows = sorted(rows, key=lambda row: (row["state"], -row[VALID]))
    if best["state"] != "complete":
        raise TrainingError(
            f"no trial kept a finite loss; the best of {len(rows)} had {best[VALID]:.4f}",
            "search on with more trials or another space",
        )
    settings = config.changed({name: best[name] for name in space})
    return SearchResult(settings, best[VALID], best["seconds"], pd.DataFrame(rows))


def save_tuned(config: RunConfig, result: SearchResult, trial_seconds: float | None) -> Path:
    """Keep what a search found as the tuned settings of its model and data set; returns the file."""
    data, trials = Dataset.open(config.dataset), result.trials
    return Tuned(
        **result.config.model_dump(include={"model", "preset", "settings", "training", "seed"}),
        dataset=data.name,
        valid=round(result.valid, 6),
        trials=len(trials),
        pruned=int((trials["state"] == "pruned").sum()),
        capped=int(trials["capped"].sum()),
        trial_seconds=trial_seconds,
        seconds=round(float(trials["seconds"].sum()), 1),
        data_sha256=data_version(data),
        versions=declared_for(describe(result.config, data), data),
        commit=commit(),
        date=storage.now()[:10],
    ).save()
