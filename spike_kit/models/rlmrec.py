"""RLMRec: LightGCN aligned with profiles by a contrast or by reconstruction (Ren et al., WWW 2024)."""

from typing import ClassVar, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from spike_kit.base.config import TrainingConfig
from spike_kit.models import losses
from spike_kit.models.base import Batch, Preset
from spike_kit.models.layers import TwoLayers, normalized, random_nodes
from spike_kit.models.lightgcn import EdgeWeights, PropagatedConfig, PropagatedRecommender
from spike_kit.models.spaces import PROPAGATED, Range

_SPACE = {
    **PROPAGATED,
    "text_weight": Range(1e-3, 1.0, log=True),
    "text_temperature": Range(0.05, 1.0, log=True),
}


class RlmRecConfig(PropagatedConfig):
    """Settings that both forms of RLMRec share."""

    text_temperature: float = Field(default=0.2, gt=0)
    """Temperature of the text term (the authors: 0.2; Gen 0.5 on Amazon, 0.1 on Yelp)."""


class RlmRecConConfig(RlmRecConfig):
    """Settings of RLMRec-Con."""

    text_weight: float = Field(default=1e-2, ge=0)
    """Weight of the contrast with the text (the authors: 1e-2)."""
    text_negatives: bool = True
    """Contrast sampled negative items with their text too (the authors do)."""


class RlmRecGenConfig(RlmRecConfig):
    """Settings of RLMRec-Gen."""

    layers: int = Field(default=2, ge=1)
    """Propagation layers (the authors: 2)."""
    text_weight: float = Field(default=0.1, ge=0)
    """Weight of the reconstruction (the authors: 0.1 on Amazon, 0.01 on Yelp)."""
    mask_share: float = Field(default=0.15, gt=0, lt=1)
    """Share of nodes whose id embedding is hidden in a step (the authors: 0.15 on Amazon, 0.05 on Yelp)."""


ConfigT = TypeVar("ConfigT", bound=RlmRecConfig)


class _RlmRec(PropagatedRecommender[ConfigT]):
    """What both forms share: texts of users and items, which no score depends on."""

    uses_text: ClassVar = True

    def build(self, generator: torch.Generator) -> None:
        """Draw the tables, and take the texts."""
        super().build(generator)
        self.user_text, self.item_text = self.texts()

    def _mlp(self, n_in: int, n_out: int, generator: torch.Generator) -> TwoLayers:
        """Linear, LeakyReLU (slope 0.01), Linear; the hidden width is the mean of both ends, rounded down."""
        sizes = n_in, (n_in + n_out) // 2, n_out
        return TwoLayers(sizes, functional.leaky_relu, generator, self.device)


class RlmRecCon(_RlmRec[RlmRecConConfig]):
    """LightGCN, and InfoNCE between embeddings and mapped profiles.

    One map serves users and items. A user's negatives are the profiles of all users; an item's are those of the items
    of its batch, so this term of a shard of a batch is not a share of the batch's.
    """

    title: ClassVar = "RLMRec-Con"
    presets: ClassVar = {
        "recommended": Preset(RlmRecConConfig(), TrainingConfig(learning_rate=5e-3)),
        "reference": Preset(
            RlmRecConConfig(combine="sum", edge_keep=0.8, l2=1e-7, l2_on="all"),
            TrainingConfig(eval_every=3, patience=5),
        ),
    }
    search_space: ClassVar = _SPACE

    def build(self, generator: torch.Generator) -> None:
        """Draw the tables and the map of texts."""
        super().build(generator)
        self.text_mlp = self._mlp(self.user_text.shape[1], self.config.dim, generator)

    @property
    def reads_negatives(self) -> bool:
        """Whether the losses read the negatives of a batch: BPR and the contrast of negatives do."""
        return super().reads_negatives or bool(self.config.text_weight and self.config.text_negatives)

    def training_losses(self, batch: Batch, draws: EdgeWeights | None) -> dict[str, Tensor]:
        """Recommendation loss, contrast with the text, and L2."""
        config = self.config
        users, items = self.propagated(draws)
        terms = self.recommendation_losses(users, items, batch) | self.penalties(batch)
        if config.text_weight:
            parts = [losses.contrast(users, self.text_mlp(self.user_text), batch.users, config.text_temperature)]
            for ids in (batch.positives, batch.negatives) if config.text_negatives else (batch.positives,):
                parts.append(self._contrast_in_batch(items, ids))
            terms["text"] = config.text_weight * torch.stack(parts).sum()
        return terms

    def _contrast_in_batch(self, items: Tensor, ids: Tensor) -> Tensor:
        """InfoNCE of the items ``ids [B]`` with their mapped profiles, those of the whole batch as negatives.

        An item that is c times in the batch counts c times on either side: one row each way, and ``log c`` added to its
        column of scores, give what B rows would.
        """
        distinct, place, counts = _distinct(ids)
        rows = normalized(items.index_select(0, distinct)) / self.config.text_temperature
        text = normalized(self.text_mlp(self.item_text.index_select(0, distinct)))
        shares = counts.to(rows.dtype).log().unsqueeze(1)
        rows, text = torch.cat([rows, torch.ones_like(shares)], 1), torch.cat([text, shares], 1)
        return losses.softmax(rows, text, place, place) + shares.index_select(0, place).mean()


