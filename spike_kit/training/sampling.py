"""Batches of train interactions and their negatives, without a Python loop over interactions."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from spike_kit.base.config import TrainingConfig
from spike_kit.base.errors import DataError, some
from spike_kit.data.graph import Graph
from spike_kit.models.base import Batch, Recommender
from spike_kit.models.sparse import count, offsets

logger = logging.getLogger(__name__)

_NO_NEGATIVE = "bpr needs a negative item for each, and there is none"
_REMEDY = "the softmax losses need none: --loss cosine_softmax"


class NegativeSampler:
    """Uniform negatives among the items with train interactions that are none of the user; exact, without rejection.

    These items are numbered 0, 1, ... here. The r-th of them that a user has not is r plus the number of the user's
    positives p_j (ascending, j = 0, 1, ...) with p_j - j <= r; that number is one binary search in an array sorted over
    all users.

    A user who has every one of these items gets any of them; a loss that compares with negatives must leave such a user
    out (`with_negatives`).

    Parameters
    ----------
    graph
        Train interactions, sorted by user, then item.
    """

    def __init__(self, graph: Graph) -> None:
        self.items, self.n_items = graph.trained_items, graph.trained_items.numel()
        degree = count(graph.train_user, graph.n_users)
        self.choices = torch.where(degree < self.n_items, self.n_items - degree, self.n_items)
        self.start = offsets(graph.train_user, graph.n_users)
        place = torch.arange(graph.n_interactions, device=graph.device) - self.start.index_select(0, graph.train_user)
        number = torch.searchsorted(self.items, graph.train_item)
        self.gap_keys = graph.train_user * self.n_items + number - place

    def sample(self, users: Tensor, generator: torch.Generator) -> Tensor:
        """Draw one negative item for each of ``users [n]``, as ``[n]`` int64."""
        draws = _draws(users, generator)
        choices = self.choices.index_select(0, users)
        rank = (draws.to(users.device) * choices).long().minimum(choices - 1)
        below = torch.searchsorted(self.gap_keys, users * self.n_items + rank, right=True)
        number = (rank + below - self.start.index_select(0, users)) % self.n_items
        return self.items.index_select(0, number)


def _draws(users: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(users.shape, generator=generator, device=generator.device, dtype=torch.float64)


def with_negatives(graph: Graph, names: Sequence[str] | None = None) -> Graph:
    """Graph without the train interactions of users who have every item in train; a warning names them.

    Parameters
    ----------
    graph
        Train interactions.
    names
        Names of all users, in their order, for messages; none: they are named by their numbers.

    Raises
    ------
    DataError
        If no interaction is left.
    """
    full = count(graph.train_user, graph.n_users) == graph.trained_items.numel()
    kept = (~full.index_select(0, graph.train_user)).nonzero().flatten()
    passed = graph.n_interactions - kept.numel()
    if not passed:
        return graph
    who = some(f"user {user if names is None else names[user]}" for user in full.nonzero().flatten().tolist())
    if not kept.numel():
        raise DataError(f"every user with train interactions has every item in train ({who}): {_NO_NEGATIVE}", _REMEDY)
    logger.warning(
        "%d train interactions are passed over, of those who have every item in train (%s): %s; %s",
        *(passed, who, _NO_NEGATIVE, _REMEDY),
    )
    pairs = (ids.index_select(0, kept) for ids in (graph.train_user, graph.train_item))
    return replace(graph, **dict(zip(("train_user", "train_item"), pairs, strict=True)))


def holds_users(config: TrainingConfig, model: type[Recommender], loss: str, n_interactions: int) -> bool:
    """Whether each batch holds users with all of their interactions (`TrainingConfig.batches`)."""
    wanted = config.batches == "users" or (config.batches == "auto" and model.whole_users and loss != "bpr")
    return wanted and config.batch_size < n_interactions


def epoch_batches(
    graph: Graph,
    sampler: NegativeSampler | None,
    batch_size: int,
    generator: torch.Generator,
    by_user: bool = False,
) -> Iterator[Batch]:
    """Shuffle the train interactions, draw a fresh negative for each, and cut them into batches.

    The last batch may be smaller; no interaction is left out.

    Parameters
    ----------
    graph
        Train interactions, sorted by user.
    sampler
        Finds the negatives; none: nobody reads them, and they are empty. Their random numbers are drawn all the same,
        so that the batches do not depend on it.
    batch_size
        Interactions per batch.
    generator
        Source of the shuffle and of the draws.
    by_user
        Shuffle users, each with all interactions, of which the last of a batch may go on in the next one.
    """
    size = graph.n_users if by_user else graph.n_interactions
    order = torch.randperm(size, generator=generator, device=generator.device)
    if by_user:
        order = order.index_select(0, graph.train_user.to(order.device)).argsort(stable=True)
    of_last = (graph.n_interactions - 1) % batch_size + 1
    few = by_user or (graph.device != order.device and of_last < graph.n_users)
    host_users = graph.train_user.to(order.device).index_select(0, order) if few else None
    order = order.to(graph.device)
    users = graph.train_user.index_select(0, order)
    positives = graph.train_item.index_select(0, order)
    if sampler is None:
        _draws(users, generator)
    negatives = users[:0] if sampler is None else sampler.sample(users, generator)
    for start in range(0, graph.n_interactions, batch_size):
        part = slice(start, start + batch_size)
        is_few = by_user or min(batch_size, graph.n_interactions - start) < graph.n_users
        known = None if host_users is None or not is_few else host_users[part]
        yield Batch(users[part], positives[part], negatives[part], known)
