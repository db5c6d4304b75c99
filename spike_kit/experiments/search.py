"""Search for settings on validation: Optuna with a sqlite file, resumable, the same budget for every model.

Two things can be searched for: the best validation NDCG@20, or the least time of training that reaches a given one.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from spike_kit.base import paths, storage
from spike_kit.base.errors import ConfigError, StorageError, TrainingError, require
from spike_kit.base.seeds import stream_seed
from spike_kit.data.dataset import Dataset
from spike_kit.data.graph import Graph
from spike_kit.evaluation.ranking import RankingTask, evaluate
from spike_kit.experiments import run_folder
from spike_kit.experiments.run import RunConfig, build_model, data_version, declared_versions, describe
from spike_kit.experiments.search_space import chosen, distributions, space_of, with_settings
from spike_kit.experiments.tuned import Tuned, write_tuned
from spike_kit.models import find_model
from spike_kit.models.base import TrainedRecommender
from spike_kit.models.spaces import Range, Space
from spike_kit.training.checkpoint import EpochRow
from spike_kit.training.loop import MONITOR, fit

logger = logging.getLogger(__name__)

WARMUP_EPOCHS = 20
"""A trial is not pruned before this epoch; after it, it is when it is below the median of the trials so far."""

SHARES = 18
"""Where a trial has a time limit, trials are compared after equal time, at each of so many shares of the limit."""
WARMUP_SHARES = 4
"""Shares of the limit before which such a trial is not pruned."""

VALID = f"valid_{MONITOR}"

_REACHED = "reached"
_COUNTED = ("WAITING", "COMPLETE", "PRUNED")
"""States of trials that need not be planned again; one that was interrupted does."""


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
        Its training time; in a search for time, until it reached the target.
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
    target: float | None = None,
    timeout: float | None = None,
    trial_seconds: float | None = None,
) -> SearchResult:
    """Try settings with Optuna's TPE sampler until ``trials`` are done; earlier trials count.

    Only validation is looked at, and no run folder is written. The trials stand in data/searches: whatever ends a
    search loses no more than the trial it was at, and the same call goes on with the others. Pruned trials count, those
    that were cut off from outside do not.

    Parameters
    ----------
    config
        Model, data set, seed, and settings that are held fixed (they are not searched).
    trials
        Trials in all.
    space
        Values by name of a setting, of the model or of its training; default: the model's own
        ``search_space``, or `spike_kit.models.spaces.TIME` if there is a target.
    device
        Where to train.
    target
        Validation NDCG@20: search for the least time of training (validations included) that reaches it. A trial stops
        where it does; one that is still below it when the fastest so far had reached it, or ends below it, is pruned.
        Such times are comparable only on one device with one number of threads, so these belong to the identity of
        the search.
    timeout
        Seconds after which no further trial starts.
    trial_seconds
        Seconds after which a trial ends at its next epoch, with the best it reached; it belongs to the identity of the
        search. A trial that ends so before its first validation is pruned.

    Raises
    ------
    ConfigError
        If a number is out of range, a name or a value of the space is unknown, or the model has nothing to search.
    TrainingError
        If no trial completed: no loss stayed finite, or none reached the target.
    """
    for wrong, message in (
        (trials < 1, f"{trials} trials were asked for, expected at least 1"),
        (not (timeout is None or timeout > 0), f"the timeout is {timeout} seconds, expected more than 0"),
        (not (trial_seconds is None or trial_seconds > 0), f"a trial may take {trial_seconds} seconds, expected more"),
        (not (target is None or 0 < target < 1), f"the target is {target}, expected a {MONITOR} between 0 and 1"),
    ):
        if wrong:
            raise ConfigError(message)
    space = space_of(config, target is not None, space)
    data = Dataset.open(config.dataset)
    file = paths.data_root() / "searches" / f"{config.model}-{data.name}.sqlite"
    numbers = {name: vars(values) if isinstance(values, Range) else values for name, values in space.items()}
    timed = [target, str(device), torch.get_num_threads()] if target else []
    question = storage.canonical_json([describe(config, data), numbers, timed, trial_seconds])
    trained = issubclass(find_model(config.model), TrainedRecommender)
    planned = _starts(config, space) if trained else _grid(space)
    trials = trials if trained else len(planned)
    with _file_errors(file):
        found = _study(file, storage.sha256_text(question)[:12], config.seed, trials, target is None, trial_seconds)
        known = [trial.system_attrs.get("fixed_params") for trial in found.trials if trial.state.name in _COUNTED]
        for params in planned:
            if params not in known:
                found.enqueue_trial(params)
        _try(found, _Objective(config, data, space, device, target, trial_seconds), trials, timeout)
        return _result(config, space, _finished(found), target)


def _study(file: Path, name: str, seed: int, trials: int, by_quality: bool, trial_seconds: float | None) -> Any:
    """Optuna's study of a search, new or gone on with."""
    optuna = require("optuna", "search")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    found = optuna.create_study(
        storage=f"sqlite:///{file}",
        study_name=name,
        direction="maximize" if by_quality else "minimize",
        load_if_exists=True,
    )
    seed = stream_seed(seed, f"search after {len(_finished(found))} trials") % 2**32
    found.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(3, trials // 3), constant_liar=False)
    warmup = WARMUP_EPOCHS if trial_seconds is None else WARMUP_SHARES
    median = optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=warmup)
    found.pruner = median if by_quality else optuna.pruners.NopPruner()
    return found


