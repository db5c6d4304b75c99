"""The models, and the registry that names them."""

from __future__ import annotations

from spike_kit.errors import ConfigError, some
from spike_kit.models.bprmf import BprMf
from spike_kit.models.lightgcn import LightGcn
from spike_kit.models.popularity import Popularity
from spike_kit.models.recommender import Preset, Recommender, TrainedRecommender
from spike_kit.models.spike import Spike

MODELS: dict[str, type[Recommender]] = {
    "spike": Spike,
    "bprmf": BprMf,
    "lightgcn": LightGcn,
    "popularity": Popularity,
}
"""Every model by its name."""

__all__ = ["MODELS", "Preset", "Recommender", "TrainedRecommender", "find_model", "find_preset"]


def find_model(name: str) -> type[Recommender]:
    """Look up a model.

    Raises
    ------
    ConfigError
        If the name is unknown; the message lists the known ones.
    """
    if name not in MODELS:
        raise ConfigError(f"no model named {name!r}", f"known: {some(MODELS)}")
    return MODELS[name]


def find_preset(model: str, preset: str = "recommended") -> Preset:
    """Look up a named setting of a model.

    Raises
    ------
    ConfigError
        If the model or the preset is unknown; the message lists the known ones.
    """
    presets = find_model(model).presets
    if preset not in presets:
        raise ConfigError(f"model {model} has no preset {preset!r}", f"known: {some(presets)}")
    return presets[preset]
