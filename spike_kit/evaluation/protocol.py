"""Full ranking: every item a user has not seen is a candidate, and every user counts the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from spike_kit.data.tables import Tables
from spike_kit.errors import ConfigError, DataError, TrainingError
from spike_kit.metrics import ranking_metrics
from spike_kit.models.recommender import Recommender

CUTOFFS = (10, 20, 40)
"""Ranks at which the paper measures."""

SEEN = {"valid": ("train",), "test": ("train", "valid")}
"""Splits whose positives are masked when a split is evaluated."""

CHUNK_ENTRIES = 8_000_000
"""Scores held in memory at once (users of a chunk times items)."""


@dataclass(frozen=True)
class RankingTask:
    """Users to rank for, what they have seen, and what counts as relevant, on one device.

    Attributes
    ----------
    users
        ``[n]``: users with a train interaction and a relevant item, ascending.
    seen_row, seen_item
        Entries to mask: position in ``users`` and item, sorted by row.
    relevant_key
        Sorted ``row * n_items + item`` of the relevant items.
    n_relevant
        ``[n]``: relevant items per user.
    n_items
        Number of items.
    n_without_train, n_without_relevant
        Users that are not ranked, and why.
    """

    users: Tensor
    seen_row: Tensor
    seen_item: Tensor
    relevant_key: Tensor
    n_relevant: Tensor
    n_items: int
    n_without_train: int
    n_without_relevant: int

    def check(self) -> None:
        """Check that there is someone to rank for.

        Raises
        ------
        DataError
            If no user has both a train interaction and a relevant item.
        """
        if self.users.numel() == 0:
            raise DataError(
                "no user has a train interaction and a held-out one, so there is nothing to rank",
                "build the data set with larger shares for valid and test",
            )

    @classmethod
    def from_tables(cls, tables: Tables, split: str, device: torch.device | str = "cpu") -> RankingTask:
        """Build the task of a split (``valid`` or ``test``)."""
        interactions, n_users, n_items = tables.interactions, len(tables.users), len(tables.items)
        relevant = interactions[interactions["split"] == split]
        seen = interactions[interactions["split"].isin(SEEN[split])]
        in_train = np.zeros(n_users, dtype=bool)
        in_train[interactions.loc[interactions["split"] == "train", "user"]] = True
        in_split = np.zeros(n_users, dtype=bool)
        in_split[relevant["user"]] = True
        users = np.flatnonzero(in_train & in_split)
        row = np.full(n_users, -1)
        row[users] = np.arange(len(users))
        seen_row, seen_item = _rows(seen, row)
        relevant_row, relevant_item = _rows(relevant, row)

        def tensor(values: np.ndarray) -> Tensor:
            return torch.from_numpy(values.astype(np.int64)).to(device)

        return cls(
            users=tensor(users),
            seen_row=tensor(seen_row),
            seen_item=tensor(seen_item),
            relevant_key=tensor(np.sort(relevant_row * n_items + relevant_item)),
            n_relevant=tensor(np.bincount(relevant_row, minlength=len(users))),
            n_items=n_items,
            n_without_train=int((~in_train).sum()),
            n_without_relevant=int((in_train & ~in_split).sum()),
        )


def _rows(interactions: pd.DataFrame, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    ranked = interactions[row[interactions["user"]] >= 0].sort_values(["user", "item"])
    return row[ranked["user"]], ranked["item"].to_numpy()


def evaluate(
    recommender: Recommender, task: RankingTask, cutoffs: Sequence[int] = CUTOFFS
) -> tuple[dict[str, float], pd.DataFrame]:
    """Rank all unseen items for every user of a task.

    Scores are computed in chunks of users, on the device of the task. Tied scores are ordered by ``torch.topk``, that
    is without regard to relevance.

    Parameters
    ----------
    recommender
        Anything with ``score``; a trained model propagates once and scores from its final embeddings.
    task
        Users, seen and relevant items.
    cutoffs
        Ranks k.

    Returns
    -------
    means, per_user
        Mean of every metric over users, and a table with the column ``user`` and one column per metric.

    Raises
    ------
    ConfigError
        If a cut-off is not positive.
    DataError
        If the task has no user.
    TrainingError
        If a score is NaN.
    """
    if min(cutoffs) < 1:
        raise ConfigError(f"a cut-off must be at least 1, not {min(cutoffs)}")
    task.check()
    size = max(1, CHUNK_ENTRIES // task.n_items)
    fixed = recommender.fixed()
    parts = [
        _evaluate_rows(fixed, task, start, min(start + size, task.users.numel()), cutoffs)
        for start in range(0, task.users.numel(), size)
    ]
    names = parts[0]
    columns = {name: torch.cat([part[name] for part in parts]).numpy() for name in names}
    per_user = pd.DataFrame({"user": task.users.cpu().numpy(), **columns})
    return {name: float(values.mean()) for name, values in columns.items()}, per_user


@torch.no_grad()
def _evaluate_rows(
    recommender: Recommender, task: RankingTask, start: int, stop: int, cutoffs: Sequence[int]
) -> dict[str, Tensor]:
    scores = recommender.score(task.users[start:stop]).clone()
    if torch.isnan(scores).any():
        raise TrainingError("the model gives NaN scores", "lower the learning rate or look at the loss terms")
    first, last = torch.searchsorted(task.seen_row, torch.tensor([start, stop], device=scores.device)).tolist()
    seen = (task.seen_row[first:last] - start) * task.n_items + task.seen_item[first:last]
    scores.view(-1).index_fill_(0, seen, float("-inf"))
    best, items = scores.topk(min(max(cutoffs), task.n_items), dim=1)
    rows = torch.arange(start, stop, device=scores.device).unsqueeze(1)
    hits = contains(task.relevant_key, rows * task.n_items + items) & (best > float("-inf"))
    return ranking_metrics(hits.cpu(), task.n_relevant[start:stop].cpu(), cutoffs)


def contains(sorted_keys: Tensor, keys: Tensor) -> Tensor:
    """Whether each of ``keys`` (any shape) occurs in ``sorted_keys``."""
    if sorted_keys.numel() == 0:
        return torch.zeros_like(keys, dtype=torch.bool)
    place = torch.searchsorted(sorted_keys, keys).clamp_max(sorted_keys.numel() - 1)
    return sorted_keys[place] == keys


def top_items(recommender: Recommender, user: int, seen: Sequence[int], k: int) -> list[tuple[int, float]]:
    """Best ``k`` unseen items of one user with their scores, best first."""
    with torch.no_grad():
        fixed = recommender.fixed()
        scores = fixed.score(torch.tensor([user], device=fixed.device)).flatten().clone()
    scores[list(seen)] = float("-inf")
    best, items = scores.topk(min(k, scores.numel()))
    return [(int(item), float(score)) for item, score in zip(items, best, strict=True) if score > float("-inf")]
