"""The encoder that SPiKE shares with KGRec: attention over the knowledge graph, users as the mean of their items.

The equations are those of docs/method.md, section 3, without profiles; KGRec: Yang et al., KDD 2023.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, Self, TypeVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from spike_kit.base.dense import product
from spike_kit.models.base import EntityRecommender, TrainedConfig
from spike_kit.models.edges import RelationalEdges
from spike_kit.models.layers import check_generator, gumbel, keep_mask, kept_entries, normalized, xavier_table
from spike_kit.models.sparse import SparsePattern, count, positions, segment_softmax, spmm

_KEY_BITS = 32
"""Bits of the keys by which edges are sorted: first the relation, then random bits (short keys sort faster)."""


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
    def _check(self) -> Self:
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} is not a multiple of heads {self.heads}")
        return self


ConfigT = TypeVar("ConfigT", bound=KgEncoderConfig)
InteractionWeights = tuple[Tensor, Tensor | None]
"""Weights of the interactions ``[n]`` as users receive over them (in the graph's order), and as items do (in the order
of the transpose; none where items receive nothing from users)."""


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
    silent
        Some of the kept edges that count as if they were not, positions ``[h]``, which may repeat.
    """

    edges: Tensor | None = None
    interactions: Tensor | None = None
    generator: torch.Generator | None = None
    silent: Tensor | None = field(default=None, kw_only=True)


