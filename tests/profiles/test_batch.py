from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spike_kit.base.errors import DataError
from spike_kit.data.dataset import Dataset
from spike_kit.profiles import batch
from spike_kit.profiles.batch import export_batch, import_batch
from spike_kit.profiles.checks import REMEDIES
from spike_kit.profiles.generate import Generation
from spike_kit.profiles.jobs import Progress
from spike_kit.profiles.loopback import completion
from tests.profiles.tiny import generation, prose, tiny_study

NOWHERE = "http://127.0.0.1:9/v1"
Reply = Callable[[dict[str, Any]], str]


@pytest.fixture
def data() -> Dataset:
    return tiny_study()


@pytest.fixture
def asked(data: Dataset) -> Generation:
    return generation(data, NOWHERE)


def accepted(path: Path) -> list[dict[str, Any]]:
    """Requests of a batch file, read as strictly as OpenAI's service does."""
    content = path.read_bytes()
    assert content.endswith(b"\n")
    requests = [json.loads(line) for line in content.decode().splitlines()]
    assert len(content.splitlines()) == content.count(b"\n") == len(requests)
    for request in requests:
        assert set(request) == {"custom_id", "method", "url", "body"}
        assert (request["method"], request["url"]) == ("POST", "/v1/chat/completions")
        assert isinstance(request["custom_id"], str)
        assert 0 < len(request["custom_id"]) <= 64
        body = request["body"]
        assert body["model"] == "small-model"
        assert "stream" not in body
        assert all(set(message) == {"role", "content"} and message["content"] for message in body["messages"])
        assert [message["role"] for message in body["messages"]][:2] == ["system", "user"]
    assert len({request["custom_id"] for request in requests}) == len(requests)
    assert len({request["body"]["model"] for request in requests}) == 1
    return requests


def served(request: dict[str, Any], text: str) -> dict[str, Any]:
    body = completion(text, request["body"])
    response = {"status_code": 200, "request_id": "req_1", "body": body}
    return {"id": "batch_req_1", "custom_id": request["custom_id"], "response": response, "error": None}


def of_vllm(request: dict[str, Any], text: str) -> dict[str, Any]:
    body = completion(text, request["body"]) | {"prompt_logprobs": None, "kv_transfer_params": None}
    response = {"status_code": 200, "request_id": "vllm-batch-1", "body": body}
    return {"id": "vllm-1", "custom_id": request["custom_id"], "response": response, "error": None}


def expired(request: dict[str, Any]) -> dict[str, Any]:
    error = {"code": "batch_expired", "message": "This request could not be executed in time."}
    return {"id": "batch_req_2", "custom_id": request["custom_id"], "response": None, "error": error}


def refused(request: dict[str, Any], status: int, code: str | None = None) -> dict[str, Any]:
    body = {"error": {"message": "made to fail", "type": "error", "param": None, "code": code}}
    response = {"status_code": status, "request_id": "req_3", "body": body}
    return {"id": "batch_req_3", "custom_id": request["custom_id"], "response": response, "error": None}


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def export(asked: Generation, path: Path) -> tuple[str, list[dict[str, Any]]]:
    """Export into a file that is then taken in by the service."""
    subject, files = export_batch(asked, path)
    requests = [request for file in files for request in accepted(file)]
    for file in files:
        file.unlink()
    return subject, requests


