import pytest
import torch

from spike_kit.models.kg_encoder import RelationSampler
from spike_kit.models.sparse import SparsePattern, sampled_product, spmm


def test_sparse_products_equal_dense_ones(device: torch.device) -> None:
    pattern = SparsePattern(torch.tensor([0, 0, 1, 3, 3, 3]), torch.tensor([1, 4, 0, 1, 2, 4]), 5, 6)
    generator = torch.Generator().manual_seed(0)
    values, dense = torch.rand(6, generator=generator), torch.randn(6, 3, generator=generator)
    matrix = torch.zeros(5, 6).index_put((pattern.rows, pattern.columns), values)
    on_device = SparsePattern(pattern.rows.to(device), pattern.columns.to(device), 5, 6)
    x, y = dense.clone().to(device).requires_grad_(), dense.clone().requires_grad_()
    found, expected = spmm(on_device, values.to(device), x), matrix @ y
    torch.testing.assert_close(found.cpu(), expected)
    weights = torch.randn(5, 3, generator=generator)
    (found * weights.to(device)).sum().backward()
    (expected * weights).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad.cpu(), y.grad)
    sampled = sampled_product(on_device, weights.to(device), dense.to(device))
    torch.testing.assert_close(sampled.cpu(), (weights @ dense.T)[pattern.rows, pattern.columns])
    transposed = spmm(pattern.transpose, values.index_select(0, pattern.transpose_order), weights)
    torch.testing.assert_close(transposed, matrix.T @ weights)


def test_edges_are_sampled_per_relation_without_bias() -> None:
    relation = torch.tensor([0] * 7 + [1] * 4 + [2] * 1 + [3] * 10)
    generator = torch.Generator().manual_seed(0)
    hits = torch.zeros(len(relation))
    for _ in range(2000):
        kept = RelationSampler(relation, 4, 0.5).sample(generator)
        assert torch.bincount(relation[kept], minlength=4).tolist() == [3, 2, 0, 5]
        hits += kept
    share = hits / 2000
    assert (share[:7] - 3 / 7).abs().max() < 0.05
    assert (share[12:] - 0.5).abs().max() < 0.05


@pytest.mark.parametrize(("n", "keep"), [(10, 0.6), (1730, 1 - 0.3)])
def test_shares_are_those_of_the_released_code_and_a_relation_may_be_left_out(n: int, keep: float) -> None:
    relation = torch.tensor([0] * n + [1] * 4)
    kept = RelationSampler(relation, 2, keep, skip=1).sample(torch.Generator().manual_seed(0))
    assert relation[kept].tolist() == [0] * int(keep * n)
