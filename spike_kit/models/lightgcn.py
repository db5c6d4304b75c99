"""LightGCN: embeddings smoothed over the user-item graph (He et al., SIGIR 2020)."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from spike_kit.config import TrainingConfig
from spike_kit.data.graph import Graph
from spike_kit.data.vectors import ProfileVectors
from spike_kit.models import losses
from spike_kit.models.propagation import SparsePattern, spmm
from spike_kit.models.recommender import Batch, Preset, TableRecommender, TrainedConfig


class LightGcnConfig(TrainedConfig):
    """Settings of LightGCN."""

    layers: int = Field(default=3, ge=1)
    """Propagation layers (the authors' default)."""
    l2: float = Field(default=1e-4, ge=0)
    """Coefficient of the L2 term on the layer-0 embeddings of a batch (the authors' default)."""


class LightGcn(TableRecommender[LightGcnConfig]):
    """Final embeddings: mean over layers of powers of the normalised adjacency applied to the id embeddings."""

    title: ClassVar = "LightGCN"
    config_class: ClassVar = LightGcnConfig
    presets: ClassVar = {
        "recommended": Preset(
            LightGcnConfig(loss="cosine_softmax", layers=2, l2=0.0), TrainingConfig(learning_rate=2e-3)
        ),
        "bpr": Preset(LightGcnConfig(), TrainingConfig(learning_rate=5e-3)),
    }

    def __init__(
        self, config: LightGcnConfig, graph: Graph, vectors: ProfileVectors | None, generator: torch.Generator
    ) -> None:
        super().__init__(config, graph, vectors, generator)
        self.pattern = SparsePattern(graph.train_user, graph.train_item, graph.n_users, graph.n_items)
        user_degree = self.pattern.row_degree.index_select(0, graph.train_user)
        item_degree = self.pattern.column_degree.index_select(0, graph.train_item)
        self.weight = (user_degree * item_degree).float().rsqrt()
        self.transpose_weight = self.weight.index_select(0, self.pattern.transpose_order)

    def training_losses(self, batch: Batch, draws: None = None) -> dict[str, Tensor]:  # noqa: ARG002
        """Recommendation loss on the propagated embeddings, L2 on the layer-0 embeddings of the batch."""
        users, items = self._propagate()
        terms = self.ranking_losses(users, items, batch)
        if self.config.l2:
            rows = [self.user_embedding.index_select(0, batch.users)]
            rows.append(self.item_embedding.index_select(0, batch.positives))
            if self.config.loss == "bpr":
                rows.append(self.item_embedding.index_select(0, batch.negatives))
            terms["l2"] = self.config.l2 * losses.l2(*rows)
        return terms

    def embeddings(self) -> tuple[Tensor, Tensor]:
        """Propagated embeddings ``[U, d]`` and ``[I, d]``."""
        return self.comparable(*self._propagate())

    def _propagate(self) -> tuple[Tensor, Tensor]:
        transpose = self.pattern.transpose
        users, items = self.user_embedding, self.item_embedding
        user_sum, item_sum = users, items
        for _ in range(self.config.layers):
            users, items = spmm(self.pattern, self.weight, items), spmm(transpose, self.transpose_weight, users)
            user_sum, item_sum = user_sum + users, item_sum + items
        n_terms = self.config.layers + 1
        return user_sum / n_terms, item_sum / n_terms
