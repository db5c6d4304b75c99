"""Models compared with one of them: tests over users and seeds, and what is printed and written of it."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from scipy import stats

from spike_kit.base.errors import ConfigError, DataError
from spike_kit.cli import main
from spike_kit.data.dataset import Dataset
from spike_kit.experiments.run_folder import Run
from spike_kit.results.comparison import comparison_markdown, comparison_table
from spike_kit.results.frames import per_user_metric
from spike_kit.results.significance import holm, paired_test
from spike_kit.results.tables import run_label


@pytest.fixture
def finished(runs: dict[str, list[Run]]) -> list[Run]:
    """LightGCN and BPR-MF with two seeds, popularity and one form of SPiKE with one."""
    return [one for name in ("lightgcn", "bprmf", "popularity", "low rho") for one in runs[name]]


def test_every_model_is_tested_against_the_best_on_validation(finished: list[Run]) -> None:
    table = comparison_table(finished)
    reference = table.attrs["reference"]
    means = {}
    for done in finished:
        means.setdefault(done.config["model"], []).append(done.metrics["valid"]["ndcg@20"])
    best = max(means, key=lambda model: sum(means[model]) / len(means[model]))
    assert reference.lower().startswith(best)
    assert table["ndcg@20"].is_monotonic_decreasing
    assert table["seeds"].sum() == len(finished)
    alone = table[table["model"] == reference].iloc[0]
    assert pd.isna(alone["difference"])
    assert alone["mark"] == ""
    of_reference = [done for done in finished if done.config["model"] == best]
    expected = {}
    for model in means:
        if model != best:
            own = [done for done in finished if done.config["model"] == model]
            expected[model] = paired_test(per_user_metric(own), per_user_metric(of_reference))
    others = table[table["model"] != reference]
    assert len(others) == len(expected) == 3
    for column, field in (("p t", "p_t"), ("p permutation", "p_permutation")):
        adjusted = sorted(holm([getattr(test, field) for test in expected.values()]))
        assert sorted(others[column]) == pytest.approx(adjusted)
    assert sorted(others["difference"]) == pytest.approx(sorted(test.difference for test in expected.values()))


def test_seeds_are_compared_where_both_have_them(finished: list[Run]) -> None:
    rows = comparison_table(finished, reference="LightGCN epochs=12").to_dict("records")
    table = {row["model"]: row for row in rows}
    assert table["Popularity"]["shared seeds"] == 1
    assert pd.isna(table["Popularity"]["p seeds"])
    by_model = {
        model: [done.metrics["test"]["ndcg@20"] for done in finished if done.config["model"] == model]
        for model in ("bprmf", "lightgcn")
    }
    found = table["BPR-MF epochs=2, eval_every=1"]
    expected = stats.ttest_rel(by_model["bprmf"], by_model["lightgcn"])
    assert found["shared seeds"] == 2
    assert found["p seeds"] == pytest.approx(expected.pvalue)
    assert found["seed difference"] == pytest.approx(sum(by_model["bprmf"]) / 2 - sum(by_model["lightgcn"]) / 2)


def test_the_text_shows_the_best_the_second_and_the_marks(finished: list[Run]) -> None:
    table = comparison_table(finished)
    text = comparison_markdown(table, "ndcg@20").splitlines()
    assert len(text) == 2 + len(table)
    assert "**" in text[2]
    assert "<u>" in text[3]
    assert sum("reference" in line for line in text) == 1
    assert all(line.count(" | ") == text[0].count(" | ") for line in text[2:])
    with pytest.raises(DataError, match="nothing to show"):
        comparison_markdown(table.head(0), "ndcg@20")


def test_what_cannot_be_compared_is_said(finished: list[Run]) -> None:
    with pytest.raises(ConfigError, match="no run to compare"):
        comparison_table([])
    with pytest.raises(ConfigError, match="no model 'nope'"):
        comparison_table(finished, reference="nope")
    with pytest.raises(ConfigError, match="no metric 'ndcg@7'"):
        comparison_table(finished, "ndcg@7")
    other = Run(finished[0].path)
    vars(other)["config"] = {**finished[0].config, "dataset": "elsewhere"}
    with pytest.raises(ConfigError, match="cannot be compared"):
        comparison_table([*finished, other])


def test_a_group_of_users_is_compared_alone(
    data: Dataset, finished: list[Run], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    users = pd.Index(range(0, len(data.users), 3))
    table = comparison_table(finished, reference="Popularity", users=users)
    assert set(table["users"].dropna()) == {len(users)}
    models = {"LightGCN": "lightgcn", "BPR-MF": "bprmf", "SPiKE": "spike", "Popularity": "popularity"}
    for row in table.to_dict("records"):
        model = models[row["model"].split()[0]]
        own = per_user_metric([one for one in finished if one.config["model"] == model]).loc[users]
        assert row["ndcg@20"] == pytest.approx(own.mean())
    assert main(["compare", "world", "--quarter", "1"]) == 0
    text = (home / "figures" / "comparison-world-test-quarter1.md").read_text()
    assert text.startswith("world, test split, users with 10 train interactions; compared with ")
    assert not (home / "figures" / "comparison-world-test-quarter1.tex").exists()
    assert main(["compare", "world", "--quarter", "2"]) == 1
    assert "the users of world are in 1 groups" in capsys.readouterr().err
    with pytest.raises(DataError, match="none of these users"):
        comparison_table(finished, users=pd.Index([10_000]))


def test_the_command_prints_and_writes(finished: list[Run], home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "world"]) == 0
    said = capsys.readouterr().out
    assert "null" not in said.lower()
    assert "two-sided" in said
    folder = home / "figures"
    table = pd.read_csv(folder / "comparison-world-test.csv")
    assert {run_label(one) for one in finished} < set(table["model"])
    assert (folder / "comparison-world-test.md").read_text().startswith("world, test split; compared with ")
    latex = (folder / "comparison-world-test.tex").read_text()
    assert r"\textbf{" in latex
    if (table["mark"].fillna("") != "").any():
        assert r"\textsuperscript{*" in latex
    names = [done.path.name for done in finished[:3]]
    assert main(["compare", *names, "--metric", "recall@20", "--folder", str(home / "paper")]) == 0
    assert len(pd.read_csv(home / "paper" / "comparison-world-test.csv")) == 2
    assert main(["compare", names[0], "nowhere"]) == 1
    assert "there is no finished run 'nowhere'" in capsys.readouterr().err
