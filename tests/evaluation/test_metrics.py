from itertools import pairwise

import numpy as np
import pytest
import torch

from spike_kit.evaluation.ranking import METRICS, evaluate
from spike_kit.models.base import FixedEmbeddings
from tests.fixture_files import Fixture
from tests.reference.evaluation import task_of


def test_parity_with_the_reference_metrics() -> None:
    """With the metrics of the reference code, and with those of ir-measures on the same lists."""
    fixture = Fixture("metrics")
    n_users, n_items = fixture.arrays["input.scores"].shape
    users = fixture.arrays["evaluated_users"]
    seen, relevant = lists(fixture, "train"), lists(fixture, "test")
    task = task_of([seen[user] for user in users], [relevant[user] for user in users], n_items)
    scores = torch.from_numpy(fixture.arrays["input.scores"][users])
    cutoffs = fixture.arrays["hp.k"].tolist()
    means, per_user = evaluate(FixedEmbeddings(scores, torch.eye(n_items)), task, cutoffs)
    references = [*((name, "ir_measures") for name in METRICS), *((name, "reference") for name in list(METRICS)[:3])]
    for name, reference in references:
        key = "hit" if name == "hit_rate" else name
        found = per_user[[f"{name}@{k}" for k in cutoffs]]
        np.testing.assert_allclose(found, fixture.arrays[f"{reference}.per_user.{key}"], atol=1e-6)
        expected = fixture.arrays[f"{reference}.mean.{key}"].tolist()
        assert [means[str(column)] for column in found] == pytest.approx(expected, abs=1e-6)
    assert n_users > len(users)


def lists(fixture: Fixture, name: str) -> list[list[int]]:
    pointer, items = fixture.arrays[f"input.{name}_indptr"], fixture.arrays[f"input.{name}_indices"]
    return [items[start:stop].tolist() for start, stop in pairwise(pointer)]
