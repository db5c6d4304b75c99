"""CoLaKG: profiles merged into the embeddings, and items linked by the similarity of their profiles (Cui et al.)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from spike_kit.base.config import TrainingConfig
from spike_kit.models.base import Batch, Preset
from spike_kit.models.layers import keep_mask, kept_share, linear, xavier_table
from spike_kit.models.lightgcn import EdgeWeights, PropagatedConfig, PropagatedRecommender
from spike_kit.models.spaces import PROPAGATED

_SLOPE = 0.2
_ROWS = 1024


class CoLaKgConfig(PropagatedConfig):
    """Settings of CoLaKG."""

    neighbours: int = Field(default=10, ge=1)
    """Most similar items k that an item listens to (the authors: 10, on MovieLens-1M 30)."""
    attention_dim: int = Field(default=32, ge=1)
    """Width of the attention between items (the authors: 32)."""
    text_dropout: float = Field(default=0.6, ge=0, lt=1)
    """Dropout before and after the map of a profile (the authors: 0.6; 0.2 for the users of Last.FM)."""
    neighbour_dropout: float = Field(default=0.6, ge=0, lt=1)
    """Dropout of the attention weights (the authors: 0.6)."""
    rescale_edges: bool = True
    """Divide the weights of kept edges by ``edge_keep``, as the authors' code does."""


@dataclass(frozen=True)
class CoLaKgDraws:
    """Randomness of a step; none switches a part off.

    Attributes
    ----------
    edges
        Edges of the step's graph.
    text
        Masks before and after the maps: users ``[U, d_t]``, items ``[I, d_t]``, users ``[U, d]``, items ``[I, d]``.
    attention
        Mask of the attention weights, ``[I, k]``.
    """

    edges: EdgeWeights | None = None
    text: Sequence[Tensor] | None = None
    attention: Tensor | None = None


class CoLaKg(PropagatedRecommender[CoLaKgConfig]):
    """LightGCN on ids merged with mapped profiles; an item is merged with its nearest items in text space too.

    Unlike RLMRec, scores depend on the text. The triples enter through the profiles only.
    """

    title: ClassVar = "CoLaKG"
    scores_new: ClassVar = True
    presets: ClassVar = {
        "recommended": Preset(CoLaKgConfig(), TrainingConfig(learning_rate=5e-3)),
        "new_items": Preset(CoLaKgConfig(loss="cosine_softmax", neighbours=30), TrainingConfig(learning_rate=1e-3)),
        "reference": Preset(CoLaKgConfig(), TrainingConfig(epochs=2000, patience=0, keep="last")),
    }
    search_space: ClassVar = {
        **PROPAGATED,
        "neighbours": (5, 10, 20, 30),
        "text_dropout": (0.0, 0.2, 0.4, 0.6),
        "neighbour_dropout": (0.0, 0.2, 0.4, 0.6),
    }
    uses_text: ClassVar = True

    def build(self, generator: torch.Generator) -> None:
        """Draw the tables, maps and attention, and find the nearest items."""
        super().build(generator)
        config = self.config
        self.user_text, self.item_text = self.texts()
        text_dim = self.user_text.shape[1]
        self.user_map = linear(text_dim, config.dim, generator, self.device)
        self.item_map = linear(text_dim, config.dim, generator, self.device)
        self.attention_weight = xavier_table(text_dim, config.attention_dim, generator, self.device)
        self.attention_vector = xavier_table(2 * config.attention_dim, 1, generator, self.device)
        self.neighbours = nearest_items(self.item_text, config.neighbours)

    def draw(self, generator: torch.Generator) -> CoLaKgDraws:
        """Masks of text and attention, and edges to keep."""
        config, device, dim = self.config, self.device, self.config.dim
        edges = super().draw(generator)
        if edges is not None and config.rescale_edges:
            scale = kept_share(config.edge_keep)
            edges = edges[0] / scale, edges[1] / scale
        text = attention = None
        if config.text_dropout:
            sizes = (self.user_text.shape, self.item_text.shape, (len(self.user_text), dim), (len(self.item_text), dim))
            text = [dropout_mask(size, config.text_dropout, generator, device) for size in sizes]
        if config.neighbour_dropout:
            attention = dropout_mask(self.neighbours.shape, config.neighbour_dropout, generator, device)
        return CoLaKgDraws(edges, text, attention)

    def training_losses(self, batch: Batch, draws: CoLaKgDraws) -> dict[str, Tensor]:
        """Recommendation loss, and L2 of the batch's ids and mapped profiles."""
        (users, items), maps = self.merged(draws)
        final = self.propagated(draws.edges, (users, items))
        terms = self.recommendation_losses(*final, batch) | self.penalties(batch)
        if "l2" in terms:
            terms["l2"] = terms["l2"] + self.config.l2 * self.row_l2(batch, *maps)
        return terms

    def embeddings(self, draws: CoLaKgDraws | None = None) -> tuple[Tensor, Tensor]:
        """Propagated embeddings ``[U, d]`` and ``[I, d]``."""
        draws = draws or CoLaKgDraws()
        return self.propagated(draws.edges, self.merged(draws)[0])

    def merged(self, draws: CoLaKgDraws) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Layer-0 embeddings of users and items, and the mapped profiles in them before their ELU."""
        user_text, item_text = self.user_text, self.item_text
        if draws.text is not None:
            user_text, item_text = user_text * draws.text[0], item_text * draws.text[1]
        maps = self.user_map(user_text), self.item_map(item_text)
        of_users, of_items = (functional.elu(mapped) for mapped in maps)
        if draws.text is not None:
            of_users, of_items = of_users * draws.text[2], of_items * draws.text[3]
        users, items = (self.user_embedding + of_users) / 2, (self.item_embedding + of_items) / 2
        weights = self.neighbour_attention()
        if draws.attention is not None:
            weights = weights * draws.attention
        others = items.index_select(0, self.neighbours.flatten()).view(*self.neighbours.shape, -1)
        heard = (weights.unsqueeze(2) * others).sum(1)
        return (users, (items + functional.elu(heard)) / 2), maps

    def neighbour_attention(self) -> Tensor:
        """How much an item listens to each of its `neighbours`, ``[I, k]``; rows sum to 1."""
        narrow = self.item_text @ self.attention_weight
        of_neighbour, of_item = (narrow @ part for part in self.attention_vector.chunk(2))
        scores = of_neighbour.squeeze(1).index_select(0, self.neighbours.flatten()).view_as(self.neighbours) + of_item
        return functional.leaky_relu(scores, _SLOPE).softmax(1)


def nearest_items(text: Tensor, k: int) -> Tensor:
    """Other items with the largest cosines of ``text [I, d_t]``, the most similar first: ``[I, k]`` int64."""
    rows = functional.normalize(text)
    n_items = rows.shape[0]
    nearest = []
    for start in range(0, n_items, _ROWS):
        own = torch.arange(start, min(start + _ROWS, n_items), device=text.device)
        cosines = (rows.index_select(0, own) @ rows.T).scatter_(1, own.unsqueeze(1), -torch.inf)
        nearest.append(cosines.topk(min(k, n_items - 1), dim=1).indices)
    return torch.cat(nearest)


def dropout_mask(shape: tuple[int, ...], rate: float, generator: torch.Generator, device: torch.device) -> Tensor:
    """Mask of dropout: 0 with probability ``rate``, else the inverse of the share that is kept."""
    mask = keep_mask(shape, 1 - rate, generator, device, torch.float32)
    return mask / kept_share(1 - rate)
