"""Groups of users and items, and how well models serve each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from spike_kit import storage
from spike_kit.data.study import Study
from spike_kit.errors import ConfigError
from spike_kit.evaluation.significance import per_user_metric
from spike_kit.evaluation.tables import run_label
from spike_kit.runs import Run


def train_interactions(study: Study) -> pd.Series:
    """Number of train interactions of every user with any, indexed by user."""
    return study.split("train")["user"].value_counts().sort_index()


def sparsity_groups(study: Study | pd.Series, n: int = 4) -> pd.Series:
    """Group of every user with train interactions: quantiles of their number, the sparsest first.

    ``study`` may also be its `train_interactions`.

    Users with equally many interactions stay together, so groups are as equal in size as ties allow, and there may be
    fewer than ``n``.

    Returns
    -------
    Series
        Ordered categories such as ``"3-11"`` (train interactions), indexed by user.

    Raises
    ------
    ConfigError
        If ``n`` is not positive.
    """
    counts = train_interactions(study) if isinstance(study, Study) else study
    return _quantile_groups(counts.rename("group"), n)


def popularity_groups(study: Study, n: int = 4) -> pd.Series:
    """Group of every item with train interactions, as `sparsity_groups`: the least popular first, indexed by item."""
    return _quantile_groups(study.split("train")["item"].value_counts().sort_index().rename("group"), n)


def degree_groups(study: Study, n: int = 4) -> pd.Series:
    """Group of every item by the number of its triples, as `sparsity_groups`: those with the fewest facts first."""
    triples, items = study.triples, len(study.items)
    degree = pd.Series(0, index=range(items), name="group")
    for end in ("head", "tail"):
        degree = degree.add(triples[end].value_counts(), fill_value=0)
    return _quantile_groups(degree.loc[: items - 1].astype(int).rename("group"), n)


def _quantile_groups(counts: pd.Series, n: int) -> pd.Series:
    if n < 1:
        raise ConfigError(f"there cannot be {n} groups", "ask for at least one")
    values, sizes = np.unique(counts.to_numpy(), return_counts=True)
    middle = (np.cumsum(sizes) - sizes / 2) / len(counts)
    group = np.minimum((middle * n).astype(int), n - 1)
    names: list[str] = []
    index = np.searchsorted(values, counts.to_numpy())
    for number in np.unique(group):
        inside = values[group == number]
        names.append(f"{inside[0]}" if inside[0] == inside[-1] else f"{inside[0]}-{inside[-1]}")
    codes = np.searchsorted(np.unique(group), group)[index]
    return pd.Series(
        pd.Categorical.from_codes(codes, dtype=pd.CategoricalDtype(names, ordered=True)),
        index=counts.index,
        name=counts.name,
    )


def grouped_by_seed(runs: Sequence[Run] | Mapping[str, list[Run]]) -> Mapping[str, list[Run]]:
    """Runs that differ in the seed only, together, under their label; the order of first appearance is kept.

    Equal labels of different configurations are numbered. Runs that are grouped already keep their labels.
    """
    if isinstance(runs, Mapping):
        return runs
    same: dict[str, list[Run]] = {}
    for run in runs:
        key = storage.canonical_json({name: value for name, value in run.config.items() if name != "seed"})
        same.setdefault(key, []).append(run)
    labelled: dict[str, list[Run]] = {}
    for group in same.values():
        label = name = run_label(group[0])
        number = 1
        while name in labelled:
            number += 1
            name = f"{label} ({number})"
        labelled[name] = group
    return labelled


def group_means(
    runs: Sequence[Run] | Mapping[str, list[Run]], groups: pd.Series, metric: str = "ndcg@20", split: str = "test"
) -> pd.DataFrame:
    """Mean of a metric over the users of each group, for every model (over its seeds).

    Parameters
    ----------
    runs
        Finished runs of one data set, or grouped ones (`grouped_by_seed`).
    groups
        Group of every user, from `sparsity_groups`; users that a run does not rank are left out.

    Returns
    -------
    DataFrame
        One row per group: group, users (ranked ones), and a column for every model.
    """
    columns = {label: per_user_metric(group, metric, split) for label, group in grouped_by_seed(runs).items()}
    table = pd.DataFrame(columns).join(groups.rename("group"), how="inner")
    parts = table.groupby("group", observed=True)
    means = parts.mean()
    means.insert(0, "users", parts.size())
    return means.reset_index()
