"""Products of dense matrices, by the quicker of the two libraries that torch brings along for a CPU."""

from typing import Any

import torch
from torch import Tensor

_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def times(left: Tensor, right: Tensor) -> Tensor:
    """Product ``left [m, k] @ right [k, n]``, outside autograd; of stacks of matrices too.

    On a CPU float32 goes to oneDNN, where torch has it: it writes its code for the processor at hand, while MKL, which
    ``@`` uses, leaves half the width of AVX-512 unused on processors that are not Intel's (2.4 times slower there). It
    does not like a transposed left side with a long result, so it then makes the transpose of the result.
    """
    if not _ONEDNN or left.device.type != "cpu" or left.dtype != torch.float32 or left.ndim > 2:
        return left @ right
    if left.stride(1) != 1 and left.shape[0] > right.shape[1]:
        return _rows_by_rows(right.T, left).T
    return _rows_by_rows(left, right.T)


def _rows_by_rows(left: Tensor, right: Tensor) -> Tensor:
    """Inner products of the rows of ``left [m, k]`` and ``right [n, k]``."""
    products: Tensor = torch.ops.mkldnn._linear_pointwise(left, right, None, "none", [], "")
    return products


def product(left: Tensor, right: Tensor) -> Tensor:
    """`times`, in the backward pass too."""
    return _Product.apply(left, right)  # type: ignore[no-any-return]


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor) -> Tensor:
        ctx.save_for_backward(left, right)
        return times(left, right)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        left, right = ctx.saved_tensors
        return times(gradients[0], right.T), times(left.T, gradients[0])
