"""Search for settings on validation: Optuna with a sqlite file, resumable, the same budget for every model.

Two things can be searched for: the best validation NDCG@20, or the least time of training that reaches a given one.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from spike_kit.base import paths, storage
from spike_kit.base.errors import ConfigError, TrainingError, require
from spike_kit.base.seeds import stream_seed
from spike_kit.data.dataset import Dataset
from spike_kit.data.graph import Graph
from spike_kit.evaluation.ranking import RankingTask, evaluate
from spike_kit.experiments.run import RunConfig, build_model, check_memory, data_version, describe, text_dim
from spike_kit.experiments.search_space import Range, Space, as_json, chosen, space_of, suggest, with_settings
from spike_kit.experiments.tuned import Tuned, stamp, write_tuned
from spike_kit.models import find_model
from spike_kit.models.recommender import ModelConfig, TrainedConfig, TrainedRecommender
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

    @property
    def settings(self) -> dict[str, Any]:
        """Changes to the preset of the model, for `RunConfig`."""
        return self.config.settings

    @property
    def training(self) -> dict[str, Any]:
        """Changes to the preset of its training."""
        return self.config.training


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
        Values by name of a setting, of the model or of its training; default: `QUALITY_SPACE` of the model, or
        `TIME_SPACE` if there is a target.
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
    if trials < 1:
        raise ConfigError(f"{trials} trials were asked for, expected at least 1")
    if timeout is not None and not timeout > 0:
        raise ConfigError(f"the timeout is {timeout} seconds, expected more than 0")
    if trial_seconds is not None and not trial_seconds > 0:
        raise ConfigError(f"a trial may take {trial_seconds} seconds, expected more than 0")
    if target is not None and not 0 < target < 1:
        raise ConfigError(f"the target is {target}, expected a validation {MONITOR} between 0 and 1")
    optuna = require("optuna", "search")
    space = space_of(config, target is not None, space)
    data = Dataset.open(config.dataset)
    key: list[Any] = [describe(config, data), as_json(space)]
    if target is not None:
        key.append({"target": target, "device": str(device), "threads": torch.get_num_threads()})
    if trial_seconds is not None:
        key.append({"trial_seconds": trial_seconds})
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    found = optuna.create_study(
        storage=f"sqlite:///{search_path(config, data)}",
        study_name=storage.sha256_text(storage.canonical_json(key))[:12],
        direction="maximize" if target is None else "minimize",
        load_if_exists=True,
    )
    done = len(_finished(found))
    seed = stream_seed(config.seed, f"search after {done} trials") % 2**32
    trained = issubclass(find_model(config.model), TrainedRecommender)
    if trained:
        found.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(3, trials // 3), constant_liar=False)
    else:
        choices = {name: list(values) for name, values in space.items() if not isinstance(values, Range)}
        found.sampler, trials = optuna.samplers.GridSampler(choices, seed=0), math.prod(map(len, choices.values()))
    found.pruner = (
        optuna.pruners.MedianPruner(
            n_startup_trials=3, n_warmup_steps=WARMUP_EPOCHS if trial_seconds is None else WARMUP_SHARES
        )
        if target is None
        else optuna.pruners.NopPruner()
    )
    for start in _starts(config, space) if trained else ():
        if not any(_is_of(trial, start) for trial in found.trials):
            found.enqueue_trial(start)
    objective = _Objective(config, data, space, torch.device(device), target, trial_seconds)
    if done < trials:
        found.optimize(objective, n_trials=trials - done, timeout=timeout, callbacks=[_log])
    return _result(config, space, _finished(found), target)


def save_tuned(config: RunConfig, result: SearchResult, trial_seconds: float | None) -> Path:
    """Keep what a search found as the tuned settings of its model and data set; returns the file."""
    data, trials = Dataset.open(config.dataset), result.trials
    return write_tuned(
        Tuned(
            model=config.model,
            dataset=data.name,
            preset=config.preset,
            settings=result.settings,
            training=result.training,
            valid=round(result.valid, 6),
            trials=len(trials),
            pruned=int((trials["state"] == "pruned").sum()),
            capped=int(trials["capped"].sum()),
            trial_seconds=trial_seconds,
            seconds=round(float(trials["seconds"].sum()), 1),
            seed=config.seed,
            data_sha256=data_version(data),
            **stamp(),
        )
    )


def search_path(config: RunConfig, data: Dataset) -> Path:
    """Sqlite file with the searches of a model on a data set; its folder is made."""
    file = paths.data_root() / "searches" / f"{config.model}-{data.name}.sqlite"
    with storage.storage_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    return file


class _StopTrial(Exception):  # noqa: N818 (nothing went wrong)
    """Ends the training of a trial whose outcome is known."""


class _Objective:
    """Trains with what a trial chooses; gives validation NDCG@20 or, with a target, the seconds until it is reached."""

    def __init__(
        self,
        config: RunConfig,
        data: Dataset,
        space: Space,
        device: torch.device,
        target: float | None,
        trial_seconds: float | None,
    ) -> None:
        self.config, self.data, self.space = config, data, space
        self.target, self.trial_seconds, self._told = target, trial_seconds, 0
        self.graph = Graph.from_tables(data.tables).to(device)
        self.validation = RankingTask.from_tables(data.tables, "valid", device)
        self.validation.check()

    def __call__(self, trial: Any) -> float:
        pruned = require("optuna", "search").TrialPruned
        candidate = with_settings(self.config, suggest(trial, self.space))
        settings, training = candidate.resolved()
        if not isinstance(settings, TrainedConfig):
            return self._without_training(trial, candidate, settings)
        dim = text_dim(candidate, self.data, settings)
        check_memory(settings, self.graph, dim, training.batch_size, self.graph.device)
        model = build_model(candidate, self.data, settings, self.graph)
        assert isinstance(model, TrainedRecommender)
        complete = [other for other in _finished(trial.study) if other.state.name == "COMPLETE"]
        fastest = min((other.user_attrs[_REACHED]["seconds"] for other in complete), default=math.inf)
        reached = {VALID: 0.0, "best_epoch": 0, "epochs": 0, "seconds": 0.0, "capped": False}
        started, self._told = time.perf_counter(), 0

        def report(row: EpochRow) -> None:
            capped = self.trial_seconds is not None and time.perf_counter() - started > self.trial_seconds
            if capped and VALID not in row:
                reached["capped"] = True
                raise _StopTrial
            if VALID not in row:
                return
            epoch, value = int(row["epoch"]), row[VALID]
            reached.update(epochs=epoch, seconds=time.perf_counter() - started)
            if value > reached[VALID]:
                reached.update({VALID: value, "best_epoch": epoch})
            if self.target is None:
                if self._is_worse(trial, epoch, value, reached):
                    raise pruned
                if capped:
                    reached["capped"] = True
                    raise _StopTrial
            elif value >= self.target or reached["seconds"] > fastest:
                raise _StopTrial

        try:
            fit(model, self.graph, self.validation, training, candidate.seed, progress=False, report=report)
        except _StopTrial:
            logger.debug("trial %d: stopped in epoch %d", trial.number, reached["epochs"])
        except TrainingError as error:
            logger.warning("trial %d: %s", trial.number, error)
            raise pruned from error
        finally:
            trial.set_user_attr(_REACHED, reached)
        if self.target is None:
            if reached[VALID] == 0 and reached["capped"]:
                raise pruned
            return reached[VALID]
        if reached[VALID] >= self.target:
            return reached["seconds"]
        trial.report(self.target - reached[VALID], 0)
        raise pruned

    def _is_worse(self, trial: Any, epoch: int, value: float, reached: Mapping[str, float]) -> bool:
        """Tell Optuna how far a trial is; whether it is to be given up.

        Without a limit trials are compared after equally many epochs. With one, they are after equal time: epochs of
        large batches are cheap, and would lose every comparison by number.
        """
        if self.trial_seconds is None:
            trial.report(value, epoch)
            return trial.should_prune()
        share = int(reached["seconds"] / self.trial_seconds * SHARES)
        for step in range(self._told, share + 1):
            trial.report(reached[VALID], step)
        self._told = max(self._told, share + 1)
        return trial.should_prune()

    def _without_training(self, trial: Any, candidate: RunConfig, settings: ModelConfig) -> float:
        """Validation NDCG@20 of a model that has nothing to train."""
        started = time.perf_counter()
        model = build_model(candidate, self.data, settings, self.graph)
        value = evaluate(model, self.validation, (20,))[0][MONITOR]
        seconds = time.perf_counter() - started
        trial.set_user_attr(_REACHED, {VALID: value, "best_epoch": 0, "epochs": 0, "seconds": seconds, "capped": False})
        return value


def _finished(found: Any) -> list[Any]:
    """Trials that came to their end; one that was interrupted or killed did not."""
    states = require("optuna", "search").trial.TrialState
    return found.get_trials(deepcopy=False, states=(states.COMPLETE, states.PRUNED))


def _starts(config: RunConfig, space: Space) -> Iterator[dict[str, Any]]:
    """First trials: the preset as far as the space holds it, once under each loss."""
    settings, usual = config.resolved()
    values = {**dict(settings), **dict(usual)}
    known = {name: values[name] for name, options in space.items() if values[name] in options}
    if "loss" not in space:
        yield known
        return
    losses = space["loss"]
    for loss in losses if isinstance(losses, Sequence) else ():
        yield {**known, "loss": loss}


def _is_of(trial: Any, start: dict[str, Any]) -> bool:
    """Whether a trial is a start that was tried to its end, or still waits."""
    if trial.state.name == "WAITING":
        return trial.system_attrs.get("fixed_params") == start
    finished = trial.state.name in ("COMPLETE", "PRUNED")
    return finished and all(trial.params.get(name) == value for name, value in start.items())


def _log(_: Any, trial: Any) -> None:
    reached = trial.user_attrs[_REACHED]
    logger.info(
        "trial %d: %s, %s %.4f, %.1f s, %s",
        trial.number,
        trial.state.name.lower(),
        MONITOR,
        reached[VALID],
        reached["seconds"],
        trial.params,
    )


def _result(config: RunConfig, space: Space, finished: Sequence[Any], target: float | None) -> SearchResult:
    rows = [
        {
            "trial": trial.number,
            "state": trial.state.name.lower(),
            **chosen(trial.params, space),
            **trial.user_attrs[_REACHED],
        }
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
        wanted = (
            "no trial kept a finite loss" if target is None else f"no trial reached a validation {MONITOR} of {target}"
        )
        raise TrainingError(
            f"{wanted}; the best of {len(table)} had {best[VALID]:.4f}",
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
