"""What a generation will cost, before it is paid for: token estimates and a dated price list."""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd

from spike_kit.base import paths
from spike_kit.base.errors import DataError

BYTES_PER_TOKEN = 4.0
"""UTF-8 bytes per token of the estimate; English prompts have 4 to 4.5, so it is a little high for them."""

TOKENS_PER_WORD = 1.4
"""Tokens per English word of an answer."""

OWN_PRICES = "prices.toml"
"""File under data/ that takes the place of the price list that comes with the kit."""

_MILLION = 1_000_000


def estimate_tokens(text: str) -> int:
    """Tokens of a text, from its bytes alone; what was really used is counted from the answers."""
    return math.ceil(len(text.encode()) / BYTES_PER_TOKEN)


@dataclass(frozen=True)
class Prices:
    """Price list: currency per million tokens, by model."""

    as_of: date
    """Day the prices were looked up."""
    currency: str
    """Currency of all prices."""
    path: Path
    """File they were read from."""
    models: dict[str, tuple[float, float]]
    """Price of a million tokens in and out."""
    batch_share: float
    """What a batch costs, as a share of the same calls made one by one."""

    def cost(self, model: str, tokens_in: int, tokens_out: int, batch: bool = False) -> float | None:
        """Cost of so many tokens; none if the model has no price."""
        if model not in self.models:
            return None
        price_in, price_out = self.models[model]
        share = self.batch_share if batch else 1.0
        return share * (tokens_in * price_in + tokens_out * price_out) / _MILLION

    def table(self, model: str, tokens_in: int, tokens_out: int) -> pd.DataFrame:
        """Cost of so many tokens with every model of the list, the chosen one first: model, cost, cost as a batch."""
        names = [model, *(name for name in self.models if name != model)]
        return pd.DataFrame(
            {
                "model": names,
                f"cost ({self.currency})": [self.cost(name, tokens_in, tokens_out) for name in names],
                "as a batch": [self.cost(name, tokens_in, tokens_out, batch=True) for name in names],
            }
        )


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
        values: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        models = {
            str(name): (_price(entry["input"]), _price(entry["output"])) for name, entry in values["models"].items()
        }
        as_of, share = values["as_of"], _price(values["batch_share"])
        if not isinstance(as_of, date):
            raise TypeError("as_of is not a date")
        return Prices(as_of, str(values["currency"]), path, models, share)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is not a price list: {error!r}",
            f"compare it with {Path(__file__).with_name(OWN_PRICES)}, or remove it",
        ) from error


def _price(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"{value!r} is no price")
    return float(value)
