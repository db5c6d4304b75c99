"""Small files in the exact public formats of Amazon's three releases."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

USERS, ITEMS = 8, 8


def reviews_2018() -> list[dict[str, Any]]:
    """Everyone likes six of eight products; each text is unlike any other."""
    rows = []
    for user in range(USERS):
        for step in range(6):
            item = (user + step) % ITEMS
            rows.append(
                {
                    "overall": 5.0,
                    "verified": True,
                    "reviewTime": "06 17, 2018",
                    "reviewerID": f"A{user}",
                    "asin": f"B{item}",
                    "style": {"Format:": " Hardcover"},
                    "reviewerName": "Ann",
                    "reviewText": f"Reader {user} about book {item}",
                    "summary": "Five Stars",
                    "unixReviewTime": 1_500_000_000 + 1000 * user + step,
                }
            )
    return rows


def products_2018() -> list[dict[str, Any]]:
    """Two authors, three categories; all fields of the release."""
    return [
        {
            "category": ["Books", "Fiction" if item < 4 else "History", "Ten &amp; under"],
            "tech1": "",
            "description": ["First <b>part</b>.", "Second part."],
            "fit": "",
            "title": f"Book {item} &amp; more",
            "also_buy": [f"B{(item + 1) % ITEMS}", "BUNKNOWN"],
            "tech2": "",
            "brand": "Visit Amazon's Ann Author Page" if item % 2 else "Bob Writer",
            "feature": [],
            "rank": "1 in Books",
            "also_view": [f"B{(item + 2) % ITEMS}"],
            "main_cat": "Books",
            "similar_item": "",
            "date": "",
            "price": "$1.00",
            "asin": f"B{item}",
            "imageURL": [],
            "imageURLHighRes": [],
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
            "asin": row["asin"],
            "title": row["title"],
            "description": "First <b>part</b>. It's the 2nd.",
            "price": 1.5,
            "imUrl": "http://images/1.jpg",
            "related": {"also_bought": row["also_buy"], "also_viewed": row["also_view"], "bought_together": []},
            "salesRank": {"Books": 7},
            "brand": "Ann Author" if row["brand"].startswith("Visit") else row["brand"],
            "categories": [row["category"][:2], ["Books", row["category"][2]]],
        }
        for row in products_2018()
    ]


def reviews_2023() -> list[dict[str, Any]]:
    """The same reviews with the fields of 2023."""
    return [
        {
            "rating": row["overall"],
            "title": row["summary"],
            "text": row["reviewText"],
            "images": [],
            "asin": "variant of " + row["asin"],
            "parent_asin": row["asin"],
            "user_id": row["reviewerID"],
            "timestamp": row["unixReviewTime"] * 1000 + 123,
            "helpful_vote": 0,
            "verified_purchase": True,
        }
        for row in reviews_2018()
    ]


def products_2023() -> list[dict[str, Any]]:
    """The same products with the fields of 2023."""
    return [
        {
            "main_category": "Books",
            "title": row["title"],
            "subtitle": "Hardcover",
            "author": {"avatar": "http://images/a.png", "name": "Ann Author", "about": []}
            if row["brand"].startswith("Visit")
            else None,
            "average_rating": 4.5,
            "rating_number": 12,
            "features": [],
            "description": row["description"],
            "price": 1.0,
            "images": [],
            "videos": [],
            "store": "Bob Writer (Author)",
            "categories": row["category"],
            "details": {"Publisher": "A House"},
            "parent_asin": row["asin"],
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
