import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from spike_kit.base.errors import DataError
from spike_kit.data.dataset import Dataset
from spike_kit.profiles import generate
from spike_kit.profiles.checks import REMEDIES
from spike_kit.profiles.generate import Generation, export_batch, import_batch
from spike_kit.profiles.jobs import Progress
from spike_kit.profiles.loopback import completion
from tests.profiles.tiny import NOWHERE, generation, prose, tiny_study


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
    requests = [json.loads(line) for line in content.splitlines()]
    for request in requests:
        body = request["body"]
        assert set(request) == {"custom_id", "method", "url", "body"}
        assert (request["method"], request["url"]) == ("POST", "/v1/chat/completions")
        assert (body["model"], 0 < len(request["custom_id"]) <= 64, "stream" in body) == ("small-model", True, False)
        assert all(set(message) == {"role", "content"} and message["content"] for message in body["messages"])
        assert [message["role"] for message in body["messages"]][:2] == ["system", "user"]
    assert len({request["custom_id"] for request in requests}) == len(requests)
    return requests


def line(request: dict[str, Any], body: Any, status: int = 200, error: Any = None) -> dict[str, Any]:
    """Line of an output or error file, as OpenAI's service writes it."""
    response = None if error else {"status_code": status, "request_id": "req_1", "body": body}
    return {"id": "batch_req_1", "custom_id": request["custom_id"], "response": response, "error": error}


def served(request: dict[str, Any], text: str, **further: Any) -> dict[str, Any]:
    return line(request, completion(text, request["body"]) | further)


def expired(request: dict[str, Any]) -> dict[str, Any]:
    return line(request, None, error={"code": "batch_expired", "message": "This request took too long."})


