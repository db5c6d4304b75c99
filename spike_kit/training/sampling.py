"""Batches of train interactions and their negatives, without a Python loop over interactions."""

from collections.abc import Iterator

import torch
from torch import Tensor

from spike_kit.base.errors import DataError, some
from spike_kit.data.graph import Graph
from spike_kit.models.base import Batch
from spike_kit.models.sparse import count, offsets


class NegativeSampler:
    """Uniform negatives among the items with train interactions that are none of the user; exact, without rejection.

    These items are numbered 0, 1, ... here. The r-th of them that a user has not is r plus the number of the user's
    positives p_j (ascending, j = 0, 1, ...) with p_j - j <= r; that number is one binary search in an array sorted over
    all users.

    Parameters
    ----------
    graph
        Train interactions, sorted by user, then item.

    Raises
    ------
    DataError
        If a user has every item that anybody has in train.
    """

    def __init__(self, graph: Graph) -> None:
        self.items, self.n_items = graph.trained_items, graph.trained_items.numel()
        degree = count(graph.train_user, graph.n_users)
        self.unseen = self.n_items - degree
        full = ((self.unseen == 0) & (degree > 0)).nonzero().flatten()
        if full.numel():
            raise DataError(f"users {some(full.tolist())} have every item in train: there is no negative to draw")
        self.start = offsets(graph.train_user, graph.n_users)
        place = torch.arange(graph.n_interactions, device=graph.device) - self.start.index_select(0, graph.train_user)
        number = torch.searchsorted(self.items, graph.train_item)
        self.gap_keys = graph.train_user * self.n_items + number - place

    def sample(self, users: Tensor, generator: torch.Generator) -> Tensor:
        """Draw one negative item for each of ``users [n]``, as ``[n]`` int64."""
        draws = torch.rand(users.shape, generator=generator, device=generator.device, dtype=torch.float64)
        unseen = self.unseen.index_select(0, users)
        rank = (draws.to(users.device) * unseen).long().minimum(unseen - 1)
        below = torch.searchsorted(self.gap_keys, users * self.n_items + rank, right=True)
        return self.items.index_select(0, rank + below - self.start.index_select(0, users))


def epoch_batches(
    graph: Graph, sampler: NegativeSampler, batch_size: int, generator: torch.Generator
) -> Iterator[Batch]:
    """Shuffle the train interactions, draw a fresh negative for each, and cut them into batches.

    The last batch may be smaller; no interaction is left out.
    """
    order = torch.randperm(graph.n_interactions, generator=generator, device=generator.device).to(graph.device)
    users = graph.train_user.index_select(0, order)
    positives = graph.train_item.index_select(0, order)
    negatives = sampler.sample(users, generator)
    for start in range(0, graph.n_interactions, batch_size):
        part = slice(start, start + batch_size)
        yield Batch(users[part], positives[part], negatives[part])
