"""Template profiles: one paragraph for every item, auxiliary entity and user, from facts alone, without an LLM.

They follow the order of the paper (items, auxiliary entities, users; docs/method.md, section 1) and its word limits,
and see nothing but triples and the train split.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from spike_kit.base.storage import now, sha256_text
from spike_kit.data.dataset import TEMPLATE, Dataset
from spike_kit.data.tables import Tables
from spike_kit.data.text import clean
from spike_kit.profiles.facts import Group, Links, Names, links, listed, sentence, train_items, typical

VERSION = "template 2"
"""Changes whenever the wording changes; its sha256 stands in the profiles table."""

WORD_LIMIT = {"item": 150, "auxiliary": 150, "user": 100}
"""Longest profile in words (paper: 150, 150, 100)."""

UNKNOWN_TASTE = "Nothing is known of this user's taste."
"""Profile of a user without train interactions."""

_SHOWN = 8
"""Names listed per fact."""
_TASTES = 3
"""Names listed per taste."""
_LIKED = 8
"""Items named in a user's profile."""


def template_profiles(data: Dataset) -> pd.DataFrame:
    """Write the template profile of every item, auxiliary entity and user of a data set.

    Returns
    -------
    DataFrame
        As `spike_kit.data.dataset.PROFILES_SCHEMA` asks, ready for `Dataset.write_profiles`.
    """
    parts = [
        pd.DataFrame({"subject": subject, "id": data.expected_ids(subject), "text": texts})
        for subject, texts in template_texts(data.tables).items()
    ]
    profiles = pd.concat(parts, ignore_index=True).astype({"subject": "str", "text": "str", "id": "int64"})
    return profiles.assign(prompt_sha256=sha256_text(VERSION), model=TEMPLATE, usage="{}", created=now())


def ensure_profiles(data: Dataset) -> pd.DataFrame:
    """Return the template profiles of a data set, writing them first if they are missing or have another wording."""
    if TEMPLATE in data.profile_sets():
        profiles = data.profiles(TEMPLATE)
        if set(profiles["prompt_sha256"]) == {sha256_text(VERSION)}:
            return profiles
    data.write_profiles(TEMPLATE, template_profiles(data))
    return data.profiles(TEMPLATE)


def template_texts(tables: Tables) -> dict[str, list[str]]:
    """Texts of all template profiles by subject, ids ascending.

    An item: its description and its facts. An auxiliary entity: what it is to which items, and what these share. A
    user: some of the train items, rare ones first, and what is over-represented in them.
    """
    told = Links.of(tables)
    names = Names(tables, told)
    n_items, n_users, n_entities = len(tables.items), len(tables.users), len(tables.entities)
    frame = links(tables)
    item_links = frame[frame["owner"] < n_items]
    pairs = item_links.loc[item_links["other"] >= n_items, ["other", "owner"]].drop_duplicates().to_numpy()
    common = typical(pairs[:, 0], pairs[:, 1], item_links, np.ones(n_items), n_entities)
    popularity, liked = train_items(tables)
    users = np.repeat(np.arange(n_users), [len(items) for items in liked])
    tastes = typical(users, np.concatenate(liked), item_links, popularity, n_users)

    def facts(entity: int) -> list[str]:
        return [names.fact(entity, group) for group in told.groups(entity, _SHOWN)]

    texts: dict[str, list[str]] = {"item": [], "auxiliary": [], "user": []}
    for item, description in enumerate(tables.items["description"]):
        described = clean(description, 60)
        opening = f"{names.labels[item]}: {described}" if described else names.labels[item]
        texts["item"].append(paragraph([sentence(opening), *facts(item)], WORD_LIMIT["item"]))
    for entity, kind in enumerate(tables.entities["kind"].iloc[n_items:], start=n_items):
        opening = sentence(f"{names.labels[entity]} ({clean(kind)})")
        shared = _tastes(names, common.groups(entity, _TASTES + 1), "Common to them", entity)
        texts["auxiliary"].append(paragraph([opening, *facts(entity), *shared], WORD_LIMIT["auxiliary"]))
    for user, items in enumerate(liked):
        shown = [names.labels[item] for item in items[:_LIKED]]
        sentences = [sentence(f"Liked {listed(shown, len(items))}")] if shown else [UNKNOWN_TASTE]
        sentences += _tastes(names, tastes.groups(user, _TASTES), "Prefers", None)
        texts["user"].append(paragraph(sentences, WORD_LIMIT["user"]))
    return texts


def _tastes(names: Names, groups: Sequence[Group], opening: str, owner: int | None) -> list[str]:
    parts = []
    for group in groups:
        others = [names.labels[other] for other in group.others if other != owner][:_TASTES]
        if others and group.outward:
            parts.append(f"{names.relations[group.relation]} {listed(others)}")
    return [sentence(f"{opening}: {'; '.join(parts)}")] if parts else []


def paragraph(sentences: Sequence[str], max_words: int) -> str:
    """Join sentences in order, leaving out whole sentences that no longer fit; the first one always stays."""
    kept, used = [], 0
    for position, text in enumerate(sentences):
        words = len(text.split())
        if position == 0 or used + words <= max_words:
            kept.append(text)
            used += words
    return " ".join(kept)
