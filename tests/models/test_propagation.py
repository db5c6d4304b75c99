import sys
from collections.abc import Callable

import pytest
import torch

from spike_kit.base import devices
from spike_kit.models.kg_encoder import RelationSampler
from spike_kit.models.sparse import SparsePattern, count, positions, product, sampled_product, spmm, transposed_product


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


def random_pattern(n_rows: int, lengths: dict[int, int], seed: int) -> SparsePattern:
    """Rows of some lengths, all others empty, with columns at random out of 50 (one may occur twice)."""
    rows = torch.tensor([row for row, n in sorted(lengths.items()) for _ in range(n)], dtype=torch.int64)
    columns = torch.randint(50, rows.shape, generator=torch.Generator().manual_seed(seed))
    return SparsePattern(rows, columns, n_rows, 50)


LENGTHS: list[tuple[int, dict[int, int]]] = [
    (1, {0: 1000}),
    (9, {2: 300, 3: 1, 7: 64}),
    (40, {row: row for row in range(1, 20)}),
    (5, {0: 4, 1: 4, 4: 4}),
    (3, {}),
]


@pytest.mark.parametrize("limit", [3, 4, 17])
@pytest.mark.parametrize(("n_rows", "lengths"), LENGTHS)
@pytest.mark.parametrize("weighted", [True, False])
def test_long_rows_in_pieces_have_the_same_sums(
    n_rows: int, lengths: dict[int, int], limit: int, weighted: bool, resized: Callable[..., None]
) -> None:
    pattern, generator = random_pattern(n_rows, lengths, limit), torch.Generator().manual_seed(1)
    values = torch.rand(pattern.rows.shape, generator=generator, dtype=torch.float64) if weighted else None
    dense, other = (torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in (50, n_rows))
    plain = product(pattern, values, dense), transposed_product(pattern, values, other)
    resized(bag_rows=limit)
    cut = SparsePattern(pattern.rows, pattern.columns, n_rows, 50)
    torch.testing.assert_close((product(cut, values, dense), transposed_product(cut, values, other)), plain)
    sizes = [level.shape[0] - 1 for level in cut.bags]
    ends = [int(level[-1]) for level in cut.bags]
    assert ends == [pattern.rows.shape[0], *sizes[:-1]]
    assert sizes[-1] == n_rows
    assert all(level.diff().min() >= 0 and level.diff().max() <= limit + 2 for level in cut.bags)
    assert (len(cut.bags) > 1) is (pattern.rows.shape[0] > limit)


def test_on_a_cpu_no_row_is_cut() -> None:
    assert devices.chunks(torch.device("cpu")).bag_rows == sys.maxsize
    pattern = random_pattern(4, {1: 5000}, 0)
    assert len(pattern.bags) == 1
    assert pattern.bags[0] is pattern.row_pointer


@pytest.mark.parametrize("n", [1, 2, 300])
@pytest.mark.parametrize("keep", [0.0, 0.5, 1.0])
def test_a_known_number_of_positions_is_found_without_reading_it(n: int, keep: float) -> None:
    """As the form for other devices does; only shapes exist on the meta device."""
    mask = torch.rand(n, generator=torch.Generator().manual_seed(n)) < keep
    expected = mask.nonzero().flatten()
    assert torch.equal(positions(mask), expected)
    assert torch.equal(positions(mask, len(expected)), expected)
    assert torch.equal(torch.searchsorted(mask.cumsum(0), torch.arange(1, len(expected) + 1)), expected)
    assert positions(mask.to("meta"), len(expected)).shape == expected.shape


@pytest.mark.parametrize(("n_rows", "lengths"), LENGTHS)
def test_degrees_are_those_that_are_counted(n_rows: int, lengths: dict[int, int]) -> None:
    pattern = random_pattern(n_rows, lengths, 0)
    kept = torch.rand(pattern.rows.shape, generator=torch.Generator().manual_seed(2)) < 0.4
    for one in (pattern, pattern.transpose, pattern.subset(kept), pattern.subset(kept, int(kept.sum())).transpose):
        assert torch.equal(one.row_degree, count(one.rows, one.n_rows))
