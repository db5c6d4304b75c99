import numpy as np
import pandas as pd
import pytest
from scipy import stats

from spike_kit.base.errors import DataError
from spike_kit.base.seeds import numpy_generator
from spike_kit.results import significance
from spike_kit.results.significance import bootstrap_interval, holm, mark, paired_test

TESTS = ("p t", "p wilcoxon", "p permutation")


def samples(n: int, shift: float = 0.0, seed: int = 0) -> tuple[pd.Series, pd.Series]:
    generator = numpy_generator(seed, "test")
    b = generator.random(n)
    return pd.Series(b + shift + 0.2 * generator.standard_normal(n)), pd.Series(b)


def test_the_tests_are_those_of_scipy() -> None:
    a, b = samples(200, 0.03)
    ours = paired_test(a, b)
    assert ours["p t"] == pytest.approx(stats.ttest_rel(a, b).pvalue, rel=1e-9)
    theirs = stats.permutation_test(
        (a - b,), np.mean, permutation_type="samples", n_resamples=20_000, vectorized=True, rng=1
    )
    assert ours["p permutation"] == pytest.approx(theirs.pvalue, abs=0.01)
    assert ours["difference"] == pytest.approx((a - b).mean())
    assert ours["effect"] == pytest.approx((a - b).mean() / (a - b).std())
    assert ours["low"] < ours["difference"] < ours["high"]
    a[:20] = b[:20]
    expected = stats.wilcoxon(a, b, zero_method="zsplit").pvalue
    assert expected != pytest.approx(stats.wilcoxon(a, b, zero_method="wilcox").pvalue, rel=1e-3)
    assert paired_test(a, b)["p wilcoxon"] == pytest.approx(expected, rel=1e-6)


def test_the_order_of_users_does_not_matter_and_the_sides_mirror() -> None:
    a, b = samples(50, 0.1)
    one, other = paired_test(a, b), paired_test(b.sample(frac=1, random_state=0), a)
    assert other["difference"] == pytest.approx(-one["difference"])
    assert other["p permutation"] == one["p permutation"]
    assert paired_test(a, b) == one


def test_small_samples_by_hand() -> None:
    same = pd.Series([0.1, 0.5, 0.0])
    nothing = paired_test(same, same)
    assert [nothing[name] for name in ("difference", "effect", "low", "high")] == [0, 0, 0, 0]
    alone = paired_test(pd.Series([1.0]), pd.Series([0.0]))
    assert (alone["users"], alone["difference"]) == (1, 1.0)
    assert [found[name] for found in (nothing, alone) for name in TESTS] == [1] * 6
    three = paired_test(pd.Series([1.0, 2.0, 3.0]), pd.Series([0.0, 0.0, 0.0]), permutations=40_000)
    assert three["p permutation"] == pytest.approx(2 / 8, abs=0.01)


@pytest.mark.parametrize("b", [pd.Series([0.1]), pd.Series([0.1, 0.2], index=[0, 2]), pd.Series([0.1, np.nan])])
def test_sides_must_fit(b: pd.Series) -> None:
    with pytest.raises(DataError, match="paired test"):
        paired_test(pd.Series([0.3, 0.4]), b)


def test_under_the_null_p_is_uniform() -> None:
    tests = pd.DataFrame([paired_test(*samples(40, seed=seed), permutations=400) for seed in range(150)])
    for name in TESTS:
        assert stats.kstest(tests[name], "uniform").pvalue > 0.01
    assert 0.85 < ((tests["low"] <= 0) & (tests["high"] >= 0)).mean() < 0.99


def test_intervals_do_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = numpy_generator(0, "values").random(30)
    whole = bootstrap_interval(values), paired_test(pd.Series(values), pd.Series(values[::-1].copy()))
    monkeypatch.setattr(significance, "_CHUNK_CELLS", 1000)
    parts = bootstrap_interval(values), paired_test(pd.Series(values), pd.Series(values[::-1].copy()))
    assert parts == whole


def test_holm_and_marks_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.6]).tolist() == [1.0, 1.0]
    assert np.array_equal(holm([0.03, np.nan, 0.01]), [0.03, np.nan, 0.02], equal_nan=True)
    assert [mark(p) for p in (0.0001, 0.005, 0.04, 0.05, 1.0, np.nan)] == ["***", "**", "*", "", "", ""]
