"""What a server can do wrong: every fault is retried or stops the run as it must, is recorded, and loses no subject."""

import gzip
import json
import threading
import time
from email.utils import formatdate
from typing import Any

import pytest

from spike_kit.base.errors import LLMError, SpikeKitError
from spike_kit.data.dataset import Dataset
from spike_kit.profiles import jobs
from spike_kit.profiles.jobs import FAILURES_IN_A_ROW, CallError, Pace, Progress, read_reply, retry_after
from spike_kit.profiles.loopback import completion
from tests.profiles import llm_server as told
from tests.profiles.llm_server import Asked, Reply, ScriptedServer

pytestmark = pytest.mark.usefixtures("short_pauses")

ANSWER = json.dumps(completion("This is the story of the sea and of the people in it.", {})).encode()
CHUNKED = b"HTTP/1.1 200 -\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
FAULTS: dict[str, tuple[Reply, str]] = {
    "status 500": (told.fails(500), "server"),
    "status 408": (told.fails(408), "server"),
    "busy": (told.fails(429, "rate_limit_exceeded", headers="Retry-After: 0.01\r\n"), "busy"),
    "error in a body with status 200": (told.sends({"error": {"message": "overheated"}}), "server"),
    "timeout": (told.good(1.2), "timeout"),
    "slow drip": (told.speaks(told.response(200, ANSWER), pause=0.05), "timeout"),
    "drop in the body": (told.speaks(told.response(200, ANSWER)[:-40]), "connection"),
    "drop in a chunk": (told.speaks(CHUNKED + b'400\r\n{"choices": ['), "connection"),
    "drop after a whole chunk": (told.speaks(CHUNKED + b"%x\r\n%s\r\n" % (len(ANSWER), ANSWER)), "connection"),
    "no HTTP": (told.speaks(b"SSH-2.0-server\r\n\r\n"), "connection"),
    "endless header": (told.speaks(b"HTTP/1.1 200 -\r\nX: " + b"a" * 400_000 + b"\r\n\r\n"), "connection"),
    "endless body": (told.speaks(CHUNKED + (b"10000\r\n" + b" " * 0x10000 + b"\r\n") * 1024), "garbage"),
    "compressed": (told.sends(gzip.compress(ANSWER), headers="Content-Encoding: gzip\r\n"), "garbage"),
    "not UTF-8": (told.sends(b'{"choices": "\xff\xfe"}'), "garbage"),
    "content a number": (told.sends({"choices": [{"message": {"content": 5}}]}), "garbage"),
    "deeply nested": (told.sends(b'{"choices":' + b"[" * 200_000), "garbage"),
    "a number of 5000 digits": (told.sends(b'{"choices":' + b"9" * 5000 + b"}"), "garbage"),
    "charset that is no text": (told.sends(b"hello", 500, "Content-Type: text/plain; charset=hex\r\n"), "server"),
    "odd cookie": (told.speaks(b"HTTP/1.1 503 -\r\nSet-Cookie: \xff=1\r\nContent-Length: 2\r\n\r\n{}"), "server"),
    "a long message": (told.fails(500, message="x" * 10_000), "server"),
    "half a character": (told.fails(500, message="broken \ud800 text"), "server"),
}
"""Replies that bring no answer, and the kind under which each is recorded."""


def test_every_fault_is_recorded_and_the_call_made_again(films: Dataset, server: ScriptedServer) -> None:
    faults = list(FAULTS.values())
    server.script = lambda asked: faults[asked.item][0] if asked.nth == 1 else told.good()
    made = told.generation(films, server.base_url, attempts=2, timeout=0.6, concurrency=4)
    progress = told.ask(made, len(faults))
    recorded = {list(FAULTS)[item]: kind for item, kind in told.stored(made, "SELECT DISTINCT id, kind FROM events")}
    assert recorded == {name: kind for name, (_, kind) in FAULTS.items()}
    assert set(server.counts.values()) == {2}
    assert (progress.calls, progress.done, progress.failed) == (2 * len(faults), len(faults), 0)
    assert told.stored(made, "SELECT DISTINCT attempts FROM answers") == [(2,)]
    assert told.ids(made, "failures") == told.ids(made, "rejected") == set()
    assert told.stored(made, "SELECT max(length(message)) FROM events") == [(300,)]


