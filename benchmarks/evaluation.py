"""How fast the full ranking of a synthetic data set is, beside the bare products that it cannot do without."""

from __future__ import annotations

import statistics
import sys
import time

import torch
from pydantic import Field
from tqdm.auto import tqdm

from benchmarks.common import GIB, Measured, Setup, alone, main
from spike_kit.base.devices import peak_bytes
from spike_kit.base.errors import ConfigError
from spike_kit.base.seeds import torch_generator
from spike_kit.evaluation import ranking
from spike_kit.evaluation.ranking import RankingTask, evaluate
from spike_kit.models.base import FixedEmbeddings

ROUNDS = 5
"""Rounds in which the evaluation and the bare products take turns."""
DIM, SEEN, RELEVANT = 64, 80, 10
"""Dimensions of an embedding; seen and relevant items of a user."""


class EvaluationSetup(Setup):
    """What `bench_evaluation` measures."""

    users: int = Field(default=10_000, ge=1000)
    """Users to rank for, at least 1000: fewer tell nothing."""
    items: int = Field(default=25_000, ge=1000)
    """Items to rank, at least 1000."""


def bench_evaluation(setup: EvaluationSetup) -> Measured:
    """Rank all items for random embeddings on the CPU, beside the bare products of the embeddings."""
    ours, bare, peak, threads = alone(_measure, setup.users, setup.items)
    seconds = statistics.median(ours)
    ratio = statistics.median(our / floor for our, floor in zip(ours, bare, strict=True))
    return {
        "users": (setup.users, "users that are ranked for"),
        "items": (setup.items, "items, all of them ranked for every user"),
        "seconds": (round(seconds, 4), "time of one evaluation, metrics included (median over rounds)"),
        "users_per_second": (round(setup.users / seconds, 1), "users per second of it"),
        "floor_seconds": (round(statistics.median(bare), 4), "time of the bare products, in the same chunks (median)"),
        "floor_ratio": (round(ratio, 3), "median over rounds of the first by the second"),
        "chunk_entries": (ranking.CHUNK_ENTRIES, "scores held in memory at once"),
        "peak_rss_gib": (round(peak / GIB, 3), "largest resident memory in GiB, the interpreter included"),
        "threads": (threads, "threads of a product"),
    }


def _measure(users: int, items: int) -> tuple[list[float], list[float], int, int]:
    """Seconds of each evaluation and of the bare products, peak memory of the evaluation, and threads."""
    recommender, task = synthetic_task(users, items)
    evaluate(recommender, task)
    peak = peak_bytes()
    buffer = torch.empty(min(max(1, ranking.CHUNK_ENTRIES // items), users), items)
    ours, bare = [], []
    for _ in tqdm(range(ROUNDS), desc="bench evaluation", unit="round"):
        started = time.perf_counter()
        evaluate(recommender, task)
        ours.append(time.perf_counter() - started)
        started = time.perf_counter()
        for part in recommender.users.split(buffer.shape[0]):
            torch.mm(part, recommender.items.T, out=buffer[: part.shape[0]])
        bare.append(time.perf_counter() - started)
    return ours, bare, peak, torch.get_num_threads()


def synthetic_task(users: int, items: int, seed: int = 0) -> tuple[FixedEmbeddings, RankingTask]:
    """Make random embeddings ``[users, 64]`` and ``[items, 64]``, and 80 seen and 10 relevant items for every user.

    Raises
    ------
    ConfigError
        If there are fewer items than a user has.
    """
    own = SEEN + RELEVANT
    if items < own:
        raise ConfigError(f"{items} items are too few, expected at least {own}", "ask for more")
    generator = torch_generator(seed, "bench evaluation")
    recommender = FixedEmbeddings(
        torch.randn(users, DIM, generator=generator), torch.randn(items, DIM, generator=generator)
    )
    gap = items // own
    drawn = torch.arange(own) * gap + torch.randint(gap, (users, own), generator=generator)
    order = torch.rand(users, own, generator=generator).argsort(1)
    seen = drawn.gather(1, order[:, :SEEN].sort(1).values)
    relevant = drawn.gather(1, order[:, SEEN:].sort(1).values)
    rows = torch.arange(users)
    task = RankingTask(
        users=rows,
        seen_row=rows.repeat_interleave(SEEN),
        seen_item=seen.flatten(),
        relevant_key=(rows.unsqueeze(1) * items + relevant).flatten(),
        n_relevant=torch.full((users,), RELEVANT),
        n_items=items,
        n_without_train=0,
        n_without_relevant=0,
    )
    return recommender, task


if __name__ == "__main__":
    sys.exit(main(EvaluationSetup, bench_evaluation))
