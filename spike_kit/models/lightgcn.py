"""LightGCN: embeddings smoothed over the user-item graph (He et al., SIGIR 2020).

Models on that graph share what is here: its weights, propagation, dropped edges and L2.
"""

from typing import Any, ClassVar, Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from spike_kit.base.config import TrainingConfig
from spike_kit.data.graph import Graph
from spike_kit.models.base import Batch, LayeredConfig, Preset, TableRecommender, layer_zero_l2
from spike_kit.models.layers import keep_mask
from spike_kit.models.spaces import PROPAGATED
from spike_kit.models.sparse import SparsePattern, spmm

EdgeWeights = tuple[Tensor, Tensor]
"""Weights ``[n]`` of the edges as users receive over them (in the graph's order) and as items do (transposed order)."""


class Bipartite:
    """User-item graph with symmetric normalisation: an edge weighs ``1 / sqrt(degree of user * degree of item)``.

    There are no self loops; nodes without train interactions receive zeros.

    Parameters
    ----------
    graph
        Train interactions.
    """

    def __init__(self, graph: Graph) -> None:
        self.pattern = SparsePattern(graph.train_user, graph.train_item, graph.n_users, graph.n_items)
        user_degree = self.pattern.row_degree.index_select(0, graph.train_user)
        item_degree = self.pattern.transpose.row_degree.index_select(0, graph.train_item)
        weight = (user_degree * item_degree).float().rsqrt()
        self.weights: EdgeWeights = weight, weight.index_select(0, self.pattern.transpose_order)

    def step(self, users: Tensor, items: Tensor, weights: EdgeWeights | None = None) -> tuple[Tensor, Tensor]:
        """One layer: what users ``[U, d]`` receive from items ``[I, d]``, and items from users."""
        to_users, to_items = weights or self.weights
        return spmm(self.pattern, to_users, items), spmm(self.pattern.transpose, to_items, users)

    def propagate(
        self, users: Tensor, items: Tensor, layers: int, weights: EdgeWeights | None = None
    ) -> tuple[Tensor, Tensor]:
        """Sum of layers 0 to ``layers`` (He et al., SIGIR 2020, eq. 7): ``[U, d]`` and ``[I, d]``."""
        user_sum, item_sum = users, items
        for _ in range(layers):
            users, items = self.step(users, items, weights)
            user_sum, item_sum = user_sum + users, item_sum + items
        return user_sum, item_sum

    def dropped(self, keep: float, generator: torch.Generator) -> EdgeWeights:
        """Weights with each directed edge kept with probability ``keep``, independently; the kept ones unchanged."""
        to_users, to_items = self.weights
        kept = keep_mask((2, *to_users.shape), keep, generator, to_users.device, to_users.dtype)
        return to_users * kept[0], to_items * kept[1]

    def thinned(self, kept: Tensor) -> EdgeWeights:
        """Weights of the graph of the interactions where ``kept [n]`` is true, with the degrees of that graph."""
        pattern, present = self.pattern, kept.to(self.weights[0].dtype)
        degrees = [
            present.new_zeros(size).index_add(0, ends, present).index_select(0, ends)
            for ends, size in ((pattern.rows, pattern.n_rows), (pattern.columns, pattern.n_columns))
        ]
        weight = present * (degrees[0] * degrees[1]).clamp_min(1).rsqrt()
        return weight, weight.index_select(0, pattern.transpose_order)


class PropagatedConfig(LayeredConfig):
    """Settings that models on the user-item graph share."""

    combine: Literal["mean", "sum"] = "mean"
    """How layers 0..L become one embedding: the mean (LightGCN, paper) or the sum (SSLRec and RLMRec code)."""
    edge_keep: float = Field(default=1.0, gt=0, le=1)
    """Share of directed edges kept in a training step; weights are not scaled up (1: all, as LightGCN's authors)."""
    l2: float = Field(default=1e-4, ge=0)
    """Coefficient of the L2 term on what `l2_on` says (LightGCN's authors: 1e-4, on the batch)."""


ConfigT = TypeVar("ConfigT", bound=PropagatedConfig)


class PropagatedRecommender(TableRecommender[ConfigT]):
    """A recommender whose embeddings are those of users and items, propagated over the user-item graph."""

    def build(self, generator: torch.Generator) -> None:
        """Draw the tables."""
        super().build(generator)
        self.bipartite = Bipartite(self.graph)

    def draw(self, generator: torch.Generator) -> Any:
        """Edges of the step's graph; none keeps all."""
        return self.bipartite.dropped(self.config.edge_keep, generator) if self.config.edge_keep < 1 else None

    def embeddings(self, draws: Any = None) -> tuple[Tensor, Tensor]:
        """Propagated embeddings ``[U, d]`` and ``[I, d]``."""
        return self.propagated(draws)

    def training_losses(self, batch: Batch, draws: Any) -> dict[str, Tensor]:
        """Recommendation loss on the propagated embeddings, and L2."""
        return self.recommendation_losses(*self.embeddings(draws), batch) | self.penalties(batch)

    def propagated(
        self, weights: EdgeWeights | None = None, tables: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Layers 0..L combined, of the id embeddings or of given layer-0 tables."""
        users, items = tables or (self.user_embedding, self.item_embedding)
        users, items = self.bipartite.propagate(users, items, self.config.layers, weights)
        if self.config.combine == "sum":
            return users, items
        return users / (self.config.layers + 1), items / (self.config.layers + 1)

    def penalties(self, batch: Batch) -> dict[str, Tensor]:
        """L2 term, where there is one."""
        return layer_zero_l2(self, batch, [*self.parameters()])


class LightGcn(PropagatedRecommender[PropagatedConfig]):
    """Final embeddings: mean over layers of powers of the normalised adjacency applied to the id embeddings."""

    title: ClassVar = "LightGCN"
    whole_users: ClassVar = True
    presets: ClassVar = {
        "recommended": Preset(
            PropagatedConfig(loss="cosine_softmax", layers=2, l2=0.0), TrainingConfig(learning_rate=2e-3)
        ),
        "bpr": Preset(PropagatedConfig(), TrainingConfig(learning_rate=5e-3)),
        "reference": Preset(
            PropagatedConfig(layers=2, combine="sum", edge_keep=0.5, l2=1e-8, l2_on="all"), TrainingConfig()
        ),
    }
    search_space: ClassVar = PROPAGATED
