"""What a server sent back: an answer, or what went wrong, in the server's own words."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Literal

from spike_kit.profiles.llm import LLMConfig

FailureKind = Literal["busy", "server", "timeout", "connection", "unreachable", "garbage", "request", "content", "stop"]
"""Kinds of failure: ``busy`` (429), ``server`` (408, 409, 5xx), ``timeout``, ``connection`` (dropped), ``unreachable``
(never connected), ``garbage`` (no chat completion in the body), ``request`` (400, 413, 422, redirects), ``content``
(filtered or too long for the model), ``stop`` (no key, no quota, no such model)."""

RETRIED: frozenset[str] = frozenset({"busy", "server", "timeout", "connection", "unreachable", "garbage"})
"""Kinds after which the same call is tried again."""

AMBIGUOUS: frozenset[str] = frozenset({"server", "timeout", "connection", "garbage"})
"""Kinds after which nobody knows whether the server did the work, and billed it."""

LONGEST_MESSAGE = 300
"""Characters of a server's words that are shown and stored, once the key is taken out."""

_LONGEST_WORDS = 10 * LONGEST_MESSAGE
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
        What kind of failure it is.
    message
        The server's own words, where there are some.
    wait
        Seconds the server asks to wait.
    hint
        What to do, where nothing but the user can help.
    """

    def __init__(self, kind: FailureKind, message: str, wait: float | None = None, hint: str = "") -> None:
        super().__init__(message)
        self.kind: FailureKind = kind
        self.message = storable(message)
        self.wait = wait
        self.hint = hint


def read_reply(status: int, headers: Mapping[str, str], body: bytes, seconds: float, config: LLMConfig) -> Answer:
    """Read the answer in a response, or decide what the response means.

    An error in a body with status 200 counts as the error it names.

    Raises
    ------
    CallError
        If there is no answer in it.
    """
    values, words = read_body(body)
    if status == 200 and not _holds_error(values):
        try:
            return read_completion(values, seconds)
        except ValueError as error:
            raise CallError("garbage", f"the response is {error}: {words}") from None
    code = error_code(values)
    if status == 200:
        named = re.search(r"\b[45]\d\d\b", code)
        status = int(named[0]) if named else 429 if _BUSY.search(code) else 500
    message, wait = f"{status}: {words or 'no message'}", retry_after(headers)
    if status == 402 or _QUOTA.search(code):
        raise CallError("stop", message, hint="the quota is used up: add credit or raise the limit, then run again")
    if status in (401, 403) or (status < 500 and _KEY.search(f"{code} {words}")):
        raise CallError("stop", message, hint=f"check the key in {config.key_variable} and what it may use")
    if status == 404:
        raise CallError("stop", message, hint=f"check the model name {config.model!r} and --base-url")
    if status == 429:
        raise CallError("busy", message, wait)
    if status in (408, 409) or status >= 500:
        raise CallError("server", message, wait)
    if 300 <= status < 400:
        raise CallError("request", f"{status}: the server moved to {headers.get('location', '?')}: check --base-url")
    raise CallError("content" if is_about_content(code, words) else "request", message)


def read_completion(values: Any, seconds: float = 0.0) -> Answer:
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
        text, refusal = _text(message.get("content")), _text(message.get("refusal"))
        thoughts = next((name for name in ("reasoning_content", "reasoning", "thinking") if message.get(name)), "")
        counted = {name: _count(usage.get(name)) for name in ("prompt_tokens", "completion_tokens")}
        reason = storable(str(choice.get("finish_reason") or "stop")[:40])
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError("no chat completion") from error
    return Answer(storable(text), reason, counted, seconds, storable(refusal), thoughts)


def _text(content: Any) -> str:
    """Text of a message: a string, or the parts of a list that are text."""
    if isinstance(content, list):
        return "".join(str(part["text"]) for part in content if part.get("type") in ("text", "output_text"))
    if content is not None and not isinstance(content, str):
        raise TypeError("the content is no text")
    return content or ""


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**40 else 0


def read_body(body: bytes) -> tuple[Any, str]:
    """The JSON value of a body (None if it is not JSON), and what the server says in it."""
    text = body.decode("utf-8", "replace")
    try:
        values = json.loads(text)
        return values, words_of(values) or " ".join(text.split())[:_LONGEST_WORDS]
    except (ValueError, RecursionError):
        pass
    start = text[:4000].lstrip()
    if start[:1] == "<":
        title = " ".join(re.sub(r"<[^<>]*>", " ", start).split())
        return None, f"it is a web page: {title[:_LONGEST_WORDS]}"
    kind = "it is a stream" if start.startswith(("data:", "event:")) else "it is not JSON"
    return None, f"{kind}: {' '.join(start.split())[:_LONGEST_WORDS]}"


def words_of(values: Any) -> str:
    """A server's own words in an error of any shape: a text, a list, ``message``, ``detail``, ``error``."""
    return " ".join(_words(values).split())[:_LONGEST_WORDS]


def _words(values: Any) -> str:
    if isinstance(values, list):
        return "; ".join(filter(None, map(_words, values[:3])))
    if not isinstance(values, dict):
        return "" if values is None else str(values)
    inner = next((values[name] for name in ("message", "detail", "error", "msg", "errors") if values.get(name)), None)
    place = values.get("loc")
    return f"{'.'.join(map(str, place))}: {_words(inner)}" if isinstance(place, list) else _words(inner)


def error_code(values: Any) -> str:
    """All that a body says as a code or a type of its error, in one text."""
    if isinstance(values, list):
        values = values[0] if values else None
    places = [values, values.get("error")] if isinstance(values, dict) else []
    names = ("code", "type", "status", "error_type")
    found = (place.get(name) for place in places if isinstance(place, dict) for name in names)
    return storable(" ".join(str(code) for code in found if code))[:_LONGEST_WORDS]


def is_about_content(code: str, words: str) -> bool:
    """Whether an error speaks of the content of one question: filtered, or too long for the model."""
    return bool(_CONTENT.search(f"{code} {words}"))


def _holds_error(values: Any) -> bool:
    return isinstance(values, dict) and bool(values.get("error")) and not values.get("choices")


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds a server asks to wait, given in milliseconds, in seconds or as a date."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            return max(0.0, float(headers[name]) * unit)
        except (KeyError, ValueError):
            pass
    try:
        return max(0.0, parsedate_to_datetime(headers["retry-after"]).timestamp() - time.time())
    except (KeyError, ValueError, TypeError, OverflowError):
        return None


def storable(text: str) -> str:
    """Text without halves of surrogate pairs, which cannot be written as UTF-8."""
    return text.encode("utf-8", "replace").decode()