def _distinct(ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Distinct ids, the place of each given one among them ``[B]``, and how often they occur; on meta all as given."""
    if ids.device.type == "meta":
        return ids, torch.arange(ids.shape[0], device=ids.device), torch.ones_like(ids)
    distinct, place, counts = ids.unique(return_inverse=True, return_counts=True)
    return distinct, place, counts


RlmRecGenDraws = tuple[Tensor, EdgeWeights | None]
"""Randomness of a step: nodes hidden ``[m]`` (users 0..U-1, item i is U + i), and edges (none: all)."""


class RlmRecGen(_RlmRec[RlmRecGenConfig]):
    """LightGCN on embeddings of which some are hidden, whose profiles are reconstructed from their neighbours.

    The hidden rows are replaced by one learned token before propagation, for the recommendation loss too. Each hidden
    node's mapped embedding must find its own profile among those of all hidden nodes.
    """

    title: ClassVar = "RLMRec-Gen"
    presets: ClassVar = {
        "recommended": Preset(RlmRecGenConfig(), TrainingConfig(learning_rate=5e-3)),
        "reference": Preset(
            RlmRecGenConfig(combine="sum", edge_keep=0.8, text_temperature=0.5, l2=1e-7, l2_on="all"),
            TrainingConfig(eval_every=3, patience=5),
        ),
    }
    search_space: ClassVar = {**_SPACE, "mask_share": Range(0.05, 0.3)}

    def build(self, generator: torch.Generator) -> None:
        """Draw the tables and the map to texts; the token is zero at first."""
        super().build(generator)
        self.text_mlp = self._mlp(self.config.dim, self.user_text.shape[1], generator)
        self.mask_token = nn.Parameter(torch.zeros(1, self.config.dim, device=self.device))

    def draw(self, generator: torch.Generator) -> RlmRecGenDraws:
        """Nodes to hide, and edges to keep."""
        n_nodes = self.graph.n_users + self.graph.n_items
        n_masked = max(int(n_nodes * self.config.mask_share), 1)
        return random_nodes(n_nodes, n_masked, generator, self.device), super().draw(generator)

    def training_losses(self, batch: Batch, draws: RlmRecGenDraws) -> dict[str, Tensor]:
        """Recommendation loss, reconstruction of the hidden nodes' text, and L2."""
        config = self.config
        hidden, edges = draws
        users, items = self.without(hidden, edges)
        terms = self.recommendation_losses(users, items, batch) | self.penalties(batch)
        if config.text_weight:
            mapped, text = self.reconstructed(users, items, hidden)
            place = torch.arange(hidden.shape[0], device=self.device)
            rows = normalized(mapped) / config.text_temperature
            terms["text"] = config.text_weight * losses.softmax(rows, functional.normalize(text), place, place)
        return terms

    def without(self, hidden: Tensor, edges: EdgeWeights | None = None) -> tuple[Tensor, Tensor]:
        """Propagated embeddings ``[U, d]`` and ``[I, d]``, the ``hidden`` nodes replaced before."""
        nodes, n_users = torch.cat([self.user_embedding, self.item_embedding]), self.graph.n_users
        masked = torch.zeros(nodes.shape[0], 1, dtype=torch.bool, device=self.device).index_fill(0, hidden, True)
        nodes = torch.where(masked, self.mask_token, nodes)
        return self.propagated(edges, (nodes[:n_users], nodes[n_users:]))

    def reconstructed(self, users: Tensor, items: Tensor, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """Mapped embeddings of some nodes, and their profiles: ``[m, d_t]`` each."""
        mapped: Tensor = self.text_mlp(torch.cat([users, items]).index_select(0, nodes))
        return mapped, torch.cat([self.user_text, self.item_text]).index_select(0, nodes)
