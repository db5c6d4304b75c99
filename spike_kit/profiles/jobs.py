"""Asking a model many questions: concurrently, resumably, every answer on the disk before its slot is used again."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

from spike_kit.base.errors import LLMError
from spike_kit.data.text import cut
from spike_kit.profiles.limiter import Limiter
from spike_kit.profiles.llm import AMBIGUOUS, RETRIED, Answer, CallError, Client, LLMConfig, Message, open_client
from spike_kit.profiles.store import Committer, Key, Store, Stored, answered, asked, event, failed

TRIES = 2
"""Answers per question in one run: the first, and one more if that cannot be used."""

FAILURES_IN_A_ROW = 5
"""Questions that may fail one after the other, without any answer in between, before a run stops."""

_BUSY_FACTOR = 5
"""A busy server is tried so many times as often as one that fails."""

_OF_ONE_SUBJECT = frozenset({"content", "empty", "refused", "truncated", "language", "format"})
"""Failures that say nothing about the other questions."""

_QUOTED = 3000
"""Characters of an unusable answer that the model is shown again."""

_FIRST_PAUSE = 0.5
_WATCH_SECONDS = 0.5
_LONGEST_PAUSE = 30.0
_TICK = 0.2


@dataclass(frozen=True)
class Verdict:
    """Judgement of an answer: its clean text, what is wrong with it, whether it may be used all the same."""

    text: str
    problem: str
    usable: bool


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
    waits
        Requests that met a busy server.
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
    waits: int = 0
    unclear: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    problems: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    first_failures: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    asking_seconds: float = 0.0
    stopped: bool = False

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def fail(self, key: Key, kind: str, message: str) -> None:
        """Count a failed question."""
        self.failed += 1
        self.failures[kind] += 1
        if len(self.first_failures) < 10:
            self.first_failures.append(f"{key.subject} {key.id}: {kind}: {message}")


Watch = Callable[[str, Progress], None]
"""Called about twice a second with what is asked about and the progress."""


async def run_jobs(
    jobs: Iterator[Job],
    config: LLMConfig,
    store: Store,
    progress: Progress,
    on_answer: Callable[[Key, int], None] | None = None,
    stop: threading.Event | None = None,
) -> None:
    """Ask all questions that have no usable answer yet.

    Parameters
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

    Raises
    ------
    LLMError
        If the model cannot be asked at all: no key, no quota, no such model, no server.
    StorageError
        If an answer cannot be written.
    """
    runner = _Runner(jobs, config, store, progress, on_answer, stop or threading.Event())
    first = runner.next_open()
    if first is not None:
        async with open_client(config) as client:
            await runner.run(first, client)


async def watched(
    asking: Coroutine[Any, Any, None], label: str, progress: Progress, watch: Watch | None, stop: threading.Event
) -> None:
    """Await `run_jobs` and show its progress twice a second; should ``watch`` fail, what is in flight is still kept."""
    task = asyncio.create_task(asking)
    try:
        while watch is not None and not task.done():
            watch(label, progress)
            await asyncio.wait([task], timeout=_WATCH_SECONDS)
    except Exception:
        stop.set()
        await task
        raise
    await task
    if watch is not None:
        watch(label, progress)


class _Runner:
    """State of one `run_jobs`."""

    def __init__(
        self,
        jobs: Iterator[Job],
        config: LLMConfig,
        store: Store,
        progress: Progress,
        on_answer: Callable[[Key, int], None] | None,
        stop: threading.Event,
    ) -> None:
        self._jobs, self._config, self._store, self._progress = jobs, config, store, progress
        self._on_answer, self._stop = on_answer, stop
        self._client: Client
        self._committer = Committer(store)
        self._limiter = Limiter(config.concurrency)
        self._error: Exception | None = None
        self._failed_in_a_row = 0
        self._jitter = random.Random(0)

    async def run(self, first: Job, client: Client) -> None:
        """Settle all questions, beginning with one that is known to be open."""
        self._client, self._jobs = client, chain([first], self._jobs)
        try:
            await asyncio.gather(*(self._work() for _ in range(self._config.concurrency)))
        finally:
            await self._committer.close()
        self._progress.stopped = self._stop.is_set()
        if self._error is not None:
            raise self._error

    @property
    def _ending(self) -> bool:
        return self._error is not None or self._stop.is_set()

    async def _work(self) -> None:
        """Settle one question after another; an error ends the run, but what others have in flight is still kept."""
        while not self._ending:
            try:
                job = self.next_open()
                if job is None:
                    return
                await self._settle(job)
            except Exception as error:
                self._error = self._error or error

    def next_open(self) -> Job | None:
        """Next question without a usable answer."""
        for job in self._jobs:
            stored = self._store.answer(job.key)
            if stored is None:
                return job
            self._progress.found += 1
            self._announce(job.key, stored.row)
        return None

    def _announce(self, key: Key, row: int) -> None:
        if self._on_answer is not None:
            self._on_answer(key, row)

    async def _settle(self, job: Job) -> None:
        """Ask until there is a usable answer, or until the tries of this run are used up."""
        earlier = self._store.rejected(job.key)
        last = earlier[-1] if earlier else None
        used, allowed = len(earlier), max(TRIES, len(earlier) + 1)
        while not self._ending:
            outcome = await self._call(job, job.messages if last is None else once_more(job, last))
            if outcome is None:
                return
            answer, attempts = outcome
            verdict = job.judge(answer)
            verdict = replace(verdict, text=self._client.without_key(verdict.text))
            used += 1
            usable = verdict.usable and (not verdict.problem or used >= allowed)
            await self._keep(job, answer, verdict, usable, attempts)
            if usable:
                return
            last = Stored(0, verdict.text, verdict.problem)
            if used >= allowed:
                await self._give_up(
                    job, verdict.problem, f"{used} answers, none usable; the last: {verdict.text[:80]!r}"
                )
                return

    async def _keep(self, job: Job, answer: Answer, verdict: Verdict, usable: bool, attempts: int) -> None:
        """Commit an answer, then count it."""
        statements = answered(
            job.key,
            answer,
            verdict.text,
            verdict.problem,
            usable=usable,
            attempts=attempts,
            server=self._config.server,
        )
        statements.append(asked(job.key.prompt_sha256, job.version, job.shown))
        await self._committer.commit(statements)
        self._progress.tokens_in += answer.usage["prompt_tokens"]
        self._progress.tokens_out += answer.usage["completion_tokens"]
        if verdict.problem:
            self._progress.problems[verdict.problem] += 1
        if usable:
            stored = self._store.answer(job.key)
            assert stored is not None
            self._progress.done += 1
            self._announce(job.key, stored.row)

    async def _call(self, job: Job, messages: list[Message]) -> tuple[Answer, int] | None:
        """Call until an answer comes; gives it with the number of attempts, or nothing when there will be none."""
        met: Counter[str] = Counter()
        while True:
            await self._rest(lambda: self._limiter.pause)
            await self._limiter.enter()
            started = time.monotonic()
            try:
                if self._ending:
                    return None
                if self._limiter.pause > 0:
                    continue
                self._progress.calls += 1
                answer = await self._client.ask(messages)
            except CallError as error:
                failure = error
                if failure.kind == "busy":
                    self._limiter.busy(started, self._wait(failure, met))
            else:
                self._limiter.succeeded()
                self._failed_in_a_row = 0
                return answer, met.total() + 1
            finally:
                self._limiter.leave()
            self._progress.unclear += failure.kind in AMBIGUOUS
            met["busy" if failure.kind == "busy" else "other"] += 1
            await self._committer.commit([event(job.key, failure.kind, failure.message)])
            if not await self._may_retry(job, failure, met):
                return None

    async def _may_retry(self, job: Job, failure: CallError, met: Counter[str]) -> bool:
        """Decide what a failed attempt means; waits where the call is to be made again."""
        if failure.kind == "stop":
            raise LLMError(failure.message, failure.hint)
        spent = met["other"] >= self._config.attempts or met["busy"] >= _BUSY_FACTOR * self._config.attempts
        if failure.kind not in RETRIED or spent:
            await self._give_up(job, failure.kind, failure.message)
            return False
        wait = self._wait(failure, met)
        if wait > self._config.longest_wait:
            raise LLMError(
                f"the server asks to wait {wait:.0f} s: {failure.message}", "run the same command again later"
            )
        if failure.kind == "busy":
            self._progress.waits += 1
        else:
            until = time.monotonic() + wait
            await self._rest(lambda: until - time.monotonic())
        return True

    def _wait(self, failure: CallError, met: Counter[str]) -> float:
        """Seconds to wait after a failure: what the server asks for, else longer from time to time."""
        if failure.wait is not None:
            return failure.wait
        return min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** met.total()) * self._jitter.uniform(0.5, 1.0)

    async def _rest(self, left: Callable[[], float]) -> None:
        """Sleep for as long as there is something left, or until the run ends."""
        while (seconds := left()) > 0 and not self._ending:
            await asyncio.sleep(min(seconds, _TICK))

    async def _give_up(self, job: Job, kind: str, message: str) -> None:
        await self._committer.commit([failed(job.key, kind, message)])
        self._progress.fail(job.key, kind, message)
        if kind in _OF_ONE_SUBJECT:
            return
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= FAILURES_IN_A_ROW and self._error is None:
            self._error = LLMError(
                f"{self._failed_in_a_row} questions in a row failed; the last: {kind}: {message}",
                f"is the server running at {self._config.server or 'OpenAI'}, and does it know these settings? "
                "Answers so far are kept; the same command goes on.",
            )


def once_more(job: Job, last: Stored) -> list[Message]:
    """Continue the chat after an answer that could not be used."""
    said = [{"role": "assistant", "content": cut(last.text, _QUOTED)}] if last.text else []
    return [*job.messages, *said, {"role": "user", "content": job.remedy(last.problem, last.text)}]
