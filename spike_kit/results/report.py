"""The results of a data set in Markdown: models, groups of users, ablations, what searches chose, what it cost."""

import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from spike_kit.base import paths, storage
from spike_kit.base.errors import ConfigError, DataError
from spike_kit.data.dataset import Dataset
from spike_kit.evaluation.beyond import measure_lists
from spike_kit.evaluation.groups import sparsity_groups, train_interactions
from spike_kit.evaluation.ranking import evaluate, ranking_task
from spike_kit.experiments.archive import ROOT, RUNS, archived_activity, known_runs, read_archive
from spike_kit.experiments.run import Run, load_model
from spike_kit.experiments.tuned import find_tuned
from spike_kit.experiments.versions import versions
from spike_kit.models import MODELS, find_model
from spike_kit.results import frames, tables
from spike_kit.results.comparison import (
    HYPOTHESES,
    ablation_frame,
    comparison_markdown,
    comparison_table,
    pooled_frame,
    profiles_frame,
)
from spike_kit.results.frames import grouped_by_seed, results_table
from spike_kit.results.tables import differences, markdown_table, means, plain, run_label
from spike_kit.training.checkpoint import MONITOR

OVERVIEW = "overview"
"""Name of the table of `overview` among those of the data sets."""

_RECALL = "recall@20"

_OF_SPLIT = re.compile(r"-new-\d+$")
"""What ends the name of one of several item splits of a data set."""

_DEFAULT = "ml-100k"
"""The data set whose tables come first."""


def study_datasets() -> list[str]:
    """Data sets that docs/study holds runs of, the default one and its tasks first."""
    names = [file.parent.name for file in ROOT.glob(f"*/{RUNS}")]
    return sorted(names, key=lambda name: (not name.startswith(_DEFAULT), name))


def report(dataset: str, runs: Sequence[Run], activity: pd.Series, reference: str = "spike") -> str:
    """All tables of a data set, each under its heading.

    Parameters
    ----------
    dataset
        Name of the data set.
    runs
        Its finished runs (`spike_kit.experiments.archive`).
    activity
        Train interactions of every user.
    reference
        Model that all others are compared with.

    Raises
    ------
    DataError
        If the reference was not run.
    """
    main = frames.main_runs(runs)
    labels = [label for label, group in grouped_by_seed(main).items() if group[0].config["model"] == reference]
    if not labels:
        raise DataError(f"{reference} was not run on {dataset}", f"train it: spike-kit train --dataset {dataset}")
    groups, others = sparsity_groups(activity), _other_forms(runs, main, reference)
    parts = {
        f"Test split; differences to {labels[0]}": _models([*main, *others], groups, labels[0]),
        f"Intervals of the differences to {labels[0]}": _against(main, groups, labels[0]),
        "New items of the test split, NDCG@20": _new_items(main, labels[0]),
        "NDCG@20 by train interactions of the user": _groups(main, groups),
        "Profiles of SPiKE, as its preset for them says": _profiles(runs),
        "Ablations": _ablations(runs, reference),
        "Searches": _searches(dataset),
        "Code": _code(runs),
    }
    return "\n\n".join(f"### {dataset}: {title}\n\n{table}" for title, table in parts.items() if table)


def overview(datasets: Mapping[str, tuple[Sequence[Run], pd.Series]], reference: str = "spike") -> str:
    """NDCG@20 of every model on several data sets, over all users and over the quarter with the fewest interactions.

    Parameters
    ----------
    datasets
        Finished runs and train interactions of every user (both as in `report`), by the name of the data set.
    reference
        Model of which the preset has a row beside its tuned form.

    Returns
    -------
    str
        A heading and a table in Markdown, the best mean over the data sets first; empty where a model was not run.
    """
    columns: dict[str, pd.Series | dict[str, float]] = {}
    of_model: dict[str, list[Run]] = {}
    for name, (runs, activity) in datasets.items():
        main, groups = frames.main_runs(runs), sparsity_groups(activity)
        found: dict[str, list[Run]] = {}
        for run in [*main, *_other_forms(runs, main, reference)]:
            found.setdefault(_form(run), []).append(run)
        columns[name] = {label: frames.per_user_metric(group).mean() for label, group in found.items()}
        for label, group in found.items():
            of_model.setdefault(label, []).extend(group)
        columns[f"{name}, users with {groups.cat.categories[0]}"] = frames.group_means(found, groups).iloc[:, 0]
    table = pd.DataFrame(columns)
    order = table[list(datasets)].mean(axis=1, skipna=False).sort_values(ascending=False).index
    devices = tables.device_column(of_model[label] for label in order)
    text = markdown_table([("model", order), *((name, means(table.loc[order], name)) for name in table), *devices])
    return f"### NDCG@20 on the test split\n\n{text}"


