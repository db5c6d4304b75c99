"""Layers of the models: parameters and dropout that draw from an explicit generator, and the text projection."""

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from spike_kit.base.dense import times
from spike_kit.base.devices import chunks
from spike_kit.base.errors import DeviceError

Precision = Literal["float32", "bfloat16"]
"""Number format of the matrix products; parameters, sums and everything else stay as they are."""

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


class TwoLayers(nn.Module):
    """Linear, an activation without parameters, Linear: ``[n, n_in]`` to ``[n, n_hidden]`` to ``[n, n_out]``."""

    def __init__(
        self,
        sizes: tuple[int, int, int],
        activation: Callable[[Tensor], Tensor],
        generator: torch.Generator,
        device: torch.device,
    ) -> None:
        super().__init__()
        n_in, n_hidden, n_out = sizes
        self.first = linear(n_in, n_hidden, generator, device)
        self.second = linear(n_hidden, n_out, generator, device)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Map rows."""
        mapped: Tensor = self.second(self.activation(self.first(x)))
        return mapped


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
    shape: tuple[int, ...],
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


def kept_entries(x: Tensor, rate: float, generator: torch.Generator | None) -> Tensor | None:
    """Mask of zeros and ones for dropout of ``x``, not scaled; none where nothing is dropped."""
    if generator is None or rate == 0:
        return None
    return keep_mask(x.shape, 1 - rate, generator, x.device, x.dtype)


def _random_words(n: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Random 64-bit words ``[n]`` int64; on the CPU from SFC64, seeded by the generator, at twice its speed."""
    if device.type == "cpu":
        seed = int(torch.randint(2**62, (), generator=generator))
        words = np.random.Generator(np.random.SFC64(seed)).integers(0, 2**64, n, dtype=np.uint64)
        return torch.from_numpy(words.view(np.int64))
    words = torch.empty(n, dtype=torch.int64, device=generator.device)
    return words.random_(torch.iinfo(torch.int64).min, None, generator=generator).to(device)


