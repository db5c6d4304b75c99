"""Full ranking: every item a user has not seen is a candidate, and every user counts the same.

In a data set of new items there are two more tasks: the new items alone, among themselves and among all items.

Metrics have binary relevance and are computed per user in float64, at any cut-off. Their definitions are those of
ir-measures (and of RecBole where it has the metric): ``R@k``, ``nDCG@k``, ``P@k``, ``RR@k`` and ``Success@k``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from spike_kit.base.devices import chunks
from spike_kit.base.errors import ConfigError, DataError, TrainingError, lookup
from spike_kit.data.dataset import Dataset
from spike_kit.data.tables import Tables
from spike_kit.models.base import FixedEmbeddings, Recommender
from spike_kit.models.best import BLOCK, best_items, block_levels

PROTOCOL_VERSION = 1
"""Version of the protocol: raised by whoever changes who is ranked, what is masked, or a metric."""

CUTOFFS = (10, 20, 40)
"""Ranks at which the paper measures."""

HEADLINE = ("recall@10", "recall@20", "recall@40", "ndcg@10", "ndcg@20", "ndcg@40")
"""Metrics of the main table."""

SEEN = {"valid": ("train",), "test": ("train", "valid")}
"""Splits whose positives are masked when a split is evaluated."""

METRIC_ROWS = 50_000
"""Users whose metrics are computed at once from their hits."""


@dataclass(frozen=True)
class Hits:
    """Which ranks of the users' lists hold a relevant item, and the sums that metrics are made of.

    Attributes
    ----------
    hits
        ``[n, K]`` float64, 1 where the item at a rank is relevant, best rank first.
    n_relevant
        ``[n]``: number of relevant items of each user, at least 1.
    """

    hits: Tensor
    n_relevant: Tensor

    @cached_property
    def ranks(self) -> Tensor:
        """Ranks 1 to K."""
        return torch.arange(1, self.hits.shape[1] + 1, dtype=torch.float64, device=self.hits.device)

    @cached_property
    def found(self) -> Tensor:
        """Hits down to each rank ``[n, K]``."""
        return self.hits.cumsum(1)


def recall(lists: Hits, k: int) -> Tensor:
    """Share of a user's relevant items among the first k."""
    return lists.found[:, k - 1] / lists.n_relevant


def ndcg(lists: Hits, k: int) -> Tensor:
    """Discounted gain of the first k over that of the best list, which has min(k, relevant) hits at its top."""
    discount = 1 / torch.log2(lists.ranks + 1)
    gain, ideal = (lists.hits * discount).cumsum(1), discount.cumsum(0)
    return gain[:, k - 1] / ideal.index_select(0, lists.n_relevant.clamp(1, k) - 1)


def precision(lists: Hits, k: int) -> Tensor:
    """Share of relevant items among the first k."""
    return lists.found[:, k - 1] / k


def mrr(lists: Hits, k: int) -> Tensor:
    """1 / rank of the first hit within k, else 0."""
    return (lists.hits / lists.ranks)[:, :k].amax(1)


def hit_rate(lists: Hits, k: int) -> Tensor:
    """1 if there is a hit within k, else 0."""
    return (lists.found[:, k - 1] > 0).double()


METRICS: dict[str, Callable[[Hits, int], Tensor]] = {
    "recall": recall,
    "ndcg": ndcg,
    "precision": precision,
    "mrr": mrr,
    "hit_rate": hit_rate,
}
"""Metrics by name: each gives ``[n]`` float64 at a cut-off k. A column of a table is named ``"recall@20"``."""


