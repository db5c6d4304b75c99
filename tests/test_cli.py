"""The command line as a user meets it: real processes where the process matters, ``main`` elsewhere."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from spike_kit import paths
from spike_kit.cli import COMMANDS, main
from spike_kit.data.sources import RECIPES, SOURCES
from spike_kit.data.study import Study
from spike_kit.models import MODELS

SHORT = ["--epochs", "2", "--batch-size", "512", "--device", "cpu"]


def output(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    return captured.out + captured.err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_every_option_with_its_default(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    text = output(capsys)
    assert f"usage: spike-kit {command}" in text
    options = re.findall(r"^\W*--[a-z]", text, re.MULTILINE)
    assert text.count("(default:") >= len(options)


@pytest.mark.parametrize("model", MODELS)
def test_help_of_train_shows_the_settings_of_the_model(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--model", model, "--help"])
    text = output(capsys)
    for name in MODELS[model].config_class.model_fields:
        assert f"--{name.replace('_', '-')}" in text


def test_the_overview_names_every_command_and_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    text = output(capsys)
    assert all(name in text for name in [*COMMANDS, *MODELS])


def test_unknown_things_are_explained(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 1
    assert "no command named 'trian'" in output(capsys)
    assert main(["train", "--model", "spkie"]) == 1
    assert "no model named 'spkie'" in output(capsys)
    assert main(["train", "--preset", "best"]) == 1
    assert "known: recommended, released_code" in output(capsys)
    assert main(["train", "--dataset", "book", "--model", "spike"]) == 1
    assert "no study folder for data set 'book'" in output(capsys)
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--dataset", "world", "--roh", "1"])
    assert stopped.value.code == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="checks the error of a machine without CUDA")
def test_the_words_of_the_authors_readme_work_up_to_the_missing_gpu(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--dataset", "world", "--model", "spike", "--gpu", "0"]) == 1
    text = output(capsys)
    assert "there is no CUDA device here" in text
    assert "leave --gpu out" in text
    assert not paths.runs_root().exists()


def test_train_and_evaluate(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    for model in ("popularity", "bprmf", "lightgcn", "spike"):
        arguments = ["--device", "cpu"] if model == "popularity" else SHORT
        assert main(["train", "--dataset", "world", "--model", model, *arguments]) == 0
    assert capsys.readouterr().out.count("ndcg@20") == 8
    assert len(list(paths.runs_root().iterdir())) == 4
    assert main(["evaluate", "world"]) == 0
    table = output(capsys)
    assert all(model in table for model in ("Popularity", "BPR-MF", "LightGCN", "SPiKE"))
    assert "recall@40" in table
    assert main(["evaluate", "world", "--cutoffs", "3", "--metrics", "mrr", "--split", "valid"]) == 0
    assert "mrr@3" in output(capsys)
    assert main(["evaluate", "world", "--cutoffs", "3", "--metrics", "f1"]) == 1
    assert "no metric named f1@3" in output(capsys)
    assert main(["evaluate", "world", "--cutoffs", "0"]) == 1
    assert "a cut-off must be at least 1" in output(capsys)


def test_a_study_can_be_given_as_a_path_and_settings_as_options(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--dataset", str(study.path), "--no-inject", "--no-remove", "--matching", "off", "--rho", "0.3"]
    assert main(["train", *arguments, *SHORT]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(study.path)]) == 0
    text = output(capsys)
    assert "rho=0.3" in text
    assert "inject=False" in text


def test_evaluate_without_runs_says_what_to_do(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "world"]) == 1
    assert "spike-kit train --dataset world" in output(capsys)


def test_profile_and_encode_say_where_they_wrote(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "world"]) == 0
    assert "template.parquet" in output(capsys)
    assert main(["encode", "world", "--encoder", "no/such-encoder", "--device", "cpu"]) == 1
    assert "could not be loaded" in output(capsys)


def test_doctor_says_present_or_absent_and_never_the_key(
    study: Study, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-planted-secret")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert main(["doctor"]) == 0
    text = output(capsys)
    assert "OPENAI_API_KEY: present" in text
    assert "HF_TOKEN: absent" in text
    assert "planted" not in text
    assert all(word in text for word in ("torch", "memory", "disk", "devices", "cpu (", "[figures]", "world"))


def test_doctor_works_before_anything_exists(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(paths.HOME_VARIABLE, str(tmp_path / "not" / "yet"))
    assert main(["doctor"]) == 0
    assert "none yet" in output(capsys)


def test_building_without_fetched_files_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", "ml-100k"]) == 1
    assert "spike-kit fetch ml-100k" in output(capsys)
    assert main(["fetch", "nothing"]) == 1
    assert "known: ml-100k" in output(capsys)


def test_ctrl_c_during_training_leaves_nothing_and_says_so(study: Study, home: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "spike_kit",
        "train",
        "--dataset",
        "world",
        "--epochs",
        "100000",
        "--patience",
        "0",
    ]
    environment = os.environ | {paths.HOME_VARIABLE: str(home)}
    log = home / "stderr.txt"
    with log.open("wb") as stderr:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=stderr)
        deadline = time.monotonic() + 120
        while b"epoch/s" not in log.read_bytes() and time.monotonic() < deadline:
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        code = process.wait(timeout=60)
    assert code == 130
    assert "interrupted: nothing half-written was left" in log.read_text()
    assert not paths.runs_root().exists() or list(paths.runs_root().iterdir()) == []


def test_help_of_build_names_every_source(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], *([name] for name in SOURCES)):
        with pytest.raises(SystemExit):
            main(["build", *arguments, "--help"])
        shown = capsys.readouterr().out
        assert all(f"- {name}:" in shown for name in RECIPES)
        assert "--min-rating" in shown


def test_an_export_is_written_and_not_over_something_else(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "world", "--format", "recbole"]) == 0
    folder = paths.data_root() / "exports" / "world-recbole"
    assert (folder / "world.train.inter").is_file()
    assert main(["export", "world", "--format", "recbole"]) == 1
    assert "is not empty" in capsys.readouterr().err
