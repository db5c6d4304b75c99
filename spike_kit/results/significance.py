"""Whether one model is better than another, user by user: paired tests, effect sizes, intervals.

The unit is the user: each user's metric is averaged over seeds first, so that seeds do not pass for more users.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from spike_kit.base.errors import DataError
from spike_kit.base.seeds import numpy_generator

_CHUNK_CELLS = 2**22
"""Random numbers held at once (32 MiB)."""

MARKS = ((0.001, "***"), (0.01, "**"), (0.05, "*"))
"""Levels of significance and their marks, the strictest first."""


PAIRED = ("users", "difference", "low", "high", "effect", "p t", "p wilcoxon", "p permutation")
"""What `paired_test` gives."""


def paired_test(a: pd.Series, b: pd.Series, *, seed: int = 0, permutations: int = 10_000) -> dict[str, float]:
    """Compare two models on the same users; all tests are two-sided.

    Parameters
    ----------
    a, b
        A metric of every user under either model, indexed by user.
    seed
        Seed of the bootstrap and of the permutations.
    permutations
        Random sign flips; with k as far from zero as the data, p = (k + 1) / (permutations + 1).

    Returns
    -------
    dict
        users: how many are compared; difference: mean over users of the first model's metric minus the second's; low,
        high: its 95 % bootstrap interval (percentiles, users drawn with replacement); effect: Cohen's d_z, the
        difference in standard deviations of the differences (0 where all are zero).
        p t: paired t-test. Null hypothesis: the mean difference over all users that these are a sample of is zero.
        p wilcoxon: signed-rank test (zeros split evenly). Null hypothesis: the differences are symmetric around zero.
        p permutation: sign-flip test of the mean. Null hypothesis: for every user it was chance which of the two models
        got which of the two values. Where all differences are zero every p is 1; where there is one user only, too.

    Raises
    ------
    DataError
        If the users are not the same, there is none, or a value is missing.
    """
    if len(a) == 0 or not a.sort_index().index.equals(b.sort_index().index):
        raise DataError("a paired test needs the same users on both sides", "compare runs of one data set and split")
    differences = (a.sort_index() - b.sort_index()).to_numpy(dtype=np.float64, copy=True)
    if not np.isfinite(differences).all():
        raise DataError("a paired test needs a value of every user on both sides")
    low, high = bootstrap_interval(differences, seed=seed)
    deviation = float(differences.std(ddof=1)) if len(differences) > 1 else 0.0
    mean = float(differences.mean())
    p_t = p_wilcoxon = p_permutation = 1.0
    if deviation > 0:
        from scipy import stats

        p_t = float(stats.ttest_1samp(differences, 0.0).pvalue)
        p_wilcoxon = float(stats.wilcoxon(differences, zero_method="zsplit", method="approx").pvalue)
        p_permutation = _sign_flips(differences, seed, permutations)
    effect = mean / deviation if deviation else 0.0
    numbers = (len(differences), mean, low, high, effect, p_t, p_wilcoxon, p_permutation)
    return dict(zip(PAIRED, numbers, strict=True))


def bootstrap_interval(
    values: np.ndarray | Sequence[float], *, seed: int = 0, level: float = 0.95, samples: int = 10_000
) -> tuple[float, float]:
    """Percentile interval of the mean of ``values [n]``, drawn with replacement."""
    given = np.asarray(values, dtype=np.float64)
    generator = numpy_generator(seed, "bootstrap")
    means = np.concatenate(
        [
            given[generator.integers(0, len(given), (size, len(given)))].mean(axis=1)
            for size in _chunks(samples, 4 * len(given))  # Smaller pieces: they stay in the processor's cache.
        ]
    )
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _sign_flips(differences: np.ndarray, seed: int, permutations: int) -> float:
    generator = numpy_generator(seed, "permutations")
    observed = abs(differences.sum()) * (1 - 1e-12)
    extreme = 0
    for size in _chunks(permutations, len(differences)):
        flipped = generator.integers(0, 2, (size, len(differences)), dtype=np.int8) @ (2 * differences)
        extreme += int((np.abs(flipped - differences.sum()) >= observed).sum())
    return (extreme + 1) / (permutations + 1)


def _chunks(total: int, width: int) -> list[int]:
    """Sizes of pieces of ``total`` rows of ``width`` cells that stay within `_CHUNK_CELLS`."""
    size = max(1, _CHUNK_CELLS // max(width, 1))
    return [min(size, total - start) for start in range(0, total, size)]


def holm(p_values: Sequence[float] | pd.Series) -> np.ndarray:
    """Holm's adjusted p-values ``[n]`` (Holm 1979): rejecting those below alpha errs anywhere with at most alpha.

    NaN stands for no test: it stays, and does not count.
    """
    given = np.asarray(p_values, dtype=np.float64)
    n_tests = int((~np.isnan(given)).sum())
    order = np.argsort(given, kind="stable")[:n_tests]
    scaled = given[order] * np.arange(n_tests, 0, -1)
    adjusted = np.full_like(given, np.nan)
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return adjusted


def mark(p: float) -> str:
    """Significance mark of a p-value (`MARKS`); empty where it is not significant, or NaN."""
    return next((sign for level, sign in MARKS if p < level), "")
