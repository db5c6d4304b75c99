"""Models against one of them: paired tests over users and over seeds, corrected for their number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from spike_kit.base.errors import ConfigError, DataError, some
from spike_kit.experiments.run_folder import Run
from spike_kit.results.frames import Runs, grouped_by_seed, over_shared_seeds, per_user_metric, seed_means
from spike_kit.results.significance import holm, mark, paired_test
from spike_kit.results.tables import ablation_label, markdown_table, spread
from spike_kit.training.checkpoint import MONITOR

TESTS = {"p t": "p_t", "p wilcoxon": "p_wilcoxon", "p permutation": "p_permutation"}
"""Columns of the tests over users, and the fields of `spike_kit.results.significance.PairedTest` they hold."""

PAIRED = ("users", "difference", "low", "high", "effect", *TESTS)
"""Columns of `paired`."""

HYPOTHESES = """\
p t: the mean difference over all users that these are a sample of is zero (paired t-test).
p wilcoxon: the differences are symmetric around zero (signed-rank test).
p permutation: for every user it was chance which of the two models got which of the two values (sign flips).
p seeds: the mean difference over all seeds that these are a sample of is zero (paired t-test, one mean per seed).
Users: each user's values are averaged over seeds first. All tests are two-sided, p-values are Holm's over all rows."""
"""Null hypotheses in words."""


def paired(
    ours: Sequence[Run],
    reference: Sequence[Run],
    metric: str = MONITOR,
    split: str = "test",
    users: pd.Index | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Compare the runs of a model with those of a reference, user by user (each the mean over its seeds).

    Returns
    -------
    dict
        users, difference (model minus reference), low, high (95 % bootstrap over users), effect (d_z), and the
        p-values of `TESTS`, not yet corrected (see `corrected`).
    """
    values, others = (per_user_metric(runs, metric, split, users) for runs in (ours, reference))
    test = paired_test(values, others, seed=seed)
    row: dict[str, float] = {"users": test.n_users, "difference": test.difference, "low": test.low, "high": test.high}
    return row | {"effect": test.effect, **{column: getattr(test, field) for column, field in TESTS.items()}}


def corrected(table: pd.DataFrame) -> pd.DataFrame:
    """A table whose rows hold what `paired` gives, or nothing, with Holm's p-values over all rows and their ``mark``.

    Every column whose name begins with ``p`` and a space is corrected; the mark is that of the permutation test.
    """
    adjusted = {name: holm(table[name]) for name in map(str, table) if name.startswith("p ")}
    return table.assign(**adjusted, mark=[mark(p) for p in adjusted["p permutation"]])


