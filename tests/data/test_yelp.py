from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spike_kit.data.build import build
from spike_kit.data.sources.yelp import YelpConfig, parse
from spike_kit.data.workspace import workspace
from tests.data.amazon_files import write_lines
from tests.data.checks import FEW, explained, refused_or_skipped, train_reviews

CONFIG = YelpConfig(user_core=5, item_core=5)


_PLACE = {"postal_code": "62701", "latitude": 39.8, "longitude": -89.6, "stars": 4.5, "review_count": 6, "is_open": 1}
_PLACE |= {"city": "Springfield", "hours": {"Monday": "8:0-18:30"}}
_ATTRIBUTES = {"WiFi": "u'free'", "RestaurantsDelivery": "False", "GoodForKids": "True", "Alcohol": "u'none'"}
_ATTRIBUTES |= {"BusinessParking": "{'garage': False, 'street': True, 'lot': None}"}


def businesses() -> list[dict[str, Any]]:
    """Eight restaurants in two cities of one name, with all fields of the data set."""
    return [
        {
            **_PLACE,
            "business_id": f"b{number}",
            "name": f"Caf\u00e9 {number} &amp; Bar",
            "address": f"{number} Main St",
            "state": "IL" if number % 2 else "MO",
            "attributes": _ATTRIBUTES if number else None,
            "categories": "Mexican, Restaurants, Bars" if number else None,
        }
        for number in range(8)
    ]


def reviews() -> list[dict[str, Any]]:
    return [
        {
            **{"review_id": f"r{user}{step}", "useful": 0, "funny": 0, "cool": 0},
            "user_id": f"u{user}",
            "business_id": f"b{(user + step) % 8}",
            "stars": 4.0 if step else 5.0,
            "text": f"User {user}\nvisit {step}",
            "date": f"2016-03-0{step + 1} 16:44:10",
        }
        for user in range(8)
        for step in range(6)
    ]


def write(folder: Path, first: list[Any] | None = None, second: list[Any] | None = None) -> Path:
    write_lines(folder / "yelp_academic_dataset_business.json", map(json.dumps, first or businesses()))
    write_lines(folder / "yelp_academic_dataset_review.json.gz", map(json.dumps, second or reviews()))
    return folder


def test_businesses_and_reviews_become_a_study(tmp_path: Path) -> None:
    data = build("yelp", CONFIG, raw=write(tmp_path / "raw"))
    assert data.items["label"].tolist() == [f"Café {number} & Bar" for number in range(8)]
    assert data.items["description"].iloc[1] == "A local business at 1 Main St, Springfield, IL."
    named = data.triples.merge(data.entities, left_on="tail", right_on="entity")
    facts = {"Springfield, IL", "IL", "Mexican", "Restaurants", "Bars", "WiFi: free", "GoodForKids"}
    assert set(named.loc[named["head"] == 1, "label"]) == facts | {
        "WiFi: free",
        "GoodForKids",
        "BusinessParking: street",
    }
    assert set(named.loc[named["head"] == 0, "label"]) == {"Springfield, MO", "MO"}
    lies_in = data.relations["source_id"].tolist().index("lies_in")
    assert (data.triples["relation"] == lies_in).sum() == 2
    first = data.interactions.query("user == 0 and item == 0").iloc[0]
    assert first["timestamp"] == 1_456_850_650
    assert train_reviews(data)["text"].str.fullmatch(r"User \d visit \d").all()


def test_attributes_can_be_left_out_and_the_split_follows_the_dates(tmp_path: Path) -> None:
    config = CONFIG.replace(attributes=False, split="leave_one_out")
    data = build("yelp", config, raw=write(tmp_path / "raw"))
    assert "attribute" not in set(data.entities["kind"])
    for _, rows in data.interactions.groupby("user"):
        newest = rows.sort_values("timestamp")["split"].tolist()
        assert newest == ["train"] * 4 + ["valid", "test"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"date": "yesterday"}, "line 2: 'date' is not a date"),
        ({"stars": "five"}, "line 2: 'stars' is not a number"),
        ({"user_id": None}, "line 2: 'user_id' is missing"),
    ],
)
def test_a_bad_review_is_named_with_its_line(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    rows = reviews()
    rows[1] |= change
    folder = write(tmp_path / "raw", second=rows)
    refused_or_skipped("yelp", folder, rf"review\.json\.gz {problem}", user_core=4, item_core=4)


VALUES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=20)
    | st.sampled_from(["{'a': True", "u'x'", "[" * 500])
)
BUSINESS = st.fixed_dictionaries(
    {"business_id": st.sampled_from(["b0", "b1"])},
    optional={
        "name": VALUES,
        "city": VALUES,
        "state": VALUES,
        "categories": VALUES,
        "attributes": VALUES | st.dictionaries(st.text(max_size=6), VALUES, max_size=3),
    },
)


@given(st.lists(BUSINESS, min_size=1, max_size=4), st.booleans())
@FEW
def test_whatever_a_business_holds_only_explained_errors_come_out(
    tmp_path: Path, rows: list[dict[str, Any]], skip: bool
) -> None:
    folder = write(tmp_path / "raw", first=rows)
    with workspace("skip" if skip else "stop") as work:
        problem = explained(lambda: parse(folder, CONFIG, work))
        assert problem is None or "business.json" in problem