def new_items_report(name: str, splits: Sequence[Sequence[Run]]) -> str:
    """New items of one data set over several item splits: models and texts, then the ablations of SPiKE.

    Parameters
    ----------
    name
        Name of the data set.
    splits
        Finished runs of each item split.

    Raises
    ------
    DataError
        If no run of SPiKE with profiles, as a preset says, ranks the new items.
    """
    forms = [[run for run in runs if _is_form(run)] for runs in splits]
    chosen: dict[str, list[Run]] = {}
    for label, group in (pair for runs in forms for pair in grouped_by_seed(runs).items()):
        if group[0].config["model"] == "spike" and all(
            "profiles" in run.config and "valid_new" in run.metrics for run in group
        ):
            chosen.setdefault(label, []).extend(group)
    if not chosen:
        raise DataError(f"SPiKE was not run on new items of {name}", "train it with the preset new_items")
    best = max(chosen, key=lambda label: np.mean([run.metrics["valid_new"][MONITOR] for run in chosen[label]]))
    usual = chosen[best][0]
    parts = {
        f"new items over {len(splits)} item splits, NDCG@20; differences to {best}": _pooled(forms, best),
        f"ablations of {best} on new items": _pooled(
            [_changed(runs, usual) for runs in splits], tables.ablation_label(usual, usual)
        ),
    }
    return "\n\n".join(f"### {name}: {title}\n\n{table}" for title, table in parts.items() if table)


def _is_form(run: Run) -> bool:
    """Whether a run is of a model as its preset says (or as it was tuned), or of SPiKE without any text."""
    without = run.config["model"] == "spike" and "profiles" not in run.config
    return without or run.config["model_settings"] == tables.usual_settings(run)["model_settings"]


