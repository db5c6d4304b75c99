"""What a generation will cost, before it is paid for: token estimates and a dated price list."""

from __future__ import annotations

import math
import tomllib
from datetime import date
from pathlib import Path

import pandas as pd
from pydantic import Field

from spike_kit.base import paths
from spike_kit.base.config import Config
from spike_kit.base.errors import DataError

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
        return Prices.model_validate({**tomllib.loads(path.read_text(encoding="utf-8")), "path": path})
    except ValueError as error:
        hint = f"compare it with {Path(__file__).with_name(OWN_PRICES)}, or remove it"
        raise DataError(f"{path} is not a price list: {error}", hint) from error
