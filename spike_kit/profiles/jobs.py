"""Asking a model many questions: concurrently, resumably, every answer on the disk before its slot is used again.

openai's client repeats failed calls and waits between. What it does not do stands here: it takes `Asking` as its
transport, so every attempt passes here, keeps a common pace, and each failure is looked at before the client goes on.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

from spike_kit.base.errors import LLMError, require
from spike_kit.data.text import cut
from spike_kit.profiles.client import AMBIGUOUS, HINTS, LONGEST_MESSAGE, RETRIED, Answer, CallError, Pace, exchange
from spike_kit.profiles.llm import LLMConfig, Message, hide_key
from spike_kit.profiles.prompts import Prompt
from spike_kit.profiles.store import Key, Store, Stored, Verdict

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
    unclear
        Requests that may have been served, and billed, without an answer arriving (timeouts, drops, errors).
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
    unclear: int = 0
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
        first = next(unanswered, None)
        if first is not None:
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
                tried = {"attempts": failures.total() + 1, "server": self.config.server}
                usable = self.store.keep(key, answer, verdict, **tried)
                self.store.keep_prompt(prompt)
            self.progress.count(answer, verdict.problem, usable)
            if not verdict.advice:
                self._failed_in_a_row = 0
            if usable:
                self.answered(key)
            elif verdict.advice or len(earlier) + 1 >= TRIES:
                said = f"{len(earlier) + 1} answers, none usable; the last: {verdict.text[:80]!r}"
                self._give_up(key, verdict.problem, verdict.advice or said)
            else:
                continue
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
        self.progress.unclear += kind in AMBIGUOUS
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
