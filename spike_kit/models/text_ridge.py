"""Text-ridge: a linear map from profile vectors to interactions, fitted by ridge regression for every user at once."""

from functools import cached_property
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from spike_kit.models.base import Preset
from spike_kit.models.text_knn import TextKnn, TextKnnConfig


class TextRidgeConfig(TextKnnConfig):
    """Settings of text-ridge."""

    text_components: int = Field(default=0, ge=0)
    """Whitened principal components to which the profile vectors are reduced; 0 takes the vectors as they are (the best
    on validation of new items of ml-100k)."""
    regularisation: float = Field(default=20.0, gt=0)
    """Added to the diagonal of the matrix of text features by text features (chosen like `text_components`)."""


class TextRidge(TextKnn):
    """Score ``t_i (T'T + reg)^-1 T'r_u``: what the texts T of the items with train interactions say of a user's r_u."""

    title: ClassVar = "Text-ridge"
    presets: ClassVar = {"recommended": Preset(TextRidgeConfig())}
    search_space: ClassVar = {**TextKnn.search_space, "regularisation": (0.1, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)}

    @cached_property
    def fitted(self) -> dict[str, Tensor]:
        """Coefficients of users ``[U, d_t]``, solved in float64, and rows of items ``[I, d_t]``."""
        assert isinstance(self.config, TextRidgeConfig)
        items = self.item_rows()
        trained = items.index_select(0, self.graph.trained_items).double()
        together = trained.T @ trained
        together.diagonal().add_(self.config.regularisation)
        users = torch.linalg.solve(together, self.sums(items).double().T).T
        return {"users": users.float().contiguous(), "items": items}
