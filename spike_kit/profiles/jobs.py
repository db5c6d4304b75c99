"""Asking a model many questions: concurrently, resumably, every answer on the disk before its slot is used again.

openai's client repeats failed calls and waits between. What it does not do stands here: it takes `Asking` as its
transport, so every attempt passes here, is sent within bounds and at a common pace (`exchange`, `Pace`), and what its
response means (`read_reply`) is looked at before the client goes on.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, aclosing, asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from itertools import chain
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from spike_kit.base import paths
from spike_kit.base.errors import LLMError, require
from spike_kit.data.text import cut
from spike_kit.profiles.llm import LLMConfig, Message, hide_key, prices
from spike_kit.profiles.prompts import Prompt
from spike_kit.profiles.store import Answer, Key, Store, Stored, Verdict

TRIES = 2
"""Answers per question in one run: the first, and one more if that cannot be used."""

FAILURES_IN_A_ROW = 5
"""Questions that may fail one after the other, without any answer in between, before a run stops."""

BUSY_FACTOR = 5
"""A busy server is tried so many times as often as one that fails."""

_OF_ONE_SUBJECT = frozenset({"content", "empty", "refused", "truncated", "language", "format"})
"""Failures that say nothing about the other questions."""

_QUOTED = 3000
"""Characters of an unusable answer that the model is shown again."""

_TICK = 0.2
"""Seconds between two looks at the progress, and at whether the run is to end."""

_CONNECT_SECONDS = 30.0

RETRIED = frozenset({"server", "timeout", "connection", "garbage", "busy", "unreachable"})
"""Kinds of failure after which the same call is tried again; after the first four it may be billed all the same."""

HINTS: dict[str, str] = {
    "quota": "the quota is used up: add credit or raise the limit, then run again",
    "key": "check the key in {key_variable} and what it may use",
    "model": "check the model name {model!r} and --base-url",
}
"""What to do after the kinds that stop a run, since nobody but the user can help."""

LONGEST_MESSAGE = 300
"""Characters of a server's words that are shown and stored, once the key is taken out."""

MAX_ANSWER_BYTES = 4 * 1024 * 1024
"""Largest response that is read; a profile has a few kilobytes."""

_BUSY_PAUSE = 1.0
"""Seconds that a busy server is left alone where it does not say how long."""

_LOOK = 0.02
"""Seconds between two looks for a place."""

_LONGEST_WORDS = 10 * LONGEST_MESSAGE
_CODES = re.compile(r'"(?:code|type|status|error_type)"\s*:\s*"?(?!null)([\w.-]+)')
_QUOTA = re.compile(r"insufficient_quota|billing|credit")
_KEY = re.compile(r"invalid_api_key|api[ _-]?key not valid|authentication_error", re.I)
_BUSY = re.compile(r"rate_limit|too_many_requests|overloaded")
_CONTENT = re.compile(
    r"content_filter|content_policy|safety|context[_ ]length|too long|maximum context|max_new_tokens", re.I
)


@dataclass
class Progress:
    """How far a run is; read by other threads while it changes.

    Attributes
    ----------
    subject
        What is asked about.
    found
        Questions that had an answer from before.
    done, failed
        Questions answered, and given up, by this run.
    calls
        Requests sent, retries included.
    problems
        Answers by what was wrong with them (regenerated once, then reported).
    failures
        Failed questions by kind.
    tokens_in, tokens_out
        Tokens used by this run, as the server counted them.
    first_failures
        The first ten failures in words.
    """

    subject: str = ""
    total: int = 0
    found: int = 0
    done: int = 0
    failed: int = 0
    calls: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    problems: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    first_failures: list[str] = field(default_factory=list)
    stopped: bool = False

    def count(self, answer: Answer, problem: str, usable: bool) -> None:
        """Count an answer."""
        self.calls += 1
        self.done += usable
        self.tokens_in += answer.usage["prompt_tokens"]
        self.tokens_out += answer.usage["completion_tokens"]
        if problem:
            self.problems[problem] += 1

    def fail(self, what: str, kind: str, message: str) -> None:
        """Count a failed question."""
        self.failed += 1
        self.failures[kind] += 1
        if len(self.first_failures) < 10:
            self.first_failures.append(f"{what}: {kind}: {message}")

    def summary(self, model: str, answers: Path, batch: bool = False) -> str:
        """Say what a run did and used, what was wrong, and the first failures; ``answers`` is the file of a store."""
        used = prices().used(model, self.tokens_in, self.tokens_out, batch)
        counts = f"{self.found} answers from before, {self.done} new, {self.failed} failed"
        lines = [f"{counts}; {self.calls} calls, {used}"]
        for name, found in (("problems", self.problems), ("failures", self.failures)):
            lines += [f"{name}: {', '.join(f'{n} {kind}' for kind, n in found.items())}"] if found else []
        if self.failed:
            lines += ["failed (asked again the next time):", *(f"  {failure}" for failure in self.first_failures)]
        if more := self.failed - len(self.first_failures):
            lines.append(f"  and {more} more: table failures of {paths.shown(answers)}")
        return "\n".join(lines)

    def show(self, bar: tqdm) -> None:
        """Show how far the run is on a bar of questions."""
        bar.total = self.total
        bar.set_description(f"ask about {self.subject}", refresh=False)
        bar.set_postfix(failed=self.failed, refresh=False)
        bar.update(self.found + self.done + self.failed - bar.n)


