"""Groups of users and items, and how well models serve each."""

import pandas as pd

from spike_kit.base.errors import ConfigError
from spike_kit.data.dataset import Dataset


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


def _quantile_groups(counts: pd.Series, n: int) -> pd.Series:
    if n < 1:
        raise ConfigError(f"there cannot be {n} groups", "ask for at least one")
    sizes = counts.value_counts().sort_index()
    group = ((sizes.cumsum() - sizes / 2) / len(counts) * n).astype(int).clip(upper=n - 1)
    values = pd.Series(sizes.index, index=sizes.index).groupby(group)
    names = values.transform(lambda inside: "-".join(map(str, sorted({inside.iloc[0], inside.iloc[-1]}))))
    return counts.map(names.astype(pd.CategoricalDtype(names.unique(), ordered=True)))
