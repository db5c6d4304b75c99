"""What a recommender must offer: scores for evaluation, losses and embeddings for training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Generic, Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from spike_kit.base.config import Config, TrainingConfig, later
from spike_kit.base.devices import sent
from spike_kit.base.errors import ConfigError
from spike_kit.data.graph import Graph
from spike_kit.data.vectors import ProfileVectors
from spike_kit.models import losses
from spike_kit.models.layers import normalized, xavier_table
from spike_kit.models.losses import RecommendationLoss
from spike_kit.models.spaces import Space
from spike_kit.models.sparse import SparsePattern


class ModelConfig(Config):
    """Settings of a model; a model without settings uses this class itself."""


class TrainedConfig(ModelConfig):
    """Settings that every trained model has, so that no model is denied a loss that another may use."""

    dim: int = Field(default=64, ge=1)
    """Dimension d of the embeddings (paper and released code: 64)."""
    loss: RecommendationLoss = "bpr"
    """Recommendation loss: bpr (one sampled negative), softmax (all items), cosine_softmax (on cosines)."""
    temperature: float = Field(default=0.2, gt=0)
    """Temperature of cosine_softmax (ours, not in the paper; 0.2 was the best of 0.1, 0.15, 0.2 for LightGCN)."""
    l2: float = Field(default=1e-5, ge=0)
    """Coefficient of the L2 term on the rows of a batch (half the squares, divided by the batch size)."""
    new_item_scale: float = later(1.0, gt=0)
    """Factor on the scores of items without train interactions (ours). Above 1 they are recommended more often, at the
    cost of known items; among themselves their order stays."""
    softmax_tf32: bool = later(False)
    """Let CUDA round the factors of the products of the softmax over items to the 10 bits of TF32, which is faster."""


@dataclass(frozen=True)
class Preset:
    """A named setting: of the model and of its training."""

    model: ModelConfig
    training: TrainingConfig = field(default_factory=TrainingConfig)


@dataclass(frozen=True)
class Batch:
    """Train interactions of one step and their sampled negatives: item and user ids ``[B]`` int64.

    Negatives are empty where the model does not read them (`TrainedRecommender.reads_negatives`).

    ``host_users`` are the users once more, in main memory, where distinct ones are to be found, because they are few:
    so no GPU is waited for.
    """

    users: Tensor
    positives: Tensor
    negatives: Tensor
    host_users: Tensor | None = None

    def rows_of(self, table: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of the distinct users out of a table ``[U, d]``, and the place of each user ``[B]`` among them.

        Without ``host_users`` it is the table itself, and the users.
        """
        if self.host_users is None:
            return table, self.users
        distinct, place = self.host_users.unique(return_inverse=True)
        return table.index_select(0, sent(distinct, table.device)), sent(place, table.device)


