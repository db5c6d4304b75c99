from datetime import date
from pathlib import Path

import pandas as pd
import pytest

from spike_kit.base import paths
from spike_kit.base.errors import DataError
from spike_kit.profiles.llm import estimate_tokens, prices

OWN = """
as_of = 2026-01-02
currency = "EUR"
batch_share = 0.25
[models]
"mine" = { input = 2, output = 8.5 }
"org/other:v1" = { input = 0, output = 1 }
"""


def own_prices(text: str | bytes) -> Path:
    path = paths.data_root() / "prices.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("", 0), ("a", 1), ("abcd", 1), ("abcde", 2), ("word " * 400, 500), ("é" * 4, 2)],
)
def test_tokens_follow_the_bytes(text: str, tokens: int) -> None:
    assert estimate_tokens(text) == tokens


def test_the_list_of_the_kit_has_the_models_and_a_date() -> None:
    listed = prices()
    assert {"gpt-4o-mini", "gpt-4o", "gpt-5-mini"} <= set(listed.models)
    assert date(2026, 1, 1) <= listed.as_of <= date.today()
    assert (listed.currency, listed.batch_share, listed.path.name) == ("USD", 0.5, "prices.toml")
    assert all(0 < price.input < price.output for price in listed.models.values())


def test_costs_are_what_one_gets_by_hand() -> None:
    listed = prices()
    assert listed.cost("gpt-4o-mini", 2_000_000, 500_000) == pytest.approx(2 * 0.15 + 0.5 * 0.60)
    assert listed.cost("gpt-4o-mini", 2_000_000, 500_000, batch=True) == pytest.approx(0.30)
    assert listed.cost("my-own-model", 2_000_000, 0) is None
    table = listed.table("gpt-4o", 1_000_000, 1_000_000)
    assert sorted(table["model"]) == sorted(listed.models)
    assert table.iloc[0].tolist() == ["gpt-4o", 12.5, 6.25]
    unknown = listed.table("my-own-model", 1_000_000, 1_000_000)
    assert len(unknown) == len(listed.models) + 1
    assert pd.isna(unknown.iloc[0]["cost (USD)"])
    assert not unknown.iloc[1:].isna().to_numpy().any()


def test_a_list_of_ones_own_takes_its_place() -> None:
    path = own_prices(OWN)
    listed = prices()
    assert (listed.path, listed.as_of, set(listed.models)) == (path, date(2026, 1, 2), {"mine", "org/other:v1"})
    assert listed.cost("mine", 1_000_000, 2_000_000, batch=True) == pytest.approx(4.75)
    assert listed.cost("org/other:v1", 5_000_000, 0) == 0
    assert list(listed.table("mine", 1, 1).columns) == ["model", "cost (EUR)", "as a batch"]
    path.unlink()
    assert prices().currency == "USD"


@pytest.mark.parametrize(
    "text",
    [
        OWN.replace("as_of = 2026-01-02", ""),
        OWN.replace("batch_share = 0.25", ""),
        OWN.replace("input = 2,", "input = -2,"),
        OWN.replace("input = 2,", 'input = "2",'),
        OWN.replace("input = 2,", "input = nan,"),
        OWN.replace("input = 2,", ""),
        "not = toml = at all",
        b"as_of = \xff\xfe",
        "",
    ],
)
def test_a_broken_list_is_an_error_that_names_it(text: str | bytes) -> None:
    path = own_prices(text)
    with pytest.raises(DataError) as raised:
        prices()
    assert raised.value.message.startswith(f"{path} is not a price list")
    assert "remove it" in raised.value.hint
