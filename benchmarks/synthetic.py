"""Synthetic input for training of any size, in memory: a graph with skewed degrees, and profile vectors.

The degrees fall as a power of the rank, as in real data: few users and items have most interactions, and some tails
(genres, say) have very many heads. A tail is reached by one relation mostly. Counts are exact, nothing occurs twice.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from pydantic import Field

from spike_kit.base.config import Config
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


class SyntheticSize(Config):
    """Counts of a synthetic study."""

    name: str
    """What the size is called."""
    users: int = Field(ge=1)
    """Users U."""
    items: int = Field(ge=1)
    """Items I, which are also the first entities."""
    entities: int = Field(ge=1)
    """Entities E, the items included."""
    relations: int = Field(ge=1)
    """Relations R, without inverses."""
    triples: int = Field(ge=1)
    """Distinct triples, without inverses."""
    interactions: int = Field(ge=1)
    """Distinct train interactions."""
    text_dim: int = Field(default=384, ge=1)
    """Dimension d_t of the profile vectors (384: the kit's default encoder)."""

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
        users = round(share * self.users)
        return self.replace(
            name=str(nodes),
            users=users,
            items=round(share * self.items),
            entities=nodes - users,
            triples=round(share * self.triples),
            interactions=round(share * self.interactions),
        )


AMAZON_BOOK = SyntheticSize(
    name="amazon-book",
    users=70_000,
    items=25_000,
    entities=113_000,
    relations=39,
    triples=2_500_000,
    interactions=850_000,
)
"""About the amazon-book data set of KGAT (KDD 2019)."""


def parse_sizes(text: str) -> list[SyntheticSize]:
    """Read ``amazon-book``, a number of nodes, or several of these with commas between.

    Raises
    ------
    ConfigError
        If a part is neither, or too small.
    """
    sizes = []
    for part in text.split(","):
        name = part.strip()
        if name == AMAZON_BOOK.name:
            sizes.append(AMAZON_BOOK)
            continue
        try:
            nodes = int(name)
        except ValueError as error:
            raise ConfigError(
                f"no synthetic size {name!r}", f"give {AMAZON_BOOK.name}, a number of nodes, or several: 10000,50000"
            ) from error
        sizes.append(AMAZON_BOOK.scaled(nodes))
    return sizes


def synthetic_graph(size: SyntheticSize, seed: int = 0) -> Graph:
    """Draw a graph with exactly the counts of ``size``, on the CPU; equal seeds give equal graphs.

    Raises
    ------
    ConfigError
        If it has more than a fifth of all possible interactions or pairs of a head and a tail.
    """
    pairs, links = size.users * size.items, size.entities * (size.entities - size.items)
    if 5 * size.interactions > pairs or 5 * size.triples > links:
        raise ConfigError(
            f"{size.interactions} interactions of {pairs} possible ones, {size.triples} triples over {links} possible "
            "pairs of a head and a tail: too dense for a synthetic graph",
            "give at most a fifth of what is possible",
        )
    keys = _interactions(size, numpy_generator(seed, "synthetic interactions"))
    head, relation, tail = _edges(size, numpy_generator(seed, "synthetic triples"))
    return Graph(
        n_users=size.users,
        n_items=size.items,
        n_entities=size.entities,
        n_relations=size.relations,
        train_user=torch.from_numpy(keys // size.items),
        train_item=torch.from_numpy(keys % size.items),
        head=torch.from_numpy(head),
        relation=torch.from_numpy(relation),
        tail=torch.from_numpy(tail),
    )


def synthetic_vectors(size: SyntheticSize, seed: int = 0) -> ProfileVectors:
    """Random unit vectors for every user and entity, float32; made in place, so that no second copy ever exists."""
    rng = numpy_generator(seed, "synthetic vectors")
    return ProfileVectors(_unit_rows(rng, size.users, size.text_dim), _unit_rows(rng, size.entities, size.text_dim))


def _interactions(size: SyntheticSize, rng: np.random.Generator) -> np.ndarray:
    """Keys ``user * I + item``, ascending."""

    def draw(n: int) -> np.ndarray:
        return _skewed(rng, n, size.users, _USER_SKEW) * size.items + _skewed(rng, n, size.items, _ITEM_SKEW)

    return _distinct(draw, size.interactions, rng)


def _edges(size: SyntheticSize, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Heads, relations and tails with inverses, sorted like those of `Graph`."""
    n_others = size.entities - size.items
    usual = _skewed(rng, n_others, size.relations, _RELATION_SKEW)

    def draw(n: int) -> np.ndarray:
        head = _skewed(rng, n, size.items, _HEAD_SKEW)
        others = rng.random(n, dtype=np.float32) > _ITEM_HEADS
        head[others] = size.items + rng.integers(0, n_others, np.count_nonzero(others))
        tail = _skewed(rng, n, n_others, _TAIL_SKEW)
        relation = usual[tail]
        relation[rng.random(n, dtype=np.float32) < _UNUSUAL] += 1
        return (head * size.relations + relation % size.relations) * size.entities + size.items + tail

    keys = _distinct(draw, size.triples, rng)
    keys, tail = np.divmod(keys, size.entities)
    head, relation = np.divmod(keys, size.relations)
    n_types = 2 * size.relations
    forward = (head * n_types + relation) * size.entities + tail
    inverse = (tail * n_types + relation + size.relations) * size.entities + head
    edges = np.concatenate([forward, inverse])
    edges.sort()
    edges, tail = np.divmod(edges, size.entities)
    head, relation = np.divmod(edges, n_types)
    return head, relation, tail


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


def _unit_rows(rng: np.random.Generator, n: int, dim: int) -> torch.Tensor:
    rows = np.empty((n, dim), dtype=np.float32)
    for start in range(0, n, _ROWS):
        part = rows[start : start + _ROWS]
        rng.standard_normal(out=part, dtype=np.float32)
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return torch.from_numpy(rows)
