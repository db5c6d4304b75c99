"""Models against one of them: paired tests over users and over seeds, corrected for their number."""

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from spike_kit.base.errors import ConfigError, lookup, some
from spike_kit.experiments import ablation
from spike_kit.experiments.run import Run
from spike_kit.models.spike import SpikeConfig
from spike_kit.results.frames import Runs, grouped_by_seed, over_shared_seeds, per_user_metric, seed_means
from spike_kit.results.significance import PAIRED, holm, mark, paired_test
from spike_kit.results.tables import (
    ablation_label,
    about_runs,
    devices,
    differences,
    group_remarks,
    markdown_table,
    means,
    plain,
    usual_settings,
)
from spike_kit.training.checkpoint import MONITOR

OVER_SEEDS = ("shared seeds", "seed difference", "seed sd", "p seeds")
"""Columns of the comparison over seeds."""

HYPOTHESES = """\
p t: the mean difference over all users that these are a sample of is zero (paired t-test).
p wilcoxon: the differences are symmetric around zero (signed-rank test).
p permutation: for every user it was chance which of the two models got which of the two values (sign flips).
p seeds: the mean difference over all seeds that these are a sample of is zero (paired t-test, one mean per seed).
Users: each user's values are averaged over seeds first. All tests are two-sided, p-values are Holm's over all rows."""
"""Null hypotheses in words."""


def paired(
    ours: Sequence[Run], reference: Sequence[Run], metric: str, split: str, users: pd.Index | None = None
) -> dict[str, float]:
    """Compare the runs of a model with those of a reference, user by user (each the mean over its seeds).

    Returns
    -------
    dict
        As `paired_test`; p-values are not yet corrected (see `corrected`).
    """
    values, others = (per_user_metric(runs, metric, split, users) for runs in (ours, reference))
    return paired_test(values, others)


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

    Returns
    -------
    DataFrame
        One row per model, the best mean first: model, seeds, the metric, sd over seeds, and where it is not the
        reference the columns of `paired` with Holm's p-values and their mark, then over the shared seeds: seed
        difference, seed sd, p seeds; device (`spike_kit.results.tables.devices`), and remarks
        (`spike_kit.experiments.remarks.remarks`).

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
    for (label, of_seeds), device in zip(seeds.items(), devices(models.values()), strict=True):
        row = {"model": label, "seeds": len(of_seeds), metric: of_seeds.mean(), "sd": of_seeds.std()}
        row |= {"device": device, "remarks": group_remarks(models[label])}
        if label != name:
            row |= paired(models[label], models[name], metric, split, users) | _over_seeds(of_seeds, seeds[name])
        rows.append(row)
    columns = ["model", "seeds", metric, "sd", *PAIRED, "mark", *OVER_SEEDS, "device", "remarks"]
    table = pd.DataFrame(rows, columns=columns)
    table = corrected(table.sort_values(metric, ascending=False, ignore_index=True, kind="stable"))
    table.attrs["reference"] = name
    return table


def _over_seeds(values: pd.Series, reference: pd.Series) -> dict[str, float]:
    """Differences of the means of the seeds that both have; a test needs two seeds that do not differ equally."""
    from scipy import stats

    differences = (values - reference).dropna()
    p = float(stats.ttest_1samp(differences, 0.0).pvalue) if differences.std() > 0 else math.nan
    found = (len(differences), differences.mean(), differences.std(), p)
    return dict(zip(OVER_SEEDS, found, strict=True))


def pooled_frame(splits: Sequence[Runs], block: str, reference: str) -> pd.DataFrame:
    """Every model over several item splits of one data set, against one of them.

    Parameters
    ----------
    splits
        Finished runs of each split; a model that is missing in one is left out.
    block
        What is looked at: ``test_new`` (new items among themselves) or ``test_new_all``.
    reference
        Label of the model that all are compared with.

    Returns
    -------
    DataFrame
        One row per model, the best mean first, those that score no new item last: model, runs, ``mean`` of NDCG@20 over
        the splits and its ``mean sd`` over them, ``valid`` (the mean of the same block on validation), and the columns
        of `paired_test` with Holm's p-values and their mark. The unit is the user: each value is the mean over the runs
        that rank the user.

    Raises
    ------
    ConfigError
        If there is no such model.
    """
    parts: dict[str, list[list[Run]]] = {}
    for runs in splits:
        for label, group in grouped_by_seed(runs).items():
            parts.setdefault(label, []).append(group)
    whole = {label: groups for label, groups in parts.items() if len(groups) == len(splits)}
    lookup(whole, reference, "model that was run on every split")
    able = {
        label: groups for label, groups in whole.items() if all(block in run.metrics for part in groups for run in part)
    }
    users = {label: _over_parts(groups, block) for label, groups in able.items()}
    rows = []
    for label, groups in whole.items():
        row: dict[str, Any] = {"model": label, "runs": sum(map(len, groups))}
        if label in able:
            for name, shown in (("mean", block), ("valid", block.replace("test", "valid"))):
                values = pd.Series([seed_means(group, MONITOR, shown).mean() for group in groups])
                row |= {name: values.mean(), f"{name} sd": values.std()}
            row |= {} if label == reference else paired_test(users[label], users[reference])
        rows.append(row)
    columns = ["model", "runs", "mean", "mean sd", "valid", "valid sd", *PAIRED]
    table = pd.DataFrame(rows, columns=columns).sort_values("mean", ascending=False, ignore_index=True, kind="stable")
    return corrected(table)


