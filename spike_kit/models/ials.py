"""iALS: matrix factorisation of implicit feedback by alternating least squares (Hu, Koren and Volinsky, ICDM 2008).

The package ``implicit`` (Ben Frederickson; extra ``baselines``) solves it, on the CPU.
"""

from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from scipy.sparse import csr_matrix
from torch import Tensor

from spike_kit.base.errors import require
from spike_kit.data.graph import Graph
from spike_kit.data.vectors import ProfileVectors
from spike_kit.models.base import FittedRecommender, ModelConfig, Preset


class IalsConfig(ModelConfig):
    """Settings of iALS; the defaults were the best of 48 on the validation split of ml-100k."""

    dim: int = Field(default=32, ge=1)
    """Length of the factors (f in the paper)."""
    regularisation: float = Field(default=30.0, gt=0)
    """Weight of the squared lengths of the factors (lambda; 0.01 in implicit)."""
    confidence: float = Field(default=4.0, gt=0)
    """Weight of an interaction beside 1 for all other pairs (1 + alpha in the paper, where alpha is 40)."""
    rounds: int = Field(default=15, ge=1)
    """How often users and items are solved in turn (15 in implicit; 10 in the paper)."""


class Ials(FittedRecommender):
    """Scores are inner products of factors that minimise a weighted squared error over all pairs (paper, eq. 3)."""

    config: IalsConfig
    title: ClassVar = "iALS"
    presets: ClassVar = {"recommended": Preset(IalsConfig())}
    search_space: ClassVar = {
        "dim": (16, 32, 64, 128),
        "regularisation": (1.0, 3.0, 10.0, 30.0, 100.0),
        "confidence": (1.0, 2.0, 4.0, 10.0, 30.0),
    }

    def __init__(
        self, config: ModelConfig, graph: Graph, vectors: ProfileVectors | None, generator: torch.Generator
    ) -> None:
        super().__init__(config, graph, vectors, generator)
        self.seed = int(torch.randint(2**31, (1,), generator=generator, device=generator.device))

    @cached_property
    def fitted(self) -> dict[str, Tensor]:
        """Factors of users ``[U, d]`` and items ``[I, d]``; zero for an item without train interactions."""
        graph, config = self.graph, self.config
        places = graph.train_user.cpu().numpy(), graph.train_item.cpu().numpy()
        ones = np.ones(graph.n_interactions, dtype=np.float32)
        library: Any = require("implicit.als", "baselines")
        model = library.AlternatingLeastSquares(
            factors=config.dim,
            regularization=config.regularisation,
            alpha=config.confidence,
            iterations=config.rounds,
            use_cg=False,
            use_gpu=False,
            num_threads=torch.get_num_threads(),
            random_state=self.seed,
        )
        model.fit(csr_matrix((ones, places), (graph.n_users, graph.n_items)), show_progress=False)
        factors = {"users": model.user_factors, "items": model.item_factors}
        found = {name: torch.from_numpy(np.array(rows)) for name, rows in factors.items()}
        trained = torch.zeros(graph.n_items, 1).index_fill_(0, graph.trained_items.cpu(), 1)
        return {"users": found["users"].to(self.device), "items": (found["items"] * trained).to(self.device)}

    def score(self, users: Tensor) -> Tensor:
        """Inner products ``[n, I]``."""
        return self.fitted["users"].index_select(0, users) @ self.fitted["items"].T
