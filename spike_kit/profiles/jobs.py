"""Asking a model many questions: concurrently, resumably, every answer on the disk before its slot is used again."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, TypeVar

from spike_kit.base.errors import LLMError
from spike_kit.data.text import cut
from spike_kit.profiles.client import BUSY_FACTOR, Call, Client, open_client
from spike_kit.profiles.llm import LLMConfig, Message
from spike_kit.profiles.replies import AMBIGUOUS, RETRIED, Answer, CallError
from spike_kit.profiles.store import Key, Store, Stored

TRIES = 2
"""Answers per question in one run: the first, and one more if that cannot be used."""

FAILURES_IN_A_ROW = 5
"""Questions that may fail one after the other, without any answer in between, before a run stops."""

_OF_ONE_SUBJECT = frozenset({"content", "empty", "refused", "truncated", "language", "format"})
"""Failures that say nothing about the other questions."""

_QUOTED = 3000
"""Characters of an unusable answer that the model is shown again."""

_TICK = 0.2
"""Seconds between two looks at the progress, and at whether the run is to end."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Verdict:
    """Judgement of an answer: its clean text, what is wrong with it, whether it may be used all the same.

    ``advice`` says what must change before it is of any use to ask again; the question is then not asked once more.
    """

    text: str
    problem: str
    usable: bool
    advice: str = ""


@dataclass(frozen=True)
class Job:
    """A question with a place in the store.

    Attributes
    ----------
    key
        Where the answer is stored.
    messages
        The chat.
    version
        Version of the prompt's wording.
    judge
        Judges an answer.
    remedy
        What to say after an answer with a problem: from the problem and the text of that answer.
    """

    key: Key
    messages: list[Message]
    version: str
    judge: Callable[[Answer], Verdict]
    remedy: Callable[[str, str], str]

    @property
    def shown(self) -> str:
        """The messages as one text."""
        return "\n\n".join(message["content"] for message in self.messages)


@dataclass
class Progress:
    """How far a run is; read by other threads while it changes.

    Attributes
    ----------
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
    asking_seconds
        Time spent on the questions, without the table that is written from the answers.
    """

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
    asking_seconds: float = 0.0
    stopped: bool = False

    def fail(self, key: Key, kind: str, message: str) -> None:
        """Count a failed question."""
        self.failed += 1
        self.failures[kind] += 1
        if len(self.first_failures) < 10:
            self.first_failures.append(f"{key.subject} {key.id}: {kind}: {message}")


Watch = Callable[[str, Progress], None]
"""Called some times a second with what is asked about and the progress."""


def unwatched(_subject: str, _progress: Progress) -> None:
    """Show nothing."""


