"""SPiKE: profiles injected into a knowledge graph, propagated, removed again, and matched pairwise.

Ahn, Shin, Seo: Semantic Profiles into Knowledge Graphs for Enhanced recommendation (KDD 2026). The equations are
those of the authors' released code; every place where the kit's recommended form differs is a field of `SpikeConfig`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from spike_kit.config import TrainingConfig
from spike_kit.data.graph import Graph
from spike_kit.data.vectors import ProfileVectors
from spike_kit.errors import ConfigError
from spike_kit.models import losses
from spike_kit.models.edges import RelationalEdges
from spike_kit.models.layers import check_generator, keep_mask, normalized, random_nodes, xavier_table
from spike_kit.models.projection import Precision, ProfileProjection
from spike_kit.models.propagation import SparsePattern, segment_softmax, spmm
from spike_kit.models.recommender import Batch, Preset, TrainedConfig, TrainedRecommender
from spike_kit.models.relation_sampler import RelationSampler


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
    message_dropout: float = Field(default=0.1, ge=0, le=0.99)
    """Dropout of messages (released code: 0.1)."""
    text_dropout: float = Field(default=0.1, ge=0, le=0.99)
    """Dropout inside the projection of profiles (released code: 0.1)."""
    separate_masks: bool = False
    """Project three times per step with three dropout masks: to inject, to remove, to match (released code: yes; then
    removal does not undo injection in training)."""
    skip_last_relation: bool = False
    """Never sample the last inverse relation in training (released code: yes, an off-by-one)."""
    dropped_edges: int = Field(default=0, ge=0)
    """Edges dropped per step by noisy attention, and as many at random, together at most half of the sample (released
    code: 256, a leftover of KGRec)."""
    text_precision: Precision = "float32"
    """Number format of the products of the text projection; bfloat16 pays where the processor or GPU has it."""
    text_on: Literal["device", "host"] = "device"
    """Where the text vectors stay: on the training device, or in main memory (memory-mapped), streaming in chunks."""
    budget_mib: int = Field(default=512, ge=1)
    """Bound in MiB on what is kept for the backward pass: hidden rows of the projection that would take more are
    computed again there, and so are rows of (relation, tail) pairs that would take more than a sixteenth of it."""

    @model_validator(mode="after")
    def _check(self) -> SpikeConfig:
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} is not a multiple of heads {self.heads}")
        return self

    @property
    def uses_text(self) -> bool:
        """Whether any profile has any effect."""
        profiled = self.user_profiles or self.item_profiles or self.auxiliary_profiles
        matched = self.matching != "off" and self.matching_weight > 0
        return profiled and (self.inject or self.remove or matched)


RECOMMENDED = SpikeConfig(loss="cosine_softmax", temperature=0.25, layers=1, rho=0.5, matching_weight=0.5)
"""Best on validation of the default data set (docs/log.md): one layer, a stronger profile, a softmax on cosines."""

RELEASED_CODE = SpikeConfig(matching="sampled", separate_masks=True, skip_last_relation=True, dropped_edges=256, l2=0.0)
"""What the authors' code computes (its L2 term never reaches the loss, hence 0)."""


RELEASED_TRAINING = TrainingConfig(epochs=500, batch_size=1024, learning_rate=1e-4, patience=0, keep="last")
"""How the authors' code trains; `released_single_projection` is the same with one dropout mask per step."""


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


