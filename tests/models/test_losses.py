from collections.abc import Callable

import pytest
import torch

from spike_kit.models import losses


def test_matching_of_equal_sides_is_zero_and_never_negative() -> None:
    rows = torch.randn(50, 8, generator=torch.Generator().manual_seed(1))
    assert 0 <= float(losses.matching(rows, 3 * rows)) < 1e-8
    nearly = torch.ones(1000, 8) + 1e-4 * rows[:1].repeat(1000, 1)
    assert float(losses.matching(nearly, nearly)) >= 0


def test_bpr_and_l2_by_hand() -> None:
    assert float(losses.bpr(torch.tensor([1.0]), torch.tensor([1.0]))) == pytest.approx(0.6931, abs=1e-4)
    assert float(losses.l2(torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.0]]))) == pytest.approx(13.0)


def test_l2_of_chosen_rows_counts_each_as_often_as_it_is_chosen() -> None:
    tables = [torch.randn(n, 3, generator=torch.Generator().manual_seed(n)) for n in (5, 4)]
    ids = [torch.tensor([0, 2, 2, 4, 2, 0]), torch.tensor([3, 3, 0, 1, 3, 3])]
    expected = losses.l2(*(table[chosen] for table, chosen in zip(tables, ids, strict=True)))
    torch.testing.assert_close(losses.counted_l2(*zip(tables, ids, strict=True)), expected)


@pytest.mark.parametrize("n_rows", [3, 7, 40], ids=["few rows", "as many as users", "many rows"])
@pytest.mark.parametrize("chunk", [1, 13, 2**18])
def test_softmax_equals_the_plain_cross_entropy(
    n_rows: int, chunk: int, monkeypatch: pytest.MonkeyPatch, resized: Callable[..., None]
) -> None:
    resized(loss_scores=chunk)
    monkeypatch.setattr(losses, "CHUNK_ROWS", 1)
    generator = torch.Generator().manual_seed(2)
    tables = [30 * torch.randn(n, 4, generator=generator, dtype=torch.float64) for n in (7, 6)]
    users = torch.randint(7, (n_rows,), generator=generator)
    positives = torch.randint(6, (n_rows,), generator=generator)
    values, gradients = [], []
    for plain in (False, True):
        u, i = (table.clone().requires_grad_() for table in tables)
        if plain:
            value = torch.nn.functional.cross_entropy(u[users] @ i.T, positives)
        else:
            value = losses.softmax(u, i, users, positives)
        (3 * value).backward()
        values.append(value.detach())
        gradients.append((u.grad, i.grad))
    torch.testing.assert_close(*values)
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected)
