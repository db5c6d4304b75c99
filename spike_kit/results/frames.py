"""Runs and data sets as tables: every table that is printed, compared or drawn is made here."""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pandas as pd
import torch

from spike_kit.base import storage
from spike_kit.base.errors import ConfigError, DataError, lookup, some
from spike_kit.data.dataset import SUBJECTS, Dataset
from spike_kit.evaluation.groups import sparsity_groups
from spike_kit.evaluation.maps import umap_coordinates
from spike_kit.evaluation.ranking import HEADLINE
from spike_kit.experiments.ablation import NO_TEXT
from spike_kit.experiments.run import MODEL, Run, load_model
from spike_kit.experiments.tuned import TUNED
from spike_kit.experiments.versions import versions
from spike_kit.models import MODELS, find_model
from spike_kit.models.base import TrainedRecommender
from spike_kit.models.spike import Spike
from spike_kit.results.significance import bootstrap_interval
from spike_kit.results.tables import TEXT, all_settings, devices, group_remarks, run_label, usual_settings
from spike_kit.training.checkpoint import MONITOR

Runs = Sequence[Run] | Mapping[str, list[Run]]
"""Finished runs, or such runs grouped by `grouped_by_seed`."""

WORD_SHARES = {"words 5 %": 0.05, "words 25 %": 0.25, "words 50 %": 0.5, "words 75 %": 0.75, "words 95 %": 0.95}
"""Columns of `quality_frame`, and the quantiles they hold."""

_SETTING = "setting."

_LIST = 20
"""Items that `MONITOR` looks at."""


def grouped_by_seed(runs: Runs) -> Mapping[str, list[Run]]:
    """Runs that differ in the seed only, together, under their label; the order of first appearance is kept.

    Equal labels of different configurations are numbered. Runs that are grouped already keep their labels.
    """
    if isinstance(runs, Mapping):
        return runs
    same: dict[str, list[Run]] = {}
    for run in runs:
        same.setdefault(_without_seed(run), []).append(run)
    labelled: dict[str, list[Run]] = {}
    for group in same.values():
        label = run_label(group[0])
        names = (label, *(f"{label} ({number})" for number in range(2, len(same) + 1)))
        labelled[next(name for name in names if name not in labelled)] = group
    return labelled


def _without_seed(run: Run) -> str:
    return storage.canonical_json({name: value for name, value in run.config.items() if name != "seed"})


def per_user_metric(
    runs: Sequence[Run], metric: str = MONITOR, split: str = "test", users: pd.Index | None = None
) -> pd.Series:
    """Metric of every user (or of some ``users``), the mean over runs that differ in the seed only.

    Raises
    ------
    DataError
        If the runs differ in more than the seed, do not rank the same users, or rank none of ``users``.
    ConfigError
        If there is no run, or no such metric.
    """
    if not runs:
        raise ConfigError("there is no run to average", "train one first")
    if len({_without_seed(run) for run in runs}) > 1:
        raise DataError(f"{some([run.path.name for run in runs])} differ in more than the seed")
    columns = []
    for run in runs:
        table = run.per_user[run.per_user["split"] == split].set_index("user").drop(columns="split")
        columns.append(lookup({str(name): values for name, values in table.items()}, metric, "metric").sort_index())
    if any(not column.index.equals(columns[0].index) for column in columns):
        raise DataError(f"{some([run.path.name for run in runs])} do not rank the same users on {split}")
    values = pd.concat(columns, axis=1).mean(axis=1).rename(metric)
    if users is not None:
        values = values.loc[values.index.intersection(users)]
        if values.empty:
            raise DataError("none of these users is ranked")
    return values


def seed_means(
    runs: Sequence[Run], metric: str = MONITOR, split: str = "test", users: pd.Index | None = None
) -> pd.Series:
    """Mean of a metric over all users (or some ``users``) for each run of a group, indexed by its seed.

    Raises
    ------
    ConfigError
        If a run has no such metric.
    """
    if users is not None:
        return pd.Series({run.config["seed"]: per_user_metric([run], metric, split, users).mean() for run in runs})
    means = {run.config["seed"]: lookup(run.metrics[split], metric, "metric") for run in runs}
    return pd.Series(means, dtype=float)


