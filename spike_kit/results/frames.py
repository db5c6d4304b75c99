"""Finished runs as tables: the same runs of several seeds together, means over groups of users."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from spike_kit.base import storage
from spike_kit.experiments.run_folder import Run
from spike_kit.results.significance import per_user_metric
from spike_kit.results.tables import run_label


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
