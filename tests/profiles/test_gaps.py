"""Runs that meet gaps: a display that fails, a subject that never gets an answer, a key that is not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from spike_kit.base.errors import ConfigError, DataError
from spike_kit.base.storage import read_json
from spike_kit.cli import main
from spike_kit.profiles.batch import export_batch, import_batch
from spike_kit.profiles.facts import Links, Names
from spike_kit.profiles.generate import Generation
from spike_kit.profiles.jobs import Progress
from spike_kit.profiles.judge import Judge, JudgeConfig
from spike_kit.profiles.llm import LLMConfig
from spike_kit.profiles.loopback import completion
from spike_kit.profiles.prompts import PromptWriter, prompt_texts
from spike_kit.profiles.quality import measure_profiles
from spike_kit.profiles.store import Store
from spike_kit.profiles.template import template_profiles
from tests.profiles.tiny import generation, in_memory, prose, served, tiny_study, tiny_tables

BAD = "Heat"
"""Item that never gets a usable answer."""


def empty_for_one(body: dict[str, Any]) -> str:
    first = str(body["messages"][1]["content"]).split('"')[1]
    return "" if first == BAD else prose(body)


def stored(made: Generation, table: str) -> int:
    with Store(made.answers) as store:
        return store.run(f"SELECT count(*) FROM {table}")[0][0]


def test_a_display_that_fails_loses_no_answer() -> None:
    data = tiny_study()
    with served() as server:
        made = generation(data, server.base_url)

        def broken(_: str, progress: Progress) -> None:
            if progress.calls:
                raise BrokenPipeError("the terminal is gone")

        with pytest.raises(BrokenPipeError):
            made.run(watch=broken)
        assert stored(made, "answers") == len(server.bodies) > 0


def test_with_fill_the_estimate_counts_only_what_will_be_asked() -> None:
    data = tiny_study()
    with served(empty_for_one) as server:
        made = generation(data, server.base_url, fill="template")
        outcome = made.run()
        assert outcome.missing == {"item": 1}
        before = len(server.bodies)
        assert made.estimate().calls == 1
        generation(data, server.base_url, fill="template").run()
        assert len(server.bodies) == before + 1
    assert generation(data, server.base_url).estimate().calls > 1


def answered(path: Path, target: Path) -> Path:
    """Output file of a batch service that has nothing to say about one item."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        request = json.loads(line)
        body = completion(empty_for_one(request["body"]), request["body"])
        response = {"status_code": 200, "request_id": "r", "body": body}
        lines.append(json.dumps({"id": "b", "custom_id": request["custom_id"], "response": response, "error": None}))
    target.write_text("\ufeff" + "\n".join(lines), encoding="utf-8")
    return target


def test_with_fill_batches_go_on_past_an_item_that_never_gets_an_answer(tmp_path: Path) -> None:
    made = generation(tiny_study(), "http://127.0.0.1:9/v1", fill="template")
    written = []
    for number in range(5):
        subject, files = export_batch(made, tmp_path / f"{number}.jsonl")
        if not files:
            break
        written.append(subject)
        import_batch(made, [answered(files[0], tmp_path / f"{number}-out.jsonl")])
    assert written == ["item", "item", "auxiliary", "user"]


def test_half_a_character_in_a_batch_error_is_no_obstacle(tmp_path: Path) -> None:
    made = generation(tiny_study(), "http://127.0.0.1:9/v1")
    _, (path,) = export_batch(made, tmp_path / "a.jsonl")
    ids = [json.loads(line)["custom_id"] for line in path.read_text(encoding="utf-8").splitlines()]
    error = {"code": "content_filter\ud83d", "message": "\ud83d"}
    lines = [{"custom_id": ids[0], "response": None, "error": error}, {"custom_id": "\ud83d", "response": None}]
    out = tmp_path / "out.jsonl"
    out.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    found = import_batch(made, [out])
    assert (sum(found.errors.values()), found.unknown) == (1, 1)


def test_a_complete_store_needs_no_key_and_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    data = tiny_study()
    with served() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        generation(data, "").run()
    monkeypatch.delenv("OPENAI_BASE_URL")
    outcome = generation(data, "").run()
    assert outcome.path is not None
    assert (outcome.progress.calls, outcome.progress.found) == (0, outcome.progress.total)


def test_an_incomplete_run_is_no_success_for_the_shell(capsys: pytest.CaptureFixture[str]) -> None:
    tiny_study()
    with served(empty_for_one) as server:
        asks = ["profile", "films", "--profiles", "llm", "--model", "small", "--base-url", server.base_url]
        assert main(asks) == 1
        said = capsys.readouterr()
        assert "no answer yet for: 1 item" in said.err
        assert "--fill template" in said.err
        assert main([*asks, "--fill", "template"]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "gpt-4o"], "template profiles ask no model"),
        (["--profiles", "gpt-4o"], "profiles called gpt-4o would be written by gpt-4o-mini"),
    ],
)
def test_names_and_models_that_do_not_fit_are_refused(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_study()
    assert main(["profile", "films", *options]) == 1
    assert message in capsys.readouterr().err


def test_names_that_look_like_ids_stay_names() -> None:
    labels = ["PG-13", "U2", "1999", "B-52", "300", "m.0dl567"]
    others = [(label, label, "thing") for label in labels]
    tables = tiny_tables(others=others, triples=[(0, 2, 6 + place) for place in range(len(labels))])
    named = Names(tables, Links.of(tables)).labels[6:]
    assert named == [*labels[:-1], "award of Alien"]
    numbered = in_memory(tiny_tables(labels={place: f"film:{place}" for place in range(6)})).tables
    numbered.entities["label"] = numbered.entities["source_id"] = [str(place) for place in range(12)]
    assert set(Names(numbered, Links.of(numbered)).labels) == {"unnamed item", "unnamed entity"}


def test_the_judge_asks_once_about_equal_texts_and_leaves_out_what_was_filled_in() -> None:
    data = tiny_study()
    profiles = template_profiles(data)
    data.write_profiles("template", profiles)
    data.write_profiles("same", profiles)
    filled = profiles.assign(text="Other words.").astype({"text": "str"})
    filled.loc[filled["subject"] == "item", "usage"] = '{"filled": true}'
    data.write_profiles("half", filled)
    config = JudgeConfig(llm=LLMConfig(base_url="http://127.0.0.1:9/v1"), sample=50)
    alone = Judge(data, ["template"], config).estimate()[0]
    assert alone == Judge(data, ["template", "same"], config).estimate()[0] > 0
    assert {question.subject for question in Judge(data, ["half"], config).questions} == {"auxiliary", "user"}
    both = {name: data.profiles(name) for name in ("template", "half")}
    measured = measure_profiles(both, {name: prompt_texts(data, name) for name in both})
    assert set(measured["subject"]) == {"auxiliary", "user"}
    with pytest.raises(ConfigError, match="judging of the profile sets tie"):
        Judge(data, ["tie"], config)


def test_prompts_can_be_written_before_the_data_folder_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tiny_study(reviews={(0, 0): "A review of the train split."})
    monkeypatch.setenv("SPIKE_KIT_HOME", str(tmp_path / "elsewhere"))
    assert "A review of the train split." in next(PromptWriter(data).prompts("item")).data


def test_deeply_nested_json_is_an_error_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "deep.json"
    path.write_text("[" * 200_000, encoding="utf-8")
    with pytest.raises(DataError, match="is not valid JSON"):
        read_json(path)
