"""Projection of profile vectors into the space of the graph: where most of SPiKE's arithmetic happens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from spike_kit.models.layers import keep_mask, kept_share, linear

Precision = Literal["float32", "bfloat16"]
"""Number format of the matrix products; parameters, sums and everything else stay as they are."""


CHUNK_BYTES = 2**24
"""Largest piece that passes at once in bytes, whatever the budget: larger ones leave the cache."""


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
        plan = _Plan(text, masks if dropped else 1, self.rate, dropped, self.budget, self.precision)
        outputs = _Project.apply(plan, self.first.weight, self.first.bias, self.second.weight, self.second.bias)
        return outputs if dropped else outputs * masks


@dataclass(frozen=True)
class _Plan:
    text: Tensor
    masks: int
    rate: float
    generator: torch.Generator | None
    budget: int
    precision: Precision

    @property
    def keeps_hidden(self) -> bool:
        """Whether the hidden rows of all nodes and masks fit into the budget."""
        return self.masks * self.text.numel() * 4 <= self.budget

    @property
    def scale(self) -> float:
        """Factor that makes up for the dropped units; it is applied to the second weight, not to every row."""
        return 1 / kept_share(1 - self.rate) if self.generator is not None else 1.0

    def chunks(self, like: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Rows of text on the device and in the number format of the products."""
        n_rows, text_dim = self.text.shape
        size = max(1, min(self.budget, CHUNK_BYTES) // (4 * text_dim * (self.masks + 1)))
        for start in range(0, n_rows, size):
            rows = slice(start, min(start + size, n_rows))
            yield rows, self.lower(self.text[rows].to(like.device, like.dtype))

    def lower(self, x: Tensor) -> Tensor:
        """Same tensor in the number format of the products."""
        return x.bfloat16() if self.precision == "bfloat16" else x

    def hidden(self, rows: Tensor, weight: Tensor, bias: Tensor, generator: torch.Generator | None) -> list[Tensor]:
        """Hidden rows ``[n, d_t]`` after ReLU, once per mask, zero where dropped but not yet scaled."""
        active = torch.addmm(self.lower(bias), rows, self.lower(weight).T).relu_()
        if generator is None:
            return [active]
        drawn = [
            keep_mask(active.shape, 1 - self.rate, generator, active.device, active.dtype) for _ in range(self.masks)
        ]
        return [mask.mul_(active) for mask in drawn]


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, plan: _Plan, weight: Tensor, bias: Tensor, second: Tensor, second_bias: Tensor
    ) -> tuple[Tensor, ...]:
        generator = plan.generator
        outputs = tuple(second.new_empty(plan.text.shape[0], second.shape[0]) for _ in range(plan.masks))
        scaled = plan.lower(second * plan.scale).T
        ctx.plan, ctx.hidden = plan, []
        ctx.start = None if generator is None or plan.keeps_hidden else generator.get_state()
        for rows, text in plan.chunks(weight):
            hidden = plan.hidden(text, weight, bias, generator)
            for output, part in zip(outputs, hidden, strict=True):
                output[rows] = torch.addmm(plan.lower(second_bias), part, scaled)
            if plan.keeps_hidden and any(ctx.needs_input_grad):
                ctx.hidden.append(hidden)
        ctx.save_for_backward(weight, bias, second)
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, Tensor, Tensor, Tensor]:
        weight, bias, second = ctx.saved_tensors
        plan: _Plan = ctx.plan
        replay = None
        if ctx.start is not None and plan.generator is not None:
            replay = torch.Generator(plan.generator.device)
            replay.set_state(ctx.start)
        to_weight, to_bias = torch.zeros_like(weight), torch.zeros_like(bias)
        to_second, scaled = torch.zeros_like(second), plan.lower(second * plan.scale)
        for number, (rows, text) in enumerate(plan.chunks(weight)):
            hidden = ctx.hidden[number] if plan.keeps_hidden else plan.hidden(text, weight, bias, replay)
            to_active = None
            for gradient, part in zip(gradients, hidden, strict=True):
                lowered = plan.lower(gradient[rows])
                to_second += lowered.T @ part
                to_part = lowered @ scaled
                to_part = torch.ops.aten.threshold_backward.grad_input(to_part, part, 0, grad_input=to_part)
                to_active = to_part if to_active is None else to_active.add_(to_part)
            assert to_active is not None
            to_weight += to_active.T @ text
            to_bias += to_active.sum(0)
        to_second_bias = torch.stack([gradient.sum(0) for gradient in gradients]).sum(0)
        return None, to_weight, to_bias, to_second * plan.scale, to_second_bias