def _changed(runs: Sequence[Run], full: Run) -> dict[str, list[Run]]:
    """Ablations of the full model by name, and itself."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        if all(run.config.get(key) == full.config[key] for key in ("model", "preset")) and (
            run.config.get("profiles", full.config["profiles"]) == full.config["profiles"]
        ):
            found.setdefault(tables.ablation_label(run, full), []).append(run)
    return found


def _pooled(splits: Sequence[frames.Runs], reference: str) -> str:
    """Models over item splits, among new items and among all; empty where there is but the reference."""
    new, everything = (pooled_frame(splits, block, reference) for block in ("test_new", "test_new_all"))
    if len(new) < 2:
        return ""
    everything = everything.set_index("model").loc[new["model"]].reset_index()
    columns: list[tuple[Hashable, Iterable[Any]]] = [("model", new["model"]), ("runs", new["runs"])]
    for title, table in (("among new items", new), ("among all items", everything)):
        columns += [
            (f"{title}, validation", [cell or "-" for cell in plain(table["valid"])]),
            (f"{title}, test", [cell or "-" for cell in means(table, "mean")]),
            ("difference [95 %]", differences(table, interval=True)),
            ("p (Holm)", plain(table["p permutation"], ".2g")),
        ]
    return markdown_table(columns)


def _models(main: Sequence[Run], groups: pd.Series, reference: str) -> str:
    """Every model: quality over all users and the sparsest, differences to the reference, cost (``-``: not known)."""
    (_, everyone), (sparsest, few) = _compared(main, groups, reference).items()
    found = [grouped_by_seed(main)[label] for label in everyone["model"]]
    spent = pd.DataFrame([frames.costs(group) for group in found])
    return markdown_table(
        [
            ("model", everyone["model"]),
            ("seeds", everyone["seeds"]),
            ("Recall@20", plain(frames.seed_means(group, _RECALL).mean() for group in found)),
            ("NDCG@20", means(everyone.rename(columns={"sd": f"{MONITOR} sd"}), MONITOR)),
            ("difference", differences(everyone)),
            (f"NDCG@20, {sparsest}", means(few, MONITOR)),
            ("difference", differences(few)),
            ("training, s", [cell or "-" for cell in plain(spent["seconds"], ".0f")]),
            ("peak, GiB", [cell or "-" for cell in plain(spent["peak_gib"], ".2f")]),
            *tables.about_runs(everyone),
        ]
    )


def _compared(runs: Sequence[Run], groups: pd.Series, reference: str) -> dict[str, pd.DataFrame]:
    """Comparisons with the reference over all users, and over the sparsest, the models in the same order."""
    everyone, first = comparison_table(runs, reference=reference), groups.cat.categories[0]
    sparsest = comparison_table(runs, reference=reference, users=groups.index[groups == first])
    sparsest = sparsest.set_index("model").loc[everyone["model"]].reset_index()
    return {"all users": everyone, f"users with {first}": sparsest}


def _other_forms(runs: Sequence[Run], main: Sequence[Run], reference: str) -> list[Run]:
    """Runs of the reference in other forms than that of ``main``, see `frames.forms`."""
    return [run for group in frames.forms(runs, reference) for run in group if run not in main]


def _form(run: Run) -> str:
    """Model and preset of a run."""
    title, preset = find_model(run.config["model"]).title, run.config["preset"]
    return title if preset == "recommended" else f"{title} ({preset})"


def _against(main: Sequence[Run], groups: pd.Series, reference: str) -> str:
    """Every other model against the reference, over all users and over the sparsest; empty where there is none."""
    compared = _compared(main, groups, reference)
    others = {users: table[table["difference"].notna()] for users, table in compared.items()}
    everyone, *_ = others.values()
    columns: list[tuple[Hashable, Iterable[str]]] = [("model", everyone["model"])]
    for users, table in others.items():
        columns += [(f"{users} [95 %]", differences(table, interval=True))]
        columns += [("p (Holm)", plain(table["p permutation"], ".2g"))]
    shown = [*columns, *tables.about_runs({"device": everyone["device"]})]
    return "" if everyone.empty else markdown_table(shown)


def _new_items(main: Sequence[Run], reference: str) -> str:
    """New items among themselves and among all; ``-``: the model scores them all alike. Empty where none is new."""
    models = grouped_by_seed(main)
    able = {label: group for label, group in models.items() if all("test_new" in run.metrics for run in group)}
    if reference not in able:
        return ""
    compared = [comparison_table(able, split=f"test_{rule}", reference=reference) for rule in ("new", "new_all")]
    order = [*compared[0]["model"], *(label for label in models if label not in able)]
    columns: list[tuple[Hashable, Iterable[str]]] = [("model", order)]
    for title, table in zip(("among new items", "among all items"), compared, strict=True):
        shown = table.rename(columns={"sd": f"{MONITOR} sd"})
        cells = zip(means(shown, MONITOR), differences(table, interval=True), strict=True)
        found = dict(zip(table["model"], cells, strict=True))
        values, gaps = zip(*(found.get(label, ("-", "-")) for label in order), strict=True)
        columns += [(title, values), ("difference [95 %]", gaps)]
    return markdown_table([*columns, *tables.device_column(models[label] for label in order)])


def _groups(main: Sequence[Run], groups: pd.Series) -> str:
    table = frames.group_means(main, groups)
    table = table.loc[table.mean(axis=1).sort_values(ascending=False, kind="stable").index]
    devices = tables.device_column(grouped_by_seed(main)[label] for label in table.index)
    return markdown_table([("model", table.index), *((name, means(table, name)) for name in table), *devices])


def _profiles(runs: Sequence[Run]) -> str:
    """Profile sets and weights of the matching loss; one set with one weight is in the other tables already."""
    frame = profiles_frame(runs, "llm_profiles")
    if len(frame) < 3:
        return ""
    return markdown_table(
        [
            ("profiles", frame["profiles"]),
            ("matching weight", plain(frame["matching weight"], "g")),
            ("seeds", frame["seeds"]),
            ("NDCG@20, validation", means(frame, "valid")),
            ("NDCG@20, test", means(frame, "test")),
            ("difference on test [95 %]", differences(frame, interval=True)),
            ("p (Holm)", plain(frame["p"], ".2g")),
            *tables.about_runs(frame),
        ]
    )


def _ablations(runs: Sequence[Run], reference: str) -> str:
    """The full model, and every ablation against it over the seeds that both have."""
    full, others = frames.full_model(runs, reference)
    frame = ablation_frame(full, others)
    if frame.empty:
        return ""
    values = frames.seed_means(full)
    whole = {
        "model": tables.ablation_label(full[0], full[0]),
        "seeds": len(full),
        "mean": values.mean(),
        "sd": values.std(),
    }
    whole |= {"mark": "", "device": tables.devices([full, others])[0] if frame["device"].any() else ""}
    frame = pd.concat([pd.DataFrame([whole]), frame.sort_values("difference", ascending=False)])
    frame = frame.rename(columns={"sd": "mean sd"}).reset_index(drop=True)
    return markdown_table(
        [
            ("SPiKE", frame["model"]),
            ("seeds", frame["seeds"]),
            ("NDCG@20", means(frame, "mean", tables.PLAIN)),
            ("difference [95 %]", differences(frame, interval=True)),
            ("p (Holm)", plain(frame["p"], ".2g")),
            *tables.about_runs(frame),
        ]
    )


def _searches(dataset: str) -> str:
    """What the searches chose for a data set, by validation alone."""
    rows = []
    for model in MODELS:
        if found := find_tuned(dataset, model):
            chosen = ", ".join(f"{name} {value}" for name, value in {**found.settings, **found.training}.items())
            row = {"model": find_model(model).title, "NDCG@20 on validation": f"{found.valid:.4f}"}
            row |= {"trials": found.trials, "given up": found.pruned, "ended by the limit": found.capped}
            rows.append(row | {"seconds": round(found.seconds), "chosen": chosen or "the preset"})
    return markdown_table(pd.DataFrame(rows).items()) if rows else ""


def _code(runs: Sequence[Run]) -> str:
    """How many runs were made from which commit, by which version of what decides a run."""
    rows = []
    for run in runs:
        commit = run.environment.get("commit") or "none"
        # Before versions were declared, a hash over the source files was part of a run's name.
        declared = ", ".join(f"{part} {number}" for part, number in versions(run.config).items())
        row = {"commit": commit[:12] + (" with changes" if commit.endswith("+") else "")}
        rows.append(row | {"code, sha256": run.config.get("code_sha256", "")[:12] or declared})
    return markdown_table(pd.DataFrame(rows).value_counts().reset_index(name="runs").items())


def tables_of(datasets: Sequence[str] = (), reference: str = "spike", into: Path | None = None) -> dict[str, str]:
    """Tables of data sets in Markdown, by data set; of more than one of known items an `OVERVIEW` stands before them.

    Item splits of one data set, named NAME-new-0, NAME-new-1 and so on, share the tables NAME-new.

    Parameters
    ----------
    datasets
        Data sets; runs of this machine come first, what was not run here is taken from the archive. Default: all that
        the repository's archive holds.
    reference
        Model that all others are compared with.
    into
        Folder that takes in the tables of the archive alone, a Markdown file for each.

    Raises
    ------
    ConfigError
        If ``into`` is a file.
    DataError
        If a data set is neither here nor in the archive.
    StorageError
        If a file cannot be written.
    """
    if into is not None and into.is_file():
        raise ConfigError(f"{into} is a file", "give a folder for the tables")
    found = {name: _known(name, archived=into is not None) for name in datasets or study_datasets()}
    splits: dict[str, list[Sequence[Run]]] = {}
    for name in [name for name in found if _OF_SPLIT.search(name)]:
        splits.setdefault(_OF_SPLIT.sub("-new", name), []).append(found.pop(name)[0])
    known = {name: pair for name, pair in found.items() if not any("item_groups" in run.metrics for run in pair[0])}
    texts = {OVERVIEW: overview(known, reference)} if len(known) > 1 else {}
    texts |= {name: report(name, runs, activity, reference) for name, (runs, activity) in found.items()}
    texts |= {name: new_items_report(name.removesuffix("-new"), parts) for name, parts in splits.items()}
    if into is not None:
        for name, text in texts.items():
            with storage.atomic_file(into / f"{Path(name).name}.md") as temporary:
                temporary.write_text(table_page(name, text), encoding="utf-8")
    return texts


def table_page(name: str, table: str) -> str:
    """The Markdown file of the tables of a data set."""
    return f"# {name}\n\nMade by `spike-kit results --into`; do not edit.\n\n{table}\n"


def _known(name: str, archived: bool) -> tuple[Sequence[Run], pd.Series]:
    """Finished runs of a data set, and the train interactions of its users."""
    if paths.dataset_folder(name) and not archived:
        data = Dataset.open(name)
        return known_runs(data), train_interactions(data)
    if runs := read_archive(name):
        return runs, archived_activity(name)
    raise DataError(f"{name} is neither built here nor in docs/study", f"build it: spike-kit build {name}")


def write_comparison(
    runs: Sequence[Run],
    metric: str = MONITOR,
    split: str = "test",
    quarter: int | None = None,
    reference: str = "",
    folder: Path | None = None,
) -> tuple[str, list[Path]]:
    """Compare runs with a reference and write the table as CSV, Markdown and, for all users, LaTeX.

    Parameters
    ----------
    runs, metric, split, reference
        As in `comparison_table`.
    quarter
        Only this quarter of the users by their train interactions, 1 for those with the fewest; default: all users.
    folder
        Where the files are written; default: figures/.

    Returns
    -------
    tuple
        The comparison in words, and the written files.
    """
    dataset, users, who = runs[0].config["dataset"] if runs else "", None, ""
    if quarter is not None:
        groups = sparsity_groups(Dataset.open(dataset))
        names = groups.cat.categories
        if quarter > len(names):
            raise ConfigError(f"the users of {dataset} are in {len(names)} groups", "ties stay together")
        users = groups.index[groups == names[quarter - 1]]
        who = f", users with {names[quarter - 1]} train interactions"
    table = comparison_table(runs, metric, split, reference, users)
    said = f"{dataset}, {split} split{who}; compared with {table.attrs['reference']}"
    text = f"{said}\n\n{comparison_markdown(table, metric)}\n\n{HYPOTHESES}\n"
    contents = {"csv": table.to_csv(index=False), "md": text}
    if users is None:
        marks = results_table(runs, split)["model"].map(table.set_index("model")["mark"])
        contents["tex"] = tables.latex_table(results_table(runs, split).assign(**{f"{metric} mark": marks}))
    part = f"-quarter{quarter}" if quarter else ""
    files = []
    for ending, content in contents.items():
        files.append((folder or paths.figures_root()) / f"comparison-{dataset}-{split}{part}.{ending}")
        with storage.atomic_file(files[-1]) as temporary:
            temporary.write_text(content, encoding="utf-8")
    return text, files


def ranked_table(
    data: Dataset,
    runs: Sequence[Run],
    split: str,
    metrics: Sequence[str],
    cutoffs: Sequence[int],
    device: torch.device,
) -> str:
    """Results of runs in Markdown, the best first, with what validation says and the seconds of training.

    Cut-offs that were not stored are ranked anew from the stored weights; the order is that of NDCG@20, or of the first
    metric where it is not among them.

    Raises
    ------
    ConfigError
        If a metric is unknown or a cut-off is not positive.
    """
    names = [f"{metric}@{k}" for metric in metrics for k in cutoffs]
    task = ranking_task(data, split, device)
    for run in runs:
        if split not in run.metrics and not find_model(run.config["model"]).scores_new:
            run.metrics[split] = dict.fromkeys(names, float("nan"))
        if any(name not in run.metrics[split] for name in names):
            run.metrics[split].update(evaluate(load_model(run, data, device), task, cutoffs)[0])
    table, groups = results_table(runs, split, names), grouped_by_seed(runs).values()
    table["valid"] = [frames.seed_means(group, MONITOR, "valid").mean() for group in groups]
    table["seconds"] = [frames.costs(group)["seconds"] for group in groups]
    table = table.sort_values(MONITOR if MONITOR in names else names[0], ascending=False, kind="stable")
    shown = [("model", table["model"]), ("seeds", table["seeds"]), *((name, means(table, name)) for name in names)]
    shown += [(f"{MONITOR}, validation", plain(table["valid"])), ("training, s", plain(table["seconds"], ".1f"))]
    return markdown_table([*shown, *tables.about_runs(table)], padded=True)


def lists_markdown(data: Dataset, runs: Sequence[Run], split: str, k: int, device: torch.device) -> str:
    """What the lists of k items are like beyond accuracy, a Markdown table for each aspect, and why cells are empty."""
    models = ((run_label(run), load_model(run, data, device)) for run in runs)
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run_label(run), []).append(run)
    parts = []
    for title, table in measure_lists(data, models, split, k).items():
        numbers = table.set_index("model")
        shown = [("model", numbers.index), *((name, plain(numbers[name])) for name in numbers)]
        shown += tables.device_column(groups[label] for label in numbers.index)
        parts.append(f"{title}, lists of {k}, {split} split\n\n{markdown_table(shown)}\n")
        parts += [f"{name} is not known: {reason}\n" for name, reason in table.attrs["unknown"].items()]
    return "\n".join(parts)
