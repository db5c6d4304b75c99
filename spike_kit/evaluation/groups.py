"""Groups of users and items, and how well models serve each."""

import numpy as np
import pandas as pd

from spike_kit.base.errors import ConfigError
from spike_kit.data.dataset import Dataset
from spike_kit.evaluation.ranking import RankingTask, evaluate
from spike_kit.models.base import Recommender

ITEM_GROUPS = {"0": 0, "1-2": 2, "3-5": 5, "6-10": 10, "11+": np.inf}
"""Groups of items by how often they occur in train: the most interactions by name."""


def train_interactions(data: Dataset) -> pd.Series:
    """Number of train interactions of every user with any, indexed by user."""
    return data.split("train")["user"].value_counts().sort_index()


def sparsity_groups(data: Dataset | pd.Series, n: int = 4) -> pd.Series:
    """Group of every user with train interactions: quantiles of their number, the sparsest first.

    ``data`` may also be its `train_interactions`.

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
    counts = train_interactions(data) if isinstance(data, Dataset) else data
    return _quantile_groups(counts.rename("group"), n)


def degree_groups(data: Dataset, n: int = 4) -> pd.Series:
    """Group of every item by the number of its triples, as `sparsity_groups`: those with the fewest facts first."""
    triples, items = data.triples, len(data.items)
    degree = pd.Series(0, index=range(items), name="group")
    for end in ("head", "tail"):
        degree = degree.add(triples[end].value_counts(), fill_value=0)
    return _quantile_groups(degree.loc[: items - 1].astype(int).rename("group"), n)


def item_groups(data: Dataset) -> pd.Series:
    """Group of every item by its train interactions, one of `ITEM_GROUPS`, indexed by item."""
    counts = data.split("train")["item"].value_counts().reindex(range(len(data.items)), fill_value=0)
    return pd.cut(counts, [-1, *ITEM_GROUPS.values()], labels=list(ITEM_GROUPS)).rename("group")


def by_train_interactions(data: Dataset, model: Recommender, split: str) -> dict[str, dict[str, float]]:
    """NDCG@20 of a split by the train interactions of the items, for every group with a relevant item.

    Returns
    -------
    dict
        By name of the group (`ITEM_GROUPS`): ``items`` of the group; ``users`` with a relevant item in it; and the
        mean over these users where only items of the group are relevant, with these items as candidates (``among``)
        and with all (``all``).
    """
    fixed, group, found = model.fixed(), item_groups(data), {}
    for name in ITEM_GROUPS:
        items = group.index[group == name].to_numpy()
        tasks = {
            rule: RankingTask.from_tables(data.tables, split, fixed.device, relevant_items=items, candidates=candidates)
            for rule, candidates in (("among", items), ("all", None))
        }
        if n_users := tasks["all"].users.numel():
            means = {rule: evaluate(fixed, task, (20,))[0]["ndcg@20"] for rule, task in tasks.items()}
            found[name] = {"items": len(items), "users": n_users, **means}
    return found


def _quantile_groups(counts: pd.Series, n: int) -> pd.Series:
    if n < 1:
        raise ConfigError(f"there cannot be {n} groups", "ask for at least one")
    sizes = counts.value_counts().sort_index()
    group = ((sizes.cumsum() - sizes / 2) / len(counts) * n).astype(int).clip(upper=n - 1)
    values = pd.Series(sizes.index, index=sizes.index).groupby(group)
    names = values.transform(lambda inside: "-".join(map(str, sorted({inside.iloc[0], inside.iloc[-1]}))))
    return counts.map(names.astype(pd.CategoricalDtype(names.unique(), ordered=True)))
