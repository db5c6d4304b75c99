"""Every model against one of them: paired tests over users and over seeds, corrected for their number."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from spike_kit.base.errors import ConfigError, DataError, require, some
from spike_kit.experiments.run_folder import Run
from spike_kit.results.frames import grouped_by_seed
from spike_kit.results.significance import holm, mark, paired_test, per_user_metric
from spike_kit.results.tables import markdown_table

TESTS = {"p t": "p_t", "p wilcoxon": "p_wilcoxon", "p permutation": "p_permutation"}
"""Columns of the tests over users, and the fields of `spike_kit.results.significance.PairedTest` they hold."""

_COLUMNS = (
    *("sd", "users", "difference", "low", "high", "effect", *TESTS, "mark"),
    *("shared seeds", "seed difference", "seed sd", "p seeds"),
)

HYPOTHESES = """\
p t: the mean difference over all users that these are a sample of is zero (paired t-test).
p wilcoxon: the differences are symmetric around zero (signed-rank test).
p permutation: for every user it was chance which of the two models got which of the two values (sign flips).
p seeds: the mean difference over all seeds that these are a sample of is zero (paired t-test, one mean per seed).
Users: each user's values are averaged over seeds first. All tests are two-sided, p-values are Holm's over all rows."""
"""Null hypotheses in words."""


def comparison_table(
    runs: Sequence[Run],
    metric: str = "ndcg@20",
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
        reference: users, difference (model minus reference), low, high (95 % bootstrap over users), effect (d_z), the
        p-values of `TESTS`, mark (of p permutation), then over the shared seeds: seed difference, seed sd, p seeds.

    Raises
    ------
    ConfigError
        If there are no runs, they belong to several data sets, or there is no such model or metric.
    DataError
        If the models do not rank the same users, or none of ``users``.
    """
    if not runs:
        raise ConfigError("there is no run to compare", "train some first")
    versions = {(run.config["dataset"], run.config["data_sha256"]) for run in runs}
    if len(versions) > 1:
        raise ConfigError(
            f"runs of {some(sorted({name for name, _ in versions}))}, or of several builds of it, cannot be compared",
            "give runs of one study as it was built once",
        )
    models = grouped_by_seed(runs)
    name = reference or max(models, key=lambda label: _mean(models[label], metric, "valid"))
    if name not in models:
        raise ConfigError(f"there is no model {name!r}", f"there are {some(models, limit=20)}")
    values = {label: _among(per_user_metric(group, metric, split), users) for label, group in models.items()}
    seeds = {label: _by_seed(group, metric, split, users) for label, group in models.items()}
    rows = []
    for label, means in seeds.items():
        row = {"model": label, "seeds": len(means), metric: means.mean(), "sd": means.std()}
        if label != name:
            row |= _against(values[label], values[name], seed) | _over_seeds(means, seeds[name])
        rows.append(row)
    columns = ["model", "seeds", metric, *_COLUMNS]
    table = pd.DataFrame(rows, columns=columns).sort_values(metric, ascending=False, ignore_index=True, kind="stable")
    for column in (*TESTS, "p seeds"):
        tested = table[column].notna()
        table.loc[tested, column] = holm(table.loc[tested, column].tolist())
    table["mark"] = [mark(p) if pd.notna(p) else "" for p in table["p permutation"]]
    table.attrs["reference"] = name
    return table


def _against(values: pd.Series, reference: pd.Series, seed: int) -> dict[str, float]:
    test = paired_test(values, reference, seed=seed)
    row: dict[str, float] = {"users": test.n_users, "difference": test.difference, "low": test.low, "high": test.high}
    return row | {"effect": test.effect, **{column: getattr(test, field) for column, field in TESTS.items()}}


def _over_seeds(means: pd.Series, reference: pd.Series) -> dict[str, float]:
    """Differences of the means of the seeds that both have; a test needs two seeds that do not differ equally."""
    differences = (means - reference).dropna()
    row: dict[str, float] = {"shared seeds": len(differences)}
    if len(differences):
        row["seed difference"] = float(differences.mean())
    if len(differences) > 1:
        row["seed sd"] = float(differences.std())
        if row["seed sd"] > 0:
            row["p seeds"] = float(require("scipy.stats", "lab").ttest_1samp(differences, 0.0).pvalue)
    return row


def _among(values: pd.Series, users: pd.Index | None) -> pd.Series:
    """Values of some users."""
    if users is None:
        return values
    kept = values.loc[values.index.intersection(users)]
    if kept.empty:
        raise DataError("none of these users is ranked")
    return kept


def _by_seed(group: Sequence[Run], metric: str, split: str, users: pd.Index | None = None) -> pd.Series:
    """Mean metric of each seed, indexed by it."""
    if users is not None:
        return pd.Series(
            {run.config["seed"]: _among(per_user_metric([run], metric, split), users).mean() for run in group}
        )
    means = {}
    for run in group:
        if metric not in run.metrics[split]:
            known = some(sorted(run.metrics[split]), limit=20)
            raise ConfigError(f"{run.path.name} has no metric {metric!r}", f"it has {known}")
        means[run.config["seed"]] = run.metrics[split][metric]
    return pd.Series(means)


def _mean(group: Sequence[Run], metric: str, split: str) -> float:
    return float(_by_seed(group, metric, split).mean())


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
    ranks = table[metric].rank(method="min", ascending=False)
    header = ["model", "seeds", metric, "difference [95 %]", "d_z", "p permutation", "p t", "p wilcoxon", "p seeds"]
    lines = [header]
    for place, row in enumerate(table.to_dict("records")):
        rank, text = ranks.iloc[place], f"{row[metric]:.{digits}f}"
        text = f"**{text}**" if rank == 1 else f"<u>{text}</u>" if rank == 2 else text
        spread = "" if pd.isna(row["sd"]) else f" ± {row['sd']:.{digits}f}"
        cells = [str(row["model"]), str(row["seeds"]), f"{text}{spread}{shown_mark(row['mark'])}"]
        if pd.isna(row["difference"]):
            cells += ["reference", *[""] * 5]
        else:
            low, high = (f"{row[side]:+.{digits}f}" for side in ("low", "high"))
            cells += [f"{row['difference']:+.{digits}f} [{low}, {high}]", f"{row['effect']:+.2f}"]
            ps = (row[column] for column in ("p permutation", "p t", "p wilcoxon", "p seeds"))
            cells += ["" if pd.isna(p) else f"{p:.3g}" for p in ps]
        lines.append(cells)
    return markdown_table(lines)
