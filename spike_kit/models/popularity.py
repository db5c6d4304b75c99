"""Popularity: every user is offered the items with the most train interactions."""

from functools import cached_property
from typing import ClassVar

from torch import Tensor

from spike_kit.models.base import FittedRecommender, ModelConfig, Preset


class Popularity(FittedRecommender):
    """Scores are the items' train counts, the same for every user."""

    title: ClassVar = "Popularity"
    version: ClassVar = 2
    presets: ClassVar = {"recommended": Preset(ModelConfig())}

    @cached_property
    def fitted(self) -> dict[str, Tensor]:
        """The counts ``[I]``."""
        return {"counts": self.pattern.transpose.row_degree.float()}

    def score(self, users: Tensor) -> Tensor:
        """Train counts ``[n, I]``, equal in every row."""
        return self.fitted["counts"].expand(users.numel(), -1)