@pytest.mark.parametrize(
    ("reply", "kind", "tries", "words"),
    [
        (told.fails(500), "server", 2, "made to fail"),
        (told.fails(429, headers="Retry-After: 0.001\r\n"), "busy", 2 * jobs.BUSY_FACTOR, "made to fail"),
        (told.fails(422, "unsupported", "no such parameter: top_q"), "request", 1, "top_q"),
        (told.sends(b"", 307, "Location: /v1/chat/completions\r\n"), "request", 1, "moved to /v1/chat/completions"),
        (told.sends(b"", 301, "Location: http://[::1/v1\r\n"), "request", 1, r"moved to http://\[::1/v1"),
    ],
)
def test_a_run_of_failures_stops_and_names_the_server(
    films: Dataset, server: ScriptedServer, reply: Reply, kind: str, tries: int, words: str
) -> None:
    server.script = lambda _: reply
    made, progress = told.generation(films, server.base_url, attempts=2, concurrency=1), Progress()
    with pytest.raises(LLMError, match=rf"(?s)5 questions in a row failed.*{words}.*{server.base_url}"):
        told.ask(made, 48, progress)
    assert (progress.failures, told.ids(made, "failures")) == ({kind: FAILURES_IN_A_ROW}, set(range(FAILURES_IN_A_ROW)))
    assert (server.requests, told.events(made)) == (tries * FAILURES_IN_A_ROW, {kind: tries * FAILURES_IN_A_ROW})
    server.script = lambda asked: reply if (asked.item + 1) % FAILURES_IN_A_ROW else told.good()
    progress = told.ask(made, 20)
    assert (progress.done, progress.failed) == (4, 16), "a success in between lets a run go on"


def test_no_server_at_all_stops_the_run(films: Dataset) -> None:
    with ScriptedServer() as gone:
        made, progress = told.generation(films, gone.base_url, attempts=2), Progress()
    with pytest.raises(LLMError, match=f"(?s)unreachable.*is the server running at {gone.base_url}"):
        told.ask(made, 20, progress)
    assert (set(told.events(made)), progress.done) == ({"unreachable"}, 0)


@pytest.mark.parametrize(
    ("asks", "refused", "most"),
    [("header", [9], 20), ("body", [9], 20), ("nothing", [9], 20), ("header", range(1, 9), 10)],
)
def test_a_busy_server_pauses_all_calls_and_halves_their_number_once(
    films: Dataset, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, asks: str, refused: list[int], most: int
) -> None:
    pause, pace = 0.3, Pace(8)
    monkeypatch.setattr(jobs, "_BUSY_PAUSE", pause)
    monkeypatch.setattr(jobs, "Pace", lambda _: pace)
    headers = "" if asks == "nothing" else f"Retry-After: {pause}\r\n"
    error = {"error": {"message": "", "code": 429}}
    busy = told.sends(error, 200 if asks == "body" else 429, headers, delay=0.05 if len(refused) > 1 else 0)
    server.script = lambda asked: busy if asked.number in refused else told.good(0.05)
    made = told.generation(films, server.base_url, concurrency=8)
    progress = told.ask(made, most)
    said = max(server.log[number - 1].sent for number in refused)
    early = [asked.arrived - said for asked in server.log if 0 < asked.arrived - said < 0.9 * pause]
    assert all(seconds < 0.1 for seconds in early), "someone asked during the pause"
    assert len(early) < 8
    later = [asked for asked in server.log if asked.arrived - said >= 0.9 * pause]
    at_once = [sum(other.arrived <= asked.arrived < other.sent for other in later) for asked in later[:6]]
    assert max(at_once) <= 5, "the lower number was not kept"
    assert server.requests == progress.calls == progress.done + len(refused) == most + len(refused)
    assert told.events(made) == {"busy": len(refused)}
    assert 5 < pace.limit < 8, "it was not halved, or more than once, or never rose again"


