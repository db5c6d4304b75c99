"""Products of dense matrices, by the quicker of the two libraries that torch brings along for a CPU.

On a CPU float32 goes to oneDNN, where torch has it: it writes its code for the processor at hand, while MKL, which
``@`` uses, leaves half the width of AVX-512 unused on processors that are not Intel's (2.4 times slower there).
"""

from typing import Any

import torch
from torch import Tensor, nn

_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def times(left: Tensor, right: Tensor) -> Tensor:
    """Product ``left [m, k] @ right [k, n]``, outside autograd; of stacks of matrices too.

    oneDNN does not like a transposed left side with a long result: then the transpose of the result is made.
    """
    if not _suits(left) or left.ndim > 2:
        return left @ right
    if left.stride(1) != 1 and left.shape[0] > right.shape[1]:
        return _affine(right.T, left).T
    return _affine(left, right.T)


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


def quicken(model: nn.Module) -> None:
    """Let the linear layers of a model that is only read from use `times`: text encoders take .55 of the time."""
    for layer in model.modules():
        if type(layer) is nn.Linear and _suits(layer.weight):
            vars(layer)["forward"] = _Layer(layer)


class _Layer:
    """Output of a linear layer; where its input is of another kind, as torch makes it."""

    def __init__(self, layer: nn.Linear) -> None:
        self.weight, self.bias = layer.weight, layer.bias

    def __call__(self, x: Tensor) -> Tensor:
        if _suits(x):
            return _affine(x, self.weight, self.bias)
        return nn.functional.linear(x, self.weight, self.bias)


def _suits(x: Tensor) -> bool:
    return _ONEDNN and x.device.type == "cpu" and x.dtype == torch.float32


def _affine(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """Inner products of the rows of ``left [..., m, k]`` and ``right [n, k]``, plus a bias ``[n]``."""
    products: Tensor = torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")
    return products
