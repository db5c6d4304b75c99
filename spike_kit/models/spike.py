"""SPiKE: profiles injected into a knowledge graph, propagated, removed again, and matched pairwise.

Ahn, Shin, Seo: Semantic Profiles into Knowledge Graphs for Enhanced recommendation (KDD 2026). The equations are
those of the authors' released code; every place where the kit's recommended form differs is a field of `SpikeConfig`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from spike_kit.config import TrainingConfig
from spike_kit.data.graph import Graph
from spike_kit.data.vectors import ProfileVectors
from spike_kit.errors import ConfigError
from spike_kit.models import losses
from spike_kit.models.layers import dropout, keep_mask, linear, xavier_table
from spike_kit.models.propagation import SparsePattern, count, segment_softmax, spmm
from spike_kit.models.recommender import Batch, Preset, TrainedConfig, TrainedRecommender


class SpikeConfig(TrainedConfig):
    """Settings of SPiKE; the ablations of the paper are fields, so each is a toggle."""

    layers: int = Field(default=2, ge=1)
    """Propagation layers L (released code: 2)."""
    heads: int = Field(default=2, ge=1)
    """Attention heads M, each of dim / M dimensions (released code: 2)."""
    rho: float = Field(default=0.25, ge=0)
    """Strength of an injected profile, rho = lambda_p (released code: 0.25)."""
    user_profiles: bool = True
    """Whether users have profiles: injected, removed and matched."""
    item_profiles: bool = True
    """Whether items have profiles."""
    auxiliary_profiles: bool = True
    """Whether the other entities have profiles."""
    inject: bool = True
    """Add rho times the projected profile to the id embedding before propagation."""
    remove: bool = True
    """Subtract rho times the projected profile from the sum over layers."""
    matching: Literal["exact", "sampled", "off"] = "exact"
    """Pairwise matching of graph and text: over all nodes, over sampled nodes (released code), or not at all."""
    matching_weight: float = Field(default=5.0, ge=0)
    """Weight of the matching loss (released code: 5)."""
    gamma: float = Field(default=0.1, gt=0, le=1)
    """Share of the nodes in one sample, gamma (released code: 0.1); used by sampled matching."""
    repeats: int = Field(default=8, ge=1)
    """Samples per step (released code: 8); used by sampled matching."""
    attention: Literal["attention", "mean"] = "attention"
    """Weight of the edges of a head: softmax of their scores, or all equal."""
    user_to_item: Literal["off", "add", "instead"] = "off"
    """Messages from users to items, as the paper's Figure 1 draws them: none (released code), the mean over an item's
    train users added to its graph message, or that mean instead of the graph message."""
    edge_keep: float = Field(default=0.5, gt=0, le=1)
    """Share of the edges of each relation, and probability of each interaction, kept per step (released code: 0.5)."""
    message_dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout of messages (released code: 0.1)."""
    text_dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout inside the projection of profiles (released code: 0.1)."""
    separate_masks: bool = False
    """Project three times per step with three dropout masks: to inject, to remove, to match (released code: yes; then
    removal does not undo injection in training)."""
    skip_last_relation: bool = False
    """Never sample the last inverse relation in training (released code: yes, an off-by-one)."""
    dropped_edges: int = Field(default=0, ge=0)
    """Edges dropped per step by noisy attention, and as many at random (released code: 256, a leftover of KGRec)."""

    @model_validator(mode="after")
    def _check(self) -> SpikeConfig:
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} is not a multiple of heads {self.heads}")
        return self

    @property
    def uses_text(self) -> bool:
        """Whether any profile has any effect."""
        profiled = self.user_profiles or self.item_profiles or self.auxiliary_profiles
        return profiled and (self.inject or self.remove or self.matching != "off")


RECOMMENDED = SpikeConfig(loss="cosine_softmax", temperature=0.25, layers=1, rho=0.5, matching_weight=0.5)
"""Best on validation of the default data set (docs/log.md): one layer, a stronger profile, a softmax on cosines."""

RELEASED_CODE = SpikeConfig(matching="sampled", separate_masks=True, skip_last_relation=True, dropped_edges=256, l2=0.0)
"""What the authors' code computes (its L2 term never reaches the loss, hence 0)."""


@dataclass(frozen=True)
class SpikeDraws:
    """Everything random of one training step.

    Attributes
    ----------
    edges
        Kept knowledge-graph edges, ascending positions ``[k]`` in the graph's order; none keeps all.
    interactions
        Kept train interactions, ``[n]`` bool; none keeps all.
    nodes
        Nodes to match ``[repeats, k]`` (users 0..U-1, entity e is U + e); none matches all.
    generator
        Source of the dropout masks; none switches dropout off.
    """

    edges: Tensor | None = None
    interactions: Tensor | None = None
    nodes: Tensor | None = None
    generator: torch.Generator | None = None


