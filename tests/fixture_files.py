"""Parity fixtures: numbers of reference implementations, read from ``SPIKE_KIT_FIXTURES`` or tests/fixtures."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spike_kit.data.graph import Graph
from spike_kit.models.base import Batch

TOLERANCE = 2e-5
"""Largest difference allowed, relative to the largest absolute value of the array."""


class Fixture:
    """One fixture file; arrays by name, hyper-parameters read as written."""

    def __init__(self, name: str) -> None:
        folder = Path(os.environ.get("SPIKE_KIT_FIXTURES", Path(__file__).parent / "fixtures"))
        with np.load(folder / f"{name}.npz", allow_pickle=False) as file:
            self.arrays = {key: file[key] for key in file.files}

    def tensor(self, key: str) -> torch.Tensor:
        return torch.from_numpy(self.arrays[key])

    def integer(self, key: str) -> int:
        return int(self.arrays[key])

    def real(self, key: str) -> float:
        """Float hyper-parameter; going through its text undoes the rounding to float32."""
        return float(str(self.arrays[key]))


def assert_close(found: torch.Tensor, expected: np.ndarray, name: str) -> None:
    """Compare an array with the reference, relative to the reference's largest absolute value."""
    target = torch.from_numpy(np.asarray(expected))
    assert found.shape == target.shape, f"{name}: shape {list(found.shape)}, expected {list(target.shape)}"
    difference = float((found.detach() - target).abs().max())
    scale = float(target.abs().max())
    assert difference <= TOLERANCE * scale, f"{name}: off by {difference:.3g}, allowed {TOLERANCE * scale:.3g}"


def positions(columns: tuple[torch.Tensor, ...], rows: np.ndarray) -> torch.Tensor:
    """Where the rows stand in a table given by its columns."""
    known = {key: place for place, key in enumerate(zip(*(column.tolist() for column in columns), strict=True))}
    return torch.tensor([known[tuple(row)] for row in rows.tolist()])


def settings(fixture: Fixture, **names: str) -> dict[str, Any]:
    """Settings by their names in the file; ``dim`` is called the same in every file."""
    return {field: fixture.real(f"hp.{name}") for field, name in {"dim": "embedding_size", **names}.items()}


def batch_of(fixture: Fixture) -> Batch:
    """The batch of a file."""
    return Batch(fixture.tensor("batch.users"), fixture.tensor("batch.pos"), fixture.tensor("batch.neg"))


def graph_of(fixture: Fixture) -> Graph:
    """Interactions and knowledge graph of a file that has one."""
    return Graph.from_arrays(
        n_users=fixture.integer("input.n_users"),
        n_items=fixture.integer("input.n_items"),
        n_entities=fixture.integer("input.n_entities"),
        n_relations=fixture.integer("input.n_relations"),
        interactions=fixture.arrays["input.train"],
        triples=fixture.arrays["input.kg"],
    )