def test_a_whole_generation_by_batches(data: Dataset, tmp_path: Path) -> None:
    asked, path = generation(data, NOWHERE), tmp_path / "batch.jsonl"
    subject, items = export(asked, path)
    assert (subject, len(items)) == ("item", 6)
    unusable = ["I'm sorry, but I can't do that.", "Das ist die Geschichte von einem Schiff " * 4, "too long " * 100]
    lines = [served(items[0], prose(items[0]["body"])), of_vllm(items[1], prose(items[1]["body"]))]
    lines += [served(items[2], unusable[0]), served(items[3], unusable[1])]
    errors = [expired(items[4]), refused(items[5], 429, "rate_limit_exceeded")]
    random.Random(0).shuffle(lines)
    files = [write(tmp_path / "output.jsonl", lines), write(tmp_path / "errors.jsonl", errors)]
    found = import_batch(generation(data, NOWHERE), files)
    assert (found.usable, found.already, found.unknown) == (2, 0, 0)
    assert found.problems == Counter({"refused": 1, "language": 1})
    assert found.errors == Counter({"batch_expired": 1, "rate_limit_exceeded": 1})

    subject, again = export(generation(data, NOWHERE), path)
    assert subject == "item"
    assert [request["custom_id"].split(":")[1] for request in again] == ["2", "3", "4", "5"]
    chats = [request["body"]["messages"] for request in again]
    assert [len(chat) for chat in chats] == [4, 4, 2, 2]
    assert chats[0][2:] == [
        {"role": "assistant", "content": unusable[0]},
        {"role": "user", "content": REMEDIES["refused"]},
    ]
    assert chats[1][3]["content"] == REMEDIES["language"]
    assert [chat[:2] for chat in chats] == [request["body"]["messages"] for request in items[2:]]
    assert {request["custom_id"] for request in again[:2]}.isdisjoint(request["custom_id"] for request in items)

    write(files[0], [served(request, prose(request["body"])) for request in reversed(again)])
    assert import_batch(generation(data, NOWHERE), files[:1]).usable == 4
    for expected, count in (("auxiliary", 6), ("user", 3)):
        subject, requests = export(generation(data, NOWHERE), path)
        assert (subject, len(requests)) == (expected, count)
        assert any("This is a profile of Alien" in request["body"]["messages"][1]["content"] for request in requests)
        write(files[0], [served(request, prose(request["body"])) for request in requests])
        assert import_batch(generation(data, NOWHERE), files[:1]).usable == count
    assert export_batch(generation(data, NOWHERE), path) == ("", [])
    assert not path.exists()
    progress = Progress()
    assert generation(data, NOWHERE).run(progress).path == data.profiles_path("llm")
    assert (progress.calls, progress.found) == (0, 15)
    assert data.profiles("llm")["text"].str.startswith("This is a profile of").sum() == 15


def test_the_parameters_of_the_request_go_along(data: Dataset, tmp_path: Path) -> None:
    asked = generation(data, NOWHERE, top_p=0.5, token_limit="max_completion_tokens", extra='{"seed": 1}')
    _, requests = export(asked, tmp_path / "batch.jsonl")
    body = {name: value for name, value in requests[0]["body"].items() if name != "messages"}
    assert body == {
        "model": "small-model", "temperature": 0.0, "top_p": 0.5, "max_completion_tokens": 400, "seed": 1,
    }  # fmt: skip


def test_an_answer_that_is_too_long_is_asked_once_more_and_then_taken(asked: Generation, tmp_path: Path) -> None:
    long = "the film and the sea " * 40
    for usable, rest in ((0, 6), (6, 0)):
        _, requests = export(asked, tmp_path / "batch.jsonl")
        output = write(tmp_path / "output.jsonl", [served(request, long) for request in requests])
        found = import_batch(asked, [output])
        assert (found.usable, found.problems["too_long"]) == (usable, 6)
        assert asked.estimate().table["to ask"][0] == rest


def test_importing_a_file_again_changes_nothing(data: Dataset, asked: Generation, tmp_path: Path) -> None:
    _, requests = export(asked, tmp_path / "batch.jsonl")
    lines = [served(request, prose(request["body"])) for request in requests[:4]]
    lines += [served(requests[4], "Sorry, no."), refused(requests[5], 500)]
    output = write(tmp_path / "output.jsonl", lines)
    assert import_batch(asked, [output]).usable == 4
    _, before = export(asked, tmp_path / "batch.jsonl")
    again = import_batch(generation(data, NOWHERE), [output, output])
    assert (again.usable, again.already, again.problems) == (0, 10, Counter())
    assert again.errors == Counter({"500": 2})
    _, after = export(asked, tmp_path / "batch.jsonl")
    assert after == before
    assert len(after) == 2


def test_an_error_file_of_before_does_not_touch_later_answers(asked: Generation, tmp_path: Path) -> None:
    _, requests = export(asked, tmp_path / "batch.jsonl")
    errors = write(tmp_path / "errors.jsonl", [expired(request) for request in requests])
    output = write(tmp_path / "output.jsonl", [served(request, prose(request["body"])) for request in requests])
    assert import_batch(asked, [output, errors]).usable == 6
    assert asked.estimate().table["answered"][0] == 6