Remedy = Callable[[str, str], str]
"""What to say after an answer with a problem, from the problem and the text of that answer."""

Watch = Callable[[Progress], None]
"""Called some times a second with the progress."""

_CALL: ContextVar[tuple[Key, Counter[str]]] = ContextVar("call")
"""Question of the present call, and how often it failed because the server was busy, and otherwise."""


@dataclass
class Asking:
    """A run over questions that have no usable answer yet.

    Attributes
    ----------
    prompts
        Questions; drawn one at a time when a slot is free, so they may be written on the way.
    judge
        Judges an answer.
    remedy
        What to say after an answer with a problem: from the problem and the text of that answer.
    answered
        Whether there is a usable answer under a key; called again when it has arrived.
    config
        Model and server.
    store
        An open store, held exclusively.
    progress
        Counted up.
    stop
        Set from any thread to end the run: calls in flight are still awaited and stored.
    watch
        Called some times a second; should it fail, the run ends in the same way.
    """

    prompts: Iterator[Prompt]
    judge: Callable[[Answer], Verdict]
    remedy: Remedy
    answered: Callable[[Key], bool]
    config: LLMConfig
    store: Store
    progress: Progress
    stop: threading.Event
    watch: Watch = lambda _: None

    def __post_init__(self) -> None:
        self._pace = Pace(self.config.concurrency)
        self._at_server: set[asyncio.Task[Any] | None] = set()
        self._error: Exception | None = None
        self._failed_in_a_row = 0

    def run(self) -> None:
        """Ask; also where an event loop is running already, as in a notebook.

        In the main thread, the first SIGINT or SIGTERM sets ``stop``; a second one acts as usual.

        Raises
        ------
        LLMError
            If the model cannot be asked at all: no key, no quota, no such model, no server.
        StorageError
            If an answer cannot be written.
        """
        unanswered = self._unanswered()
        if (first := next(unanswered, None)) is not None:
            self._open = chain([first], unanswered)
            with _stopped_by_signals(self.stop):
                try:
                    asyncio.get_running_loop()
                except RuntimeError:
                    asyncio.run(self._ask())
                else:
                    with ThreadPoolExecutor(1) as thread:
                        thread.submit(asyncio.run, self._ask()).result()
            self.progress.stopped = self.stop.is_set()
        if self._error is not None:
            raise self._error
        self.watch(self.progress)

    async def _ask(self) -> None:
        config, openai, self._http = self.config, require("openai", "llm"), require("httpx2", "llm")
        logging.getLogger("httpcore2").setLevel(logging.INFO)  # below, it logs headers: a server may send the key back
        self._key = config.key()
        self._wire = self._http.AsyncHTTPTransport(limits=self._http.Limits(max_connections=config.concurrency))
        self._sdk = openai.AsyncOpenAI(
            api_key=self._key,
            base_url=config.server or None,
            max_retries=BUSY_FACTOR * config.attempts,
            timeout=openai.Timeout(config.timeout, connect=min(config.timeout, _CONNECT_SECONDS)),
            http_client=openai.DefaultAsyncHttpxClient(transport=self, follow_redirects=False),
            default_headers={"Accept-Encoding": "identity"},
        )
        async with self._sdk:
            waiting = {asyncio.create_task(self._work()) for _ in range(config.concurrency)}
            while waiting:
                _, waiting = await asyncio.wait(waiting, timeout=_TICK)
                try:
                    await asyncio.to_thread(self.store.flush)
                    if self._error is None:
                        self.watch(self.progress)
                except Exception as error:
                    self._error = self._error or error
                for task in waiting - self._at_server if self._ending else ():
                    task.cancel()

    @property
    def _ending(self) -> bool:
        return self._error is not None or self.stop.is_set()

    async def _work(self) -> None:
        """Settle one question after another; an error ends the run, but what others have at the server is kept."""
        try:
            for prompt in self._open:
                await self._settle(prompt, Key.of(prompt, self.config))
        except Exception as error:
            self._error = self._error or error

    def _unanswered(self) -> Iterator[Prompt]:
        """Questions without a usable answer, until the run ends."""
        for prompt in self.prompts:
            if self._ending:
                return
            if self.answered(Key.of(prompt, self.config)):
                self.progress.found += 1
            else:
                yield prompt

    async def _settle(self, prompt: Prompt, key: Key) -> None:
        """Ask until there is a usable answer, or until the tries of this run are used up; what arrives is committed."""
        while not self._ending:
            earlier, failures = self.store.rejected(key), Counter[str]()
            _CALL.set((key, failures))
            body = {**self.config.request, "messages": chat(prompt, earlier, self.remedy)}
            try:
                response = await self._sdk.post("/chat/completions", cast_to=self._http.Response, body=body)
            except CallError as error:
                self._give_up(key, error.kind, error.message)
                return
            answer: Answer = response.extensions["answer"]
            verdict = self.judge(answer)
            verdict = replace(verdict, text=hide_key(verdict.text, self._key))
            with self.store.transaction():
                usable = self.store.keep(key, answer, verdict, attempts=failures.total() + 1, server=self.config.server)
                self.store.keep_prompt(prompt)
            self.progress.count(answer, verdict.problem, usable)
            if not verdict.advice:
                self._failed_in_a_row = 0
            if usable:
                self.answered(key)
                return
            if verdict.advice or len(earlier) + 1 >= TRIES:
                said = f"{len(earlier) + 1} answers, none usable; the last: {verdict.text[:80]!r}"
                self._give_up(key, verdict.problem, verdict.advice or said)
                return

    async def handle_async_request(self, request: Any) -> Any:
        """Make one attempt; the SDK gets a response of ours, whose status tells it to go on or to try again."""
        task, failure = asyncio.current_task(), None
        async with self._pace.place() as started:
            self._at_server.add(task)
            try:
                answer = await exchange(self._wire, request, self.config.timeout)
                answer = replace(answer, finish_reason=hide_key(answer.finish_reason, self._key))
                self._pace.succeeded()
                return self._http.Response(200, request=request, extensions={"answer": answer})
            except CallError as error:
                failure = error
                if error.kind == "busy":
                    self._pace.busy(started, error.wait)
            finally:
                self._at_server.discard(task)
        failure.message = hide_key(failure.message, self._key)[:LONGEST_MESSAGE]
        self._decide(failure)
        return self._http.Response(503, headers={"retry-after-ms": str(1000 * failure.wait)}, request=request)

    async def aclose(self) -> None:
        """Close the connections, for the SDK."""
        await self._wire.aclose()

    def _decide(self, failure: CallError) -> None:
        """Decide what a failed attempt means; returns where the SDK is to wait and to make the call again."""
        (key, failures), kind, most = _CALL.get(), failure.kind, self.config.attempts
        self.progress.calls += 1
        self.store.record(key, kind, failure.message)
        failures["busy" if kind == "busy" else "other"] += 1
        if kind in HINTS:
            raise LLMError(failure.message, HINTS[kind].format(**dict(self.config)))
        if failure.wait > self.config.longest_wait:
            asked = f"the server asks to wait {failure.wait:.0f} s: {failure.message}"
            raise LLMError(asked, "run the same command again later")
        if kind not in RETRIED or failures["other"] >= most or failures["busy"] >= BUSY_FACTOR * most:
            raise failure
        if self._ending:
            raise asyncio.CancelledError

    def _give_up(self, key: Key, kind: str, message: str) -> None:
        self.store.fail(key, kind, message)
        self.progress.fail(f"{key.subject} {key.id}", kind, message)
        self._failed_in_a_row += kind not in _OF_ONE_SUBJECT
        if self._failed_in_a_row >= FAILURES_IN_A_ROW and self._error is None:
            said = f"{self._failed_in_a_row} questions in a row failed; the last: {kind}: {message}"
            server = self.config.server or "OpenAI"
            hint = f"is the server running at {server}, and does it know these settings? The same command goes on"
            if kind == "thoughts":
                hint = "change these settings first: the same command would pay for the same again"
            self._error = LLMError(said, f"{hint}. Answers so far are kept.")


