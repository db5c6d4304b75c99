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
from spike_kit.data.text import cut, without_markup
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
_UNPAID = re.compile(r"insufficient (?:quota|credit|balance|fund)|credit balance|(?:out of|no) credit|in arrears", re.I)
_KEY = re.compile(r"api[ _-]?key|auth[ _](?:credential|token)|authenticat|authoriz", re.I)
_BUSY = re.compile(r"rate[ _]limit|too[ _]many[ _]requests|overloaded|resource_exhausted", re.I)
_CONTENT = re.compile(
    "content_filter|content_policy|safety|flagged|moderation|too long|max_new_tokens|maximum context"
    "|context[_ ](?:length|size|window)",
    re.I,
)
_SAYING = ("error", "errors", "choices", "message", "detail", "msg", "error_description")
"""Fields in which servers say what went wrong, also inside each other and in lists."""

_NUMBER = re.compile(r"\b[45]\d\d\b")
_EVENT = re.compile(r"(?::[^\n]*\n+)*(?:event:[^\n]*\n)?data:(.*)")
_THOUGHTS = re.compile("reasoning|thinking|thought")
_REASONS: dict[str, str] = dict.fromkeys(("length", "max_tokens", "max_output_tokens", "model_length"), "length")
_REASONS |= dict.fromkeys(("content_filter", "safety", "prohibited_content", "recitation", "refusal"), "content_filter")
"""Other servers' reasons to end an answer, and OpenAI's."""


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
    values, kind, words = read_body(status, body, headers)
    if not kind:
        return _completion(values, words, seconds)
    raise CallError(kind, words, retry_after(headers))


def read_body(status: int, body: str, headers: Mapping[str, str]) -> tuple[Any, str, str]:
    """Read a body: its JSON value (None if it is none), the kind of failure (empty if it is none), and what is said.

    An error in a body with status 2xx counts as the error it names.
    """
    values, said, body = None, "", body.lstrip("\ufeff \r\n")
    codes, event = " ".join(_CODES.findall(body))[:_LONGEST_WORDS], _EVENT.match(body)
    with suppress(ValueError, RecursionError):
        values = parsed(event[1] if event else body)
        said = _said(values)
    if body.startswith("<"):
        said = f"a page of HTML: {re.sub('<[^<>]*>', ' ', without_markup(body))}"
    if 300 <= status < 400 and "location" in headers:
        said = f"the server moved to {headers['location']}: correct its address"
    words = " ".join((said or body).split())[:_LONGEST_WORDS]
    words = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in words)
    words, named = f"a stream of events: {words}" if event else words, str(status)
    if 200 <= status < 300:
        if not _tells_of_error(values, codes):
            return values, "", words
        number, told = _NUMBER.search(codes), f"{codes} {words}"
        known = 429 if _BUSY.search(told) else 400 if _UNPAID.search(told) or _KEY.search(told) else 500
        named, status = codes[:60] or "error", int(number[0]) if number else known
    return values, _failure_kind(status, codes, words), f"{named}: {words or 'no message'}" if status else words


def _said(value: Any) -> str:
    """What a server says in a JSON value, and of what place (``loc``); empty if no field is known to say it."""
    if isinstance(value, list):
        return "; ".join(filter(None, map(_said, value)))
    if not isinstance(value, dict):
        return value if isinstance(value, str) else ""
    words = next((words for name in _SAYING if (words := _said(value.get(name)))), "")
    match value:
        case {"loc": [*place]}:
            return f"{'.'.join(map(str, place))}: {words}"
        case {"metadata": {"raw": str(behind)}} if words:
            return f"{words}: {behind}"
    return words


def _tells_of_error(values: Any, codes: str) -> bool:
    """Whether a body with status 2xx is an error after all: of the whole, of its choice, or a code without a choice."""
    choices = values.get("choices") if isinstance(values, dict) else []
    match choices:
        case [{"finish_reason": "error"}, *_]:
            return True
        case [choice, *_]:
            return bool(_said(values.get("error")) or (isinstance(choice, dict) and choice.get("error")))
    return isinstance(values, dict) and bool(values.get("error") or _NUMBER.search(codes))


def _failure_kind(status: int, code: str, words: str) -> str:
    """Decide what an error means, from its status, the codes in its body and the server's words."""
    if status == 402 or _QUOTA.search(code) or (status < 500 and _UNPAID.search(words)):
        return "quota"
    if status in (400, 403, 413, 422) and _CONTENT.search(f"{code} {words}"):
        return "content"
    if status in (401, 403) or (status in (400, 422) and _KEY.search(f"{code} {words}")):
        return "key"
    if status == 404:
        return "model"
    if status == 429:
        return "busy"
    return "server" if status in (408, 409) or status >= 500 else "request"


def _completion(values: Any, words: str, seconds: float) -> Answer:
    """Read an answer out of the body of a chat completion."""
    try:
        choice = values["choices"][0]
        reason = str(choice.get("finish_reason") or "stop")[:40]
        reason = _REASONS.get(reason.lower(), reason)
        message = (choice.get("message") or {}) if reason == "content_filter" else choice["message"]
        content, usage = message.get("content") or "", values.get("usage") or {}
        parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
        content = "".join(part.get("text") or "" for part in parts if part.get("type") in ("text", "output_text"))
        refusal = message.get("refusal") or "".join(part.get("refusal") or "" for part in parts)
        fields = [*message.items(), *((str(part.get("type")), part) for part in parts)]
        thoughts = next((name for name, value in fields if _THOUGHTS.match(name) and str(value or "").strip()), "")
        counts = {name: usage.get(name) for name in ("prompt_tokens", "completion_tokens")}
        counts = {name: n if type(n) is int and 0 <= n < 2**40 else 0 for name, n in counts.items()}
        calls = message.get("tool_calls") or message.get("function_call")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise CallError("garbage", f"the response is no chat completion: {words}") from None
    if calls and not content.strip():
        raise CallError("request", f"the model calls tools instead of answering: {words}")
    return Answer(content, reason, counts, seconds, str(refusal), thoughts)


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
