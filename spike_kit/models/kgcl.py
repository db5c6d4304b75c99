"""KGCL: two thinned views of a knowledge graph, interactions kept where they agree (Yang et al., SIGIR 2022).

Its encoder is DiffKG's too: attention over the knowledge graph, whose items then take part in the user-item graph.
"""

from collections.abc import Sequence
from typing import ClassVar, TypeVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from spike_kit.base.config import TrainingConfig
from spike_kit.models import losses
from spike_kit.models.base import Batch, EntityRecommender, LayeredConfig, Preset, layer_zero_l2
from spike_kit.models.layers import keep_mask, kept_entries, normalized, uniform, xavier_table
from spike_kit.models.lightgcn import Bipartite, EdgeWeights
from spike_kit.models.spaces import CONTRAST, PROPAGATED, Range
from spike_kit.models.sparse import SparsePattern, segment_softmax, spmm

LEAST, MOST = 0.3, 0.95
"""Least relative agreement of an item, and largest probability to keep an interaction (authors' code)."""
_SLOPE = 0.2


class RelationalGatConfig(LayeredConfig):
    """Settings of the attention and of the propagation."""

    layers: int = Field(default=2, ge=1)
    """Propagation layers over the user-item graph (SSLRec: 2)."""
    kg_layers: int = Field(default=2, ge=1)
    """Attention layers over the knowledge graph (SSLRec: 2, the authors: 1)."""
    per_head: int = Field(default=10, ge=1)
    """Most edges per head entity, drawn once (SSLRec: 10)."""
    residual: float = Field(default=0.5, ge=0)
    """Weight of what the layers before gave, res_lambda (SSLRec: 0.5)."""
    message_dropout: float = Field(default=0.0, ge=0, le=0.99)
    """Dropout of entities between attention layers."""


ConfigT = TypeVar("ConfigT", bound=RelationalGatConfig)


