from __future__ import annotations

import json

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.evaluation import RELEVANT, SEEN, synthetic_task
from spike_kit.base.errors import ConfigError
from spike_kit.evaluation import ranking


def test_the_synthetic_task_is_sorted_disjoint_and_the_same_for_a_seed() -> None:
    recommender, task = synthetic_task(30, 200)
    keys = task.seen_row * task.n_items + task.seen_item
    assert torch.equal(keys, keys.unique())
    assert torch.equal(task.relevant_key, task.relevant_key.unique())
    assert not torch.isin(task.relevant_key, keys).any()
    assert (keys.numel(), task.relevant_key.numel()) == (30 * SEEN, 30 * RELEVANT)
    assert int(keys.max()) < 30 * 200
    again, other = synthetic_task(30, 200), synthetic_task(30, 200, seed=1)
    assert torch.equal(again[0].users, recommender.users)
    assert torch.equal(again[1].seen_item, task.seen_item)
    assert not torch.equal(other[1].seen_item, task.seen_item)


def test_the_benchmark_prints_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluation", "--users", "1000", "--items", "1000", "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert (measured["users"], measured["items"]) == (1000, 1000)
    assert measured["users_per_second"] == pytest.approx(1000 / measured["seconds"], rel=0.1)
    assert measured["floor_seconds"] > 0
    assert measured["floor_ratio"] > 0
    assert measured["chunk_entries"] == ranking.CHUNK_ENTRIES
    assert 0 < measured["peak_rss_gib"] < 4
    assert measured["threads"] >= 1


@pytest.mark.parametrize("option", ["--users", "--items"])
def test_too_small_a_task_is_an_error(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluation", option, "10"]) == 1
    assert f"{option} is 10, expected at least 1000" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="89 items are too few, expected at least 90"):
        synthetic_task(10, 89)