def ranking_metrics(hits: Tensor, n_relevant: Tensor, cutoffs: Sequence[int]) -> dict[str, Tensor]:
    """Compute every metric at every cut-off for every user.

    Parameters
    ----------
    hits
        ``[n, K]`` bool: whether the item at each rank is relevant, best rank first. K may be smaller than a cut-off
        when there are fewer candidates; the missing ranks count as misses.
    n_relevant
        ``[n]``: number of relevant items of each user, at least 1.
    cutoffs
        Ranks k at which to measure.

    Returns
    -------
    dict
        ``"<metric>@<k>"`` to ``[n]`` float64, see `METRICS`.
    """
    missing = max(0, max(cutoffs) - hits.shape[1])
    lists = Hits(torch.nn.functional.pad(hits.double(), (0, missing)), n_relevant.long())
    return {f"{name}@{k}": metric(lists, k) for k in cutoffs for name, metric in METRICS.items()}


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
    excluded
        Items that are no candidates for anyone, ``[x]`` ascending.
    n_items
        Number of items, candidates or not.
    n_without_train
        Users that are not ranked because they have no train interaction.
    """

    users: Tensor
    seen_row: Tensor
    seen_item: Tensor
    relevant_key: Tensor
    n_relevant: Tensor
    excluded: Tensor
    n_items: int
    n_without_train: int

    def to(self, device: torch.device) -> RankingTask:
        """The task on another device."""
        tensors = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **tensors)

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
    def from_tables(
        cls,
        tables: Tables,
        split: str,
        device: torch.device | str = "cpu",
        *,
        relevant_items: np.ndarray | None = None,
        candidates: np.ndarray | None = None,
    ) -> RankingTask:
        """Build the task of a split (``valid`` or ``test``).

        Parameters
        ----------
        tables, split, device
            Tables of the data set, name of the split, and where the tensors live.
        relevant_items
            Only these items count as relevant; none: every item of the split.
        candidates
            Only these items are ranked; none: all.
        """
        interactions, n_users, n_items = tables.interactions, len(tables.users), len(tables.items)
        relevant = interactions[interactions["split"] == split]
        if relevant_items is not None:
            relevant = relevant[relevant["item"].isin(relevant_items)]
        items = np.arange(n_items)
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
            excluded=tensor(items[:0] if candidates is None else np.setdiff1d(items, candidates)),
            n_items=n_items,
            n_without_train=int((~in_train).sum()),
        )


def new_items(tables: Tables, split: str) -> np.ndarray:
    """Items of a split that nobody had met before: those of valid are not in train, those of test in neither."""
    interactions = tables.interactions
    met = interactions.loc[interactions["split"].isin(SEEN[split]), "item"]
    return np.setdiff1d(interactions.loc[interactions["split"] == split, "item"], met)


def ranking_tasks(data: Dataset, split: str, device: torch.device | str = "cpu") -> dict[str, RankingTask]:
    """Build all tasks of a split, by the name that their results have in a run folder.

    ``<split>`` ranks all items, and every item of the split is relevant. Where the task of the data set is new items,
    the items relevant in ``<split>_new`` and ``<split>_new_all`` are those that are new in this split: ranked among
    themselves, and among all items.
    """
    tables = data.tables
    tasks = {split: RankingTask.from_tables(tables, split, device)}
    new = new_items(tables, split)
    if data.task == "new-items" and new.size:
        tasks[f"{split}_new"] = RankingTask.from_tables(tables, split, device, relevant_items=new, candidates=new)
        tasks[f"{split}_new_all"] = RankingTask.from_tables(tables, split, device, relevant_items=new)
    return tasks


def ranking_task(data: Dataset, block: str, device: torch.device | str = "cpu") -> RankingTask:
    """Build the task of one block, see `ranking_tasks`.

    Raises
    ------
    ConfigError
        If the data set has no such block.
    """
    return lookup(ranking_tasks(data, block.partition("_")[0], device), block, f"results of {data.name}")


def _rows(interactions: pd.DataFrame, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    ranked = interactions[row[interactions["user"]] >= 0].sort_values(["user", "item"])
    return row[ranked["user"]], ranked["item"].to_numpy()


def evaluate(
    recommender: Recommender, task: RankingTask, cutoffs: Sequence[int] = CUTOFFS
) -> tuple[dict[str, float], pd.DataFrame]:
    """Rank all unseen items for every user of a task.

    Scores are computed in chunks of users, on the device of the recommender; besides those of a chunk
    (`devices.chunks`) only a bool per user and rank is held. Equal scores are ordered by item id, that is without
    regard to relevance.

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
    fixed = recommender.fixed()
    hits = _hits(fixed, task.to(fixed.device), min(max(cutoffs), task.n_items)).split(METRIC_ROWS)
    n_relevant = task.n_relevant.cpu().split(METRIC_ROWS)
    parts = [ranking_metrics(*rows, cutoffs) for rows in zip(hits, n_relevant, strict=True)]
    columns = {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}
    per_user = pd.DataFrame({"user": task.users.cpu().numpy(), **columns})
    return {name: float(values.mean()) for name, values in columns.items()}, per_user


