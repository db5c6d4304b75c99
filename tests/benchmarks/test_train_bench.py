from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.measure import alone
from benchmarks.synthetic import AMAZON_BOOK, SMALLEST, parse_sizes, synthetic_graph, synthetic_vectors
from spike_kit.base import paths
from spike_kit.base.devices import peak_bytes, reset_peak
from spike_kit.base.errors import ConfigError
from spike_kit.data.dataset import Dataset
from spike_kit.data.graph import Graph
from spike_kit.training.sampling import NegativeSampler

KEYS = {
    "dataset",
    "model",
    "preset",
    "device",
    "threads",
    "precision",
    "nodes",
    "edges",
    "interactions",
    "text_dim",
    "batch_size",
    "step_seconds",
    "floor_seconds",
    "floor_ratio",
    "peak_rss_gib",
    "peak_cuda_gib",
}


@pytest.mark.parametrize("nodes", [SMALLEST, 3000, 20_011])
def test_counts_of_a_synthetic_graph_are_exact_and_nothing_occurs_twice(nodes: int) -> None:
    size = AMAZON_BOOK.scaled(nodes)
    graph = synthetic_graph(size)
    assert graph.n_nodes == size.nodes == nodes
    assert graph.n_users / nodes == pytest.approx(70 / 183, abs=1e-3)
    assert graph.n_items / nodes == pytest.approx(25 / 183, abs=1e-3)
    assert graph.n_relations == 39
    assert graph.n_edges == 2 * size.triples == 2 * round(nodes * 2_500_000 / 183_000)
    assert graph.n_interactions == size.interactions == round(nodes * 850_000 / 183_000)
    assert len(set(zip(graph.train_user.tolist(), graph.train_item.tolist(), strict=True))) == graph.n_interactions
    edges = torch.stack([graph.head, graph.relation, graph.tail])
    assert torch.unique(edges, dim=1).shape[1] == graph.n_edges


def test_a_synthetic_graph_is_what_the_same_triples_give() -> None:
    graph = synthetic_graph(AMAZON_BOOK.scaled(2000), seed=3)
    forward = graph.relation < graph.n_relations
    triples = torch.stack([graph.head, graph.relation, graph.tail], dim=1)[forward]
    assert len(triples) * 2 == graph.n_edges
    assert triples[:, 2].min() >= graph.n_items
    assert triples[:, 2].max() < graph.n_entities
    rebuilt = Graph.from_arrays(
        n_users=graph.n_users,
        n_items=graph.n_items,
        n_entities=graph.n_entities,
        n_relations=graph.n_relations,
        interactions=torch.stack([graph.train_user, graph.train_item], dim=1).numpy(),
        triples=triples.numpy(),
    )
    for name in ("train_user", "train_item", "head", "relation", "tail"):
        assert getattr(graph, name).dtype == torch.int64
        assert torch.equal(getattr(graph, name), getattr(rebuilt, name)), name
    NegativeSampler(graph)


def test_degrees_are_skewed_as_in_real_data() -> None:
    graph = synthetic_graph(AMAZON_BOOK.scaled(20_000))
    for index, size in ((graph.train_item, graph.n_items), (graph.train_user, graph.n_users)):
        degree = torch.bincount(index, minlength=size)
        assert degree.max() > 10 * degree.double().mean()
        assert degree.median() < degree.double().mean()
    heads = torch.bincount(graph.head, minlength=graph.n_entities)
    assert heads[graph.n_items :].max() > 0.02 * graph.n_edges / 2
    assert len(graph.relation.unique()) == 78
    pairs = torch.unique(graph.relation * graph.n_entities + graph.tail)
    assert len(pairs) < 0.5 * graph.n_edges


def test_the_synthetic_study_depends_on_its_seed_alone() -> None:
    size = AMAZON_BOOK.scaled(SMALLEST)
    one, same, other = (synthetic_graph(size, seed) for seed in (0, 0, 1))
    assert torch.equal(one.tail, same.tail)
    assert torch.equal(one.train_item, same.train_item)
    assert not torch.equal(one.tail, other.tail)
    assert not torch.equal(one.train_item, other.train_item)
    vectors, again, others = (synthetic_vectors(size, seed) for seed in (0, 0, 1))
    assert vectors.user.shape == (size.users, 384)
    assert vectors.entity.shape == (size.entities, 384)
    assert vectors.entity.dtype == torch.float32
    np.testing.assert_allclose(vectors.entity.norm(dim=1), 1, rtol=1e-5)
    assert torch.equal(vectors.user, again.user)
    assert not torch.equal(vectors.user, others.user)


