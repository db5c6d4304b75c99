"""SGL: LightGCN with a contrast between two randomly thinned graphs (Wu et al., SIGIR 2021)."""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from spike_kit.base.config import TrainingConfig
from spike_kit.models import losses
from spike_kit.models.base import Batch, Preset
from spike_kit.models.lightgcn import EdgeWeights, PropagatedConfig, PropagatedRecommender
from spike_kit.models.spaces import CONTRAST, PROPAGATED, Range


class SglConfig(PropagatedConfig):
    """Settings of SGL."""

    view_keep: float = Field(default=0.9, gt=0, le=1)
    """Share of directed edges in each view (the authors drop a tenth; SSLRec keeps half)."""
    contrast_weight: float = Field(default=0.1, ge=0)
    """Weight of the contrast (the authors: 0.1; SSLRec: 1)."""
    contrast_temperature: float = Field(default=0.2, gt=0)
    """Temperature of the contrast (the authors and SSLRec: 0.2)."""
    contrast_negatives: bool = False
    """Contrast the views of sampled negative items too, as SSLRec's code does."""


SglDraws = tuple[EdgeWeights | None, EdgeWeights | None]
"""Edges of the two views."""


class Sgl(PropagatedRecommender[SglConfig]):
    """BPR on the whole graph, and InfoNCE between two views whose edges are drawn anew each step."""

    title: ClassVar = "SGL"
    presets: ClassVar = {
        "recommended": Preset(SglConfig(), TrainingConfig(learning_rate=5e-3)),
        "reference": Preset(
            SglConfig(
                layers=2,
                combine="sum",
                view_keep=0.5,
                contrast_weight=1.0,
                contrast_negatives=True,
                l2=1e-5,
                l2_on="all",
            ),
            TrainingConfig(),
        ),
    }
    search_space: ClassVar = {**PROPAGATED, **CONTRAST, "view_keep": Range(0.5, 0.95)}

    def draw(self, generator: torch.Generator) -> SglDraws:
        """Edges of both views."""
        keep = self.config.view_keep
        return self.bipartite.dropped(keep, generator), self.bipartite.dropped(keep, generator)

    @property
    def reads_negatives(self) -> bool:
        """Whether the losses read the negatives of a batch: BPR and the contrast of negatives do."""
        return super().reads_negatives or bool(self.config.contrast_weight and self.config.contrast_negatives)

    def training_losses(self, batch: Batch, draws: SglDraws) -> dict[str, Tensor]:
        """Recommendation loss on the whole graph, contrast of the views, and L2."""
        config = self.config
        terms = super().training_losses(batch, None)
        if config.contrast_weight:
            views = [self.propagated(edges) for edges in draws]
            negatives = [batch.negatives] if config.contrast_negatives else []
            ids = [batch.users, batch.positives, *negatives]
            contrast = losses.contrasts(views, ids, config.contrast_temperature, self.graph.trained_items)
            terms["contrast"] = config.contrast_weight * contrast
        return terms
