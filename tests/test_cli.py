"""The command line as a user meets it: real processes where the process matters, ``main`` elsewhere."""

import errno
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from spike_kit.base import paths
from spike_kit.cli import COMMANDS, main
from spike_kit.data.dataset import Dataset
from spike_kit.data.sources import RECIPES, SOURCES
from spike_kit.evaluation.beyond import MEASURES
from spike_kit.experiments.run import RunConfig, list_runs
from spike_kit.models import MODELS
from spike_kit.profiles.loopback import completion
from spike_kit.results.tables import run_label

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
    assert sum(map(text.count, ("(default:", "(required)", "(repeatable)"))) >= len(options)


@pytest.mark.parametrize("model", MODELS)
def test_help_of_train_shows_the_settings_of_the_model(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--model", model, "--help"])
    text = output(capsys)
    for name in type(MODELS[model].presets["recommended"].model).model_fields:
        assert f"--{name.replace('_', '-')}" in text


def test_the_overview_names_every_command_and_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    text = output(capsys)
    assert all(name in text for name in [*COMMANDS, *MODELS])


ERRORS = {
    "bench": "python -m benchmarks.train",
    "trian": "no command named 'trian'",
    "train --model spkie": "no model named 'spkie'",
    "train --preset best": "known: recommended, llm_profiles, new_items, released_code",
    "train --dataset book --model spike": "no data-set folder for data set 'book'",
    "evaluate world": "spike-kit train --dataset world",
    "encode world --encoder no/such-encoder --device cpu": "could not be loaded",
    "build ml-100k": "spike-kit fetch ml-100k",
    "fetch nothing": "ml-1m-colakg, tables",
    "profile world --dry-run": "--profiles gpt-4o-mini",
    "profile world --profiles llm --domain filmz --dry-run": "no domain named 'filmz'",
    "profile world --profiles llm": "OPENAI_API_KEY holds no key",
    "profile world --profiles llm --batch-import none.jsonl": "none.jsonl cannot be read",
    "judge world --key-variable MY_OWN_KEY": "MY_OWN_KEY holds no key",
    "judge world --profiles template --mode pairwise --dry-run": "pairwise judging of the profile sets template is not",
    "quality world --profiles nowhere --encoder tfidf-8": "no profile set 'nowhere'",
}
"""Commands that cannot do what they are asked, and what they say."""


@pytest.mark.parametrize("command", ERRORS)
def test_what_cannot_be_done_is_explained(
    command: str, data: Dataset, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert main(command.split()) == 1
    assert ERRORS[command] in output(capsys)


DONE = {
    "profile world": ("template.parquet",),
    "export world --format recbole": ("world-recbole",),
    "judge world --profiles template --sample 2 --dry-run": ("6 calls to make", "cost (USD)"),
    "quality world --encoder tfidf-8": ("by profile vectors alone:", "template", "auxiliary", "recall"),
    "profile world --profiles llm --domain movies --dry-run": (
        *("124 calls, about ", "to ask", "cost (USD)", "as a batch", "gpt-4o-mini", "prices of 20"),
        *(f"--- prompt of {subject}" for subject in ("item 0", "auxiliary 48", "user 0")),
    ),
    "profile world --source llm --dry-run": ("--source is now --profiles", "124 calls"),
    "profile world --source=llm --dry-run": ("--source is now --profiles", "124 calls"),
}
"""Commands that need no server and no run, and what they say; the last two have the old name of an option."""


@pytest.mark.parametrize("command", DONE)
def test_what_is_done_is_said(command: str, data: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command.split()) == 0
    text = output(capsys)
    assert [words for words in DONE[command] if words not in text] == []
    assert data.profile_sets() == ["template"]


@pytest.mark.parametrize(
    "arguments", ["--help", "train --help", "build amazon --help", "doctor", "bench", "quality nowhere"]
)
@pytest.mark.parametrize("buffering", [-1, 1])
def test_a_reader_that_stops_reading_ends_a_command_quietly(
    arguments: str, buffering: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w", buffering, encoding="utf-8") as pipe:
        monkeypatch.setattr("sys.stdout", pipe)
        monkeypatch.setattr("sys.stderr", pipe)
        assert main(arguments.split()) == 141
        pipe.write("what is flushed at the exit")


def test_another_broken_pipe_is_no_closed_output(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken() -> str:
        raise BrokenPipeError(errno.EPIPE, "a server hung up")

    monkeypatch.setattr("spike_kit.base.devices.describe_machine", broken)
    with (tmp_path / "out").open("w") as file:
        monkeypatch.setattr("sys.stdout", file)
        monkeypatch.setattr("sys.stderr", file)
        with pytest.raises(BrokenPipeError, match="hung up"):
            main(["doctor"])


LONG = "s" * 300
PATHS = {
    f"build tables --name {LONG} --raw . --interactions r.csv": "cannot be the name of a data set",
    f"build tables --raw {LONG} --interactions r.csv": f"{LONG} cannot be used: File name too long",
    f"evaluate {LONG}": "manifest.json cannot be used: File name too long",
    f"quality world --profiles {LONG}": "cannot be used: File name too long",
    f"export world --to {LONG}": f"{LONG} cannot be used: File name too long",
    "export world --to file/a": "is in the way",
    "grid file/a": "file/a",
}
"""Commands with paths that the file system refuses, and what they say."""


@pytest.mark.parametrize("command", PATHS, ids=lambda command: command.replace(LONG, "LONG"))
def test_a_path_that_the_file_system_refuses_is_named(
    command: str, data: Dataset, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    monkeypatch.chdir(home)
    (home / "file").touch()
    assert main(command.split()) == 1
    text = output(capsys)
    assert PATHS[command] in text
    assert "\n  -> " in text


def test_a_misspelt_option_is_an_error(data: Dataset) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--dataset", "world", "--roh", "1"])
    assert stopped.value.code == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="checks the error of a machine without CUDA")
def test_the_words_of_the_authors_readme_work_up_to_the_missing_gpu(
    data: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--dataset", "world", "--model", "spike", "--gpu", "0"]) == 1
    text = output(capsys)
    assert "there is no CUDA device here" in text
    assert "leave --gpu out" in text
    assert not paths.runs_root().exists()


def test_a_setting_that_is_switched_off_is_off_whatever_the_preset_says(data: Dataset) -> None:
    command = "train --dataset world --preset new_items --id-dropout 0 --new-item-scale 1 --epochs 1 --device cpu"
    assert main(command.split()) == 0
    (done,) = list_runs(data.name)
    assert {"id_dropout", "new_item_scale"}.isdisjoint(done.config["model_settings"])
    assert "new_item_scale=1.0, id_dropout=0.0" in run_label(done)
    settings = RunConfig(preset="new_items", settings={"id_dropout": 0.0, "new_item_scale": 1.0}).resolved()[0]
    assert done.config["model_settings"] == settings.model_dump(mode="json")


def test_train_and_evaluate(data: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    off = ["--no-text", "--rho", "0.3"]
    options = {"popularity": ["--device", "cpu"], "bprmf": SHORT, "lightgcn": SHORT, "spike": [*SHORT, *off]}
    for model, arguments in options.items():
        assert main(["train", "--dataset", str(data.path), "--model", model, *arguments]) == 0
    assert capsys.readouterr().out.count("ndcg@20") == 8
    assert len(list(paths.runs_root().iterdir())) == 4
    assert main(["evaluate", str(data.path)]) == 0
    table = output(capsys)
    shown = ("Popularity", "BPR-MF", "LightGCN", "SPiKE w/o any text", "recall@40", "best epoch")
    assert [word for word in shown if word not in table] == []
    assert main(["evaluate", "world", "--cutoffs", "3", "--metrics", "mrr", "--split", "valid"]) == 0
    assert "mrr@3" in output(capsys)
    assert main(["evaluate", "world", "--beyond", "5", "--device", "cpu"]) == 0
    table = output(capsys)
    assert [words for words in (*MEASURES, "items by facts, lists of 5, test split") if words not in table] == []
    for wrong, message in {"3 --metrics f1": "no metric named 'f1@3'", "0": "a cut-off must be at least 1"}.items():
        assert main(["evaluate", "world", "--cutoffs", *wrong.split()]) == 1
        assert message in output(capsys)


def test_doctor_says_present_or_absent_and_never_the_key(
    data: Dataset, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-planted-secret")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert main(["doctor"]) == 0
    text = output(capsys)
    assert "OPENAI_API_KEY: present" in text
    assert "HF_TOKEN: absent" in text
    assert "planted" not in text
    assert all(word in text for word in ("torch", "memory", "folder", "devices", "cpu (", "[figures]", "world"))
    assert all(f"{package} " in text for package in ("duckdb", "scipy", "anywidget", "optuna", "openai", "ray"))


def test_doctor_works_before_anything_exists(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(paths.HOME_VARIABLE, str(tmp_path / "not" / "yet"))
    assert main(["doctor"]) == 0
    assert "none yet" in output(capsys)


def test_help_of_build_names_every_source(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], *([name] for name in SOURCES)):
        with pytest.raises(SystemExit):
            main(["build", *arguments, "--help"])
        shown = capsys.readouterr().out
        assert all(f"- {name}:" in shown for name in RECIPES)
        assert "--min-rating" in shown


def test_profiling_by_batches(data: Dataset, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """With the answers that a service would give to each exported file."""
    results = tmp_path / "results.jsonl"
    for subject, count in (("item", 48), ("auxiliary", 20), ("user", 56)):
        path = tmp_path / f"{subject}.jsonl"
        assert main(["profile", "world", "--profiles", "llm", "--batch-export", str(path)]) == 0
        assert f"{subject}: {path}" in capsys.readouterr().out
        lines = []
        for request in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
            body = completion("A profile of one of the films, for those who like it.", request["body"])
            lines.append({"custom_id": request["custom_id"], "response": {"status_code": 200, "body": body}})
        results.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
        assert main(["profile", "world", "--profiles", "llm", "--batch-import", str(results)]) == 0
        assert f"0 answers from before, {count} new, 0 failed; {count} calls" in capsys.readouterr().out
    assert main(["profile", "world", "--profiles", "llm", "--batch-export", str(tmp_path / "none.jsonl")]) == 0
    assert "every question is answered" in capsys.readouterr().out


def test_profiles_and_vectors_of_others_are_taken_in(
    data: Dataset, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name, table in {"items": data.items, "users": data.users}.items():
        texts = {key: f"Theirs: {label}." for key, label in zip(table["source_id"], table["label"], strict=True)}
        (tmp_path / f"{name}.json").write_text(json.dumps(texts), encoding="utf-8")
    texts = [f"--{name}={tmp_path / name}.json" for name in ("items", "users")]
    assert main(["import-profiles", "world", "--profiles", "theirs", *texts]) == 0
    assert "theirs leaves out 20 auxiliary profiles: no file was given." in output(capsys)
    assert main(["import-profiles", "world", "--profiles", "theirs", *texts, "--fill", "template"]) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("theirs.parquet", "imported: 48 item, 0 auxiliary, 56 user", "possibly leaky"))
    wrong = dict.fromkeys(data.items["source_id"], "On soups.")
    (tmp_path / "soups.json").write_text(json.dumps(wrong), encoding="utf-8")
    soups = ["import-profiles", "world", "--profiles", "soups", "--items", str(tmp_path / "soups.json")]
    assert main([*soups, "--fill", "template"]) == 1
    assert "--insist" in output(capsys)
    assert main([*soups, "--fill", "template", "--insist"]) == 0
    for name, rows in {"users": len(data.users), "entities": len(data.entities)}.items():
        np.save(tmp_path / f"{name}.npy", np.ones((rows, 3), dtype=np.float32))
    vectors = [f"--{name}={tmp_path / name}.npy" for name in ("users", "entities")]
    assert main(["import-vectors", "world", *vectors, "--name", "ones"]) == 0
    assert data.vectors("template", "given:ones").dim == 3