def test_those_who_wait_for_a_place_respect_a_pause_too(films: Dataset, server: ScriptedServer) -> None:
    short, long = (told.fails(429, headers=f"Retry-After: {seconds}\r\n", delay=0.02) for seconds in (0.1, 0.4))
    first: dict[int, Reply] = dict.fromkeys(range(1, 5), short) | {5: long, 6: told.good(0.1)}
    server.script = lambda asked: first.get(asked.number, told.good())
    assert told.ask(told.generation(films, server.base_url, concurrency=4), 12).done == 12
    refused = server.log[4]
    early = [round(asked.arrived - refused.sent, 3) for asked in server.log[6:] if asked.arrived < refused.sent + 0.36]
    assert early == [], f"asked so many seconds after a refusal that asked for 0.4 s: {early}"


@pytest.mark.parametrize(("status", "seconds"), [(429, 121), (503, 1e400)])
def test_too_long_a_pause_stops_the_run(films: Dataset, server: ScriptedServer, status: int, seconds: float) -> None:
    long = told.fails(status, headers=f"Retry-After: {seconds}\r\n")
    server.script = lambda asked: long if asked.number > 8 else told.good()
    made = told.generation(films, server.base_url)
    with pytest.raises(LLMError, match=rf"(?s)asks to wait {seconds} s.*run the same command again later"):
        told.ask(made, 48)
    assert server.requests <= 8 + 2 * 4
    assert (len(told.ids(made, "answers")), told.ids(made, "failures")) == (8, set())


def test_a_stop_ends_a_long_pause(films: Dataset, server: ScriptedServer) -> None:
    stop, started = threading.Event(), time.monotonic()

    def script(asked: Asked) -> Reply:
        if asked.number == 7:
            threading.Timer(0.3, stop.set).start()
        return told.fails(429, headers="Retry-After: 100\r\n") if asked.number > 6 else told.good()

    server.script = script
    progress = told.ask(told.generation(films, server.base_url), 48, stop=stop)
    assert time.monotonic() - started < 20
    assert (progress.stopped, progress.done, progress.failed) == (True, 6, 0)
    assert server.requests <= 6 + 4 + 3


def test_a_pause_is_read_in_every_form() -> None:
    assert retry_after({"retry-after": "0.5"}) == 0.5
    assert retry_after({"retry-after-ms": "250", "retry-after": "3"}) == 0.25
    tomorrow = formatdate(time.time() + 86_400, usegmt=True)
    assert retry_after({"retry-after": tomorrow}) == pytest.approx(86_400, abs=3600)
    for nothing in ("-3", "soon", "nan", "Mon, 01 Jan 1990 00:00:00 GMT", "Fri, 99 Foo 9999 99:99:99 GMT"):
        assert retry_after({"retry-after": nothing}) == retry_after({}) == 0


STOPS = {
    "the quota is used up": told.fails(429, "insufficient_quota", delay=0.01),
    "check the key in OPENAI_API_KEY": told.fails(401, "invalid_api_key"),
    "check the model name 'told'": told.sends({"error": "model 'told' not found, made to fail"}, 404),
}


@pytest.mark.parametrize("hint", STOPS)
def test_what_no_retry_can_mend_stops_at_once(films: Dataset, server: ScriptedServer, hint: str) -> None:
    server.script = lambda asked: STOPS[hint] if asked.number > 10 else told.good(0.01)
    made, progress = told.generation(films, server.base_url), Progress()
    with pytest.raises(LLMError, match=f"(?s)4..: .*made to fail.*{hint}"):
        told.ask(made, 48, progress)
    assert server.requests <= 10 + 4 + 3
    assert (progress.done, len(told.ids(made, "answers")), told.ids(made, "failures")) == (10, 10, set())
    assert list(told.events(made).values()) == [server.requests - 10]
    server.forget()
    server.script = lambda _: told.good()
    assert (told.ask(made, 48).done, server.requests) == (38, 38)


