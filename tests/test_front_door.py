"""The front door as a notebook uses it: ``import spike_kit as sk``."""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

import spike_kit as sk
from spike_kit.base.errors import ConfigError
from spike_kit.cli import COMMANDS
from spike_kit.data.dataset import Dataset

SHORT = {"epochs": 2, "batch_size": 512, "progress": False}

NAMES = {
    *("load", "dataset", "build", "profile", "prompt", "generation", "judge", "encode", "quality"),
    *("train", "runs", "settings", "table", "evaluate", "compare", "ablate", "search"),
    *("usual_profiles", "views", "figures", "Dataset", "Run", "Runs"),
}


def test_the_names_are_these_and_each_is_there() -> None:
    assert set(sk.__all__) == NAMES
    assert all(getattr(sk, name) is not None for name in NAMES)
    assert set(dir(sk)) == {*NAMES, "__version__"}
    with pytest.raises(AttributeError, match="trian"):
        sk.trian  # noqa: B018  # type: ignore[attr-defined]


HEAVY = "torch duckdb pandera scipy matplotlib plotly openai"
LIGHT = [name for name in COMMANDS if name not in ("build", "train", "search")]
"""Commands whose options do not depend on a reader or a model."""


@pytest.mark.parametrize(
    ("calls", "heavy"), [(["--help"], f"{HEAVY} pandas numpy"), ([f"{name} --help" for name in LIGHT], HEAVY)]
)
def test_nothing_heavy_is_imported_for_help(calls: list[str], heavy: str) -> None:
    script = (
        "import contextlib, sys, spike_kit as sk, spike_kit.cli as cli\n"
        f"for call in {calls}:\n"
        "    with contextlib.suppress(SystemExit):\n"
        "        assert cli.main(call.split()) == 0\n"
        f"found = set({heavy!r}.split()) & set(sys.modules)\n"
        "sys.exit(str(sorted(found)) if found else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage: spike-kit" in done.stdout


@pytest.mark.parametrize("own", [None, ":16:8", ""])
def test_importing_the_package_makes_cublas_deterministic_before_any_product(own: str | None) -> None:
    """A value of the user's own is kept."""
    environment = {name: value for name, value in os.environ.items() if name != "CUBLAS_WORKSPACE_CONFIG"}
    environment |= {} if own is None else {"CUBLAS_WORKSPACE_CONFIG": own}
    script = "import os, sys, spike_kit; print(os.environ['CUBLAS_WORKSPACE_CONFIG'], 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.stdout == f"{':4096:8' if own is None else own} False\n", done.stderr


def test_one_run_and_many_are_found_or_trained(data: Dataset) -> None:
    world = sk.load("world")
    one = sk.train("spike", world, inject=False, seed=1, **SHORT)
    assert (one.config["seed"], one.config["model_settings"]["inject"]) == (1, False)
    assert 0 <= one.test["ndcg@20"] <= 1
    assert len(one.history) == 2
    again = sk.train("spike", world, inject=False, seed=1, **SHORT)
    assert again.path == one.path
    many = sk.train(["popularity", "bprmf"], world, seeds=2, **SHORT)
    found = [(run.config["model"], run.config["seed"]) for run in many]
    assert found == [("popularity", 0), ("bprmf", 0), ("bprmf", 1)]
    assert {run.path for run in sk.runs(world)} == {one.path, *(run.path for run in many)}
    assert [run.config["seed"] for run in sk.train("bprmf", world, seeds=(1,), **SHORT)] == [1]


def test_results_are_tables(data: Dataset) -> None:
    many = sk.train(["popularity", "bprmf"], data, seeds=2, **SHORT)
    table = sk.table(many)
    assert table["seeds"].tolist() == [1, 2]
    assert table.loc[1, "ndcg@20"] == pytest.approx((many[1].test["ndcg@20"] + many[2].test["ndcg@20"]) / 2)
    assert sk.table(many[0], "valid")["ndcg@20"].tolist() == [many[0].valid["ndcg@20"]]
    compared = sk.compare(many, reference="popularity")
    assert compared.loc[compared["difference"].isna(), "model"].tolist() == ["Popularity"]
    assert len(compared) == 2
    label = sk.table(many)["model"][1]
    assert sk.compare(many, reference=label).attrs["reference"] == label
    with pytest.raises(ConfigError, match="nobody"):
        sk.compare(many, reference="nobody")
    assert sk.evaluate(many[1])["ndcg@20"] == pytest.approx(many[1].test["ndcg@20"])


def test_runs_and_data_show_themselves_and_their_names_as_text(data: Dataset) -> None:
    run = sk.train("bprmf", data, **SHORT)
    best = run.recommend(user=0, n=3)
    assert len(best) == 3
    assert set(best["item"]) <= set(data.items["label"])
    assert "ndcg@20" in run._repr_html_()
    run.config["dataset"] = "<script>"
    for html in (run._repr_html_(), sk.Runs([run])._repr_html_()):
        assert "<script" not in html
    assert sk.Runs()._repr_html_() == "no runs"


def test_profiles_prompts_vectors(data: Dataset) -> None:
    made: Any = sk.profile(data)
    estimate: Any = sk.profile(data, "gpt-4o-mini", dry_run=True, domain="movies")
    assert len(made) == estimate.calls == len(data.users) + len(data.entities)
    assert "Comedy film 0" in sk.prompt(data, "item", 0, domain="movies").text
    vectors = sk.encode(data, "tfidf-8", device="cpu")
    assert tuple(vectors.user.shape) == (len(data.users), 8)
    measured, signal = sk.quality(data, encoder="tfidf-8")
    assert not measured.empty
    assert "template" in signal["profiles"].tolist()
    judged: Any = sk.judge(data, ["template"], "gpt-4o", sample=2, dry_run=True)
    assert (judged[0], "gpt-4o" in judged[1]["model"].tolist()) == (6, True)
    assert sk.generation(data, "gpt-4o-mini", profiles="mini").profiles == "mini"


def test_a_misspelt_setting_or_model_is_an_error(data: Dataset) -> None:
    wrong: dict[str, Callable[[], object]] = {
        "neither model spike nor its training has a setting named 'roh'": lambda: sk.train("spike", data, roh=1),
        "no model named 'spkie'": lambda: sk.train("spkie", data),
        "only spike": lambda: sk.ablate(data, "bprmf"),
        "temprature": lambda: sk.profile(data, "gpt-4o-mini", dry_run=True, temprature=1),
    }
    for message, act in wrong.items():
        with pytest.raises(ConfigError, match=message):
            act()


def test_settings_and_searches(data: Dataset) -> None:
    assert {"recommended", "released_code"} <= set(sk.settings("spike"))
    assert "rho" in sk.settings("spike").index
    assert "tuned" not in sk.settings("spike", data)
    assert sk.ablate(data).full.label == "full model"
    result = sk.search("bprmf", data, 1, device="cpu", space={"epochs": (1,)})
    assert len(result.trials) == 1