def refused(request: dict[str, Any], status: int) -> dict[str, Any]:
    return line(request, {"error": {"message": "made to fail", "type": "error", "code": None}}, status)


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("\ufeff" + "".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def export(asked: Generation, path: Path) -> tuple[str, list[dict[str, Any]]]:
    """Export into a file that is then taken in by the service."""
    subject, files = export_batch(asked, path)
    requests = [request for file in files for request in accepted(file)]
    for file in files:
        file.unlink()
    return subject, requests


def test_a_whole_generation_by_batches(data: Dataset, tmp_path: Path) -> None:
    settings = {"top_p": 0.5, "token_limit": "max_completion_tokens", "extra": '{"seed": 1}'}
    path, files = tmp_path / "batch.jsonl", [tmp_path / "output.jsonl", tmp_path / "errors.jsonl"]

    def asked() -> Generation:
        return generation(data, NOWHERE, **settings)

    subject, items = export(asked(), path)
    assert (subject, len(items)) == ("item", 6)
    expected = {"model": "small-model", "temperature": 0.0, "top_p": 0.5, "max_completion_tokens": 400, "seed": 1}
    assert {name: value for name, value in items[0]["body"].items() if name != "messages"} == expected
    long = "the film and the sea " * 40
    unusable = [long, "I'm sorry, but I can't do that.", "Das ist die Geschichte von einem Schiff " * 4]
    texts = [prose(items[0]["body"]), *unusable]
    lines = [served(*pair, prompt_logprobs=None) for pair in zip(items, texts, strict=False)]
    random.Random(0).shuffle(lines)
    write(files[0], lines)
    write(files[1], [expired(items[4]), refused(items[5], 429)])
    found = import_batch(asked(), files)
    assert (found.done, found.found) == (1, 0)
    assert found.problems == Counter({"too_long": 1, "refused": 1, "language": 1})
    assert found.failures == Counter({"server": 1, "busy": 1})
    assert "batch_expired: This request took too long." in found.first_failures[0]

    subject, again = export(asked(), path)
    assert (subject, [request["custom_id"].split(":")[1] for request in again]) == ("item", ["1", "2", "3", "4", "5"])
    chats = [request["body"]["messages"] for request in again]
    assert [len(chat) for chat in chats] == [4, 4, 4, 2, 2]
    assert chats[1][2]["content"] == unusable[1]
    assert [chat[3]["content"] for chat in chats[1:3]] == [REMEDIES["refused"], REMEDIES["language"]]
    assert [chat[:2] for chat in chats] == [request["body"]["messages"] for request in items[1:]]
    assert {request["custom_id"] for request in again[:3]}.isdisjoint(request["custom_id"] for request in items)

    texts = [long, *(prose(request["body"]) for request in again[1:])]
    write(files[0], [served(*pair) for pair in zip(again, texts, strict=True)][::-1])
    found = import_batch(asked(), files[:1])
    assert (found.done, found.problems) == (5, Counter({"too_long": 1})), "what stays too long is taken"
    for kind, count in (("auxiliary", 6), ("user", 3)):
        subject, requests = export(asked(), path)
        assert (subject, len(requests)) == (kind, count)
        assert any("This is a profile of Alien" in request["body"]["messages"][1]["content"] for request in requests)
        write(files[0], [served(request, prose(request["body"])) for request in requests])
        assert import_batch(asked(), files[:1]).done == count
    assert export_batch(asked(), path) == ("", [])
    assert not path.exists()
    progress = Progress()
    assert asked().run(progress).path == data.profiles_path("llm")
    assert (progress.calls, progress.found) == (0, 15)
    assert data.profiles("llm")["text"].str.startswith("This is a profile of").sum() == 14


def test_importing_a_file_again_changes_nothing(data: Dataset, asked: Generation, tmp_path: Path) -> None:
    _, requests = export(asked, tmp_path / "batch.jsonl")
    lines = [served(request, prose(request["body"])) for request in requests[:4]]
    lines += [served(requests[4], "Sorry, no."), refused(requests[5], 500)]
    output = write(tmp_path / "output.jsonl", lines)
    assert import_batch(asked, [output]).done == 4
    _, before = export(asked, tmp_path / "batch.jsonl")
    errors = write(tmp_path / "errors.jsonl", [expired(request) for request in requests[:4]])
    again = import_batch(generation(data, NOWHERE), [output, output, errors])
    assert (again.done, again.found, again.problems, again.failures) == (0, 14, Counter(), Counter({"server": 2}))
    assert export(asked, tmp_path / "batch.jsonl")[1] == before
    assert len(before) == 2


def test_lines_without_a_completion_are_failures(asked: Generation, tmp_path: Path) -> None:
    _, requests = export(asked, tmp_path / "batch.jsonl")
    bodies = [{}, {"choices": []}, "text", None]
    lines = [line(request, body) for request, body in zip(requests, bodies, strict=False)]
    lines += [{"custom_id": requests[4]["custom_id"]}]
    lines += [line(requests[5], None, error={"code": "content_filter\ud83d", "message": "\ud83d"})]
    lines += [{"custom_id": "\ud83d", "response": None}, {"custom_id": "request-1", "response": None, "error": None}]
    found = import_batch(asked, [write(tmp_path / "output.jsonl", lines)])
    assert found.failures == Counter({"garbage": 4, "server": 2, "unknown": 2})
    assert len(export(asked, tmp_path / "batch.jsonl")[1]) == 6


BROKEN = [b"garbage", b"[" * 100_000, b"\xff{}", b"[1]", b'{"id": "x", "response": null}']


@pytest.mark.parametrize("content", BROKEN, ids=lambda content: repr(content[:8]))
def test_a_broken_file_is_an_error_that_names_the_line(asked: Generation, tmp_path: Path, content: bytes) -> None:
    _, requests = export(asked, tmp_path / "batch.jsonl")
    good = json.dumps(served(requests[0], prose(requests[0]["body"]))).encode()
    path = tmp_path / "output.jsonl"
    path.write_bytes(good + b"\n" + content + b"\n")
    with pytest.raises(DataError, match=rf"{path} line 2 (is not JSON|has no custom_id)"):
        import_batch(asked, [path])
    assert asked.estimate().table["answered"][0] == 1
    path.write_bytes(b"\n\n" + good + b"\n  \n")
    assert import_batch(asked, [path]).found == 1
    with pytest.raises(DataError, match=r"gone\.jsonl cannot be read: No such file"):
        import_batch(asked, [tmp_path / "gone.jsonl"])


def test_large_exports_are_split(asked: Generation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, files = export_batch(asked, tmp_path / "whole.jsonl")
    whole = files[0].read_bytes()
    longest = max(map(len, whole.splitlines(keepends=True)))
    for name, requests, size, sizes in (("few", 4, 10**9, [4, 2]), ("small", 1000, 2 * longest, [2, 2, 2])):
        monkeypatch.setattr(generate, "MAX_REQUESTS", requests)
        monkeypatch.setattr(generate, "MAX_BYTES", size)
        subject, files = export_batch(asked, tmp_path / f"{name}.jsonl")
        assert subject == "item"
        assert [file.name for file in files] == [f"{name}{n}.jsonl" for n in ("", "-2", "-3")[: len(sizes)]]
        assert [len(accepted(file)) for file in files] == sizes
        assert all(file.stat().st_size <= size for file in files)
        assert b"".join(file.read_bytes() for file in files) == whole


@pytest.mark.parametrize("name", ["batch.jsonl", "batch-2.jsonl"])
def test_a_file_that_exists_is_kept_and_no_part_is_left_behind(
    asked: Generation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / name).write_text("precious")
    monkeypatch.setattr(generate, "MAX_REQUESTS", 4)
    with pytest.raises(DataError, match=rf"(?s){name} exists.*choose another name"):
        export_batch(asked, tmp_path / "batch.jsonl")
    assert (tmp_path / name).read_text() == "precious"
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == [name]


def test_with_fill_batches_go_on_past_an_item_that_never_gets_an_answer(data: Dataset, tmp_path: Path) -> None:
    asked, written = generation(data, NOWHERE, fill="template"), []
    for _ in range(4):
        subject, requests = export(asked, tmp_path / "batch.jsonl")
        written.append(subject)
        lines = [
            served(request, "" if request["custom_id"].startswith("item:4:") else prose(request["body"]))
            for request in requests
        ]
        import_batch(asked, [write(tmp_path / "output.jsonl", lines)])
    assert written == ["item", "item", "auxiliary", "user"]
    assert export_batch(asked, tmp_path / "batch.jsonl") == ("", [])
