from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spike_kit.base.errors import ConfigError
from spike_kit.evaluation import groups


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
