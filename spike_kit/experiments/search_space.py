"""What one search may choose, and settings by their names: those of a model and those of its training in one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spike_kit.base.config import TrainingConfig
from spike_kit.base.errors import ConfigError, require, some
from spike_kit.experiments.run import RunConfig
from spike_kit.models import find_model, find_preset
from spike_kit.models.base import TrainedRecommender
from spike_kit.models.spaces import TIME, Range, Space

DIGITS = 4
"""Significant digits of a number drawn from a range; a setting is to be read and typed."""


def space_of(config: RunConfig, timed: bool, given: Space | None = None) -> Space:
    """Space of a search, without the settings that the configuration fixes.

    Parameters
    ----------
    config
        Model, preset, and fixed settings.
    timed
        Whether time to quality is searched for; then the default is `spike_kit.models.spaces.TIME`, else the
        ``search_space`` of the model.
    given
        Space to take instead of the default.

    Raises
    ------
    ConfigError
        If the model has nothing to search (for time: is not trained), a name or a value is unknown, nothing is left, or
        a model without training is given a range.
    """
    model = find_model(config.model)
    trained = issubclass(model, TrainedRecommender)
    if not (trained or (model.search_space and not timed)):
        raise ConfigError(f"model {config.model} has no settings to search", "choose a model that is trained")
    space = given if given is not None else TIME if timed else model.search_space
    left = {name: values for name, values in space.items() if name not in {**config.settings, **config.training}}
    for name, values in left.items():
        options = (values.low, values.high) if isinstance(values, Range) else values
        if isinstance(values, Range) and not trained:
            raise ConfigError(f"setting {name!r} of {config.model} is searched by a grid", "give choices, not a range")
        if not options:
            raise ConfigError(f"setting {name!r} has no value to choose from", "give at least one")
        for value in options:
            with_settings(config, {name: value}).resolved()
    if not left:
        raise ConfigError("every setting of the space is fixed: nothing is left to search", "fix fewer of them")
    return left


def with_settings(config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """Copy a configuration with settings changed, those of the model and those of its training in one mapping.

    Raises
    ------
    ConfigError
        If neither has a setting of a name.
    """
    known = [*type(find_preset(config.model).model).model_fields, *TrainingConfig.model_fields]
    if unknown := [name for name in changes if name not in known]:
        raise ConfigError(
            f"neither model {config.model} nor its training has a setting named {some(map(repr, unknown))}",
            f"known: {some(known, limit=40)}",
        )
    training = {name: value for name, value in changes.items() if name in TrainingConfig.model_fields}
    settings = {name: value for name, value in changes.items() if name not in training}
    return config.replace(settings={**config.settings, **settings}, training={**config.training, **training})


def parse_fixed(config: RunConfig, texts: Sequence[str]) -> dict[str, Any]:
    """Read ``name=value`` pairs as settings of the model or of its training, values as their types say.

    Raises
    ------
    ConfigError
        If a text is no such pair, a name is unknown or given twice, or a value is not allowed.
    """
    pairs: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.replace("-", "_")
        if not (name and equals and value):
            raise ConfigError(f"{text!r} fixes nothing", "write --fix name=value, for example --fix epochs=50")
        if name in pairs:
            raise ConfigError(f"setting {name!r} is fixed twice", "give it once")
        pairs[name] = value
    settings, training = with_settings(config, pairs).resolved()
    parsed = {**dict(settings), **dict(training)}
    return {name: parsed[name] for name in pairs}


def distributions(space: Space) -> dict[str, Any]:
    """The space as Optuna's distributions, by name of a setting."""
    optuna = require("optuna.distributions", "search")
    return {
        name: optuna.FloatDistribution(values.low, values.high, log=values.log)
        if isinstance(values, Range)
        else optuna.CategoricalDistribution(values)
        for name, values in space.items()
    }


def chosen(params: Mapping[str, Any], space: Space) -> dict[str, Any]:
    """Settings a trial stands for: its parameters, those of ranges rounded to `DIGITS` digits but within the range."""
    rounded = {
        name: min(max(float(f"{params[name]:.{DIGITS}g}"), values.low), values.high)
        for name, values in space.items()
        if isinstance(values, Range)
    }
    return {name: rounded.get(name, params[name]) for name in space}