class Recommender(ABC):
    """Anything that can score all items for a user; this is all that evaluation needs."""

    title: ClassVar[str]
    """Name of the model in tables and figures."""
    presets: ClassVar[dict[str, Preset]]
    """Named settings; ``recommended`` always exists."""
    search_space: ClassVar[Space] = {}
    """What a search for quality may choose (`spike_kit.models.spaces`); empty: there is nothing to search."""
    version: ClassVar[int] = 1
    """Version of the model's numbers: raised by whoever changes what it computes, so that its runs are made anew."""
    uses_text: ClassVar[bool] = False
    """Whether the model wants profile vectors."""
    whole_users: ClassVar[bool] = False
    """Whether its batches hold whole users where the loss is a softmax over items (`TrainingConfig.batches`). Not where
    a contrast looks at the users of a batch: the fewer they are, the less it learns."""
    scores_new: ClassVar[bool] = False
    """Whether its scores tell items without train interactions apart: by their facts, texts or neighbours."""

    def __init__(
        self,
        config: Any,
        graph: Graph,
        vectors: ProfileVectors | None = None,
        generator: torch.Generator | None = None,  # noqa: ARG002 (source of the parameters of a trained model)
    ) -> None:
        """Build the untrained model.

        Parameters
        ----------
        config
            Settings, of the class that the presets have.
        graph
            Train interactions and triples; the model lives on its device.
        vectors
            Profile vectors on any device, for a model that uses text.
        generator
            Source of the initial parameters.
        """
        self.config, self.graph, self.vectors = config, graph, vectors

    @abstractmethod
    def score(self, users: Tensor) -> Tensor:
        """Score every item for some users.

        Parameters
        ----------
        users
            User ids ``[n]`` int64.

        Returns
        -------
        Tensor
            ``[n, I]``; higher is better.
        """

    @property
    def device(self) -> torch.device:
        """Device on which users must be given and scores are returned."""
        return self.graph.device

    def profile_vectors(self) -> ProfileVectors:
        """Profile vectors that the model was given.

        Raises
        ------
        ConfigError
            If there are none.
        """
        if self.vectors is None:
            problem = f"{self.title} uses profiles, but no profile vectors were given"
            raise ConfigError(problem, "encode them (spike-kit encode), or switch all profiles off where the model can")
        return self.vectors

    def tensors(self) -> dict[str, Tensor]:
        """Tensors that a run folder stores to bring the model back."""
        raise NotImplementedError

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `tensors` gave."""
        raise NotImplementedError

    def fixed(self) -> Recommender:
        """Return a recommender with the same scores that does no work twice over many calls of `score`."""
        return self


class FittedRecommender(Recommender):
    """A recommender without training: what it needs is computed once from the train interactions."""

    @cached_property
    def pattern(self) -> SparsePattern:
        """Train interactions, users by items."""
        graph = self.graph
        return SparsePattern(graph.train_user, graph.train_item, graph.n_users, graph.n_items)

    @cached_property
    def fitted(self) -> dict[str, Tensor]:
        """What is computed, by name."""
        raise NotImplementedError

    def tensors(self) -> dict[str, Tensor]:
        """What was computed."""
        return self.fitted

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Replace what was computed."""
        vars(self)["fitted"] = {name: tensor.to(self.device) for name, tensor in tensors.items()}


class FixedEmbeddings(Recommender):
    """Scores from embeddings that no longer change: ``users [U, d]`` and ``items [I, d]``, inner product."""

    def __init__(self, users: Tensor, items: Tensor) -> None:
        self.users, self.items = users, items

    @property
    def device(self) -> torch.device:
        """Device of the embeddings."""
        return self.users.device

    def score(self, users: Tensor) -> Tensor:
        """Inner products ``[n, I]``."""
        return self.users.index_select(0, users) @ self.items.T


TrainedConfigT = TypeVar("TrainedConfigT", bound=TrainedConfig)


