"""Parameters and dropout that draw from an explicit generator."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def xavier_table(n_rows: int, dim: int, generator: torch.Generator) -> nn.Parameter:
    """Embedding table ``[n_rows, dim]``, Xavier uniform."""
    return nn.Parameter(nn.init.xavier_uniform_(torch.empty(n_rows, dim), generator=generator))


def linear(n_in: int, n_out: int, generator: torch.Generator) -> nn.Linear:
    """Linear layer with torch's default initialisation: uniform within ``1 / sqrt(n_in)``."""
    layer = nn.Linear(n_in, n_out, device="meta").to_empty(device="cpu")
    bound = 1 / math.sqrt(n_in)
    nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
    nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
    return layer


def dropout(x: Tensor, rate: float, generator: torch.Generator | None) -> Tensor:
    """Set entries to 0 with probability ``rate`` and scale the others up; no generator means no dropout."""
    if generator is None or rate == 0:
        return x
    return x * keep_mask(x.shape, 1 - rate, generator, x.device).to(x.dtype).div_(1 - rate)


def keep_mask(
    shape: torch.Size | tuple[int, ...], keep: float, generator: torch.Generator, device: torch.device
) -> Tensor:
    """Boolean mask of ``shape``, each entry true with probability ``keep``."""
    return torch.rand(shape, generator=generator, device=generator.device).to(device) < keep
