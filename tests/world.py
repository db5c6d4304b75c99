"""A tiny world with a provable answer.

Users and items fall into groups. A user has interacted with every item of their group except two: one is held out
for validation, one for test. Once the seen items are masked, the **planted top item** (the test item) is the only
item of the user's own group that is left, so any model that learns the groups must rank it first. A popularity
ranking cannot: every item has the same number of interactions, within one.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from spike_kit.base.seeds import torch_generator
from spike_kit.data.dataset import Dataset, SourceFile, create_dataset
from spike_kit.data.graph import Graph
from spike_kit.data.tables import Tables
from spike_kit.data.vectors import ProfileVectors
from spike_kit.models import find_model, find_preset
from spike_kit.models.base import TrainedRecommender

GROUPS = ("comedy", "western", "horror", "musical")
USERS_PER_GROUP = 14
ITEMS_PER_GROUP = 12
TEXT_DIM = 24


@dataclass(frozen=True)
class World:
    """Tables, graph and vectors of the tiny world, and the planted answer (``planted [U]``: an item id per user)."""

    tables: Tables
    graph: Graph
    vectors: ProfileVectors
    planted: np.ndarray


def make_world(seed: int = 0) -> World:
    """Build the world; ``seed`` only moves the noise of the text vectors."""
    n_users, n_items = len(GROUPS) * USERS_PER_GROUP, len(GROUPS) * ITEMS_PER_GROUP
    user_group = np.arange(n_users) // USERS_PER_GROUP
    item_group = np.arange(n_items) // ITEMS_PER_GROUP
    rows, planted = [], np.zeros(n_users, dtype=np.int64)
    for user in range(n_users):
        own = np.flatnonzero(item_group == user_group[user])
        planted[user] = own[user % ITEMS_PER_GROUP]
        valid = own[(user + 5) % ITEMS_PER_GROUP]
        for item in own:
            split = {planted[user]: "test", valid: "valid"}.get(item, "train")
            rows.append((user, int(item), split, 5.0, 1_000_000 + 100 * user + int(item)))
    tables = _tables(n_users, n_items, item_group, rows)
    return World(tables, Graph.from_tables(tables), _vectors(tables, user_group, item_group, seed), planted)


def new_items_world(world: World) -> World:
    """The world as a task of new items: the first item of each group is new in valid, the second in test."""
    tables = world.tables
    interactions, place = tables.interactions.copy(), tables.interactions["item"] % ITEMS_PER_GROUP
    interactions.loc[place == 0, "split"] = "valid"
    interactions.loc[place == 1, "split"] = "test"
    tables = replace(tables, interactions=interactions)
    return replace(world, tables=tables, graph=Graph.from_tables(tables))


def _tables(n_users: int, n_items: int, item_group: np.ndarray, rows: list[tuple]) -> Tables:
    labels = [f"{GROUPS[group].title()} film {index}" for index, group in enumerate(item_group)]
    directors = [f"Director {index}" for index in range(n_items // 3)]
    auxiliary = [*GROUPS, *directors]
    kinds = ["genre"] * len(GROUPS) + ["director"] * len(directors)
    ids = [f"film:{index}" for index in range(n_items)]
    triples = [(item, 0, n_items + int(group)) for item, group in enumerate(item_group)]
    triples += [(item, 1, n_items + len(GROUPS) + item // 3) for item in range(n_items)]
    interactions = pd.DataFrame(rows, columns=["user", "item", "split", "rating", "timestamp"])
    return Tables(
        users=pd.DataFrame(
            {
                "user": range(n_users),
                "source_id": [f"u{index}" for index in range(n_users)],
                "label": [f"User {index}" for index in range(n_users)],
            }
        ),
        items=pd.DataFrame({"item": range(n_items), "source_id": ids, "label": labels, "description": ""}),
        entities=pd.DataFrame(
            {
                "entity": range(n_items + len(auxiliary)),
                "source_id": [*ids, *(f"{kind}:{name}" for kind, name in zip(kinds, auxiliary, strict=True))],
                "label": [*labels, *auxiliary],
                "kind": ["item"] * n_items + kinds,
            }
        ),
        relations=pd.DataFrame(
            {
                "relation": [0, 1],
                "source_id": ["genre", "director"],
                "label": ["genre", "director"],
                "template": ["{head} is a {tail} film.", "{head} was directed by {tail}."],
            }
        ),
        interactions=interactions.astype({"timestamp": "Int64"}),
        triples=pd.DataFrame(triples, columns=["head", "relation", "tail"]),
    )


def _vectors(tables: Tables, user_group: np.ndarray, item_group: np.ndarray, seed: int) -> ProfileVectors:
    rng = np.random.default_rng(seed)
    topics = rng.normal(size=(len(GROUPS), TEXT_DIM))
    director_group = item_group[::3]
    entity_group = np.concatenate([item_group, np.arange(len(GROUPS)), director_group])

    def rows(groups: np.ndarray) -> torch.Tensor:
        vectors = topics[groups] + 0.3 * rng.normal(size=(len(groups), TEXT_DIM))
        return torch.from_numpy((vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32))

    assert len(entity_group) == len(tables.entities)
    return ProfileVectors(rows(user_group), rows(entity_group))


def write_world(path: Path, seed: int = 0, tables: Tables | None = None, task: str = "known") -> Dataset:
    """Write the world, or these tables, as a data-set folder at ``path`` (without profiles)."""
    source = SourceFile(name="world.py", sha256="0" * 64, licence="MIT", origin="made by tests/world.py")
    written = tables or make_world(seed).tables
    build = {"groups": len(GROUPS)} | ({} if task == "known" else {"task": task})
    return create_dataset(path, path.name, written, sources=(source,), build=build, funnel=())


def build(
    name: str, world: World, preset: str = "recommended", seed: int = 0, device: str = "cpu", **settings: Any
) -> TrainedRecommender:
    """A model of the world before its training: a preset, and settings that differ from it."""
    graph, vectors = world.graph.to(device), world.vectors.to(device)
    config = find_preset(name, preset).model.replace(**settings)
    model = find_model(name)(config, graph, vectors, torch_generator(seed, "init"))
    assert isinstance(model, TrainedRecommender)
    return model
