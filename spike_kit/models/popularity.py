"""Popularity: every user is offered the items with the most train interactions."""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar

from torch import Tensor

from spike_kit.base.config import TrainingConfig
from spike_kit.models.base import FittedRecommender, ModelConfig, Preset


class PopularityConfig(ModelConfig):
    """Popularity has no settings."""


class Popularity(FittedRecommender[PopularityConfig]):
    """Scores are the items' train counts, the same for every user."""

    title: ClassVar = "Popularity"
    config_class: ClassVar = PopularityConfig
    presets: ClassVar = {"recommended": Preset(PopularityConfig(), TrainingConfig())}

    @cached_property
    def fitted(self) -> dict[str, Tensor]:
        """The counts ``[I]``."""
        return {"counts": self.pattern.column_degree.float()}

    def score(self, users: Tensor) -> Tensor:
        """Train counts ``[n, I]``, equal in every row."""
        return self.fitted["counts"].expand(users.numel(), -1)
