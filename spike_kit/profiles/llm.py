"""One call to a language model behind any OpenAI-compatible server, and the kinds of failure it can meet.

The retries are our own (`max_retries=0` for the SDK): a retry must be counted, must slow all calls down together, and
must respect a Retry-After of any length.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any, Literal
from urllib.parse import quote, urlsplit

from pydantic import Field, field_validator

from spike_kit.base.config import Config
from spike_kit.base.errors import LLMError, require
from spike_kit.base.storage import canonical_json
from spike_kit.profiles.transport import capped_transport

Message = dict[str, str]


class LLMConfig(Config):
    """Which model to ask, where, and how. The key never stands here: it is read from the environment."""

    model: str = Field(default="gpt-4o-mini", min_length=1)
    """Model, as the server names it."""
    base_url: str = ""
    """Server with an OpenAI-compatible API, for example http://localhost:8000/v1; empty: OpenAI."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; a server of your own needs none."""
    temperature: float | None = Field(default=0.0, ge=0)
    """Sampling temperature (paper: 0); None leaves it to the server (some models allow no other)."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Nucleus sampling (released code: 0.001, the same as temperature 0); None leaves it to the server."""
    max_tokens: int = Field(default=400, ge=1)
    """Longest answer in tokens; 150 words have about 210."""
    token_limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """Name of that limit in the request; newer models of OpenAI want max_completion_tokens."""
    extra: str = "{}"
    """Further fields of the request as a JSON object, {"reasoning_effort": "minimal"} for example."""
    concurrency: int = Field(default=32, ge=1, le=1000)
    """Calls in flight at most; fewer by themselves where the server says it is too many."""
    attempts: int = Field(default=6, ge=1)
    """Attempts per call when the server is busy, fails, times out or drops the connection."""
    timeout: float = Field(default=120.0, gt=0)
    """Seconds one attempt may take from the first byte sent to the last byte received."""
    longest_wait: float = Field(default=600.0, gt=0)
    """Longest pause in seconds that the server may ask for; a run that is told to wait longer stops."""

    @field_validator("base_url")
    @classmethod
    def _check_url(cls, value: str) -> str:
        return _checked_url(value)

    @property
    def server(self) -> str:
        """Server that is asked: ``base_url``, or else the environment variable OPENAI_BASE_URL; empty for OpenAI's.

        Raises
        ------
        LLMError
            If the variable holds no usable address.
        """
        try:
            return self.base_url or _checked_url(os.environ.get(_URL_VARIABLE, "").strip())
        except ValueError as error:
            raise LLMError(f"the environment variable {_URL_VARIABLE} holds no usable address: {error}") from error

    @field_validator("extra")
    @classmethod
    def _check_extra(cls, value: str) -> str:
        fields = json.loads(value)
        if not isinstance(fields, dict) or {"model", "messages", "stream"} & set(fields):
            raise ValueError("expected a JSON object without model, messages and stream")
        return value

    @property
    def request(self) -> dict[str, Any]:
        """Fields of the request that decide the answer, without the messages."""
        fields = {"temperature": self.temperature, "top_p": self.top_p, self.token_limit: self.max_tokens}
        fields |= json.loads(self.extra)
        return {"model": self.model, **{name: value for name, value in fields.items() if value is not None}}

    @property
    def parameters(self) -> str:
        """The same without the model, as canonical JSON: part of the key under which an answer is stored."""
        return canonical_json({name: value for name, value in self.request.items() if name != "model"})

    def key(self) -> str:
        """Key from the environment.

        Raises
        ------
        LLMError
            If the variable is not set and the server is OpenAI's, or what it holds cannot be a key.
        """
        key = os.environ.get(self.key_variable, "").strip()
        if not key and not self.server:
            raise LLMError(
                f"the environment variable {self.key_variable} holds no key",
                f"export {self.key_variable}=..., or name your own server with --base-url",
            )
        if not all("!" <= character <= "~" for character in key):
            raise LLMError(
                f"what the environment variable {self.key_variable} holds cannot be a key: it has blanks, line breaks "
                "or characters beyond ASCII",
                "set it again",
            )
        return key or _NO_KEY


