"""Tables of a data set in Markdown, from run folders or from the archive alone."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pandas as pd
import pytest

from spike_kit.base import paths
from spike_kit.base.errors import DataError
from spike_kit.cli import main
from spike_kit.data.dataset import Dataset
from spike_kit.evaluation.groups import sparsity_groups, train_interactions
from spike_kit.experiments import archive, tuned
from spike_kit.experiments.run import RunConfig, run
from spike_kit.experiments.run_folder import Run
from spike_kit.experiments.search import save_tuned, search
from spike_kit.models import find_preset
from spike_kit.results.frames import group_means, grouped_by_seed, per_user_metric
from spike_kit.results.report import overview, report, table_page
from spike_kit.results.significance import holm, paired_test
from spike_kit.results.tables import run_label
from tests.conftest import at_home


@pytest.fixture(scope="module")
def tuned_knn(built_world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Tuned settings of item-kNN that a search chose for the tiny world, and a run with them."""
    with at_home(tmp_path_factory.mktemp("knn")):
        shutil.copytree(built_world, paths.data_root() / "world")
        knn = RunConfig(model="itemknn", dataset="world")
        save_tuned(knn, search(knn, 1), None)
        return tuned.own_path("world", "itemknn"), run(knn.replace(preset="tuned"), progress=False).path


@pytest.fixture
def finished(runs: dict[str, list[Run]], tuned_knn: tuple[Path, Path]) -> list[Run]:
    """Popularity, tuned item-kNN, and SPiKE with two seeds, one ablation with both and one with the first."""
    settings, knn = tuned_knn
    tuned.own_path("world", "itemknn").parent.mkdir(parents=True)
    shutil.copy(settings, tuned.own_path("world", "itemknn"))
    chosen = {"popularity", "spike", "without matching", "low rho"}
    for name, group in runs.items():
        for one in group if name not in chosen else []:
            shutil.rmtree(one.path)
    shutil.copytree(knn, paths.runs_root() / knn.name)
    spike = [one for name in ("spike", "without matching", "low rho") for one in runs[name]]
    return [*runs["popularity"], Run(paths.runs_root() / knn.name), *spike]


