from __future__ import annotations

import pytest
import torch

from spike_kit.models.kg_encoder import RelationSampler
from spike_kit.models.sparse import SparsePattern, offsets, sampled_product, segment_softmax, spmm
from tests.reference import softmax_by_segment


@pytest.fixture
def pattern() -> SparsePattern:
    rows = torch.tensor([0, 0, 1, 3, 3, 3])
    columns = torch.tensor([1, 4, 0, 1, 2, 4])
    return SparsePattern(rows, columns, 5, 6)


def test_sparse_products_equal_dense_ones(pattern: SparsePattern, device: torch.device) -> None:
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


def test_offsets_and_degrees(pattern: SparsePattern) -> None:
    assert offsets(pattern.rows, 5).tolist() == [0, 2, 3, 3, 6, 6]
    assert pattern.row_degree.tolist() == [2, 1, 0, 3, 0]
    assert pattern.column_degree.tolist() == [1, 2, 1, 0, 2, 0]


def test_segment_softmax_equals_the_plain_form_with_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    segment = torch.tensor([0, 0, 0, 2, 2, 5])
    scores = 30 * torch.randn(6, generator=generator, dtype=torch.float64)
    weights = torch.randn(6, generator=generator, dtype=torch.float64)
    gradients = []
    for form in (segment_softmax, softmax_by_segment):
        x = scores.clone().requires_grad_()
        (form(x, segment, 6) * weights).sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(segment_softmax(scores, segment, 6), softmax_by_segment(scores, segment, 6))
    torch.testing.assert_close(*gradients)


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


def test_a_relation_can_be_left_out() -> None:
    relation = torch.tensor([0, 0, 1, 1, 1, 1])
    kept = RelationSampler(relation, 2, 0.5, skip=1).sample(torch.Generator().manual_seed(0))
    assert relation[kept].tolist() == [0]


def test_share_is_taken_exactly_as_the_released_code_takes_it() -> None:
    relation = torch.zeros(10, dtype=torch.int64)
    assert RelationSampler(relation, 1, 0.6).sample(torch.Generator().manual_seed(0)).sum() == int(0.6 * 10)
    many = torch.zeros(1730, dtype=torch.int64)
    assert RelationSampler(many, 1, 1 - 0.3).sample(torch.Generator().manual_seed(0)).sum() == int((1 - 0.3) * 1730)