def chat(prompt: Prompt, earlier: list[Stored], remedy: Remedy) -> list[Message]:
    """Messages of a question; they go on from the last of the answers that could not be used."""
    if not earlier:
        return prompt.messages
    _, text, problem = earlier[-1]
    said = [{"role": "assistant", "content": cut(text, _QUOTED)}] if text else []
    return [*prompt.messages, *said, {"role": "user", "content": remedy(problem, text)}]


@contextmanager
def _stopped_by_signals(stop: threading.Event) -> Iterator[None]:
    with ExitStack() as usual:

        def end(*_: object) -> None:
            stop.set()
            usual.close()

        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                usual.callback(signal.signal, number, signal.signal(number, end))
        yield


class CallError(Exception):
    """An attempt that brought no answer.

    Parameters
    ----------
    kind
        ``busy`` (429), ``server`` (408, 409, 5xx), ``timeout``, ``connection`` (dropped), ``unreachable`` (never
        connected), ``garbage`` (no chat completion in the body), ``request`` (400, 413, 422, redirects), ``content``
        (filtered or too long for the model), ``quota`` (used up), ``key`` (wrong or without rights), ``model``
        (unknown).
    message
        The server's own words, where there are some.
    wait
        Seconds the server asks to wait.
    """

    def __init__(self, kind: str, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.wait = wait


class Pace:
    """Attempts at the server: at most a limit that falls when it is busy, and none during a pause it asks for.

    The limit is halved on a busy signal (once per wave of calls) and grows by one after as many successes as it
    counts, up to the configured concurrency; a pause holds for all calls.

    Parameters
    ----------
    most
        Configured concurrency.
    """

    def __init__(self, most: int) -> None:
        self.most, self.limit, self._active = most, float(most), 0
        self._not_before = self._halved_at = 0.0

    @asynccontextmanager
    async def place(self) -> AsyncIterator[float]:
        """Wait for a place and for the end of a pause; gives the time at which the attempt begins."""
        while self._active >= int(self.limit) or time.monotonic() < self._not_before:
            await asyncio.sleep(max(_LOOK, self._not_before - time.monotonic()))
        self._active += 1
        try:
            yield time.monotonic()
        finally:
            self._active -= 1

    def succeeded(self) -> None:
        """Count a success."""
        self.limit = min(self.most, self.limit + 1 / self.limit)

    def busy(self, started: float, wait: float) -> None:
        """Slow down: an attempt that began at ``started`` met a busy server, which asks for ``wait`` seconds."""
        now = time.monotonic()
        self._not_before = max(self._not_before, now + (wait or _BUSY_PAUSE))
        if started >= self._halved_at:
            self.limit, self._halved_at = max(1.0, self.limit / 2), now


async def exchange(wire: Any, request: Any, timeout: float) -> Answer:
    """Send a request and read the response, which is not trusted, within the bounds of time and size.

    Raises
    ------
    CallError
        If no answer comes.
    """
    http, started, body = require("httpx2", "llm"), time.perf_counter(), bytearray()
    try:
        async with asyncio.timeout(timeout), aclosing(await wire.handle_async_request(request)) as response:
            async for chunk in response.stream:
                body += chunk
                if len(body) > MAX_ANSWER_BYTES:
                    raise CallError("garbage", f"the response is larger than {MAX_ANSWER_BYTES} bytes")
    except (http.ConnectError, http.ConnectTimeout) as error:
        raise CallError("unreachable", str(error) or type(error).__name__) from None
    except (TimeoutError, http.TimeoutException):
        raise CallError("timeout", f"no answer within {timeout:g} s") from None
    except (http.HTTPError, OSError, EOFError) as error:
        raise CallError("connection", str(error) or type(error).__name__) from None
    if (encoding := response.headers.get("content-encoding", "identity")) != "identity":
        raise CallError("garbage", f"the response is compressed ({encoding[:40]}), which was not asked for")
    seconds = time.perf_counter() - started
    return read_reply(response.status_code, body.decode(errors="replace"), response.headers, seconds)


def read_reply(status: int, body: str, headers: Mapping[str, str], seconds: float = 0.0) -> Answer:
    """Read the answer in a response.

    Raises
    ------
    CallError
        If there is none in it. An error in a body with status 200 counts as the error it names.
    """
    values, words, code = read_body(body)
    named: object = status
    if status == 200:
        if not isinstance(values, dict) or values.get("choices") or not values.get("error"):
            return _completion(values, words, seconds)
        number = re.search(r"\b[45]\d\d\b", code)
        status, named = int(number[0]) if number else 429 if _BUSY.search(code) else 500, code or "error"
    if 300 <= status < 400:
        words = f"the server moved to {headers.get('location', '?')}: check --base-url"
    raise CallError(failure_kind(status, code, words), f"{named}: {words or 'no message'}", retry_after(headers))


def failure_kind(status: int, code: str, words: str) -> str:
    """Decide what an error means, from its status, the codes in its body and the server's words."""
    said = f"{code} {words}"
    if status == 402 or _QUOTA.search(code):
        return "quota"
    if status in (401, 403) or (status < 500 and _KEY.search(said)):
        return "key"
    if status == 404:
        return "model"
    if status == 429:
        return "busy"
    if status in (408, 409) or status >= 500:
        return "server"
    return "content" if _CONTENT.search(said) else "request"


def what_failed(status: int, body: str) -> tuple[str, str]:
    """Decide what a response with an error means; gives that and the server's words."""
    _, words, code = read_body(body)
    return failure_kind(status, code, words), words


def _completion(values: Any, words: str, seconds: float) -> Answer:
    """Read an answer out of the body of a chat completion."""
    try:
        choice = values["choices"][0]
        message, usage = choice["message"], values.get("usage") or {}
        content, refusal = message.get("content") or "", message.get("refusal") or ""
        if isinstance(content, list):
            content = "".join(part["text"] for part in content if part.get("type") in ("text", "output_text"))
        if not isinstance(content, str):
            raise TypeError
        thoughts = next((name for name in ("reasoning_content", "reasoning", "thinking") if message.get(name)), "")
        counts = {name: usage.get(name) for name in ("prompt_tokens", "completion_tokens")}
        counts = {name: n if type(n) is int and 0 <= n < 2**40 else 0 for name, n in counts.items()}
        reason = str(choice.get("finish_reason") or "stop")[:40]
    except (KeyError, IndexError, TypeError, AttributeError):
        raise CallError("garbage", f"the response is no chat completion: {words}") from None
    return Answer(content, reason, counts, seconds, str(refusal), thoughts)


def read_body(body: str) -> tuple[Any, str, str]:
    """Read a body: its JSON value (None if it is none), what the server says in it, and all codes of an error there."""
    words, codes = " ".join(body.split())[:_LONGEST_WORDS], " ".join(_CODES.findall(body))[:_LONGEST_WORDS]
    try:
        values = parsed(body)
    except (ValueError, RecursionError):
        return None, words, codes
    said = values.get("error", values) if isinstance(values, dict) else values
    said = said.get("message") or said.get("detail") if isinstance(said, dict) else said
    return values, said[:_LONGEST_WORDS] if said and isinstance(said, str) else words, codes


def parsed(text: str | bytes) -> Any:
    """Read JSON; halves of surrogate pairs, which cannot be written as UTF-8, become question marks."""
    return json.loads(json.dumps(json.loads(text), ensure_ascii=False).encode("utf-8", "replace"))


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds a server asks to wait, given in milliseconds, in seconds or as a date; 0 where it does not ask."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        with suppress(KeyError, ValueError):
            return max(0.0, float(headers[name]) * unit)
    with suppress(KeyError, ValueError, TypeError, OverflowError):
        return max(0.0, parsedate_to_datetime(headers["retry-after"]).timestamp() - time.time())
    return 0.0
