import dataclasses
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from spike_kit.base.errors import TrainingError
from spike_kit.base.seeds import torch_generator
from spike_kit.data.dataset import Dataset
from spike_kit.data.graph import Graph
from spike_kit.evaluation.beyond import recommended
from spike_kit.evaluation.ranking import CUTOFFS, METRICS, RankingTask, evaluate, top_items
from spike_kit.models.base import FixedEmbeddings, ModelConfig, Recommender
from spike_kit.models.best import best_items
from spike_kit.models.popularity import Popularity
from tests.fixture_files import Fixture
from tests.reference.evaluation import lists_of, loop, task_of
from tests.world import World


def scorer(scores: np.ndarray | torch.Tensor) -> FixedEmbeddings:
    """A recommender with exactly these scores."""
    table = torch.as_tensor(scores, dtype=torch.float32)
    return FixedEmbeddings(table, torch.eye(table.shape[1], device=table.device))


class Stored(Recommender):
    """A recommender that is not a pair of embeddings."""

    def __init__(self, table: torch.Tensor) -> None:
        self.table = table

    @property
    def device(self) -> torch.device:
        return self.table.device

    def score(self, users: torch.Tensor) -> torch.Tensor:
        return self.table.index_select(0, users)


def random_task(rng: np.random.Generator, n_users: int, n_items: int, device: torch.device) -> RankingTask:
    """Up to all items seen or relevant, so that some users have fewer candidates than there are ranks."""
    seen, relevant = [], []
    for row in range(n_users):
        order = rng.permutation(n_items).tolist()
        n_seen = int(rng.integers(0, n_items if row % 3 == 0 else n_items // 2))
        seen.append(order[:n_seen])
        relevant.append(order[n_seen : n_seen + int(rng.integers(1, max(2, (n_items - n_seen) // 3)))])
    users = torch.from_numpy(np.sort(rng.choice(n_users + 5, n_users, replace=False)))
    return task_of(seen, relevant, n_items, users, device)


def equal_to_the_loop(recommender: Recommender, task: RankingTask, cutoffs: tuple[int, ...]) -> pd.DataFrame:
    means, per_user = evaluate(recommender, task, cutoffs)
    expected = pd.DataFrame(loop(recommender, task, cutoffs))
    assert per_user["user"].tolist() == task.users.tolist()
    pd.testing.assert_frame_equal(per_user[list(expected.columns)], expected, rtol=0, atol=1e-12)
    assert means == pytest.approx(expected.mean().to_dict(), abs=1e-12)
    return per_user


@pytest.mark.parametrize("split", ["valid", "test"])
def test_a_split_is_ranked_as_the_tables_say(world: World, split: str) -> None:
    tables = world.tables
    task = RankingTask.from_tables(tables, split)
    rows = tables.interactions
    masked = {"valid": ["train"], "test": ["train", "valid"]}[split]
    for user, (own, wanted) in enumerate(zip(*lists_of(task), strict=True)):
        theirs = rows[rows["user"] == user]
        assert set(own) == set(theirs.loc[theirs["split"].isin(masked), "item"])
        assert wanted == set(theirs.loc[theirs["split"] == split, "item"])
    scores = np.random.default_rng(0).normal(size=(len(tables.users), len(tables.items)))
    assert len(equal_to_the_loop(scorer(scores), task, (3, 10))) == len(tables.users)


@pytest.mark.parametrize("n_items", [3, 30, 397, 2000])
@pytest.mark.parametrize("rows", [1, 7, 1000])
@pytest.mark.parametrize("values", ["distinct", "whole numbers", "few"])
@pytest.mark.parametrize("kind", [Stored, scorer])
def test_equal_to_the_loop_whatever_the_sizes(
    n_items: int, rows: int, values: str, kind: Any, device: torch.device, resized: Callable[..., None]
) -> None:
    """Tied scores too: by item id."""
    resized(ranked_scores=rows * n_items)
    rng = np.random.default_rng([n_items, rows])
    task = random_task(rng, 25, n_items, device)
    scores = torch.from_numpy(rng.normal(size=(30, n_items)).astype(np.float32)).to(device)
    if values != "distinct":
        scores = (scores * (50 if values == "whole numbers" else 1)).round()
    scores[3, : n_items // 2] = float("-inf") if kind is Stored else 0.0
    per_user = equal_to_the_loop(kind(scores), task, (1, 5, 20))
    assert per_user["hit_rate@20"].max() == 1


@pytest.mark.parametrize("asked", [(1,), (20,), (20, 100), (60, 10)])
@pytest.mark.parametrize("n_items", [30, 300, 2000])
def test_a_number_does_not_depend_on_what_else_is_asked_for(n_items: int, asked: tuple[int, ...]) -> None:
    """With ties: a shorter list is the beginning of a longer one."""
    task = random_task(np.random.default_rng(n_items), 25, n_items, torch.device("cpu"))
    scores = torch.randn(30, n_items, generator=torch_generator(0, "test")).round()
    found, usual = evaluate(scorer(scores), task, asked)[0], evaluate(scorer(scores), task, (*CUTOFFS, 1, 60, 100))[0]
    assert found == {name: usual[name] for name in found}
    assert len(found) == len(METRICS) * len(asked)


def tied_scores(width: int, device: torch.device) -> torch.Tensor:
    """Rows without ties, with some, with a tie across the end of the list, of one value, and with few scores at all."""
    scores = torch.randn(20, width, generator=torch_generator(0, "test"))
    scores[::2] = scores[::2].mul(3).round()
    scores[1] = scores[1].abs().neg()
    scores[1, :30] = 0.0
    scores[1, 15:] = scores[1, 15:].clamp_max(-0.0)
    scores[4], scores[6, 30:], scores[8], scores[10, 5:] = float("-inf"), float("-inf"), 7.0, float("-inf")
    return scores.to(device)


@pytest.mark.parametrize("k", [1, 7, 20])
@pytest.mark.parametrize(("levels", "width"), [(0, 20), (0, 301), (1, 640), (2, 4096), (3, 32768)])
def test_equal_scores_are_ordered_by_item_id(levels: int, width: int, k: int, device: torch.device) -> None:
    scores = tied_scores(width, device)
    best, items = best_items(scores, k, levels)
    values, order = scores.sort(dim=1, descending=True, stable=True)
    assert torch.equal(best, values[:, :k])
    known = best > float("-inf")
    assert torch.equal(items[known], order[:, :k][known])
    assert all(len(set(row)) == k for row in items.tolist())


@pytest.mark.parametrize("levels", [0, 1])
def test_a_nan_stays_in_a_list_with_ties(levels: int) -> None:
    scores = torch.zeros(2, 640)
    scores[1, 300] = float("nan")
    best, items = best_items(scores, 3, levels)
    assert items.tolist() == [[0, 1, 2], [300, 0, 1]]
    assert best.isnan().tolist() == [[False] * 3, [True, False, False]]


def test_one_order_everywhere(data: Dataset, device: torch.device) -> None:
    """Evaluation, lists beyond accuracy, and a recommendation of one user agree on items with as many interactions."""
    model = Popularity(ModelConfig(), Graph.from_tables(data.tables).to(device))
    task = RankingTask.from_tables(data.tables, "test")
    counts = model.score(torch.zeros(1, dtype=torch.long, device=device))[0].tolist()
    assert len(set(counts)) < len(counts)
    for user, seen, row in zip(task.users.tolist(), lists_of(task)[0], recommended(model, task, 6), strict=True):
        expected = sorted(set(range(task.n_items)) - set(seen), key=lambda item: (-counts[item], item))[:6]
        assert row.tolist() == expected == [item for item, _ in top_items(model, user, seen, 6)]


def test_seen_items_are_never_recommended(world: World) -> None:
    tables = world.tables
    seen = tables.interactions.query("user == 3 and split != 'test'")["item"].tolist()
    scores = torch.zeros(len(tables.users), len(tables.items))
    scores[:, seen] = 100
    items = [item for item, _ in top_items(scorer(scores), 3, seen, 1000)]
    assert set(items) == set(range(len(tables.items))) - set(seen)


@pytest.mark.parametrize("kind", [Stored, scorer])
@pytest.mark.parametrize("n_items", [50, 1200])
@pytest.mark.parametrize("place", ["best", "worst", "seen", "last user"])
def test_a_nan_score_is_an_error(
    kind: Any, n_items: int, place: str, device: torch.device, resized: Callable[..., None]
) -> None:
    resized(ranked_scores=4 * n_items)
    rng = np.random.default_rng(1)
    task = random_task(rng, 25, n_items, device)
    scores = torch.from_numpy(rng.normal(size=(30, n_items)).astype(np.float32)).to(device)
    seen, relevant = lists_of(task)
    row = 24 if place == "last user" else 4
    own = scores[task.users[row]]
    own[seen[row]] = 0
    at = {"best": own.argmax(), "worst": own.argmin(), "seen": seen[row][0], "last user": min(relevant[row])}[place]
    own[int(at)] = float("nan")
    with pytest.raises(TrainingError, match="NaN scores"):
        evaluate(kind(scores), task)


def test_users_without_train_are_not_ranked_and_what_is_seen_cannot_be_hit(world: World) -> None:
    rows = world.tables.interactions
    gone = ((rows["user"] == 5) & (rows["split"] == "train")) | ((rows["user"] == 9) & (rows["split"] == "test"))
    twice = rows.query("user == 0 and split == 'test'").assign(split="train")
    tables = dataclasses.replace(world.tables, interactions=pd.concat([rows[~gone], twice], ignore_index=True))
    task = RankingTask.from_tables(tables, "test")
    assert task.n_without_train == 1
    perfect = torch.zeros(len(tables.users), len(tables.items))
    perfect[torch.arange(len(world.planted)), torch.from_numpy(world.planted)] = 1
    _, per_user = evaluate(scorer(perfect), task)
    assert per_user["user"].tolist() == sorted({*range(len(tables.users))} - {5, 9})
    assert per_user["recall@10"].tolist() == [0.0] + [1.0] * (len(world.planted) - 3)


def test_parity_with_the_reference_metrics() -> None:
    """With the metrics of the reference code, and with those of ir-measures on the same lists."""
    fixture = Fixture("metrics")
    n_users, n_items = fixture.arrays["input.scores"].shape
    users = fixture.arrays["evaluated_users"]
    seen, relevant = lists(fixture, "train"), lists(fixture, "test")
    task = task_of([seen[user] for user in users], [relevant[user] for user in users], n_items)
    scores = torch.from_numpy(fixture.arrays["input.scores"][users])
    cutoffs = fixture.arrays["hp.k"].tolist()
    means, per_user = evaluate(scorer(scores), task, cutoffs)
    references = [*((name, "ir_measures") for name in METRICS), *((name, "reference") for name in list(METRICS)[:3])]
    for name, reference in references:
        key = "hit" if name == "hit_rate" else name
        found = per_user[[f"{name}@{k}" for k in cutoffs]]
        np.testing.assert_allclose(found, fixture.arrays[f"{reference}.per_user.{key}"], atol=1e-6)
        expected = fixture.arrays[f"{reference}.mean.{key}"].tolist()
        assert [means[str(column)] for column in found] == pytest.approx(expected, abs=1e-6)
    assert n_users > len(users)


def lists(fixture: Fixture, name: str) -> list[list[int]]:
    pointer, items = fixture.arrays[f"input.{name}_indptr"], fixture.arrays[f"input.{name}_indices"]
    return [items[start:stop].tolist() for start, stop in pairwise(pointer)]