class TrainedRecommender(nn.Module, Recommender, Generic[TrainedConfigT]):
    """A recommender with parameters, trained by the one loop of `spike_kit.training.loop`."""

    config: TrainedConfigT
    version: ClassVar[int] = 2  # 2: products by `spike_kit.base.dense`

    def __init__(
        self, config: TrainedConfigT, graph: Graph, vectors: ProfileVectors | None, generator: torch.Generator
    ) -> None:
        nn.Module.__init__(self)
        Recommender.__init__(self, config, graph, vectors)
        self.build(generator)

    @abstractmethod
    def build(self, generator: torch.Generator) -> None:
        """Make the parameters, and what else does not change in training, from `config`, `graph` and `vectors`."""

    def forward(self, batch: Batch, draws: Any) -> dict[str, Tensor]:
        """Loss terms, see `training_losses`; the training loop calls the model, so that hooks of torch see it."""
        return self.training_losses(batch, draws)

    def draw(self, generator: torch.Generator) -> Any:  # noqa: ARG002
        """Draw everything random of one training step (edges kept, nodes sampled, dropout); here: nothing."""
        return None

    def is_static(self, n: int) -> bool:  # noqa: ARG002
        """Whether a step over ``n`` interactions always does the same work on tensors of the same shapes.

        Then CUDA may record it once and replay it: nothing in it depends on a number that is read back from the device,
        and nothing is copied to it. Here: no.
        """
        return False

    @property
    def reads_negatives(self) -> bool:
        """Whether the losses read the negatives of a batch, which are drawn only then; here: BPR does."""
        return self.config.loss == "bpr"

    @property
    def auxiliary_steps(self) -> int:
        """Steps of a phase of its own that begins every epoch (DiffKG's diffusion, KGAT's TransR); here: none."""
        return 0

    def auxiliary_losses(self, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Loss terms by name of one step of that phase, its randomness included."""
        raise NotImplementedError

    def after_auxiliary(self) -> None:
        """Do what follows that phase once; what it leaves must be buffers, so that a resumed training finds it."""

    def training_losses(self, batch: Batch, draws: Any) -> dict[str, Tensor]:
        """Weighted loss terms by name, scalars; the optimised loss is exactly their sum.

        Here: the recommendation loss, and L2 of the batch's final rows.
        """
        return self.recommendation_losses(*self.embeddings(draws), batch, self.config.l2)

    @abstractmethod
    def embeddings(self, draws: Any = None) -> tuple[Tensor, Tensor]:
        """Final ``(users [U, d], items [I, d])``; without draws nothing is random, as evaluation wants it."""

    def tensors(self) -> dict[str, Tensor]:
        """All parameters by name."""
        return {name: tensor.detach() for name, tensor in self.state_dict().items()}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Replace all parameters; names and shapes must agree."""
        self.load_state_dict(tensors, strict=True)

    def fixed(self) -> FixedEmbeddings:
        """Embeddings as they are now, without gradient, ready to score many users."""
        with torch.no_grad():
            return FixedEmbeddings(*self.comparable(*self.embeddings()))

    def score(self, users: Tensor) -> Tensor:
        """Scores ``[n, I]`` of the current parameters."""
        return self.fixed().score(users)

    def texts(self) -> tuple[Tensor, Tensor]:
        """Profile vectors of users ``[U, d_t]`` and items ``[I, d_t]`` on the model's device.

        Raises
        ------
        ConfigError
            If there are none.
        """
        vectors = self.profile_vectors()
        return vectors.user.to(self.device), vectors.entity[: self.graph.n_items].to(self.device)

    def recommendation_losses(self, users: Tensor, items: Tensor, batch: Batch, l2: float = 0.0) -> dict[str, Tensor]:
        """Recommendation term of a batch from final rows ``users [U, d]`` and ``items [I, d]``, and their L2 term.

        Items without train interactions are never negatives.

        With a coefficient ``l2`` that covers the batch's users and positives, and its negatives where the loss looks
        at them.
        """
        config = self.config
        if config.loss == "bpr":
            chosen = users.index_select(0, batch.users)
            both = ((chosen * items.index_select(0, ids)).sum(1) for ids in (batch.positives, batch.negatives))
            terms = {"bpr": losses.bpr(*both)}
        else:
            tables = users, items
            if config.loss == "cosine_softmax":
                tables = normalized(users) / config.temperature, normalized(items)
            rows, users_of = batch.rows_of(tables[0])
            chosen = users_of, batch.positives, self.graph.trained_items
            terms = {config.loss: losses.softmax(rows, tables[1], *chosen, tf32=config.softmax_tf32)}
        if l2:
            terms["l2"] = l2 * self.row_l2(batch, users, items)
        return terms

    def row_l2(self, batch: Batch, users: Tensor, items: Tensor) -> Tensor:
        """`losses.l2` of a batch's rows of two tables: users, positives, and negatives where the loss looks at them."""
        chosen = [batch.positives, batch.negatives] if self.config.loss == "bpr" else [batch.positives]
        return losses.counted_l2((users, batch.users), *((items, ids) for ids in chosen))

    def comparable(self, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """Rows whose inner product is the score: normalised for ``cosine_softmax``, new items scaled."""
        if self.config.loss == "cosine_softmax":
            users, items = functional.normalize(users), functional.normalize(items)
        return users, self.scaled(items)

    def scaled(self, items: Tensor) -> Tensor:
        """Rows or scores of all items ``[I, ...]``, those of new items times `TrainedConfig.new_item_scale`."""
        scale, graph = self.config.new_item_scale, self.graph
        if scale == 1 or not graph.has_new_items:
            return items
        factors = torch.full((graph.n_items, 1), scale, device=items.device).index_fill(0, graph.trained_items, 1.0)
        return items * factors.view(-1, *(1 for _ in items.shape[1:]))


def item_table(n_rows: int, dim: int, graph: Graph, generator: torch.Generator) -> nn.Parameter:
    """Xavier table ``[n_rows, dim]`` that begins with the items; rows of those without train interactions are zero.

    No recommendation loss changes such a row, because these items are no negatives: only the knowledge graph can.
    """
    table = xavier_table(n_rows, dim, generator, graph.device)
    with torch.no_grad():
        table[: graph.n_items] *= graph.known_items
    return table


class TableRecommender(TrainedRecommender[TrainedConfigT]):
    """A trained recommender with one id embedding per user ``[U, d]`` and per item ``[I, d]``, Xavier uniform."""

    def build(self, generator: torch.Generator) -> None:
        """Draw both tables."""
        self.user_embedding = xavier_table(self.graph.n_users, self.config.dim, generator, self.device)
        self.item_embedding = item_table(self.graph.n_items, self.config.dim, self.graph, generator)


class EntityRecommender(TrainedRecommender[TrainedConfigT]):
    """A trained recommender with embeddings of users ``[U, d]``, entities ``[E, d]`` and relations, Xavier uniform."""

    @property
    def relation_shape(self) -> tuple[int, int]:
        """Shape of the table of relations; here every relation and its inverse has a row ``[d]``."""
        return 2 * self.graph.n_relations, self.config.dim

    def build(self, generator: torch.Generator) -> None:
        """Draw the three tables."""
        self.user_embedding = xavier_table(self.graph.n_users, self.config.dim, generator, self.device)
        self.entity_embedding = item_table(self.graph.n_entities, self.config.dim, self.graph, generator)
        self.relation_embedding = xavier_table(*self.relation_shape, generator, self.device)

    @property
    def nodes(self) -> Tensor:
        """Embeddings of all nodes ``[U + E, d]``: users, then entities."""
        return torch.cat([self.user_embedding, self.entity_embedding])

    def users_and_items(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of users ``[U, d]`` and items ``[I, d]`` among those of all nodes ``[U + E, d]``."""
        users, items, _ = nodes.tensor_split([self.graph.n_users, self.graph.n_users + self.graph.n_items])
        return users, items


class LayeredConfig(TrainedConfig):
    """Settings of models that propagate; their L2 term is on the rows before propagation, not on the final ones."""

    layers: int = Field(default=3, ge=1)
    """Propagation layers over the user-item graph (LightGCN's authors: 3)."""
    l2_on: Literal["batch", "all"] = "batch"
    """L2 of the batch's embeddings before propagation (half the squares, divided by the batch size), or squares of all
    parameters (SSLRec and RLMRec code)."""


def layer_zero_l2(model: TrainedRecommender[Any], batch: Batch, tables: Sequence[Tensor]) -> dict[str, Tensor]:
    """L2 term of a model with `LayeredConfig`, where there is one: of the batch's users and items, or of all tables.

    The first two ``tables`` are those of users and items.
    """
    config: LayeredConfig = model.config
    if not config.l2:
        return {}
    if config.l2_on == "all":
        return {"l2_all": config.l2 * torch.stack([table.square().sum() for table in tables]).sum()}
    return {"l2": config.l2 * model.row_l2(batch, tables[0], tables[1])}
