"""What a server can do wrong: every fault is retried or stops the run as it must, is recorded, and loses no subject."""

from __future__ import annotations

import gzip
import json
import threading
import time
from email.utils import formatdate
from typing import Any

import pytest

from spike_kit.base.errors import LLMError, SpikeKitError
from spike_kit.data.dataset import Dataset
from spike_kit.profiles import client, jobs
from spike_kit.profiles.client import AMBIGUOUS, CallError, Pace, read_reply, retry_after
from spike_kit.profiles.jobs import FAILURES_IN_A_ROW, Progress
from spike_kit.profiles.loopback import completion
from tests.profiles.llm_server import (
    Asked,
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
    response,
    says,
    sends,
    speaks,
    stored,
)

pytestmark = pytest.mark.usefixtures("short_pauses")

ANSWER = json.dumps(completion("This is the story of the sea and of the people in it.", {})).encode()
CHUNKED = b"HTTP/1.1 200 -\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
FAULTS: dict[str, tuple[Reply, str]] = {
    "status 500": (fails(500), "server"),
    "status 408": (fails(408), "server"),
    "status 409": (fails(409), "server"),
    "busy": (fails(429, "rate_limit_exceeded", headers="Retry-After: 0.01\r\n"), "busy"),
    "busy in a body with status 200": (sends({"choices": None, "error": {"message": "later", "code": 429}}), "busy"),
    "error in a body with status 200": (sends({"error": {"message": "overheated"}}), "server"),
    "timeout": (good(1.2), "timeout"),
    "slow drip": (speaks(response(200, ANSWER), pause=0.05), "timeout"),
    "drop in the body": (speaks(response(200, ANSWER)[:-40]), "connection"),
    "drop in a chunk": (speaks(CHUNKED + b'400\r\n{"choices": ['), "connection"),
    "drop after a whole chunk": (speaks(CHUNKED + b"%x\r\n%s\r\n" % (len(ANSWER), ANSWER)), "connection"),
    "no HTTP": (speaks(b"SSH-2.0-server\r\n\r\n"), "connection"),
    "endless header": (speaks(b"HTTP/1.1 200 -\r\nX: " + b"a" * 400_000 + b"\r\n\r\n"), "connection"),
    "endless body": (speaks(CHUNKED + (b"10000\r\n" + b" " * 0x10000 + b"\r\n") * 1024), "garbage"),
    "compressed": (sends(gzip.compress(ANSWER), headers="Content-Encoding: gzip\r\n"), "garbage"),
    "web page": (sends(b"<html>Please log in</html>"), "garbage"),
    "not UTF-8": (sends(b'{"choices": "\xff\xfe"}'), "garbage"),
    "null choices": (sends({"choices": None}), "garbage"),
    "content a number": (sends({"choices": [{"message": {"content": 5}}]}), "garbage"),
    "deeply nested": (sends(b'{"choices":' + b"[" * 200_000), "garbage"),
    "a number of 5000 digits": (sends(b'{"choices":' + b"9" * 5000 + b"}"), "garbage"),
    "charset that is no text": (sends(b"hello", 500, "Content-Type: text/plain; charset=hex\r\n"), "server"),
    "cookie beyond ASCII": (speaks(b"HTTP/1.1 503 -\r\nSet-Cookie: \xff=1\r\nContent-Length: 2\r\n\r\n{}"), "server"),
    "a long message": (fails(500, message="x" * 10_000), "server"),
    "half a character": (fails(500, message="broken \ud800 text"), "server"),
}
"""Replies that bring no answer, and the kind under which each is recorded."""


def test_every_fault_is_recorded_and_the_call_made_again(films: Dataset, server: ScriptedServer) -> None:
    faults = list(FAULTS.values())
    server.script = lambda asked: faults[item_of(asked)][0] if asked.nth == 1 else good()
    made = generation(films, server.base_url, attempts=2, timeout=0.6, concurrency=4)
    progress = ask(made, len(faults))
    recorded = {list(FAULTS)[item]: kind for item, kind in stored(made, "SELECT DISTINCT id, kind FROM events")}
    assert recorded == {name: kind for name, (_, kind) in FAULTS.items()}
    assert set(server.counts.values()) == {2}
    assert (progress.calls, progress.done, progress.failed) == (2 * len(faults), len(faults), 0)
    assert progress.unclear == sum(kind in AMBIGUOUS for _, kind in faults)
    assert stored(made, "SELECT DISTINCT attempts FROM answers") == [(2,)]
    assert ids(made, "failures") == ids(made, "rejected") == set()
    assert stored(made, "SELECT max(length(message)) FROM events") == [(300,)]


