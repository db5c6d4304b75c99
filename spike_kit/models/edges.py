"""Edges of the knowledge graph that carry a relation: sampling them, attending over them, sending messages.

An edge (head, relation, tail) sends ``e_t * r`` and is scored with ``(W e_t) * r``. Many edges share their relation and
tail, so these products are formed once per distinct (relation, tail) pair; scores and messages are then products of a
sparse matrix, heads by pairs, and no ``[edges, d]`` tensor is made (but on the meta device, which computes nothing).
Where even the pairs are many, they pass in blocks, and the backward pass forms them again.

Inside, rows stand as ``[M * n, d / M]``, one attention head after the other, and patterns are repeated M times along
the diagonal, so that one product serves all heads.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor

from spike_kit.base.devices import chunks
from spike_kit.data.graph import Graph
from spike_kit.models.sparse import (
    SparsePattern,
    positions,
    product,
    sampled_product,
    segment_softmax,
    transposed_product,
)


def pairs_per_block(n_entities: int, dim: int, budget: int, device: torch.device) -> int:
    """Pairs that pass at once: at least half as many as entities, since every block adds to rows of all of them."""
    return max(1, n_entities // 2, min(budget, chunks(device).pair_bytes) // (4 * dim))


def keeps_rows(n_edges: int, dim: int, budget: int) -> bool:
    """Whether the rows of all pairs are small enough to be kept for the backward pass."""
    return n_edges * 4 * dim <= budget // 16


@dataclass(frozen=True)
class EdgeBlock:
    """Edges whose (relation, tail) pairs lie in one range of the p pairs of this block.

    Attributes
    ----------
    places
        Position of every edge in the graph's order, ``[k]``.
    pattern
        One entry per edge: its head by its pair, ``[E, p]``.
    relation, tail
        Where the rows of every pair stand in tables ``[M * 2R]`` and ``[M * E]``, ``[M * p]``.
    by_relation, by_tail
        One entry per pair and attention head: its relation ``[M * 2R, M * p]``, its tail ``[M * E, M * p]``.
    """

    places: Tensor
    pattern: SparsePattern
    relation: Tensor
    tail: Tensor
    by_relation: SparsePattern
    by_tail: SparsePattern

    def kept(self, mask: Tensor, size: int | None = None) -> Self:
        """Only the edges where ``mask [2 m]`` is true, of which ``size`` are here, if that is known; all pairs stay."""
        here = mask.index_select(0, self.places)
        places = self.places.index_select(0, positions(here, size))
        return replace(self, places=places, pattern=self.pattern.subset(here, places.shape[0]))


@dataclass(frozen=True)
class RelationalEdges:
    """All edges of a graph, or those of one training step, as blocks.

    Attributes
    ----------
    blocks
        Their edges, one block after the other, are the edges in the order that scores and weights have.
    n_entities
        Number of entities, E.
    n_heads
        Attention heads, M.
    keeps_rows
        Whether the rows of all pairs are small enough to be kept for the backward pass.
    silent
        Edges that count as if they were not here, ``[k]`` bool; none: there are none. Unlike edges that are left out,
        nobody need know how many they are.
    """

    blocks: tuple[EdgeBlock, ...]
    n_entities: int
    n_heads: int
    keeps_rows: bool
    silent: Tensor | None = None

    @classmethod
    def of(cls, graph: Graph, dim: int, n_heads: int, budget: int) -> Self:
        """Sort the edges of a graph into blocks.

        Parameters
        ----------
        graph
            The graph.
        dim, n_heads
            Dimension d of the rows and attention heads M.
        budget
            Largest table of pairs ``[p, d]`` in bytes; where one would be larger, the pairs pass in blocks.
        """
        n_entities = graph.n_entities
        keys, pair = _distinct(graph.relation * n_entities + graph.tail)
        per_block = pairs_per_block(n_entities, dim, budget, graph.device)
        keeps = keeps_rows(graph.n_edges, dim, budget)
        if graph.n_edges <= per_block:
            places = torch.arange(graph.n_edges, device=graph.device)
            return cls((_block(graph, places, pair, keys, n_heads),), n_entities, n_heads, keeps)
        blocks = []
        for first in range(0, keys.shape[0], per_block):
            places = (pair // per_block == first // per_block).nonzero().flatten()
            own = keys[first : first + per_block]
            blocks.append(_block(graph, places, pair.index_select(0, places) - first, own, n_heads))
        return cls(tuple(blocks), n_entities, n_heads, keeps)

    @cached_property
    def heads(self) -> Tensor:
        """Head of every edge, ``[k]``."""
        return _joined([block.pattern.rows for block in self.blocks])

    @property
    def places(self) -> Tensor:
        """Position of every edge in the graph's order, ``[k]``."""
        return _joined([block.places for block in self.blocks])

    @cached_property
    def patterns(self) -> list[SparsePattern]:
        """Pattern of every block for all attention heads, ``[M * E, M * p]`` with ``M * k`` entries."""
        return [block.pattern.repeated(self.n_heads) for block in self.blocks]

    @cached_property
    def segments(self) -> Tensor:
        """Row in ``[M * E]`` of every entry of the patterns, whose scores form one softmax."""
        return _joined([pattern.rows for pattern in self.patterns])

    @cached_property
    def degree(self) -> Tensor:
        """Edges of every head entity, ``[E]``."""
        if self.silent is not None:
            return self.heads.new_zeros(self.n_entities).index_add(0, self.heads, (~self.silent).long())
        return torch.stack([block.pattern.row_degree for block in self.blocks]).sum(0)

    @cached_property
    def silent_parts(self) -> list[Tensor]:
        """Silent entries of every pattern, ``[M * k]`` bool; of none where no edge is silent."""
        if self.silent is None:
            return []
        sizes = [block.places.shape[0] for block in self.blocks]
        return [part.repeat(self.n_heads) for part in self.silent.split(sizes)]

    def kept(self, mask: Tensor, size: int, silent: Tensor | None = None) -> Self:
        """Only the ``size`` edges where ``mask [2 m]``, in the graph's order, is true; ``silent [2 m]`` are silent."""
        known = size if len(self.blocks) == 1 else None
        part = replace(self, blocks=tuple(block.kept(mask, known) for block in self.blocks))
        return part if silent is None else replace(part, silent=silent.index_select(0, part.places))

    def softmax(self, scores: Tensor) -> Tensor:
        """Softmax of the scores of all entries over those of a head entity and attention head; 0 for silent edges."""
        n_segments = self.n_heads * self.n_entities
        if self.silent is None:
            return segment_softmax(scores, self.segments, n_segments)
        silent = _joined(self.silent_parts)
        weights = segment_softmax(scores.masked_fill(silent, -torch.inf), self.segments, n_segments)
        return weights.masked_fill(silent, 0.0)

    def split(self, x: Tensor) -> list[Tensor]:
        """Cut scores or weights of all entries into those of each block."""
        return list(x.split([pattern.rows.shape[0] for pattern in self.patterns])) if len(self.blocks) > 1 else [x]

    def scores(self, keyed: Tensor, relations: Tensor) -> Tensor:
        """Attention score of every edge and attention head (docs/method.md, section 3), outside autograd.

        Parameters
        ----------
        keyed
            ``W e`` of all entities, ``[E, d]``.
        relations
            Relation embeddings ``[2R, d]``.

        Returns
        -------
        Tensor
            ``[M, k]``.
        """
        keyed, relations = self.by_head(keyed), self.by_head(relations)
        parts = []
        for block, pattern in zip(self.blocks, self.patterns, strict=True):
            keys = keyed.index_select(0, block.tail).mul_(relations.index_select(0, block.relation))
            parts.append(sampled_product(pattern, keyed, keys).view(self.n_heads, -1))
        scores = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        return scores / math.sqrt(keyed.shape[1])

    def by_head(self, x: Tensor) -> Tensor:
        """Rows ``[n, d]`` as ``[M * n, d / M]``."""
        n_rows = x.shape[0]
        return x.reshape(n_rows, self.n_heads, -1).transpose(0, 1).reshape(self.n_heads * n_rows, -1)

    def side_by_side(self, x: Tensor) -> Tensor:
        """Rows ``[M * n, d / M]`` as ``[n, d]``."""
        n_rows = x.shape[0] // self.n_heads
        return x.view(self.n_heads, n_rows, -1).transpose(0, 1).reshape(n_rows, -1)

    def attend(self, entities: Tensor, keyed: Tensor, relations: Tensor) -> Tensor:
        """Attention-weighted sum of ``e_t * r`` over the edges of each head entity.

        Parameters
        ----------
        entities
            Rows e of all entities, ``[E, d]``.
        keyed
            ``W e``, ``[E, d]``.
        relations
            Relation embeddings ``[2R, d]``.

        Returns
        -------
        Tensor
            ``[E, d]``; zero where an entity has no edge.
        """
        return _Attend.apply(self, entities, keyed, relations)  # type: ignore[no-any-return]

    def average(self, entities: Tensor, relations: Tensor) -> Tensor:
        """Mean of ``e_t * r`` over the edges of each head entity, ``[E, d]``."""
        return _Average.apply(self, entities, relations)  # type: ignore[no-any-return]


