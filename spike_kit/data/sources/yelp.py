"""The Yelp academic data set: businesses with their facts, reviews with dates.

Format: JSON lines, ``yelp_academic_dataset_business.json`` and ``yelp_academic_dataset_review.json`` (packed or not),
as Yelp documents them with the data set. The knowledge graph is made of city, state, categories and attributes.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from spike_kit.base.errors import DataError
from spike_kit.data.pipeline import BuildConfig
from spike_kit.data.raw import Field, JsonLines
from spike_kit.data.recipes import Recipe, Source
from spike_kit.data.text import plain
from spike_kit.data.workspace import Workspace, review_view

LICENCE = "Yelp data set terms of use: academic use only, no redistribution"

_RELATIONS = (
    ("city", "city", "{head} is in {tail}."),
    ("state", "state", "{head} is in the state {tail}."),
    ("category", "category", "{head} is a business of the kind {tail}."),
    ("attribute", "attribute", "{head} has the attribute {tail}."),
    ("lies_in", "lies in", "{head} lies in the state {tail}."),
)
"""Relation, label, sentence."""

_NO = frozenset({"", "none", "no", "false", "null"})
_LONGEST_ATTRIBUTE = 2_000
_BATCH_ROWS = 20_000


class YelpConfig(BuildConfig):
    """Settings of a build from the Yelp academic data set."""

    attributes: bool = True
    """Make attributes (wifi, parking, ...) entities of the graph; city, state and categories always are."""


def parse(folder: Path, config: YelpConfig, work: Workspace) -> None:
    """Parse businesses and reviews.

    Raises
    ------
    DataError
        If a file is missing or damaged, or a row is bad.
    """
    businesses, reviews = (_find(folder, what) for what in ("business", "review"))
    work.register(businesses, LICENCE, "Yelp academic data set, businesses")
    work.register(reviews, LICENCE, "Yelp academic data set, reviews")
    work.read(
        JsonLines(reviews),
        "reviews.parquet",
        {
            "user": Field("user_id"),
            "item": Field("business_id"),
            "rating": Field("stars", "number"),
            "timestamp": Field("date", "date", required=False),
            "text": Field("text", "text"),
        },
        extra={"content": "hash(coalesce(text, ''))"},
    )
    review_view(work)
    _read_businesses(businesses, config, work)
    relations = pd.DataFrame(_RELATIONS, columns=["relation", "label", "template"])
    work.put("relations", relations)


def _find(folder: Path, what: str) -> Path:
    name = f"yelp_academic_dataset_{what}.json"
    found = next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)
    if found is None:
        raise DataError(f"{folder} holds no {name} (or {name}.gz)", "docs/datasets.md says where to get it")
    return found


def _read_businesses(path: Path, config: YelpConfig, work: Workspace) -> None:
    file = JsonLines(path)
    texts = ("name", "address", "city", "state", "categories", "attributes")
    work.read(file, "businesses", {"item": Field("business_id"), **{name: Field(name, "text") for name in texts}})
    work.located["items"] = (file, "business_id")
    seen: set[str] = set()
    query = "SELECT * FROM businesses SEMI JOIN interactions USING (item) ORDER BY businesses.rowid"
    for batch in work.batches(query, _BATCH_ROWS):
        items, entities, triples = [], [], []
        for row in batch.to_dict("records"):
            items.append((row["item"], row["name"], _description(row)))
            for head, relation, tail, label, kind in _facts(row, config.attributes):
                triples.append((head, relation, tail))
                if tail not in seen:
                    seen.add(tail)
                    entities.append((tail, label, kind))
        work.put("items", pd.DataFrame(items, columns=["item", "label", "description"], dtype="str"))
        work.put("entities", pd.DataFrame(entities, columns=["entity", "label", "kind"], dtype="str"))
        work.put("triples", pd.DataFrame(triples, columns=["head", "relation", "tail"], dtype="str"))


def _description(row: Mapping[Any, str]) -> str:
    place = ", ".join(part for part in (row["address"], row["city"], row["state"]) if part.strip())
    return f"A local business at {place}." if place else "A local business."


def _facts(row: Mapping[Any, str], with_attributes: bool) -> Iterator[tuple[str, str, str, str, str]]:
    """Facts of a business: head, relation, tail, label and kind of the tail.

    A city is told from one of the same name in another state.
    """
    item, city, state = row["item"], plain(row["city"]), plain(row["state"])
    if city:
        yield item, "city", f"city:{city}, {state}", f"{city}, {state}" if state else city, "city"
    if state:
        yield item, "state", f"state:{state}", state, "state"
        if city:
            yield f"city:{city}, {state}", "lies_in", f"state:{state}", state, "state"
    for name in dict.fromkeys(map(plain, row["categories"].split(","))):
        if name:
            yield item, "category", f"category:{name}", name, "category"
    if with_attributes:
        for name in dict.fromkeys(_attributes(row["attributes"])):
            yield item, "attribute", f"attribute:{name}", name, "attribute"


def _attributes(value: str) -> Iterator[str]:
    """Attributes that a business has, in words: ``WiFi: free``, ``BusinessParking: garage``, ``GoodForKids``."""
    try:
        found = json.loads(value) if value else None
    except (ValueError, RecursionError):
        return
    if not isinstance(found, dict):
        return
    for name, given in found.items():
        value = _literal(given)
        inner = value if isinstance(value, dict) else {None: value}
        for part, worth in inner.items():
            text = str(_literal(worth)).strip()
            if text.lower() in _NO or len(text) > _LONGEST_ATTRIBUTE or isinstance(worth, (dict, list)):
                continue
            words = [name, *([str(part)] if part is not None else []), *([] if text == "True" else [text])]
            if label := plain(": ".join(words)):
                yield label


def _literal(value: Any) -> Any:
    """Read a value that Yelp writes as a Python literal (``u'free'``, ``{'garage': False}``); nothing is executed."""
    if not isinstance(value, str) or len(value) > _LONGEST_ATTRIBUTE:
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return value


SOURCE = Source(
    parse,
    {
        "yelp": Recipe(
            "yelp",
            YelpConfig(user_core=10, item_core=10),
            "Yelp academic data set: city, state, categories and attributes; reviews with dates",
        )
    },
)
"""The source, with its one data set (the version is chosen by the files)."""