_URL_VARIABLE = "OPENAI_BASE_URL"
_NO_KEY = "none"
"""Sent to servers that need no key; texts may hold the word."""


def _checked_url(value: str) -> str:
    if not value:
        return value
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("expected http://HOST:PORT/v1 or https://...")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("a base URL holds no key, no query and no fragment; keys come from the environment")
    return value.rstrip("/")


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
    """

    text: str
    finish_reason: str
    usage: dict[str, int]
    seconds: float
    refusal: str = ""


FailureKind = Literal["busy", "server", "timeout", "connection", "unreachable", "garbage", "request", "content", "stop"]
"""Kinds of failure: ``busy`` (429), ``server`` (408, 409, 5xx), ``timeout``, ``connection`` (dropped), ``unreachable``
(never connected), ``garbage`` (no chat completion in the body), ``request`` (400, 413, 422), ``content`` (filtered or
too long for the model), ``stop`` (no key, no quota, no such model)."""

RETRIED: frozenset[str] = frozenset({"busy", "server", "timeout", "connection", "unreachable", "garbage"})
"""Kinds after which the same call is tried again."""

CONTENT = re.compile(r"content_filter|content_policy|context_length|safety")
"""Error codes that speak of the content of one question."""

AMBIGUOUS: frozenset[str] = frozenset({"server", "timeout", "connection", "garbage"})
"""Kinds after which nobody knows whether the server did the work, and billed it."""


class CallError(Exception):
    """An attempt that brought no answer."""

    def __init__(self, kind: FailureKind, message: str, wait: float | None = None, hint: str = "") -> None:
        super().__init__(message)
        self.kind: FailureKind = kind
        self.message = storable(message)
        self.wait = wait
        self.hint = hint


class Client:
    """Asks a model; use `open_client`.

    Parameters
    ----------
    config
        Model and server.
    sdk
        Client of the openai package.
    key
        Key, to be kept out of every text that comes back.
    """

    def __init__(self, config: LLMConfig, sdk: Any, key: str) -> None:
        self._config, self._sdk, self._key = config, sdk, key
        self._request = config.request
        self._openai, self._http = require("openai", "llm"), require("httpx2", "llm")

    async def ask(self, messages: Sequence[Message]) -> Answer:
        """Make one attempt.

        Raises
        ------
        CallError
            If it brought no answer; the message never holds the key.
        """
        started = time.perf_counter()
        try:
            async with asyncio.timeout(self._config.timeout):
                response = await self._sdk.post(
                    "/chat/completions",
                    cast_to=self._http.Response,
                    body={**self._request, "messages": list(messages)},
                )
        except TimeoutError as error:
            raise CallError("timeout", f"no answer within {self._config.timeout:g} s") from error
        except self._openai.APIStatusError as error:
            raise self._status_error(error) from error
        except self._openai.APITimeoutError as error:
            raise CallError("timeout", f"no answer within {self._config.timeout:g} s") from error
        except self._openai.APIConnectionError as error:
            never = isinstance(error.__cause__, self._http.ConnectError | self._http.ConnectTimeout)
            cause = self.without_key(str(error.__cause__ or error)) or type(error.__cause__).__name__
            raise CallError("unreachable" if never else "connection", cause) from error
        except Exception as error:  # the SDK lets through what it did not expect in a response
            raise CallError("garbage", self.without_key(f"{type(error).__name__}: {error}")[:300]) from error
        return self._answer(response.content, time.perf_counter() - started)

    def without_key(self, text: str) -> str:
        """Text with the key taken out, should a server have sent it back."""
        return hide_key(text, self._key) if len(self._key) > len(_NO_KEY) else text

    def _answer(self, body: bytes, seconds: float) -> Answer:
        try:
            answer = read_completion(json.loads(body), seconds)
        except (ValueError, RecursionError) as error:
            raise CallError("garbage", f"the response is no chat completion: {type(error).__name__}") from error
        hidden = {name: self.without_key(getattr(answer, name)) for name in ("text", "finish_reason", "refusal")}
        return replace(answer, **hidden)

    def _status_error(self, error: Any) -> CallError:
        status, body = error.status_code, error.body if isinstance(error.body, dict) else {}
        code = f"{body.get('code') or ''} {body.get('type') or ''}"
        text = self.without_key(" ".join(str(body.get("message") or error.message).split()))[:300]
        message = f"{status}: {text}"
        if status == 402 or re.search(r"insufficient_quota|billing|credit", code):
            return CallError(
                "stop", message, hint="the quota is used up: add credit or raise the limit, then run again"
            )
        if status in (401, 403):
            return CallError("stop", message, hint=f"check the key in {self._config.key_variable} and what it may use")
        if status == 404:
            return CallError("stop", message, hint=f"check the model name {self._config.model!r} and --base-url")
        if status == 429:
            return CallError("busy", message, _retry_after(error.response.headers))
        if status in (408, 409) or status >= 500:
            return CallError("server", message, _retry_after(error.response.headers))
        if CONTENT.search(code):
            return CallError("content", message)
        return CallError("request", message)


def read_completion(values: Any, seconds: float) -> Answer:
    """Read an answer out of the body of a chat completion.

    Raises
    ------
    ValueError
        If it is none.
    """
    try:
        choice = values["choices"][0]
        message = choice["message"]
        usage = values.get("usage") or {}
        text, refusal = message.get("content") or "", message.get("refusal") or ""
        if not isinstance(text, str) or not isinstance(refusal, str):
            raise TypeError("content is no text")
        counted = {name: _count(usage.get(name)) for name in ("prompt_tokens", "completion_tokens")}
        reason = str(choice.get("finish_reason") or "stop")[:40]
        text, reason, refusal = (storable(part) for part in (text, reason, refusal))
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"no chat completion: {error!r}") from error
    return Answer(text, reason, counted, seconds, refusal)


def hide_key(text: str, key: str) -> str:
    """Text with a key taken out, also where it was escaped for JSON, Python or an address."""
    for form in _forms(key):
        text = text.replace(form, "[key]")
    return text


@lru_cache(maxsize=4)
def _forms(key: str) -> tuple[str, ...]:
    return key, json.dumps(key)[1:-1], repr(key)[1:-1], quote(key, safe="")


def storable(text: str) -> str:
    """Text without halves of surrogate pairs, which cannot be written as UTF-8."""
    return text.encode("utf-8", "replace").decode()


@contextmanager
def _no_header_logs() -> Iterator[None]:
    """Keep the libraries from logging headers, in which a server may send the key back, at level DEBUG."""
    loggers = {logger: logger.level for logger in map(logging.getLogger, ("httpcore2", "openai"))}
    for logger, level in loggers.items():
        logger.setLevel(max(level, logging.INFO))
    try:
        yield
    finally:
        for logger, level in loggers.items():
            logger.setLevel(level)


@asynccontextmanager
async def open_client(config: LLMConfig) -> AsyncIterator[Client]:
    """Open a client; its connections are closed afterwards.

    Raises
    ------
    LLMError
        If there is no key.
    MissingExtraError
        If openai is not installed.
    """
    openai, http = require("openai", "llm"), require("httpx2", "llm")
    key = config.key()
    transport = capped_transport(http, config.concurrency)
    connecting = openai.DefaultAsyncHttpxClient(transport=transport, timeout=config.timeout, follow_redirects=False)
    with _no_header_logs():
        async with (
            connecting as connections,
            openai.AsyncOpenAI(
                api_key=key,
                base_url=config.server or None,
                max_retries=0,
                http_client=connections,
                default_headers={"Accept-Encoding": "identity"},
            ) as sdk,
        ):
            yield Client(config, sdk, key)


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**40 else 0


def _retry_after(headers: Any) -> float | None:
    """Seconds a server asks to wait, given in seconds or as a date."""
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None
