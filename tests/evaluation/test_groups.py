from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spike_kit.base.errors import ConfigError
from spike_kit.data.dataset import Dataset
from spike_kit.evaluation import groups
from spike_kit.evaluation.groups import popularity_groups, sparsity_groups
from spike_kit.experiments.run import RunConfig, run
from spike_kit.results.frames import group_means, grouped_by_seed


def test_users_with_equally_many_interactions_stay_together(data: Dataset) -> None:
    found = sparsity_groups(data)
    assert found.cat.categories.tolist() == ["10"]
    assert len(found) == len(data.users)
    assert popularity_groups(data).index.tolist() == list(range(len(data.items)))


@given(st.lists(st.integers(1, 30), min_size=1, max_size=80), st.integers(1, 6))
def test_groups_are_ranges_in_order(counts: list[int], n: int) -> None:
    series = pd.Series(counts, name="group")
    found = groups._quantile_groups(series, n)
    assert 1 <= len(found.cat.categories) <= n
    bounds = series.groupby(found, observed=False).agg(["min", "max"])
    assert (bounds["min"].to_numpy()[1:] > bounds["max"].to_numpy()[:-1]).all()
    names = [f"{low}-{high}" if low < high else f"{low}" for low, high in bounds.to_numpy()]
    assert found.cat.categories.tolist() == names


def test_quarters_are_quarters_where_there_are_no_ties() -> None:
    sizes = groups._quantile_groups(pd.Series(np.arange(1, 41), name="group"), 4).value_counts()
    assert sizes.tolist() == [10, 10, 10, 10]
    with pytest.raises(ConfigError, match="0 groups"):
        groups._quantile_groups(pd.Series([1], name="group"), 0)


def test_means_of_groups_come_from_their_users(data: Dataset) -> None:
    short = {"epochs": 1, "batch_size": 512}
    runs = [run(RunConfig(model="bprmf", dataset="world", training=short, seed=s), progress=False) for s in (0, 1)]
    runs.append(run(RunConfig(model="popularity", dataset="world"), progress=False))
    halves = pd.Series(np.where(data.users["user"] < 20, "few", "many"), name="group")
    table = group_means(runs, halves, "recall@20", "valid").set_index("group")
    label = next(str(name) for name in table if str(name).startswith("BPR-MF"))
    assert table["users"].to_dict() == {"few": 20, "many": len(data.users) - 20}
    own = [r.per_user.query("split == 'valid' and user < 20")["recall@20"].mean() for r in runs[:2]]
    assert table[label]["few"] == pytest.approx(np.mean(own))


def test_equal_labels_stay_apart(data: Dataset) -> None:
    made = run(RunConfig(model="popularity", dataset="world"), progress=False)
    other = dataclasses.replace(made)
    other.__dict__["config"] = made.config | {"versions": {"model": 0}}
    assert list(grouped_by_seed([made, other])) == ["Popularity", "Popularity (2)"]