class KgEncoder(EntityRecommender[ConfigT]):
    """Embeddings of users, entities and relations ``[2R, d]``, and their propagation over both graphs."""

    def build(self, generator: torch.Generator) -> None:
        """Draw the tables and the matrix of the attention."""
        super().build(generator)
        config, graph = self.config, self.graph
        self.attention_weight = xavier_table(config.dim, config.dim, generator, self.device)
        last = 2 * graph.n_relations - 1 if config.skip_last_relation and graph.n_relations else None
        self.sampler = RelationSampler(graph.relation, 2 * graph.n_relations, config.edge_keep, skip=last)

    @property
    def _budget(self) -> int:
        """`budget_mib` in bytes."""
        return self.config.budget_mib * 2**20

    @cached_property
    def interactions(self) -> SparsePattern:
        """Train interactions, users by entities."""
        graph = self.graph
        return SparsePattern(graph.train_user, graph.train_item, graph.n_users, graph.n_entities)

    @cached_property
    def edges(self) -> RelationalEdges:
        """Edges of the knowledge graph."""
        return RelationalEdges.of(self.graph, self.config.dim, self.config.heads, self._budget)

    def sampled_edges(self, generator: torch.Generator) -> Tensor | None:
        """Edges of a step, ascending positions ``[k]``; none is all."""
        if self.config.edge_keep == 1 and not self.config.skip_last_relation:
            return None
        return positions(self.sampler.sample(generator), self.sampler.chosen.shape[0])

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
        keyed = self.entity_embedding @ self.attention_weight
        heads, places, size = self.edges.heads, self.edges.places, self.graph.n_entities
        here = self.mask(edges).index_select(0, places)
        scores = self.edges.scores(keyed, self.relation_embedding).mean(0).masked_fill_(~here, float("-inf"))
        weights = segment_softmax(scores, heads, size)
        degree = weights.new_zeros(size).index_add(0, heads, here.to(weights.dtype))
        weights = torch.where(here, weights * degree.index_select(0, heads), 0.0)
        found = torch.zeros_like(weights).index_copy(0, places, weights)
        return found if edges is None else found.index_select(0, edges)

    def rationales(self, edges: Tensor, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """`rationale_scores` of edges ``[k]``, the same with noise, and the positions of edges to hide.

        These are ``n`` edges with the highest noisy score and ``n`` at random, together at most half of the edges.
        """
        with torch.no_grad():
            scores = self.rationale_scores(edges)
        noise = gumbel((2, self.graph.n_edges), generator, self.device)
        noisy, chance = scores + noise[0].index_select(0, edges), noise[1].index_select(0, edges)
        n = min(n, edges.shape[0] // 4)
        hidden = [edges.index_select(0, values.topk(n).indices) for values in (noisy, chance)]
        return scores, noisy, torch.cat(hidden)

    def mask(self, places: Tensor | None) -> Tensor:
        """Positions of edges as a mask ``[2 m]``; none means all."""
        mask = torch.zeros(self.graph.n_edges, dtype=torch.bool, device=self.graph.device)
        return ~mask if places is None else mask.index_fill(0, places, True)

    def encoded(self, draws: EncoderDraws) -> tuple[Tensor, Tensor]:
        """Final rows of users ``[U, d]`` and entities ``[E, d]`` from the id embeddings."""
        users, entities = self.propagate(self.nodes, draws).split([self.graph.n_users, self.graph.n_entities])
        return users, entities

    def embeddings(self, draws: EncoderDraws | None = None) -> tuple[Tensor, Tensor]:
        """Final rows of users ``[U, d]`` and items ``[I, d]``; without draws nothing is sampled or dropped."""
        users, entities = self.encoded(draws or EncoderDraws())
        return users, entities[: self.graph.n_items]

    def propagate(self, nodes: Tensor, draws: EncoderDraws) -> Tensor:
        """Sum over layers 0..L of all nodes ``[U + E, d]``."""
        weights = self.interaction_weights(draws.interactions)
        edges = self._kept(draws.edges, draws.silent)
        total = nodes
        for _ in range(self.config.layers):
            messages = self.messages(nodes, edges, weights)
            nodes = normalized(messages, kept_entries(messages, self.config.message_dropout, draws.generator))
            total = total + nodes
        return total

    def messages(
        self, nodes: Tensor, edges: RelationalEdges, weights: InteractionWeights, compared: Tensor | None = None
    ) -> Tensor:
        """What all nodes ``[U + E, d]`` receive in a layer, before normalisation.

        Attention compares the entities as they stand in ``compared [U + E, d]``, by default those of ``nodes``.
        """
        n_users, n_items = self.graph.n_users, self.graph.n_items
        users, entities = nodes.split([n_users, self.graph.n_entities])
        to_users = self.user_message(users, entities, weights[0])
        if self.config.attention == "mean":
            message = edges.average(entities, self.relation_embedding)
        else:
            keyed = product(entities if compared is None else compared[n_users:], self.attention_weight)
            message = edges.attend(entities, keyed, self.relation_embedding)
        if weights[1] is not None:
            from_users = spmm(self.interactions.transpose, weights[1], users)
            if self.config.user_to_item == "add":
                message = message + from_users
            else:
                message = torch.cat([from_users[:n_items], message[n_items:]])
        return torch.cat([to_users, message])

    def user_message(self, users: Tensor, entities: Tensor, weights: Tensor) -> Tensor:  # noqa: ARG002
        """What users ``[U, d]`` receive from entities ``[E, d]`` over interactions with weights ``[n]``."""
        return spmm(self.interactions, weights, entities)

    def _kept(self, places: Tensor | None, silent: Tensor | None = None) -> RelationalEdges:
        """Edges at some positions of the graph's order, or all; those at some of these are silent."""
        if places is None:
            return self.edges
        return self.edges.kept(self.mask(places), places.shape[0], None if silent is None else self.mask(silent))

    def interaction_weights(self, kept: Tensor | None = None) -> InteractionWeights:
        """Weights of the mean over a user's kept interactions, and over an item's where items listen to users."""
        pattern = self.interactions
        to_users = self._mean_weights(kept, pattern)
        if self.config.user_to_item == "off":
            return to_users, None
        kept = None if kept is None else kept.index_select(0, pattern.transpose_order)
        return to_users, self._mean_weights(kept, pattern.transpose)

    def _mean_weights(self, kept: Tensor | None, pattern: SparsePattern) -> Tensor:
        present = torch.ones_like(pattern.rows) if kept is None else kept.long()
        before = torch.cat([present.new_zeros(1), present.cumsum(0)])
        degree = before.index_select(0, pattern.row_pointer).diff().clamp_min(1)
        return present.to(self.user_embedding.dtype) / degree.index_select(0, pattern.rows)


class RelationSampler:
    """Chooses ``int(keep * n)`` edges of each relation at random, without a loop over relations.

    Parameters
    ----------
    relation
        Relation of every edge ``[m]``, in ``0..n_relations-1``.
    n_relations
        Number of relations.
    keep
        Share kept of each relation.
    skip
        Relation of which no edge is kept.
    """

    def __init__(self, relation: Tensor, n_relations: int, keep: float, skip: int | None = None) -> None:
        drawn_bits = _KEY_BITS - n_relations.bit_length()
        sizes = count(relation, n_relations)
        quota = (sizes.double() * keep).long()
        if skip is not None:
            quota[skip] = 0
        starts = sizes.cumsum(0) - sizes
        by_relation = relation.sort().values
        rank = torch.arange(relation.shape[0], device=relation.device) - starts.index_select(0, by_relation)
        self.chosen = (rank < quota.index_select(0, by_relation)).nonzero().flatten()
        self.base = relation << drawn_bits
        self.levels = 2**drawn_bits

    def sample(self, generator: torch.Generator) -> Tensor:
        """Draw the edges that are kept: a mask ``[m]`` bool."""
        check_generator(generator, self.base.device)
        draws = torch.randint(self.levels, self.base.shape, generator=generator, device=generator.device)
        order = torch.argsort(draws.to(self.base.device).bitwise_or_(self.base))
        kept = torch.zeros(self.base.shape, dtype=torch.bool, device=self.base.device)
        return kept.index_fill_(0, order.index_select(0, self.chosen), True)