class ProfileProjection(nn.Module):
    """Two layers from text to graph space: Linear(d_t, d_t), ReLU, Dropout, Linear(d_t, d)."""

    def __init__(self, text_dim: int, dim: int, rate: float, generator: torch.Generator) -> None:
        super().__init__()
        self.first = linear(text_dim, text_dim, generator)
        self.second = linear(text_dim, dim, generator)
        self.rate = rate

    def forward(self, text: Tensor, generator: torch.Generator | None) -> Tensor:
        """Project ``text [n, d_t]`` to ``[n, d]``; a generator switches dropout on."""
        return self.second(dropout(functional.relu(self.first(text)), self.rate, generator))


class Spike(TrainedRecommender[SpikeConfig]):
    """SPiKE on one graph with the profile vectors of one source."""

    title: ClassVar = "SPiKE"
    config_class: ClassVar = SpikeConfig
    presets: ClassVar = {
        "recommended": Preset(RECOMMENDED, TrainingConfig(learning_rate=2e-3)),
        "released_code": Preset(
            RELEASED_CODE, TrainingConfig(epochs=500, batch_size=1024, learning_rate=1e-4, patience=0, keep="last")
        ),
    }
    uses_text: ClassVar = True

    user_projection: ProfileProjection
    entity_projection: ProfileProjection
    user_text: Tensor
    entity_text: Tensor
    profiled: Tensor
    profiled_nodes: Tensor

    def __init__(
        self, config: SpikeConfig, graph: Graph, vectors: ProfileVectors | None, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.config = config
        self.graph = graph
        self.user_embedding = xavier_table(graph.n_users, config.dim, generator)
        self.entity_embedding = xavier_table(graph.n_entities, config.dim, generator)
        self.relation_embedding = xavier_table(2 * graph.n_relations, config.dim, generator)
        self.attention_weight = xavier_table(config.dim, config.dim, generator)
        self.interactions = SparsePattern(graph.train_user, graph.train_item, graph.n_users, graph.n_items)
        if config.uses_text:
            self._add_text(vectors, generator)
        self.to(graph.device)

    def _add_text(self, vectors: ProfileVectors | None, generator: torch.Generator) -> None:
        if vectors is None:
            raise ConfigError("this SPiKE uses profiles, but no profile vectors were given", "switch all profiles off")
        config, graph = self.config, self.graph
        self.user_projection = ProfileProjection(vectors.dim, config.dim, config.text_dropout, generator)
        self.entity_projection = ProfileProjection(vectors.dim, config.dim, config.text_dropout, generator)
        self.register_buffer("user_text", vectors.user.float(), persistent=False)
        self.register_buffer("entity_text", vectors.entity.float(), persistent=False)
        profiled = torch.cat(
            [
                torch.full((graph.n_users,), config.user_profiles),
                torch.full((graph.n_items,), config.item_profiles),
                torch.full((graph.n_entities - graph.n_items,), config.auxiliary_profiles),
            ]
        )
        self.register_buffer("profiled", profiled, persistent=False)
        self.register_buffer("profiled_nodes", profiled.nonzero().flatten(), persistent=False)

    def draw(self, generator: torch.Generator) -> SpikeDraws:
        """Sample edges per relation, interactions, and nodes to match; dropout takes the generator from there."""
        config, graph = self.config, self.graph
        edges = interactions = nodes = None
        if config.edge_keep < 1 or config.skip_last_relation:
            last = 2 * graph.n_relations - 1 if config.skip_last_relation else None
            edges = sample_per_relation(graph.relation, 2 * graph.n_relations, config.edge_keep, generator, skip=last)
        if config.dropped_edges:
            edges = self._without_rationales(edges, generator)
        if config.edge_keep < 1:
            shape = graph.train_user.shape
            interactions = keep_mask(shape, config.edge_keep, generator, graph.device)
        if config.uses_text and config.matching == "sampled":
            nodes = self._sample_nodes(generator)
        return SpikeDraws(edges, interactions, nodes, generator)

    def training_losses(self, batch: Batch, draws: SpikeDraws) -> dict[str, Tensor]:
        """Recommendation loss, L2 of the batch's final rows, and weighted matching."""
        config = self.config
        injected = self._profiles(draws.generator)
        fresh = config.separate_masks and draws.generator is not None
        removed = self._profiles(draws.generator) if fresh else injected
        users, entities = self._final(injected, removed, draws)
        terms = self.ranking_losses(users, entities[: self.graph.n_items], batch)
        if injected is not None and config.matching != "off" and config.matching_weight:
            text = self._project(draws.generator) if fresh else injected
            terms["matching"] = config.matching_weight * self._matching(torch.cat([users, entities]), text, draws.nodes)
        return terms

    def embeddings(self) -> tuple[Tensor, Tensor]:
        """Final rows of users ``[U, d]`` and items ``[I, d]``; nothing is sampled or dropped."""
        users, entities = self.node_embeddings()
        return self.comparable(users, entities[: self.graph.n_items])

    def node_embeddings(self) -> tuple[Tensor, Tensor]:
        """Final rows of users ``[U, d]`` and all entities ``[E, d]`` after removal; nothing is sampled or dropped."""
        profiles = self._profiles(None)
        return self._final(profiles, profiles, SpikeDraws())

    def rationale_scores(self, edges: Tensor | None = None) -> Tensor:
        """KGRec's score of each edge, ``[k]``, from the id embeddings.

        It is the softmax over the edges of a head entity, of the scores averaged over attention heads, times the
        number of these edges.
        """
        head, relation, tail = self._edges(edges)
        scores = self._edge_scores(self.entity_embedding, head, self._relation_rows(relation), tail)
        weights = segment_softmax(scores.mean(1, keepdim=True), head, self.graph.n_entities).squeeze(1)
        return weights * count(head, self.graph.n_entities).index_select(0, head)

    def _without_rationales(self, edges: Tensor | None, generator: torch.Generator) -> Tensor:
        graph = self.graph
        present = torch.arange(graph.n_edges, device=graph.device) if edges is None else edges
        with torch.no_grad():
            scores = self.rationale_scores(edges)
        noise = torch.rand(2, graph.n_edges, generator=generator, device=generator.device).to(graph.device)
        nowhere = torch.full_like(noise[0], float("-inf"))
        by_score = nowhere.index_copy(0, present, scores - (-noise[0].index_select(0, present).log()).log())
        by_chance = nowhere.index_copy(0, present, noise[1].index_select(0, present))
        size = min(self.config.dropped_edges, int(self.config.edge_keep * graph.n_edges) // 2)
        dropped = torch.cat([by_score.topk(size).indices, by_chance.topk(size).indices])
        kept = torch.zeros_like(nowhere, dtype=torch.bool).index_fill(0, present, True)
        return kept.index_fill(0, dropped, False).nonzero().flatten()

    def _sample_nodes(self, generator: torch.Generator) -> Tensor:
        n_nodes = self.profiled_nodes.numel()
        size = max(1, int(self.config.gamma * n_nodes))
        draws = [
            torch.randperm(n_nodes, generator=generator, device=generator.device)[:size]
            for _ in range(self.config.repeats)
        ]
        chosen = torch.stack(draws).to(self.graph.device)
        return self.profiled_nodes.index_select(0, chosen.flatten()).view_as(chosen)

    def _profiles(self, generator: torch.Generator | None) -> Tensor | None:
        """Projected profiles of all nodes, or none where no profile has any effect."""
        return self._project(generator) if self.config.uses_text else None

    def _project(self, generator: torch.Generator | None) -> Tensor:
        """Projected profiles of all nodes ``[U + E, d]``, zero where a node has none."""
        parts = [
            self.user_projection(self.user_text, generator),
            self.entity_projection(self.entity_text, generator),
        ]
        return torch.cat(parts) * self.profiled.unsqueeze(1)

    def _final(self, injected: Tensor | None, removed: Tensor | None, draws: SpikeDraws) -> tuple[Tensor, Tensor]:
        config, n_users = self.config, self.graph.n_users
        nodes = torch.cat([self.user_embedding, self.entity_embedding])
        if injected is not None and config.inject:
            nodes = nodes + config.rho * injected
        total = self._propagate(nodes, draws)
        if removed is not None and config.remove:
            total = total - config.rho * removed
        return total[:n_users], total[n_users:]

    def _propagate(self, nodes: Tensor, draws: SpikeDraws) -> Tensor:
        """Sum over layers 0..L of all nodes ``[U + E, d]``."""
        n_users, n_items = self.graph.n_users, self.graph.n_items
        to_users = self._interaction_weights(draws.interactions, "user")
        to_items = None
        if self.config.user_to_item != "off":
            to_items = self._interaction_weights(draws.interactions, "item")
        head, relation, tail = self._edges(draws.edges)
        edges = head, self._relation_rows(relation), tail
        total = nodes
        for _ in range(self.config.layers):
            users, entities = nodes[:n_users], nodes[n_users:]
            user_message = spmm(self.interactions, to_users, entities[:n_items])
            messages = torch.cat([user_message, self._entity_message(users, entities, edges, to_items)])
            nodes = functional.normalize(dropout(messages, self.config.message_dropout, draws.generator))
            total = total + nodes
        return total

    def _entity_message(
        self, users: Tensor, entities: Tensor, edges: tuple[Tensor, Tensor, Tensor], to_items: Tensor | None
    ) -> Tensor:
        message = self._graph_message(entities, *edges)
        if to_items is None:
            return message
        n_items = self.graph.n_items
        from_users = spmm(self.interactions.transpose, to_items, users)
        if self.config.user_to_item == "add":
            from_users = message[:n_items] + from_users
        return torch.cat([from_users, message[n_items:]])

    def _graph_message(self, entities: Tensor, head: Tensor, relation_rows: Tensor, tail: Tensor) -> Tensor:
        """Attention-weighted sum of ``e_t * r`` over the edges of each head, ``[E, d]``."""
        heads, n_entities = self.config.heads, self.graph.n_entities
        values = entities.index_select(0, tail) * relation_rows
        if self.config.attention == "mean":
            weights = count(head, n_entities).clamp_min(1).reciprocal().index_select(0, head)
            values = values * weights.unsqueeze(1)
        else:
            weights = segment_softmax(self._edge_scores(entities, head, relation_rows, tail), head, n_entities)
            values = (values.view(head.numel(), heads, -1) * weights.unsqueeze(2)).view_as(values)
        return values.new_zeros(n_entities, values.shape[1]).index_add(0, head, values)

    def _edge_scores(self, entities: Tensor, head: Tensor, relation_rows: Tensor, tail: Tensor) -> Tensor:
        """Attention score of every edge and head ``[k, M]``."""
        heads = self.config.heads
        keyed = entities @ self.attention_weight
        product = keyed.index_select(0, head) * keyed.index_select(0, tail) * relation_rows
        return product.view(head.numel(), heads, -1).sum(2) / math.sqrt(self.config.dim / heads)

    def _relation_rows(self, relation: Tensor) -> Tensor:
        return self.relation_embedding.index_select(0, relation)

    def _edges(self, kept: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        graph = self.graph
        if kept is None:
            return graph.head, graph.relation, graph.tail
        return (
            graph.head.index_select(0, kept),
            graph.relation.index_select(0, kept),
            graph.tail.index_select(0, kept),
        )

    def _interaction_weights(self, kept: Tensor | None, receiver: Literal["user", "item"]) -> Tensor:
        """Weights of the mean over a receiver's kept interactions, ``[n]``; for items in the order of the transpose."""
        graph = self.graph
        index, size = {"user": (graph.train_user, graph.n_users), "item": (graph.train_item, graph.n_items)}[receiver]
        present = torch.ones_like(index) if kept is None else kept.long()
        degree = present.new_zeros(size).index_add(0, index, present).clamp_min(1)
        weights = present / degree.index_select(0, index)
        return weights if receiver == "user" else weights.index_select(0, self.interactions.transpose_order)

    def _matching(self, final: Tensor, text: Tensor, nodes: Tensor | None) -> Tensor:
        if nodes is None:
            nodes = self.profiled_nodes
        shape = (*nodes.shape, -1)
        flat = nodes.flatten()
        return losses.matching(final.index_select(0, flat).view(shape), text.index_select(0, flat).view(shape))


def sample_per_relation(
    relation: Tensor, n_relations: int, keep: float, generator: torch.Generator, skip: int | None = None
) -> Tensor:
    """Choose ``int(keep * n)`` edges of each relation at random, without a loop over relations.

    Parameters
    ----------
    relation
        Relation of every edge ``[m]``, in ``0..n_relations-1``.
    n_relations
        Number of relations.
    keep
        Share kept of each relation.
    generator
        Source of randomness.
    skip
        Relation of which no edge is kept.

    Returns
    -------
    Tensor
        Positions of the kept edges, ascending.
    """
    draws = torch.rand(relation.shape, generator=generator, device=generator.device, dtype=torch.float64)
    order = torch.argsort(relation + draws.to(relation.device))
    sizes = count(relation, n_relations)
    quota = (sizes.double() * keep).long()
    if skip is not None:
        quota[skip] = 0
    starts = sizes.cumsum(0) - sizes
    by_relation = relation.index_select(0, order)
    rank = torch.arange(relation.numel(), device=relation.device) - starts.index_select(0, by_relation)
    return order[rank < quota.index_select(0, by_relation)].sort().values