class RelationalGat(EntityRecommender[ConfigT]):
    """Attention over the first relation of each pair of entities, then LightGCN on users and items.

    Edges are sorted by head, then tail; a step, or a view, uses those at some ascending positions.
    """

    def build(self, generator: torch.Generator) -> None:
        """Draw the tables and the matrix of the attention, and choose the edges."""
        super().build(generator)
        graph, dim = self.graph, self.config.dim
        self.attention_weight = xavier_table(2 * dim, dim, generator, self.device)
        self.bipartite = Bipartite(graph)
        keys, order = (graph.head * graph.n_entities + graph.tail).sort(stable=True)
        first = torch.cat([torch.ones_like(keys[:1], dtype=torch.bool), keys[1:] != keys[:-1]])
        self.places = order.index_select(0, first.nonzero().flatten())
        columns = graph.head, graph.relation, graph.tail
        self.head, self.relation, self.tail = (x.index_select(0, self.places) for x in columns)
        self.pattern = SparsePattern(self.head, self.tail, graph.n_entities, graph.n_entities)
        self.original = self.some_per_head(generator)

    def some_per_head(self, generator: torch.Generator) -> Tensor:
        """At most ``per_head`` edges of each head at random, ascending positions."""
        noise = torch.rand(self.graph.n_edges, generator=generator, dtype=torch.float64).to(self.head.device)
        order = torch.argsort(self.head.double() + noise.index_select(0, self.places))
        heads = self.head.index_select(0, order)
        rank = torch.ones_like(heads).cumsum(0) - 1 - self.pattern.row_pointer.index_select(0, heads)
        return order.index_select(0, (rank < self.config.per_head).nonzero().flatten()).sort().values

    def view(
        self, edges: Tensor, generator: torch.Generator | None = None, weights: EdgeWeights | None = None
    ) -> tuple[Tensor, Tensor]:
        """Users ``[U, d]`` and items ``[I, d]`` with the edges at ascending positions ``[k]``.

        ``weights`` are those of the interactions, where they are not those of the whole user-item graph; ``generator``
        is the source of dropout masks.
        """
        items = self.entities(edges, generator)[: self.graph.n_items]
        return self.bipartite.propagate(self.user_embedding, items, self.config.layers, weights)

    def mask(self, edges: Tensor) -> Tensor:
        """Positions of edges as a mask over all edges."""
        return torch.zeros(self.head.shape, dtype=torch.bool, device=self.device).index_fill(0, edges, True)

    def entities(self, edges: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Entities ``[E, d]`` after the attention layers over some edges."""
        entities = total = self.entity_embedding
        for _ in range(self.config.kg_layers):
            entities = self.aggregate(entities, edges)
            mask = kept_entries(entities, self.config.message_dropout, generator)
            entities = normalized(entities, mask)
            total = self.config.residual * total + entities
        return total

    def aggregate(self, entities: Tensor, edges: Tensor) -> Tensor:
        """Attention-weighted tails plus the entity itself, ``[E, d]``, before normalisation."""
        heads, tails = self.head.index_select(0, edges), self.tail.index_select(0, edges)
        pattern = SparsePattern(heads, tails, entities.shape[0], entities.shape[0])
        return spmm(pattern, self.attention(entities, edges), entities) + entities

    def attention(self, entities: Tensor, edges: Tensor) -> Tensor:
        """Attention of edges ``[k]``: softmax over those of a head of ``LeakyReLU <[e_h; e_t] W, r>``."""
        n_rows = self.relation_embedding.shape[0]
        relation, scores = self.relation.index_select(0, edges), []
        for ends, part in zip((self.head, self.tail), self.attention_weight.chunk(2), strict=True):
            by_relation = (entities @ part) @ self.relation_embedding.T
            scores.append(by_relation.flatten().index_select(0, ends.index_select(0, edges) * n_rows + relation))
        logits = functional.leaky_relu(scores[0] + scores[1], _SLOPE)
        return segment_softmax(logits, self.head.index_select(0, edges), entities.shape[0])

    def penalties(self, batch: Batch) -> dict[str, Tensor]:
        """L2 term, where there is one."""
        return layer_zero_l2(self, batch, [*self.parameters(recurse=False)])


class KgclConfig(RelationalGatConfig):
    """Settings of KGCL."""

    layers: int = Field(default=3, ge=1)
    """Propagation layers over the user-item graph (the authors: 3)."""
    kg_layers: int = Field(default=1, ge=1)
    """Attention layers over the knowledge graph (the authors: 1)."""
    per_head: int = Field(default=15, ge=1)
    """Most edges per head entity, drawn once (the authors: 15)."""
    view_keep: float = Field(default=0.5, gt=0, le=1)
    """Share of the knowledge graph's edges in each view (the authors: 0.5)."""
    interaction_keep: float = Field(default=0.7, gt=0, le=1)
    """Mean probability mu to keep an interaction in a view (the authors: 0.5 to 0.7)."""
    contrast_weight: float = Field(default=0.1, ge=0)
    """Weight of the contrast (the authors: 0.1)."""
    contrast_temperature: float = Field(default=0.2, gt=0)
    """Temperature of the contrast (the authors: 0.1 to 0.2)."""


KgclView = tuple[Tensor, EdgeWeights]
"""Edges of the knowledge graph in a view, ascending positions ``[k]``, and weights of the interactions."""


KgclDraws = tuple[Sequence[KgclView], torch.Generator]
"""Both views, and the source of dropout masks."""


class Kgcl(RelationalGat[KgclConfig]):
    """Recommendation on the whole graphs, and InfoNCE between two views of both.

    Each view keeps a random share of the knowledge graph's edges. An item whose embedding hardly changes from one view
    to the other is trusted: its interactions are kept with a higher probability.
    """

    title: ClassVar = "KGCL"
    scores_new: ClassVar = True
    presets: ClassVar = {"recommended": Preset(KgclConfig(), TrainingConfig(learning_rate=5e-3))}
    search_space: ClassVar = {
        **PROPAGATED,
        **CONTRAST,
        "view_keep": Range(0.3, 0.9),
        "interaction_keep": Range(0.4, 0.9),
    }

    def draw(self, generator: torch.Generator) -> KgclDraws:
        """Thin the knowledge graph twice, then the interactions twice, by how far both agree on an item."""
        kept = keep_mask((2, self.graph.n_edges), self.config.view_keep, generator, self.device)
        inside = self.mask(self.original)
        edges = [(part.index_select(0, self.places) & inside).nonzero().flatten() for part in kept]
        with torch.no_grad():
            share = self.keep_probability(*(self.entities(part)[: self.graph.n_items] for part in edges))
        of_interactions = share.index_select(0, self.bipartite.pattern.columns)
        chance = uniform((2, self.graph.n_interactions), generator, self.device)
        interactions = [self.bipartite.thinned(luck < of_interactions) for luck in chance]
        return [*zip(edges, interactions, strict=True)], generator

    def training_losses(self, batch: Batch, draws: KgclDraws) -> dict[str, Tensor]:
        """Recommendation loss on the whole graphs, contrast of the views, and L2."""
        config = self.config
        terms = self.recommendation_losses(*self.embeddings(draws), batch) | self.penalties(batch)
        if config.contrast_weight:
            views = [self.view(edges, draws[1], weights) for edges, weights in draws[0]]
            ids = batch.users, batch.positives
            contrast = losses.contrasts(views, ids, config.contrast_temperature, self.graph.trained_items)
            terms["contrast"] = config.contrast_weight * contrast
        return terms

    def embeddings(self, draws: KgclDraws | None = None) -> tuple[Tensor, Tensor]:
        """Final rows of users ``[U, d]`` and items ``[I, d]`` on the whole graphs."""
        return self.view(self.original, draws[1] if draws else None)

    def keep_probability(self, one: Tensor, other: Tensor) -> Tensor:
        """Probability to keep an interaction, by its item ``[I]``, from two views ``[I, d]`` of the items.

        The exponential of their cosine, scaled to 0..1 over all items and at least `LEAST`, then scaled so that its
        mean is ``interaction_keep``, at most `MOST`.
        """
        agreement = functional.cosine_similarity(one, other).exp()
        span = (agreement.max() - agreement.min()).clamp_min(1e-12)
        trust = ((agreement - agreement.min()) / span).clamp_min(LEAST)
        return (self.config.interaction_keep * trust / trust.mean()).clamp_max(MOST)
