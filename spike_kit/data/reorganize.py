"""From parsed raw rows to the tables of a study folder: filters with a funnel, dense ids, splits.

A source (`spike_kit.data.sources`) parses its files into `RawTables`, whose ids are the source's own strings; the
steps here are the same for every source.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field

from spike_kit.config import Config
from spike_kit.data.splits import random_per_user
from spike_kit.data.tables import Tables
from spike_kit.errors import DataError
from spike_kit.seeds import numpy_generator


class BuildConfig(Config):
    """Settings of a build; every source has its own named recipe of them."""

    min_rating: float = 4.0
    """An interaction is a positive if its rating is at least this (in the rating's own scale)."""
    max_users: int | None = Field(default=None, ge=1)
    """Keep only this many users, drawn at random before the k-core; none keeps all."""
    user_core: int = Field(default=5, ge=0)
    """Least number of interactions per user (k of the k-core)."""
    item_core: int = Field(default=5, ge=0)
    """Least number of interactions per item (k of the k-core)."""
    min_entity_items: int = Field(default=2, ge=1)
    """Least number of items an auxiliary entity must be linked to."""
    valid: float = Field(default=0.1, ge=0, lt=1)
    """Share of each user's interactions held out for validation."""
    test: float = Field(default=0.1, ge=0, lt=1)
    """Share of each user's interactions held out for the test."""
    seed: int = 0
    """Seed of the split and of the choice of users."""


@dataclass(frozen=True)
class RawTables:
    """Rows of a source under its own ids (strings).

    Attributes
    ----------
    interactions
        user, item, rating, timestamp.
    users
        user, label.
    items
        item, label, description; ``item`` is also the item's id in ``triples``.
    entities
        entity, label, kind; the auxiliary entities only.
    relations
        relation, label, template; in the order their ids will have.
    triples
        head, relation, tail.
    """

    interactions: pd.DataFrame
    users: pd.DataFrame
    items: pd.DataFrame
    entities: pd.DataFrame
    relations: pd.DataFrame
    triples: pd.DataFrame


@dataclass
class Funnel:
    """Row counts after every step of a build, in order."""

    steps: list[dict[str, Any]] = field(default_factory=list)

    def add(self, step: str, raw: RawTables, **extra: int) -> None:
        """Record what is left after ``step``; ``extra`` are counts of what the step dropped or merged."""
        counts = {
            "users": raw.interactions["user"].nunique(),
            "items": raw.interactions["item"].nunique(),
            "interactions": len(raw.interactions),
            "entities": len(raw.entities),
            "triples": len(raw.triples),
        }
        self.steps.append({"step": step, **{name: int(value) for name, value in (counts | extra).items()}})


def reorganize(raw: RawTables, config: BuildConfig, funnel: Funnel) -> Tables:
    """Turn raw rows into the tables of a study folder.

    Steps: positive rule, deduplication, choice of users, link to the graph, k-core, entity filter, ids, split; each
    is recorded in ``funnel``. Items that no triple names are dropped before the k-core; the entity filter may leave
    an item without one again, which stays (its id embedding and its profile remain).

    Raises
    ------
    DataError
        If a filter leaves nothing; the message names the step.
    """
    raw = _only(raw, raw.interactions[raw.interactions["rating"] >= config.min_rating])
    funnel.add(f"rating >= {config.min_rating:g}", raw)
    newest = raw.interactions.sort_values(["user", "item", "timestamp"]).drop_duplicates(["user", "item"], keep="last")
    raw = _only(raw, newest)
    funnel.add("one interaction per user and item", raw)
    if config.max_users is not None:
        raw = _only(raw, _some_users(raw.interactions, config.max_users, config.seed))
        funnel.add(f"{config.max_users} users at random", raw)
    linked = raw.interactions[raw.interactions["item"].isin(np.union1d(raw.triples["head"], raw.triples["tail"]))]
    raw = _only(raw, linked)
    funnel.add("items with a triple", raw)
    raw = _only(raw, k_core(raw.interactions, config.user_core, config.item_core))
    _demand(raw.interactions, f"the k-core (users {config.user_core}, items {config.item_core})")
    raw = replace(raw, items=raw.items[raw.items["item"].isin(raw.interactions["item"])])
    funnel.add(f"k-core: users {config.user_core}, items {config.item_core}", raw)
    raw = shared_entities(raw, config.min_entity_items)
    _demand(raw.triples, f"the entity filter (at least {config.min_entity_items} items)")
    funnel.add(f"entities on at least {config.min_entity_items} items", raw)
    tables = _with_ids(raw, config)
    funnel.add("ids and split", raw, **{k: v for k, v in tables.counts().items() if k.startswith("interactions_")})
    return tables


def _only(raw: RawTables, interactions: pd.DataFrame) -> RawTables:
    return replace(raw, interactions=interactions)


def _demand(rows: pd.DataFrame, step: str) -> None:
    if rows.empty:
        raise DataError(f"nothing is left after {step}", "loosen the filters of the build settings")


def _some_users(interactions: pd.DataFrame, n_users: int, seed: int) -> pd.DataFrame:
    users = np.sort(interactions["user"].unique())
    chosen = numpy_generator(seed, "users").permutation(len(users))[:n_users]
    return interactions[interactions["user"].isin(users[chosen])]


def k_core(interactions: pd.DataFrame, user_core: int, item_core: int) -> pd.DataFrame:
    """Drop users and items with too few interactions until none is left to drop.

    Parameters
    ----------
    interactions
        Columns ``user`` and ``item``, each pair once.
    user_core, item_core
        Least number of interactions per user and per item.

    Returns
    -------
    DataFrame
        The largest set of rows in which every user and every item has enough (possibly empty), in the given order.
    """
    users, user_names = pd.factorize(interactions["user"])
    items, item_names = pd.factorize(interactions["item"])
    alive = np.ones(len(interactions), dtype=bool)
    while True:
        user_degree = np.bincount(users[alive], minlength=len(user_names))
        item_degree = np.bincount(items[alive], minlength=len(item_names))
        keep = alive & (user_degree[users] >= user_core) & (item_degree[items] >= item_core)
        if keep.sum() == alive.sum():
            return interactions[alive]
        alive = keep


def shared_entities(raw: RawTables, min_items: int) -> RawTables:
    """Keep auxiliary entities linked to at least ``min_items`` of the items, and the triples among what is left.

    An entity counts an item once, however many relations link the two. Entities that are linked to no item directly
    are dropped; so are relations without a triple.
    """
    items = set(raw.items["item"])
    triples = raw.triples.drop_duplicates()
    head_is_item, tail_is_item = triples["head"].isin(items), triples["tail"].isin(items)
    outward = triples.loc[head_is_item & ~tail_is_item, ["head", "tail"]].set_axis(["item", "entity"], axis=1)
    inward = triples.loc[tail_is_item & ~head_is_item, ["tail", "head"]].set_axis(["item", "entity"], axis=1)
    links = pd.concat([outward, inward]).drop_duplicates()
    degree = links.groupby("entity")["item"].nunique()
    entities = raw.entities[raw.entities["entity"].isin(degree.index[degree >= min_items])]
    known = items | set(entities["entity"])
    kept = triples[triples["head"].isin(known) & triples["tail"].isin(known)]
    relations = raw.relations[raw.relations["relation"].isin(kept["relation"])]
    return replace(raw, entities=entities, triples=kept, relations=relations)


def _with_ids(raw: RawTables, config: BuildConfig) -> Tables:
    users = _numbered(raw.users[raw.users["user"].isin(raw.interactions["user"])], "user")
    items = _numbered(raw.items, "item")
    auxiliary = _numbered(raw.entities, "entity")
    auxiliary["entity"] += len(items)
    item_entities = items.rename(columns={"item": "entity"}).assign(kind="item")
    columns = ["entity", "source_id", "label", "kind"]
    entities = pd.concat([item_entities[columns], auxiliary[columns]], ignore_index=True)
    relations = raw.relations.reset_index(drop=True).rename(columns={"relation": "source_id"})
    relations.insert(0, "relation", np.arange(len(relations)))
    user_id, item_id = _lookup(users, "user"), _lookup(items, "item")
    entity_id, relation_id = _lookup(entities, "entity"), _lookup(relations, "relation")
    interactions = pd.DataFrame(
        {
            "user": raw.interactions["user"].map(user_id),
            "item": raw.interactions["item"].map(item_id),
            "rating": raw.interactions["rating"].astype("float64"),
            "timestamp": raw.interactions["timestamp"].astype("Int64"),
        }
    ).sort_values(["user", "item"], ignore_index=True)
    interactions.insert(2, "split", random_per_user(interactions, config.valid, config.test, config.seed))
    triples = pd.DataFrame(
        {
            "head": raw.triples["head"].map(entity_id),
            "relation": raw.triples["relation"].map(relation_id),
            "tail": raw.triples["tail"].map(entity_id),
        }
    ).sort_values(["head", "relation", "tail"], ignore_index=True)
    return Tables(users, items, entities, relations, interactions, triples)


def _numbered(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    numbered = rows.reset_index(drop=True).rename(columns={name: "source_id"})
    numbered.insert(0, name, np.arange(len(numbered)))
    return numbered


def _lookup(table: pd.DataFrame, name: str) -> pd.Series:
    return table.set_index("source_id")[name]
