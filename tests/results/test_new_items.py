"""Results of new items: tables that say which model has none, and figures of what a text is worth."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import spike_kit as sk
from spike_kit.base.errors import ConfigError, DataError
from spike_kit.data.dataset import Dataset
from spike_kit.evaluation.groups import train_interactions
from spike_kit.experiments.archive import read_archive, write_archive
from spike_kit.experiments.run import Run, RunConfig, run
from spike_kit.figures import gallery
from spike_kit.figures.style import MARKERS
from spike_kit.results import frames
from spike_kit.results.comparison import pooled_frame
from spike_kit.results.report import new_items_report, ranked_table, report, tables_of
from spike_kit.results.tables import run_label

SHORT = {"epochs": 2, "eval_every": 1}
NOTHING = {"inject": False, "remove": False, "matching": "off"}


@pytest.fixture
def finished(new_data: Dataset) -> list[Run]:
    configs = [RunConfig(model="popularity", dataset=new_data.name)]
    configs += [RunConfig(dataset=new_data.name, preset="new_items", seed=seed, training=SHORT) for seed in (0, 1)]
    configs.append(RunConfig(dataset=new_data.name, preset="new_items", training=SHORT, settings=NOTHING))
    return [run(config, progress=False) for config in configs]


def test_a_model_that_scores_no_new_item_has_no_number(new_data: Dataset, finished: list[Run]) -> None:
    table = sk.table(finished, "valid_new", ["ndcg@20"])
    assert np.isnan(table["ndcg@20"][0])
    assert table["ndcg@20"][1] == pytest.approx(np.mean([one.metrics["valid_new"]["ndcg@20"] for one in finished[1:3]]))
    assert sk.evaluate(finished[1], "test_new_all", (20,))["ndcg@20"] == pytest.approx(
        finished[1].metrics["test_new_all"]["ndcg@20"]
    )
    world = report(new_data.name, finished[:3], train_interactions(new_data))
    part = world.split("New items of the test split")[1].split("###")[0]
    rows = {cells[1].strip(): cells[2:] for line in part.splitlines()[4:] if len(cells := line.split("|")) > 2}
    assert [cell.strip() for cell in rows["Popularity"][:4]] == ["-"] * 4
    label = run_label(finished[1])
    expected = np.mean([one.metrics["test_new_all"]["ndcg@20"] for one in finished[1:3]])
    assert f"{expected:.4f}" in rows[label][2]


def test_a_model_without_a_number_comes_last(new_data: Dataset, finished: list[Run]) -> None:
    table = ranked_table(new_data, finished[:2], "test_new", ["ndcg"], [3], torch.device("cpu"))
    last = [cell.strip() for cell in table.splitlines()[-1].strip("|").split("|")]
    assert last[:3] == ["Popularity", "1", ""]


def test_a_data_set_of_known_items_has_no_such_results(runs: dict[str, list[Run]]) -> None:
    with pytest.raises(ConfigError, match="valid_new"):
        sk.table(runs["spike"], "valid_new")
    with pytest.raises(ConfigError, match="test_new"):
        sk.evaluate(runs["spike"][0], "test_new")


def test_the_worth_of_a_text_is_that_of_the_groups_of_the_runs(new_data: Dataset, finished: list[Run]) -> None:
    frame = frames.worth_frame(finished)
    assert set(frame["model"]) == {"template", "w/o any text"}
    row = frame.query("candidates == 'all' and model == 'template' and group == '0'").to_dict("records")[0]
    values = [one.metrics["item_groups"]["valid"]["0"]["all"] for one in finished[1:3]]
    assert row["mean"] == pytest.approx(np.mean(values))
    assert row["datasets"] == 1
    figure = gallery.draw(new_data, "worth", finished, "valid")
    assert [axes.get_title() for axes in figure.axes] == ["candidates: items of the group", "candidates: all items"]
    assert [label.get_text() for label in figure.axes[1].get_xticklabels()] == ["0", "11+"]
    heights = [line.get_ydata() for line in figure.axes[1].get_lines() if line.get_marker() in MARKERS]
    assert [float(np.asarray(values)[0]) for values in heights] == pytest.approx(
        frame.query("candidates == 'all' and group == '0'")["mean"].tolist()
    )


def test_bands_are_over_data_sets_not_seeds(finished: list[Run]) -> None:
    other = Run(finished[1].path)
    vars(other)["config"] = finished[1].config | {"dataset": "another split"}
    vars(other)["metrics"] = {
        **finished[1].metrics,
        "item_groups": {"valid": {"0": {"items": 1, "users": 3, "among": 0.5, "all": 0.25}}},
    }
    frame = frames.worth_frame([*finished[1:3], other])
    mean = np.mean([one.metrics["item_groups"]["valid"]["0"]["all"] for one in finished[1:3]])
    row = frame.query("candidates == 'all' and group == '0'").to_dict("records")[0]
    assert row["datasets"] == 2
    assert row["mean"] == pytest.approx((mean + 0.25) / 2)
    assert row["high"] - row["mean"] == pytest.approx(abs(mean - 0.25) / 2**0.5)


def test_a_group_whose_items_all_fit_into_a_list_is_not_ranked_among_itself(finished: list[Run]) -> None:
    frame = frames.worth_frame(finished)
    assert set(frame.query("candidates == 'among'")["group"]) == {"11+"}
    assert set(frame.query("candidates == 'all'")["group"]) == {"0", "11+"}


def test_tasks_stand_side_by_side(new_data: Dataset, finished: list[Run], runs: dict[str, list[Run]]) -> None:
    usual = run(RunConfig(dataset="world"), progress=False)
    frame = frames.tasks_frame([*finished, usual])
    values = frame.set_index(["group", "model"])["mean"]
    assert values["known", "template"] == pytest.approx(usual.test["ndcg@20"])
    assert values["new items", "w/o any text"] == pytest.approx(finished[3].metrics["test_new"]["ndcg@20"])
    figure = gallery.draw(new_data, "tasks", [*finished, usual])
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["known", "new items"]
    with pytest.raises(DataError, match="not of several tasks"):
        gallery.draw(new_data, "tasks", runs["spike"])


def test_labels_name_settings_that_were_switched_off(new_data: Dataset) -> None:
    done = run(RunConfig(dataset=new_data.name, preset="new_items", training=SHORT, settings={"id_dropout": 0.0}))
    assert "id_dropout=0.0" in run_label(done)


def test_the_archive_keeps_the_blocks_of_new_items(new_data: Dataset, finished: list[Run], tmp_path: Path) -> None:
    write_archive(finished, new_data, tmp_path)
    kept = read_archive(new_data.name, tmp_path)
    pd.testing.assert_frame_equal(sk.table(kept, "test_new_all"), sk.table(finished, "test_new_all"))
    compared = [sk.compare(group[1:3] + group[3:], split="test_new") for group in (kept, finished)]
    columns = ["model", "seeds", "ndcg@20", "difference"]
    pd.testing.assert_frame_equal(compared[0][columns], compared[1][columns], atol=1e-5)
    values = kept[1].per_user
    assert set(values["split"]) == {"test_new", "test_new_all"}
    assert kept[0].per_user.empty


def test_item_splits_are_pooled_by_user(finished: list[Run]) -> None:
    usual, seed_1, without = finished[1:]
    other = Run(usual.path)
    twice = usual.per_user["ndcg@20"].where(usual.per_user["split"] != "test_new", 2 * usual.per_user["ndcg@20"])
    blocks = {
        name: {**usual.metrics[name], "ndcg@20": factor * usual.metrics[name]["ndcg@20"]}
        for name, factor in (("test_new", 2), ("valid_new", 3))
    }
    vars(other)["per_user"] = usual.per_user.assign(**{"ndcg@20": twice})
    vars(other)["metrics"] = {**usual.metrics, **blocks}
    splits = [finished, [finished[0], other, without]]
    label, without_text = run_label(usual), run_label(without)
    frame = pooled_frame(splits, "test_new", without_text).set_index("model")
    numbers = [one.metrics["test_new"]["ndcg@20"] for one in (usual, seed_1)]
    assert frame.loc[label, "mean"] == pytest.approx((np.mean(numbers) + 2 * numbers[0]) / 2)
    assert frame.loc[label, "runs"] == 3
    assert frame["mean"].isna()["Popularity"]
    assert frame.index[-1] == "Popularity"

    def of_users(run: Run) -> pd.Series:
        return run.per_user[run.per_user["split"] == "test_new"].set_index("user")["ndcg@20"]

    first = (of_users(usual) + of_users(seed_1)) / 2
    expected = (first + 2 * of_users(usual)) / 2 - of_users(without)
    assert frame.loc[label, "difference"] == pytest.approx(expected.mean())
    with pytest.raises(ConfigError, match="no model that was run on every split named 'nobody'"):
        pooled_frame(splits, "test_new", "nobody")


def changed_text(given: list[Run], profiles: str, valid: float) -> list[Run]:
    """Copies of runs as if they had read other profiles and reached another mean on validation."""
    copies = [Run(one.path) for one in given]
    for one, copy in zip(given, copies, strict=True):
        vars(copy)["config"] = {**one.config, "profiles": profiles}
        vars(copy)["metrics"] = {**one.metrics, "valid_new": {**one.metrics["valid_new"], "ndcg@20": valid}}
    return copies


def test_splits_share_a_page_with_the_form_that_validation_chooses(
    finished: list[Run], new_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropped = RunConfig(
        dataset=new_data.name, preset="new_items", training=SHORT, settings={"user_profiles": False, "rho": 0.25}
    )
    every = [*finished, run(dropped, progress=False)]
    pages = {f"world-new-{n}": (every, pd.Series()) for n in range(2)}
    monkeypatch.setattr("spike_kit.results.report._known", lambda name, archived: pages[name])  # noqa: ARG005
    (page,) = tables_of(list(pages)).values()
    forms, ablations = page.split("### ")[1:]
    assert forms.startswith("world: new items over 2 item splits")
    assert forms.splitlines()[0].endswith(f"differences to {run_label(finished[1])}")
    assert "rho" not in forms
    rows = [line.split("|")[1].strip() for line in ablations.splitlines()[4:] if line]
    assert set(rows) == {"full model", "w/o any text", "rho=0.25, user_profiles=False"}
    assert forms.count("| Popularity | 2 | - | - |") == 1
    poor = changed_text(finished[1:3], "poor", 0.1), changed_text(finished[1:3], "poor", 0.4)
    good = changed_text(finished[1:3], "good", 0.3), changed_text(finished[1:3], "good", 0.3)
    page = new_items_report("two", [[*good[0], *poor[0]], [*good[1], *poor[1]]])
    assert "differences to SPiKE (new_items) epochs=2, eval_every=1, profiles=good\n" in page
    with pytest.raises(DataError, match="was not run on new items of nothing"):
        new_items_report("nothing", [finished[:1]])
