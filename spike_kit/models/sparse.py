"""Sparse products and segment operations: the only place where graphs meet arithmetic.

A sparse product is a sum of weighted rows, so it runs on torch's embedding bags: they read each row once, make no
``[nnz, d]`` tensor, and exist on every device. Products sampled at given positions use the CSR kernel, and a plain form
where that kernel does not exist (the meta device).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from spike_kit.base.devices import chunks


@dataclass(frozen=True)
class SparsePattern:
    """Positions of the entries of a sparse matrix ``[n_rows, n_columns]``, sorted by row, then column.

    Attributes
    ----------
    rows, columns
        ``[nnz]`` int64.
    """

    rows: Tensor
    columns: Tensor
    n_rows: int
    n_columns: int

    @cached_property
    def row_pointer(self) -> Tensor:
        """Where each row begins, and the end, ``[n_rows + 1]`` int64."""
        return offsets(self.rows, self.n_rows)

    @cached_property
    def transpose_order(self) -> Tensor:
        """Permutation ``[nnz]`` that brings the entries into the order of the transpose."""
        return torch.argsort(self.columns, stable=True)

    @cached_property
    def transpose(self) -> SparsePattern:
        """Pattern of the transposed matrix; its values are ``values.index_select(0, transpose_order)``."""
        order = self.transpose_order
        rows, columns = (x.index_select(0, order) for x in (self.columns, self.rows))
        return SparsePattern(rows, columns, self.n_columns, self.n_rows)

    @cached_property
    def row_degree(self) -> Tensor:
        """Entries per row ``[n_rows]`` int64."""
        return self.row_pointer.diff()

    @cached_property
    def bags(self) -> list[Tensor]:
        """Offsets of the embedding bags of a product: of the rows, or of pieces of them, then of pieces of those sums.

        Every level but the last cuts at its rows and at every multiple of ``bag_rows`` (`spike_kit.base.devices`), so
        that no bag is longer. How many pieces there are depends on nothing but shapes: no number has to come back from
        a GPU.
        """
        pointer, size, limit = self.row_pointer, self.columns.shape[0], chunks(self.columns.device).bag_rows
        levels, longest = [], size
        while longest > limit:
            cuts = torch.arange(limit, size, limit, device=pointer.device)
            levels.append(torch.cat([pointer, cuts]).sort().values)
            cuts_before = (pointer - 1).clamp_min(0) // limit
            pointer = torch.arange(pointer.shape[0], device=pointer.device) + cuts_before
            size = levels[-1].shape[0] - 1
            longest = min(size, longest // limit + 2)
        return [*levels, pointer]

    def subset(self, kept: Tensor, size: int | None = None) -> SparsePattern:
        """Pattern of the entries where ``kept [nnz]`` is true; its transpose is derived, not sorted anew.

        ``size`` is their number, where it is known.
        """
        places = positions(kept, size)
        rows, columns = (x.index_select(0, places) for x in (self.rows, self.columns))
        part = SparsePattern(rows, columns, self.n_rows, self.n_columns)
        before = torch.cat([self.rows.new_zeros(1), kept.cumsum(0)])
        order = self.transpose_order
        order = order.index_select(0, positions(kept.index_select(0, order), places.shape[0]))
        part.__dict__["transpose_order"] = before.index_select(0, order)
        part.__dict__["row_pointer"] = before.index_select(0, self.row_pointer)
        return part

    def repeated(self, n: int) -> SparsePattern:
        """Pattern of ``n`` copies of the matrix along the diagonal, ``[n * n_rows, n * n_columns]``."""
        if n == 1:
            return self

        def stacked(x: Tensor, step: Tensor | int) -> Tensor:
            return torch.cat([x + copy * step for copy in range(n)])

        nnz = self.rows.shape[0]
        rows, columns = stacked(self.rows, self.n_rows), stacked(self.columns, self.n_columns)
        whole = SparsePattern(rows, columns, n * self.n_rows, n * self.n_columns)
        starts = stacked(self.row_pointer[:-1], nnz)
        whole.__dict__["row_pointer"] = torch.cat([starts, starts.new_full((1,), n * nnz)])
        whole.__dict__["transpose_order"] = stacked(self.transpose_order, nnz)
        return whole


def spmm(pattern: SparsePattern, values: Tensor, dense: Tensor) -> Tensor:
    """Product of a sparse matrix with a dense one; no ``[nnz, d]`` tensor is made, in the backward pass neither.

    Parameters
    ----------
    pattern
        Where the entries are, ``[n_rows, n_columns]``.
    values
        The entries ``[nnz]``; an entry may be 0 (a dropped edge). They get gradients where they want them (attention).
    dense
        ``[n_columns, d]``.

    Returns
    -------
    Tensor
        ``[n_rows, d]``.
    """
    return _SparseProduct.apply(pattern, values, dense)  # type: ignore[no-any-return]


class _SparseProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pattern: SparsePattern, values: Tensor, dense: Tensor) -> Tensor:
        ctx.pattern = pattern
        ctx.save_for_backward(values, dense if ctx.needs_input_grad[1] else None)
        return product(pattern, values, dense)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor | None, Tensor]:
        values, dense = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        to_values = None if dense is None else sampled_product(ctx.pattern, gradient, dense)
        return None, to_values, transposed_product(ctx.pattern, values, gradient)


def dense_rows(pattern: SparsePattern, ids: Tensor) -> Tensor:
    """Some rows of a matrix of ones at the entries of a pattern, ``[n, n_columns]`` float32."""
    starts = pattern.row_pointer.index_select(0, ids)
    counts = pattern.row_pointer.index_select(0, ids + 1) - starts
    row = torch.arange(ids.shape[0], device=ids.device).repeat_interleave(counts)
    before = counts.cumsum(0) - counts
    place = torch.arange(row.shape[0], device=ids.device) + (starts - before).index_select(0, row)
    dense = torch.zeros(ids.shape[0] * pattern.n_columns, device=ids.device)
    dense.index_fill_(0, row * pattern.n_columns + pattern.columns.index_select(0, place), 1.0)
    return dense.view(ids.shape[0], pattern.n_columns)


def product(pattern: SparsePattern, values: Tensor | None, dense: Tensor) -> Tensor:
    """Same as `spmm`, outside autograd; without values every entry is 1."""
    first, *others = pattern.bags
    sums = _bag_sums(dense.contiguous(), pattern.columns, first, values)
    for pointer in others:
        sums = _bag_sums(sums, torch.arange(sums.shape[0], device=sums.device), pointer)
    return sums


def _bag_sums(rows: Tensor, chosen: Tensor, pointer: Tensor, weights: Tensor | None = None) -> Tensor:
    return torch.embedding_bag(rows, chosen, pointer, per_sample_weights=weights, include_last_offset=True)[0]


def transposed_product(pattern: SparsePattern, values: Tensor | None, dense: Tensor) -> Tensor:
    """Product of the transposed matrix with ``dense [n_rows, d]``, outside autograd: ``[n_columns, d]``."""
    if values is not None:
        values = values.index_select(0, pattern.transpose_order)
    return product(pattern.transpose, values, dense)


def sampled_product(pattern: SparsePattern, left: Tensor, right: Tensor) -> Tensor:
    """Inner products of rows of ``left [n_rows, d]`` and ``right [n_columns, d]`` at the entries of a pattern.

    Outside autograd; on CPU and CUDA no ``[nnz, d]`` tensor is made.

    Returns
    -------
    Tensor
        ``[nnz]``.
    """
    if left.device.type == "meta":
        return (left.index_select(0, pattern.rows) * right.index_select(0, pattern.columns)).sum(1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*CSR.*", category=UserWarning)
        positions = torch.sparse_csr_tensor(
            pattern.row_pointer,
            pattern.columns,
            left.new_zeros(pattern.columns.shape),
            size=(pattern.n_rows, pattern.n_columns),
            check_invariants=False,
        )
    return torch.sparse.sampled_addmm(positions, left, right.T, beta=0).values()


def positions(mask: Tensor, size: int | None = None) -> Tensor:
    """Positions where a mask ``[n]`` is true, ascending, int64.

    Where ``size``, their number, is given, no number has to come back from a GPU.
    """
    if size is None or mask.device.type == "cpu":
        return mask.nonzero().flatten()
    return torch.searchsorted(mask.cumsum(0), torch.arange(1, size + 1, device=mask.device))


def count(index: Tensor, size: int) -> Tensor:
    """How often each of ``0..size-1`` occurs in ``index`` ``[n]``, as ``[size]`` int64."""
    return index.new_zeros(size).index_add(0, index, torch.ones_like(index))


def offsets(sorted_index: Tensor, size: int) -> Tensor:
    """Where the run of each value ``0..size-1`` starts in ``sorted_index``, and the end: ``[size + 1]`` int64."""
    return torch.cat([sorted_index.new_zeros(1), count(sorted_index, size).cumsum(0)])


def segment_softmax(scores: Tensor, segment: Tensor, n_segments: int) -> Tensor:
    """Softmax of ``scores [m]`` over the entries that share a value of ``segment [m]``."""
    highest = scores.detach().new_zeros(n_segments)
    highest = highest.scatter_reduce(0, segment, scores.detach(), "amax", include_self=False)
    weights = (scores - highest.index_select(0, segment)).exp()
    total = weights.new_zeros(n_segments).index_add(0, segment, weights)
    return weights / total.index_select(0, segment)