def over_shared_seeds(a: Sequence[Run], b: Sequence[Run]) -> tuple[list[Run], list[Run]]:
    """Runs of two models with the seeds that both have, so that a pairing compares like with like; may be empty."""
    ours, theirs = ({run.config["seed"]: run for run in runs} for runs in (a, b))
    shared = [seed for seed in ours if seed in theirs]
    return [ours[seed] for seed in shared], [theirs[seed] for seed in shared]


def main_runs(runs: Sequence[Run]) -> list[Run]:
    """Runs of every model at its best: tuned, as a preset says, or else trained otherwise.

    Of several such forms that with the most seeds counts, and of these the best on validation. The order is the same
    for every data set, so that a model keeps its colour: models without training, the trained ones, SPiKE.
    """
    chosen: list[Run] = []
    known = [name for name in MODELS if any(run.config["model"] == name for run in runs)]
    for model in sorted(known, key=lambda name: (name == "spike", issubclass(find_model(name), TrainedRecommender))):
        with suppress(DataError):
            chosen += next(iter(forms(runs, model)), []) or full_model(runs, model)[0]
    return chosen


def forms(runs: Sequence[Run], model: str) -> list[list[Run]]:
    """Runs of a model as it was tuned, and as each of its presets says: most seeds first, then best on validation."""
    found = [preset_runs(runs, model, preset) for preset in (TUNED, *find_model(model).presets)]
    return sorted(filter(None, found), key=_worth, reverse=True)


def _worth(group: Sequence[Run]) -> tuple[int, float]:
    return len(group), float(np.mean([run.valid[MONITOR] for run in group]))


def leading(runs: Runs, n: int = 4) -> Mapping[str, list[Run]]:
    """SPiKE (its first label), then the ``n`` other models that are best on validation."""
    groups = grouped_by_seed(runs)
    ours = [label for label, group in groups.items() if group[0].config["model"] == "spike"]
    others = [label for label in groups if label not in ours]
    others.sort(key=lambda label: -seed_means(groups[label], split="valid").mean())
    return {label: groups[label] for label in ours[:1] + others[:n]}


def preset_runs(runs: Sequence[Run], model: str, preset: str) -> list[Run]:
    """Runs of a model as its preset says, of the versions of the last of them.

    Where they differ in profile set or encoder, those of the text with the most seeds, and then the best on validation.
    """
    of_text = _by_used_text(runs, model, preset, ("model_settings", "training_settings"))
    usual = max(of_text.values(), key=_worth, default=[])
    return [run for run in usual if versions(run.config) == versions(usual[-1].config)]


def _by_used_text(
    runs: Sequence[Run], model: str, preset: str, parts: Sequence[str] = ("model_settings",)
) -> Mapping[tuple[Any, ...], list[Run]]:
    """Runs with the settings of a preset by profile set and encoder; however trained, unless ``parts`` say so."""
    of_text: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        if (run.config["model"], run.config["preset"]) == (model, preset) and all(
            run.config[part] == usual_settings(run)[part] for part in parts
        ):
            of_text.setdefault(_text(run), []).append(run)
    return of_text


def _text(run: Run) -> tuple[Any, ...]:
    return tuple(map(run.config.get, TEXT))


def full_model(runs: Sequence[Run], model: str = "spike") -> tuple[list[Run], list[Run]]:
    """Part the runs of a model into those of its best form and its ablations.

    Ablations share preset and training settings with the full model. It is the form, and the text, with the most of
    them; of equal ones the tuned form, else SPiKE for new items, else that for profiles of a language model, else the
    recommended one.

    Raises
    ------
    DataError
        If the full model was not run.
    """
    groups: dict[str, tuple[list[Run], list[Run]]] = {}
    for preset in (TUNED, "new_items", "llm_profiles", "recommended"):
        own = [run for run in runs if (run.config["model"], run.config["preset"]) == (model, preset)]
        texts = Counter(map(_text, own))
        usual = _by_used_text(runs, model, preset)
        unchanged = max(usual.items(), key=lambda pair: (texts[pair[0]], _worth(pair[1])), default=((), []))[1]
        for run in own:
            same = [preset, run.config["training_settings"], run.config["data_sha256"], versions(run.config)]
            full, others = groups.setdefault(storage.canonical_json(same), ([], []))
            (full if run in unchanged else others).append(run)
    found = [group for group in groups.values() if group[0]]
    if not found:
        raise DataError(f"the full model of {model} was not run", f"train it: spike-kit train --model {model}")
    return max(found, key=lambda group: len(grouped_by_seed(group[1])))


