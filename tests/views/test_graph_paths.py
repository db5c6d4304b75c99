from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from spike_kit.base.errors import ConfigError
from spike_kit.base.seeds import numpy_generator
from spike_kit.views.graph_paths import PathFinder

N_NODES = 8


@pytest.fixture
def edges() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = numpy_generator(0, "paths")
    source, target = (rng.integers(0, N_NODES, 40) for _ in range(2))
    return source, target, rng.uniform(0.01, 1, 40)


def all_paths(edges: tuple[np.ndarray, np.ndarray, np.ndarray], longest: int) -> dict[tuple[int, ...], float]:
    """Every path from 0 to 1 by trying all sequences of nodes."""
    best: dict[tuple[int, int], float] = {}
    for source, target, weight in zip(*(column.tolist() for column in edges), strict=True):
        best[source, target] = max(best.get((source, target), 0.0), weight)
    found = {}
    for n in range(longest):
        for middle in itertools.permutations(range(2, N_NODES), n):
            path = (0, *middle, 1)
            if all(pair in best for pair in itertools.pairwise(path)):
                found[path] = math.prod(best[pair] for pair in itertools.pairwise(path))
    return found


@pytest.mark.parametrize("longest", [1, 2, 3, 5])
def test_paths_are_those_of_trying_everything(edges: tuple[np.ndarray, np.ndarray, np.ndarray], longest: int) -> None:
    finder = PathFinder(*edges, N_NODES)
    expected = all_paths(edges, longest)
    strongest = [tuple(path) for path in finder.find(0, 1, 1000, longest=longest)]
    assert strongest == sorted(expected, key=lambda path: -expected[path])
    shortest = [tuple(path) for path in finder.find(0, 1, 1000, longest=longest, strongest=False)]
    assert shortest == sorted(expected, key=lambda path: (len(path), -expected[path]))
    assert finder.find(0, 1, 2, longest=longest) == [list(path) for path in strongest[:2]]


def test_closed_nodes_are_not_entered(edges: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    closed = np.arange(N_NODES) < 4
    closed[[0, 1]] = False
    found = PathFinder(*edges, N_NODES).find(0, 1, 1000, closed=closed)
    assert found
    assert not any({2, 3} & set(path) for path in found)


def test_the_strongest_of_several_edges_counts() -> None:
    finder = PathFinder(np.array([0, 0, 0]), np.array([1, 1, 2]), np.array([0.1, 0.9, 0.5]), 3)
    assert finder.edge(0, 1) == 1
    assert finder.edge(0, 2) == 2


def test_no_edges_no_paths() -> None:
    nothing = np.array([], dtype=int)
    assert PathFinder(nothing, nothing, np.array([]), 3).find(0, 1, 5) == []


@pytest.mark.parametrize(("k", "longest"), [(0, 4), (1, 0)])
def test_numbers_are_checked(k: int, longest: int) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        PathFinder(np.array([0]), np.array([1]), np.array([1.0]), 2).find(0, 1, k, longest=longest)
