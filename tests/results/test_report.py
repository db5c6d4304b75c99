"""Tables of a data set in Markdown, from run folders or from the archive alone."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from spike_kit.base import paths
from spike_kit.base.errors import DataError
from spike_kit.cli import main
from spike_kit.data.dataset import Dataset
from spike_kit.evaluation.groups import sparsity_groups, train_interactions
from spike_kit.experiments import archive
from spike_kit.experiments.run import Run
from spike_kit.results.frames import group_means, per_user_metric
from spike_kit.results.report import ranked_table, report, table_page
from spike_kit.results.significance import holm, paired_test


@pytest.fixture
def finished(runs: dict[str, list[Run]]) -> list[Run]:
    """Popularity, and SPiKE with two seeds, one ablation with both and one with the first."""
    kept = [one for name in ("popularity", "spike", "without matching", "low rho") for one in runs[name]]
    for one in (one for group in runs.values() for one in group if one not in kept):
        shutil.rmtree(one.path)
    return kept


def rows_of(text: str, title: str) -> list[list[str]]:
    """Cells of the table under a heading."""
    part = next(part for part in text.split("### ")[1:] if title in part.splitlines()[0])
    lines = [line for line in part.splitlines() if line.startswith("| ")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.parametrize(
    ("metrics", "by", "split"), [(["recall", "ndcg"], "ndcg@20", "test"), (["mrr"], "mrr@20", "valid")]
)
def test_the_best_run_comes_first_with_validation_and_seconds(
    data: Dataset, runs: dict[str, list[Run]], metrics: list[str], by: str, split: str
) -> None:
    every = [one for name in ("lightgcn", "popularity", "spike", "bprmf") for one in runs[name]]
    table = ranked_table(data, every, split, metrics, [20], torch.device("cpu"))
    header, _, *lines = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines())
    assert header == [
        "model",
        "seeds",
        *(f"{name}@20" for name in metrics),
        "ndcg@20, validation",
        "training, s",
        "remarks",
    ]
    rows = [dict(zip(header, line, strict=True)) for line in lines]
    values = [float(row[by].replace("*", "").split()[0]) for row in rows]
    assert values == sorted(values, reverse=True)
    found = {row["model"]: row for row in rows}
    for title, name in (("Popularity", "popularity"), ("LightGCN epochs=12", "lightgcn")):
        group = runs[name]
        assert found[title]["ndcg@20, validation"] == f"{np.mean([one.valid['ndcg@20'] for one in group]):.4f}"
        assert found[title]["training, s"] == f"{np.mean([one.metrics['seconds'] for one in group]):.1f}"


def test_the_tables_hold_what_the_runs_hold(data: Dataset, finished: list[Run]) -> None:
    activity = pd.Series(range(10, 10 + len(data.users)))
    text = report("world", finished, activity)
    spike = per_user_metric(finished[1:3])
    models = {row[0]: row for row in rows_of(text, "Test split")}
    (label,) = (name for name in models if name.startswith("SPiKE"))
    assert set(models) == {label, "Popularity"}
    assert models[label][1] == "2"
    assert f"{spike.mean():.4f}" in models[label][3]
    assert models[label][4] == ""
    difference = (per_user_metric(finished[:1]) - spike).mean()
    assert models["Popularity"][4].startswith(f"{difference:+.4f}")
    groups = sparsity_groups(activity)
    few = spike[spike.index.isin(groups.index[groups == groups.cat.categories[0]])].mean()
    assert models[label][5].strip("*") == f"{few:.4f}"
    by_group = {row[0]: row[1:] for row in rows_of(text, "train interactions")}
    means = group_means(finished[:1], groups).loc["Popularity"]
    assert [cell.strip("*") for cell in by_group["Popularity"]] == [f"{value:.4f}" for value in means]
    assert text.count("**") == 2 * (2 + len(groups.cat.categories))

    ablations = {row[0]: row[1:] for row in rows_of(text, "Ablations")}
    assert {name: row[0] for name, row in ablations.items()} == {
        "full model": "2",
        "w/o matching": "2",
        "rho=0.25": "1",
    }
    tests = (
        paired_test(per_user_metric(finished[3:5]), spike),
        paired_test(*map(per_user_metric, ([finished[5]], [finished[1]]))),
    )
    adjusted = holm([test["p permutation"] for test in tests])
    for name, test, p in zip(("w/o matching", "rho=0.25"), tests, adjusted, strict=True):
        assert ablations[name][2].startswith(f"{test['difference']:+.4f} [{test['low']:+.4f}, {test['high']:+.4f}]")
        assert ablations[name][3] == f"{p:.2g}"
    with pytest.raises(DataError, match="spike was not run on world"):
        report("world", finished[:1], activity)


def test_the_tables_say_what_code_they_come_from(data: Dataset, finished: list[Run]) -> None:
    for one, commit in zip(finished, ["ab" * 20 + "+"] * 2 + [None] * 4, strict=True):
        vars(one)["environment"] = one.environment | {"commit": commit}
    for one in finished[:1]:
        vars(one)["config"] = one.config | {"versions": finished[1].config["versions"]}
    code = "model 2, graph 1, training 1, protocol 1"
    assert rows_of(report("world", finished, train_interactions(data)), "Code") == [
        ["none", code, "4"],
        ["abababababab with changes", code, "2"],
    ]


def test_the_command_needs_nothing_but_the_archive(
    data: Dataset, finished: list[Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def printed() -> list[list[str]]:
        assert main(["results", "world"]) == 0
        return [line.split("|")[:4] for line in capsys.readouterr().out.splitlines()]

    here = printed()
    archive.write_archive(finished, data)
    shutil.rmtree(paths.runs_root())
    shutil.rmtree(data.path)
    assert printed() == here
    folder = tmp_path / "tables"
    for _ in range(2):
        assert main(["results", "world", "--into", str(folder)]) == 0
        tables = report("world", archive.read_archive("world"), archive.archived_activity("world"))
        assert (folder / "world.md").read_text() == table_page("world", tables)
    assert [file.name for file in folder.iterdir()] == ["world.md"]
    assert capsys.readouterr().out == ""
    for arguments, message in (
        (["world", "--into", str(folder / "world.md")], "world.md is a file"),
        (["nowhere"], "neither built here nor in docs/study"),
    ):
        assert main(["results", *arguments]) == 1
        assert message in capsys.readouterr().err
