"""The plain way to evaluate: one user after the other, metrics by Python loops, as many published codes do it."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from spike_kit.evaluation.ranking import RankingTask
from spike_kit.models.base import Recommender


def user_metrics(ranked: list[int], relevant: set[int], cutoffs: Sequence[int]) -> dict[str, float]:
    """Metrics of one user by loops over the ranked items."""
    result = {}
    for k in cutoffs:
        hits = [1 if item in relevant else 0 for item in ranked[:k]]
        gain = sum(hit / math.log2(rank + 2) for rank, hit in enumerate(hits))
        ideal = sum(1 / math.log2(rank + 2) for rank in range(min(k, len(relevant))))
        result[f"recall@{k}"] = sum(hits) / len(relevant)
        result[f"ndcg@{k}"] = gain / ideal
        result[f"precision@{k}"] = sum(hits) / k
        result[f"mrr@{k}"] = next((1 / (rank + 1) for rank, hit in enumerate(hits) if hit), 0.0)
        result[f"hit_rate@{k}"] = 1.0 if any(hits) else 0.0
    return result


def task_of(
    seen: Sequence[Iterable[int]],
    relevant: Sequence[Iterable[int]],
    n_items: int,
    users: Tensor | None = None,
    device: torch.device | str = "cpu",
) -> RankingTask:
    """Task of users (0, 1, ... if they are not given) with these seen and relevant items."""
    (seen_row, seen_item), (row, item) = (
        torch.tensor([(row, item) for row, items in enumerate(part) for item in sorted(items)], device=device)
        .reshape(-1, 2)
        .T.contiguous()
        for part in (seen, relevant)
    )
    return RankingTask(
        users=(torch.arange(len(seen)) if users is None else users).to(device),
        seen_row=seen_row,
        seen_item=seen_item,
        relevant_key=row * n_items + item,
        n_relevant=row.bincount(minlength=len(seen)),
        excluded=torch.empty(0, dtype=torch.long, device=device),
        n_items=n_items,
        n_without_train=0,
    )


def lists_of(task: RankingTask) -> tuple[list[list[int]], list[set[int]]]:
    """Seen and relevant items of every ranked user."""
    keys = [task.seen_row * task.n_items + task.seen_item, task.relevant_key]
    seen, relevant = (
        [(key[key // task.n_items == row] % task.n_items).tolist() for row in range(task.users.numel())] for key in keys
    )
    return seen, [*map(set, relevant)]


def loop(recommender: Recommender, task: RankingTask, cutoffs: Sequence[int]) -> list[dict[str, float]]:
    """Metrics of each user of a task: all items by score, equal scores by item id, the unseen ones of them."""
    rows = []
    for user, own, wanted in zip(task.users, *lists_of(task), strict=True):
        scores = recommender.score(user.unsqueeze(0)).flatten().clone()
        scores[own] = -math.inf
        values = scores.tolist()
        order = sorted((item for item, value in enumerate(values) if value > -math.inf), key=lambda i: (-values[i], i))
        rows.append(user_metrics(order, wanted, cutoffs))
    return rows