@dataclass
class Asking:
    """A run over questions that have no usable answer yet.

    Attributes
    ----------
    jobs
        Questions; drawn one at a time when a slot is free, so they may be written on the way.
    config
        Model and server.
    store
        An open store, held exclusively.
    progress
        Counted up.
    on_answer
        Called with the key and the row of every usable answer, old or new.
    stop
        Set from any thread to end the run: calls in flight are still awaited and stored.
    watch
        Called some times a second; should it fail, the run ends in the same way.
    """

    jobs: Iterator[Job]
    config: LLMConfig
    store: Store
    progress: Progress
    on_answer: Callable[[Key, int], None] = lambda _key, _row: None
    stop: threading.Event = field(default_factory=threading.Event)
    watch: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self._client: Client
        self._calls: dict[asyncio.Task[Any] | None, Call] = {}
        self._error: Exception | None = None
        self._failed_in_a_row = 0

    async def run(self) -> None:
        """Ask.

        Raises
        ------
        LLMError
            If the model cannot be asked at all: no key, no quota, no such model, no server.
        StorageError
            If an answer cannot be written.
        """
        first = self._next_open()
        if first is not None:
            self.jobs = chain([first], self.jobs)
            async with open_client(self.config, self._on_failure) as self._client:
                await self._settle_all()
            self.progress.stopped = self.stop.is_set()
        if self._error is not None:
            raise self._error
        self.watch()

    async def _settle_all(self) -> None:
        waiting = {asyncio.create_task(self._work()) for _ in range(self.config.concurrency)}
        while waiting:
            _, waiting = await asyncio.wait(waiting, timeout=_TICK)
            try:
                await asyncio.to_thread(self.store.flush)
                if self._error is None:
                    self.watch()
            except Exception as error:
                self._error = self._error or error
            for task in waiting if self._ending else ():
                if task not in self._calls or not self._calls[task].at_server:
                    task.cancel()

    @property
    def _ending(self) -> bool:
        return self._error is not None or self.stop.is_set()

    async def _work(self) -> None:
        """Settle one question after another; an error ends the run, but what others have at the server is kept."""
        while not self._ending:
            try:
                job = self._next_open()
                if job is None:
                    return
                await self._settle(job)
            except Exception as error:
                self._error = self._error or error

    def _next_open(self) -> Job | None:
        """Next question without a usable answer."""
        for job in self.jobs:
            if not self._announce(job.key):
                return job
            self.progress.found += 1
        return None

    def _announce(self, key: Key) -> bool:
        """Tell of the usable answer under a key, if there is one."""
        stored = self.store.answer(key)
        if stored is not None:
            self.on_answer(key, stored.row)
        return stored is not None

    async def _settle(self, job: Job) -> None:
        """Ask until there is a usable answer, or until the tries of this run are used up."""
        earlier = self.store.rejected(job.key)
        last = earlier[-1] if earlier else None
        for used in range(len(earlier) + 1, max(TRIES, len(earlier) + 1) + 1):
            if self._ending:
                return
            call = Call(job.messages if last is None else once_more(job, last), job)
            self._calls[asyncio.current_task()] = call
            try:
                answer = await self._client.ask(call)
            except CallError as error:
                self._give_up(job, error.kind, error.message)
                return
            verdict = job.judge(answer)
            last = Stored(0, self._client.without_key(verdict.text), verdict.problem)
            is_last = used >= TRIES or bool(verdict.advice)
            usable = verdict.usable and (is_last or not verdict.problem)
            self._keep(call, answer, last, usable)
            if not verdict.advice:
                self._failed_in_a_row = 0
            if not usable and is_last:
                said = verdict.advice or f"{used} answers, none usable; the last: {last.text[:80]!r}"
                self._give_up(job, last.problem, said)
            if usable or is_last:
                return

    def _keep(self, call: Call, answer: Answer, judged: Stored, usable: bool) -> None:
        """Commit an answer, then count it."""
        job = call.subject
        with self.store.transaction():
            at = {"attempts": call.failures.total() + 1, "server": self.config.server}
            self.store.keep(job.key, answer, judged.text, judged.problem, usable=usable, **at)
            self.store.keep_prompt(job.key.prompt_sha256, job.version, job.shown)
        self.progress.calls += 1
        self.progress.tokens_in += answer.usage["prompt_tokens"]
        self.progress.tokens_out += answer.usage["completion_tokens"]
        if judged.problem:
            self.progress.problems[judged.problem] += 1
        if usable:
            self.progress.done += 1
            self._announce(job.key)

    def _on_failure(self, call: Call, failure: CallError) -> None:
        """Decide what a failed attempt means; returns where the SDK is to wait and to make the call again."""
        kind, most = failure.kind, self.config.attempts
        self.progress.calls += 1
        self.progress.unclear += kind in AMBIGUOUS
        self.store.record(call.subject.key, kind, failure.message)
        call.failures["busy" if kind == "busy" else "other"] += 1
        if kind == "stop":
            raise LLMError(failure.message, failure.hint)
        if failure.wait is not None and failure.wait > self.config.longest_wait:
            asked = f"the server asks to wait {failure.wait:.0f} s: {failure.message}"
            raise LLMError(asked, "run the same command again later")
        if kind not in RETRIED or call.failures["other"] >= most or call.failures["busy"] >= BUSY_FACTOR * most:
            raise failure
        if self._ending:
            raise asyncio.CancelledError

    def _give_up(self, job: Job, kind: str, message: str) -> None:
        self.store.fail(job.key, kind, message)
        self.progress.fail(job.key, kind, message)
        if kind in _OF_ONE_SUBJECT:
            return
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= FAILURES_IN_A_ROW and self._error is None:
            said = f"{self._failed_in_a_row} questions in a row failed; the last: {kind}: {message}"
            server = self.config.server or "OpenAI"
            hint = f"is the server running at {server}, and does it know these settings? The same command goes on"
            if kind == "thoughts":
                hint = "change these settings first: the same command would pay for the same again"
            self._error = LLMError(said, f"{hint}. Answers so far are kept.")


def once_more(job: Job, last: Stored) -> list[Message]:
    """Continue the chat after an answer that could not be used."""
    said = [{"role": "assistant", "content": cut(last.text, _QUOTED)}] if last.text else []
    return [*job.messages, *said, {"role": "user", "content": job.remedy(last.problem, last.text)}]


def in_own_loop(work: Coroutine[Any, Any, Result], stop: threading.Event) -> Result:
    """Run a coroutine to its end, also where an event loop is running already (as in a notebook).

    The first SIGINT or SIGTERM sets ``stop`` (only in the main thread); a second one acts as usual.
    """
    with _stopped_by_signals(stop):
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(work)
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(asyncio.run, work).result()


@contextmanager
def _stopped_by_signals(stop: threading.Event) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore(*_: object) -> None:
        stop.set()
        for number, handler in usual.items():
            signal.signal(number, handler)

    for number in usual:
        signal.signal(number, restore)
    try:
        yield
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
