"""Item-kNN: items like those that the user chose (Deshpande, Karypis, TOIS 2004)."""

from functools import cached_property
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from spike_kit.models.base import FittedRecommender, ModelConfig, Preset
from spike_kit.models.best import best_items
from spike_kit.models.sparse import SparsePattern, dense_rows, spmm

_CHUNK = 2**24
"""Similarities held at once."""


class ItemKnnConfig(ModelConfig):
    """Settings of item-kNN."""

    neighbours: int = Field(default=100, ge=1)
    """Most similar items k that count for an item (RecBole: 100)."""
    shrinkage: float = Field(default=10.0, ge=0)
    """Added to the denominator of the cosine, so that a few common users do not make two items alike."""


class ItemKnn(FittedRecommender):
    """Score: sum of the similarities between an item and those of its nearest items that the user has in train.

    Similarity of items i and j is ``n_ij / (sqrt(n_i n_j) + shrinkage)``: users of both, and of each.
    """

    config: ItemKnnConfig
    title: ClassVar = "Item-kNN"
    version: ClassVar = 2
    presets: ClassVar = {"recommended": Preset(ItemKnnConfig())}
    search_space: ClassVar = {"neighbours": (20, 50, 100, 200, 500), "shrinkage": (0.0, 10.0, 100.0)}

    @cached_property
    def fitted(self) -> dict[str, Tensor]:
        """Nearest items of every item and their similarities, ``[I, k]`` each; similarity 0 where there are fewer."""
        transpose, n_items = self.pattern.transpose, self.pattern.n_columns
        ones = torch.ones(transpose.rows.shape, device=self.device)
        norms = transpose.row_degree.float().sqrt()
        size = max(1, _CHUNK // max(n_items, self.pattern.n_rows))
        found = []
        for start in range(0, n_items, size):
            own = torch.arange(start, min(start + size, n_items), device=self.device)
            together = spmm(transpose, ones, dense_rows(transpose, own).T)
            shrunk = norms.unsqueeze(1) * norms.index_select(0, own) + self.config.shrinkage
            alike = together / shrunk.clamp_min(1e-12)
            alike.scatter_(0, own.unsqueeze(0), 0.0)
            found.append(best_items(alike.T, min(self.config.neighbours, n_items)))
        similarities, items = map(torch.cat, zip(*found, strict=True))
        return {"items": items, "similarities": similarities}

    def score(self, users: Tensor) -> Tensor:
        """Sums of similarities ``[n, I]``."""
        items, similarities = self.fitted["items"], self.fitted["similarities"]
        n_items, k = items.shape
        rows = torch.arange(n_items, device=self.device).repeat_interleave(k)
        pattern = SparsePattern(rows, items.flatten(), n_items, n_items)
        return spmm(pattern, similarities.flatten(), dense_rows(self.pattern, users).T).T
