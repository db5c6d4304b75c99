"""KGRec: a graph encoder that reconstructs and contrasts its rationales (Yang et al., KDD 2023).

The encoder is SPiKE's without profiles; a rationale is an edge to which the encoder's attention gives much.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from spike_kit.base.config import TrainingConfig
from spike_kit.models.base import Batch, Preset
from spike_kit.models.kg_encoder import EncoderDraws, KgEncoder, KgEncoderConfig
from spike_kit.models.layers import TwoLayers, gumbel, normalized, random_nodes
from spike_kit.models.spaces import SHARED, Range
from spike_kit.models.sparse import SparsePattern, count, spmm


class KgRecConfig(KgEncoderConfig):
    """Settings of KGRec."""

    reconstruction_weight: float = Field(default=0.1, ge=0)
    """Weight of the reconstruction of hidden edges (the authors: 0.1)."""
    hidden_edges: int = Field(default=256, ge=0)
    """Edges hidden per step by noisy rationale score, and as many at random, together at most half of the step's edges
    (the authors: 256)."""
    contrast_weight: float = Field(default=1e-3, ge=0)
    """Weight of the contrast between both graphs' views of the items (the authors: 0.01 on Last-FM, else 0.001)."""
    contrast_temperature: float = Field(default=0.2, gt=0)
    """Temperature of the contrast (the authors: 1 on Last-FM, 0.1 on MIND, 0.2 on Alibaba)."""
    contrast_drop: float = Field(default=0.5, ge=0, lt=1)
    """Share of edges with the lowest rationale that each view of the contrast drops (the authors: 0.5)."""


@dataclass(frozen=True, kw_only=True)
class KgRecDraws(EncoderDraws):
    """Everything random of one training step; ``edges`` are those that the encoder sees, without the hidden ones.

    Attributes
    ----------
    hidden
        Edges to reconstruct, positions ``[h]``.
    view_edges
        Edges of the knowledge graph's view, positions ``[k]``.
    view_interactions
        Train interactions of the interactions' view, positions ``[m]``.
    permutation
        For each item the other item that serves as its negative, ``[I]``.
    """

    hidden: Tensor
    view_edges: Tensor
    view_interactions: Tensor
    permutation: Tensor