@pytest.mark.parametrize(
    ("body", "code"),
    [({}, "garbage"), ({"choices": []}, "garbage"), ("text", "garbage"), (None, "garbage"), ([1], "garbage")],
)
def test_a_line_without_a_completion_is_a_failure(asked: Generation, tmp_path: Path, body: Any, code: str) -> None:
    _, requests = export(asked, tmp_path / "batch.jsonl")
    lines = [served(request, "") | {"response": {"status_code": 200, "body": body}} for request in requests]
    lines[1] = {"custom_id": requests[1]["custom_id"]}
    found = import_batch(asked, [write(tmp_path / "output.jsonl", lines)])
    assert found.errors == Counter({code: 5, "error": 1})
    assert len(export(asked, tmp_path / "batch.jsonl")[1]) == 6


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"garbage", r"line 2 is not JSON"),
        (b'{"custom_id": "item:1', r"line 2 is not JSON"),
        (b"[" * 100_000, r"line 2 is not JSON"),
        (b"[1]", r"line 2 is no JSON object"),
        (b'{"id": "x", "response": null}', r"line 2 has no custom_id"),
        (b'{"custom_id": 3}', r"line 2 has no custom_id"),
        (b"\xff\xfe{}", r"is not text in UTF-8"),
    ],
)
def test_a_broken_file_is_an_error_that_names_the_line(
    asked: Generation, tmp_path: Path, content: bytes, message: str
) -> None:
    _, requests = export(asked, tmp_path / "batch.jsonl")
    good = json.dumps(served(requests[0], prose(requests[0]["body"]))).encode()
    path = tmp_path / "output.jsonl"
    path.write_bytes(good + b"\n" + content + b"\n")
    with pytest.raises(DataError, match=message) as raised:
        import_batch(asked, [path])
    assert str(path) in raised.value.message
    if b"\xff" not in content:
        assert asked.estimate().table["answered"][0] == 1
    path.write_bytes(b"\n\n" + good + b"\n  \n")
    assert import_batch(asked, [path]).errors == Counter()


def test_foreign_lines_are_counted_and_missing_files_named(asked: Generation, tmp_path: Path) -> None:
    export(asked, tmp_path / "batch.jsonl")
    path = write(tmp_path / "output.jsonl", [{"custom_id": "request-1", "response": None, "error": None}] * 2)
    assert import_batch(asked, [path]).unknown == 2
    assert asked.estimate().calls == 15
    with pytest.raises(DataError, match=r"gone\.jsonl cannot be read: No such file"):
        import_batch(asked, [tmp_path / "gone.jsonl"])
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        import_batch(asked, [tmp_path])


@pytest.mark.parametrize(("limit", "sizes"), [("requests", [4, 2]), ("bytes", [2, 2, 2])])
def test_large_exports_are_split(
    asked: Generation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, sizes: list[int]
) -> None:
    _, files = export_batch(asked, tmp_path / "whole.jsonl")
    whole = files[0].read_bytes()
    longest = max(map(len, whole.splitlines(keepends=True)))
    monkeypatch.setattr(batch, "MAX_REQUESTS", 4 if limit == "requests" else 1000)
    monkeypatch.setattr(batch, "MAX_BYTES", 10**9 if limit == "requests" else 2 * longest)
    subject, files = export_batch(asked, tmp_path / "batch.jsonl")
    assert subject == "item"
    assert [file.name for file in files] == [f"batch{n}.jsonl" for n in ("", "-2", "-3")[: len(sizes)]]
    assert [len(accepted(file)) for file in files] == sizes
    assert all(file.stat().st_size <= batch.MAX_BYTES for file in files)
    assert b"".join(file.read_bytes() for file in files) == whole


def test_an_existing_file_is_not_overwritten(asked: Generation, tmp_path: Path) -> None:
    path = tmp_path / "batch.jsonl"
    path.write_text("precious")
    with pytest.raises(DataError, match=r"(?s)batch\.jsonl exists.*choose another name"):
        export_batch(asked, path)
    assert path.read_text() == "precious"


def test_a_part_that_exists_leaves_no_part_behind(
    asked: Generation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "batch.jsonl"
    (tmp_path / "batch-2.jsonl").write_text("precious")
    monkeypatch.setattr(batch, "MAX_REQUESTS", 4)
    with pytest.raises(DataError, match=r"batch-2\.jsonl exists"):
        export_batch(asked, path)
    assert (tmp_path / "batch-2.jsonl").read_text() == "precious"
    assert not path.exists()
