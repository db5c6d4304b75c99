"""Runs that meet gaps: a display that fails, a subject that never gets an answer, a key that is not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from spike_kit.base.errors import DataError
from spike_kit.base.storage import read_json
from spike_kit.cli import main
from spike_kit.profiles.jobs import Progress
from spike_kit.profiles.prompts import PromptWriter
from spike_kit.profiles.template import Links, Names
from tests.profiles.llm_server import ids, stored
from tests.profiles.tiny import generation, in_memory, prose, served, tiny_study, tiny_tables


def empty_for_heat(body: dict[str, Any]) -> str:
    """No answer about one item, ever."""
    return "" if str(body["messages"][1]["content"]).split('"')[1] == "Heat" else prose(body)


def test_a_display_that_fails_loses_no_answer() -> None:
    data = tiny_study()
    with served() as server:
        made = generation(data, server.base_url)

        def broken(progress: Progress) -> None:
            if progress.calls:
                raise BrokenPipeError("the terminal is gone")

        with pytest.raises(BrokenPipeError):
            made.run(watch=broken)
        assert len(ids(made, "answers")) == len(server.bodies) > 0


def test_with_fill_the_estimate_counts_only_what_will_be_asked() -> None:
    data = tiny_study()
    with served(empty_for_heat) as server:
        made = generation(data, server.base_url, fill="template")
        assert made.run().missing == {"item": 1}
        before = len(server.bodies)
        assert made.estimate().calls == 1
        generation(data, server.base_url, fill="template").run()
        assert len(server.bodies) == before + 1
    assert generation(data, server.base_url).estimate().calls > 1


def test_a_complete_store_needs_no_key_and_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    data = tiny_study()
    with served() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        made = generation(data, "")
        made.run()
        assert data.provenance("llm")["server"] == server.base_url
        assert stored(made, "SELECT DISTINCT server FROM answers") == [(server.base_url,)]
    monkeypatch.delenv("OPENAI_BASE_URL")
    outcome = generation(data, "").run()
    assert outcome.path is not None
    assert (outcome.progress.calls, outcome.progress.found) == (0, outcome.progress.total)


def test_an_incomplete_run_is_no_success_for_the_shell(capsys: pytest.CaptureFixture[str]) -> None:
    tiny_study()
    with served(empty_for_heat) as server:
        asks = ["profile", "films", "--profiles", "llm", "--model", "small", "--base-url", server.base_url]
        assert main(asks) == 1
        said = capsys.readouterr().err
        assert all(words in said for words in ("no answer yet for: 1 item", "item 4: empty: 2 answers, none usable"))
        assert "--fill template" in said
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


def test_prompts_can_be_written_before_the_data_folder_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tiny_study(reviews={(0, 0): "A review of the train split."})
    monkeypatch.setenv("SPIKE_KIT_HOME", str(tmp_path / "elsewhere"))
    assert "A review of the train split." in next(PromptWriter(data).prompts("item")).data


def test_deeply_nested_json_is_an_error_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "deep.json"
    path.write_text("[" * 200_000, encoding="utf-8")
    with pytest.raises(DataError, match="is not valid JSON"):
        read_json(path)
