"""KGIN: users listen to items by intents, which are mixtures of relations (Wang et al., WWW 2021)."""

from itertools import combinations
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from spike_kit.base.config import TrainingConfig
from spike_kit.models.base import Batch, Preset
from spike_kit.models.kg_encoder import EncoderDraws, KgEncoder, KgEncoderConfig
from spike_kit.models.layers import xavier_table
from spike_kit.models.spaces import SHARED, Range


class KginConfig(KgEncoderConfig):
    """Settings of KGIN."""

    layers: int = Field(default=3, ge=1)
    """Propagation layers (the authors: 3)."""
    attention: Literal["attention", "mean"] = "mean"
    """Weight of the edges of a head: all equal (paper, eq. 10), or the encoder's attention."""
    intents: int = Field(default=4, ge=2)
    """Intents P (the authors: 4)."""
    independence_weight: float = Field(default=1e-4, ge=0)
    """Weight of the distance correlation between intents (the authors: 1e-4)."""


class Kgin(KgEncoder[KginConfig]):
    """The encoder with users that weigh what they receive by intents; intents are kept apart by a penalty."""

    title: ClassVar = "KGIN"
    scores_new: ClassVar = True
    presets: ClassVar = {
        "recommended": Preset(KginConfig(), TrainingConfig(learning_rate=5e-3)),
        "reference": Preset(KginConfig(), TrainingConfig(epochs=1000, batch_size=1024, learning_rate=1e-4)),
    }
    search_space: ClassVar = {**SHARED, "layers": (1, 2, 3), "edge_keep": Range(0.3, 1.0), "intents": (2, 4, 8)}

    def build(self, generator: torch.Generator) -> None:
        """Draw the tables of the encoder, the intents, and what relations they mix."""
        super().build(generator)
        config = self.config
        if config.attention == "mean":
            del self.attention_weight  # no loss of this model would reach it
        self.intent_embedding = xavier_table(config.intents, config.dim, generator, self.device)
        self.intent_relations = xavier_table(config.intents, 2 * self.graph.n_relations, generator, self.device)

    def draw(self, generator: torch.Generator) -> EncoderDraws:
        """Sample edges and interactions; dropout takes the generator from there."""
        return EncoderDraws(self.sampled_edges(generator), self.sampled_interactions(generator), generator)

    def training_losses(self, batch: Batch, draws: EncoderDraws) -> dict[str, Tensor]:
        """Recommendation loss, L2 of the batch's final rows, and independence of the intents."""
        terms = super().training_losses(batch, draws)
        if self.config.independence_weight:
            pairs = combinations(self.intent_relations, 2)
            parts = [distance_correlation(one, other) for one, other in pairs]
            terms["independence"] = self.config.independence_weight * torch.stack(parts).sum()
        return terms

    def user_message(self, users: Tensor, entities: Tensor, weights: Tensor) -> Tensor:
        """Mean of a user's items, times one plus the mixture of the intents that the user has (paper, eq. 7-8)."""
        received = super().user_message(users, entities, weights)
        share = (users @ self.intent_embedding.T).softmax(1)
        intents = self.intent_relations.softmax(1) @ self.relation_embedding
        return received * (1 + share @ intents)


def distance_correlation(one: Tensor, other: Tensor) -> Tensor:
    """Distance correlation of two samples ``[n]`` (Székely, Rizzo, Bakirov, Annals of Statistics 2007), in 0..1."""
    centred = []
    for sample in (one, other):
        apart = (sample.unsqueeze(0) - sample.unsqueeze(1)).abs()
        centred.append(apart - apart.mean(0, keepdim=True) - apart.mean(1, keepdim=True) + apart.mean())
    covariance, first, second = ((a * b).mean() for a, b in (centred, centred[:1] * 2, centred[1:] * 2))
    return covariance.clamp_min(0).add(1e-12).sqrt() / (first * second).clamp_min(1e-12).pow(0.25)
