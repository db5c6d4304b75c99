import dataclasses
import itertools
import math
import re
import shutil
from collections import Counter
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spike_kit.base.errors import ConfigError, DataError
from spike_kit.data.dataset import Dataset
from spike_kit.data.graph import Graph
from spike_kit.evaluation.beyond import MEASURES, BeyondAccuracy, gini, item_groups, measure_lists, recommended
from spike_kit.evaluation.groups import degree_groups, sparsity_groups
from spike_kit.evaluation.ranking import RankingTask, evaluate
from spike_kit.models.base import FixedEmbeddings, ModelConfig
from spike_kit.models.popularity import Popularity
from tests.reference.evaluation import lists_of


@pytest.fixture
def lists(data: Dataset) -> np.ndarray:
    """Lists of five items at random, one of them shorter, one empty."""
    n = BeyondAccuracy(data).users.size
    rng = np.random.default_rng(3)
    found = np.stack([rng.permutation(len(data.items))[:5] for _ in range(n)])
    found[0, 3:], found[1] = -1, -1
    return found


def embeddings(data: Dataset) -> FixedEmbeddings:
    generator = torch.Generator().manual_seed(1)
    users, items = (torch.randn(len(table), 4, generator=generator) for table in (data.users, data.items))
    return FixedEmbeddings(users, items)


def test_lists_are_those_that_evaluation_ranks(data: Dataset, resized: Callable[..., None]) -> None:
    """They end where the unseen items do."""
    task, model, k = RankingTask.from_tables(data.tables, "test"), embeddings(data), len(data.items) + 3
    found = recommended(model, task, k)
    _, per_user = evaluate(model, task, (10,))
    for row, seen, relevant, recall in zip(found, *lists_of(task), per_user["recall@10"], strict=True):
        assert len(set(row[:10]) & relevant) / len(relevant) == recall
        assert set(row[: -len(seen) - 3]) == set(range(len(data.items))) - set(seen)
        assert (row[-len(seen) - 3 :] == -1).all()
    resized(ranked_scores=3 * task.n_items)
    assert (recommended(model, task, k) == found).all()
    with pytest.raises(ConfigError, match="at least 1"):
        recommended(model, task, 0)


def test_measures_are_what_their_definitions_say(data: Dataset, lists: np.ndarray) -> None:
    values = BeyondAccuracy(data, vectors=data.vectors()).measure(lists)
    rows = [[int(item) for item in row if item >= 0] for row in lists]
    popularity, listed = Counter(data.split("train")["item"]), Counter(itertools.chain(*rows))
    n_items, n_users = len(data.items), data.split("train")["user"].nunique()
    counts = [listed[item] for item in range(n_items)]
    facts: dict[int, set[tuple[str, int]]] = {item: set() for item in range(n_items)}
    for head, relation, tail in data.triples.itertuples(index=False):
        for end, fact in ((head, (f"{relation}>", tail)), (tail, (f"{relation}<", head))):
            if end < n_items:
                facts[end].add(fact)
    text = data.vectors().entity.double()

    def over_lists(value: Callable[..., float], size: int) -> float:
        """Mean over lists of the mean over their items, or pairs of items."""
        chosen = [[value(*items) for items in itertools.combinations(row, size)] for row in rows if len(row) >= size]
        return float(np.mean([np.mean(one) for one in chosen]))

    assert tuple(values) == MEASURES
    expected = {
        "coverage": len(listed) / n_items,
        "gini": sum(abs(a - b) for a in counts for b in counts) / (2 * n_items * sum(counts)),
        "arp": over_lists(lambda item: popularity[item], 1),
        "novelty": over_lists(lambda item: -math.log2(max(1, popularity[item]) / n_users), 1),
        "diversity by kg": over_lists(lambda a, b: 1 - len(facts[a] & facts[b]) / len(facts[a] | facts[b]), 2),
        "diversity by text": over_lists(lambda a, b: 1 - float(torch.cosine_similarity(text[a], text[b], dim=0)), 2),
    }
    assert {name: values[name] for name in expected} == pytest.approx(expected)


