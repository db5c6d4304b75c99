"""Small files in the exact public formats of Amazon's three releases."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

USERS, ITEMS = 8, 8

_REVIEW = {"verified": True, "reviewTime": "06 17, 2018", "style": {"Format:": " Hardcover"}, "reviewerName": "Ann"}
_PRODUCT = {"tech1": "", "tech2": "", "fit": "", "feature": [], "rank": "1 in Books", "main_cat": "Books", "date": ""}
_PRODUCT |= {"similar_item": "", "price": "$1.00", "imageURL": [], "imageURLHighRes": []}
_PRODUCT_2014 = {"price": 1.5, "imUrl": "http://images/1.jpg", "salesRank": {"Books": 7}}
_PRODUCT_2023 = {"main_category": "Books", "subtitle": "Hardcover", "average_rating": 4.5, "rating_number": 12}
_PRODUCT_2023 |= {"features": [], "price": 1.0, "images": [], "videos": [], "details": {"Publisher": "A House"}}
_AUTHOR = {"avatar": "http://images/a.png", "name": "Ann Author", "about": []}


def reviews_2018() -> list[dict[str, Any]]:
    """Everyone likes six of eight products; each text is unlike any other."""
    return [
        {
            **_REVIEW,
            "overall": 5.0,
            "reviewerID": f"A{user}",
            "asin": f"B{(user + step) % ITEMS}",
            "reviewText": f"Reader {user} about book {(user + step) % ITEMS}",
            "summary": "Five Stars",
            "unixReviewTime": 1_500_000_000 + 1000 * user + step,
        }
        for user in range(USERS)
        for step in range(6)
    ]


def products_2018() -> list[dict[str, Any]]:
    """Two authors, three categories; all fields of the release."""
    return [
        {
            **_PRODUCT,
            "asin": f"B{item}",
            "title": f"Book {item} &amp; more",
            "description": ["First <b>part</b>.", "Second part."],
            "brand": "Visit Amazon's Ann Author Page" if item % 2 else "Bob Writer",
            "category": ["Books", "Fiction" if item < 4 else "History", "Ten &amp; under"],
            "also_buy": [f"B{(item + 1) % ITEMS}", "BUNKNOWN"],
            "also_view": [f"B{(item + 2) % ITEMS}"],
        }
        for item in range(ITEMS)
    ]


def reviews_2014() -> list[dict[str, Any]]:
    """The same reviews with the fields of 2014."""
    dropped = {"verified", "style"}
    return [{k: v for k, v in row.items() if k not in dropped} | {"helpful": [0, 0]} for row in reviews_2018()]


def products_2014() -> list[dict[str, Any]]:
    """The same products with the fields of 2014."""
    return [
        {
            **_PRODUCT_2014,
            "asin": row["asin"],
            "title": row["title"],
            "description": "First <b>part</b>. It's the 2nd.",
            "brand": "Ann Author" if row["brand"].startswith("Visit") else row["brand"],
            "categories": [row["category"][:2], ["Books", row["category"][2]]],
            "related": {"also_bought": row["also_buy"], "also_viewed": row["also_view"], "bought_together": []},
        }
        for row in products_2018()
    ]


def reviews_2023() -> list[dict[str, Any]]:
    """The same reviews with the fields of 2023."""
    return [
        {
            **{"title": row["summary"], "images": [], "helpful_vote": 0, "verified_purchase": True},
            "rating": row["overall"],
            "text": row["reviewText"],
            "asin": "variant of " + row["asin"],
            "parent_asin": row["asin"],
            "user_id": row["reviewerID"],
            "timestamp": row["unixReviewTime"] * 1000 + 123,
        }
        for row in reviews_2018()
    ]


def products_2023() -> list[dict[str, Any]]:
    """The same products with the fields of 2023."""
    return [
        {
            **_PRODUCT_2023,
            "parent_asin": row["asin"],
            "title": row["title"],
            "description": row["description"],
            "author": _AUTHOR if row["brand"].startswith("Visit") else None,
            "store": "Bob Writer (Author)",
            "categories": row["category"],
            "bought_together": None,
        }
        for row in products_2018()
    ]


def write_lines(path: Path, lines: Iterable[str | bytes]) -> Path:
    """Write lines, packed if the name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = b"".join((line.encode() if isinstance(line, str) else line) + b"\n" for line in lines)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def write_release(folder: Path, release: str, category: str = "Books") -> Path:
    """Write reviews and metadata of a release into a folder."""
    if release == "2014":
        write_lines(folder / f"reviews_{category}_5.json.gz", map(repr, reviews_2014()))
        write_lines(folder / f"meta_{category}.json.gz", map(repr, products_2014()))
    elif release == "2018":
        write_lines(folder / f"{category}_5.json.gz", map(json.dumps, reviews_2018()))
        write_lines(folder / f"meta_{category}.json.gz", map(json.dumps, products_2018()))
    else:
        write_lines(folder / f"{category}.jsonl.gz", map(json.dumps, reviews_2023()))
        write_lines(folder / f"meta_{category}.jsonl.gz", map(json.dumps, products_2023()))
    return folder
