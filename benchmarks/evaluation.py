"""How fast the full ranking of a synthetic data set is, beside the bare products that it cannot do without."""

import sys

import torch
from pydantic import Field

from benchmarks.common import GIB, Measured, Setup, alone, in_turns, main, seconds_of
from spike_kit.base.devices import chunks, peak_bytes
from spike_kit.base.seeds import torch_generator
from spike_kit.evaluation.ranking import RankingTask, evaluate
from spike_kit.models.base import FixedEmbeddings

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
    return alone(_measure, setup.users, setup.items)


def _measure(users: int, items: int) -> Measured:
    recommender, task = synthetic_task(users, items)
    evaluate(recommender, task)
    peak = peak_bytes()
    held = chunks(recommender.device).ranked_scores
    buffer = torch.empty(min(max(1, held // items), users), items)

    def products() -> None:
        for part in recommender.users.split(buffer.shape[0]):
            torch.mm(part, recommender.items.T, out=buffer[: part.shape[0]])

    seconds, floor, ratio = in_turns(
        lambda: seconds_of(lambda: evaluate(recommender, task)), lambda: seconds_of(products)
    )
    return {
        "users": (users, "users that are ranked for"),
        "items": (items, "items, all of them ranked for every user"),
        "seconds": (round(seconds, 4), "time of one evaluation, metrics included (median over rounds)"),
        "users_per_second": (round(users / seconds, 1), "users per second of it"),
        "floor_seconds": (round(floor, 4), "time of the bare products, in the same chunks (median)"),
        "floor_ratio": (round(ratio, 3), "median over rounds of the first by the second"),
        "chunk_entries": (held, "scores held in memory at once"),
        "peak_rss_gib": (round(peak / GIB, 3), "largest resident memory in GiB, the interpreter included"),
        "threads": (torch.get_num_threads(), "threads of a product"),
    }


def synthetic_task(users: int, items: int, seed: int = 0) -> tuple[FixedEmbeddings, RankingTask]:
    """Make random embeddings ``[users, 64]`` and ``[items, 64]``, and 80 seen and 10 relevant of 90 or more items each.

    Items ``[users, 90]`` of a user are distinct, because each is drawn from a part of its own.
    """
    generator = torch_generator(seed, "bench evaluation")
    embeddings = [torch.randn(rows, DIM, generator=generator) for rows in (users, items)]
    own = SEEN + RELEVANT
    gap = items // own
    drawn = torch.arange(own) * gap + torch.randint(gap, (users, own), generator=generator)
    order = torch.rand(users, own, generator=generator).argsort(1)
    seen, relevant = (
        drawn.gather(1, part.contiguous()).sort(1).values for part in order.split([SEEN, RELEVANT], dim=1)
    )
    rows = torch.arange(users)
    task = RankingTask(
        users=rows,
        seen_row=rows.repeat_interleave(SEEN),
        seen_item=seen.flatten(),
        relevant_key=(rows.unsqueeze(1) * items + relevant).flatten(),
        n_relevant=torch.full((users,), RELEVANT),
        excluded=rows[:0],
        n_items=items,
        n_without_train=0,
    )
    return FixedEmbeddings(*embeddings), task


if __name__ == "__main__":
    sys.exit(main(EvaluationSetup, bench_evaluation))