def results_table(runs: Sequence[Run], split: str = "test", metrics: Sequence[str] = HEADLINE) -> pd.DataFrame:
    """Average runs that differ in nothing but the seed.

    Parameters
    ----------
    runs
        Finished runs; the order of first appearance is kept.
    split
        ``valid`` or ``test``.
    metrics
        Columns to show.

    Returns
    -------
    DataFrame
        model, seeds, for every metric its mean and ``"<metric> sd"`` over seeds (NaN for a single seed), device
        (`spike_kit.results.tables.devices`), and remarks (`spike_kit.experiments.remarks.remarks`).

    Raises
    ------
    ConfigError
        If a metric is unknown.
    """
    rows = []
    for label, group in grouped_by_seed(runs).items():
        numbers = pd.DataFrame(
            [{name: lookup(_means(run, split), name, "metric") for name in metrics} for run in group]
        )
        row = {"model": label, "seeds": len({run.config["seed"] for run in group}), "remarks": group_remarks(group)}
        rows.append(row | numbers.mean().to_dict() | numbers.std().add_suffix(" sd").to_dict())
    table = pd.DataFrame(rows, columns=["model", "seeds", *metrics, *(f"{name} sd" for name in metrics), "remarks"])
    table.insert(len(table.columns) - 1, "device", devices(grouped_by_seed(runs).values()))
    return table


def _means(run: Run, block: str) -> Mapping[str, float]:
    """Metrics of a run; NaN where it has none of new items because its model scores them all alike."""
    if block not in run.metrics and not find_model(run.config["model"]).scores_new:
        return dict.fromkeys(run.metrics["test"], np.nan)
    return lookup(run.metrics, block, f"results of {run.path.name}")


def results_frame(runs: Runs, metrics: Sequence[str] = HEADLINE, split: str = "test") -> pd.DataFrame:
    """Mean of every metric for every model, with an interval.

    Returns
    -------
    DataFrame
        dataset, model, split, metric, seeds, mean, low, high, and what the interval is: mean -+ one standard deviation
        over seeds, or, where there is one seed, a 95 % bootstrap interval over users; ``low`` and ``high`` are the
        mean, and what they are is empty, where users' values of some metric are not known (an archive has NDCG@20
        only). Models of different data sets may share a label.
    """
    rows = []
    of_sets: dict[str, list[Run]] = {}
    for run in () if isinstance(runs, Mapping) else runs:
        of_sets.setdefault(run.config["dataset"], []).append(run)
    parts = [runs] if isinstance(runs, Mapping) else of_sets.values()
    for label, group in (pair for part in parts for pair in grouped_by_seed(part).items()):
        known = all(metric in group[0].per_user for metric in metrics)
        for metric in metrics:
            values = seed_means(group, metric, split)
            mean = float(values.mean())
            low, high, what = mean, mean, ""
            if len(values) > 1:
                low, high, what = mean - values.std(), mean + values.std(), "sd over seeds"
            elif known:
                low, high = bootstrap_interval(per_user_metric(group, metric, split).to_numpy())
                what = "95 % over users"
            row = {"dataset": group[0].config["dataset"], "model": label, "split": split, "metric": metric}
            rows.append(row | {"seeds": len(values), "mean": mean, "low": low, "high": high, "interval": what})
    return pd.DataFrame(rows)


