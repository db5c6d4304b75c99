"""Synthetic input for training of any size, in memory: a graph with skewed degrees, and profile vectors.

The degrees fall as a power of the rank, as in real data: few users and items have most interactions, and some tails
(genres, say) have very many heads. A tail is reached by one relation mostly. Counts are exact, nothing occurs twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from spike_kit.base.errors import ConfigError
from spike_kit.base.seeds import numpy_generator
from spike_kit.data.graph import Graph
from spike_kit.data.vectors import ProfileVectors

SMALLEST = 1000
"""Fewest nodes of a synthetic graph; with fewer, so many distinct edges do not exist."""

_USER_SKEW, _ITEM_SKEW, _HEAD_SKEW, _TAIL_SKEW, _RELATION_SKEW = 1.5, 1.8, 1.3, 3.0, 2.0
_ITEM_HEADS = 0.7
_UNUSUAL = 0.1
_ROWS = 16_384


@dataclass(frozen=True)
class SyntheticSize:
    """Counts of a synthetic data set: distinct triples without inverses, relations R without inverses.

    Items are the first of the entities; the vectors have the dimension of the kit's default encoder.
    """

    name: str
    users: int
    items: int
    entities: int
    relations: int
    triples: int
    interactions: int
    text_dim: int = 384

    @property
    def nodes(self) -> int:
        """Users and entities, U + E."""
        return self.users + self.entities

    def scaled(self, nodes: int) -> SyntheticSize:
        """Size with so many nodes: same proportions, degrees per node, and relations.

        Raises
        ------
        ConfigError
            If there are fewer than `SMALLEST` nodes.
        """
        if nodes < SMALLEST:
            raise ConfigError(f"a synthetic graph of {nodes} nodes, expected at least {SMALLEST}", "fewer tell nothing")
        share = nodes / self.nodes
        counts = {name: round(share * getattr(self, name)) for name in ("users", "items", "triples", "interactions")}
        return replace(self, name=str(nodes), entities=nodes - counts["users"], **counts)


AMAZON_BOOK = SyntheticSize("amazon-book", 70_000, 25_000, 113_000, 39, 2_500_000, 850_000)
"""About the amazon-book data set of KGAT (KDD 2019)."""


def parse_sizes(text: str) -> list[SyntheticSize]:
    """Read ``amazon-book``, a number of nodes, or several of these with commas between.

    Raises
    ------
    ConfigError
        If a part is neither, or too small.
    """
    sizes = []
    for name in map(str.strip, text.split(",")):
        if name != AMAZON_BOOK.name and not name.removeprefix("-").isdecimal():
            raise ConfigError(
                f"no synthetic size {name!r}", f"give {AMAZON_BOOK.name}, a number of nodes, or several: 10000,50000"
            )
        sizes.append(AMAZON_BOOK if name == AMAZON_BOOK.name else AMAZON_BOOK.scaled(int(name)))
    return sizes


def synthetic_graph(size: SyntheticSize, seed: int = 0) -> Graph:
    """Draw a graph with exactly the counts of ``size``, on the CPU; equal seeds give equal graphs."""
    n_others = size.entities - size.items
    rng = numpy_generator(seed, "synthetic interactions")

    def interactions(n: int) -> np.ndarray:
        return _skewed(rng, n, size.users, _USER_SKEW) * size.items + _skewed(rng, n, size.items, _ITEM_SKEW)

    keys = _distinct(interactions, size.interactions, rng)
    rng = numpy_generator(seed, "synthetic triples")
    usual = _skewed(rng, n_others, size.relations, _RELATION_SKEW)

    def triples(n: int) -> np.ndarray:
        head = _skewed(rng, n, size.items, _HEAD_SKEW)
        others = rng.random(n, dtype=np.float32) > _ITEM_HEADS
        head[others] = size.items + rng.integers(0, n_others, np.count_nonzero(others))
        tail = _skewed(rng, n, n_others, _TAIL_SKEW)
        relation = usual[tail]
        relation[rng.random(n, dtype=np.float32) < _UNUSUAL] += 1
        return (head * size.relations + relation % size.relations) * size.entities + size.items + tail

    edges, tail = np.divmod(_distinct(triples, size.triples, rng), size.entities)
    return Graph.from_arrays(
        n_users=size.users,
        n_items=size.items,
        n_entities=size.entities,
        n_relations=size.relations,
        interactions=np.stack(np.divmod(keys, size.items), axis=1),
        triples=np.stack([*np.divmod(edges, size.relations), tail], axis=1),
    )


def _skewed(rng: np.random.Generator, n: int, size: int, skew: float) -> np.ndarray:
    """Draw ``n`` of ``0..size-1``; small numbers are the frequent ones, the more so the larger the skew."""
    return (size * rng.random(n) ** skew).astype(np.int64)


def _distinct(draw: Callable[[int], np.ndarray], n: int, rng: np.random.Generator) -> np.ndarray:
    """Exactly ``n`` distinct keys, ascending; a surplus is dropped at random, so that the skew stays."""
    found = np.unique(draw(n))
    while len(found) < n:
        missing = n - len(found)
        found = np.union1d(found, draw(missing + missing // 4 + 16))
    return np.delete(found, rng.choice(len(found), len(found) - n, replace=False))


def synthetic_vectors(size: SyntheticSize, seed: int = 0) -> ProfileVectors:
    """Random unit vectors for every user and entity, float32; made in place, so that no second copy ever exists."""
    rng = numpy_generator(seed, "synthetic vectors")

    def unit_rows(n: int) -> torch.Tensor:
        rows = np.empty((n, size.text_dim), dtype=np.float32)
        for start in range(0, n, _ROWS):
            part = rows[start : start + _ROWS]
            rng.standard_normal(out=part, dtype=np.float32)
            part /= np.linalg.norm(part, axis=1, keepdims=True)
        return torch.from_numpy(rows)

    return ProfileVectors(unit_rows(size.users), unit_rows(size.entities))