class KgRec(KgEncoder[KgRecConfig]):
    """The encoder with two losses: hidden rationales are reconstructed, and two views of the items are contrasted."""

    title: ClassVar = "KGRec"
    scores_new: ClassVar = True
    presets: ClassVar = {
        "recommended": Preset(KgRecConfig(), TrainingConfig(learning_rate=5e-3)),
        "reference": Preset(
            KgRecConfig(skip_last_relation=True),
            TrainingConfig(epochs=500, batch_size=1024, learning_rate=1e-4, eval_every=10, patience=0, keep="last"),
        ),
    }
    search_space: ClassVar = {
        **SHARED,
        "layers": (1, 2, 3),
        "edge_keep": Range(0.3, 1.0),
        "reconstruction_weight": Range(1e-3, 1.0, log=True),
        "contrast_weight": Range(1e-4, 0.1, log=True),
        "contrast_temperature": Range(0.05, 1.0, log=True),
    }

    def build(self, generator: torch.Generator) -> None:
        """Draw the tables of the encoder, and the maps of both views."""
        super().build(generator)
        sizes = self.config.dim, self.config.dim, self.config.dim
        self.interaction_mlp = TwoLayers(sizes, functional.relu, generator, self.device)
        self.knowledge_mlp = TwoLayers(sizes, functional.relu, generator, self.device)

    def draw(self, generator: torch.Generator) -> KgRecDraws:
        """Sample edges and interactions, hide rationales, and thin both views by the current rationale scores."""
        config, graph = self.config, self.graph
        edges, interactions = self.sampled_edges(generator), self.sampled_interactions(generator)
        edges = torch.arange(graph.n_edges, device=self.device) if edges is None else edges
        scores, noisy, chosen = self.rationales(edges, config.hidden_edges, generator)
        hidden = self.mask(chosen).nonzero().flatten()
        seen = self.mask(edges).index_fill(0, hidden, False).nonzero().flatten()
        of_items = self.item_rationales(edges, scores).index_select(0, graph.train_item)
        every = torch.arange(graph.n_interactions, device=self.device)
        available = every if interactions is None else interactions.nonzero().flatten()
        # The largest sums of a logit and Gumbel noise are a draw without replacement from its softmax.
        keys = of_items + gumbel((2, graph.n_interactions), generator, graph.device).sum(0)
        keys = keys.index_select(0, available)
        return KgRecDraws(
            edges=seen,
            interactions=interactions,
            generator=generator,
            hidden=hidden,
            view_edges=edges.index_select(0, most(noisy, 1 - config.contrast_drop)),
            view_interactions=available.index_select(0, most(keys, 1 - config.contrast_drop)),
            permutation=random_nodes(graph.n_items, graph.n_items, generator, self.device),
        )

    def training_losses(self, batch: Batch, draws: KgRecDraws) -> dict[str, Tensor]:
        """Recommendation loss, L2 of the batch's final rows, reconstruction and contrast."""
        config, graph = self.config, self.graph
        users, entities = self.encoded(draws)
        terms = self.recommendation_losses(users, entities[: graph.n_items], batch, config.l2)
        if config.reconstruction_weight:
            terms["reconstruction"] = config.reconstruction_weight * self._reconstruction(entities, draws.hidden)
        if config.contrast_weight:
            views = self.interaction_view(draws.view_interactions), self.knowledge_view(draws.view_edges)
            terms["contrast"] = config.contrast_weight * self._contrast(*views, draws.permutation)
        return terms

    def item_rationales(self, edges: Tensor, scores: Tensor) -> Tensor:
        """How much the edges ``[k]`` of each item matter: mean score as head and as tail (1 without any), ``[I]``."""
        graph = self.graph
        sides = []
        for ends in (graph.head, graph.tail):
            own = ends.index_select(0, edges)
            total = scores.new_zeros(graph.n_entities).index_add(0, own, scores)
            mean = (total / count(own, graph.n_entities).clamp_min(1))[: graph.n_items]
            sides.append(torch.where(mean == 0, 1.0, mean))
        return (sides[0] + sides[1]) / 2

    def interaction_view(self, interactions: Tensor) -> Tensor:
        """Items ``[I, d]`` as users see them; both sides receive at once, and an edge weighs 1 / degree of its user."""
        graph = self.graph
        weights = count(graph.train_user, graph.n_users).clamp_min(1).to(self.user_embedding.dtype).reciprocal()
        places = interactions.sort().values
        rows, columns = (ids.index_select(0, places) for ids in (graph.train_user, graph.train_item))
        pattern = SparsePattern(rows, columns, graph.n_users, graph.n_items)
        to_users = weights.index_select(0, rows)
        to_items = to_users.index_select(0, pattern.transpose_order)
        users, items = self.user_embedding, self.entity_embedding[: graph.n_items]
        total = items
        for _ in range(self.config.layers):
            received = spmm(pattern, to_users, items), spmm(pattern.transpose, to_items, users)
            users, items = (normalized(side) for side in received)
            total = total + items
        return total

    def knowledge_view(self, edges: Tensor) -> Tensor:
        """Items ``[I, d]`` as the knowledge graph sees them: means of ``e_t * r``, normalised, summed over layers."""
        kept = self._kept(edges)
        entities = total = self.entity_embedding
        for _ in range(self.config.layers):
            entities = normalized(kept.average(entities, self.relation_embedding))
            total = total + entities
        return total[: self.graph.n_items]

    def _reconstruction(self, entities: Tensor, hidden: Tensor) -> Tensor:
        """Mean of ``-log sigmoid <e_h, e_t * r>`` over the hidden edges (0 where none is hidden)."""
        graph = self.graph
        heads, tails = (entities.index_select(0, ends.index_select(0, hidden)) for ends in (graph.head, graph.tail))
        relations = self.relation_embedding.index_select(0, graph.relation.index_select(0, hidden))
        missing = functional.softplus(-(heads * tails * relations).sum(1))
        return missing.sum() / torch.ones_like(missing).sum().clamp_min(1)

    def _contrast(self, interactions: Tensor, knowledge: Tensor, permutation: Tensor) -> Tensor:
        """Mean over items of ``-log (p / (2 p + n_1 + n_2))``, exponentials of cosines over the temperature."""
        one, other = normalized(self.interaction_mlp(interactions)), normalized(self.knowledge_mlp(knowledge))
        pairs = (one, other), (one, other.index_select(0, permutation)), (other, one.index_select(0, permutation))
        own, first, second = ((a * b).sum(1) / self.config.contrast_temperature for a, b in pairs)
        masses = torch.stack([own, own, first, second]).logsumexp(0)
        return (masses - own).mean()


def most(scores: Tensor, share: float) -> Tensor:
    """Positions of the ``int(share * k)`` largest scores ``[k]``, ascending."""
    order = scores.argsort(descending=True, stable=True)
    rank = torch.ones_like(order).cumsum(0)
    limit = (share * torch.ones_like(order).sum().double()).floor()
    return order.index_select(0, (rank <= limit).nonzero().flatten()).sort().values
