"""Ranking new items: who is relevant, who is a candidate, and what a run folder says of it."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from spike_kit.base import paths
from spike_kit.base.errors import ConfigError
from spike_kit.data.dataset import Dataset
from spike_kit.evaluation.groups import by_train_interactions, item_groups
from spike_kit.evaluation.ranking import RankingTask, evaluate, new_items, ranking_tasks
from spike_kit.experiments.run import Run, RunConfig, run
from spike_kit.experiments.search import validation_task
from spike_kit.models import find_model
from spike_kit.models.base import FixedEmbeddings
from tests.fixture_files import Fixture
from tests.world import GROUPS, ITEMS_PER_GROUP, World, write_world

SHORT = {"epochs": 4, "eval_every": 2}


def test_equal_to_ir_measures_under_both_candidate_rules() -> None:
    arrays = Fixture("new_items").arrays
    train, held_out, new = arrays["train"], arrays["held_out"], arrays["new"]
    rows = [(*pair, split) for split, which in (("train", train), ("valid", held_out)) for pair in np.argwhere(which)]
    n_users, n_items = train.shape
    interactions = pd.DataFrame(rows, columns=["user", "item", "split"])

    class Tables:
        users, items = range(n_users), range(n_items)

    Tables.interactions = interactions  # type: ignore[attr-defined]
    scores = torch.from_numpy(arrays["scores"])
    for rule, candidates in (("new", new), ("new_all", None)):
        task = RankingTask.from_tables(Tables, "valid", relevant_items=new, candidates=candidates)  # type: ignore[arg-type]
        _, per_user = evaluate(FixedEmbeddings(scores, torch.eye(n_items)), task, (5, 10, 20))
        assert per_user["user"].tolist() == arrays[f"{rule}.users"].tolist()
        for name in per_user.columns[1:]:
            np.testing.assert_allclose(per_user[name], arrays[f"{rule}.{name}"], atol=1e-9, err_msg=f"{rule} {name}")


def test_new_items_are_those_nobody_has_met_before(new_world: World) -> None:
    firsts = np.arange(len(GROUPS)) * ITEMS_PER_GROUP
    assert new_items(new_world.tables, "valid").tolist() == firsts.tolist()
    assert new_items(new_world.tables, "test").tolist() == (firsts + 1).tolist()


def test_tasks_are_those_of_the_data_set(new_data: Dataset, new_world: World) -> None:
    tasks = ranking_tasks(new_data, "valid")
    assert list(tasks) == ["valid", "valid_new", "valid_new_all"]
    n_items = len(new_data.items)
    new = set(new_items(new_world.tables, "valid").tolist())
    assert {key % n_items for key in tasks["valid_new"].relevant_key.tolist()} == new
    assert set(range(n_items)) - set(tasks["valid_new"].excluded.tolist()) == new
    assert not tasks["valid_new_all"].excluded.numel()
    assert len(tasks["valid"].relevant_key) > len(tasks["valid_new"].relevant_key)


def test_a_data_set_of_known_items_has_one_task_however_rare_its_items(home: Path, new_world: World) -> None:
    written = write_world(paths.data_root() / "plain", tables=new_world.tables)
    assert list(ranking_tasks(written, "valid")) == ["valid"]


def test_run_folders_hold_all_blocks_and_groups(new_data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run(RunConfig(dataset="new", training=SHORT), progress=False)
    blocks = [f"{split}{rule}" for split in ("valid", "test") for rule in ("", "_new", "_new_all")]
    assert list(done.metrics["users_ranked"]) == blocks
    for name in blocks:
        split = name.split("_", maxsplit=1)[0]
        means, per_user = evaluate(done.model, ranking_tasks(new_data, split)[name])
        assert done.metrics[name] == pytest.approx(means)
        kept = done.per_user[done.per_user["split"] == name].drop(columns="split").reset_index(drop=True)
        pd.testing.assert_frame_equal(kept, per_user)
        assert f"\n{name}" in done.summary()
    for split in ("valid", "test"):
        assert done.metrics["item_groups"][split] == by_train_interactions(new_data, done.model, split)
        assert done.metrics["item_groups"][split]["0"]["items"] == 2 * len(GROUPS)
    assert Run(done.path).config["training_settings"].keys() == RunConfig().resolved()[1].model_dump().keys()


def test_groups_of_items_rank_among_themselves_and_among_all(new_data: Dataset) -> None:
    groups = item_groups(new_data)
    assert set(groups) == {"0", "11+"}
    n_users, n_items = len(new_data.users), len(new_data.items)
    popular = torch.rand(n_users, n_items, generator=torch.Generator().manual_seed(0))
    popular += torch.tensor((groups == "11+").tolist())
    found = by_train_interactions(new_data, FixedEmbeddings(popular, torch.eye(n_items)), "valid")
    assert found["0"]["all"] == 0
    assert found["0"]["among"] > 0
    assert found["11+"]["all"] == found["11+"]["among"] > 0


def test_training_stops_on_what_the_model_can_score(new_data: Dataset, new_world: World) -> None:
    training = RunConfig().resolved()[1]
    tasks = ranking_tasks(new_data, "valid")

    def chosen(model: str, stop_on: str = "usual") -> RankingTask:
        return validation_task(new_data, find_model(model), training.replace(stop_on=stop_on), "cpu")

    for model, stop_on, name in [
        ("spike", "usual", "valid_new"),
        ("spike", "valid", "valid"),
        ("spike", "valid_new_all", "valid_new_all"),
        ("lightgcn", "usual", "valid"),
        ("text_ridge", "usual", "valid_new"),
    ]:
        assert chosen(model, stop_on).relevant_key.equal(tasks[name].relevant_key)
        assert chosen(model, stop_on).excluded.equal(tasks[name].excluded)
    with pytest.raises(ConfigError, match="LightGCN scores no new items"):
        chosen("lightgcn", "valid_new")
    plain = write_world(paths.data_root() / "plain")
    with pytest.raises(ConfigError, match="have all been met"):
        validation_task(plain, find_model("spike"), training.replace(stop_on="valid_new"), "cpu")


def test_a_model_that_cannot_score_new_items_has_no_such_block(new_data: Dataset) -> None:
    done = run(RunConfig(model="popularity", dataset="new"), progress=False)
    assert list(done.metrics["users_ranked"]) == ["valid", "test"]