def rows_of(text: str, title: str) -> list[list[str]]:
    """Cells of the table under a heading."""
    part = next(part for part in text.split("### ")[1:] if title in part.splitlines()[0])
    lines = [line for line in part.splitlines() if line.startswith("| ")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_tables_hold_what_the_runs_hold(data: Dataset, finished: list[Run]) -> None:
    activity = pd.Series(range(10, 10 + len(data.users)))
    text = report("world", finished, activity)
    spike = per_user_metric(finished[2:4])
    models = {row[0]: row for row in rows_of(text, "Test split")}
    (label,) = (name for name in models if name.startswith("SPiKE"))
    assert set(models) == {label, "Popularity", "Item-kNN (tuned)"}
    assert models[label][1] == "2"
    assert f"{spike.mean():.4f}" in models[label][3]
    assert models[label][4] == ""
    difference = (per_user_metric(finished[:1]) - spike).mean()
    assert models["Popularity"][4].startswith(f"{difference:+.4f}")
    groups = sparsity_groups(activity)
    assert len(groups.cat.categories) == 4
    few = spike[spike.index.isin(groups.index[groups == groups.cat.categories[0]])].mean()
    assert models[label][5].strip("*") == f"{few:.4f}"

    by_group = {row[0]: row[1:] for row in rows_of(text, "train interactions")}
    means = group_means(finished[:1], groups)["Popularity"]
    assert [cell.strip("*") for cell in by_group["Popularity"]] == [f"{value:.4f}" for value in means]
    assert text.count("**") == 2 * (2 + len(groups.cat.categories))

    ablations = {row[0]: row[1:] for row in rows_of(text, "Ablations")}
    assert next(iter(ablations)) == "full model"
    assert {name: row[0] for name, row in ablations.items()} == {
        "full model": "2",
        "w/o matching": "2",
        "rho=0.25": "1",
    }
    tests = (
        paired_test(per_user_metric(finished[4:6]), spike),
        paired_test(*map(per_user_metric, ([finished[6]], [finished[2]]))),
    )
    adjusted = holm([test["p permutation"] for test in tests])
    for name, test, p in zip(("w/o matching", "rho=0.25"), tests, adjusted, strict=True):
        assert ablations[name][2].startswith(f"{test['difference']:+.4f} [{test['low']:+.4f}, {test['high']:+.4f}]")
        assert ablations[name][3] == f"{p:.2g}"
    (searched,) = rows_of(text, "Searches")
    assert (searched[0], searched[2]) == ("Item-kNN", "15")


def test_the_tables_say_what_code_they_come_from(data: Dataset, finished: list[Run]) -> None:
    old = finished[0]
    old.__dict__["environment"] = finished[0].environment | {"commit": f"{'ab' * 20}+", "date": "2001-02-03"}
    older = finished[1]
    older.__dict__["environment"] = old.environment | {"date": "2001-01-01"}
    for one in finished[2:]:
        one.__dict__["environment"] = one.environment | {"commit": None, "date": ""}
    code = "model 1, graph 1, training 1, protocol 1"
    assert rows_of(report("world", finished, train_interactions(data)), "Code") == [
        ["none", code, str(len(finished) - 2), ""],
        ["abababababab with changes", code, "2", "2001-01-01 to 2001-02-03"],
    ]


def test_beside_a_tuned_reference_stands_its_preset(finished: list[Run], data: Dataset) -> None:
    activity = train_interactions(data)
    full = [dataclasses.replace(one, path=one.path.with_name(f"tuned-{one.path.name}")) for one in finished[2:4]]
    for one, source in zip(full, finished[2:4], strict=True):
        base = {name: source.config[name] for name in ("model_settings", "training_settings")}
        one.__dict__["config"] = source.config | {"preset": "tuned", "base": base}
        one.__dict__.update({part: getattr(source, part) for part in ("per_user", "metrics", "environment")})
    preset = find_preset("spike").training.model_dump(mode="json")
    usual = dataclasses.replace(finished[2], path=finished[2].path.with_name("usual"))
    usual.__dict__["config"] = finished[2].config | {"training_settings": preset}
    usual.__dict__.update({part: getattr(finished[2], part) for part in ("per_user", "metrics", "environment")})
    models = {row[0]: row for row in rows_of(report("world", [*finished[:2], *full, usual], activity), "Test split")}
    assert set(models) == {"Popularity", "Item-kNN (tuned)", "SPiKE (tuned)", "SPiKE"}
    assert models["SPiKE (tuned)"][4] == ""
    against = rows_of(
        report("world", [*finished[:2], *full, usual], activity), "Differences to SPiKE as its preset says"
    )
    assert {row[0] for row in against} == {"Popularity", "Item-kNN (tuned)"}
    for row in against:
        (other,) = (one for one in finished[:2] if run_label(one) == row[0])
        test = paired_test(per_user_metric([other]), per_user_metric([usual]))
        assert row[1].startswith(f"{test['difference']:+.4f} [{test['low']:+.4f}, {test['high']:+.4f}]")
    groups = rows_of(report("world", [*finished[:2], *full, usual], activity), "train interactions")
    assert {row[0] for row in groups} == {"Popularity", "Item-kNN (tuned)", "SPiKE (tuned)"}


def test_the_overview_sets_models_beside_each_other_over_data_sets(data: Dataset, finished: list[Run]) -> None:
    activity = train_interactions(data)
    text = overview({"one": (finished, activity), "two": (finished[1:], activity.iloc[::-1])})
    rows = {row[0]: row[1:] for row in rows_of(text, "NDCG@20")}
    assert list(rows)[-1] == "Popularity"
    assert rows["Popularity"][2:] == ["", ""]
    (label,) = (name for name in rows if name.startswith("SPiKE"))
    assert rows[label][:2] == rows[label][2:]
    tables = report("one", finished, activity)
    for name, seeds in ((label, "2"), ("Item-kNN (tuned)", "1")):
        (line,) = (row for row in rows_of(tables, "Test split") if row[0] == name)
        assert line[1] == seeds
        assert [cell.strip("*") for cell in rows[name][:2]] == [
            line[3].strip("*").split("*")[0].split(" ")[0],
            line[5].strip("*"),
        ]


def test_the_command_needs_nothing_but_the_archive(
    data: Dataset, finished: list[Run], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["results", "world"]) == 0
    here = capsys.readouterr().out
    assert len(grouped_by_seed(finished)) == 5
    archive.write_archive(finished, data)
    shutil.rmtree(paths.runs_root())
    shutil.rmtree(data.path)
    assert main(["results", "world"]) == 0
    there = capsys.readouterr().out
    assert [line.split("|")[:4] for line in there.splitlines()] == [line.split("|")[:4] for line in here.splitlines()]
    assert main(["results", "nowhere"]) == 1
    assert "neither built here nor in docs/study" in capsys.readouterr().err


def test_tables_of_the_archive_go_to_a_folder(
    data: Dataset, finished: list[Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive.write_archive(finished, data)
    folder = tmp_path / "tables"
    for _ in range(2):
        assert main(["results", "world", "--into", str(folder)]) == 0
        tables = report("world", archive.read_archive("world"), archive.archived_activity("world"))
        assert (folder / "world.md").read_text() == table_page("world", tables)
    assert [file.name for file in folder.iterdir()] == ["world.md"]
    assert capsys.readouterr().out == ""
    assert main(["results", "world", "--into", str(folder / "world.md")]) == 1
    assert "world.md is a file" in capsys.readouterr().err


def test_without_the_reference_there_is_no_table(data: Dataset, finished: list[Run]) -> None:
    with pytest.raises(DataError, match="spike was not run on world"):
        report("world", finished[:2], train_interactions(data))
