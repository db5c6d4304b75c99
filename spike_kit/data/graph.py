"""The graph a model sees: train interactions and triples as tensors, inverses added, nothing of text."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from spike_kit.data.tables import Tables

GRAPH_VERSION = 1
"""Version of the graph that tables give: raised by whoever changes its edges or their order."""


@dataclass(frozen=True)
class Graph:
    """User-item interactions of the train split and the knowledge graph, on one device.

    Items are entities ``0..n_items-1``. ``n_relations`` (R) counts relations without inverses; the inverse of
    relation ``r`` is ``R + r``.

    Attributes
    ----------
    train_user, train_item
        ``[n]`` int64, one entry per train interaction, sorted by user, then item.
    head, relation, tail
        ``[2 m]`` int64, every triple and its inverse, sorted by head (then relation, then tail).
    trained_items
        ``[k]`` int64, items with train interactions, ascending; the others are new to a model.
    """

    train_user: Tensor
    train_item: Tensor
    head: Tensor
    relation: Tensor
    tail: Tensor
    trained_items: Tensor
    n_users: int
    n_items: int
    n_entities: int
    n_relations: int

    @property
    def n_interactions(self) -> int:
        """Number of train interactions."""
        return self.train_user.numel()

    @property
    def n_edges(self) -> int:
        """Number of directed knowledge-graph edges (twice the triples)."""
        return self.head.numel()

    @property
    def n_nodes(self) -> int:
        """Number of users and entities, U + E."""
        return self.n_users + self.n_entities

    @cached_property
    def known_items(self) -> Tensor:
        """Column ``[I, 1]``: 1 for items with train interactions, 0 for those without."""
        return torch.zeros(self.n_items, 1, device=self.device).index_fill(0, self.trained_items, 1.0)

    @property
    def has_new_items(self) -> bool:
        """Whether an item has no train interaction."""
        return self.trained_items.numel() < self.n_items

    @property
    def device(self) -> torch.device:
        """Device of all tensors."""
        return self.train_user.device

    def to(self, device: torch.device | str) -> Graph:
        """Copy on another device."""
        tensors = ("train_user", "train_item", "head", "relation", "tail", "trained_items")
        return replace(self, **{name: getattr(self, name).to(device) for name in tensors})

    @classmethod
    def from_tables(cls, tables: Tables) -> Graph:
        """Build on the CPU from the tables of a data-set folder; only train interactions enter."""
        sizes = {f"n_{name}": len(getattr(tables, name)) for name in ("users", "items", "entities", "relations")}
        train = tables.interactions[tables.interactions["split"] == "train"]
        return cls.from_arrays(train[["user", "item"]].to_numpy(), tables.triples.to_numpy(), **sizes)

    @classmethod
    def from_arrays(cls, interactions: np.ndarray, triples: np.ndarray, **sizes: int) -> Graph:
        """Build on the CPU from ``interactions [n, 2]`` (user, item) and ``triples [m, 3]`` (head, relation, tail).

        ``sizes`` are n_users, n_items, n_entities and n_relations.
        """
        inverse = triples[:, [2, 1, 0]] + np.array([0, sizes["n_relations"], 0])
        train_user, train_item = _sorted_columns(interactions)
        head, relation, tail = _sorted_columns(np.concatenate([triples, inverse]))
        return cls(train_user, train_item, head, relation, tail, train_item.unique(), **sizes)


def _sorted_columns(rows: np.ndarray) -> list[Tensor]:
    """Columns of a table whose rows are sorted by the first column, then the second, and so on."""
    ordered = rows[np.lexsort(rows.T[::-1])]
    return [torch.from_numpy(np.array(column, dtype=np.int64)) for column in ordered.T]
