"""Signal of profile vectors: how well they alone, without any training, rank the held-out validation items.

Profiles see only the train split, so a better ranking of the validation split is information that a text really
carries. The test split stays closed.
"""

from collections.abc import Iterator, Mapping, Sequence

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
from spike_kit.models.text_knn import TextKnn, TextKnnConfig

USER_PROFILE = "user profile"
"""Scorer: cosine of the user's profile vector and the item's."""
TRAIN_ITEMS = "mean of train items"
"""Scorer: cosine of the mean vector of the user's train items and the item's vector (content-based)."""
REFERENCE = "reference"
"""Source of the lines that use no text: popularity and random."""


class RandomOrder(Recommender):
    """Scores are uniform random numbers, the same for a user in every call."""

    def __init__(self, graph: Graph, seed: int = 0) -> None:
        self.graph, self.seed = graph, seed

    def score(self, users: Tensor) -> Tensor:
        """Random numbers ``[n, I]`` in [0, 1)."""
        streams = (torch_generator(self.seed, f"random order/{user}") for user in users.tolist())
        return torch.stack([torch.rand(self.graph.n_items, generator=stream) for stream in streams]).to(self.device)


def signal_table(
    data: Dataset,
    vectors: Mapping[str, ProfileVectors],
    cutoffs: Sequence[int] = (20,),
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
    device
        Where to score.

    Returns
    -------
    DataFrame
        profiles, scorer, means over users of ``recall@k`` and ``ndcg@k`` for each cut-off, and the number of users. The
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
    rows = []
    for name, scorer, recommender in _scorers(graph, vectors):
        means, per_user = evaluate(recommender, task, cutoffs)
        measured = {metric: means[metric] for metric in metrics}
        rows.append({"profiles": name, "scorer": scorer, **measured, "users": len(per_user)})
    return pd.DataFrame(rows)


def _scorers(graph: Graph, vectors: Mapping[str, ProfileVectors]) -> Iterator[tuple[str, str, Recommender]]:
    """Profile set, scorer and recommender of every line; one profile set is on the device at a time."""
    for name, pair in vectors.items():
        here = pair.to(graph.device)
        users, items = functional.normalize(here.user), functional.normalize(here.entity[: graph.n_items])
        yield name, USER_PROFILE, FixedEmbeddings(users, items)
        yield name, TRAIN_ITEMS, TextKnn(TextKnnConfig(text_components=0), graph, here).fixed()
    yield REFERENCE, "popularity", Popularity(ModelConfig(), graph)
    yield REFERENCE, "random", RandomOrder(graph)
