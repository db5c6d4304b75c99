"""Edges of the knowledge graph that carry a relation: sampling them, attending over them, sending messages.

An edge (head, relation, tail) sends ``e_t * r`` and is scored with ``(W e_t) * r``. Many edges share their relation and
tail, so these products are formed once per distinct (relation, tail) pair; scores and messages are then products of a
sparse matrix, heads by pairs, and no ``[edges, d]`` tensor is ever made. Where even the pairs are many, they pass in
blocks, and the backward pass forms them again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from spike_kit.data.graph import Graph
from spike_kit.models.layers import check_generator
from spike_kit.models.propagation import (
    SparsePattern,
    count,
    product,
    sampled_product,
    segment_softmax,
    transposed_product,
)


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
        Relation and tail of every pair, ``[p]``, sorted.
    by_relation, by_tail
        One entry per pair: its relation ``[2R, p]``, its tail ``[E, p]``.
    """

    places: Tensor
    pattern: SparsePattern
    relation: Tensor
    tail: Tensor
    by_relation: SparsePattern
    by_tail: SparsePattern

    def rows(self, entities: Tensor, relations: Tensor) -> Tensor:
        """``e_t * r`` of every pair, ``[p, d]``."""
        return entities.index_select(0, self.tail).mul_(relations.index_select(0, self.relation))

    def add_gradients(
        self, to_rows: Tensor, entities: Tensor, relations: Tensor, to_entities: Tensor, to_relations: Tensor
    ) -> None:
        """Add what a gradient of `rows` means for entities ``[E, d]`` and relations ``[2R, d]``."""
        to_relations += product(self.by_relation, None, to_rows * entities.index_select(0, self.tail))
        to_entities += product(self.by_tail, None, to_rows.mul_(relations.index_select(0, self.relation)))

    def kept(self, mask: Tensor) -> EdgeBlock:
        """Only the edges where ``mask [2 m]`` is true; all pairs stay."""
        here = mask.index_select(0, self.places)
        return replace(
            self,
            places=self.places.index_select(0, here.nonzero().flatten()),
            pattern=self.pattern.subset(here),
        )


