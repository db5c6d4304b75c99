"""The Yelp academic data set: businesses with their facts, reviews with dates.

Format: JSON lines, ``yelp_academic_dataset_business.json`` and ``yelp_academic_dataset_review.json`` (packed or not),
as Yelp documents them with the data set. The knowledge graph is made of city, state, categories and attributes.
"""

import ast
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from spike_kit.base.errors import DataError
from spike_kit.data.cells import names_in
from spike_kit.data.raw import JsonLines, fields
from spike_kit.data.recipes import BuildConfig, Recipe, Source
from spike_kit.data.text import plain
from spike_kit.data.workspace import Workspace

LICENCE = "Yelp data set terms of use: academic use only, no redistribution"

_TEMPLATES = {
    "city": "{head} is in {tail}.",
    "state": "{head} is in the state {tail}.",
    "category": "{head} is a business of the kind {tail}.",
    "attribute": "{head} has the attribute {tail}.",
    "lies_in": "{head} lies in the state {tail}.",
}

_NO = frozenset({"", "none", "no", "false", "null"})
_LONGEST_ATTRIBUTE = 2_000


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
    businesses, reviews = (_find(folder, name, work) for name in ("business", "review"))
    columns = {"user": "user_id", "item": "business_id", "rating": "stars", "timestamp": "date", "text": "text"}
    work.read_interactions(reviews, fields(columns, time="date"))
    texts = {name: name for name in ("address", "city", "state", "categories", "attributes")}
    work.read(businesses, "raw_items", fields({"item": "business_id", "label": "name", **texts}))
    query = "SELECT * FROM raw_items SEMI JOIN interactions USING (item) ORDER BY place"
    for batch in work.batches(query):
        rows = batch.to_dict("records")
        work.put("items", batch.assign(description=list(map(_description, rows))))
        facts, bad = [], []
        for row in rows:
            try:
                facts += facts_of(row, config.attributes)
            except (ValueError, RecursionError):
                bad.append(row["place"])
        if bad:
            problem = "categories or attributes are in a layout that is not known, so it has no facts"
            work.refuse(work.files["raw_items"], problem, len(bad), bad[0])
        work.put_facts(pd.DataFrame(facts, columns=["head", "relation", "tail", "label", "kind"], dtype="str"))
    work.put_relations(_TEMPLATES)


def _find(folder: Path, what: str, work: Workspace) -> JsonLines:
    name = f"yelp_academic_dataset_{what}.json"
    found = next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)
    if found is None:
        raise DataError(f"{folder} holds no {name} (or {name}.gz)", "docs/datasets.md says where to get it")
    work.terms = LICENCE, f"Yelp academic data set, {'businesses' if what == 'business' else 'reviews'}"
    return JsonLines(work.register(found))


def _description(row: Mapping[Any, str]) -> str:
    place = ", ".join(part for part in (row["address"], row["city"], row["state"]) if part.strip())
    return f"A local business at {place}." if place else "A local business."


def facts_of(row: Mapping[Any, str], with_attributes: bool) -> list[tuple[str, str, str, str, str]]:
    """Facts of a business: head, relation, tail, label and kind of the tail.

    A city is told from one of the same name in another state.

    Raises
    ------
    ValueError
        If categories or attributes are not in a known layout.
    """
    item, city, state = row["item"], plain(row["city"]), plain(row["state"])
    found = []
    if city:
        found.append((item, "city", f"city:{city}, {state}", f"{city}, {state}" if state else city, "city"))
    if state:
        found.append((item, "state", f"state:{state}", state, "state"))
        if city:
            found.append((f"city:{city}, {state}", "lies_in", f"state:{state}", state, "state"))
    words = {"category": [plain(name) for name in names_in(row["categories"], ",")]}
    if with_attributes:
        words["attribute"] = [*_attributes(row["attributes"])]
    for kind, names in words.items():
        found += [(item, kind, f"{kind}:{name}", name, kind) for name in dict.fromkeys(names) if name]
    return found


def _attributes(value: str) -> Iterator[str]:
    """Attributes that a business has, in words: ``WiFi: free``, ``BusinessParking: garage``, ``GoodForKids``.

    Older releases write a list of texts in place of the object.
    """
    found = (json.loads(value) if value else None) or {}
    if isinstance(found, list):
        pairs = [(*map(str.strip, text.split(":", 1)), "True")[:2] for text in names_in(value, ",")]
    elif isinstance(found, dict):
        pairs = [*found.items()]
    else:
        raise ValueError(value)
    for name, given in pairs:
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


_ABOUT = "Yelp academic data set: city, state, categories and attributes; reviews with dates"

SOURCE = Source(parse, {"yelp": Recipe(YelpConfig(user_core=10, item_core=10), _ABOUT)})
"""The reader, with its one data set (the version is chosen by the files)."""
