"""The encoder of OpenAI and of servers that speak its protocol; the requests it is allowed to send."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from spike_kit.base.errors import ConfigError, DataError, FetchError, SpikeKitError, require, some
from spike_kit.data.vectors import normalised
from spike_kit.profiles.client import LONGEST_MESSAGE, what_failed
from spike_kit.profiles.llm import hide_key

MAX_INPUTS = 2048
"""Texts per request that OpenAI allows."""
MAX_REQUEST_TOKENS = 300_000
"""Tokens per request that OpenAI allows."""
MAX_TEXT_TOKENS = 8191
"""Tokens per text that OpenAI allows."""

_RETRIES = 8
"""Times a request is sent again (rate limit, server error, no connection), with growing pauses."""
_TIMEOUT = 120
"""Seconds to wait for one answer."""


class OpenAIEncoder:
    """The embeddings endpoint of OpenAI, or of the server that ``OPENAI_BASE_URL`` names.

    The key comes from ``OPENAI_API_KEY`` and stands in no message; a server other than OpenAI's needs none.

    Parameters
    ----------
    model
        Name of the model there.

    Raises
    ------
    ConfigError
        If the key is missing.
    MissingExtraError
        If the package openai is not installed.
    """

    def __init__(self, model: str, _device: object = None) -> None:
        self.model = model
        url = os.environ.get("OPENAI_BASE_URL", "").strip() or "https://api.openai.com/v1"
        host = urlsplit(url).hostname
        if host is None:
            raise ConfigError("OPENAI_BASE_URL is no address", "expected something like http://localhost:8000/v1")
        self._key = os.environ.get("OPENAI_API_KEY", "").strip()
        if not self._key and (host == "openai.com" or host.endswith(".openai.com")):
            raise ConfigError(
                f"the encoder openai:{model} needs a key, and OPENAI_API_KEY is not set",
                "set it, or set OPENAI_BASE_URL to a server that needs none",
            )
        self._host = host
        self._library: ModuleType = require("openai", "llm")
        self._client = self._library.OpenAI(
            api_key=self._key or "none",
            base_url=url,
            max_retries=_RETRIES,
            timeout=_TIMEOUT,
            http_client=self._library.DefaultHttpxClient(event_hooks={"response": [_look]}),
        )

    def encode(self, texts: Sequence[str], batch_size: int = MAX_INPUTS) -> np.ndarray:
        """Encode texts into L2-normalised rows ``[n, d_t]`` float32.

        Raises
        ------
        DataError
            If a text is too long, the request is refused, or the answer is not one finite vector per text.
        FetchError
            If the server cannot be reached, has no capacity or fails.
        """
        rows = [self._ask(list(texts[batch])) for batch in request_batches(texts, batch_size)]
        widths = sorted({part.shape[1] for part in rows})
        if len(widths) > 1:
            raise DataError(f"openai:{self.model} returned vectors of {some(widths)} dimensions")
        return np.concatenate(rows)

    def _ask(self, texts: list[str]) -> np.ndarray:
        try:
            answer = self._client.embeddings.with_raw_response.create(
                model=self.model, input=texts, encoding_format="float"
            )
        except self._library.OpenAIError as error:
            raise self._explain(error, texts) from None
        try:
            entries = json.loads(answer.content)["data"]
            places = [entry["index"] for entry in entries]
            vectors = np.array([entry["embedding"] for entry in entries], dtype=np.float64)
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            raise self._broken("its answer is not a list of embeddings of one size", answer.content) from None
        if any(type(place) is not int for place in places) or sorted(places) != list(range(len(texts))):
            raise self._broken(f"its answer has the indices {some(places)}, expected 0..{len(texts) - 1}, each once")
        if vectors.ndim != 2 or not vectors.shape[1]:
            raise self._broken(f"its answer has the shape {list(vectors.shape)} for {len(texts)} texts")
        if not (np.abs(vectors) <= np.finfo(np.float32).max).all():
            raise self._broken("its answer holds NaN or infinity")
        return normalised(vectors[np.argsort(places)])

    def _broken(self, problem: str, body: bytes = b"") -> DataError:
        said = f": {self._shown(what_failed(0, body.decode(errors='replace'))[1])}" if body else ""
        hint = "run again; if it stays so, the server is not compatible"
        return DataError(f"openai:{self.model} at {self._host}: {problem}{said}", hint)

    def _explain(self, error: Any, texts: list[str]) -> SpikeKitError:
        response = getattr(error, "response", None)
        status, body = (0, str(error)) if response is None else (response.status_code, response.text)
        kind, words = what_failed(status, body)
        said = self._shown(f"{status}: {words}" if status else words)
        message = f"openai:{self.model} at {self._host}: {said}"
        if status and kind == "content":
            return TooLongError(message, max(texts, key=len))
        if kind == "key":
            return DataError(message, "check OPENAI_API_KEY, and that its account may use this model")
        if kind in ("quota", "busy"):
            return FetchError(message, "check the quota, or wait and run again: what is encoded is kept")
        if 300 <= status < 500:
            return DataError(message, "check the name of the model and OPENAI_BASE_URL; or try smaller batches")
        return FetchError(message, "check the network and OPENAI_BASE_URL, and run again: what is encoded is kept")

    def _shown(self, text: str) -> str:
        return hide_key(text, self._key)[:LONGEST_MESSAGE]


def _look(response: Any) -> None:
    """Keep the SDK from sending a request again where the quota is used up."""
    body = response.read().decode(errors="replace") if response.status_code == 429 else ""
    if body and what_failed(429, body)[0] == "quota":
        response.headers["x-should-retry"] = "false"


class TooLongError(DataError):
    """A text is too long for the model.

    Attributes
    ----------
    text
        The longest text of the request, which must be the one.
    """

    def __init__(self, message: str, text: str) -> None:
        super().__init__(f"{message}: {text[:60]!r}...", "shorten the profile, or choose another encoder")
        self.text = text


def request_batches(texts: Sequence[str], batch_size: int = MAX_INPUTS) -> list[slice]:
    """Cut texts into requests that OpenAI accepts; a token counts as three bytes, which estimates too many.

    Raises
    ------
    TooLongError
        If a text is too long.
    """
    batches, start, total = [], 0, 0
    for place, text in enumerate(texts):
        tokens = -(-len(text.encode()) // 3)
        if tokens > MAX_TEXT_TOKENS:
            raise TooLongError(f"a text of about {tokens} tokens is too long for OpenAI ({MAX_TEXT_TOKENS})", text)
        if place - start == min(batch_size, MAX_INPUTS) or total + tokens > MAX_REQUEST_TOKENS:
            batches.append(slice(start, place))
            start, total = place, 0
        total += tokens
    return [*batches, slice(start, len(texts))] if texts else []
