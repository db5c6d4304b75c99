"""LightGCL: LightGCN contrasted with a low-rank view of the graph (Cai et al., ICLR 2023)."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from spike_kit.base.config import TrainingConfig
from spike_kit.models import losses
from spike_kit.models.base import Batch, Preset
from spike_kit.models.lightgcn import Bipartite, EdgeWeights, PropagatedConfig, PropagatedRecommender
from spike_kit.models.spaces import CONTRAST, PROPAGATED
from spike_kit.models.sparse import spmm

CLAMP = 5.0
"""Bound of a positive pair's score over temperature (authors' code)."""
_OVERSAMPLING, _ITERATIONS = 8, 4


class LightGclConfig(PropagatedConfig):
    """Settings of LightGCL."""

    layers: int = Field(default=2, ge=1)
    """Propagation layers (the authors: 2)."""
    combine: Literal["mean", "sum"] = "sum"
    """How layers become one embedding (the authors: the sum)."""
    rank: int = Field(default=5, ge=1)
    """Rank q of the low-rank view (the authors: 5)."""
    contrast_weight: float = Field(default=0.2, ge=0)
    """Weight of the contrast (the authors: 0.2; SSLRec: 0.1)."""
    contrast_temperature: float = Field(default=0.2, gt=0)
    """Temperature of the contrast (the authors: 0.2; SSLRec: 0.1)."""


LowRank = tuple[Tensor, Tensor, Tensor]
"""Factors ``users [U, q]``, ``values [q]``, ``items [I, q]`` of ``users @ diag(values) @ items.T``."""


def low_rank(graph: Bipartite, rank: int, generator: torch.Generator) -> LowRank:
    """Leading singular triples of the normalised user-item matrix, by randomised subspace iteration.

    Halko, Martinsson, Tropp, SIAM Review 2011, algorithms 4.4 and 5.1, with ``rank`` + 8 columns and four iterations.
    The random start is drawn on the CPU, hence equal on every device.
    """
    (to_users, to_items), pattern = graph.weights, graph.pattern
    columns = min(rank + _OVERSAMPLING, pattern.n_rows, pattern.n_columns)
    start = torch.randn(pattern.n_columns, columns, generator=generator).to(to_users.device)
    basis, _ = torch.linalg.qr(spmm(pattern, to_users, start))
    for _ in range(_ITERATIONS):
        other, _ = torch.linalg.qr(spmm(pattern.transpose, to_items, basis))
        basis, _ = torch.linalg.qr(spmm(pattern, to_users, other))
    items, values, turned = torch.linalg.svd(spmm(pattern.transpose, to_items, basis), full_matrices=False)
    return (basis @ turned.T)[:, :rank], values[:rank], items[:, :rank]


class LightGcl(PropagatedRecommender[LightGclConfig]):
    """BPR on the propagated embeddings, which are contrasted with those of a low-rank view of the same layers.

    The view of a layer is made from the layer before it, not from the view before it. Scores of the contrast are inner
    products, not cosines, and a positive pair gains nothing beyond `CLAMP`, as in the authors' code. Their unused
    weight matrices are not parameters here.
    """

    title: ClassVar = "LightGCL"
    presets: ClassVar = {
        "recommended": Preset(
            LightGclConfig(contrast_weight=0.1, contrast_temperature=0.1), TrainingConfig(learning_rate=5e-3)
        ),
        "reference": Preset(
            LightGclConfig(contrast_weight=0.1, contrast_temperature=0.1, l2=1e-9, l2_on="all"),
            TrainingConfig(learning_rate=2e-3),
        ),
    }
    search_space: ClassVar = {**PROPAGATED, **CONTRAST, "rank": (5, 10, 20)}

    def build(self, generator: torch.Generator) -> None:
        """Draw the tables, and decompose the graph."""
        super().build(generator)
        left, values, right = low_rank(self.bipartite, self.config.rank, generator)
        # Rows of items without interactions are zero but for rounding, which Adam would blow up.
        self.low_rank = left, values, right * self.graph.known_items

    def training_losses(self, batch: Batch, draws: EdgeWeights | None) -> dict[str, Tensor]:
        """Recommendation loss, contrast with the low-rank view, and L2."""
        config = self.config
        final, view = self.both_views(draws)
        terms = self.recommendation_losses(*final, batch) | self.penalties(batch)
        if config.contrast_weight:
            candidates = None, self.graph.trained_items
            parts = zip(view, final, (batch.users, batch.positives), candidates, strict=True)
            terms["contrast"] = config.contrast_weight * torch.stack([self._contrast(*part) for part in parts]).sum()
        return terms

    def both_views(self, weights: EdgeWeights | None = None) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Users and items: layers combined as `embeddings` has them, and the same of the low-rank view."""
        left, values, right = self.low_rank
        users, items = self.user_embedding, self.item_embedding
        user_sum, item_sum, user_view, item_view = users, items, users, items
        for _ in range(self.config.layers):
            user_view = user_view + (left * values) @ (right.T @ items)
            item_view = item_view + (right * values) @ (left.T @ users)
            users, items = self.bipartite.step(users, items, weights)
            user_sum, item_sum = user_sum + users, item_sum + items
        scale = 1 if self.config.combine == "sum" else self.config.layers + 1
        return (user_sum / scale, item_sum / scale), (user_view / scale, item_view / scale)

    def _contrast(self, view: Tensor, final: Tensor, ids: Tensor, candidates: Tensor | None) -> Tensor:
        """Mean over ``ids`` of the log of the candidates' mass, less the clamped score of the own pair."""
        scaled = view / self.config.contrast_temperature
        own = (scaled.index_select(0, ids) * final.index_select(0, ids)).sum(1)
        return losses.softmax(scaled, final, ids, ids, candidates) + (own - own.clamp(-CLAMP, CLAMP)).mean()
