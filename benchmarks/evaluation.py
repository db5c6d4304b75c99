"""How fast the full ranking of a synthetic data set is, beside the bare products that it cannot do without."""

from __future__ import annotations

import statistics
import time

import torch
from torch import Tensor
from tqdm.auto import tqdm

from benchmarks.measure import alone
from spike_kit.base.config import Config
from spike_kit.base.devices import peak_bytes
from spike_kit.base.errors import ConfigError
from spike_kit.base.seeds import torch_generator
from spike_kit.evaluation import ranking
from spike_kit.evaluation.ranking import RankingTask, evaluate
from spike_kit.models.recommender import FixedEmbeddings

ROUNDS = 5
"""Rounds in which the evaluation and the bare products take turns."""
DIM, SEEN, RELEVANT = 64, 80, 10
"""Dimensions of an embedding; seen and relevant items of a user."""


class EvaluationBenchmark(Config):
    """What `bench_evaluation` measured."""

    users: int
    """Users that are ranked for."""
    items: int
    """Items, all of them ranked for every user."""
    seconds: float
    """Time of one evaluation, metrics included (median over rounds)."""
    users_per_second: float
    """Users per second of it."""
    floor_seconds: float
    """Time of the products of all user and item embeddings alone, in the same chunks (median over rounds)."""
    floor_ratio: float
    """Median over rounds of the first by the second."""
    chunk_entries: int
    """Scores held in memory at once."""
    peak_rss_gib: float
    """Largest resident memory of the evaluating process in GiB, the interpreter and its libraries included."""
    threads: int
    """Threads of a product."""


def bench_evaluation(users: int, items: int, seed: int = 0) -> EvaluationBenchmark:
    """Evaluate random embeddings on the CPU, in a process of its own.

    Parameters
    ----------
    users, items
        Sizes of the synthetic task.
    seed
        Seed of the task and the embeddings.

    Raises
    ------
    ConfigError
        If there are too few items.
    """
    ours, bare, peak, threads = alone(_measure, users, items, seed)
    seconds = statistics.median(ours)
    return EvaluationBenchmark(
        users=users,
        items=items,
        seconds=round(seconds, 4),
        users_per_second=round(users / seconds, 1),
        floor_seconds=round(statistics.median(bare), 4),
        floor_ratio=round(statistics.median(our / floor for our, floor in zip(ours, bare, strict=True)), 3),
        chunk_entries=ranking.CHUNK_ENTRIES,
        peak_rss_gib=round(peak / 2**30, 3),
        threads=threads,
    )


def _measure(users: int, items: int, seed: int) -> tuple[list[float], list[float], int, int]:
    """Seconds of each evaluation and of the bare products, peak memory of the evaluation, and threads."""
    recommender, task = synthetic_task(users, items, seed)
    evaluate(recommender, task)
    peak = peak_bytes()
    rows = min(max(1, ranking.CHUNK_ENTRIES // items), users)
    buffer = torch.empty(rows, items)
    ours, bare = [], []
    for _ in tqdm(range(ROUNDS), desc="bench evaluation", unit="round"):
        started = time.perf_counter()
        evaluate(recommender, task)
        ours.append(time.perf_counter() - started)
        started = time.perf_counter()
        _products(recommender, buffer)
        bare.append(time.perf_counter() - started)
    return ours, bare, peak, torch.get_num_threads()


def _products(recommender: FixedEmbeddings, buffer: Tensor) -> None:
    for part in recommender.users.split(buffer.shape[0]):
        torch.mm(part, recommender.items.T, out=buffer[: part.shape[0]])


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