def test_what_always_fails_is_listed_and_alone_asked_again(films: Dataset, server: ScriptedServer) -> None:
    """Faulty and good items take turns, so that no run of failures ends the run."""
    faults = [FAULTS[name] for name in ("status 500", "timeout", "drop in a chunk", "web page", "null choices")]
    server.script = lambda asked: faults[item_of(asked) // 2][0] if item_of(asked) % 2 else good()
    made = generation(films, server.base_url, attempts=2, timeout=0.3, concurrency=1)
    progress = ask(made, 10)
    assert (server.requests, progress.calls, progress.done, progress.failed) == (15, 15, 5, 5)
    listed = [(2 * number + 1, kind) for number, (_, kind) in enumerate(faults)]
    assert stored(made, "SELECT id, kind FROM failures ORDER BY id") == listed
    assert ids(made, "answers") == set(range(0, 10, 2))
    server.forget()
    server.script = lambda _: good()
    progress = ask(made, 10)
    assert [item_of(asked) for asked in server.log] == list(range(1, 10, 2))
    assert (progress.found, progress.done) == (5, 5)
    assert (ids(made, "answers"), ids(made, "failures")) == (set(range(10)), set())


def test_a_busy_server_is_tried_longer_than_one_that_fails(films: Dataset, server: ScriptedServer) -> None:
    server.script = lambda _: fails(429, headers="Retry-After: 0.001\r\n")
    made = generation(films, server.base_url, attempts=2)
    assert ask(made, 1).failures == {"busy": 1}
    assert server.requests == 2 * jobs.BUSY_FACTOR


@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_run_of_failures_stops_and_names_the_server(films: Dataset, server: ScriptedServer, concurrency: int) -> None:
    server.script = lambda _: fails(500)
    made, progress = generation(films, server.base_url, attempts=1, concurrency=concurrency), Progress()
    with pytest.raises(LLMError, match=rf"(?s){FAILURES_IN_A_ROW} questions in a row failed.*{server.base_url}"):
        ask(made, 48, progress)
    assert FAILURES_IN_A_ROW <= server.requests < FAILURES_IN_A_ROW + concurrency
    assert progress.failures == {"server": server.requests}
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
    films: Dataset, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, asks: str
) -> None:
    pause = 0.3
    monkeypatch.setattr(client, "_BUSY_PAUSE", pause)
    headers = "" if asks == "nothing" else f"Retry-After: {pause}\r\n"
    busy = sends({"error": {"message": "", "code": 429}}, 200 if asks == "body" else 429, headers)
    server.script = lambda asked: busy if asked.number == 9 else good(0.01)
    made = generation(films, server.base_url, concurrency=8)
    progress = ask(made, 40)
    refused, later = server.log[8], server.log[9:]
    early = [asked.arrived - refused.sent for asked in later if asked.arrived < refused.sent + 0.9 * pause]
    assert all(seconds < 0.1 for seconds in early), "someone asked during the pause"
    assert len(early) < 8
    assert (server.requests, progress.calls, progress.done) == (41, 41, 40)
    assert (events(made), progress.unclear) == ({"busy": 1}, 0)
    after = later[len(early) :][:8]
    overlaps = [sum(other.arrived <= asked.arrived < other.sent for other in after) for asked in after]
    assert max(overlaps) <= 5, "the limit was not halved"


def test_a_whole_wave_of_refusals_halves_once(films: Dataset, server: ScriptedServer, paces: list[Pace]) -> None:
    wave = fails(429, headers="Retry-After: 0.1\r\n", delay=0.05)
    server.script = lambda asked: wave if asked.number <= 8 else good(0.01)
    assert ask(generation(films, server.base_url, concurrency=8), 16).done == 16
    assert server.requests == 24
    assert 4 < paces[0].limit < 8, "it was halved more than once, or never rose again"


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
    assert (len(ids(made, "answers")), ids(made, "failures")) == (8, set())


