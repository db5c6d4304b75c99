"""Finding users, items and entities by name, and naming nodes: shared by all views."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Sequence
from functools import cached_property

import numpy as np
import pandas as pd

from spike_kit.base.errors import DataError
from spike_kit.data.dataset import Dataset

KINDS = ("user", "item", "auxiliary")
"""What a node is; the names are those of the profiles' subjects."""


class Nodes:
    """Names of all nodes of a data set: users 0..U-1, entity e is U + e (items are the first entities).

    Parameters
    ----------
    data
        The data set.

    Attributes
    ----------
    bounds
        First node of every subject, and the node after its last one.
    """

    def __init__(self, data: Dataset) -> None:
        self.data = data
        self.n_users, self.n_items = len(data.users), len(data.items)
        self.n_nodes = self.n_users + len(data.entities)
        first, rest = self.n_users, self.n_users + self.n_items
        self.bounds = {"user": (0, first), "item": (first, rest), "auxiliary": (rest, self.n_nodes)}

    @cached_property
    def labels(self) -> list[str]:
        """Name of every node, as it came from outside: pass it through `spike_kit.views.safe` before showing."""
        return [*self.data.users["label"].tolist(), *self.data.entities["label"].tolist()]

    @cached_property
    def kinds(self) -> pd.Series:
        """Kind of every node as the tables have it: ``user``, or the kind of the entity (film, genre, ...)."""
        return pd.Series(["user"] * self.n_users + self.data.entities["kind"].tolist(), name="kind")

    def texts(self, profiles: str) -> dict[tuple[str, int], str]:
        """Profile texts of a set by subject and id."""
        table = self.data.profiles(profiles)
        return dict(zip(zip(table["subject"], table["id"], strict=True), table["text"], strict=True))

    def subject(self, node: int) -> tuple[str, int]:
        """Who a node is, as profiles are keyed: ``user``, ``item`` or ``auxiliary``, and its id.

        Raises
        ------
        DataError
            If there is no such node.
        """
        if not 0 <= node < self.n_nodes:
            raise DataError(f"{self.data.name} has no node {node}", f"nodes are 0 to {self.n_nodes - 1}")
        if node < self.n_users:
            return "user", node
        entity = node - self.n_users
        return ("item" if entity < self.n_items else "auxiliary"), entity

    def node(self, subject: str, number: int) -> int:
        """Node of a user, item or auxiliary entity; the opposite of `subject`."""
        node = number if subject == "user" else self.n_users + number
        if self.subject(node) != (subject, number):
            raise DataError(f"{self.data.name} has no {subject} {number}")
        return node

    @cached_property
    def popular_item(self) -> int:
        """Node of the item with the most train interactions: where a view begins."""
        return self.n_users + int(self.data.split("train")["item"].mode()[0])

    @cached_property
    def _folded(self) -> list[str]:
        return [fold(label) for label in self.labels]

    def search(self, text: str, most: int = 20, kinds: Collection[str] = KINDS) -> list[int]:
        """Nodes whose name contains every word of ``text``, whatever the case and the accents.

        Names that are the text come first, then those that begin with it, then those with a word that does, then the
        rest; shorter names before longer ones.
        """
        wanted = fold(text).split()
        if not wanted:
            return []
        folded = self._folded
        first, *others = sorted(wanted, key=len, reverse=True)
        found = [
            node
            for kind in KINDS
            if kind in kinds
            for node in range(*self.bounds[kind])
            if first in folded[node] and all(word in folded[node] for word in others)
        ]
        whole = " ".join(wanted)
        return sorted(found, key=lambda node: (_place(folded[node], whole), len(folded[node]), node))[:most]

    def table(self, nodes: Sequence[int]) -> pd.DataFrame:
        """Nodes by name: node, kind, label."""
        chosen = np.asarray(nodes, dtype=int)
        labels = [self.labels[node] for node in chosen]
        return pd.DataFrame({"node": chosen, "kind": self.kinds.to_numpy()[chosen], "label": labels})


def fold(text: str) -> str:
    """Text for comparison: no case, no accents, single spaces."""
    parts = unicodedata.normalize("NFKD", text)
    return " ".join("".join(part for part in parts if not unicodedata.combining(part)).casefold().split())


def _place(name: str, wanted: str) -> int:
    if name == wanted:
        return 0
    if name.startswith(wanted):
        return 1
    return 2 if f" {wanted}" in name else 3
