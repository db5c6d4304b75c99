"""Paths in a weighted graph: the strongest or the shortest, up to a number of edges."""

from __future__ import annotations

import heapq
from itertools import count

import numpy as np

from spike_kit.base.errors import ConfigError

LEAST_WEIGHT = 1e-12
"""Weights below count as this much, so that every edge has a finite cost."""

_TRIED = 50_000
"""Beginnings of paths that one search looks at, at most."""


class PathFinder:
    """Searches a directed graph; of several edges from one node to another the strongest counts.

    Parameters
    ----------
    source, target
        Where the edges begin and end, ``[m]``.
    weight
        Their weights, at most 1, ``[m]``.
    n_nodes
        Number of nodes.

    Attributes
    ----------
    chosen
        Place in the arrays of every edge that counts, sorted by source, then target.
    """

    def __init__(self, source: np.ndarray, target: np.ndarray, weight: np.ndarray, n_nodes: int) -> None:
        order = np.lexsort([-weight, target, source])
        first = np.ones(len(order), dtype=bool)
        first[1:] = (np.diff(source[order]) != 0) | (np.diff(target[order]) != 0)
        self.chosen = order[first]
        self.source, self.target = source[self.chosen], target[self.chosen]
        self.cost = -np.log(np.maximum(weight[self.chosen], LEAST_WEIGHT))
        self.n_nodes = n_nodes
        self.starts = np.searchsorted(self.source, np.arange(n_nodes + 1))

    def edge(self, source: int, target: int) -> int:
        """Place in the arrays of the edge that leads from one node to another (which must be there)."""
        begin, end = self.starts[source : source + 2]
        return int(self.chosen[begin + np.searchsorted(self.target[begin:end], target)])

    def find(
        self,
        start: int,
        end: int,
        k: int,
        *,
        longest: int = 4,
        strongest: bool = True,
        closed: np.ndarray | None = None,
    ) -> list[list[int]]:
        """Paths that visit no node twice, the best first.

        Parameters
        ----------
        start, end
            Nodes.
        k
            Most paths.
        longest
            Most edges of a path.
        strongest
            By the product of the weights, the largest first; otherwise by the number of edges, and of equally many
            by that product.
        closed
            Nodes that no path may enter, ``[n_nodes]`` bool.

        Raises
        ------
        ConfigError
            If ``k`` or ``longest`` is not positive.
        """
        if k < 1 or longest < 1:
            raise ConfigError(f"k and longest must be at least 1, not {k} and {longest}")
        per_edge = 0.0 if strongest else -(longest + 1) * np.log(LEAST_WEIGHT)
        cost = self.cost + per_edge
        if closed is not None:
            cost = np.where(closed[self.target], np.inf, cost)
        rest = self._least(end, cost, longest)
        order = count()
        open_paths = [(float(rest[longest][start]), next(order), 0.0, [start])]
        found: list[list[int]] = []
        for _ in range(_TRIED):
            if not open_paths or len(found) == k or open_paths[0][0] == np.inf:
                break
            _, _, spent, path = heapq.heappop(open_paths)
            if path[-1] == end and len(path) > 1:
                found.append(path)
                continue
            here = slice(*self.starts[path[-1] : path[-1] + 2])
            left = longest - len(path)
            total = spent + cost[here]
            bound = total + rest[left][self.target[here]]
            for place in np.flatnonzero(np.isfinite(bound)):
                node = int(self.target[here][place])
                if node not in path:
                    entry = (float(bound[place]), next(order), float(total[place]), [*path, node])
                    heapq.heappush(open_paths, entry)
        return found

    def _least(self, end: int, cost: np.ndarray, longest: int) -> list[np.ndarray]:
        """Least cost from every node to the end with at most 0, 1, ..., ``longest`` edges, each ``[n_nodes]``."""
        least = np.full(self.n_nodes, np.inf)
        least[end] = 0.0
        rounds = [least]
        has_edges = np.flatnonzero(np.diff(self.starts))
        for _ in range(longest):
            following = rounds[-1].copy()
            if len(has_edges):
                through = np.minimum.reduceat(cost + rounds[-1][self.target], self.starts[has_edges])
                following[has_edges] = np.minimum(following[has_edges], through)
            rounds.append(following)
        return rounds
