"""BPR-MF: matrix factorisation trained to rank (Rendle et al., UAI 2009)."""

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from spike_kit.base.config import TrainingConfig
from spike_kit.models.base import Preset, TableRecommender, TrainedConfig
from spike_kit.models.spaces import SHARED


class BprMfConfig(TrainedConfig):
    """Settings of BPR-MF; only the shared ones."""

    l2: float = Field(default=1e-3, ge=0)
    """Coefficient of the L2 term on the embeddings of a batch."""


class BprMf(TableRecommender[BprMfConfig]):
    """Score of user u and item i: inner product of their embeddings, no bias."""

    title: ClassVar = "BPR-MF"
    presets: ClassVar = {
        "recommended": Preset(BprMfConfig(), TrainingConfig(learning_rate=5e-3)),
        "cosine_softmax": Preset(
            BprMfConfig(loss="cosine_softmax", temperature=0.25, l2=0.0), TrainingConfig(learning_rate=5e-3)
        ),
    }
    search_space: ClassVar = SHARED

    def embeddings(self, draws: None = None) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Embedding tables ``[U, d]`` and ``[I, d]``."""
        return self.user_embedding, self.item_embedding
