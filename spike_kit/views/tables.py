"""Names for ids: nodes are found by name, and tables tell what is behind numbers."""

import unicodedata
from collections.abc import Mapping, Sequence, Sized
from functools import cached_property

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.sparse import csgraph
from torch import Tensor

from spike_kit.base.errors import DataError
from spike_kit.base.seeds import numpy_generator
from spike_kit.data.dataset import Dataset, texts_by_subject
from spike_kit.profiles.shipped import told_of
from spike_kit.profiles.template import fill
from spike_kit.views.safe import html_text

COUNTS = ("users", "items", "interactions", "entities", "relations", "triples")
"""What the steps of a funnel count; anything else is told of single steps."""


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
        self.data, self.n_users = data, len(data.users)
        self.n_nodes = self.n_users + len(data.entities)
        rest = self.n_users + len(data.items)
        self.bounds = {"user": (0, self.n_users), "item": (self.n_users, rest), "auxiliary": (rest, self.n_nodes)}

    @cached_property
    def labels(self) -> list[str]:
        """Name of every node, as it came from outside: pass it through `spike_kit.views.safe` before showing."""
        return [*self.data.users["label"].tolist(), *self.data.entities["label"].tolist()]

    @cached_property
    def kinds(self) -> pd.Series:
        """Kind of every node as the tables have it: ``user``, or the kind of the entity (film, genre, ...)."""
        return pd.Series(["user"] * self.n_users + self.data.entities["kind"].tolist(), name="kind")

    @cached_property
    def popular_item(self) -> int:
        """Node of the item with the most train interactions: where a view begins."""
        return self.n_users + int(self.data.split("train")["item"].mode()[0])

    @cached_property
    def _folded(self) -> list[str]:
        return [fold(label) for label in self.labels]

    def expect(self, tables: Mapping[str, Sized]) -> None:
        """Check that tables have one row per node.

        Raises
        ------
        DataError
            If one has not.
        """
        for name, rows in tables.items():
            if len(rows) != self.n_nodes:
                raise DataError(f"{name} has {len(rows)} rows, but {self.data.name} has {self.n_nodes} nodes")

    def subject(self, node: int) -> tuple[str, int]:
        """Who a node is, as profiles are keyed: ``user``, ``item`` or ``auxiliary``, and its id.

        Raises
        ------
        DataError
            If there is no such node.
        """
        for subject, (first, end) in self.bounds.items():
            if first <= node < end:
                return subject, node if subject == "user" else node - self.n_users
        raise DataError(f"{self.data.name} has no node {node}", f"nodes are 0 to {self.n_nodes - 1}")

    def node(self, subject: str, number: int) -> int:
        """Node of a user, item or auxiliary entity; the opposite of `subject`."""
        node = number if subject == "user" else self.n_users + number
        if self.subject(node) != (subject, number):
            raise DataError(f"{self.data.name} has no {subject} {number}")
        return node

    def search(self, text: str, most: int = 20) -> list[int]:
        """Nodes whose name contains every word of ``text``, whatever the case and the accents.

        Names that are the text come first, then those that begin with it, then those with a word that does, then the
        rest; shorter names before longer ones.
        """
        words, folded = fold(text).split(), self._folded
        if not words:
            return []
        found = [node for node, name in enumerate(folded) if all(word in name for word in words)]
        whole = " ".join(words)

        def order(node: int) -> tuple[bool, bool, bool, int, int]:
            name = folded[node]
            return name != whole, not name.startswith(whole), f" {whole}" not in f" {name}", len(name), node

        return sorted(found, key=order)[:most]

    def table(self, nodes: Sequence[int]) -> pd.DataFrame:
        """Nodes by name: node, kind, label."""
        chosen = np.asarray(nodes, dtype=int)
        labels = [self.labels[node] for node in chosen]
        return pd.DataFrame({"node": chosen, "kind": self.kinds.to_numpy()[chosen], "label": labels})


def fold(text: str) -> str:
    """Text for comparison: no case, no accents, single spaces."""
    parts = unicodedata.normalize("NFKD", text)
    return " ".join("".join(part for part in parts if not unicodedata.combining(part)).casefold().split())