def _over_parts(groups: Sequence[Sequence[Run]], block: str) -> pd.Series:
    """NDCG@20 of every user, the mean over the groups that rank the user."""
    return pd.concat([per_user_metric(group, MONITOR, block) for group in groups]).groupby(level=0).mean()


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
        its mark, device (`spike_kit.results.tables.devices`).
    """
    rows, shown = [], [full]
    for group in grouped_by_seed(others).values():
        ours, whole = over_shared_seeds(group, full)
        if ours:
            values = seed_means(ours, metric, split)
            row = {"model": ablation_label(ours[0], whole[0]), "metric": metric, "split": split, "seeds": len(ours)}
            rows.append(row | {"mean": values.mean(), "sd": values.std(), **paired(ours, whole, metric, split)})
            shown.append(ours)
    columns = ["model", "metric", "split", "seeds", "mean", "sd", "difference", "low", "high", "p permutation", "mark"]
    table = corrected(pd.DataFrame(rows, columns=columns)).rename(columns={"p permutation": "p"})
    return table.assign(device=devices(shown)[1:])


def profiles_frame(runs: Sequence[Run], preset: str, metric: str = MONITOR) -> pd.DataFrame:
    """SPiKE as a preset says, by profile set and weight of the matching loss, against the same without any text.

    Parameters
    ----------
    runs
        Finished runs of one data set; those of SPiKE that differ from the preset in nothing else are taken.
    preset
        Name of the preset.
    metric
        Metric of the columns.

    Returns
    -------
    DataFrame
        profiles (`NO_TEXT` first), matching weight, seeds (shared with the runs without text), valid and test and
        their sd over seeds, difference on test, low, high (95 % bootstrap interval over users), p (permutation test,
        Holm-corrected over the rows) and its mark, device (`spike_kit.results.tables.devices`). Empty without runs
        that see no text.
    """
    of_text: dict[tuple[str, float], list[Run]] = {}
    for run in runs:
        if (run.config["model"], run.config["preset"]) == ("spike", preset):
            usual = SpikeConfig.parse(usual_settings(run)["model_settings"])
            settings = SpikeConfig.parse(run.config["model_settings"])
            changed = ablation.changes(settings, usual)
            same_training = run.config["training_settings"] == usual_settings(run)["training_settings"]
            if same_training and not settings.uses_text:
                of_text.setdefault((ablation.NO_TEXT, math.nan), []).append(run)
            elif same_training and set(changed) <= {"matching_weight"}:
                of_text.setdefault((run.config["profiles"], settings.matching_weight), []).append(run)
    without = next((group for (name, _), group in of_text.items() if name == ablation.NO_TEXT), [])
    rows, shown = [], list[Sequence[Run]]()
    for (name, weight), group in sorted(of_text.items(), key=lambda pair: (pair[0][0] != ablation.NO_TEXT, pair[0])):
        if (shared := over_shared_seeds(group, without))[0]:
            row: dict[str, Any] = {"profiles": name, "matching weight": weight, "seeds": len(shared[0])}
            for split in ("valid", "test"):
                values = seed_means(shared[0], metric, split)
                row |= {split: values.mean(), f"{split} sd": values.std()}
            rows.append(row | (paired(*shared, metric, "test") if name != ablation.NO_TEXT else {}))
            shown.append(shared[0])
    columns = ["profiles", "matching weight", "seeds", "valid", "valid sd", "test", "test sd"]
    columns += ["difference", "low", "high", "p permutation"]
    table = corrected(pd.DataFrame(rows, columns=columns)).rename(columns={"p permutation": "p"})
    return table.assign(device=devices(shown))


def comparison_markdown(table: pd.DataFrame, metric: str) -> str:
    """Format a `comparison_table` for a terminal or a Markdown file; the best mean is bold."""
    return markdown_table(
        [
            ("model", table["model"]),
            ("seeds", table["seeds"]),
            (metric, means(table.rename(columns={"sd": f"{metric} sd"}), metric)),
            ("difference [95 %]", [cell or "reference" for cell in differences(table, interval=True)]),
            ("d_z", plain(table["effect"], "+.2f")),
            *((name, plain(table[name], ".3g")) for name in ("p permutation", "p t", "p wilcoxon", "p seeds")),
            *about_runs(table),
        ]
    )