@pytest.mark.parametrize("status", [429, 503])
def test_a_stop_ends_a_long_pause(films: Dataset, server: ScriptedServer, status: int) -> None:
    stop, started = threading.Event(), time.monotonic()

    def script(asked: Asked) -> Reply:
        if asked.number == 7:
            threading.Timer(0.3, stop.set).start()
        return fails(status, headers="Retry-After: 100\r\n") if asked.number > 6 else good()

    server.script = script
    progress = ask(generation(films, server.base_url), 48, stop=stop)
    assert time.monotonic() - started < 20
    assert (progress.stopped, progress.done, progress.failed) == (True, 6, 0)
    assert server.requests <= 6 + 4 + 3


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "3"}, 0.25),
        ({"retry-after": formatdate(time.time() + 86_400, usegmt=True)}, 86_400),
        ({"retry-after": "-3"}, 0),
        ({"retry-after": "soon"}, 0),
        ({"retry-after": "nan"}, 0),
        ({"retry-after": "Fri, 99 Foo 9999 99:99:99 GMT"}, 0),
        ({}, 0),
    ],
)
def test_a_pause_is_read_in_every_form(headers: dict[str, str], seconds: float) -> None:
    assert retry_after(headers) == pytest.approx(seconds, abs=3600 * (seconds > 3600))


QUOTA, KEY, MODEL = "the quota is used up", "check the key in OPENAI_API_KEY", "check the model name 'told'"
STOPS: dict[str, tuple[Reply, str]] = {
    "quota": (fails(429, "insufficient_quota", delay=0.01), f"429: made to fail.*{QUOTA}"),
    "payment in a body with status 200": (
        sends({"id": None, "choices": None, "error": {"message": "Insufficient credits. Add more.", "code": 402}}),
        f"402: Insufficient credits. Add more.*{QUOTA}",
    ),
    "key": (fails(401, "invalid_api_key"), f"401: made to fail.*{KEY}"),
    "rights": (fails(403), f"403: made to fail.*{KEY}"),
    "key as status 400": (sends([{"error": {"code": 400, "message": "API key not valid"}}], 400), f"not valid.*{KEY}"),
    "model": (fails(404, "model_not_found"), f"404: made to fail.*{MODEL}"),
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
    assert list(events(made).values()) == [server.requests - 10]
    server.forget()
    server.script = lambda _: good()
    assert (ask(made, 48).done, server.requests) == (38, 38)


@pytest.mark.parametrize(
    "reply",
    [
        fails(400, "content_filter"),
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
        (sends(b"", 307, "Location: /v1/chat/completions\r\n"), "moved to /v1/chat/completions"),
        (sends(b"", 307, "Location: http://[::1/v1\r\n"), r"moved to http://\[::1/v1"),
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


PAGE = "<html>502 upstream timed out</html>"
WORDS: list[tuple[int, Any, str, str]] = [
    (422, {"error": "inputs are odd", "error_type": "validation"}, "request", "422: inputs are odd"),
    (422, {"detail": [{"loc": ["body", "top_k"], "msg": "not permitted"}]}, "request", '"top_k"], "msg": "not permit'),
    (400, [{"error": {"code": 400, "message": "It is odd."}}], "request", "It is odd."),
    (502, PAGE, "server", f"502: {PAGE}"),
    (500, "", "server", "500: no message"),
    (200, PAGE, "garbage", f"no chat completion: {PAGE}"),
    (200, {"choices": [], "prompt_filter_results": []}, "garbage", '{"choices": [], "prompt_filter'),
    (200, {"error": {"message": "Overloaded", "type": "overloaded_error"}}, "busy", "overloaded_error: Overloaded"),
]


@pytest.mark.parametrize(("status", "body", "kind", "words"), WORDS)
def test_the_servers_own_words_reach_the_user(status: int, body: Any, kind: str, words: str) -> None:
    with pytest.raises(CallError) as caught:
        read_reply(status, body if isinstance(body, str) else json.dumps(body), {})
    assert caught.value.kind == kind
    assert words in caught.value.message


def test_content_in_parts_is_read(films: Dataset, server: ScriptedServer) -> None:
    text = "This is the story of the sea and of the people in it."
    parts = [{"type": "text", "text": text[:9]}, {"type": "text", "text": text[9:]}]
    server.script = lambda _: says("", content=[{"type": "thinking", "thinking": "Well."}, *parts])
    made = generation(films, server.base_url)
    assert ask(made, 2).done == 2
    assert stored(made, "SELECT DISTINCT text FROM answers") == [(text,)]


def test_half_a_character_from_the_server_is_stored_or_reported(films: Dataset, server: ScriptedServer) -> None:
    cases = [
        fails(400, "content_filter", message="broken \ud800 text"),
        says(prose, finish_reason="st\ud800op"),
        says("", refusal="broken \ud800 text"),
        says("This is the \ud800 story of the sea and of the people in it."),
        says('{"profile": "This is the \\ud800 story of the sea and of the people in it."}'),
    ]
    server.script = lambda asked: cases[item_of(asked)] if item_of(asked) < len(cases) else good()
    made = generation(films, server.base_url, attempts=2)
    ask(made, 10)
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