def nearest(rows: np.ndarray, one: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the ``k`` rows that are nearest to one of them by cosine, the nearest first, and the cosines."""
    cosines = rows @ rows[one] / np.maximum(np.linalg.norm(rows, axis=1) * np.linalg.norm(rows[one]), 1e-12)
    cosines[one] = -np.inf
    best = np.argsort(-cosines, kind="stable")[: min(k, len(rows) - 1)]
    return best, cosines[best]


def named_triples(data: Dataset, n: int = 10, seed: int = 0) -> pd.DataFrame:
    """Random triples with names: head, relation, tail, and the sentence they make."""
    size = min(n, len(data.triples))
    rows = data.triples.iloc[numpy_generator(seed, "triples").choice(len(data.triples), size, replace=False)]
    labels = data.entities["label"].to_numpy()
    heads, tails = labels[rows["head"]], labels[rows["tail"]]
    relations = data.relations.iloc[rows["relation"]]
    sentences = [fill(*parts) for parts in zip(relations["template"], heads, tails, strict=True)]
    return pd.DataFrame(
        {"head": heads, "relation": relations["label"].to_numpy(), "tail": tails, "sentence": sentences}
    )


def funnel_table(data: Dataset) -> pd.DataFrame:
    """Funnel of the build, a row for each step; what a step did not count is left blank.

    Returns
    -------
    DataFrame
        step, `COUNTS` as far as they were counted, and in words what else a step counted.
    """
    steps = pd.DataFrame(data.manifest.funnel, columns=["step", *COUNTS]).dropna(axis=1, how="all")
    others = [{name: n for name, n in step.items() if name not in steps} for step in data.manifest.funnel]
    also = [", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in counts.items()) for counts in others]
    return steps.convert_dtypes().astype(object).fillna("").assign(also=also)


def graph_statistics(data: Dataset) -> pd.DataFrame:
    """Facts about the knowledge graph in one table (what, value): sizes, connected components, items without triples.

    Components are those of the graph without directions; an entity without a triple is a component of its own.
    """
    ends, n_items, n_entities = data.triples[["head", "tail"]].to_numpy(), len(data.items), len(data.entities)
    links = sparse.coo_array((np.ones(len(ends)), ends.T), shape=(n_entities, n_entities))
    sizes = np.bincount(csgraph.connected_components(links, directed=False)[1])
    degree = np.bincount(ends.ravel(), minlength=n_entities)
    rows = {
        "entities, items among them": n_entities,
        "items": n_items,
        "relations": len(data.relations),
        "triples": len(ends),
        "triples per item (median)": float(np.median(degree[:n_items])),
        "items without a triple": int((degree[:n_items] == 0).sum()),
        "other entities without a triple": int((degree[n_items:] == 0).sum()),
        "connected components": len(sizes),
        "entities in the largest component": int(sizes.max()),
    }
    return pd.DataFrame({"what": list(rows), "value": pd.Series(list(rows.values()), dtype=object)})


def relation_statistics(data: Dataset) -> pd.DataFrame:
    """One row per relation: its name, sentence, triples, and how many different heads and tails it has."""
    groups = data.triples.groupby("relation")
    counts = groups.agg(triples=("head", "size"), heads=("head", "nunique"), tails=("tail", "nunique"))
    named = data.relations.set_index("relation")[["label", "template"]].rename(columns={"label": "name"})
    return named.join(counts.reindex(named.index, fill_value=0)).sort_values("triples", ascending=False)


def profile_of(data: Dataset, subject: str, number: int, name: str = "template") -> str:
    """Profile text of an ``item``, an ``auxiliary`` entity or a ``user`` in a profile set, or why that leaves it out.

    Raises
    ------
    DataError
        If there is no such subject.
    """
    text = texts_by_subject(data.profiles(name)).get((subject, number)) or absence(data, name, subject, number)
    if not text:
        raise DataError(f"{data.name} has no {subject} {number}")
    return text


def origin(data: Dataset, profiles: str) -> str:
    """Who wrote the profiles of a set, as HTML; empty where it does not say."""
    told = " ".join(told_of(data, profiles)[:1])
    return f"<small>{html_text(told)}</small>" if told else ""


def absence(data: Dataset, name: str, subject: str, number: int) -> str:
    """Why a profile set has no text of a subject by declaration; empty if it does not say so."""
    for absent in data.left_out(name):
        if absent["subject"] == subject and number in (absent.get("ids") or data.expected_ids(subject)):
            return f"left out: {absent['reason']}"
    return ""


def neighbours(data: Dataset, vectors: Tensor, entity: int, k: int = 5) -> pd.DataFrame:
    """Entities nearest to one of them by cosine of ``vectors [E, d]``: label, kind, cosine."""
    best, cosines = nearest(vectors.detach().cpu().numpy(), entity, k)
    return data.entities.iloc[best][["label", "kind"]].reset_index(drop=True).assign(cosine=cosines)


def train_history(data: Dataset, user: int) -> list[str]:
    """Names of a user's train items."""
    own = data.split("train")
    return data.items["label"].to_numpy()[own.loc[own["user"] == user, "item"]].tolist()
