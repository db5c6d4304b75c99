"""LightGCN: embeddings smoothed over the user-item graph (He et al., SIGIR 2020)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from spike_kit.base.config import TrainingConfig
from spike_kit.models.bipartite import EdgeWeights, PropagatedConfig, PropagatedRecommender
from spike_kit.models.recommender import Batch, Preset
from spike_kit.models.spaces import PROPAGATED


class LightGcnConfig(PropagatedConfig):
    """Settings of LightGCN; those of all models on the user-item graph."""


class LightGcn(PropagatedRecommender[LightGcnConfig]):
    """Final embeddings: mean over layers of powers of the normalised adjacency applied to the id embeddings."""

    title: ClassVar = "LightGCN"
    config_class: ClassVar = LightGcnConfig
    presets: ClassVar = {
        "recommended": Preset(
            LightGcnConfig(loss="cosine_softmax", layers=2, l2=0.0), TrainingConfig(learning_rate=2e-3)
        ),
        "bpr": Preset(LightGcnConfig(), TrainingConfig(learning_rate=5e-3)),
        "reference": Preset(
            LightGcnConfig(layers=2, combine="sum", edge_keep=0.5, l2=1e-8, l2_on="all"), TrainingConfig()
        ),
    }
    search_space: ClassVar = PROPAGATED

    def training_losses(self, batch: Batch, draws: EdgeWeights | None = None) -> dict[str, Tensor]:
        """Recommendation loss on the propagated embeddings, and L2."""
        users, items = self.propagated(draws)
        return self.recommendation_losses(users, items, batch) | self.penalties(batch)