@contextmanager
def _file_errors(file: Path) -> Iterator[None]:
    """Turn an error of the file of trials (damaged, locked, a full disk) into a `StorageError` that names it."""
    broken = require("sqlalchemy.exc", "search").SQLAlchemyError, require("optuna", "search").exceptions.OptunaError
    try:
        with storage.storage_errors(file):
            file.parent.mkdir(parents=True, exist_ok=True)
        yield
    except broken as error:
        raise StorageError(
            f"{file} cannot be used: {str(error.__cause__ or error).splitlines()[0]}",
            "wait until nobody else uses it; if it is damaged, move it away, and the search begins anew",
        ) from error


def _try(found: Any, objective: _Objective, trials: int, timeout: float | None) -> None:
    """Try settings until so many trials are done, or the time is over."""
    optuna = require("optuna", "search")
    wanted, started = distributions(objective.space), time.perf_counter()
    for _ in range(trials - len(_finished(found))):
        if timeout is not None and time.perf_counter() - started >= timeout:
            break
        trial = found.ask(wanted)
        try:
            done = found.tell(trial, objective(trial))
        except optuna.TrialPruned:
            done = found.tell(trial, state=optuna.trial.TrialState.PRUNED)
        reached = done.user_attrs[_REACHED]
        shown = (done.state.name.lower(), MONITOR, reached[VALID], reached["seconds"], done.params)
        logger.info("trial %d: %s, %s %.4f, %.1f s, %s", done.number, *shown)


def save_tuned(config: RunConfig, result: SearchResult, trial_seconds: float | None) -> Path:
    """Keep what a search found as the tuned settings of its model and data set; returns the file."""
    data, trials = Dataset.open(config.dataset), result.trials
    return write_tuned(
        Tuned(
            model=config.model,
            dataset=data.name,
            preset=config.preset,
            settings=result.config.settings,
            training=result.config.training,
            valid=round(result.valid, 6),
            trials=len(trials),
            pruned=int((trials["state"] == "pruned").sum()),
            capped=int(trials["capped"].sum()),
            trial_seconds=trial_seconds,
            seconds=round(float(trials["seconds"].sum()), 1),
            seed=config.seed,
            data_sha256=data_version(data),
            versions=declared_versions(config.model),
            commit=run_folder.commit(),
            date=storage.now()[:10],
        )
    )


class _StopTrial(Exception):  # noqa: N818 (nothing went wrong)
    """Ends the training of a trial whose outcome is known."""


class _Watch:
    """Follows one trial: notes what it reached, and ends it where that is decided.

    Parameters
    ----------
    trial
        Optuna's trial.
    target, trial_seconds
        As in `search`.
    fastest
        Seconds of the fastest trial so far that reached the target.
    """

    def __init__(self, trial: Any, target: float | None, trial_seconds: float | None, fastest: float) -> None:
        self.trial, self.target, self.trial_seconds, self.fastest = trial, target, trial_seconds, fastest
        self.reached = {VALID: 0.0, "best_epoch": 0, "epochs": 0, "seconds": 0.0, "capped": False}
        self._told, self._started = 0, time.perf_counter()

    def note(self, epoch: int, value: float) -> None:
        """Note a validation."""
        self.reached.update(epochs=epoch, seconds=time.perf_counter() - self._started)
        if value > self.reached[VALID]:
            self.reached.update({VALID: value, "best_epoch": epoch})

    def __call__(self, row: EpochRow) -> None:
        """Look at an epoch of the training."""
        limit = self.trial_seconds
        capped = limit is not None and time.perf_counter() - self._started > limit
        if VALID in row:
            self.note(int(row["epoch"]), row[VALID])
            if self.target is not None:
                if row[VALID] >= self.target or self.reached["seconds"] > self.fastest:
                    raise _StopTrial
            elif self._is_worse(int(row["epoch"]), row[VALID]):
                raise require("optuna", "search").TrialPruned
        if capped:
            self.reached["capped"] = True
            raise _StopTrial

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

    def outcome(self) -> float | None:
        """Value of the trial that has ended; none where it is to be given up."""
        best = self.reached[VALID]
        if self.target is None:
            return None if self.reached["capped"] and not best else best
        if best >= self.target:
            return self.reached["seconds"]
        self.trial.report(self.target - best, 0)
        return None


