"""How large a graph SPiKE trains on which card, by the kit's own estimate of memory: the table of docs/training.md."""

import sys

import torch
from pydantic import Field

from benchmarks.common import Measured, Setup, main
from benchmarks.synthetic import AMAZON_BOOK, SMALLEST, SyntheticSize
from spike_kit.base.config import TrainingConfig
from spike_kit.data.graph import Graph
from spike_kit.models import find_preset
from spike_kit.models.base import TrainedConfig
from spike_kit.models.footprint import footprint

CARDS = {8: "RTX 4060", 24: "RTX 4090", 80: "A100, H100", 141: "H200"}
"""Memory of cards in GB, and cards that have so much."""

OWN = 10**9
"""Bytes of a card that are left to CUDA, its libraries and gaps between tensors."""

STEP = 100_000
"""Nodes by which sizes are told."""


class CapacitySetup(Setup):
    """What `bench_capacity` estimates."""

    cards: tuple[int, ...] = Field(default=tuple(CARDS), min_length=1)
    """Memory of the cards in GB (10^9 bytes)."""


def bench_capacity(setup: CapacitySetup) -> list[Measured]:
    """Estimate the largest graphs, with the proportions of amazon-book, that ``recommended`` trains on cards."""
    meanings = {
        "card": "memory of the card in GB",
        "for example": "cards that have so much",
        "nodes": "most users and entities, in millions",
        "edges": "edges between them, both directions of every triple, in millions",
        "interactions": "train interactions, in millions",
    }
    return [{name: (value, meanings[name]) for name, value in row.items()} for row in capacities(setup.cards)]


def capacities(cards: tuple[int, ...] = tuple(CARDS)) -> list[dict[str, str]]:
    """Cells of the table, a row for each card."""
    rows = []
    for card in cards:
        size = largest(card * 10**9 - OWN)
        sizes = {"nodes": size.nodes, "edges": 2 * size.triples, "interactions": size.interactions}
        millions = {name: f"{count / 1e6:.1f} M" for name, count in sizes.items()}
        rows.append({"card": f"{card} GB", "for example": CARDS.get(card, "")} | millions)
    return rows


def largest(memory: int) -> SyntheticSize:
    """Largest size, in steps of `STEP` nodes, whose training is estimated to take no more than ``memory`` bytes."""
    fits, too_large = 0, 1
    while needed(AMAZON_BOOK.scaled(too_large * STEP)) <= memory:
        fits, too_large = too_large, 2 * too_large
    while too_large - fits > 1:
        middle = (fits + too_large) // 2
        fits, too_large = (middle, too_large) if needed(AMAZON_BOOK.scaled(middle * STEP)) <= memory else (fits, middle)
    return AMAZON_BOOK.scaled(max(fits * STEP, SMALLEST))


def needed(size: SyntheticSize) -> int:
    """Bytes that training on a graph of a size takes, by `footprint`."""
    train, edges, items = (
        torch.empty(count, dtype=torch.int64, device="meta")
        for count in (size.interactions, 2 * size.triples, size.items)
    )
    counts = {f"n_{name}": getattr(size, name) for name in ("users", "items", "entities", "relations")}
    graph = Graph(train, train, edges, edges, edges, items, **counts)
    preset = find_preset("spike")
    assert isinstance(preset.model, TrainedConfig)
    assert isinstance(preset.training, TrainingConfig)
    return footprint(preset.model, graph, size.text_dim, preset.training.batch_size).total


if __name__ == "__main__":
    sys.exit(main(CapacitySetup, bench_capacity))