def test_what_concerns_one_subject_stops_nothing_and_is_asked_later(films: Dataset, server: ScriptedServer) -> None:
    filtered = told.fails(400, "content_filter", message="broken \ud800 text")
    server.script = lambda asked: filtered if asked.number <= 8 else told.good()
    made = told.generation(films, server.base_url, concurrency=1)
    progress = told.ask(made, 12)
    assert (server.requests, progress.calls, progress.done, progress.failures) == (12, 12, 4, {"content": 8})
    assert (told.ids(made, "failures"), told.events(made)) == (set(range(8)), {"content": 8})
    server.forget()
    server.script = lambda _: told.good()
    progress = told.ask(made, 12)
    assert ([asked.item for asked in server.log], progress.found, progress.done) == (list(range(8)), 4, 8)
    assert (told.ids(made, "answers"), told.ids(made, "failures")) == (set(range(12)), set())


def error(code: Any, message: str = "made to fail") -> dict[str, Any]:
    return {"error": {"message": message, "type": "error", "code": code}}


PAGE = "<html>502 upstream timed out</html>"
WORDS: list[tuple[int, Any, str, str]] = [
    (429, error("billing_hard_limit_reached"), "quota", "429: made to fail"),
    (200, error(402, "Insufficient credits."), "quota", "402: Insufficient credits."),
    (403, error(None), "key", "403: made to fail"),
    (400, [error(400, "API key not valid")], "key", "API key not valid"),
    (400, error("context_length_exceeded"), "content", "400: made to fail"),
    (422, {"error": "inputs tokens + max_new_tokens must be <= 512"}, "content", "422: inputs tokens + max"),
    (400, {"message": "This model's maximum context length is 4096", "code": 400}, "content", "400: This model's"),
    (413, error("unsupported"), "request", "413: made to fail"),
    (
        422,
        {"detail": [{"loc": ["body", "top_k"], "msg": "not permitted"}]},
        "request",
        "422: body.top_k: not permitted",
    ),
    (422, {"detail": [{"loc": ["a"], "msg": "m1"}, {"loc": ["b"], "msg": "m2"}]}, "request", "422: a: m1; b: m2"),
    (404, {"detail": "Not Found"}, "model", "404: Not Found"),
    (400, {"errors": ["no model is loaded"]}, "request", "400: no model is loaded"),
    (400, {"error": {"message": "Provider returned error", "metadata": {"raw": "top_k?"}}}, "request", "error: top_k?"),
    (400, error(None, "Your credit balance is too low"), "quota", "400: Your credit balance"),
    (400, error(None, "Incorrect API key provided"), "key", "400: Incorrect API key"),
    (403, error(403, "Input flagged by moderation"), "content", "403: Input flagged"),
    (400, error(400, "the request exceeds the available context size"), "content", "400: the request"),
    (502, PAGE, "server", "502: a page of HTML: 502 upstream timed out"),
    (503, f"<style>{'x{}' * 3000}</style>Down", "server", "503: a page of HTML: Down"),
    (500, "", "server", "500: no message"),
    (200, PAGE, "garbage", "no chat completion: a page of HTML: 502"),
    (200, "data: {}\n\ndata: [DONE]\n\n", "garbage", "no chat completion: a stream of events: data: {}"),
    (200, f": WAIT\n\ndata: {json.dumps({'error': {'code': 402}})}\n\n", "quota", "402: a stream of events:"),
    (200, {"choices": [{"error": error("402", "no credits")["error"], "message": {}}]}, "quota", "402: no credits"),
    (200, {**completion("A tale of", {}), **error(429, "slow down")}, "busy", "429: slow down"),
    (200, completion("A tale of the", {}, "error"), "server", "error: {"),
    (200, {"error": "Rate limit reached"}, "busy", "error: Rate limit reached"),
    (200, {"error": "Insufficient credits"}, "quota", "error: Insufficient credits"),
    (200, {"code": 402, "message": "Insufficient balance"}, "quota", "402: Insufficient balance"),
    (
        200,
        {"choices": [{"message": {"content": None, "tool_calls": [{"name": "f"}]}}]},
        "request",
        "calls tools instead",
    ),
    (500, {"error": "red \x1b[31m, turned \u202e"}, "server", "red \\x1b[31m, turned \\u202e"),
    (500, "\x00\x07bell", "server", "500: \\x00\\x07bell"),
    (200, {"error": {"message": "Overloaded", "type": "overloaded_error"}}, "busy", "overloaded_error: Overloaded"),
]


