"""Template profiles: one paragraph for every item, auxiliary entity and user, from facts alone, without an LLM.

They follow the order of the paper (items, auxiliary entities, users; docs/method.md, section 1) and its word limits,
and see nothing but triples and the train split.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from spike_kit.base.storage import now, sha256_text
from spike_kit.data.dataset import TEMPLATE, Dataset
from spike_kit.data.tables import Tables
from spike_kit.data.text import clean
from spike_kit.profiles import facts
from spike_kit.profiles.facts import Group, Links
from spike_kit.profiles.names import Names
from spike_kit.profiles.wording import listed, paragraph, sentence

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


def template_profiles(data: Dataset, progress: bool = True) -> pd.DataFrame:
    """Write the template profile of every item, auxiliary entity and user of a data set.

    Returns
    -------
    DataFrame
        As `spike_kit.data.dataset.PROFILES_SCHEMA` asks, ready for `Dataset.write_profiles`.
    """
    writers = {"item": item_texts, "auxiliary": auxiliary_texts, "user": user_texts}
    created = now()
    version = sha256_text(VERSION)
    parts = []
    for subject, write in tqdm(writers.items(), desc="template profiles", unit="subject", disable=not progress):
        texts = write(data.tables)
        parts.append(pd.DataFrame({"subject": subject, "id": data.expected_ids(subject), "text": texts}))
    profiles = pd.concat(parts, ignore_index=True).astype({"subject": "str", "text": "str", "id": "int64"})
    return profiles.assign(prompt_sha256=version, model=TEMPLATE, usage="{}", created=created)


def ensure_profiles(data: Dataset, progress: bool = True) -> pd.DataFrame:
    """Return the template profiles of a data set, writing them first if they are missing or have another wording."""
    if TEMPLATE in data.profile_sets():
        profiles = data.profiles(TEMPLATE)
        if set(profiles["prompt_sha256"]) == {sha256_text(VERSION)}:
            return profiles
    data.write_profiles(TEMPLATE, template_profiles(data, progress))
    return data.profiles(TEMPLATE)


def item_texts(tables: Tables) -> list[str]:
    """Profiles of the items, ids ascending: their description and their facts."""
    links = Links(tables)
    names = Names.of(tables, links)
    texts = []
    for item, description in enumerate(tables.items["description"]):
        described = clean(description, 60)
        opening = f"{names.labels[item]}: {described}" if described else names.labels[item]
        own = [names.fact(item, group) for group in links.groups(item, _SHOWN)]
        texts.append(paragraph([sentence(opening), *own], WORD_LIMIT["item"]))
    return texts


def auxiliary_texts(tables: Tables) -> list[str]:
    """Profiles of the auxiliary entities, ids ascending: what they are to which items, what these share."""
    links, pairs = Links(tables), facts.links(tables)
    names = Names.of(tables, links)
    n_items = len(tables.items)
    item_links = pairs[pairs["entity"] < n_items]
    members = item_links.loc[item_links["other"] >= n_items, ["other", "entity"]].drop_duplicates()
    members = members.set_axis(["owner", "item"], axis=1)
    common = facts.typical(members, item_links, np.ones(n_items), _TASTES + 1)
    texts = []
    kinds = tables.entities["kind"].tolist()
    for entity in range(n_items, len(tables.entities)):
        sentences = [sentence(f"{names.labels[entity]} ({clean(kinds[entity])})")]
        sentences += [names.fact(entity, group) for group in links.groups(entity, _SHOWN)]
        sentences += _tastes(names, common.get(entity, []), "Common to them", entity)
        texts.append(paragraph(sentences, WORD_LIMIT["auxiliary"]))
    return texts


def user_texts(tables: Tables) -> list[str]:
    """Profiles of the users, ids ascending: what is over-represented in their train items, and some of the items.

    Items are named from the rarest to the most popular, because what few people like tells more about a taste.
    """
    names, pairs = Names.of(tables, Links(tables)), facts.links(tables)
    n_items = len(tables.items)
    train = tables.interactions[tables.interactions["split"] == "train"]
    popularity = np.bincount(train["item"], minlength=n_items)
    members = train[["user", "item"]].set_axis(["owner", "item"], axis=1)
    tastes = facts.typical(members, pairs[pairs["entity"] < n_items], popularity, _TASTES)
    liked = train.assign(count=popularity[train["item"].to_numpy()]).sort_values(["user", "count", "item"])
    items_of = [rows.tolist() for rows in np.split(liked["item"].to_numpy(), _starts(liked["user"], len(tables.users)))]
    texts = []
    for user in range(len(tables.users)):
        shown = [names.labels[item] for item in items_of[user][:_LIKED]]
        sentences = [sentence(f"Liked {listed(shown, len(items_of[user]))}")] if shown else []
        sentences += _tastes(names, tastes.get(user, []), "Prefers", None)
        texts.append(paragraph(sentences or [UNKNOWN_TASTE], WORD_LIMIT["user"]))
    return texts


def _starts(sorted_users: pd.Series, n_users: int) -> np.ndarray:
    """Where the rows of users 1, 2, ... begin."""
    return np.searchsorted(sorted_users.to_numpy(), np.arange(1, n_users))


def _tastes(names: Names, groups: Sequence[Group], opening: str, owner: int | None) -> list[str]:
    parts = []
    for group in groups:
        others = [names.labels[other] for other in group.others if other != owner][:_TASTES]
        if others and group.outward:
            parts.append(f"{names.relations[group.relation]} {listed(others)}")
    return [sentence(f"{opening}: {'; '.join(parts)}")] if parts else []