def test_calibration_is_zero_for_a_list_like_the_history_and_grows_with_the_distance(data: Dataset) -> None:
    measured = BeyondAccuracy(data)
    train = data.split("train").groupby("user")["item"].agg(list)
    own = [train[user][:5] for user in measured.users]
    other = [train[(user + len(data.users) // 2) % len(data.users)][:5] for user in measured.users]
    same = measured.measure(np.array(own))["miscalibration"]
    apart = measured.measure(np.array(other))["miscalibration"]
    assert same == pytest.approx(0, abs=1e-9)
    # Every item of the world has one genre, so a list of another group keeps only the smoothing: -log(alpha).
    assert apart == pytest.approx(-math.log(0.01))


def test_what_cannot_be_measured_is_unknown(data: Dataset, lists: np.ndarray) -> None:
    measured = BeyondAccuracy(data)
    measured.__dict__["genres"] = None
    values = measured.measure(lists)
    assert math.isnan(values["diversity by text"])
    assert math.isnan(values["miscalibration"])
    with pytest.raises(DataError, match="lists of 2 users"):
        measured.measure(lists[:2])
    assert math.isnan(gini(np.zeros(3, dtype=int)))


@pytest.mark.parametrize(
    ("label", "k", "reasons"),
    [
        ("genre", 5, {"diversity by text": r"profile set template is not encoded"}),
        ("Sujet", 5, {"diversity by text": "", "miscalibration": r"called genre or .*; there are Sujet, director"}),
        ("Tag", 1, {"diversity by kg": "no list holds enough", "diversity by text": "profile set"}),
    ],
)
def test_what_is_not_known_has_a_reason(data: Dataset, label: str, k: int, reasons: dict[str, str]) -> None:
    shutil.rmtree(data.path / "embeddings")
    relations = data.relations.assign(label=[label, "director"])
    data.__dict__["tables"] = dataclasses.replace(data.tables, relations=relations)
    popular = Popularity(ModelConfig(), Graph.from_tables(data.tables))
    table = measure_lists(data, [("popular", popular)], k=k)["whole lists"]
    assert table.columns[table.isna().any()].tolist() == list(reasons)
    assert all(re.search(words, table.attrs["unknown"][name]) for name, words in reasons.items())


def test_a_group_that_nobody_likes_has_a_reason(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = data.interactions
    wanted = rows[(rows["split"] != "test") | (rows["item"] > 1)]
    data.__dict__["tables"] = dataclasses.replace(data.tables, interactions=wanted)
    groups = pd.Series(np.where(data.items["item"] > 1, "wanted", "unwanted"))
    monkeypatch.setattr("spike_kit.evaluation.beyond.item_groups", lambda _: groups)
    popular = Popularity(ModelConfig(), Graph.from_tables(data.tables))
    table = measure_lists(data, [("popular", popular)], k=3)["items by popularity"]
    assert table.attrs["unknown"] == {"unwanted (2): recall": "no user has a relevant item of this group"}


@given(st.lists(st.integers(1, 30), min_size=1, max_size=80), st.integers(1, 6))
def test_groups_are_ranges_in_order(counts: list[int], n: int) -> None:
    series = pd.Series(counts, name="group")
    found = sparsity_groups(series, n)
    assert 1 <= len(found.cat.categories) <= n
    bounds = series.groupby(found, observed=False).agg(["min", "max"])
    assert (bounds["min"].to_numpy()[1:] > bounds["max"].to_numpy()[:-1]).all()
    names = [f"{low}-{high}" if low < high else f"{low}" for low, high in bounds.to_numpy()]
    assert found.cat.categories.tolist() == names


def test_quarters_are_quarters_where_there_are_no_ties() -> None:
    assert sparsity_groups(pd.Series(range(1, 41)), 4).value_counts().tolist() == [10, 10, 10, 10]
    with pytest.raises(ConfigError, match="0 groups"):
        sparsity_groups(pd.Series([1]), 0)


def test_item_groups_hold_every_item_once_in_order_of_popularity_or_degree(data: Dataset) -> None:
    counts = data.split("train")["item"].value_counts().reindex(range(len(data.items)), fill_value=0)
    few = int(counts.median())
    groups = item_groups(data, tail=0.5, few=few)
    assert len(groups) == len(data.items)
    assert (counts[groups == "unseen"] == 0).all()
    assert counts[groups == "cold"].between(1, few - 1).all()
    assert counts[groups == "long tail"].max() <= counts[groups == "popular"].min()
    assert counts[groups != "popular"].sum() <= 0.5 * counts.sum()
    with pytest.raises(ConfigError, match="expected a share"):
        item_groups(data, tail=1.5)
    ends = Counter(data.triples["head"]) + Counter(data.triples["tail"])
    by_degree = degree_groups(data, 2)
    assert len(by_degree) == len(data.items)
    for item, group in enumerate(by_degree):
        low, _, high = str(group).partition("-")
        assert int(low) <= ends[item] <= int(high or low)


def test_groups_of_items_by_hand(data: Dataset) -> None:
    measured = BeyondAccuracy(data)
    n, n_items = len(measured.users), len(data.items)
    planted = data.split("test").drop_duplicates("user").set_index("user")["item"].loc[measured.users].to_numpy()
    lists = np.stack([planted, (planted + 1) % n_items], axis=1)
    lists[: n // 2, 0] = (planted[: n // 2] + 2) % n_items
    row = measured.by_items(lists, pd.Series(np.where(np.arange(n_items) % 2, "odd", "even")))
    found = np.array([item in row for item, row in zip(planted, lists, strict=True)])
    assert len(row) == 4
    for name, odd in (("odd", 1), ("even", 0)):
        size = sum(item % 2 == odd for item in range(n_items))
        assert row[f"{name} ({size}): recall"] == pytest.approx(found[planted % 2 == odd].mean())
        assert row[f"{name} ({size}): share"] == pytest.approx((lists % 2 == odd).mean())


def test_models_are_averaged_over_their_runs(data: Dataset) -> None:
    popular, random = Popularity(ModelConfig(), Graph.from_tables(data.tables)), embeddings(data)
    tables = measure_lists(data, iter([("a", popular), ("b", random), ("a", random)]), k=5)
    whole = tables["whole lists"].set_index("model").to_dict("index")
    (alone,) = measure_lists(data, [("popular", popular)], k=5)["whole lists"].to_dict("records")
    for measure in MEASURES:
        assert whole["a"][measure] == pytest.approx((alone[measure] + whole["b"][measure]) / 2)
    sizes = item_groups(data).value_counts(sort=False)
    columns = [f"{name} ({n}): {value}" for name, n in sizes.items() if n for value in ("recall", "share")]
    by_popularity = tables["items by popularity"]
    assert by_popularity.columns.tolist() == ["model", *columns]
    assert by_popularity.filter(like="share").to_numpy().sum(1) == pytest.approx(1)
    assert by_popularity["model"].tolist() == ["a", "b"]
