"""Sampling of the edges of a training step, the same share of every relation."""

from __future__ import annotations

import torch
from torch import Tensor

from spike_kit.models.layers import check_generator
from spike_kit.models.sparse import count


class RelationSampler:
    """Chooses ``int(keep * n)`` edges of each relation at random, without a loop over relations.

    Parameters
    ----------
    relation
        Relation of every edge ``[m]``, in ``0..n_relations-1``.
    n_relations
        Number of relations.
    keep
        Share kept of each relation.
    skip
        Relation of which no edge is kept.
    """

    def __init__(self, relation: Tensor, n_relations: int, keep: float, skip: int | None = None) -> None:
        drawn_bits = _KEY_BITS - n_relations.bit_length()
        sizes = count(relation, n_relations)
        quota = (sizes.double() * keep).long()
        if skip is not None:
            quota[skip] = 0
        starts = sizes.cumsum(0) - sizes
        by_relation = relation.sort().values
        rank = torch.arange(relation.shape[0], device=relation.device) - starts.index_select(0, by_relation)
        self.chosen = (rank < quota.index_select(0, by_relation)).nonzero().flatten()
        self.base = relation << drawn_bits
        self.levels = 2**drawn_bits

    def sample(self, generator: torch.Generator) -> Tensor:
        """Draw the edges that are kept: a mask ``[m]`` bool."""
        check_generator(generator, self.base.device)
        draws = torch.randint(self.levels, self.base.shape, generator=generator, device=generator.device)
        order = torch.argsort(draws.to(self.base.device).bitwise_or_(self.base))
        kept = torch.zeros(self.base.shape, dtype=torch.bool, device=self.base.device)
        return kept.index_fill_(0, order.index_select(0, self.chosen), True)


_KEY_BITS = 32
"""Bits of the keys by which edges are sorted: first the relation, then random bits (short keys sort faster)."""
