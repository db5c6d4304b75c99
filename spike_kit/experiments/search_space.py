"""What a search may choose: names of settings, each with its choices or its range."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

from spike_kit.base.config import TrainingConfig
from spike_kit.base.errors import ConfigError, some
from spike_kit.experiments.run import RunConfig
from spike_kit.models import find_model
from spike_kit.models.recommender import TrainedRecommender

DIGITS = 4
"""Significant digits of a number drawn from a range; a setting is to be read and typed."""


@dataclass(frozen=True)
class Range:
    """All numbers from ``low`` to ``high``, drawn evenly or, with ``log``, evenly in their logarithm.

    Raises
    ------
    ConfigError
        If the range is empty, not finite, or reaches 0 on a logarithmic scale.
    """

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        if not (-math.inf < self.low < self.high < math.inf) or (self.log and self.low <= 0):
            raise ConfigError(f"{self} is no range", "low < high, and low > 0 where log is set")

    def __contains__(self, value: object) -> bool:
        """Whether a number lies in the range."""
        return isinstance(value, int | float) and self.low <= value <= self.high


Values: TypeAlias = Sequence[Any] | Range
"""What one setting may be: one of some choices, or any number of a range."""
Space: TypeAlias = Mapping[str, Values]
"""Values by the name of a setting of the model or of its training."""

_SHARED: Space = {
    "learning_rate": Range(5e-4, 2e-2, log=True),
    "loss": ("bpr", "softmax", "cosine_softmax"),
    "temperature": Range(0.05, 0.5, log=True),
    "l2": (0.0, 1e-6, 1e-5, 1e-4, 1e-3),
    "batch_size": (2048, 4096, 16_384, 65_536),
}
_PROPAGATED: Space = {**_SHARED, "layers": (1, 2, 3, 4)}
_CONTRAST: Space = {
    "contrast_weight": Range(1e-3, 1.0, log=True),
    "contrast_temperature": Range(0.05, 1.0, log=True),
}
_TEXT: Space = {
    "text_weight": Range(1e-3, 1.0, log=True),
    "text_temperature": Range(0.05, 1.0, log=True),
}
QUALITY_SPACE: dict[str, Space] = {
    "bprmf": _SHARED,
    "lightgcn": _PROPAGATED,
    "sgl": {**_PROPAGATED, **_CONTRAST, "view_keep": Range(0.5, 0.95)},
    "lightgcl": {**_PROPAGATED, **_CONTRAST, "rank": (5, 10, 20)},
    "kgrec": {
        **_SHARED,
        "layers": (1, 2, 3),
        "edge_keep": Range(0.3, 1.0),
        "reconstruction_weight": Range(1e-3, 1.0, log=True),
        "contrast_weight": Range(1e-4, 0.1, log=True),
        "contrast_temperature": Range(0.05, 1.0, log=True),
    },
    "diffkg": {
        **_PROPAGATED,
        **_CONTRAST,
        "kg_layers": (1, 2),
        "residual": Range(0.1, 1.0),
        "edge_keep": Range(0.1, 1.0),
        "predict_on": ("original", "denoised"),
    },
    "rlmrec_con": {**_PROPAGATED, **_TEXT},
    "rlmrec_gen": {**_PROPAGATED, **_TEXT, "mask_share": Range(0.05, 0.3)},
    "kgat": {**_SHARED, "layers": (1, 2, 3), "message_dropout": (0.0, 0.1, 0.3)},
    "kgin": {**_SHARED, "layers": (1, 2, 3), "edge_keep": Range(0.3, 1.0), "intents": (2, 4, 8)},
    "kgcl": {
        **_PROPAGATED,
        **_CONTRAST,
        "view_keep": Range(0.3, 0.9),
        "interaction_keep": Range(0.4, 0.9),
    },
    "colakg": {
        **_PROPAGATED,
        "neighbours": (5, 10, 20, 30),
        "text_dropout": (0.0, 0.2, 0.4, 0.6),
        "neighbour_dropout": (0.0, 0.2, 0.4, 0.6),
    },
    "spike": {
        **{name: values for name, values in _SHARED.items() if name != "loss"},
        "rho": Range(0.1, 2.0, log=True),
        "matching_weight": Range(0.05, 50.0, log=True),
    },
    "itemknn": {"neighbours": (20, 50, 100, 200, 500), "shrinkage": (0.0, 10.0, 100.0)},
    "ease": {"regularisation": (1.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)},
}
"""Space of a search for quality by model; what models share is offered to all of them alike. But the loss of SPiKE is
part of its recommended form: the softmax on cosines was its best one on validation of every data set of the study."""
TIME_SPACE: Space = {
    "batch_size": (512, 1024, 2048, 4096, 8192, 16_384, 32_768, 65_536),
    "learning_rate": Range(5e-4, 5e-2, log=True),
    "schedule": ("constant", "cosine", "linear"),
    "warmup_steps": (0, 50, 200),
    "temperature": Range(0.05, 0.5, log=True),
}
"""Space of a search for time to quality, the same for every model."""


def space_of(config: RunConfig, timed: bool, given: Space | None = None) -> dict[str, Values]:
    """Space of a search, without the settings that the configuration fixes.

    Parameters
    ----------
    config
        Model, preset, and fixed settings.
    timed
        Whether time to quality is searched for; then the default is `TIME_SPACE`, else `QUALITY_SPACE`.
    given
        Space to take instead of the default.

    Raises
    ------
    ConfigError
        If the model has nothing to search (for time: is not trained), a name or a value is unknown, nothing is left, or
        a model without training is given a range.
    """
    trained = issubclass(find_model(config.model), TrainedRecommender)
    if not trained and (timed or config.model not in QUALITY_SPACE):
        raise ConfigError(f"model {config.model} has no settings to search", "choose a model that is trained")
    space = given if given is not None else TIME_SPACE if timed else QUALITY_SPACE[config.model]
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
    _check_names(config, changes)
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


def _check_names(config: RunConfig, names: Mapping[str, Any]) -> None:
    known = [*find_model(config.model).config_class.model_fields, *TrainingConfig.model_fields]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(
            f"neither model {config.model} nor its training has a setting named {some(map(repr, unknown))}",
            f"known: {some(known, limit=40)}",
        )


def suggest(trial: Any, space: Space) -> dict[str, Any]:
    """Let an Optuna trial choose a value of every setting."""
    for name, values in space.items():
        if isinstance(values, Range):
            trial.suggest_float(name, values.low, values.high, log=values.log)
        else:
            trial.suggest_categorical(name, list(values))
    return chosen(trial.params, space)


def chosen(params: Mapping[str, Any], space: Space) -> dict[str, Any]:
    """Settings a trial stands for: its parameters, those of ranges rounded to `DIGITS` digits."""
    return {name: _rounded(params[name], values) for name, values in space.items()}


def _rounded(value: Any, values: Values) -> Any:
    return min(max(float(f"{value:.{DIGITS}g}"), values.low), values.high) if isinstance(values, Range) else value


def as_json(space: Space) -> dict[str, Any]:
    """Space as JSON values, equal for equal spaces."""
    return {name: asdict(values) if isinstance(values, Range) else list(values) for name, values in space.items()}