class _Objective:
    """Trains with what a trial chooses; gives validation NDCG@20 or, with a target, the seconds until it is reached."""

    def __init__(
        self,
        config: RunConfig,
        data: Dataset,
        space: Space,
        device: torch.device | str,
        target: float | None,
        trial_seconds: float | None,
    ) -> None:
        self.config, self.data, self.space = config, data, space
        self.target, self.trial_seconds = target, trial_seconds
        self.graph = Graph.from_tables(data.tables).to(device)
        self.validation = RankingTask.from_tables(data.tables, "valid", device)
        self.validation.check()

    def __call__(self, trial: Any) -> float:
        pruned = require("optuna", "search").TrialPruned
        candidate = with_settings(self.config, chosen(trial.params, self.space))
        model = build_model(candidate, self.data, self.graph, to_train=True)
        times = [other.user_attrs[_REACHED]["seconds"] for other in _finished(trial.study, complete=True)]
        watch = _Watch(trial, self.target, self.trial_seconds, min(times, default=math.inf))
        try:
            if isinstance(model, TrainedRecommender):
                training = candidate.resolved()[1]
                fit(model, self.graph, self.validation, training, candidate.seed, progress=False, report=watch)
            else:
                watch.note(0, evaluate(model, self.validation, (20,))[0][MONITOR])
        except _StopTrial:
            logger.debug("trial %d: stopped in epoch %d", trial.number, watch.reached["epochs"])
        except TrainingError as error:
            logger.warning("trial %d: %s", trial.number, error)
            raise pruned from error
        finally:
            trial.set_user_attr(_REACHED, watch.reached)
        value = watch.outcome()
        if value is None:
            raise pruned
        return value


def _finished(found: Any, complete: bool = False) -> list[Any]:
    """Trials that came to their end, or were completed; one that was interrupted or killed did not."""
    states = require("optuna", "search").trial.TrialState
    return found.get_trials(deepcopy=False, states=(states.COMPLETE,) if complete else (states.COMPLETE, states.PRUNED))


def _starts(config: RunConfig, space: Space) -> list[dict[str, Any]]:
    """First trials: the preset as far as the space holds it, once under each loss."""
    settings, usual = config.resolved()
    values = {**dict(settings), **dict(usual)}
    known = {name: values[name] for name, options in space.items() if values[name] in options}
    losses = space.get("loss")
    return [{**known, "loss": loss} for loss in losses] if isinstance(losses, Sequence) else [known]


def _grid(space: Space) -> list[dict[str, Any]]:
    """Every combination of choices."""
    choices = [values for values in space.values() if isinstance(values, Sequence)]
    return [dict(zip(space, values, strict=True)) for values in product(*choices)]


def _result(config: RunConfig, space: Space, finished: Sequence[Any], target: float | None) -> SearchResult:
    rows = [
        {"trial": trial.number, "state": trial.state.name.lower(), **chosen(trial.params, space)}
        | trial.user_attrs[_REACHED]
        for trial in finished
    ]
    if not rows:
        raise TrainingError("no trial came to its end", "give the search more time")
    table = pd.DataFrame(rows)
    better = -table[VALID]
    if target is not None:
        better = better.where(table["state"] != "complete", table["seconds"])
    table = table.assign(better=better).sort_values(["state", "better"], ignore_index=True).drop(columns="better")
    best = table.iloc[0]
    if best["state"] != "complete":
        missed = "kept a finite loss" if target is None else f"reached a validation {MONITOR} of {target}"
        raise TrainingError(
            f"no trial {missed}; the best of {len(table)} had {best[VALID]:.4f}",
            "search on with more trials, a lower target or another space",
        )
    number = best["trial"]
    params = next(trial.params for trial in finished if trial.number == number)
    return SearchResult(
        config=with_settings(config, chosen(params, space)),
        valid=float(best[VALID]),
        seconds=float(best["seconds"]),
        trials=table,
    )
