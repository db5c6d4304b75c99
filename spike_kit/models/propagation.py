"""Sparse products and segment operations: the only place where graphs meet arithmetic.

CSR kernels where they exist (CPU, CUDA), an ``index_add`` form where they do not (the meta device).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


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
        """CSR row pointer ``[n_rows + 1]`` int32 (the index type of MKL and cuSPARSE)."""
        return offsets(self.rows, self.n_rows).int()

    @cached_property
    def column_index(self) -> Tensor:
        """CSR column indices ``[nnz]`` int32."""
        return self.columns.int()

    @cached_property
    def transpose_order(self) -> Tensor:
        """Permutation ``[nnz]`` that brings the entries into the order of the transpose."""
        return torch.argsort(self.columns, stable=True)

    @cached_property
    def transpose(self) -> SparsePattern:
        """Pattern of the transposed matrix; its values are ``values.index_select(0, transpose_order)``."""
        order = self.transpose_order
        return SparsePattern(
            self.columns.index_select(0, order), self.rows.index_select(0, order), self.n_columns, self.n_rows
        )

    @cached_property
    def row_degree(self) -> Tensor:
        """Entries per row ``[n_rows]`` int64."""
        return count(self.rows, self.n_rows)

    @cached_property
    def column_degree(self) -> Tensor:
        """Entries per column ``[n_columns]`` int64."""
        return count(self.columns, self.n_columns)


def spmm(pattern: SparsePattern, values: Tensor, dense: Tensor) -> Tensor:
    """Product of a sparse matrix with a dense one; gradients reach ``dense`` only.

    Parameters
    ----------
    pattern
        Where the entries are, ``[n_rows, n_columns]``.
    values
        The entries ``[nnz]``; an entry may be 0 (a dropped edge).
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
        ctx.save_for_backward(values)
        return _product(pattern, values, dense)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, Tensor]:
        (values,) = ctx.saved_tensors
        order = ctx.pattern.transpose_order
        return None, None, _product(ctx.pattern.transpose, values.index_select(0, order), gradients[0].contiguous())


def _product(pattern: SparsePattern, values: Tensor, dense: Tensor) -> Tensor:
    if dense.device.type == "meta":
        return product_by_index_add(pattern, values, dense)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*CSR.*", category=UserWarning)
        matrix = torch.sparse_csr_tensor(
            pattern.row_pointer,
            pattern.column_index,
            values,
            size=(pattern.n_rows, pattern.n_columns),
            check_invariants=False,
        )
    return matrix @ dense


def product_by_index_add(pattern: SparsePattern, values: Tensor, dense: Tensor) -> Tensor:
    """Same product as `spmm` without a CSR kernel (works on every device, needs ``[nnz, d]`` memory)."""
    messages = dense.index_select(0, pattern.columns) * values.unsqueeze(1)
    return dense.new_zeros(pattern.n_rows, dense.shape[1]).index_add(0, pattern.rows, messages)


def count(index: Tensor, size: int) -> Tensor:
    """How often each of ``0..size-1`` occurs in ``index`` ``[n]``, as ``[size]`` int64."""
    return index.new_zeros(size).index_add(0, index, torch.ones_like(index))


def offsets(sorted_index: Tensor, size: int) -> Tensor:
    """Where the run of each value ``0..size-1`` starts in ``sorted_index``, and the end: ``[size + 1]`` int64."""
    return torch.nn.functional.pad(count(sorted_index, size).cumsum(0), (1, 0))


def segment_softmax(scores: Tensor, segment: Tensor, n_segments: int) -> Tensor:
    """Softmax of ``scores [m, h]`` over the rows that share a value of ``segment [m]``, per column."""
    index = segment.unsqueeze(1).expand_as(scores)
    highest = scores.detach().new_zeros(n_segments, scores.shape[1])
    highest = highest.scatter_reduce(0, index, scores.detach(), "amax", include_self=False)
    weights = (scores - highest.index_select(0, segment)).exp()
    total = weights.new_zeros(n_segments, weights.shape[1]).index_add(0, segment, weights)
    return weights / total.index_select(0, segment)
