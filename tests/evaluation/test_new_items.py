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
from spike_kit.profiles.encode import DEFAULT_ENCODER, vectors_metadata
from spike_kit.profiles.template import TEMPLATE, template_profiles
from tests.fixture_files import Fixture
from tests.world import GROUPS, ITEMS_PER_GROUP, World, new_items_world, write_world

SHORT = {"epochs": 4, "eval_every": 2}


@pytest.fixture
def unmet(world: World) -> World:
    return new_items_world(world)


@pytest.fixture
def data(home: Path, unmet: World) -> Dataset:
    """The world of new items as a data-set folder with profiles and vectors, found under the name ``unmet``."""
    written = write_world(paths.data_root() / "unmet", tables=unmet.tables, task="new-items")
    written.write_profiles(TEMPLATE, template_profiles(written))
    metadata = vectors_metadata(written.profiles(), DEFAULT_ENCODER)
    unmet.vectors.save(written.embeddings_path(TEMPLATE, DEFAULT_ENCODER), metadata)
    return written


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


def test_new_items_are_those_nobody_has_met_before(unmet: World) -> None:
    firsts = np.arange(len(GROUPS)) * ITEMS_PER_GROUP
    assert new_items(unmet.tables, "valid").tolist() == firsts.tolist()
    assert new_items(unmet.tables, "test").tolist() == (firsts + 1).tolist()


def test_tasks_are_those_of_the_data_set(data: Dataset, unmet: World) -> None:
    tasks = ranking_tasks(data, "valid")
    assert list(tasks) == ["valid", "valid_new", "valid_new_all"]
    n_items = len(data.items)
    new = set(new_items(unmet.tables, "valid").tolist())
    assert {key % n_items for key in tasks["valid_new"].relevant_key.tolist()} == new
    assert set(range(n_items)) - set(tasks["valid_new"].excluded.tolist()) == new
    assert not tasks["valid_new_all"].excluded.numel()
    assert len(tasks["valid"].relevant_key) > len(tasks["valid_new"].relevant_key)


def test_a_data_set_of_known_items_has_one_task_however_rare_its_items(home: Path, unmet: World) -> None:
    written = write_world(paths.data_root() / "plain", tables=unmet.tables)
    assert list(ranking_tasks(written, "valid")) == ["valid"]


def test_run_folders_hold_all_blocks_and_groups(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run(RunConfig(dataset="unmet", training=SHORT), progress=False)
    blocks = [f"{split}{rule}" for split in ("valid", "test") for rule in ("", "_new", "_new_all")]
    assert list(done.metrics["users_ranked"]) == blocks
    for name in blocks:
        split = name.split("_", maxsplit=1)[0]
        means, per_user = evaluate(done.model, ranking_tasks(data, split)[name])
        assert done.metrics[name] == pytest.approx(means)
        kept = done.per_user[done.per_user["split"] == name].drop(columns="split").reset_index(drop=True)
        pd.testing.assert_frame_equal(kept, per_user)
        assert f"\n{name}" in done.summary()
    for split in ("valid", "test"):
        assert done.metrics["item_groups"][split] == by_train_interactions(data, done.model, split)
        assert done.metrics["item_groups"][split]["0"]["items"] == 2 * len(GROUPS)
    assert Run(done.path).config["training_settings"].keys() == RunConfig().resolved()[1].model_dump().keys()


def test_groups_of_items_rank_among_themselves_and_among_all(data: Dataset) -> None:
    groups = item_groups(data)
    assert set(groups) == {"0", "11+"}
    n_users, n_items = len(data.users), len(data.items)
    popular = torch.rand(n_users, n_items, generator=torch.Generator().manual_seed(0))
    popular[:, groups == "11+"] += 1.0
    found = by_train_interactions(data, FixedEmbeddings(popular, torch.eye(n_items)), "valid")
    assert found["0"]["all"] == 0
    assert found["0"]["among"] > 0
    assert found["11+"]["all"] == found["11+"]["among"] > 0


def test_training_stops_on_what_the_model_can_score(data: Dataset, unmet: World) -> None:
    training = RunConfig().resolved()[1]
    tasks = ranking_tasks(data, "valid")

    def chosen(model: str, stop_on: str = "usual") -> RankingTask:
        return validation_task(data, find_model(model), training.replace(stop_on=stop_on), "cpu")

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


def test_a_model_that_cannot_score_new_items_has_no_such_block(data: Dataset) -> None:
    done = run(RunConfig(model="popularity", dataset="unmet"), progress=False)
    assert list(done.metrics["users_ranked"]) == ["valid", "test"]
