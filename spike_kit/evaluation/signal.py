"""Signal of profile vectors: how well they alone, without any training, rank the held-out validation items.

Profiles see only the train split, so a better ranking of the validation split is information that a text really
carries. The test split stays closed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from spike_kit.base.seeds import torch_generator
from spike_kit.data.dataset import Dataset
from spike_kit.data.graph import Graph
from spike_kit.data.vectors import ProfileVectors
from spike_kit.evaluation.ranking import RankingTask, evaluate
from spike_kit.models.base import FixedEmbeddings, ModelConfig, Recommender
from spike_kit.models.popularity import Popularity

USER_PROFILE = "user profile"
"""Scorer: cosine of the user's profile vector and the item's."""
TRAIN_ITEMS = "mean of train items"
"""Scorer: cosine of the mean vector of the user's train items and the item's vector (content-based)."""
REFERENCE = "reference"
"""Source of the lines that use no text: popularity and random."""


class RandomOrder(Recommender):
    """Scores are uniform random numbers, the same for a user in every call."""

    title: ClassVar = "Random"
    config_class: ClassVar = ModelConfig

    def __init__(self, n_items: int, seed: int, device: torch.device | str = "cpu") -> None:
        self.n_items = n_items
        self.seed = seed
        self._device = torch.device(device)

    @property
    def device(self) -> torch.device:
        """Device of the scores."""
        return self._device

    def tensors(self) -> dict[str, Tensor]:
        """Nothing: seed and user decide."""
        return {}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Nothing to replace."""

    def score(self, users: Tensor) -> Tensor:
        """Random numbers ``[n, I]`` in [0, 1)."""
        rows = [
            torch.rand(self.n_items, generator=torch_generator(self.seed, f"random order/{user}"))
            for user in users.tolist()
        ]
        return torch.stack(rows).to(self._device)


def user_profile_scorer(vectors: ProfileVectors, n_items: int) -> FixedEmbeddings:
    """Recommender whose score is the cosine of user and item profile."""
    return FixedEmbeddings(functional.normalize(vectors.user), functional.normalize(vectors.entity[:n_items]))


def train_items_scorer(vectors: ProfileVectors, graph: Graph) -> FixedEmbeddings:
    """Recommender whose score is the cosine of an item and the mean of the user's train items (of unit vectors)."""
    items = functional.normalize(vectors.entity[: graph.n_items])
    sums = items.new_zeros(graph.n_users, items.shape[1])
    sums.index_add_(0, graph.train_user, items.index_select(0, graph.train_item))
    return FixedEmbeddings(functional.normalize(sums), items)


def signal_per_user(
    data: Dataset,
    vectors: Mapping[str, ProfileVectors],
    cutoffs: Sequence[int] = (20,),
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> pd.DataFrame:
    """Rank the validation items of every user by profile vectors alone; every scorer ranks for the same users.

    Parameters
    ----------
    data
        Data set; its train split gives the histories, its validation split the relevant items.
    vectors
        Profile vectors ``user [U, d_t]``, ``entity [E, d_t]`` by profile set.
    cutoffs
        Ranks k.
    seed
        Seed of the random order.
    device
        Where to score.

    Returns
    -------
    DataFrame
        profiles, scorer, user, and ``recall@k`` and ``ndcg@k`` for each cut-off: the values for paired tests. The
        reference lines come last.

    Raises
    ------
    DataError
        If vectors do not fit the data set, or no user has a validation item.
    """
    for name, pair in vectors.items():
        pair.check(len(data.users), len(data.entities), f"vectors of {name}")
    task = RankingTask.from_tables(data.tables, "valid", device)
    graph = Graph.from_tables(data.tables).to(device)
    metrics = [f"{metric}@{k}" for k in cutoffs for metric in ("recall", "ndcg")]
    parts = []
    for name, scorer, recommender in _scorers(graph, vectors, seed):
        per_user = evaluate(recommender, task, cutoffs)[1][["user", *metrics]]
        per_user.insert(0, "scorer", scorer)
        per_user.insert(0, "profiles", name)
        parts.append(per_user)
    return pd.concat(parts, ignore_index=True)


def _scorers(graph: Graph, vectors: Mapping[str, ProfileVectors], seed: int) -> Iterator[tuple[str, str, Recommender]]:
    """Profile set, scorer and recommender of every line; one profile set is on the device at a time."""
    for name, pair in vectors.items():
        here = pair.to(graph.device)
        yield name, USER_PROFILE, user_profile_scorer(here, graph.n_items)
        yield name, TRAIN_ITEMS, train_items_scorer(here, graph)
    yield REFERENCE, "popularity", Popularity(ModelConfig(), graph)
    yield REFERENCE, "random", RandomOrder(graph.n_items, seed, graph.device)


def signal_means(per_user: pd.DataFrame) -> pd.DataFrame:
    """Mean of each metric over users of what `signal_per_user` gave, and the number of users, in the same order."""
    groups = per_user.groupby(["profiles", "scorer"], sort=False)
    table = groups[[name for name in per_user.columns if "@" in name]].mean()
    return table.assign(users=groups["user"].size()).reset_index()


def signal_table(
    data: Dataset,
    vectors: Mapping[str, ProfileVectors],
    cutoffs: Sequence[int] = (20,),
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> pd.DataFrame:
    """Signal of each profile set in one table: profiles, scorer, ``recall@k``, ``ndcg@k``, users.

    Parameters and errors are those of `signal_per_user`.
    """
    return signal_means(signal_per_user(data, vectors, cutoffs, seed, device))
