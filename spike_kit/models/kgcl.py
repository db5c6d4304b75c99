"""KGCL: two thinned views of a knowledge graph, interactions kept where they agree (Yang et al., SIGIR 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from spike_kit.base.config import TrainingConfig
from spike_kit.data.graph import Graph
from spike_kit.data.vectors import ProfileVectors
from spike_kit.models.bipartite import EdgeWeights, contrast
from spike_kit.models.layers import check_generator, keep_mask
from spike_kit.models.recommender import Batch, Preset
from spike_kit.models.relational_gat import RelationalGat, RelationalGatConfig
from spike_kit.models.spaces import CONTRAST, PROPAGATED, Range

LEAST, MOST = 0.3, 0.95
"""Least relative agreement of an item, and largest probability to keep an interaction (authors' code)."""


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


@dataclass(frozen=True)
class KgclView:
    """One view: edges of the knowledge graph, ascending positions ``[k]``, and weights of the interactions."""

    edges: Tensor
    interactions: EdgeWeights


@dataclass(frozen=True)
class KgclDraws:
    """Both views, and the source of dropout masks."""

    views: tuple[KgclView, KgclView]
    generator: torch.Generator | None = None


class Kgcl(RelationalGat[KgclConfig]):
    """Recommendation on the whole graphs, and InfoNCE between two views of both.

    Each view keeps a random share of the knowledge graph's edges. An item whose embedding hardly changes from one view
    to the other is trusted: its interactions are kept with a higher probability.
    """

    title: ClassVar = "KGCL"
    config_class: ClassVar = KgclConfig
    presets: ClassVar = {"recommended": Preset(KgclConfig(), TrainingConfig(learning_rate=5e-3))}
    search_space: ClassVar = {
        **PROPAGATED,
        **CONTRAST,
        "view_keep": Range(0.3, 0.9),
        "interaction_keep": Range(0.4, 0.9),
    }

    def __init__(
        self,
        config: KgclConfig,
        graph: Graph,
        vectors: ProfileVectors | None,  # noqa: ARG002 (one signature for all models)
        generator: torch.Generator,
    ) -> None:
        super().__init__(config, graph, generator)

    def draw(self, generator: torch.Generator) -> KgclDraws:
        """Thin the knowledge graph twice, then the interactions twice, by how far both agree on an item."""
        kept = keep_mask((2, self.n_edges), self.config.view_keep, generator, self.device)
        inside = self.mask(self.original)
        edges = [(part.index_select(0, self.places) & inside).nonzero().flatten() for part in kept]
        with torch.no_grad():
            share = self.keep_probability(*(self.entities(part)[: self.n_items] for part in edges))
        of_interactions = share.index_select(0, self.bipartite.pattern.columns)
        check_generator(generator, self.device)
        shape = 2, self.n_interactions
        chance = torch.rand(shape, generator=generator, device=generator.device).to(self.device)
        first, second = (
            KgclView(part, self.bipartite.thinned(luck < of_interactions))
            for part, luck in zip(edges, chance, strict=True)
        )
        return KgclDraws((first, second), generator)

    def training_losses(self, batch: Batch, draws: KgclDraws) -> dict[str, Tensor]:
        """Recommendation loss on the whole graphs, contrast of the views, and L2."""
        config = self.config
        users, items = self.view(self.original, draws.generator)
        terms = self.recommendation_losses(users, items, batch) | self.penalties(batch)
        if config.contrast_weight:
            views = [self.view(view.edges, draws.generator, view.interactions) for view in draws.views]
            sides = zip(*views, (batch.users, batch.positives), strict=True)
            parts = [contrast(one, other, ids, config.contrast_temperature) for one, other, ids in sides]
            terms["contrast"] = config.contrast_weight * torch.stack(parts).sum()
        return terms

    def embeddings(self) -> tuple[Tensor, Tensor]:
        """Final rows of users ``[U, d]`` and items ``[I, d]``."""
        return self.comparable(*self.view(self.original))

    def keep_probability(self, one: Tensor, other: Tensor) -> Tensor:
        """Probability to keep an interaction, by its item ``[I]``, from two views ``[I, d]`` of the items.

        The exponential of their cosine, scaled to 0..1 over all items and at least `LEAST`, then scaled so that its
        mean is ``interaction_keep``, at most `MOST`.
        """
        agreement = functional.cosine_similarity(one, other).exp()
        span = (agreement.max() - agreement.min()).clamp_min(1e-12)
        trust = ((agreement - agreement.min()) / span).clamp_min(LEAST)
        return (self.config.interaction_keep * trust / trust.mean()).clamp_max(MOST)