def uniform(
    shape: tuple[int, ...], generator: torch.Generator, device: torch.device, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Random numbers in [0, 1) of a shape.

    Raises
    ------
    DeviceError
        If the generator belongs to another device.
    """
    check_generator(generator, device)
    return torch.rand(shape, generator=generator, device=generator.device, dtype=dtype).to(device)


def gumbel(shape: tuple[int, ...], generator: torch.Generator, device: torch.device) -> Tensor:
    """Gumbel noise ``-log(-log u)`` of a shape; errors are those of `uniform`."""
    return -(-uniform(shape, generator, device).clamp_min(1e-20).log()).log()


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


class ProfileProjection(nn.Module):
    """Two layers from text to graph space: Linear(d_t, d_t), ReLU, Dropout, Linear(d_t, d).

    The first layer and the ReLU are computed once, however many dropout masks are asked for, because the mask comes
    after them. Rows pass in chunks; where the hidden rows of all nodes would be larger than the budget they are
    not kept but computed again in the backward pass, so that memory does not grow with the number of nodes.

    Parameters
    ----------
    text_dim, dim
        Dimensions d_t of the text and d of the graph.
    rate
        Dropout of hidden units.
    generator
        Source of the initial parameters.
    device
        Where the parameters live.
    budget
        Most that is kept for the backward pass, and largest temporary, in bytes.
    precision
        Number format of the products.
    """

    def __init__(
        self,
        text_dim: int,
        dim: int,
        rate: float,
        generator: torch.Generator,
        device: torch.device,
        budget: int,
        precision: Precision = "float32",
    ) -> None:
        super().__init__()
        self.first = linear(text_dim, text_dim, generator, device)
        self.second = linear(text_dim, dim, generator, device)
        self.rate = rate
        self.budget = budget
        self.precision: Precision = precision

    def forward(self, text: Tensor, generator: torch.Generator | None, masks: int = 1) -> tuple[Tensor, ...]:
        """Project text once for each dropout mask.

        Parameters
        ----------
        text
            ``[n, d_t]``, on the device of the parameters or in main memory (then it streams in chunks).
        generator
            Source of the masks; none switches dropout off.
        masks
            Number of masks.

        Returns
        -------
        tuple of Tensor
            ``[n, d]`` for each mask.
        """
        dropped = generator if self.rate else None
        outputs = _Project.apply(self, text, dropped, masks if dropped else 1, *self.parameters())
        return outputs if dropped else outputs * masks

    def keeps_hidden(self, text: Tensor, masks: int) -> bool:
        """Whether the hidden rows of a text are kept for the backward pass, which else draws their masks again."""
        return masks * text.numel() * 4 <= self.budget

    def chunks(self, text: Tensor, masks: int) -> Iterator[tuple[slice, Tensor]]:
        """Rows of text on the device and in the number format of the products."""
        (n_rows, text_dim), like = text.shape, self.first.weight
        size = max(1, min(self.budget, chunks(like.device).text_bytes) // (4 * text_dim * (masks + 1)))
        for start in range(0, n_rows, size):
            rows = slice(start, min(start + size, n_rows))
            yield rows, self.lower(text[rows].to(like.device, like.dtype))

    def lower(self, x: Tensor) -> Tensor:
        """Same tensor in the number format of the products."""
        return x.bfloat16() if self.precision == "bfloat16" else x

    def hidden(self, rows: Tensor, generator: torch.Generator | None, masks: int) -> list[Tensor]:
        """Hidden rows ``[n, d_t]`` after ReLU, once per mask, zero where dropped but not yet scaled."""
        active = times(rows, self.lower(self.first.weight).T).add_(self.lower(self.first.bias)).relu_()
        if generator is None:
            return [active]
        drawn = [keep_mask(active.shape, 1 - self.rate, generator, active.device, active.dtype) for _ in range(masks)]
        return [mask.mul_(active) for mask in drawn]


class _Project(torch.autograd.Function):
    """Outputs of a projection; what makes up for dropped units scales the second weight, not every row."""

    @staticmethod
    def forward(
        ctx: Any, own: ProfileProjection, text: Tensor, generator: torch.Generator | None, masks: int, *_: Tensor
    ) -> tuple[Tensor, ...]:
        second = own.second
        ctx.scale = 1 / kept_share(1 - own.rate) if generator is not None else 1.0
        outputs = tuple(second.weight.new_empty(len(text), second.out_features) for _ in range(masks))
        scaled = own.lower(second.weight * ctx.scale).T
        keeps_hidden = own.keeps_hidden(text, masks)
        ctx.given, ctx.hidden = (own, text, generator, masks), []
        ctx.start = None if generator is None or keeps_hidden else generator.get_state()
        for rows, part in own.chunks(text, masks):
            hidden = own.hidden(part, generator, masks)
            for output, active in zip(outputs, hidden, strict=True):
                output[rows] = times(active, scaled).add_(own.lower(second.bias))
            if keeps_hidden and any(ctx.needs_input_grad):
                ctx.hidden.append(hidden)
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        own, text, generator, masks = ctx.given
        replay = None
        if ctx.start is not None:
            replay = torch.Generator(generator.device)
            replay.set_state(ctx.start)
        to_weight, to_bias, to_second, _ = (torch.zeros_like(parameter) for parameter in own.parameters())
        scaled = own.lower(own.second.weight * ctx.scale)
        for number, (rows, part) in enumerate(own.chunks(text, masks)):
            hidden = ctx.hidden[number] if ctx.hidden else own.hidden(part, replay, masks)
            to_active = None
            for gradient, active in zip(gradients, hidden, strict=True):
                lowered = own.lower(gradient[rows])
                to_second += times(lowered.T, active)
                to_part = times(lowered, scaled)
                to_part = torch.ops.aten.threshold_backward.grad_input(to_part, active, 0, grad_input=to_part)
                to_active = to_part if to_active is None else to_active.add_(to_part)
            assert to_active is not None
            to_weight += times(to_active.T, part)
            to_bias += to_active.sum(0)
        to_second_bias = torch.stack([gradient.sum(0) for gradient in gradients]).sum(0)
        return None, None, None, None, to_weight, to_bias, to_second * ctx.scale, to_second_bias
