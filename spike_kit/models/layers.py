"""Parameters and dropout that draw from an explicit generator."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from spike_kit.errors import DeviceError

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


def normalized(x: Tensor) -> Tensor:
    """Rows of ``x [..., d]`` scaled to length 1 (as ``torch.nn.functional.normalize``, with a leaner backward pass)."""
    return _Normalized.apply(x)  # type: ignore[no-any-return]


class _Normalized(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        norms = row_norms(x)
        rows = x / norms
        ctx.save_for_backward(rows, norms)
        return rows

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return normalized_backward(gradients[0], *ctx.saved_tensors)


def row_norms(x: Tensor) -> Tensor:
    """Length of each row, ``[..., 1]``, at least 1e-12."""
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min_(1e-12)


def normalized_backward(gradient: Tensor, rows: Tensor, norms: Tensor) -> Tensor:
    """Gradient of normalisation: the part of ``gradient`` across each normalised row, divided by its length."""
    along = (gradient * rows).sum(-1, keepdim=True)
    return torch.addcmul(gradient, rows, along, value=-1).div_(norms)


def dropout(x: Tensor, rate: float, generator: torch.Generator | None) -> Tensor:
    """Set entries to 0 with probability ``rate`` and scale the others up; no generator means no dropout."""
    if generator is None or rate == 0:
        return x
    return x * keep_mask(x.shape, 1 - rate, generator, x.device, x.dtype).div_(kept_share(1 - rate))


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
    words = torch.empty(-(-size // 4), dtype=torch.int64, device=generator.device)
    words.random_(torch.iinfo(torch.int64).min, None, generator=generator)
    levels = words.view(torch.int16)[:size].view(shape).to(device)
    threshold = round(keep * _LEVELS) - _LEVELS // 2
    mask = torch.empty(shape, dtype=dtype, device=device)
    return torch.lt(levels, threshold, out=mask) if threshold < _LEVELS // 2 else mask.fill_(1)


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
