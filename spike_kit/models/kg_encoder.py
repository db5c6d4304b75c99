"""The encoder that SPiKE shares with KGRec: attention over the knowledge graph, users as the mean of their items.

The equations are those of docs/method.md, section 3, without profiles; KGRec: Yang et al., KDD 2023.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from spike_kit.data.graph import Graph
from spike_kit.models.edges import RelationalEdges
from spike_kit.models.layers import keep_mask, normalized, xavier_table
from spike_kit.models.recommender import TrainedConfig, TrainedRecommender
from spike_kit.models.relation_sampler import RelationSampler
from spike_kit.models.sparse import SparsePattern, segment_softmax, spmm


class KgEncoderConfig(TrainedConfig):
    """Settings of the encoder."""

    layers: int = Field(default=2, ge=1)
    """Propagation layers L (released code: 2)."""
    heads: int = Field(default=2, ge=1)
    """Attention heads M, each of dim / M dimensions (released code: 2)."""
    attention: Literal["attention", "mean"] = "attention"
    """Weight of the edges of a head: softmax of their scores, or all equal."""
    user_to_item: Literal["off", "add", "instead"] = "off"
    """Messages from users to items, as the paper's Figure 1 draws them: none (released code), the mean over an item's
    train users added to its graph message, or that mean instead of the graph message."""
    edge_keep: float = Field(default=0.5, gt=0, le=1)
    """Share of the edges of each relation, and probability of each interaction, kept per step (released code: 0.5)."""
    message_dropout: float = Field(default=0.1, ge=0, le=0.99)
    """Dropout of messages (released code: 0.1)."""
    skip_last_relation: bool = False
    """Never sample the last inverse relation in training (released code: yes, an off-by-one)."""
    budget_mib: int = Field(default=512, ge=1)
    """Bound in MiB on what is kept for the backward pass: hidden rows of the projection that would take more are
    computed again there, and so are rows of (relation, tail) pairs that would take more than a sixteenth of it."""

    @model_validator(mode="after")
    def _check(self) -> KgEncoderConfig:
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} is not a multiple of heads {self.heads}")
        return self


ConfigT = TypeVar("ConfigT", bound=KgEncoderConfig)


@dataclass(frozen=True)
class EncoderDraws:
    """Everything random of one pass through the encoder; an empty one drops nothing.

    Attributes
    ----------
    edges
        Kept knowledge-graph edges, ascending positions ``[k]`` in the graph's order; none keeps all.
    interactions
        Kept train interactions, ``[n]`` bool; none keeps all.
    generator
        Source of the dropout masks; none switches dropout off.
    """

    edges: Tensor | None = None
    interactions: Tensor | None = None
    generator: torch.Generator | None = None


class KgEncoder(TrainedRecommender[ConfigT]):
    """Embeddings of users, entities and relations ``[2R, d]``, and their propagation over both graphs."""

    def __init__(self, config: ConfigT, graph: Graph, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        self.graph = graph
        options = config.dim, generator, graph.device
        self.user_embedding = xavier_table(graph.n_users, *options)
        self.entity_embedding = xavier_table(graph.n_entities, *options)
        self.relation_embedding = xavier_table(2 * graph.n_relations, *options)
        self.attention_weight = xavier_table(config.dim, *options)
        self.interactions = SparsePattern(graph.train_user, graph.train_item, graph.n_users, graph.n_entities)
        self.edges = RelationalEdges.of(graph, config.dim, config.heads, self._budget)
        last = 2 * graph.n_relations - 1 if config.skip_last_relation and graph.n_relations else None
        self.sampler = RelationSampler(graph.relation, 2 * graph.n_relations, config.edge_keep, skip=last)

    @property
    def _budget(self) -> int:
        """`budget_mib` in bytes."""
        return self.config.budget_mib * 2**20

    def sampled_edges(self, generator: torch.Generator) -> Tensor | None:
        """Edges of a step, ascending positions ``[k]``; none is all."""
        if self.config.edge_keep == 1 and not self.config.skip_last_relation:
            return None
        return self.sampler.sample(generator).nonzero().flatten()

    def sampled_interactions(self, generator: torch.Generator) -> Tensor | None:
        """Train interactions of a step, ``[n]`` bool; none is all."""
        if self.config.edge_keep == 1:
            return None
        return keep_mask(self.graph.train_user.shape, self.config.edge_keep, generator, self.graph.device)

    def rationale_scores(self, edges: Tensor | None = None) -> Tensor:
        """KGRec's score of each edge, ``[k]``, from the id embeddings.

        It is the softmax over the edges of a head entity, of the scores averaged over attention heads, times the
        number of these edges.
        """
        scores = self.rationales(self.mask(edges))
        return scores if edges is None else scores.index_select(0, edges)

    def rationales(self, mask: Tensor) -> Tensor:
        """`rationale_scores` where ``mask [2 m]`` is true, 0 elsewhere, ``[2 m]``."""
        keyed = self.entity_embedding @ self.attention_weight
        heads, places, size = self.edges.heads, self.edges.places, self.graph.n_entities
        here = mask.index_select(0, places)
        scores = self.edges.scores(keyed, self.relation_embedding).mean(0).masked_fill_(~here, float("-inf"))
        weights = segment_softmax(scores, heads, size)
        degree = weights.new_zeros(size).index_add(0, heads, here.to(weights.dtype))
        weights = torch.where(here, weights * degree.index_select(0, heads), 0.0)
        return torch.zeros_like(weights).index_copy(0, places, weights)

    def mask(self, places: Tensor | None) -> Tensor:
        """Positions of edges as a mask ``[2 m]``; none means all."""
        mask = torch.zeros(self.graph.n_edges, dtype=torch.bool, device=self.graph.device)
        return ~mask if places is None else mask.index_fill(0, places, True)

    def propagate(self, nodes: Tensor, draws: EncoderDraws) -> Tensor:
        """Sum over layers 0..L of all nodes ``[U + E, d]``."""
        sizes = [self.graph.n_users, self.graph.n_entities]
        to_users = self._interaction_weights(draws.interactions, "user")
        to_items = None
        if self.config.user_to_item != "off":
            to_items = self._interaction_weights(draws.interactions, "item")
        edges = self._kept(draws.edges)
        total = nodes
        for _ in range(self.config.layers):
            users, entities = nodes.split(sizes)
            user_message = self.user_message(users, entities, to_users)
            messages = torch.cat([user_message, self._entity_message(users, entities, edges, to_items)])
            nodes = normalized(messages, self._message_mask(messages, draws.generator))
            total = total + nodes
        return total

    def user_message(self, users: Tensor, entities: Tensor, weights: Tensor) -> Tensor:  # noqa: ARG002
        """What users ``[U, d]`` receive from entities ``[E, d]`` over interactions with weights ``[n]``."""
        return spmm(self.interactions, weights, entities)

    def _message_mask(self, messages: Tensor, generator: torch.Generator | None) -> Tensor | None:
        rate = self.config.message_dropout
        if generator is None or rate == 0:
            return None
        return keep_mask(messages.shape, 1 - rate, generator, messages.device, messages.dtype)

    def _entity_message(
        self, users: Tensor, entities: Tensor, edges: RelationalEdges, to_items: Tensor | None
    ) -> Tensor:
        if self.config.attention == "mean":
            message = edges.average(entities, self.relation_embedding)
        else:
            keyed = entities @ self.attention_weight
            message = edges.attend(entities, keyed, self.relation_embedding)
        if to_items is None:
            return message
        from_users = spmm(self.interactions.transpose, to_items, users)
        if self.config.user_to_item == "add":
            return message + from_users
        n_items = self.graph.n_items
        return torch.cat([from_users[:n_items], message[n_items:]])

    def _kept(self, places: Tensor | None) -> RelationalEdges:
        """Edges at some positions of the graph's order, or all."""
        if places is None:
            return self.edges
        return self.edges.kept(self.mask(places))

    def _interaction_weights(self, kept: Tensor | None, receiver: Literal["user", "item"]) -> Tensor:
        """Weights of the mean over a receiver's kept interactions, ``[n]``; for items in the order of the transpose."""
        graph = self.graph
        index, size = {"user": (graph.train_user, graph.n_users), "item": (graph.train_item, graph.n_items)}[receiver]
        present = torch.ones_like(index) if kept is None else kept.long()
        degree = present.new_zeros(size).index_add(0, index, present).clamp_min(1)
        weights = present.to(self.user_embedding.dtype) / degree.index_select(0, index)
        return weights if receiver == "user" else weights.index_select(0, self.interactions.transpose_order)
