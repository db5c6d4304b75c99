"""What a server can do wrong on the wire: every fault is retried, counted, recorded, and never loses a subject."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import pytest

from spike_kit.base import paths
from spike_kit.base.errors import LLMError, SpikeKitError
from spike_kit.data.dataset import Dataset
from spike_kit.profiles import jobs
from spike_kit.profiles.jobs import FAILURES_IN_A_ROW, Progress
from spike_kit.profiles.limiter import Limiter
from spike_kit.profiles.llm import AMBIGUOUS
from spike_kit.profiles.store import Store
from tests.profiles import llm_server
from tests.profiles.llm_server import (
    Asked,
    Reply,
    ScriptedServer,
    ask,
    distinct_world,
    events,
    fails,
    generation,
    good,
    ids,
    says,
    sends,
    stored,
    waits,
)

FAULTS: dict[str, tuple[Reply, str]] = {
    "status 500": (fails(500), "server"),
    "status 502": (fails(502), "server"),
    "status 503": (fails(503, headers="Retry-After: 0\r\n"), "server"),
    "status 408": (fails(408), "server"),
    "timeout": (waits(1.5), "timeout"),
    "slow drip": (llm_server.drips, "timeout"),
    "drop before the body": (llm_server.drops, "connection"),
    "drop in the body": (llm_server.drops_in_body, "connection"),
    "drop in a chunk": (llm_server.drops_in_chunk, "connection"),
    "drop after a whole chunk": (llm_server.drops_after_chunk, "connection"),
    "endless body": (llm_server.never_ends, "connection"),
    "compressed": (llm_server.compresses, "connection"),
    "no HTTP": (llm_server.speaks(b"SSH-2.0-server\r\n\r\n"), "connection"),
    "endless header": (llm_server.speaks(b"HTTP/1.1 200 -\r\nX: " + b"a" * 400_000 + b"\r\n\r\n"), "connection"),
    "HTML": (sends(b"<html>Bad gateway</html>"), "garbage"),
    "empty body": (sends(b""), "garbage"),
    "not UTF-8": (sends(b'{"choices": "\xff\xfe"}'), "garbage"),
    "half of the JSON": (sends(b'{"choices": [{"message": {"content": "This is'), "garbage"),
    "a list": (sends([{"choices": []}]), "garbage"),
    "null choices": (sends({"choices": None}), "garbage"),
    "no choice": (sends({"choices": []}), "garbage"),
    "content a number": (sends({"choices": [{"message": {"content": 5}}]}), "garbage"),
    "message a text": (sends({"choices": [{"message": "This is it."}]}), "garbage"),
    "an error with status 200": (sends({"error": {"message": "overloaded"}}), "garbage"),
    "deeply nested": (sends(b'{"choices":' + b"[" * 200_000), "garbage"),
    "a number of 5000 digits": (sends(b'{"choices":' + b"9" * 5000 + b"}"), "garbage"),
}
"""Replies that bring no answer, and the kind under which each is recorded."""

_FILMS = 6
_LONG_PAUSE = 0.95


@pytest.fixture
def films(home: Path) -> Dataset:
    """The tiny world without profiles, with 124 subjects."""
    return distinct_world(paths.data_root() / "world")


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_FIRST_PAUSE", 0.02)
    monkeypatch.setattr(jobs, "_LONGEST_PAUSE", 0.1)


@pytest.fixture
def limiters(monkeypatch: pytest.MonkeyPatch) -> list[Limiter]:
    """The limiter of every run."""
    made: list[Limiter] = []

    class Watched(Limiter):
        def __init__(self, most: int) -> None:
            super().__init__(most)
            made.append(self)

    monkeypatch.setattr(jobs, "Limiter", Watched)
    return made


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as running:
        yield running


def first_time(reply: Reply) -> llm_server.Script:
    """Script that replies so to every prompt once, and well from then on."""
    return lambda asked: reply if asked.nth == 1 else good()


def film(asked: Asked) -> str:
    """First line of the data in a prompt about an item."""
    return asked.prompt.splitlines()[1]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_recorded_and_the_call_made_again(films: Dataset, server: ScriptedServer, fault: str) -> None:
    reply, kind = FAULTS[fault]
    server.script = first_time(reply)
    made = generation(films, server.base_url, attempts=3, timeout=0.5 if kind == "timeout" else 10)
    progress = ask(made, _FILMS)
    assert sorted(server.counts.values()) == [2] * _FILMS
    assert (progress.calls, progress.done, progress.failed) == (2 * _FILMS, _FILMS, 0)
    assert progress.unclear == (_FILMS if kind in AMBIGUOUS else 0)
    assert events(made) == {kind: _FILMS}
    assert stored(made, "SELECT id, attempts FROM answers ORDER BY id") == [(item, 2) for item in range(_FILMS)]
    assert ids(made, "failures") == ids(made, "rejected") == set()


@pytest.mark.parametrize("fault", FAULTS)
def test_what_always_fails_is_listed_and_alone_asked_again(films: Dataset, server: ScriptedServer, fault: str) -> None:
    reply, kind = FAULTS[fault]
    unlucky = {'item: "Comedy film 1"', 'item: "Comedy film 4"'}
    server.script = lambda asked: reply if film(asked) in unlucky else good()
    made = generation(films, server.base_url, attempts=2, concurrency=3, timeout=0.5 if kind == "timeout" else 10)
    progress = ask(made, _FILMS)
    assert server.requests == progress.calls == (_FILMS - 2) + 2 * 2
    assert (progress.done, progress.failed, progress.failures) == (_FILMS - 2, 2, {kind: 2})
    assert (ids(made, "answers"), ids(made, "failures")) == ({0, 2, 3, 5}, {1, 4})
    assert {row[0] for row in stored(made, "SELECT kind FROM failures")} == {kind}
    assert events(made) == {kind: 4}
    server.forget()
    server.script = lambda _: good()
    progress = ask(made, _FILMS)
    assert {film(asked) for asked in server.log} == unlucky
    assert (server.requests, progress.found, progress.done) == (2, _FILMS - 2, 2)
    assert (ids(made, "answers"), ids(made, "failures")) == (set(range(_FILMS)), set())


@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize("fault", ["status 500", "drop before the body", "HTML"])
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
    asked_before = server.requests
    server.script = lambda _: good()
    assert ask(made, 48).done == 48
    assert server.requests == asked_before + 48


def test_a_success_in_between_lets_a_run_go_on(films: Dataset, server: ScriptedServer) -> None:
    server.script = lambda asked: good() if asked.number % FAILURES_IN_A_ROW == 0 else fails(500)
    progress = ask(generation(films, server.base_url, attempts=1, concurrency=1), 20)
    assert (progress.calls, progress.done, progress.failed) == (20, 4, 16)


def test_no_server_at_all_stops_the_run_and_is_never_taken_for_a_billed_call(films: Dataset) -> None:
    with ScriptedServer() as gone:
        made, progress = generation(films, gone.base_url, attempts=2), Progress()
    with pytest.raises(LLMError, match=f"(?s)unreachable.*is the server running at {gone.base_url}"):
        ask(made, 20, progress)
    assert set(events(made)) == {"unreachable"}
    assert (progress.unclear, progress.done) == (0, 0)
    with ScriptedServer() as server:
        assert ask(generation(films, server.base_url), 20).done == server.requests == 20


def in_two_seconds() -> str:
    """HTTP date one to two seconds from now."""
    return formatdate(int(time.time()) + 2, usegmt=True)


@pytest.mark.parametrize("asks", ["seconds", "date", "nothing"])
def test_a_busy_server_pauses_all_calls_and_halves_their_number(
    films: Dataset, server: ScriptedServer, limiters: list[Limiter], monkeypatch: pytest.MonkeyPatch, asks: str
) -> None:
    monkeypatch.setattr(jobs, "_FIRST_PAUSE", 1.0)
    monkeypatch.setattr(jobs, "_LONGEST_PAUSE", 1.0)

    def script(asked: Asked) -> Reply:
        header = {"seconds": "Retry-After: 1\r\n", "date": f"Retry-After: {in_two_seconds()}\r\n", "nothing": ""}[asks]
        return fails(429, "rate_limit_exceeded", headers=header) if asked.number == 9 else good(0.02)

    server.script = script
    made = generation(films, server.base_url, concurrency=8)
    progress = ask(made, 40)
    refused = server.log[8]
    during = [asked for asked in server.log[9:] if asked.arrived < refused.sent + (0.45 if asks == "nothing" else 0.9)]
    assert all(asked.arrived < refused.sent + 0.25 for asked in during), "someone asked during the pause"
    assert len(during) < 8
    after = [asked for asked in server.log[9:] if asked not in during]
    assert len(after) > 20
    assert limiters[0].lowest == 4
    assert (server.requests, progress.calls, progress.done, progress.waits) == (41, 41, 40, 1)
    assert (events(made), progress.unclear) == ({"busy": 1}, 0)
    assert 5 <= server.peak <= 8
    overlaps = [sum(other.arrived <= asked.arrived < other.sent for other in after[:8]) for asked in after[:8]]
    assert max(overlaps) <= 5, "the limit was not halved"


def test_a_whole_wave_of_refusals_halves_once(films: Dataset, server: ScriptedServer, limiters: list[Limiter]) -> None:
    wave = fails(429, headers="Retry-After: 0.3\r\n", delay=0.1)
    server.script = lambda asked: wave if asked.number <= 8 else good(0.02)
    progress = ask(generation(films, server.base_url, concurrency=8), 40)
    assert (limiters[0].lowest, progress.waits, progress.done, server.requests) == (4, 8, 40, 48)


def test_those_who_wait_for_a_place_respect_a_pause_too(films: Dataset, server: ScriptedServer) -> None:
    def script(asked: Asked) -> Reply:
        if asked.number <= 4:
            return fails(429, headers="Retry-After: 0.3\r\n", delay=0.05)
        if asked.number == 5:
            return fails(429, headers="Retry-After: 1\r\n", delay=0.05)
        return good(0.3 if asked.number == 6 else 0)

    server.script = script
    assert ask(generation(films, server.base_url, concurrency=4), 12).done == 12
    refused = server.log[4]
    early = [round(asked.arrived - refused.sent, 3) for asked in server.log[6:] if asked.arrived < refused.sent + 0.9]
    assert early == [], f"asked so many seconds after a refusal that asked for 1 s: {early}"


def test_a_pause_begins_when_the_refusal_arrives_also_on_a_slow_disk(
    films: Dataset, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = Store.commit

    def slow(store: Store) -> None:
        time.sleep(0.2)
        commit(store)

    monkeypatch.setattr(Store, "commit", slow)
    first = {1: good(0.05), 2: fails(429, headers="Retry-After: 1\r\n", delay=0.15)}
    server.script = lambda asked: first.get(asked.number, good())
    assert ask(generation(films, server.base_url, concurrency=2), 6).done == 6
    refused = server.log[1]
    early = [round(asked.arrived - refused.sent, 3) for asked in server.log[2:] if asked.arrived < refused.sent + 0.9]
    assert early == [], f"asked so many seconds after a refusal that asked for 1 s: {early}"


@pytest.mark.parametrize("status", [429, 503])
def test_a_pause_beyond_the_longest_stops_the_run(films: Dataset, server: ScriptedServer, status: int) -> None:
    server.script = lambda asked: fails(status, headers="Retry-After: 700\r\n") if asked.number > 8 else good()
    made = generation(films, server.base_url)
    with pytest.raises(LLMError, match=r"(?s)asks to wait 700 s.*run the same command again later"):
        ask(made, 48)
    assert server.requests <= 8 + 2 * 4
    assert len(ids(made, "answers")) == 8
    assert ids(made, "failures") == set()


@pytest.mark.parametrize(
    "value", ["nan", "-3", "soon", "Fri, 99 Foo 9999 99:99:99 GMT", "Mon, 01 Jan 1990 00:00:00 GMT"]
)
def test_a_senseless_pause_is_no_pause(films: Dataset, server: ScriptedServer, value: str) -> None:
    server.script = first_time(fails(429, headers=f"Retry-After: {value}\r\n"))
    assert ask(generation(films, server.base_url), _FILMS, limit=10).done == _FILMS


STOPS = {
    "quota": (429, "insufficient_quota", "the quota is used up"),
    "payment": (402, "", "the quota is used up"),
    "key": (401, "invalid_api_key", "check the key in OPENAI_API_KEY"),
    "rights": (403, "", "check the key in OPENAI_API_KEY"),
    "model": (404, "model_not_found", "check the model name 'told'"),
}


@pytest.mark.parametrize("case", STOPS)
def test_what_no_retry_can_mend_stops_at_once(films: Dataset, server: ScriptedServer, case: str) -> None:
    status, code, hint = STOPS[case]
    server.script = lambda asked: fails(status, code, delay=0.01) if asked.number > 10 else good(0.01)
    made, progress = generation(films, server.base_url), Progress()
    with pytest.raises(LLMError, match=rf"(?s){status}: made to fail.*{hint}"):
        made.run(progress)
    first = min((asked for asked in server.log if asked.number > 10), key=lambda asked: asked.sent)
    late = [asked for asked in server.log if asked.arrived > first.sent]
    assert len(late) <= 3
    assert server.requests <= 10 + 4 + 3
    assert (progress.done, len(ids(made, "answers")), ids(made, "failures")) == (10, 10, set())
    assert events(made) == {"stop": server.requests - 10}
    server.forget()
    server.script = lambda _: good()
    outcome = generation(films, server.base_url).run()
    assert (server.requests, outcome.progress.found, outcome.progress.done) == (114, 10, 114)
    assert outcome.path is not None


@pytest.mark.parametrize("code", ["content_filter", "content_policy_violation", "context_length_exceeded"])
def test_what_concerns_one_subject_alone_is_asked_once_and_stops_nothing(
    films: Dataset, server: ScriptedServer, code: str
) -> None:
    server.script = lambda asked: fails(400, code) if asked.number <= 8 else good()
    made = generation(films, server.base_url, concurrency=1)
    progress = ask(made, 12)
    assert (server.requests, progress.calls, progress.done, progress.failures) == (12, 12, 4, {"content": 8})
    assert (ids(made, "failures"), events(made)) == (set(range(8)), {"content": 8})


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_request_the_server_cannot_take_is_not_repeated(films: Dataset, server: ScriptedServer, status: int) -> None:
    server.script = lambda _: fails(status, "unsupported_parameter", "no such parameter: top_q")
    made = generation(films, server.base_url, concurrency=1)
    with pytest.raises(LLMError, match=r"in a row failed.*no such parameter: top_q"):
        ask(made, 12)
    assert (server.requests, events(made)) == (FAILURES_IN_A_ROW, {"request": FAILURES_IN_A_ROW})


SURROGATES = {
    "error": fails(500, message="broken \ud800 text"),
    "refused request": fails(400, "content_filter", message="broken \ud800 text"),
    "finish_reason": says(llm_server.prose, finish_reason="st\ud800op"),
    "refusal": says("", refusal="broken \ud800 text"),
    "content": says("This is the \ud800 story of the sea and of the people in it."),
    "content in JSON": says('{"profile": "This is the \\ud800 story of the sea and of the people in it."}'),
}


@pytest.mark.parametrize("where", SURROGATES)
def test_half_a_character_from_the_server_is_stored_or_reported(
    films: Dataset, server: ScriptedServer, where: str
) -> None:
    server.script = lambda asked: SURROGATES[where] if film(asked) == 'item: "Comedy film 1"' else good()
    made = generation(films, server.base_url, attempts=2)
    ask(made, _FILMS, limit=3)
    assert ids(made, "answers") | ids(made, "failures") == set(range(_FILMS))
    assert ids(made, "answers") >= set(range(_FILMS)) - {1}


ODDITIES = {
    "charset that is no text": llm_server.speaks(
        b"HTTP/1.1 500 -\r\nContent-Type: text/plain; charset=hex\r\nContent-Length: 5\r\n\r\nhello"
    ),
    "charset that is undefined": llm_server.speaks(
        b"HTTP/1.1 500 -\r\nContent-Type: text/plain; charset=undefined\r\nContent-Length: 5\r\n\r\nhello"
    ),
    "cookie beyond ASCII": llm_server.speaks(
        b"HTTP/1.1 503 -\r\nSet-Cookie: \xff\xfe=1\r\nContent-Length: 2\r\n\r\n{}"
    ),
    "redirect to no port": llm_server.speaks(
        b"HTTP/1.1 307 -\r\nLocation: http://127.0.0.1:999999/v1\r\nContent-Length: 0\r\n\r\n"
    ),
    "redirect to no host": llm_server.speaks(
        b"HTTP/1.1 307 -\r\nLocation: http://[::1/v1\r\nContent-Length: 0\r\n\r\n"
    ),
}


@pytest.mark.parametrize("oddity", ODDITIES)
def test_no_response_of_one_subject_can_end_the_run_with_a_foreign_error(
    films: Dataset, server: ScriptedServer, oddity: str
) -> None:
    server.script = lambda asked: ODDITIES[oddity] if film(asked) == 'item: "Comedy film 1"' else good()
    made = generation(films, server.base_url, attempts=2)
    ask(made, 20)
    assert ids(made, "answers") | ids(made, "failures") == set(range(20))
    assert ids(made, "answers") >= set(range(20)) - {1}


def test_a_redirect_costs_no_uncounted_request(films: Dataset, server: ScriptedServer) -> None:
    server.script = first_time(llm_server.redirects)
    made, progress = generation(films, server.base_url), Progress()
    try:
        ask(made, _FILMS, progress)
    except LLMError:
        assert progress.done == 0
    assert server.requests == progress.calls


@pytest.mark.parametrize("key", ["sk-one\nsk-two-0123456789", "sk-tést-0123456789"])
def test_a_key_that_is_no_header_is_an_error_that_does_not_show_it(
    films: Dataset, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    made = generation(films, server.base_url, attempts=1)
    with pytest.raises(SpikeKitError) as caught:
        ask(made, _FILMS, limit=10)
    assert "0123456789" not in str(caught.value)
    assert server.requests == 0
    kept = b"".join(file.read_bytes() for file in made.answers.parent.iterdir())
    assert b"0123456789" not in kept


def test_a_connection_survives_every_fault_before_it(films: Dataset, server: ScriptedServer) -> None:
    faults = [reply for reply, kind in FAULTS.values() if kind != "timeout"] + [waits(0.8)]
    server.script = lambda asked: faults[asked.number - 1] if asked.number <= len(faults) else good()
    made = generation(films, server.base_url, concurrency=1, attempts=len(faults) + 1, timeout=0.5)
    jobs_done = ask(made, 3).done
    assert (jobs_done, server.requests) == (3, len(faults) + 3)


def test_a_store_that_is_read_meanwhile_is_still_written(films: Dataset, server: ScriptedServer) -> None:
    made = generation(films, server.base_url)
    ask(made, 2)
    reader = sqlite3.connect(made.answers)
    reader.execute("BEGIN")
    assert reader.execute("SELECT count(*) FROM answers").fetchone() == (2,)
    assert ask(made, _FILMS).done == _FILMS - 2
    assert reader.execute("SELECT count(*) FROM answers").fetchone() == (2,)
    reader.close()
    assert ids(made, "answers") == set(range(_FILMS))


def test_asking_works_inside_a_running_event_loop(films: Dataset, server: ScriptedServer) -> None:
    async def notebook() -> bool:
        return generation(films, server.base_url).run().path is not None

    assert asyncio.run(notebook())
    assert (server.requests, len(server.counts)) == (124, 124)
