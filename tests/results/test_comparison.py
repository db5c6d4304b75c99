"""Models compared with one of them: tests over users and seeds, and what is printed and written of it."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from spike_kit.base.errors import ConfigError, DataError
from spike_kit.cli import main
from spike_kit.data.dataset import Dataset
from spike_kit.experiments.run import Run
from spike_kit.results.comparison import comparison_markdown, comparison_table
from spike_kit.results.frames import per_user_metric
from spike_kit.results.significance import holm, paired_test
from spike_kit.results.tables import run_label


@pytest.fixture
def models(runs: dict[str, list[Run]]) -> dict[str, list[Run]]:
    """LightGCN and BPR-MF with two seeds, popularity and one form of SPiKE with one, by their labels."""
    return {run_label(runs[name][0]): runs[name] for name in ("lightgcn", "bprmf", "popularity", "low rho")}


@pytest.fixture
def finished(models: dict[str, list[Run]]) -> list[Run]:
    return [one for group in models.values() for one in group]


def test_every_model_is_tested_against_the_best_on_validation(
    models: dict[str, list[Run]], finished: list[Run]
) -> None:
    table = comparison_table(finished)
    best = max(models, key=lambda label: np.mean([one.metrics["valid"]["ndcg@20"] for one in models[label]]))
    assert table.attrs["reference"] == best
    assert table["ndcg@20"].is_monotonic_decreasing
    rows = table.set_index("model")
    assert rows["seeds"].to_dict() == {label: len(group) for label, group in models.items()}
    assert pd.isna(rows["difference"][best])
    assert rows["mark"][best] == ""
    others = [label for label in models if label != best]
    tests = pd.DataFrame([paired_test(*(per_user_metric(models[label]) for label in (one, best))) for one in others])
    assert rows.loc[others, "difference"].tolist() == pytest.approx(tests["difference"].tolist())
    for column in ("p t", "p wilcoxon", "p permutation"):
        assert rows.loc[others, column].tolist() == pytest.approx(holm(tests[column]).tolist())
    text = comparison_markdown(table, "ndcg@20").splitlines()
    assert len(text) == 2 + len(table)
    assert "**" in text[2]
    assert sum("reference" in line for line in text) == 1


def test_seeds_are_compared_where_both_have_them(models: dict[str, list[Run]], finished: list[Run]) -> None:
    table = comparison_table(finished, reference="LightGCN epochs=12").set_index("model").to_dict("index")
    assert table["Popularity"]["shared seeds"] == 1
    assert pd.isna(table["Popularity"]["p seeds"])
    ours, theirs = ([one.test["ndcg@20"] for one in group] for label, group in models.items() if len(group) == 2)
    found = table["BPR-MF epochs=2, eval_every=1"]
    assert found["shared seeds"] == 2
    assert found["p seeds"] == pytest.approx(stats.ttest_rel(theirs, ours).pvalue)
    assert found["seed difference"] == pytest.approx(np.mean(theirs) - np.mean(ours))


def test_what_cannot_be_compared_is_said(finished: list[Run]) -> None:
    other = Run(finished[0].path)
    vars(other)["config"] = {**finished[0].config, "dataset": "elsewhere"}
    for given, metric, reference, message in (
        ([], "ndcg@20", "", "no run to compare"),
        (finished, "ndcg@20", "nope", "no model 'nope'"),
        (finished, "ndcg@7", "", "no metric named 'ndcg@7'"),
        ([*finished, other], "ndcg@20", "", "cannot be compared"),
    ):
        with pytest.raises(ConfigError, match=message):
            comparison_table(given, metric, reference=reference)


def test_a_group_of_users_is_compared_alone(
    data: Dataset, models: dict[str, list[Run]], finished: list[Run], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    users = pd.Index(range(0, len(data.users), 3))
    table = comparison_table(finished, reference="Popularity", users=users)
    assert set(table["users"].dropna()) == {len(users)}
    for row in table.to_dict("records"):
        assert row["ndcg@20"] == pytest.approx(per_user_metric(models[row["model"]]).loc[users].mean())
    assert main(["compare", "world", "--quarter", "1"]) == 0
    text = (home / "figures" / "comparison-world-test-quarter1.md").read_text()
    assert text.startswith("world, test split, users with 10 train interactions; compared with ")
    assert not (home / "figures" / "comparison-world-test-quarter1.tex").exists()
    assert main(["compare", "world", "--quarter", "2"]) == 1
    assert "the users of world are in 1 groups" in capsys.readouterr().err
    with pytest.raises(DataError, match="none of these users"):
        comparison_table(finished, users=pd.Index([10_000]))


def test_the_command_prints_and_writes(
    models: dict[str, list[Run]], finished: list[Run], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", "world"]) == 0
    said = capsys.readouterr().out
    assert "nan" not in said.lower()
    assert "two-sided" in said
    folder = home / "figures"
    table = pd.read_csv(folder / "comparison-world-test.csv")
    assert set(models) < set(table["model"])
    assert (folder / "comparison-world-test.md").read_text().startswith("world, test split; compared with ")
    latex = (folder / "comparison-world-test.tex").read_text()
    assert r"\textbf{" in latex
    assert latex.count(r"\textsuperscript{*") == table["mark"].notna().sum() > 0
    names = [done.path.name for done in finished[:3]]
    assert main(["compare", *names, "--metric", "recall@20", "--folder", str(home / "paper")]) == 0
    assert len(pd.read_csv(home / "paper" / "comparison-world-test.csv")) == 2
    assert main(["compare", names[0], "nowhere"]) == 1
    assert "there is no finished run 'nowhere'" in capsys.readouterr().err