@dataclass(frozen=True)
class RelationalEdges:
    """All edges of a graph, or those of one training step, as blocks.

    Attributes
    ----------
    blocks
        Their edges, one block after the other, are the edges in the order that scores and weights have.
    n_entities
        Number of entities, E.
    """

    blocks: tuple[EdgeBlock, ...]
    n_entities: int

    @classmethod
    def of(cls, graph: Graph, pairs_per_block: int) -> RelationalEdges:
        """Sort the edges of a graph into blocks of at most so many (relation, tail) pairs."""
        n_entities, n_relations = graph.n_entities, 2 * graph.n_relations
        keys, pair = _distinct(graph.relation * n_entities + graph.tail)
        n_blocks = max(1, -(-graph.n_edges // pairs_per_block))
        blocks = []
        for number in range(n_blocks):
            if n_blocks == 1:
                places, own, first = torch.arange(graph.n_edges, device=graph.device), keys, 0
            else:
                first = number * pairs_per_block
                own = keys[first : first + pairs_per_block]
                places = (pair // pairs_per_block == number).nonzero().flatten()
            if n_blocks > 1 and not own.numel():
                break
            blocks.append(_block(graph, places, pair.index_select(0, places) - first, own, n_relations))
        return cls(tuple(blocks), n_entities)

    @property
    def heads(self) -> Tensor:
        """Head of every edge, ``[k]``."""
        return torch.cat([block.pattern.rows for block in self.blocks])

    @property
    def places(self) -> Tensor:
        """Position of every edge in the graph's order, ``[k]``."""
        return torch.cat([block.places for block in self.blocks])

    def kept(self, mask: Tensor) -> RelationalEdges:
        """Only the edges where ``mask [2 m]``, in the graph's order, is true."""
        return replace(self, blocks=tuple(block.kept(mask) for block in self.blocks))

    def parts(self) -> Iterator[tuple[EdgeBlock, slice]]:
        """Blocks, each with the places of its edges among the scores."""
        start = 0
        for block in self.blocks:
            stop = start + block.places.shape[0]
            yield block, slice(start, stop)
            start = stop

    def scores(self, keyed: Tensor, relations: Tensor, n_heads: int) -> Tensor:
        """Attention score of every edge and attention head, ``[k, M]`` (docs/method.md, section 3), outside autograd.

        Parameters
        ----------
        keyed
            ``W e`` of all entities, ``[E, d]``.
        relations
            Relation embeddings ``[2R, d]``.
        n_heads
            Attention heads M.
        """
        parts = []
        for block, _ in self.parts():
            rows = block.rows(keyed, relations)
            columns = _columns(keyed, n_heads)
            scores = [sampled_product(block.pattern, keyed[:, part], rows[:, part]) for part in columns]
            parts.append(torch.stack(scores, dim=1))
        return torch.cat(parts) / math.sqrt(keyed.shape[1] / n_heads)

    def attend(self, entities: Tensor, keyed: Tensor, relations: Tensor, n_heads: int) -> Tensor:
        """Attention-weighted sum of ``e_t * r`` over the edges of each head entity.

        Parameters
        ----------
        entities
            Rows e of all entities, ``[E, d]``.
        keyed
            ``W e``, ``[E, d]``.
        relations
            Relation embeddings ``[2R, d]``.
        n_heads
            Attention heads M.

        Returns
        -------
        Tensor
            ``[E, d]``; zero where an entity has no edge.
        """
        return _Attend.apply(self, n_heads, entities, keyed, relations)  # type: ignore[no-any-return]

    def average(self, entities: Tensor, relations: Tensor) -> Tensor:
        """Mean of ``e_t * r`` over the edges of each head entity, ``[E, d]``."""
        return _Average.apply(self, entities, relations)  # type: ignore[no-any-return]


def _distinct(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct keys, ascending, and the place of every key among them (``torch.unique``, on every device)."""
    ordered, order = keys.sort()
    is_new = torch.cat([torch.ones_like(ordered[:1], dtype=torch.bool), ordered[1:] != ordered[:-1]])
    place = torch.empty_like(keys).index_copy(0, order, is_new.cumsum(0) - 1)
    return ordered.index_select(0, is_new.nonzero().flatten()), place


def _block(graph: Graph, places: Tensor, pair: Tensor, keys: Tensor, n_relations: int) -> EdgeBlock:
    n_entities = graph.n_entities
    relation, tail = keys // n_entities, keys % n_entities
    n_pairs = keys.shape[0]
    by_head = torch.argsort(graph.head.index_select(0, places) * n_pairs + pair)
    places, pair = places.index_select(0, by_head), pair.index_select(0, by_head)
    numbers = torch.arange(n_pairs, device=graph.device)
    tail_order = torch.argsort(tail, stable=True)
    return EdgeBlock(
        places=places,
        pattern=SparsePattern(graph.head.index_select(0, places), pair, n_entities, n_pairs),
        relation=relation,
        tail=tail,
        by_relation=SparsePattern(relation, numbers, n_relations, n_pairs),
        by_tail=SparsePattern(tail.index_select(0, tail_order), tail_order, n_entities, n_pairs),
    )


def _columns(x: Tensor, n_heads: int) -> list[slice]:
    """Columns of each attention head."""
    width = x.shape[1] // n_heads
    return [slice(start, start + width) for start in range(0, x.shape[1], width)]


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, edges: RelationalEdges, n_heads: int, entities: Tensor, keyed: Tensor, relations: Tensor
    ) -> Tensor:
        weights = segment_softmax(edges.scores(keyed, relations, n_heads), edges.heads, edges.n_entities)
        message = torch.zeros_like(entities)
        for block, part in edges.parts():
            rows = block.rows(entities, relations)
            for head, columns in enumerate(_columns(entities, n_heads)):
                message[:, columns] += product(block.pattern, weights[part, head].contiguous(), rows[:, columns])
        ctx.edges, ctx.n_heads = edges, n_heads
        ctx.save_for_backward(entities, keyed, relations, weights)
        return message

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, Tensor, Tensor, Tensor]:
        entities, keyed, relations, weights = ctx.saved_tensors
        edges, head_columns = ctx.edges, _columns(entities, ctx.n_heads)
        to_entities, to_keyed = torch.zeros_like(entities), torch.zeros_like(keyed)
        to_relations, to_weights = torch.zeros_like(relations), torch.empty_like(weights)
        for block, part in edges.parts():
            rows = block.rows(entities, relations)
            to_rows = torch.empty_like(rows)
            for head, columns in enumerate(head_columns):
                gradient = gradients[0][:, columns].contiguous()
                to_weights[part, head] = sampled_product(block.pattern, gradient, rows[:, columns])
                weight = weights[part, head].contiguous()
                to_rows[:, columns] = transposed_product(block.pattern, weight, gradient)
            block.add_gradients(to_rows, entities, relations, to_entities, to_relations)
        to_scores = _softmax_backward(weights, to_weights, edges) / math.sqrt(entities.shape[1] / ctx.n_heads)
        for block, part in edges.parts():
            rows = block.rows(keyed, relations)
            to_rows = torch.empty_like(rows)
            for head, columns in enumerate(head_columns):
                gradient = to_scores[part, head].contiguous()
                to_keyed[:, columns] += product(block.pattern, gradient, rows[:, columns])
                to_rows[:, columns] = transposed_product(block.pattern, gradient, keyed[:, columns])
            block.add_gradients(to_rows, keyed, relations, to_keyed, to_relations)
        return None, None, to_entities, to_keyed, to_relations


def _softmax_backward(weights: Tensor, to_weights: Tensor, edges: RelationalEdges) -> Tensor:
    """Gradient of a segment softmax with respect to the scores, ``[k, M]``."""
    heads, weighted = edges.heads, weights * to_weights
    total = weights.new_zeros(edges.n_entities, weights.shape[1]).index_add(0, heads, weighted)
    return weighted - weights * total.index_select(0, heads)


class _Average(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, edges: RelationalEdges, entities: Tensor, relations: Tensor) -> Tensor:
        weight = count(edges.heads, edges.n_entities).clamp_min(1).to(entities.dtype).reciprocal().unsqueeze(1)
        message = torch.zeros_like(entities)
        for block, _ in edges.parts():
            message += product(block.pattern, None, block.rows(entities, relations))
        ctx.edges = edges
        ctx.save_for_backward(entities, relations, weight)
        return message.mul_(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, Tensor]:
        entities, relations, weight = ctx.saved_tensors
        to_entities, to_relations = torch.zeros_like(entities), torch.zeros_like(relations)
        gradient = gradients[0] * weight
        for block, _ in ctx.edges.parts():
            to_rows = product(block.pattern.transpose, None, gradient)
            block.add_gradients(to_rows, entities, relations, to_entities, to_relations)
        return None, to_entities, to_relations


def sample_per_relation(
    relation: Tensor, n_relations: int, keep: float, generator: torch.Generator, skip: int | None = None
) -> Tensor:
    """Choose ``int(keep * n)`` edges of each relation at random, without a loop over relations.

    Parameters
    ----------
    relation
        Relation of every edge ``[m]``, in ``0..n_relations-1``.
    n_relations
        Number of relations.
    keep
        Share kept of each relation.
    generator
        Source of randomness.
    skip
        Relation of which no edge is kept.

    Returns
    -------
    Tensor
        Whether each edge is kept, ``[m]`` bool.
    """
    check_generator(generator, relation.device)
    draws = torch.randint(2**_DRAWN_BITS, relation.shape, generator=generator, device=generator.device)
    order = torch.argsort((relation << _DRAWN_BITS) | draws.to(relation.device))
    sizes = count(relation, n_relations)
    quota = (sizes.double() * keep).long()
    if skip is not None:
        quota[skip] = 0
    starts = sizes.cumsum(0) - sizes
    by_relation = relation.index_select(0, order)
    rank = torch.arange(relation.shape[0], device=relation.device) - starts.index_select(0, by_relation)
    return torch.zeros_like(relation, dtype=torch.bool).index_put((order,), rank < quota.index_select(0, by_relation))


_DRAWN_BITS = 45
"""Random bits by which the edges of a relation are ordered; the bits above hold the relation."""
