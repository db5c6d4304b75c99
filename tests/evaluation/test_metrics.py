from __future__ import annotations

from itertools import pairwise

import ir_measures
import numpy as np
import pytest
import torch
from ir_measures import RR, P, R, Success, nDCG

from spike_kit.cli import main
from spike_kit.data.dataset import Dataset
from spike_kit.evaluation.ranking import CUTOFFS, METRICS, RankingTask, evaluate, ranking_metrics
from spike_kit.experiments.run import RunConfig, run
from spike_kit.figures.charts import result_bars
from spike_kit.models.base import FixedEmbeddings
from spike_kit.results.frames import results_frame
from tests.fixture_files import Fixture

ORACLE = {"recall": R, "ndcg": nDCG, "precision": P, "mrr": RR, "hit_rate": Success}


def random_case(seed: int, n_users: int = 40, n_items: int = 60) -> tuple[np.ndarray, list[set[int]], list[set[int]]]:
    """Scores without ties, seen items and relevant items of every user."""
    rng = np.random.default_rng(seed)
    scores = rng.permuted(np.tile(np.linspace(-1, 1, n_items), (n_users, 1)), axis=1)
    seen, relevant = [], []
    for _ in range(n_users):
        items = rng.permutation(n_items)
        n_seen, n_relevant = int(rng.integers(1, 45)), int(rng.integers(1, 15))
        seen.append({int(item) for item in items[:n_seen]})
        relevant.append({int(item) for item in items[n_seen : n_seen + n_relevant]})
    return scores, seen, relevant


@pytest.mark.parametrize("seed", range(5))
def test_equal_to_ir_measures(seed: int) -> None:
    scores, seen, relevant = random_case(seed)
    ranked = np.argsort(-scores, axis=1)
    rows = [[item for item in ranked[user] if item not in seen[user]] for user in range(len(scores))]
    hits = torch.zeros(len(rows), max(CUTOFFS), dtype=torch.bool)
    for user, row in enumerate(rows):
        for rank, item in enumerate(row[: max(CUTOFFS)]):
            hits[user, rank] = item in relevant[user]
    found = ranking_metrics(hits, torch.tensor([len(items) for items in relevant]), CUTOFFS)
    qrels = [ir_measures.Qrel(str(u), str(i), 1) for u, items in enumerate(relevant) for i in items]
    run = [
        ir_measures.ScoredDoc(str(user), str(item), float(scores[user, item]))
        for user, row in enumerate(rows)
        for item in row
    ]
    measures = {f"{name}@{k}": ORACLE[name] @ k for name in METRICS for k in CUTOFFS}
    by_measure = {str(measure): name for name, measure in measures.items()}
    compared = 0
    for value in ir_measures.iter_calc(list(measures.values()), qrels, run):
        name = by_measure[str(value.measure)]
        assert float(found[name][int(value.query_id)]) == pytest.approx(value.value, abs=1e-9)
        compared += 1
    assert compared == len(rows) * len(measures)


def test_parity_with_the_reference_metrics() -> None:
    fixture = Fixture("metrics")
    n_users, n_items = fixture.arrays["input.scores"].shape
    users = fixture.arrays["evaluated_users"]
    seen = lists(fixture, "train")
    relevant = lists(fixture, "test")
    task = task_of([seen[user] for user in users], [relevant[user] for user in users], n_items)
    scores = torch.from_numpy(fixture.arrays["input.scores"][users])
    means, per_user = evaluate(FixedEmbeddings(scores, torch.eye(n_items)), task, fixture.arrays["hp.k"].tolist())
    for column, k in enumerate(fixture.arrays["hp.k"].tolist()):
        for name, reference in (
            ("recall", "reference"),
            ("ndcg", "reference"),
            ("precision", "reference"),
            ("mrr", "ir_measures"),
            ("hit_rate", "ir_measures"),
        ):
            key = {"hit_rate": "hit"}.get(name, name)
            expected = fixture.arrays[f"{reference}.per_user.{key}"][:, column]
            np.testing.assert_allclose(per_user[f"{name}@{k}"], expected, atol=1e-6)
            mean = fixture.arrays[f"{reference}.mean.{key}"][column]
            assert means[f"{name}@{k}"] == pytest.approx(float(mean), abs=1e-6)
    assert n_users > len(users)


def lists(fixture: Fixture, name: str) -> list[list[int]]:
    pointer, items = fixture.arrays[f"input.{name}_indptr"], fixture.arrays[f"input.{name}_indices"]
    return [items[start:stop].tolist() for start, stop in pairwise(pointer)]


def task_of(seen: list[list[int]], relevant: list[list[int]], n_items: int) -> RankingTask:
    def tensor(values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64)

    keys = sorted(row * n_items + item for row, items in enumerate(relevant) for item in items)
    return RankingTask(
        users=torch.arange(len(seen)),
        seen_row=tensor([row for row, items in enumerate(seen) for _ in items]),
        seen_item=tensor([item for items in seen for item in items]),
        relevant_key=tensor(keys),
        n_relevant=tensor([len(items) for items in relevant]),
        n_items=n_items,
        n_without_train=0,
        n_without_relevant=0,
    )


def test_fewer_candidates_than_the_cut_off_count_as_misses() -> None:
    found = ranking_metrics(torch.tensor([[True, False]]), torch.tensor([1]), (10,))
    assert float(found["precision@10"]) == pytest.approx(0.1)
    assert float(found["recall@10"]) == 1


def test_a_metric_of_ones_own_is_found_by_its_name(
    data: Dataset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(METRICS, "hits_of_two", lambda lists, k: lists.found[:, k - 1] * 2)
    done = run(RunConfig(model="popularity", dataset="world"), progress=False)
    assert done.metrics["test"]["hits_of_two@10"] == pytest.approx(done.metrics["test"]["precision@10"] * 20)
    assert main(["evaluate", "world", "--metrics", "hits_of_two", "--cutoffs", "5"]) == 0
    assert "hits_of_two@5" in capsys.readouterr().out
    assert main(["compare", "world", "--metric", "hits_of_two@20"]) == 0
    frame = results_frame([done], ("hits_of_two@10",))
    assert result_bars(frame).axes[0].get_ylabel() == "Hits of two (test)"
