"""What item-kNN and EASE^R share: scores from the interactions and a matrix of items by items, without training."""

from __future__ import annotations

from typing import Generic, TypeVar

import torch

from spike_kit.data.graph import Graph
from spike_kit.data.vectors import ProfileVectors
from spike_kit.models.recommender import ModelConfig, Recommender
from spike_kit.models.sparse import SparsePattern

ConfigT = TypeVar("ConfigT", bound=ModelConfig)


class ItemModel(Recommender, Generic[ConfigT]):
    """Train interactions as a pattern of users by items."""

    def __init__(
        self,
        config: ConfigT,
        graph: Graph,
        vectors: ProfileVectors | None = None,  # noqa: ARG002 (one signature for all models)
        generator: torch.Generator | None = None,  # noqa: ARG002
    ) -> None:
        self.config: ConfigT = config
        self.pattern = SparsePattern(graph.train_user, graph.train_item, graph.n_users, graph.n_items)

    @property
    def device(self) -> torch.device:
        """Device of the train interactions."""
        return self.pattern.rows.device