def sensitivity_frame(runs: Sequence[Run], metric: str = MONITOR, split: str = "valid") -> pd.DataFrame:
    """Runs that differ in one setting (and the seed), for every such setting.

    Returns
    -------
    DataFrame
        model, setting, value, metric, split, seeds, mean, sd over seeds (NaN for one); sorted by value. Of several
        series of one setting the one with the most values is kept.
    """
    flat = [(_flat(run), run.metrics[split][metric]) for run in runs]
    parts = []
    for name in dict.fromkeys(key for config, _ in flat for key in config if key.startswith(_SETTING)):
        series: dict[str, list[tuple[str, Any, float]]] = {}
        for config, result in flat:
            if name in config:
                rest = storage.canonical_json({**config, name: None})
                series.setdefault(rest, []).append((config["model"], config[name], result))
        longest = max(series.values(), key=lambda rows: len({str(value) for _, value, _ in rows}))
        table = pd.DataFrame(longest, columns=["model", "value", "result"])
        if len(set(map(str, table["value"]))) > 1:
            groups = table.groupby(["model", "value"])["result"].agg(seeds="count", mean="mean", sd="std")
            groups = groups.reset_index().astype({"value": object})
            parts.append(groups.assign(setting=name.removeprefix(_SETTING), metric=metric, split=split))
    columns = ["model", "setting", "value", "metric", "split", "seeds", "mean", "sd"]
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)


def _flat(run: Run) -> dict[str, Any]:
    """What may differ between runs besides the seed: settings, text, data and code."""
    config = run.config
    kept = ("model", "data_sha256", "profiles", "encoder", "vectors_sha256")
    parts = ("model_settings", "training_settings")
    settings = {
        key: value for part in parts for key, value in all_settings(config["model"], part, config[part]).items()
    }
    known = {key: config.get(key, "") for key in kept} | {"versions": versions(config)}
    return known | {f"{_SETTING}{key}": value for key, value in settings.items()}


def group_means(runs: Runs, groups: pd.Series, metric: str = MONITOR, split: str = "test") -> pd.DataFrame:
    """Mean of a metric over the users of each group, for every model (over its seeds).

    Parameters
    ----------
    runs
        Finished runs of one data set.
    groups
        Group of every user, from `sparsity_groups`; users that a run does not rank are left out.

    Returns
    -------
    DataFrame
        One row per model, and a column per group with its number of ranked users, ``"3-11 (120 users)"``.
    """
    columns = {label: per_user_metric(group, metric, split) for label, group in grouped_by_seed(runs).items()}
    values = pd.DataFrame(columns)
    parts = values.groupby(groups.reindex(values.index), observed=True)
    names = [f"{group} ({size} users)" for group, size in parts.size().items()]
    return parts.mean().set_axis(names).T


def sparsity_frame(
    data: Dataset | pd.Series, runs: Runs, metric: str = MONITOR, split: str = "test", n: int = 4
) -> pd.DataFrame:
    """Each model in each group of users by train interactions; ``data`` may also be the number of these of every user.

    Returns
    -------
    DataFrame
        model, group (train interactions), users, metric, split, mean, low, high (95 % bootstrap interval over users).
    """
    groups, rows = sparsity_groups(data, n), []
    for label, group in grouped_by_seed(runs).items():
        values = per_user_metric(group, metric, split)
        for name, inside in values.groupby(groups.reindex(values.index), observed=True):
            low, high = bootstrap_interval(inside.to_numpy())
            row = {"model": label, "group": name, "users": len(inside), "metric": metric, "split": split}
            rows.append(row | {"mean": float(inside.mean()), "low": low, "high": high})
    return pd.DataFrame(rows)


def _by_text(runs: Sequence[Run]) -> Mapping[tuple[str, str], list[Run]]:
    """Runs of SPiKE as a preset says, or without text, by text and data set: what differs is what the model reads."""
    found: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        text = run.config.get("profiles", NO_TEXT)
        if run.config["model"] == "spike" and (
            text == NO_TEXT or run.config["model_settings"] == usual_settings(run)["model_settings"]
        ):
            found.setdefault((text, run.config["dataset"]), []).append(run)
    return found