@torch.no_grad()
def _hits(recommender: Recommender, task: RankingTask, k: int) -> Tensor:
    """Whether the item at each rank is relevant, ``[n, k]`` bool on the CPU, best rank first."""
    parts, start = [], 0
    for best, items in ranked(recommender, task, k):
        rows = torch.arange(start, start + len(items), device=items.device)
        keys = items + rows.unsqueeze(1) * task.n_items
        parts.append(contains(task.relevant_key, keys) & (best > float("-inf")))
        start += len(items)
    return torch.cat(parts).cpu()


@torch.no_grad()
def ranked(recommender: Recommender, task: RankingTask, k: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Scores and items of the best ``k`` unseen items of every user, ``[c, k]`` each, in chunks of c users, best first.

    On the device of the recommender, wherever the task is; equal scores by item id (`best_items`).
    A score of -inf stands where a user has not so many unseen items.

    Raises
    ------
    TrainingError
        After the last chunk, if a score is NaN.
    """
    task = task.to(recommender.device)
    users, n_items, device = task.users, task.n_items, task.users.device
    size = min(max(1, chunks(device).ranked_scores // n_items), users.numel())
    starts = torch.arange(0, users.numel() + size, size, device=device).clamp_max(users.numel())
    bounds = torch.stack([starts, torch.searchsorted(task.seen_row, starts)]).T.tolist()
    levels = block_levels(n_items, k, device)
    width = -(-n_items // BLOCK**levels) * BLOCK**levels
    buffer, broken = torch.empty(0), torch.zeros((), dtype=torch.bool, device=device)
    for (start, seen_from), (stop, seen_to) in pairwise(bounds):
        buffer = _score(recommender, users[start:stop], buffer, size, width, n_items)
        scores = buffer[: stop - start]
        seen = task.seen_item[seen_from:seen_to] + (task.seen_row[seen_from:seen_to] - start) * width
        flat = scores.view(-1)
        broken |= flat.index_select(0, seen).isnan().any()
        flat.index_fill_(0, seen, float("-inf"))
        scores.index_fill_(1, task.excluded, float("-inf"))
        best, items = best_items(scores, k, levels)
        broken |= best.isnan().any()
        yield best, items
    if broken:
        raise TrainingError("the model gives NaN scores", "lower the learning rate or look at the loss terms")


def _score(recommender: Recommender, users: Tensor, buffer: Tensor, size: int, width: int, n_items: int) -> Tensor:
    """Write scores of ``users [n]`` into the first n rows of ``buffer [size, width]``, made at the first call.

    Columns beyond the items hold -inf.
    """
    product = isinstance(recommender, FixedEmbeddings)
    scores = recommender.items if product else recommender.score(users)
    if buffer.numel() == 0:
        buffer = scores.new_full((size, width), float("-inf"))
    target = buffer[: users.numel(), :n_items]
    if product:
        torch.mm(recommender.users.index_select(0, users), recommender.items.T, out=target)
    else:
        target.copy_(scores)
    return buffer


def contains(sorted_keys: Tensor, keys: Tensor) -> Tensor:
    """Whether each of ``keys`` (any shape) occurs in ``sorted_keys``."""
    if sorted_keys.numel() == 0:
        return torch.zeros_like(keys, dtype=torch.bool)
    place = torch.searchsorted(sorted_keys, keys).clamp_max(sorted_keys.numel() - 1)
    return sorted_keys[place] == keys


def top_items(recommender: Recommender, user: int, seen: Sequence[int], k: int) -> list[tuple[int, float]]:
    """Best ``k`` unseen items of one user with their scores, best first; equal scores by item id."""
    with torch.no_grad():
        fixed = recommender.fixed()
        scores = fixed.score(torch.tensor([user], device=fixed.device)).flatten().clone()
    scores[list(seen)] = float("-inf")
    best, items = best_items(scores.unsqueeze(0), min(k, scores.numel()))
    return [(int(item), float(score)) for item, score in zip(items[0], best[0], strict=True) if score > float("-inf")]


def recommendations(data: Dataset, model: Recommender, user: int, k: int = 10, split: str = "test") -> pd.DataFrame:
    """Top-k unseen items of a user by name, with their score, and whether the split holds them."""
    own = data.interactions[data.interactions["user"] == user]
    seen = own.loc[own["split"].isin(SEEN[split]), "item"].tolist()
    held_out = set(own.loc[own["split"] == split, "item"])
    rows = top_items(model, user, seen, k)
    items = [item for item, _ in rows]
    return pd.DataFrame(
        {
            "rank": range(1, len(rows) + 1),
            "item": data.items["label"].to_numpy()[items],
            "score": [score for _, score in rows],
            f"in {split}": [item in held_out for item in items],
        }
    )
