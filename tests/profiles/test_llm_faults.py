"""What a server can do wrong: every fault is retried or stops the run as it must, is recorded, and loses no subject."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from email.utils import formatdate
from typing import Any

import pytest

from spike_kit.base.errors import LLMError, SpikeKitError
from spike_kit.data.dataset import Dataset
from spike_kit.profiles import client
from spike_kit.profiles.client import Pace
from spike_kit.profiles.jobs import FAILURES_IN_A_ROW, Progress
from spike_kit.profiles.llm import LLMConfig
from spike_kit.profiles.replies import AMBIGUOUS, CallError, read_reply, retry_after
from tests.profiles import llm_server
from tests.profiles.llm_server import (
    Reply,
    ScriptedServer,
    ask,
    events,
    fails,
    generation,
    good,
    ids,
    item_of,
    prose,
    says,
    sends,
    speaks,
    stored,
    waits,
)

pytestmark = pytest.mark.usefixtures("short_pauses")

FAULTS: dict[str, tuple[Reply, str]] = {
    "status 500": (fails(500), "server"),
    "status 502 as a web page": (sends(b"<html>Bad gateway</html>", 502), "server"),
    "status 503": (fails(503, headers="Retry-After: 0\r\n"), "server"),
    "status 408": (fails(408), "server"),
    "status 409": (fails(409), "server"),
    "busy": (fails(429, "rate_limit_exceeded", headers="Retry-After: 0.01\r\n"), "busy"),
    "busy without a pause": (fails(429), "busy"),
    "busy in a body with status 200": (sends({"choices": None, "error": {"message": "later", "code": 429}}), "busy"),
    "error in a body with status 200": (sends({"error": {"message": "overheated"}}), "server"),
    "timeout": (waits(1.2), "timeout"),
    "slow drip": (llm_server.drips, "timeout"),
    "drop before the body": (llm_server.drops, "connection"),
    "drop in the body": (llm_server.drops_in_body, "connection"),
    "drop in a chunk": (llm_server.drops_in_chunk, "connection"),
    "drop after a whole chunk": (llm_server.drops_after_chunk, "connection"),
    "no HTTP": (speaks(b"SSH-2.0-server\r\n\r\n"), "connection"),
    "endless header": (speaks(b"HTTP/1.1 200 -\r\nX: " + b"a" * 400_000 + b"\r\n\r\n"), "connection"),
    "endless body": (llm_server.never_ends, "garbage"),
    "compressed": (llm_server.compresses, "garbage"),
    "web page": (sends(b"<html>Please log in</html>"), "garbage"),
    "stream": (sends(b'data: {"choices": [{"delta": {"content": "A"}}]}\n\n'), "garbage"),
    "empty body": (sends(b""), "garbage"),
    "not UTF-8": (sends(b'{"choices": "\xff\xfe"}'), "garbage"),
    "half of the JSON": (sends(b'{"choices": [{"message": {"content": "This is'), "garbage"),
    "a list": (sends([{"choices": []}]), "garbage"),
    "null choices": (sends({"choices": None}), "garbage"),
    "no choice": (sends({"choices": []}), "garbage"),
    "content a number": (sends({"choices": [{"message": {"content": 5}}]}), "garbage"),
    "message a text": (sends({"choices": [{"message": "This is it."}]}), "garbage"),
    "deeply nested": (sends(b'{"choices":' + b"[" * 200_000), "garbage"),
    "a number of 5000 digits": (sends(b'{"choices":' + b"9" * 5000 + b"}"), "garbage"),
    "charset that is no text": (sends(b"hello", 500, "Content-Type: text/plain; charset=hex\r\n"), "server"),
    "cookie beyond ASCII": (speaks(b"HTTP/1.1 503 -\r\nSet-Cookie: \xff=1\r\nContent-Length: 2\r\n\r\n{}"), "server"),
    "a long message": (fails(500, message="x" * 10_000), "server"),
    "half a character": (fails(500, message="broken \ud800 text"), "server"),
}
"""Replies that bring no answer, and the kind under which each is recorded."""

_QUICK = {"timeout": 0.6, "concurrency": 1}


def kinds_of(made: Any, table: str) -> dict[str, str]:
    """Kind of failure by fault, for runs in which item ``n`` met the n-th fault."""
    return {list(FAULTS)[item]: kind for item, kind in stored(made, f"SELECT DISTINCT id, kind FROM {table}")}


def test_every_fault_is_recorded_and_the_call_made_again(films: Dataset, server: ScriptedServer) -> None:
    faults = list(FAULTS.values())
    server.script = lambda asked: faults[item_of(asked)][0] if asked.nth == 1 else good()
    made = generation(films, server.base_url, attempts=2, **_QUICK)
    progress = ask(made, len(faults))
    assert kinds_of(made, "events") == {name: kind for name, (_, kind) in FAULTS.items()}
    assert set(server.counts.values()) == {2}
    assert (progress.calls, progress.done, progress.failed) == (2 * len(faults), len(faults), 0)
    kinds = [kind for _, kind in faults]
    assert progress.unclear == sum(kind in AMBIGUOUS for kind in kinds)
    assert stored(made, "SELECT DISTINCT attempts FROM answers") == [(2,)]
    assert ids(made, "failures") == ids(made, "rejected") == set()
    assert stored(made, "SELECT max(length(message)) FROM events") == [(300,)]


def test_what_always_fails_is_listed_and_alone_asked_again(films: Dataset, server: ScriptedServer) -> None:
    """Faulty and good items take turns, so that no run of failures ends the run."""
    faults = [(reply, kind) for reply, kind in FAULTS.values() if kind != "busy"][:24]
    server.script = lambda asked: faults[item_of(asked) // 2][0] if item_of(asked) % 2 else good()
    made = generation(films, server.base_url, attempts=2, **_QUICK)
    progress = ask(made, 48)
    assert (server.requests, progress.calls) == (24 + 2 * 24, 24 + 2 * 24)
    assert (progress.done, progress.failed) == (24, 24)
    assert stored(made, "SELECT id, kind FROM failures ORDER BY id") == [
        (2 * number + 1, kind) for number, (_, kind) in enumerate(faults)
    ]
    assert ids(made, "answers") == set(range(0, 48, 2))
    server.forget()
    server.script = lambda _: good()
    progress = ask(made, 48)
    assert {item_of(asked) for asked in server.log} == set(range(1, 48, 2))
    assert (server.requests, progress.found, progress.done) == (24, 24, 24)
    assert (ids(made, "answers"), ids(made, "failures")) == (set(range(48)), set())


def test_a_busy_server_is_tried_longer_than_one_that_fails(films: Dataset, server: ScriptedServer) -> None:
    server.script = lambda _: fails(429, headers="Retry-After: 0.001\r\n")
    made = generation(films, server.base_url, attempts=2)
    assert ask(made, 1).failures == {"busy": 1}
    assert server.requests == 2 * client.BUSY_FACTOR


@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize("fault", ["status 500", "web page"])
def test_a_run_of_failures_stops_and_names_the_server(
    films: Dataset, server: ScriptedServer, fault: str, concurrency: int
) -> None:
    reply, kind = FAULTS[fault]
    server.script = lambda _: reply
    made, progress = generation(films, server.base_url, attempts=1, concurrency=concurrency), Progress()
    with pytest.raises(LLMError, match=rf"(?s){FAILURES_IN_A_ROW} questions in a row failed.*{server.base_url}"):
        ask(made, 48, progress)
    assert FAILURES_IN_A_ROW <= server.requests < FAILURES_IN_A_ROW + concurrency
    assert progress.failures == {kind: server.requests}
    assert len(ids(made, "failures")) == server.requests
    server.forget()
    server.script = lambda asked: good() if asked.number % FAILURES_IN_A_ROW == 0 else fails(500)
    progress = ask(generation(films, server.base_url, attempts=1, concurrency=1), 20)
    assert (progress.done, progress.failed) == (4, 16), "a success in between lets a run go on"


def test_no_server_at_all_stops_the_run_and_is_never_taken_for_a_billed_call(films: Dataset) -> None:
    with ScriptedServer() as gone:
        made, progress = generation(films, gone.base_url, attempts=2), Progress()
    with pytest.raises(LLMError, match=f"(?s)unreachable.*is the server running at {gone.base_url}"):
        ask(made, 20, progress)
    assert set(events(made)) == {"unreachable"}
    assert (progress.unclear, progress.done) == (0, 0)
    with ScriptedServer() as server:
        assert ask(generation(films, server.base_url), 20).done == server.requests == 20


@pytest.mark.parametrize("asks", ["header", "body", "nothing"])
def test_a_busy_server_pauses_all_calls_and_halves_their_number(
    films: Dataset, server: ScriptedServer, paces: list[Pace], monkeypatch: pytest.MonkeyPatch, asks: str
) -> None:
    pause = 0.4
    monkeypatch.setattr(client, "_BUSY_PAUSE", pause)
    headers = "" if asks == "nothing" else f"Retry-After: {pause}\r\n"
    busy = (
        fails(429, headers=headers) if asks != "body" else sends({"error": {"message": "", "code": 429}}, 200, headers)
    )
    server.script = lambda asked: busy if asked.number == 9 else good(0.01)
    made = generation(films, server.base_url, concurrency=8)
    progress = ask(made, 40)
    refused, later = server.log[8], server.log[9:]
    early = [asked.arrived - refused.sent for asked in later if asked.arrived < refused.sent + 0.9 * pause]
    assert all(seconds < 0.1 for seconds in early), "someone asked during the pause"
    assert len(early) < 8
    assert paces[0].lowest == 4
    assert (server.requests, progress.calls, progress.done) == (41, 41, 40)
    assert (events(made), progress.unclear) == ({"busy": 1}, 0)
    after = later[len(early) :][:8]
    overlaps = [sum(other.arrived <= asked.arrived < other.sent for other in after) for asked in after]
    assert max(overlaps) <= 5, "the limit was not halved"


def test_a_whole_wave_of_refusals_halves_once(films: Dataset, server: ScriptedServer, paces: list[Pace]) -> None:
    wave = fails(429, headers="Retry-After: 0.1\r\n", delay=0.05)
    server.script = lambda asked: wave if asked.number <= 8 else good(0.01)
    made = generation(films, server.base_url, concurrency=8)
    assert (ask(made, 40).done, server.requests, events(made)) == (40, 48, {"busy": 8})
    assert paces[0].lowest == 4
    assert paces[0].limit > 4, "it never rose again"


def test_those_who_wait_for_a_place_respect_a_pause_too(films: Dataset, server: ScriptedServer) -> None:
    short, long = (fails(429, headers=f"Retry-After: {seconds}\r\n", delay=0.02) for seconds in (0.1, 0.4))
    first: dict[int, Reply] = dict.fromkeys(range(1, 5), short) | {5: long, 6: good(0.1)}
    server.script = lambda asked: first.get(asked.number, good())
    assert ask(generation(films, server.base_url, concurrency=4), 12).done == 12
    refused = server.log[4]
    early = [round(asked.arrived - refused.sent, 3) for asked in server.log[6:] if asked.arrived < refused.sent + 0.36]
    assert early == [], f"asked so many seconds after a refusal that asked for 0.4 s: {early}"


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("seconds", [121, 1e400])
def test_a_pause_beyond_two_minutes_stops_the_run(
    films: Dataset, server: ScriptedServer, status: int, seconds: float
) -> None:
    long = fails(status, headers=f"Retry-After: {seconds}\r\n")
    server.script = lambda asked: long if asked.number > 8 else good()
    made = generation(films, server.base_url)
    with pytest.raises(LLMError, match=rf"(?s)asks to wait {seconds} s.*run the same command again later"):
        ask(made, 48)
    assert server.requests <= 8 + 2 * 4
    assert len(ids(made, "answers")) == 8
    assert ids(made, "failures") == set()


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "3"}, 3),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "3"}, 0.25),
        ({"retry-after": formatdate(time.time() + 86_400, usegmt=True)}, 86_400),
        ({"retry-after": "-3"}, 0),
        ({"retry-after": "Mon, 01 Jan 1990 00:00:00 GMT"}, 0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, 0),
        ({"retry-after": "Fri, 99 Foo 9999 99:99:99 GMT"}, None),
        ({}, None),
    ],
)
def test_a_pause_is_read_in_every_form(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers) == (None if seconds is None else pytest.approx(seconds, abs=3600 * (seconds > 3600)))


QUOTA, KEY, MODEL = "the quota is used up", "check the key in OPENAI_API_KEY", "check the model name 'told'"
STOPS: dict[str, tuple[Reply, str]] = {
    "quota": (fails(429, "insufficient_quota", delay=0.01), f"429: made to fail.*{QUOTA}"),
    "payment": (fails(402), f"402: made to fail.*{QUOTA}"),
    "payment in a body with status 200": (
        sends({"id": None, "choices": None, "error": {"message": "Insufficient credits. Add more.", "code": 402}}),
        f"402: Insufficient credits. Add more.*{QUOTA}",
    ),
    "key": (fails(401, "invalid_api_key"), f"401: made to fail.*{KEY}"),
    "rights": (fails(403), f"403: made to fail.*{KEY}"),
    "key as status 400": (sends([{"error": {"code": 400, "message": "API key not valid"}}], 400), f"not valid.*{KEY}"),
    "model": (fails(404, "model_not_found"), f"404: made to fail.*{MODEL}"),
    "model as a text": (sends({"error": "model 'told' not found, try pulling it"}, 404), f"try pulling it.*{MODEL}"),
}


@pytest.mark.parametrize("case", STOPS)
def test_what_no_retry_can_mend_stops_at_once(films: Dataset, server: ScriptedServer, case: str) -> None:
    reply, message = STOPS[case]
    server.script = lambda asked: reply if asked.number > 10 else good(0.01)
    made, progress = generation(films, server.base_url), Progress()
    with pytest.raises(LLMError, match=f"(?s){message}"):
        ask(made, 48, progress)
    assert server.requests <= 10 + 4 + 3
    assert (progress.done, len(ids(made, "answers")), ids(made, "failures")) == (10, 10, set())
    assert events(made) == {"stop": server.requests - 10}
    server.forget()
    server.script = lambda _: good()
    assert (ask(made, 48).done, server.requests) == (38, 38)


@pytest.mark.parametrize(
    "reply",
    [
        *(fails(400, code) for code in ("content_filter", "content_policy_violation", "context_length_exceeded")),
        sends({"error": "Input validation error: inputs tokens + max_new_tokens must be <= 512"}, 422),
        sends({"object": "error", "message": "This model's maximum context length is 4096 tokens", "code": 400}, 400),
    ],
)
def test_what_concerns_one_subject_alone_is_asked_once_and_stops_nothing(
    films: Dataset, server: ScriptedServer, reply: Reply
) -> None:
    server.script = lambda asked: reply if asked.number <= 8 else good()
    made = generation(films, server.base_url, concurrency=1)
    progress = ask(made, 12)
    assert (server.requests, progress.calls, progress.done, progress.failures) == (12, 12, 4, {"content": 8})
    assert (ids(made, "failures"), events(made)) == (set(range(8)), {"content": 8})


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        *((fails(status, "unsupported", "no such parameter: top_q"), "top_q") for status in (400, 413, 422)),
        (
            speaks(b"HTTP/1.1 307 -\r\nLocation: http://[::1/v1\r\nContent-Length: 0\r\n\r\n"),
            r"moved to http://\[::1/v1",
        ),
        (speaks(b"HTTP/1.1 301 -\r\nLocation: http://127.0.0.1:999999\r\nContent-Length: 0\r\n\r\n"), ":999999"),
    ],
)
def test_a_request_the_server_cannot_take_is_not_repeated(
    films: Dataset, server: ScriptedServer, reply: Reply, words: str
) -> None:
    server.script = lambda _: reply
    made = generation(films, server.base_url, concurrency=1)
    with pytest.raises(LLMError, match=f"in a row failed.*{words}"):
        ask(made, 12)
    assert (server.requests, events(made)) == (FAILURES_IN_A_ROW, {"request": FAILURES_IN_A_ROW})


PAGE = b"<html><head><title>502 upstream timed out</title></head></html>"
WORDS: dict[str, tuple[int, Any, str, str]] = {
    "text": (422, {"error": "inputs are odd", "error_type": "validation"}, "request", "422: inputs are odd"),
    "detail as a text": (422, {"detail": "Not so."}, "request", "422: Not so."),
    "detail as a list": (
        422,
        {"detail": [{"loc": ["body", "top_k"], "msg": "extra fields not permitted"}]},
        "request",
        "422: body.top_k: extra fields not permitted",
    ),
    "list": (400, [{"error": {"code": 400, "message": "It is\n odd."}}], "request", "400: It is odd."),
    "plain text": (500, b"out of memory", "server", "500: it is not JSON: out of memory"),
    "web page": (502, PAGE, "server", "502: it is a web page: 502 upstream timed out"),
    "nothing": (500, b"", "server", "500: it is not JSON: "),
    "null": (500, None, "server", "500: null"),
    "web page with status 200": (200, PAGE, "garbage", "no chat completion: it is a web page: 502 upstream"),
    "stream": (200, b"data: {}\n\ndata: [DONE]", "garbage", "no chat completion: it is a stream: data: {}"),
    "no choices": (200, {"choices": [], "prompt_filter_results": []}, "garbage", '{"choices": [], "prompt_filter'),
    "error within": (200, {"error": {"message": "Overloaded", "type": "overloaded_error"}}, "busy", "429: Overloaded"),
}


@pytest.mark.parametrize("case", WORDS)
def test_the_servers_own_words_reach_the_user(case: str) -> None:
    status, body, kind, words = WORDS[case]
    content = body if isinstance(body, bytes) else llm_server.json.dumps(body).encode()
    with pytest.raises(CallError) as caught:
        read_reply(status, {}, content, 0.0, LLMConfig())
    assert caught.value.kind == kind
    assert words in caught.value.message


def test_content_in_parts_is_read(films: Dataset, server: ScriptedServer) -> None:
    text = "This is the story of the sea and of the people in it."
    parts = [
        {"type": "thinking", "thinking": "Well."},
        {"type": "text", "text": text[:9]},
        {"type": "text", "text": text[9:]},
    ]
    server.script = lambda _: says("", content=parts)
    made = generation(films, server.base_url)
    assert ask(made, 2).done == 2
    assert stored(made, "SELECT DISTINCT text FROM answers") == [(text,)]


SURROGATES = {
    "refused request": fails(400, "content_filter", message="broken \ud800 text"),
    "finish_reason": says(prose, finish_reason="st\ud800op"),
    "refusal": says("", refusal="broken \ud800 text"),
    "content": says("This is the \ud800 story of the sea and of the people in it."),
    "content in JSON": says('{"profile": "This is the \\ud800 story of the sea and of the people in it."}'),
}


def test_half_a_character_from_the_server_is_stored_or_reported(films: Dataset, server: ScriptedServer) -> None:
    cases = list(SURROGATES.values())
    server.script = lambda asked: cases[item_of(asked)] if item_of(asked) < len(cases) else good()
    made = generation(films, server.base_url, attempts=2)
    ask(made, 10, limit=3)
    assert ids(made, "answers") | ids(made, "failures") == set(range(10))
    assert ids(made, "answers") >= set(range(len(cases), 10))


@pytest.mark.parametrize("key", ["sk-one\nsk-two-0123456789", "sk-tést-0123456789"])
def test_a_key_that_is_no_header_is_an_error_that_does_not_show_it(
    films: Dataset, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    made = generation(films, server.base_url, attempts=1)
    with pytest.raises(SpikeKitError) as caught:
        ask(made, 6)
    assert "0123456789" not in str(caught.value)
    assert server.requests == 0
    assert not any(b"0123456789" in file.read_bytes() for file in made.answers.parent.iterdir())


def test_a_store_that_is_read_meanwhile_is_still_written(films: Dataset, server: ScriptedServer) -> None:
    made = generation(films, server.base_url)
    ask(made, 2)
    reader = sqlite3.connect(made.answers)
    reader.execute("BEGIN")
    assert reader.execute("SELECT count(*) FROM answers").fetchone() == (2,)
    assert ask(made, 6).done == 4
    assert reader.execute("SELECT count(*) FROM answers").fetchone() == (2,)
    reader.close()
    assert ids(made, "answers") == set(range(6))


def test_asking_works_inside_a_running_event_loop(films: Dataset, server: ScriptedServer) -> None:
    async def notebook() -> bool:
        return generation(films, server.base_url).run().path is not None

    assert asyncio.run(notebook())
    assert (server.requests, len(server.counts)) == (124, 124)
