"""EASE^R: a linear model between items in closed form (Steck, WWW 2019)."""

from functools import cached_property
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from spike_kit.base.devices import free_memory
from spike_kit.base.errors import ConfigError
from spike_kit.models.base import FittedRecommender, ModelConfig, Preset
from spike_kit.models.footprint import gib
from spike_kit.models.sparse import dense_rows, spmm

_COPIES = 4
"""Matrices of items by items in float64 that the solution holds at once."""
_COLUMNS = 1024


class EaseConfig(ModelConfig):
    """Settings of EASE^R."""

    regularisation: float = Field(default=250.0, gt=0)
    """Added to the diagonal of the item-item matrix (RecBole: 250; the paper: 200 to 1000)."""


class Ease(FittedRecommender):
    """Scores ``X B``: B predicts each item from the others by ridge regression, with a zero diagonal (paper, eq. 8)."""

    config: EaseConfig
    title: ClassVar = "EASE^R"
    presets: ClassVar = {"recommended": Preset(EaseConfig())}
    search_space: ClassVar = {"regularisation": (1.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)}

    @cached_property
    def fitted(self) -> dict[str, Tensor]:
        """Matrix B ``[I, I]``, the weights, solved in float64 and kept in float32.

        Raises
        ------
        ConfigError
            If the matrices would not fit into memory.
        """
        transpose, n_items = self.pattern.transpose, self.pattern.n_columns
        needed, free = _COPIES * 8 * n_items**2, free_memory(self.device)
        if needed > free:
            raise ConfigError(
                f"EASE^R on {n_items:,} items takes about {gib(needed)}, but {gib(free)} are free",
                "take another model; this one needs items by items",
            )
        ones = torch.ones(transpose.rows.shape, dtype=torch.float64, device=self.device)
        together = torch.empty(n_items, n_items, dtype=torch.float64, device=self.device)
        for start in range(0, n_items, _COLUMNS):
            own = torch.arange(start, min(start + _COLUMNS, n_items), device=self.device)
            together[:, start : start + _COLUMNS] = spmm(transpose, ones, dense_rows(transpose, own).double().T)
        together.diagonal().add_(self.config.regularisation)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(together))
        weights = (inverse / -inverse.diagonal()).float()
        weights.fill_diagonal_(0)
        return {"weights": weights}

    def score(self, users: Tensor) -> Tensor:
        """Predictions ``[n, I]``."""
        return dense_rows(self.pattern, users) @ self.fitted["weights"]