def _over_datasets(rows: list[dict[str, Any]], by: list[str], metric: str, split: str) -> pd.DataFrame:
    """Mean of ``value`` over data sets, with the standard deviation of their means on either side."""
    table = pd.DataFrame(rows, columns=[*by, "dataset", "users", "value"])
    if table.empty:
        return table
    each = table.groupby([*by, "dataset"], sort=False).agg(users=("users", "mean"), value=("value", "mean"))
    groups = each.reset_index().groupby(by, sort=False)
    frame = groups.agg(users=("users", "mean"), datasets=("value", "size"), mean=("value", "mean"), sd=("value", "std"))
    frame = frame.reset_index().astype({"users": int})
    spread = frame["sd"].fillna(0)
    return frame.assign(metric=metric, split=split, low=frame["mean"] - spread, high=frame["mean"] + spread)


def worth_frame(runs: Sequence[Run], split: str = "valid") -> pd.DataFrame:
    """What a text is worth against how often an item was seen: NDCG@20 of SPiKE by train interactions of the items.

    Runs of several data sets (item splits) may be given; those without ``item_groups`` are left out. A group of not
    more than 20 items is not ranked among itself: its whole list would be shown.

    Returns
    -------
    DataFrame
        candidates (``among``: the items of the group, ``all``), model (the text), group, users, datasets, mean over
        data sets, sd, metric, split, low and high (one sd on either side).
    """
    rows = [
        {
            "candidates": rule,
            "model": text,
            "group": name,
            "dataset": dataset,
            "users": found["users"],
            "value": found[rule],
        }
        for (text, dataset), group in _by_text(runs).items()
        for run in group
        for name, found in run.metrics.get("item_groups", {}).get(split, {}).items()
        for rule in ("among", "all")
        if rule == "all" or found["items"] > _LIST
    ]
    return _over_datasets(rows, ["candidates", "model", "group"], MONITOR, split)


def tasks_frame(runs: Sequence[Run], split: str = "test") -> pd.DataFrame:
    """NDCG@20 of SPiKE by task and text; of new items that among the new ones. Runs are of data sets of several tasks.

    It is empty where they are all of one task.

    Returns
    -------
    DataFrame
        group (the task), model (the text), users, datasets, mean over data sets, sd, metric, split, low and high.
    """
    rows = []
    for (text, dataset), group in _by_text(runs).items():
        for run in group:
            block = f"{split}_new" if f"{split}_new" in run.metrics else split
            task = "new items" if block != split else "few interactions" if "item_groups" in run.metrics else "known"
            users, value = run.metrics["users_ranked"][block], run.metrics[block][MONITOR]
            rows.append({"group": task, "model": text, "dataset": dataset, "users": users, "value": value})
    return _over_datasets(rows if len({row["group"] for row in rows}) > 1 else [], ["group", "model"], MONITOR, split)


def efficiency_frame(runs: Runs, metric: str = MONITOR, split: str = "test") -> pd.DataFrame:
    """What a model's training takes, and what it gives; means over seeds.

    Returns
    -------
    DataFrame
        model, metric, split, seeds, quality, seconds of training, peak_gib (largest memory of the training process;
        NaN where it was not recorded), device.
    """
    rows = []
    for label, group in grouped_by_seed(runs).items():
        row = {"model": label, "metric": metric, "split": split, "seeds": len(group)}
        row |= {"quality": seed_means(group, metric, split).mean(), **costs(group)}
        rows.append(row | {"device": ", ".join(sorted({run.environment["device"] for run in group}))})
    return pd.DataFrame(rows)


def costs(runs: Sequence[Run]) -> dict[str, float]:
    """Mean seconds of training and mean peak_gib of a group's runs; NaN where no run recorded them.

    Models without a training loop computed what they need after the clock had stopped in runs without ``listed``.
    """
    timed = [run.metrics for run in runs if run.metrics["epochs"] or "listed" in run.metrics]
    recorded = pd.DataFrame(timed, columns=["seconds", "peak_gib"], dtype=float)
    return {str(name): float(mean) for name, mean in recorded.mean().items()}