def _distinct(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct keys, ascending, and the place of every key among them (``torch.unique``, on every device)."""
    ordered, order = keys.sort()
    is_new = torch.cat([torch.ones_like(ordered[:1], dtype=torch.bool), ordered[1:] != ordered[:-1]])
    place = torch.empty_like(keys).index_copy(0, order, is_new.cumsum(0) - 1)
    return ordered.index_select(0, is_new.nonzero().flatten()), place


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _block(graph: Graph, places: Tensor, pair: Tensor, keys: Tensor, n_heads: int) -> EdgeBlock:
    n_entities, n_relations, n_pairs = graph.n_entities, 2 * graph.n_relations, keys.shape[0]
    relation, tail = keys // n_entities, keys % n_entities
    by_head = torch.argsort(graph.head.index_select(0, places) * n_pairs + pair, stable=True)
    places, pair = places.index_select(0, by_head), pair.index_select(0, by_head)
    numbers = torch.arange(n_pairs, device=graph.device)
    tail_order = torch.argsort(tail, stable=True)
    by_tail = SparsePattern(tail.index_select(0, tail_order), tail_order, n_entities, n_pairs)
    return EdgeBlock(
        places=places,
        pattern=SparsePattern(graph.head.index_select(0, places), pair, n_entities, n_pairs),
        relation=torch.cat([relation + m * n_relations for m in range(n_heads)]),
        tail=torch.cat([tail + m * n_entities for m in range(n_heads)]),
        by_relation=SparsePattern(relation, numbers, n_relations, n_pairs).repeated(n_heads),
        by_tail=by_tail.repeated(n_heads),
    )


@dataclass(frozen=True)
class _Rows:
    """Rows of the pairs of a block, ``[M * p, d / M]``: relations, tails, and their product."""

    relations: Tensor
    tails: Tensor
    products: Tensor

    @classmethod
    def of(cls, block: EdgeBlock, table: Tensor, relations: Tensor, gathered: Tensor | None = None) -> Self:
        """Gather from tables ``[M * E, d / M]`` and ``[M * 2R, d / M]``, of relations only where not done already."""
        of_relations = relations.index_select(0, block.relation) if gathered is None else gathered
        tails = table.index_select(0, block.tail)
        return cls(of_relations, tails, tails * of_relations)

    def add_gradients(self, block: EdgeBlock, to_products: Tensor, to_table: Tensor, to_relations: Tensor) -> None:
        """Add what a gradient of the products means for the two tables."""
        to_relations += product(block.by_relation, None, to_products * self.tails)
        to_table += product(block.by_tail, None, to_products.mul_(self.relations))


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, edges: RelationalEdges, entities: Tensor, keyed: Tensor, relations: Tensor) -> Tensor:
        tables = [edges.by_head(x) for x in (entities, keyed, relations)]
        rows, scores = [], []
        for block, pattern in zip(edges.blocks, edges.patterns, strict=True):
            keys = _Rows.of(block, tables[1], tables[2])
            scores.append(sampled_product(pattern, tables[1], keys.products))
            if edges.keeps_rows:
                rows.append((_Rows.of(block, tables[0], tables[2], keys.relations), keys))
            del keys
        weights = _joined(scores).mul_(1 / math.sqrt(tables[0].shape[1]))
        weights = edges.softmax(weights)
        message = torch.zeros_like(tables[0])
        for number, (block, pattern, part) in enumerate(_blocks(edges, weights)):
            values = rows[number][0] if rows else _Rows.of(block, tables[0], tables[2])
            message += product(pattern, part, values.products)
        ctx.edges, ctx.rows = edges, rows
        ctx.save_for_backward(weights, *tables)
        return edges.side_by_side(message)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, Tensor, Tensor]:
        weights, *tables = ctx.saved_tensors
        edges: RelationalEdges = ctx.edges
        gradient = edges.by_head(gradients[0])
        to_entities, to_keyed, to_relations = (torch.zeros_like(table) for table in tables)
        parts = []
        for number, (block, pattern, part) in enumerate(_blocks(edges, weights)):
            values = ctx.rows[number][0] if ctx.rows else _Rows.of(block, tables[0], tables[2])
            parts.append(sampled_product(pattern, gradient, values.products))
            to_values = transposed_product(pattern, part, gradient)
            values.add_gradients(block, to_values, to_entities, to_relations)
            del values, to_values
        to_scores = _softmax_backward(weights, _joined(parts), edges.segments, gradient.shape[0])
        to_scores *= 1 / math.sqrt(gradient.shape[1])
        for number, (block, pattern, part) in enumerate(_blocks(edges, to_scores)):
            keys = ctx.rows[number][1] if ctx.rows else _Rows.of(block, tables[1], tables[2])
            to_keyed += product(pattern, part, keys.products)
            to_keys = transposed_product(pattern, part, tables[1])
            keys.add_gradients(block, to_keys, to_keyed, to_relations)
            del keys, to_keys
        to_entities, to_keyed, to_relations = map(edges.side_by_side, (to_entities, to_keyed, to_relations))
        return None, to_entities, to_keyed, to_relations


def _blocks(edges: RelationalEdges, x: Tensor) -> Iterator[tuple[EdgeBlock, SparsePattern, Tensor]]:
    """Blocks with their patterns and their part of the scores or weights."""
    return zip(edges.blocks, edges.patterns, edges.split(x), strict=True)


def _softmax_backward(weights: Tensor, to_weights: Tensor, segments: Tensor, n_segments: int) -> Tensor:
    """Gradient of a segment softmax with respect to the scores."""
    weighted = to_weights.mul_(weights)
    total = weights.new_zeros(n_segments).index_add(0, segments, weighted)
    return torch.addcmul(weighted, weights, total.index_select(0, segments), value=-1)


class _Average(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, edges: RelationalEdges, entities: Tensor, relations: Tensor) -> Tensor:
        weight = edges.degree.clamp_min(1).to(entities.dtype).reciprocal().unsqueeze(1)
        tables = edges.by_head(entities), edges.by_head(relations)
        message = torch.zeros_like(tables[0])
        parts = [(~silent).to(entities.dtype) for silent in edges.silent_parts]
        ctx.parts = parts or [None] * len(edges.blocks)
        for block, pattern, part in zip(edges.blocks, edges.patterns, ctx.parts, strict=True):
            message += product(pattern, part, _Rows.of(block, *tables).products)
        ctx.edges = edges
        ctx.save_for_backward(weight, *tables)
        return edges.side_by_side(message).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, Tensor]:
        weight, *tables = ctx.saved_tensors
        edges: RelationalEdges = ctx.edges
        gradient = edges.by_head(gradients[0] * weight)
        to_entities, to_relations = (torch.zeros_like(table) for table in tables)
        for block, pattern, part in zip(edges.blocks, edges.patterns, ctx.parts, strict=True):
            to_products = transposed_product(pattern, part, gradient)
            _Rows.of(block, *tables).add_gradients(block, to_products, to_entities, to_relations)
        return None, edges.side_by_side(to_entities), edges.side_by_side(to_relations)
