"""The benchmarks' commands: what they print, refuse and leave behind."""

import importlib
import json
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import quality
from benchmarks.common import alone, main
from benchmarks.train import GROWTH
from spike_kit.base import paths
from spike_kit.base.devices import peak_bytes, reset_peak
from spike_kit.data.dataset import Dataset
from spike_kit.experiments.search import VALID

pytestmark = pytest.mark.pipeline

WORLD = ["--dataset", "world", "--device", "cpu", "--steps", "30"]


def run(name: str, *options: str) -> int:
    module: Any = importlib.import_module(f"benchmarks.{name}")
    return main(getattr(module, f"{name.title()}Setup"), getattr(module, f"bench_{name}"), options)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure in this process: a fresh one takes seconds to start."""
    for name in ("data", "profiles", "quality", "train"):
        monkeypatch.setattr(f"benchmarks.{name}.alone", lambda function, *arguments: function(*arguments))


def measured(capsys: pytest.CaptureFixture[str], *options: str) -> Any:
    """What a benchmark prints as JSON; it must leave the data folder as it was."""
    before = sorted(paths.data_root().rglob("*"))
    assert run(*options, "--json") == 0
    assert sorted(paths.data_root().rglob("*")) == before
    return json.loads(capsys.readouterr().out)


def test_the_script_prints_one_json_object() -> None:
    command = [sys.executable, "-m", "benchmarks.evaluation", "--users", "1000", "--items", "1000", "--json"]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ).stdout)
    assert (found["users"], found["items"]) == (1000, 1000)
    assert found["users_per_second"] == pytest.approx(1000 / found["seconds"], rel=0.1)
    assert found["floor_ratio"] == pytest.approx(found["seconds"] / found["floor_seconds"], rel=0.9)
    assert 0 < found["peak_rss_gib"] < 4


@pytest.mark.usefixtures("here")
def test_data(capsys: pytest.CaptureFixture[str]) -> None:
    found = measured(capsys, "data", "--reviews", "3000")
    assert found["ratio"] == pytest.approx(found["seconds"] / found["scan_seconds"], rel=0.6)
    assert found["reviews_per_second"] == pytest.approx(3000 / found["seconds"], rel=0.1)
    assert 0 < found["kept_reviews"] <= found["interactions"] < 3000


@pytest.mark.usefixtures("here")
def test_profiles(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.profiles.ROUNDS", 1)
    found = measured(capsys, "profiles", "--profiles", "1000")
    ratio = found["profiles_per_second"] / found["bare_client_per_second"]
    assert found["client_ratio"] == pytest.approx(ratio, rel=0.01)
    assert found["rss_growth_mib"] < 1024 * found["peak_rss_gib"]


@pytest.mark.usefixtures("here")
def test_quality_measures_until_the_preset_is_as_good(data: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    found = measured(capsys, "quality", "--dataset", "world", "--device", "cpu", "--plain-epochs", "4")
    assert found["ratio"] == pytest.approx(found["plain_seconds"] / found["seconds"], rel=0.5)
    assert found["best_ndcg"] >= found["plain_best_ndcg"] > 0
    assert found["plain_best_seconds"] <= found["plain_seconds"]


def test_a_preset_that_is_never_as_good_has_no_ratio(
    data: Dataset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    curves = iter([[(0.2, 0.5), (0.3, 1.0), (0.3, 1.1)], [(0.1, 0.1), (0.2, 2.3)]])
    rows = ([{"seconds": seconds, VALID: ndcg} for ndcg, seconds in curve] for curve in curves)
    monkeypatch.setattr(quality, "alone", lambda *_: next(rows))
    found = measured(capsys, "quality", "--dataset", "world")
    assert (found["seconds"], found["ratio"], found["epochs"]) == (None, None, None)
    assert (found["plain_best_ndcg"], found["plain_best_seconds"]) == (0.3, 1.0)
    assert (found["best_ndcg"], found["best_seconds"]) == (0.2, 2.3)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("preset", "fixed", "dim"), [("recommended", "text_components=7", 7), ("released_code", "layers=1", 24)]
)
def test_the_floor_is_that_of_the_vectors_that_the_model_multiplies(
    data: Dataset,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    preset: str,
    fixed: str,
    dim: int,
) -> None:
    multiplied = set()
    product = torch.mm
    monkeypatch.setattr(torch, "mm", lambda a, b, **out: multiplied.add(tuple(b.shape)) or product(a, b, **out))
    options = [*WORLD, "--preset", preset, "--fix", "dim=8", "--fix", fixed, "--fix", "text_precision=bfloat16"]
    found = measured(capsys, "train", *options, "--batch-size", "64")
    assert multiplied == {(dim, dim), (dim, 8), (8, dim), (len(data.users), dim), (len(data.entities), dim)}
    assert (found["text_dim"], found["batch_size"], found["precision"]) == (dim, 64, "bfloat16")
    assert (found["nodes"], found["edges"]) == (len(data.users) + len(data.entities), 2 * len(data.triples))
    assert found["interactions"] == len(data.split("train"))
    assert all(found[name] > 0 for name in ("step_seconds", "floor_seconds", "floor_ratio", "peak_rss_gib"))


@pytest.mark.usefixtures("here")
def test_a_model_without_text_has_no_floor_and_several_sizes_give_a_growth_curve(
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ["--model", "lightgcn", "--steps", "30", "--batch-size", "128", "--synthetic"]
    found = measured(capsys, "train", *options, "1000")
    assert found["floor_seconds"] is found["floor_ratio"] is found["text_dim"] is found["peak_cuda_gib"] is None
    rows = measured(capsys, "train", *options, "1000,2000")
    assert [(row["nodes"], row["edges"]) for row in rows] == [(1000, 27_322), (2000, 54_644)]
    for row in rows:
        assert set(row) == {*GROWTH}
        millions = (row["nodes"] + row["edges"]) / 1e6
        assert row["seconds_per_million"] == pytest.approx(row["step_seconds"] / millions, rel=1e-3)
    assert run("train", *options, "1000") == 0
    assert "bare products" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["data", "--reviews", "10"], ["reviews", "greater than or equal to 1000"]),
        (["train", "--synthetic", "-5"], ["-5 nodes", "at least 1000"]),
        (["train", "--synthetic", "2000,,abc"], ["no synthetic size ''", "amazon-book"]),
        (["train", "--model", "popularity"], ["popularity is not trained"]),
        (["train", "--fix", "epochs=3"], ["unknown setting 'epochs' for SpikeConfig"]),
        (["train", "--dataset", "nowhere", "--device", "cpu"], ["nowhere"]),
        (["quality", "--preset", "nothing"], ["no preset of model spike named 'nothing'"]),
    ],
    ids=" ".join,
)
def test_nonsense_is_explained(options: list[str], said: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A data set is looked for in a fresh process, whose errors are explained, too."""
    try:
        code = run(*options)
    except SystemExit as end:
        code = end.code
    assert code in (1, 2)
    shown = " ".join(capsys.readouterr().err.replace("│", "").split())
    assert "Traceback" not in shown
    assert all(part in shown for part in said), shown


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux can count from anew")
def test_the_peak_counts_from_the_last_reset() -> None:
    ballast = np.ones(2**27, dtype=np.int8)
    highest = peak_bytes()
    assert highest > ballast.nbytes
    assert alone(peak_bytes) < highest - 2**26, "a process started by a large one reports its parent's memory"
    del ballast
    reset_peak()
    assert peak_bytes() < highest - 2**26
