"""One attempt at an OpenAI-compatible server: sent within bounds and at a common pace, and what its response means."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from spike_kit.base.errors import require

AMBIGUOUS: frozenset[str] = frozenset({"server", "timeout", "connection", "garbage"})
"""Kinds of failure after which nobody knows whether the server did the work, and billed it."""

RETRIED: frozenset[str] = AMBIGUOUS | {"busy", "unreachable"}
"""Kinds after which the same call is tried again."""

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


@dataclass(frozen=True)
class Answer:
    """What a model said.

    Attributes
    ----------
    text
        As it came, cleaned by `spike_kit.profiles.checks.tidy` only later; empty if the model refused.
    finish_reason
        ``stop``, ``length``, ``content_filter``, ...
    usage
        ``prompt_tokens`` and ``completion_tokens`` as the server counted them (0 where it did not).
    seconds
        Latency of the attempt that succeeded.
    refusal
        What the model said when it declined, where the server tells.
    thoughts
        Field of the message that holds thoughts (``reasoning``, for example); empty if none does.
    """

    text: str
    finish_reason: str
    usage: dict[str, int]
    seconds: float
    refusal: str = ""
    thoughts: str = ""


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
