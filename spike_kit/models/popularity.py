"""Popularity: every user is offered the items with the most train interactions."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from spike_kit.base.config import TrainingConfig
from spike_kit.data.graph import Graph
from spike_kit.data.vectors import ProfileVectors
from spike_kit.models.recommender import ModelConfig, Preset, Recommender
from spike_kit.models.sparse import count


class PopularityConfig(ModelConfig):
    """Popularity has no settings."""


class Popularity(Recommender):
    """Scores are the items' train counts, the same for every user."""

    title: ClassVar = "Popularity"
    config_class: ClassVar = PopularityConfig
    presets: ClassVar = {"recommended": Preset(PopularityConfig(), TrainingConfig())}

    def __init__(
        self,
        config: PopularityConfig,
        graph: Graph,
        vectors: ProfileVectors | None = None,  # noqa: ARG002 (one signature for all models)
        generator: torch.Generator | None = None,  # noqa: ARG002
    ) -> None:
        self.config = config
        self.counts = count(graph.train_item, graph.n_items).float()

    @property
    def device(self) -> torch.device:
        """Device of the counts."""
        return self.counts.device

    def tensors(self) -> dict[str, Tensor]:
        """The counts."""
        return {"counts": self.counts}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Replace the counts."""
        self.counts = tensors["counts"].to(self.device)

    def score(self, users: Tensor) -> Tensor:
        """Train counts ``[n, I]``, equal in every row."""
        return self.counts.expand(users.numel(), -1)
