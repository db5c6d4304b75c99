"""BPR-MF: matrix factorisation trained to rank (Rendle et al., UAI 2009)."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from spike_kit.config import TrainingConfig
from spike_kit.data.graph import Graph
from spike_kit.data.vectors import ProfileVectors
from spike_kit.models.layers import xavier_table
from spike_kit.models.recommender import Batch, Preset, TrainedConfig, TrainedRecommender


class BprMfConfig(TrainedConfig):
    """Settings of BPR-MF; only the shared ones."""

    l2: float = Field(default=1e-3, ge=0)
    """Coefficient of the L2 term on the embeddings of a batch."""


class BprMf(TrainedRecommender[BprMfConfig]):
    """Score of user u and item i: inner product of their embeddings, no bias."""

    config_class: ClassVar = BprMfConfig
    presets: ClassVar = {"recommended": Preset(BprMfConfig(), TrainingConfig(learning_rate=5e-3))}

    def __init__(
        self,
        config: BprMfConfig,
        graph: Graph,
        vectors: ProfileVectors | None,  # noqa: ARG002 (one signature for all models)
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.config = config
        self.user_embedding = xavier_table(graph.n_users, config.dim, generator)
        self.item_embedding = xavier_table(graph.n_items, config.dim, generator)
        self.to(graph.device)

    def draw(self, generator: torch.Generator) -> None:
        """Nothing to draw."""

    def training_losses(self, batch: Batch, draws: None = None) -> dict[str, Tensor]:  # noqa: ARG002
        """Recommendation loss and L2."""
        return self.ranking_losses(self.user_embedding, self.item_embedding, batch)

    def embeddings(self) -> tuple[Tensor, Tensor]:
        """Embedding tables ``[U, d]`` and ``[I, d]``."""
        return self.comparable(self.user_embedding, self.item_embedding)