def curves_frame(runs: Runs, metric: str = MONITOR) -> pd.DataFrame:
    """Validation metric of every validated epoch: model, seed, epoch, seconds, metric, value."""
    parts = [pd.DataFrame(columns=["model", "seed", "epoch", "seconds", "metric", "value"])]
    for label, group in grouped_by_seed(runs).items():
        for run in group:
            rows = run.history.rename(columns={f"valid_{metric}": "value"})
            if "value" in rows:
                rows = rows.dropna(subset=["value"]).assign(model=label, seed=run.config["seed"], metric=metric)
                parts.append(rows[list(parts[0])])
    return pd.concat(parts[1:] or parts, ignore_index=True)


def graph_frame(data: Dataset) -> pd.DataFrame:
    """How many nodes have at least a degree, then the number of triples of every relation, the most frequent first.

    Returns
    -------
    DataFrame
        of (users and items by train interactions, items and other entities by triples; or the label of a relation),
        degree, nodes (with at least this degree; or triples of the relation), share of all nodes of the kind. Degree 0
        is left out, since the axis is logarithmic; relations have neither degree nor share.
    """
    train, n_items = data.split("train"), len(data.items)
    ends = pd.concat([data.triples["head"], data.triples["tail"]]).to_numpy()
    triples = np.bincount(ends, minlength=len(data.entities))
    degrees = {
        "users, interactions": np.bincount(train["user"], minlength=len(data.users)),
        "items, interactions": np.bincount(train["item"], minlength=n_items),
        "items, triples": triples[:n_items],
        "other entities, triples": triples[n_items:],
    }
    parts = []
    for name, degree in degrees.items():
        values, counts = np.unique(degree[degree > 0], return_counts=True)
        above = counts[::-1].cumsum()[::-1]
        parts.append(pd.DataFrame({"of": name, "degree": values, "nodes": above, "share": above / max(len(degree), 1)}))
    labels = data.relations.set_index("relation")["label"]
    counts = data.triples["relation"].value_counts().reindex(labels.index, fill_value=0)
    relations = pd.DataFrame({"of": labels, "nodes": counts}).sort_values("nodes", ascending=False, kind="stable")
    return pd.concat([*parts, relations], ignore_index=True)


def quality_frame(measured: pd.DataFrame) -> pd.DataFrame:
    """Quality of profile sets by subject, from `spike_kit.profiles.quality.measure_profiles`.

    Returns
    -------
    DataFrame
        profiles (name of the set), subject, n (of profiles), faithfulness (mean share of named facts that stand in
        the prompt), and quantiles of the words (`WORD_SHARES`).
    """
    groups = measured.groupby(["profiles", "subject"], sort=False)
    frame = groups.agg(n=("words", "size"), faithfulness=("faithfulness", "mean"))
    frame = frame.assign(**{name: groups["words"].quantile(share) for name, share in WORD_SHARES.items()}).reset_index()
    order = frame["subject"].map(SUBJECTS.index)
    return frame.iloc[np.lexsort([order, frame["profiles"].factorize()[0]])].reset_index(drop=True)


def map_frame(data: Dataset, runs: Sequence[Run]) -> pd.DataFrame:
    """Maps of all nodes by profile text and by final embedding of SPiKE, users first; of its best form with weights.

    Returns
    -------
    DataFrame
        panel (title of the map), kind, x, y; empty where no such run has its weights here.
    """
    spike = [run for run in runs if "profiles" in run.config and run.config["model"] == "spike"]
    chosen = main_runs([run for run in spike if (run.path / MODEL).is_file()])
    if not chosen:
        return pd.DataFrame()
    run = chosen[0]
    model, vectors = load_model(run, data), data.vectors(run.config["profiles"], run.config["encoder"])
    assert isinstance(model, Spike)
    with torch.no_grad():
        final = torch.cat(model.node_embeddings())
    panels = {
        f"Profile text ({run.config['profiles']}, {run.config['encoder']})": torch.cat([vectors.user, vectors.entity]),
        "Final embeddings (SPiKE)": final,
    }
    kinds = ["user"] * len(data.users) + data.entities["kind"].tolist()
    parts = [umap_coordinates(rows.numpy()).assign(panel=title, kind=kinds) for title, rows in panels.items()]
    return pd.concat(parts, ignore_index=True)[["panel", "kind", "x", "y"]]
