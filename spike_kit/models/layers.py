"""Parameters and dropout that draw from an explicit generator."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spike_kit.base.errors import DeviceError

_LEVELS = 2**16
"""Levels of the random numbers behind a mask."""


def xavier_table(n_rows: int, dim: int, generator: torch.Generator, device: torch.device) -> nn.Parameter:
    """Embedding table ``[n_rows, dim]``, Xavier uniform, drawn on the CPU, hence equal on every device."""
    return nn.Parameter(nn.init.xavier_uniform_(torch.empty(n_rows, dim), generator=generator).to(device))


def linear(n_in: int, n_out: int, generator: torch.Generator, device: torch.device) -> nn.Linear:
    """Linear layer on a device with torch's default initialisation: uniform within ``1 / sqrt(n_in)``."""
    layer = nn.Linear(n_in, n_out, device="meta")
    bound = 1 / math.sqrt(n_in)
    weight, bias = torch.empty(n_out, n_in), torch.empty(n_out)
    for values in (weight, bias):
        values.uniform_(-bound, bound, generator=generator)
    layer.weight, layer.bias = nn.Parameter(weight.to(device)), nn.Parameter(bias.to(device))
    return layer


def normalized(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Rows of ``x [n, d]`` scaled to length 1, as ``torch.nn.functional.normalize`` with a leaner backward pass.

    Where a ``mask [n, d]`` of zeros and ones is given, it is applied first; the scale of dropout would not matter here.
    """
    return _Normalized.apply(x, mask)  # type: ignore[no-any-return]


class _Normalized(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor | None) -> Tensor:
        kept = x if mask is None else x * mask
        norms = row_norms(kept)
        rows = kept / norms if mask is None else kept.div_(norms)
        ctx.save_for_backward(rows, norms, mask)
        return rows

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        rows, norms, mask = ctx.saved_tensors
        to_x = normalized_backward(gradients[0], rows, norms)
        return (to_x if mask is None else to_x.mul_(mask)), None


def row_norms(x: Tensor) -> Tensor:
    """Length of each row, ``[..., 1]``, at least 1e-12."""
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min_(1e-12)


def normalized_backward(gradient: Tensor, rows: Tensor, norms: Tensor) -> Tensor:
    """Gradient of normalisation: the part of ``gradient`` across each normalised row, divided by its length."""
    along = (gradient * rows).sum(-1, keepdim=True)
    return torch.addcmul(gradient, rows, along, value=-1).div_(norms)


def kept_share(keep: float) -> float:
    """Probability that `keep_mask` really uses: ``keep`` rounded to a multiple of 2 ** -16."""
    return round(keep * _LEVELS) / _LEVELS


def keep_mask(
    shape: torch.Size | tuple[int, ...],
    keep: float,
    generator: torch.Generator,
    device: torch.device,
    dtype: torch.dtype = torch.bool,
) -> Tensor:
    """Mask of ``shape``, each entry true (or 1) with probability `kept_share` of ``keep``.

    Every 64 bits of the generator give four entries, which is several times cheaper than one float for each.

    Raises
    ------
    DeviceError
        If the generator belongs to another device than ``device``, so that masks would be made there and copied.
    """
    check_generator(generator, device)
    size = math.prod(shape)
    levels = _random_words(-(-size // 4), generator, device).view(torch.int16)[:size].view(shape)
    threshold = round(keep * _LEVELS) - _LEVELS // 2
    mask = torch.empty(shape, dtype=dtype, device=device)
    return torch.lt(levels, threshold, out=mask) if threshold < _LEVELS // 2 else mask.fill_(1)


def _random_words(n: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Random 64-bit words ``[n]`` int64; on the CPU from SFC64, seeded by the generator, at twice its speed."""
    if device.type == "cpu":
        seed = int(torch.randint(2**62, (), generator=generator))
        words = np.random.Generator(np.random.SFC64(seed)).integers(0, 2**64, n, dtype=np.uint64)
        return torch.from_numpy(words.view(np.int64))
    words = torch.empty(n, dtype=torch.int64, device=generator.device)
    return words.random_(torch.iinfo(torch.int64).min, None, generator=generator).to(device)


def random_nodes(n_nodes: int, size: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Distinct numbers ``[size]`` out of ``0..n_nodes-1``, int64.

    Raises
    ------
    DeviceError
        If the generator belongs to another device.
    """
    check_generator(generator, device)
    return torch.randperm(n_nodes, generator=generator, device=generator.device)[:size].to(device)


def check_generator(generator: torch.Generator, device: torch.device) -> None:
    """Check that random numbers are drawn where they are needed (the meta device has no generator of its own).

    Raises
    ------
    DeviceError
        If they are not.
    """
    if generator.device.type != device.type and device.type != "meta":
        raise DeviceError(
            f"the generator draws on {generator.device}, but its numbers are needed on {device}",
            "make it with torch_generator(seed, stream, device)",
        )
