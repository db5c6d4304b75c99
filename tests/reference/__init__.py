"""Plain forms of what the kit computes cleverly: the tests prove both equal."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def matching_by_pairs(graph_side: Tensor, text_side: Tensor) -> Tensor:
    """Mean squared difference of the two k x k cosine matrices, formed in full."""
    a, b = functional.normalize(graph_side, dim=-1), functional.normalize(text_side, dim=-1)
    return (a @ a.mT - b @ b.mT).square().mean()