@pytest.mark.parametrize(("status", "body", "kind", "words"), WORDS)
def test_the_servers_own_words_reach_the_user(status: int, body: Any, kind: str, words: str) -> None:
    with pytest.raises(CallError) as caught:
        read_reply(status, body if isinstance(body, str) else json.dumps(body), {})
    assert caught.value.kind == kind
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"finish_reason": "MAX_TOKENS", "message": {"content": "A tale"}}, ("A tale", "length", "", "")),
        ({"finish_reason": "SAFETY", "message": {"content": ""}}, ("", "content_filter", "", "")),
        ({"finish_reason": "content_filter"}, ("", "content_filter", "", "")),
        ({"message": {"content": [{"type": "refusal", "refusal": "No."}]}}, ("", "stop", "No.", "")),
        ({"message": {"content": [{"type": "text", "text": None}]}}, ("", "stop", "", "")),
        ({"message": {"content": [{"type": "thinking", "thinking": []}]}}, ("", "stop", "", "thinking")),
        ({"message": {"content": "", "reasoning_details": [{}]}}, ("", "stop", "", "reasoning_details")),
        ({"message": {"content": None, "thoughts": "Hm."}}, ("", "stop", "", "thoughts")),
        ({"message": {"content": "", "reasoning": " \n"}}, ("", "stop", "", "")),
    ],
)
def test_answers_of_other_shapes_are_read(choice: dict[str, Any], expected: tuple[str, str, str, str]) -> None:
    answer = read_reply(201, f"\ufeff{json.dumps({'choices': [choice]})}", {})
    assert (answer.text, answer.finish_reason, answer.refusal, answer.thoughts) == expected


def test_odd_content_is_stored(films: Dataset, server: ScriptedServer) -> None:
    """Text in parts, and halves of characters everywhere."""
    parts = [{"type": "text", "text": "This is the story "}, {"type": "text", "text": "of the sea."}]
    cases = [
        told.says(told.prose, finish_reason="st\ud800op"),
        told.says("This is the \ud800 story of the sea and of the people in it."),
        told.says('{"profile": "This is the \\ud800 story of the sea and of the people in it."}'),
        told.says("", content=[{"type": "thinking", "thinking": "Well."}, *parts]),
    ]
    server.script = lambda asked: cases[asked.item]
    made = told.generation(films, server.base_url)
    assert told.ask(made, len(cases)).done == len(cases)
    texts = dict(told.stored(made, "SELECT id, text FROM answers"))
    assert (texts[2][:12], texts[3]) == ("This is the ", "This is the story of the sea.")


def test_a_bad_key_is_not_shown(films: Dataset, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    made = told.generation(films, server.base_url, attempts=1)
    for key in ("sk-one\nsk-two-0123456789", "sk-tést-0123456789"):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        with pytest.raises(SpikeKitError) as caught:
            told.ask(made, 6)
        assert "0123456789" not in str(caught.value)
    assert server.requests == 0
    assert not any(b"0123456789" in file.read_bytes() for file in made.answers.parent.iterdir())
