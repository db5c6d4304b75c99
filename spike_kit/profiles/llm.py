"""Which language model is asked, where and how, and at what price; and how its key is kept out of what is written."""

import json
import math
import os
import tomllib
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote, urlsplit

import pandas as pd
from pydantic import AfterValidator, Field

from spike_kit.base import paths
from spike_kit.base.config import Config
from spike_kit.base.errors import DataError, LLMError
from spike_kit.base.storage import canonical_json, read_text

Message = dict[str, str]


def _checked_url(value: str) -> str:
    if not value:
        return value
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("expected http://HOST:PORT/v1 or https://...")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("a base URL holds no key, no query and no fragment; keys come from the environment")
    return value.rstrip("/")


def _checked_extra(value: str) -> str:
    fields = json.loads(value)
    if not isinstance(fields, dict) or {"model", "messages", "stream"} & set(fields):
        raise ValueError("expected a JSON object without model, messages and stream")
    return value


class LLMConfig(Config):
    """Which model to ask, where, and how. The key never stands here: it is read from the environment."""

    model: str = Field(default="gpt-4o-mini", min_length=1)
    """Model, as the server names it."""
    base_url: Annotated[str, AfterValidator(_checked_url)] = ""
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
    extra: Annotated[str, AfterValidator(_checked_extra)] = "{}"
    """Further fields of the request as a JSON object, {"reasoning_effort": "minimal"} for example."""
    concurrency: int = Field(default=32, ge=1, le=1000)
    """Calls in flight at most; fewer by themselves where the server says it is too many."""
    attempts: int = Field(default=6, ge=1)
    """Attempts per call when the server is busy, fails, times out or drops the connection."""
    timeout: float = Field(default=120.0, gt=0)
    """Seconds one attempt may take from the first byte sent to the last byte received."""
    longest_wait: float = Field(default=120.0, gt=0, le=120)
    """Longest pause in seconds that the server may ask for; a run that is told to wait longer stops."""

    @property
    def server(self) -> str:
        """Server that is asked: ``base_url``, or else the environment variable OPENAI_BASE_URL; empty for OpenAI's.

        Raises
        ------
        LLMError
            If the variable holds no usable address.
        """
        try:
            return self.base_url or _checked_url(os.environ.get("OPENAI_BASE_URL", "").strip())
        except ValueError as error:
            raise LLMError(f"the environment variable OPENAI_BASE_URL holds no usable address: {error}") from error

    @property
    def request(self) -> dict[str, Any]:
        """Fields of the request that decide the answer, without the messages."""
        fields = {"temperature": self.temperature, "top_p": self.top_p, self.token_limit: self.max_tokens}
        fields |= json.loads(self.extra)
        return {"model": self.model, **{name: value for name, value in fields.items() if value is not None}}

    @cached_property
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
            hint = f"export {self.key_variable}=..., or name your own server with --base-url or OPENAI_BASE_URL"
            raise LLMError(f"the environment variable {self.key_variable} holds no key", hint)
        if not all("!" <= character <= "~" for character in key):
            held = f"what the environment variable {self.key_variable} holds cannot be a key"
            raise LLMError(f"{held}: it has blanks, line breaks or characters beyond ASCII", "set it again")
        return key or NO_KEY


NO_KEY = "none"
"""Sent to servers that need no key; texts may hold the word."""


def hide_key(text: str, key: str) -> str:
    """Text with a key taken out, also where it was escaped for JSON, Python or an address."""
    forms = (key, json.dumps(key)[1:-1], repr(key)[1:-1], quote(key, safe="")) if len(key) > len(NO_KEY) else ()
    for form in forms:
        text = text.replace(form, "[key]")
    return text


BYTES_PER_TOKEN = 4.0
"""UTF-8 bytes per token of the estimate; English prompts have 4 to 4.5, so it is a little high for them."""

TOKENS_PER_WORD = 1.4
"""Tokens per English word of an answer."""

OWN_PRICES = "prices.toml"
"""File under data/ that takes the place of the price list that comes with the kit."""


def estimate_tokens(text: str) -> int:
    """Tokens of a text, from its bytes alone; what was really used is counted from the answers."""
    return math.ceil(len(text.encode()) / BYTES_PER_TOKEN)


class Price(Config):
    """Price of a million tokens."""

    input: float = Field(ge=0, strict=True)
    """Of the prompt."""
    output: float = Field(ge=0, strict=True)
    """Of the answer."""


class Prices(Config):
    """Price list: currency per million tokens, by model."""

    as_of: date
    """Day the prices were looked up."""
    currency: str
    """Currency of all prices."""
    path: Path
    """File they were read from."""
    models: dict[str, Price]
    """Prices by model."""
    batch_share: float = Field(ge=0, strict=True)
    """What a batch costs, as a share of the same calls made one by one."""

    def cost(self, model: str, tokens_in: int, tokens_out: int, batch: bool = False) -> float | None:
        """Cost of so many tokens; none if the model has no price."""
        if model not in self.models:
            return None
        price, share = self.models[model], self.batch_share if batch else 1.0
        return share * (tokens_in * price.input + tokens_out * price.output) / 1_000_000

    def used(self, model: str, tokens_in: int, tokens_out: int, batch: bool = False) -> str:
        """Tokens and, where the price is known, their cost, in words."""
        cost = self.cost(model, tokens_in, tokens_out, batch)
        price = "" if cost is None else f", about {cost:.2f} {self.currency}{' as a batch' if batch else ''}"
        return f"{tokens_in:,} tokens in, {tokens_out:,} out{price}"

    def table(self, model: str, tokens_in: int, tokens_out: int) -> pd.DataFrame:
        """Cost of so many tokens with every model of the list, the chosen one first: model, cost, cost as a batch."""
        names = dict.fromkeys([model, *self.models])
        rows = [[name, *(self.cost(name, tokens_in, tokens_out, batch) for batch in (False, True))] for name in names]
        return pd.DataFrame(rows, columns=["model", f"cost ({self.currency})", "as a batch"])


def prices() -> Prices:
    """Read the price list: ``data/prices.toml`` if there is one, else the one that comes with the kit.

    Raises
    ------
    DataError
        If the file is not TOML, or lacks the date, the currency or a price.
    """
    own = paths.data_root() / OWN_PRICES
    path = own if own.is_file() else Path(__file__).with_name(OWN_PRICES)
    try:
        return Prices.model_validate({**tomllib.loads(read_text(path)), "path": path})
    except ValueError as error:
        hint = f"compare it with {Path(__file__).with_name(OWN_PRICES)}, or remove it"
        raise DataError(f"{path} is not a price list: {error}", hint) from error