def comparison_table(
    runs: Runs,
    metric: str = MONITOR,
    split: str = "test",
    reference: str = "",
    users: pd.Index | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Compare every model with a reference, user by user and seed by seed.

    Parameters
    ----------
    runs
        Finished runs of one data set; those that differ in the seed only count as one model.
    metric
        A per-user metric.
    split
        Split of the comparison.
    reference
        Label of the model that all are compared with; empty takes the best mean on validation, so that the choice
        does not look at the test split.
    users
        Only these users, a group for example; default: all.
    seed
        Seed of bootstrap and permutations.

    Returns
    -------
    DataFrame
        One row per model, the best mean first: model, seeds, the metric, sd over seeds, and where it is not the
        reference the columns of `paired` with Holm's p-values and their mark, then over the shared seeds: seed
        difference, seed sd, p seeds.

    Raises
    ------
    ConfigError
        If there are no runs, they belong to several data sets, or there is no such model or metric.
    DataError
        If the models do not rank the same users, or none of ``users``.
    """
    models = grouped_by_seed(runs)
    if not models:
        raise ConfigError("there is no run to compare", "train some first")
    versions = {(run.config["dataset"], run.config["data_sha256"]) for group in models.values() for run in group}
    if len(versions) > 1:
        raise ConfigError(
            f"runs of {some(sorted({name for name, _ in versions}))}, or of several builds of it, cannot be compared",
            "give runs of one data set as it was built once",
        )
    name = reference or max(models, key=lambda label: seed_means(models[label], metric, "valid").mean())
    if name not in models:
        raise ConfigError(f"there is no model {name!r}", f"there are {some(models, limit=20)}")
    seeds = {label: seed_means(group, metric, split, users) for label, group in models.items()}
    rows = []
    for label, means in seeds.items():
        row = {"model": label, "seeds": len(means), metric: means.mean(), "sd": means.std()}
        if label != name:
            row |= paired(models[label], models[name], metric, split, users, seed) | _over_seeds(means, seeds[name])
        rows.append(row)
    over_seeds = ("shared seeds", "seed difference", "seed sd", "p seeds")
    table = pd.DataFrame(rows, columns=["model", "seeds", metric, "sd", *PAIRED, "mark", *over_seeds])
    table = corrected(table.sort_values(metric, ascending=False, ignore_index=True, kind="stable"))
    table.attrs["reference"] = name
    return table


def _over_seeds(means: pd.Series, reference: pd.Series) -> dict[str, float]:
    """Differences of the means of the seeds that both have; a test needs two seeds that do not differ equally."""
    differences = (means - reference).dropna()
    row: dict[str, float] = {"shared seeds": len(differences)}
    if len(differences):
        row["seed difference"] = float(differences.mean())
    if len(differences) > 1:
        row["seed sd"] = float(differences.std())
        if row["seed sd"] > 0:
            from scipy import stats

            row["p seeds"] = float(stats.ttest_1samp(differences, 0.0).pvalue)
    return row


def ablation_frame(full: Sequence[Run], others: Runs, metric: str = MONITOR, split: str = "test") -> pd.DataFrame:
    """Every ablation against the full model, paired by user.

    Parameters
    ----------
    full
        Runs of the full model, one per seed.
    others
        Runs of the ablations, each compared over the seeds it shares with the full model; without any it is left out.

    Returns
    -------
    DataFrame
        model, metric, split, seeds (shared ones), mean and sd over these seeds (NaN for one), difference to the full
        model, low, high (95 % bootstrap interval over users), p (permutation test, Holm-corrected over the rows) and
        its mark.
    """
    rows = []
    for group in grouped_by_seed(others).values():
        ours, whole = over_shared_seeds(group, full)
        if ours:
            values = seed_means(ours, metric, split)
            row = {"model": ablation_label(ours[0]), "metric": metric, "split": split, "seeds": len(ours)}
            rows.append(row | {"mean": values.mean(), "sd": values.std(), **paired(ours, whole, metric, split)})
    columns = ["model", "metric", "split", "seeds", "mean", "sd", "difference", "low", "high", "p permutation", "mark"]
    return corrected(pd.DataFrame(rows, columns=columns)).rename(columns={"p permutation": "p"})


def shown_mark(mark: str) -> str:
    """A mark of significance with asterisks that mean nothing in Markdown."""
    return mark.replace("*", "\N{ASTERISK OPERATOR}")


def comparison_markdown(table: pd.DataFrame, metric: str, digits: int = 4) -> str:
    """Format a `comparison_table` for a terminal or a Markdown file: the best mean bold, the second underlined.

    Raises
    ------
    DataError
        If the table is empty.
    """
    if table.empty:
        raise DataError("there is nothing to show")
    ps = ("p permutation", "p t", "p wilcoxon", "p seeds")
    lines = [["model", "seeds", metric, "difference [95 %]", "d_z", *ps]]
    ranks = table[metric].rank(method="min", ascending=False)
    for rank, row in zip(ranks, table.to_dict("records"), strict=True):
        text = f"{row[metric]:.{digits}f}"
        text = f"**{text}**" if rank == 1 else f"<u>{text}</u>" if rank == 2 else text
        cells = [str(row["model"]), str(row["seeds"]), f"{text}{spread(row['sd'], digits)}{shown_mark(row['mark'])}"]
        if pd.isna(row["difference"]):
            cells += ["reference", *[""] * 5]
        else:
            cells += [shown_difference(row, digits), f"{row['effect']:+.2f}"]
            cells += ["" if pd.isna(row[name]) else f"{row[name]:.3g}" for name in ps]
        lines.append(cells)
    return markdown_table(lines)


def shown_difference(row: Mapping[Any, Any], digits: int = 4) -> str:
    """Difference to the reference with its interval."""
    low, high = (f"{row[side]:+.{digits}f}" for side in ("low", "high"))
    return f"{row['difference']:+.{digits}f} [{low}, {high}]"
