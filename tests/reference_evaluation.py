"""The plain way to evaluate: one user after the other, metrics by Python loops, as many published codes do it.

``python -m tests.reference_evaluation`` times it beside `spike_kit.evaluation.ranking.evaluate`.
"""

from __future__ import annotations

import heapq
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from benchmarks.evaluation import synthetic_task
from spike_kit.evaluation.ranking import CUTOFFS, RankingTask, evaluate
from spike_kit.models.base import Recommender

Ranking = Literal["topk", "argsort", "heap"]
SAMPLE, ROUNDS = 200, 5


def by_topk(scores: Tensor, seen: list[int], k: int) -> list[int]:
    """Mask, then ``torch.topk``."""
    scores[seen] = -math.inf
    best, items = scores.topk(min(k, scores.numel()))
    return [item for item, score in zip(items.tolist(), best.tolist(), strict=True) if score > -math.inf]


def by_argsort(scores: Tensor, seen: list[int], k: int) -> list[int]:
    """Mask, then sort all items with numpy."""
    values = scores.numpy()
    values[seen] = -math.inf
    return [item for item in np.argsort(-values)[:k].tolist() if values[item] > -math.inf]


def by_heap(scores: Tensor, seen: list[int], k: int) -> list[int]:
    """Scores of the unseen items in a dict, then ``heapq.nlargest``."""
    values, masked = scores.tolist(), set(seen)
    offered = {item: value for item, value in enumerate(values) if item not in masked and value > -math.inf}
    return heapq.nlargest(k, offered, key=offered.__getitem__)


RANKINGS: dict[Ranking, Callable[[Tensor, list[int], int], list[int]]] = {
    "topk": by_topk,
    "argsort": by_argsort,
    "heap": by_heap,
}


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


def lists_of(task: RankingTask) -> tuple[list[list[int]], list[set[int]]]:
    """Seen and relevant items of every ranked user."""
    seen: list[list[int]] = [[] for _ in range(task.users.numel())]
    relevant: list[set[int]] = [set() for _ in seen]
    for row, item in zip(task.seen_row.tolist(), task.seen_item.tolist(), strict=True):
        seen[row].append(item)
    for key in task.relevant_key.tolist():
        relevant[key // task.n_items].add(key % task.n_items)
    return seen, relevant


def loop(
    recommender: Recommender,
    users: Tensor,
    seen: list[list[int]],
    relevant: list[set[int]],
    cutoffs: Sequence[int] = CUTOFFS,
    ranking: Ranking = "topk",
) -> list[dict[str, float]]:
    """Metrics of each of ``users [n]`` (of the first of them, if there are fewer lists)."""
    rank, rows = RANKINGS[ranking], []
    for user, own, wanted in zip(users, seen, relevant, strict=False):
        scores = recommender.score(user.unsqueeze(0)).flatten().clone()
        rows.append(user_metrics(rank(scores, own, max(cutoffs)), wanted, cutoffs))
    return rows


def loop_seconds(recommender: Recommender, task: RankingTask, ranking: Ranking, sample: int = SAMPLE) -> float:
    """Time of the loop over all users of a task, from its first ``sample`` ones."""
    seen, relevant = lists_of(task)
    started = time.perf_counter()
    done = loop(recommender, task.users, seen[:sample], relevant[:sample], ranking=ranking)
    return (time.perf_counter() - started) / len(done) * task.users.numel()


def main() -> None:
    """Write the seconds of both, in turns, and their ratio for every way of ranking."""
    recommender, task = synthetic_task(10_000, 25_000)
    evaluate(recommender, task)
    ours: list[float] = []
    loops: dict[Ranking, list[float]] = {ranking: [] for ranking in RANKINGS}
    with torch.no_grad():
        for _ in range(ROUNDS):
            started = time.perf_counter()
            evaluate(recommender, task)
            ours.append(time.perf_counter() - started)
            for ranking, seconds in loops.items():
                seconds.append(loop_seconds(recommender, task, ranking))
    lines = [
        f"10,000 users, 25,000 items, {torch.get_num_threads()} threads; medians of {ROUNDS} rounds",
        f"evaluate      {statistics.median(ours):8.3f} s",
    ]
    for ranking, seconds in loops.items():
        ratio = statistics.median(theirs / our for theirs, our in zip(seconds, ours, strict=True))
        lines.append(f"loop, {ranking:7} {statistics.median(seconds):8.3f} s   {ratio:6.1f} times as long")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
