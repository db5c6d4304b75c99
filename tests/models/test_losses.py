from __future__ import annotations

import pytest
import torch

from spike_kit.models import losses
from tests.reference import matching_by_pairs


@pytest.mark.parametrize("shape", [(7, 5), (40, 5), (3, 12, 4)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_matching_equals_the_form_over_all_pairs(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    a = torch.randn(shape, generator=generator, dtype=dtype)
    b = torch.randn(shape, generator=generator, dtype=dtype) + 0.3
    gradients, values = [], []
    for form in (losses.matching, matching_by_pairs):
        x, y = a.clone().requires_grad_(), b.clone().requires_grad_()
        value = form(x, y)
        value.backward()
        values.append(value.detach())
        gradients.append((x.grad, y.grad))
    torch.testing.assert_close(values[0], values[1], rtol=tolerance, atol=tolerance)
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_matching_of_equal_sides_is_zero_and_never_negative() -> None:
    rows = torch.randn(50, 8, generator=torch.Generator().manual_seed(1))
    assert 0 <= float(losses.matching(rows, 3 * rows)) < 1e-8
    nearly = torch.ones(1000, 8) + 1e-4 * rows[:1].repeat(1000, 1)
    assert float(losses.matching(nearly, nearly)) >= 0


def test_bpr_and_l2_by_hand() -> None:
    assert float(losses.bpr(torch.tensor([1.0]), torch.tensor([1.0]))) == pytest.approx(0.6931, abs=1e-4)
    assert float(losses.l2(torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.0]]))) == pytest.approx(13.0)


@pytest.mark.parametrize("kind", ["softmax", "cosine_softmax"])
def test_softmax_losses_by_hand(kind: losses.RecommendationLoss) -> None:
    generator = torch.Generator().manual_seed(2)
    users, items = torch.randn(3, 4, generator=generator), torch.randn(6, 4, generator=generator)
    target = torch.tensor([0, 5, 2])
    scores = users @ items.T
    if kind == "cosine_softmax":
        scores = scores / users.norm(dim=1, keepdim=True) / items.norm(dim=1) / 0.2
    expected = -scores.log_softmax(1)[torch.arange(3), target].mean()
    found = losses.recommendation_loss(kind, users, items[target], items[target], items, target, 0.2)
    torch.testing.assert_close(found, expected)