class Spike(TrainedRecommender[SpikeConfig]):
    """SPiKE on one graph with the profile vectors of one source."""

    title: ClassVar = "SPiKE"
    config_class: ClassVar = SpikeConfig
    presets: ClassVar = {
        "recommended": Preset(RECOMMENDED, TrainingConfig(batch_size=65_536, learning_rate=1e-2, eval_every=5)),
        "released_code": Preset(RELEASED_CODE, RELEASED_TRAINING),
        "released_single_projection": Preset(RELEASED_CODE.replace(separate_masks=False), RELEASED_TRAINING),
    }
    uses_text: ClassVar = True
    global_terms: ClassVar = frozenset({"matching"})

    user_projection: ProfileProjection
    entity_projection: ProfileProjection
    text: ProfileVectors
    profiled: Tensor
    profiled_nodes: Tensor

    def __init__(
        self, config: SpikeConfig, graph: Graph, vectors: ProfileVectors | None, generator: torch.Generator
    ) -> None:
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
        if config.uses_text:
            self._add_text(vectors, generator)

    def _add_text(self, vectors: ProfileVectors | None, generator: torch.Generator) -> None:
        if vectors is None:
            raise ConfigError("this SPiKE uses profiles, but no profile vectors were given", "switch all profiles off")
        config, graph = self.config, self.graph
        options = (vectors.dim, config.dim, config.text_dropout, generator, graph.device)
        limits = (self._budget, config.text_precision)
        self.user_projection = ProfileProjection(*options, *limits)
        self.entity_projection = ProfileProjection(*options, *limits)
        self.text = vectors if config.text_on == "host" else vectors.to(graph.device)
        bounds = (0, graph.n_users, graph.n_users + graph.n_items, graph.n_nodes)
        switches = (config.user_profiles, config.item_profiles, config.auxiliary_profiles)
        ranges = [torch.arange(*ends) for ends, profiled in zip(pairwise(bounds), switches, strict=True) if profiled]
        profiled_nodes = torch.cat(ranges).to(graph.device)
        profiled = torch.zeros(graph.n_nodes, dtype=torch.bool, device=graph.device)
        self.register_buffer("profiled_nodes", profiled_nodes, persistent=False)
        self.register_buffer("profiled", profiled.index_fill(0, profiled_nodes, True), persistent=False)

    @property
    def _budget(self) -> int:
        """`budget_mib` in bytes."""
        return self.config.budget_mib * 2**20

    @property
    def _all_profiled(self) -> bool:
        return self.config.user_profiles and self.config.item_profiles and self.config.auxiliary_profiles

    def draw(self, generator: torch.Generator) -> SpikeDraws:
        """Sample edges per relation, interactions, and nodes to match; dropout takes the generator from there."""
        config, graph = self.config, self.graph
        edges = interactions = nodes = None
        if config.edge_keep < 1 or config.skip_last_relation:
            edges = self.sampler.sample(generator).nonzero().flatten()
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
        injected = removed = text = None
        if config.uses_text:
            injected, removed, text = self._projected(draws.generator, 3 if config.separate_masks else 1)
        final = self.final_rows(injected, removed, draws)
        n_users, n_items = self.graph.n_users, self.graph.n_items
        users, items, _ = final.split([n_users, n_items, self.graph.n_entities - n_items])
        terms = self.ranking_losses(users, items, batch)
        if text is not None and config.matching != "off" and config.matching_weight:
            terms["matching"] = config.matching_weight * self._matching(final, text, draws.nodes)
        return terms

    def embeddings(self) -> tuple[Tensor, Tensor]:
        """Final rows of users ``[U, d]`` and items ``[I, d]``; nothing is sampled or dropped."""
        users, entities = self.node_embeddings()
        return self.comparable(users, entities[: self.graph.n_items])

    def node_embeddings(self) -> tuple[Tensor, Tensor]:
        """Final rows of users ``[U, d]`` and all entities ``[E, d]`` after removal; nothing is sampled or dropped."""
        profiles = self._projected(None, 1)[0] if self.config.uses_text else None
        final = self.final_rows(profiles, profiles, SpikeDraws())
        return final[: self.graph.n_users], final[self.graph.n_users :]

    def rationale_scores(self, edges: Tensor | None = None) -> Tensor:
        """KGRec's score of each edge, ``[k]``, from the id embeddings.

        It is the softmax over the edges of a head entity, of the scores averaged over attention heads, times the
        number of these edges.
        """
        scores = self._rationales(self._mask(edges))
        return scores if edges is None else scores.index_select(0, edges)

    def _rationales(self, mask: Tensor) -> Tensor:
        """`rationale_scores` where ``mask [2 m]`` is true, 0 elsewhere, ``[2 m]``."""
        keyed = self.entity_embedding @ self.attention_weight
        heads, places, size = self.edges.heads, self.edges.places, self.graph.n_entities
        here = mask.index_select(0, places)
        scores = self.edges.scores(keyed, self.relation_embedding).mean(0).masked_fill_(~here, float("-inf"))
        weights = segment_softmax(scores, heads, size)
        degree = weights.new_zeros(size).index_add(0, heads, here.to(weights.dtype))
        weights = torch.where(here, weights * degree.index_select(0, heads), 0.0)
        return torch.zeros_like(weights).index_copy(0, places, weights)

    def _without_rationales(self, edges: Tensor | None, generator: torch.Generator) -> Tensor:
        graph = self.graph
        present = self._mask(edges)
        with torch.no_grad():
            scores = self._rationales(present)
        check_generator(generator, graph.device)
        shape, dtype = (2, graph.n_edges), scores.dtype
        noise = torch.rand(shape, dtype=dtype, generator=generator, device=generator.device).to(graph.device)
        by_score = scores - (-noise[0].log_()).log_()
        n_present = graph.n_edges if edges is None else edges.shape[0]
        size = min(self.config.dropped_edges, n_present // 4)
        nowhere = ~present
        dropped = [row.masked_fill_(nowhere, float("-inf")).topk(size).indices for row in (by_score, noise[1])]
        return present.index_fill(0, torch.cat(dropped), False).nonzero().flatten()

    def _mask(self, places: Tensor | None) -> Tensor:
        """Positions of edges as a mask ``[2 m]``; none means all."""
        mask = torch.zeros(self.graph.n_edges, dtype=torch.bool, device=self.graph.device)
        return ~mask if places is None else mask.index_fill(0, places, True)

    def _sample_nodes(self, generator: torch.Generator) -> Tensor:
        n_nodes = self.profiled_nodes.numel()
        size = max(1, int(self.config.gamma * n_nodes))
        draws = [random_nodes(n_nodes, size, generator, self.graph.device) for _ in range(self.config.repeats)]
        chosen = torch.stack(draws)
        return self.profiled_nodes.index_select(0, chosen.flatten()).view_as(chosen)

    def _projected(self, generator: torch.Generator | None, masks: int) -> tuple[Tensor, Tensor, Tensor]:
        """Projected profiles of all nodes ``[U + E, d]``, zero where a node has none: to inject, remove and match.

        They are one tensor, or one for each of three dropout masks.
        """
        users = self.user_projection(self.text.user, generator, masks)
        entities = self.entity_projection(self.text.entity, generator, masks)
        nodes = [torch.cat(parts) for parts in zip(users, entities, strict=True)]
        if not self._all_profiled:
            nodes = [rows * self.profiled.unsqueeze(1) for rows in nodes]
        return nodes[0], nodes[masks // 2], nodes[-1]

    def final_rows(self, injected: Tensor | None, removed: Tensor | None, draws: SpikeDraws) -> Tensor:
        """Final rows of all nodes ``[U + E, d]``, by the equations of docs/method.md, section 3.

        Parameters
        ----------
        injected, removed
            Projected profiles ``[U + E, d]`` as they go in and as they are taken out (their dropout may differ); none
            without text.
        draws
            What is dropped in this pass; an empty one drops nothing.
        """
        config = self.config
        nodes = torch.cat([self.user_embedding, self.entity_embedding])
        if injected is not None and config.inject:
            nodes = torch.add(nodes, injected, alpha=config.rho)
        total = self._propagate(nodes, draws)
        if removed is not None and config.remove:
            total = torch.sub(total, removed, alpha=config.rho)
        return total

    def _propagate(self, nodes: Tensor, draws: SpikeDraws) -> Tensor:
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
            user_message = spmm(self.interactions, to_users, entities)
            messages = torch.cat([user_message, self._entity_message(users, entities, edges, to_items)])
            nodes = normalized(messages, self._message_mask(messages, draws.generator))
            total = total + nodes
        return total

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
        return self.edges.kept(self._mask(places))

    def _interaction_weights(self, kept: Tensor | None, receiver: Literal["user", "item"]) -> Tensor:
        """Weights of the mean over a receiver's kept interactions, ``[n]``; for items in the order of the transpose."""
        graph = self.graph
        index, size = {"user": (graph.train_user, graph.n_users), "item": (graph.train_item, graph.n_items)}[receiver]
        present = torch.ones_like(index) if kept is None else kept.long()
        degree = present.new_zeros(size).index_add(0, index, present).clamp_min(1)
        weights = present.to(self.user_embedding.dtype) / degree.index_select(0, index)
        return weights if receiver == "user" else weights.index_select(0, self.interactions.transpose_order)

    def _matching(self, final: Tensor, text: Tensor, nodes: Tensor | None) -> Tensor:
        if nodes is None:
            if self._all_profiled:
                return losses.matching(final, text)
            nodes = self.profiled_nodes
        shape = (*nodes.shape, -1)
        flat = nodes.flatten()
        return losses.matching(final.index_select(0, flat).view(shape), text.index_select(0, flat).view(shape))