def test_sizes_are_read_in_order() -> None:
    assert parse_sizes("amazon-book") == [AMAZON_BOOK]
    assert [size.nodes for size in parse_sizes("5000, 1000,amazon-book")] == [5000, 1000, 183_000]


def test_a_graph_that_cannot_exist_is_an_error() -> None:
    with pytest.raises(ConfigError, match="too dense"):
        synthetic_graph(AMAZON_BOOK.scaled(SMALLEST).replace(items=3))
    with pytest.raises(ConfigError, match="too dense"):
        synthetic_graph(AMAZON_BOOK.scaled(SMALLEST).replace(triples=10**6))


def test_the_benchmark_prints_one_json_object_and_leaves_nothing(
    data: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(paths.data_root().rglob("*"))
    assert main(["train", "--dataset", "world", "--steps", "30", "--batch-size", "64", "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert set(measured) == KEYS
    assert measured["dataset"] == "world"
    assert measured["nodes"] == len(data.users) + len(data.entities)
    assert measured["edges"] == 2 * len(data.triples)
    assert measured["interactions"] == len(data.split("train"))
    assert measured["batch_size"] == 64
    assert measured["text_dim"] == 24
    assert measured["precision"] == "float32"
    assert all(measured[name] > 0 for name in ("step_seconds", "floor_seconds", "floor_ratio"))
    assert 0.1 < measured["peak_rss_gib"] < 4
    assert (measured["peak_cuda_gib"] is None) == (measured["device"] == "cpu")
    assert sorted(paths.data_root().rglob("*")) == before


def test_a_model_without_text_has_no_floor(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model", "bprmf", "--synthetic", "1000", "--steps", "30"]
    assert main(["train", *options, "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["step_seconds"] > 0
    assert measured["floor_seconds"] is measured["floor_ratio"] is measured["text_dim"] is None
    assert measured["dataset"] == "1000"


def test_several_sizes_give_a_growth_curve(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--synthetic", "1000,2000", "--steps", "30", "--batch-size", "128"]
    assert main(["train", *options, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["nodes"] for row in rows] == [1000, 2000]
    assert [row["edges"] for row in rows] == [27_322, 54_644]
    for row in rows:
        assert set(row) == {"nodes", "edges", "step_seconds", "seconds_per_million", "peak_rss_gib"}
        millions = (row["nodes"] + row["edges"]) / 1e6
        assert row["seconds_per_million"] == pytest.approx(row["step_seconds"] / millions, rel=1e-3)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--steps", "3"], ["steps = 3", "30"]),
        (["--batch-size", "0"], ["batch_size = 0"]),
        (["--synthetic", "-5"], ["-5 nodes", "at least 1000"]),
        (["--synthetic", "abc"], ["no synthetic size 'abc'", "amazon-book"]),
        (["--synthetic", "2000,,3000"], ["no synthetic size ''"]),
        (["--model", "popularity"], ["popularity is not trained"]),
        (["--model", "spike", "--preset", "best"], ["no preset of model spike named 'best'", "released_code"]),
        (["--dataset", "nowhere"], ["nowhere"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_nonsense_is_explained(options: list[str], said: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *options]) == 1
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    assert all(part in shown for part in said), shown


def test_settings_of_the_model_can_be_measured(data: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", "train", "--dataset", "world", "--device", "cpu", "--steps", "30", "--json"]
    assert main([*arguments, "--fix", "text_precision=bfloat16", "--fix", "budget-mib=1"]) == 0
    assert json.loads(capsys.readouterr().out)["precision"] == "bfloat16"
    assert main([*arguments, "--fix", "epochs=3"]) == 1
    assert "unknown setting 'epochs' for SpikeConfig" in capsys.readouterr().err


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux can count from anew")
def test_the_peak_counts_from_the_last_reset() -> None:
    ballast = np.ones(2**27, dtype=np.int8)
    highest = peak_bytes()
    assert highest > ballast.nbytes
    del ballast
    reset_peak()
    assert peak_bytes() < highest - 2**26


def test_the_peak_is_that_of_the_process_itself() -> None:
    """A process started by a large one does not report its parent's memory."""
    ballast = np.ones(60_000_000)
    assert peak_bytes() > ballast.nbytes
    assert alone(peak_bytes) < ballast.nbytes
