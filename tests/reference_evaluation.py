"""The plain way to evaluate: one user after the other, metrics by Python loops, as many published codes do it.

``python -m tests.reference_evaluation`` times it beside `spike_kit.evaluation.ranking.evaluate`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from benchmarks.common import in_turns, seconds_of
from benchmarks.evaluation import synthetic_task
from spike_kit.evaluation.ranking import CUTOFFS, RankingTask, evaluate
from spike_kit.models.base import Recommender

SAMPLE = 200


def best_unseen(scores: Tensor, seen: list[int], k: int) -> list[int]:
    """Mask, then ``torch.topk``."""
    scores[seen] = -math.inf
    best, items = scores.topk(min(k, scores.numel()))
    return [item for item, score in zip(items.tolist(), best.tolist(), strict=True) if score > -math.inf]


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
        n_items=n_items,
        n_without_train=0,
    )


def lists_of(task: RankingTask) -> tuple[list[list[int]], list[set[int]]]:
    """Seen and relevant items of every ranked user."""
    seen: list[list[int]] = [[] for _ in range(task.users.numel())]
    relevant: list[set[int]] = [set() for _ in seen]
    for row, item in zip(task.seen_row.tolist(), task.seen_item.tolist(), strict=True):
        seen[row].append(item)
    for key in task.relevant_key.tolist():
        relevant[key // task.n_items].add(key % task.n_items)
    return seen, relevant


def loop(recommender: Recommender, task: RankingTask, cutoffs: Sequence[int]) -> list[dict[str, float]]:
    """Metrics of each user of a task."""
    rows = []
    for user, own, wanted in zip(task.users, *lists_of(task), strict=True):
        scores = recommender.score(user.unsqueeze(0)).flatten().clone()
        rows.append(user_metrics(best_unseen(scores, own, max(cutoffs)), wanted, cutoffs))
    return rows


def main() -> None:
    """Write the seconds of both, in turns, and their ratio; the loop ranks for some users only."""
    recommender, task = synthetic_task(10_000, 25_000)
    seen, relevant = lists_of(task)
    some = task_of(seen[:SAMPLE], relevant[:SAMPLE], task.n_items)
    with torch.no_grad():
        evaluate(recommender, task)
        theirs, ours, ratio = in_turns(
            lambda: seconds_of(lambda: loop(recommender, some, CUTOFFS)) * task.users.numel() / SAMPLE,
            lambda: seconds_of(lambda: evaluate(recommender, task)),
        )
    print(f"evaluate {ours:.3f} s; loop {theirs:.3f} s, {ratio:.1f} times as long")  # noqa: T201


if __name__ == "__main__":
    main()
