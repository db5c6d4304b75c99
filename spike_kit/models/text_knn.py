"""Text-kNN: items whose profiles are like those of the user's items; nothing is trained."""

from functools import cached_property
from typing import ClassVar

from pydantic import Field
from torch import Tensor
from torch.nn import functional

from spike_kit.models.base import FittedRecommender, FixedEmbeddings, ModelConfig, Preset


class TextKnnConfig(ModelConfig):
    """Settings of text-kNN."""

    text_components: int = Field(default=128, ge=0)
    """Whitened principal components to which the profile vectors are reduced (128 were the best on validation of new
    items of ml-100k); 0 takes the vectors as they are."""


class TextKnn(FittedRecommender):
    """Score: cosine of an item's profile vector and the mean of those of the user's train items (of unit length)."""

    config: TextKnnConfig
    title: ClassVar = "Text-kNN"
    presets: ClassVar = {"recommended": Preset(TextKnnConfig())}
    search_space: ClassVar = {"text_components": (0, 32, 64, 128, 256)}
    uses_text: ClassVar = True
    scores_new: ClassVar = True

    @cached_property
    def fitted(self) -> dict[str, Tensor]:
        """Rows of users ``[U, d_t]`` and items ``[I, d_t]`` whose inner product is the score."""
        items = self.item_rows()
        return {"users": functional.normalize(self.sums(items)), "items": items}

    def item_rows(self) -> Tensor:
        """Profile vectors of the items, reduced if the settings say so, of unit length, ``[I, d_t]``."""
        vectors = self.profile_vectors().to(self.device)
        if self.config.text_components:
            vectors = vectors.transformed(*vectors.whitening(self.config.text_components))
        return functional.normalize(vectors.entity[: self.graph.n_items].float())

    def sums(self, items: Tensor) -> Tensor:
        """Sum of the rows of each user's train items, ``[U, d_t]``."""
        graph = self.graph
        rows = items.index_select(0, graph.train_item)
        return items.new_zeros(graph.n_users, items.shape[1]).index_add(0, graph.train_user, rows)

    def fixed(self) -> FixedEmbeddings:
        """The rows, ready to score many users."""
        return FixedEmbeddings(self.fitted["users"], self.fitted["items"])

    def score(self, users: Tensor) -> Tensor:
        """Inner products ``[n, I]``."""
        return self.fixed().score(users)
