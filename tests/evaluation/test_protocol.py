from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

from spike_kit.data.tables import Tables
from spike_kit.errors import TrainingError
from spike_kit.evaluation import protocol
from spike_kit.evaluation.protocol import RankingTask, evaluate, top_items
from spike_kit.models.recommender import FixedEmbeddings
from tests.world import World


def scorer(scores: np.ndarray | torch.Tensor) -> FixedEmbeddings:
    """A recommender with exactly these scores."""
    table = torch.as_tensor(scores, dtype=torch.float32)
    return FixedEmbeddings(table, torch.eye(table.shape[1]))


def naive_ndcg(scores: np.ndarray, seen: set[int], relevant: set[int], k: int) -> float:
    ranked = [item for item in np.argsort(-scores) if item not in seen][:k]
    gain = sum(1 / np.log2(rank + 2) for rank, item in enumerate(ranked) if item in relevant)
    return gain / sum(1 / np.log2(rank + 2) for rank in range(min(k, len(relevant))))


@pytest.mark.parametrize("split", ["valid", "test"])
@pytest.mark.parametrize("chunk", [1, 200, 10_000_000])
def test_equal_to_a_loop_over_users(world: World, split: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "CHUNK_ENTRIES", chunk)
    tables = world.tables
    scores = np.random.default_rng(0).normal(size=(len(tables.users), len(tables.items))).astype(np.float32)
    _, per_user = evaluate(scorer(scores), RankingTask.from_tables(tables, split), cutoffs=(3, 10))
    rows = tables.interactions
    masked = {"valid": ["train"], "test": ["train", "valid"]}[split]
    for user, found in zip(per_user["user"], per_user["ndcg@10"], strict=True):
        own = rows[rows["user"] == user]
        seen = set(own.loc[own["split"].isin(masked), "item"])
        relevant = set(own.loc[own["split"] == split, "item"])
        assert found == pytest.approx(naive_ndcg(scores[user], seen, relevant, 10), abs=1e-12)
    assert len(per_user) == len(tables.users)


def test_seen_items_are_never_recommended(world: World) -> None:
    tables = world.tables
    seen = tables.interactions.query("user == 3 and split != 'test'")["item"].tolist()
    scores = torch.zeros(len(tables.users), len(tables.items))
    scores[:, seen] = 100
    items = [item for item, _ in top_items(scorer(scores), 3, seen, 1000)]
    assert set(items) == set(range(len(tables.items))) - set(seen)


def without(tables: Tables, user: int, split: str) -> Tables:
    rows = tables.interactions
    kept = rows[(rows["user"] != user) | (rows["split"] != split)].reset_index(drop=True)
    return dataclasses.replace(tables, interactions=kept)


def test_users_without_train_or_relevant_items_are_not_ranked_but_counted(world: World) -> None:
    tables = without(without(world.tables, 5, "train"), 9, "test")
    task = RankingTask.from_tables(tables, "test")
    assert (task.n_without_train, task.n_without_relevant) == (1, 1)
    _, per_user = evaluate(scorer(torch.rand(len(tables.users), len(tables.items))), task)
    assert {5, 9}.isdisjoint(per_user["user"])
    assert len(per_user) == len(tables.users) - 2


def test_a_nan_score_is_an_error(world: World) -> None:
    scores = torch.rand(len(world.tables.users), len(world.tables.items))
    scores[4, 2] = float("nan")
    with pytest.raises(TrainingError, match="NaN scores"):
        evaluate(scorer(scores), RankingTask.from_tables(world.tables, "test"))


def test_a_relevant_item_that_is_also_seen_counts_and_cannot_be_hit(world: World) -> None:
    rows = world.tables.interactions
    twice = pd.concat([rows, rows.query("user == 0 and split == 'test'").assign(split="train")], ignore_index=True)
    task = RankingTask.from_tables(dataclasses.replace(world.tables, interactions=twice), "test")
    perfect = torch.zeros(len(world.tables.users), len(world.tables.items))
    perfect[torch.arange(len(world.planted)), torch.from_numpy(world.planted)] = 1
    _, per_user = evaluate(scorer(perfect), task)
    assert per_user["recall@10"].tolist() == [0.0] + [1.0] * (len(world.planted) - 1)
