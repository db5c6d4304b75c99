"""Calls to an OpenAI-compatible server through openai's client, which repeats failed ones and waits between.

What it does not do stands here: every attempt goes through `Client`, which bounds time and size, keeps a common pace
for all calls, and reports each failure to a function that decides whether the call is made again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

from spike_kit.base.errors import require
from spike_kit.profiles.llm import LLMConfig, Message, hide_key
from spike_kit.profiles.replies import LONGEST_MESSAGE, Answer, CallError, read_reply

MAX_ANSWER_BYTES = 4 * 1024 * 1024
"""Largest response that is read; a profile has a few kilobytes."""

BUSY_FACTOR = 5
"""A busy server is tried so many times as often as one that fails."""

_BUSY_PAUSE = 1.0
_CONNECT_SECONDS = 30.0


@dataclass
class Call:
    """A question on its way: how often it failed by kind, whether it is at the server, and its answer."""

    messages: list[Message]
    subject: Any = None
    failures: Counter[str] = field(default_factory=Counter)
    at_server: bool = False
    answer: Answer | None = None


_CALL: ContextVar[Call] = ContextVar("call")


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
        self.most = self.limit = self.lowest = most
        self._places = asyncio.Semaphore(most)
        self._too_many = 0
        self._successes = 0
        self._not_before = self._halved_at = 0.0

    @asynccontextmanager
    async def place(self) -> AsyncIterator[float]:
        """Wait for a place and for the end of a pause; gives the time at which the attempt begins."""
        await self._places.acquire()
        try:
            while (left := self._not_before - time.monotonic()) > 0:
                await asyncio.sleep(left)
            yield time.monotonic()
        finally:
            if self._too_many > 0:
                self._too_many -= 1
            else:
                self._places.release()

    def succeeded(self) -> None:
        """Count a success."""
        self._successes += 1
        if self.limit < self.most and self._successes >= self.limit:
            self.limit, self._successes = self.limit + 1, 0
            self._places.release()

    def busy(self, started: float, wait: float) -> None:
        """Slow down: an attempt that began at ``started`` met a busy server, which asks for ``wait`` seconds."""
        now = time.monotonic()
        self._not_before = max(self._not_before, now + wait)
        if started >= self._halved_at:
            fewer = max(1, self.limit // 2)
            self._too_many += self.limit - fewer
            self.limit, self._successes, self._halved_at = fewer, 0, now
            self.lowest = min(self.lowest, fewer)


class Client:
    """Asks a model; use `open_client`. The SDK takes it as its transport, so every attempt passes here."""

    def __init__(self, config: LLMConfig, on_failure: Callable[[Call, CallError], None]) -> None:
        openai, self._http = require("openai", "llm"), require("httpx2", "llm")
        self._config, self._key, self._on_failure = config, config.key(), on_failure
        self._request = config.request
        self._pace = Pace(config.concurrency)
        self._wire = self._http.AsyncHTTPTransport(limits=self._http.Limits(max_connections=config.concurrency))
        self.sdk = openai.AsyncOpenAI(
            api_key=self._key,
            base_url=config.server or None,
            max_retries=BUSY_FACTOR * config.attempts,
            timeout=openai.Timeout(config.timeout, connect=min(config.timeout, _CONNECT_SECONDS)),
            http_client=openai.DefaultAsyncHttpxClient(transport=self, follow_redirects=False),
            default_headers={"Accept-Encoding": "identity"},
        )

    async def ask(self, call: Call) -> Answer:
        """Make a call, as often as ``on_failure`` returns.

        Raises
        ------
        CallError
            Or what else ``on_failure`` raises; no message holds the key.
        """
        _CALL.set(call)
        body = {**self._request, "messages": call.messages}
        await self.sdk.post("/chat/completions", cast_to=self._http.Response, body=body)
        assert call.answer is not None
        return call.answer

    def without_key(self, text: str) -> str:
        """Text with the key taken out, should a server have sent it back."""
        return hide_key(text, self._key)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._wire.aclose()

    async def handle_async_request(self, request: Any) -> Any:
        """Make one attempt; the SDK gets a response of ours, whose status tells it to go on or to try again."""
        call = _CALL.get()
        async with self._pace.place() as started:
            call.at_server = True
            try:
                answer = await self._send(request)
                call.answer = replace(answer, finish_reason=self.without_key(answer.finish_reason))
                self._pace.succeeded()
                return self._http.Response(200, request=request)
            except CallError as error:
                failure = error
            finally:
                call.at_server = False
            failure.message = self.without_key(failure.message)[:LONGEST_MESSAGE]
            if failure.kind == "busy":
                self._pace.busy(started, _BUSY_PAUSE if failure.wait is None else failure.wait)
        self._on_failure(call, failure)
        wait = {} if failure.wait is None else {"retry-after-ms": str(1000 * failure.wait)}
        return self._http.Response(429 if failure.kind == "busy" else 503, headers=wait, request=request)

    async def _send(self, request: Any) -> Answer:
        """Send a request and read the response, which is not trusted, within the bounds of time and size."""
        http, started, body = self._http, time.perf_counter(), bytearray()
        try:
            async with asyncio.timeout(self._config.timeout):
                response = await self._wire.handle_async_request(request)
                try:
                    async for chunk in response.stream:
                        body += chunk
                        if len(body) > MAX_ANSWER_BYTES:
                            raise CallError("garbage", f"the response is larger than {MAX_ANSWER_BYTES} bytes")
                finally:
                    await response.aclose()
        except (http.ConnectError, http.ConnectTimeout) as error:
            raise CallError("unreachable", str(error) or type(error).__name__) from None
        except (TimeoutError, http.TimeoutException):
            raise CallError("timeout", f"no answer within {self._config.timeout:g} s") from None
        except (http.HTTPError, OSError, EOFError) as error:
            raise CallError("connection", str(error) or type(error).__name__) from None
        if (encoding := response.headers.get("content-encoding", "identity")) != "identity":
            raise CallError("garbage", f"the response is compressed ({encoding[:40]}), which was not asked for")
        seconds = time.perf_counter() - started
        return read_reply(response.status_code, response.headers, bytes(body), seconds, self._config)


@asynccontextmanager
async def open_client(config: LLMConfig, on_failure: Callable[[Call, CallError], None]) -> AsyncIterator[Client]:
    """Open a client; its connections are closed afterwards.

    Parameters
    ----------
    config
        Model and server.
    on_failure
        Called after every attempt that failed; raises where the call is not to be made again.

    Raises
    ------
    LLMError
        If there is no key.
    MissingExtraError
        If openai is not installed.
    """
    client = Client(config, on_failure)
    logger = logging.getLogger("httpcore2")  # at level DEBUG it logs headers, in which a server may send the key back
    level = logger.level
    logger.setLevel(max(level, logging.INFO))
    try:
        async with client.sdk:
            yield client
    finally:
        logger.setLevel(level)
