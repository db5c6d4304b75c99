"""Attention over a knowledge graph whose items then take part in the user-item graph: what DiffKG and KGCL share."""

from __future__ import annotations

from typing import Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from spike_kit.data.graph import Graph
from spike_kit.models import losses
from spike_kit.models.bipartite import Bipartite, EdgeWeights
from spike_kit.models.layers import keep_mask, normalized, xavier_table
from spike_kit.models.recommender import Batch, TrainedConfig, TrainedRecommender
from spike_kit.models.sparse import SparsePattern, segment_softmax, weighted_spmm

_SLOPE = 0.2


class RelationalGatConfig(TrainedConfig):
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
    l2_on: Literal["batch", "all"] = "batch"
    """L2 of the batch's id embeddings (half the squares, divided by the batch size), or squares of all parameters but
    the denoiser's (SSLRec)."""


ConfigT = TypeVar("ConfigT", bound=RelationalGatConfig)


class RelationalGat(TrainedRecommender[ConfigT]):
    """Attention over the first relation of each pair of entities, then LightGCN on users and items.

    Edges are sorted by head, then tail; a step, or a view, uses those at some ascending positions.
    """

    global_terms = frozenset({"l2_all"})

    def __init__(self, config: ConfigT, graph: Graph, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        self.n_items, self.n_interactions = graph.n_items, graph.n_interactions
        options = config.dim, generator, graph.device
        self.user_embedding = xavier_table(graph.n_users, *options)
        self.entity_embedding = xavier_table(graph.n_entities, *options)
        self.relation_embedding = xavier_table(2 * graph.n_relations, *options)
        self.attention_weight = xavier_table(2 * config.dim, *options)
        self.bipartite = Bipartite(graph)
        order = torch.argsort(graph.head * graph.n_entities + graph.tail, stable=True)
        keys = (graph.head * graph.n_entities + graph.tail).index_select(0, order)
        first = torch.cat([torch.ones_like(keys[:1], dtype=torch.bool), keys[1:] != keys[:-1]])
        self.places, self.n_edges = order.index_select(0, first.nonzero().flatten()), graph.n_edges
        columns = graph.head, graph.relation, graph.tail
        self.head, self.relation, self.tail = (x.index_select(0, self.places) for x in columns)
        self.pattern = SparsePattern(self.head, self.tail, graph.n_entities, graph.n_entities)
        self.original = self.some_per_head(generator)

    def some_per_head(self, generator: torch.Generator) -> Tensor:
        """At most ``per_head`` edges of each head at random, ascending positions."""
        noise = torch.rand(self.n_edges, generator=generator, dtype=torch.float64).to(self.head.device)
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
        items = self.entities(edges, generator)[: self.n_items]
        return self.bipartite.propagate(self.user_embedding, items, self.config.layers, weights)

    def mask(self, edges: Tensor) -> Tensor:
        """Positions of edges as a mask over all edges."""
        return torch.zeros(self.head.shape, dtype=torch.bool, device=self.device).index_fill(0, edges, True)

    def entities(self, edges: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Entities ``[E, d]`` after the attention layers over some edges."""
        entities: Tensor = self.entity_embedding
        total = entities
        for _ in range(self.config.kg_layers):
            entities = self.aggregate(entities, edges)
            mask = None
            if generator is not None and self.config.message_dropout:
                keep = 1 - self.config.message_dropout
                mask = keep_mask(entities.shape, keep, generator, self.device, entities.dtype)
            entities = normalized(entities, mask)
            total = self.config.residual * total + entities
        return total

    def aggregate(self, entities: Tensor, edges: Tensor) -> Tensor:
        """Attention-weighted tails plus the entity itself, ``[E, d]``, before normalisation."""
        heads, tails = self.head.index_select(0, edges), self.tail.index_select(0, edges)
        pattern = SparsePattern(heads, tails, entities.shape[0], entities.shape[0])
        return weighted_spmm(pattern, self.attention(entities, edges), entities) + entities

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
        config = self.config
        if not config.l2:
            return {}
        tables = self.user_embedding, self.entity_embedding, self.relation_embedding, self.attention_weight
        if config.l2_on == "all":
            return {"l2_all": config.l2 * torch.stack([table.square().sum() for table in tables]).sum()}
        rows = [tables[0].index_select(0, batch.users), tables[1].index_select(0, batch.positives)]
        if config.loss == "bpr":
            rows.append(tables[1].index_select(0, batch.negatives))
        return {"l2": config.l2 * losses.l2(*rows)}
