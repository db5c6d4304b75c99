import pytest
import torch

from spike_kit.base.dense import product, quicken, times


def _matrix(n_rows: int, n_columns: int, transposed: bool, dtype: torch.dtype) -> torch.Tensor:
    shape = (n_columns, n_rows) if transposed else (n_rows, n_columns)
    rows = torch.randn(shape, generator=torch.Generator().manual_seed(n_rows)).to(dtype)
    return rows.T if transposed else rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("transposed", [(False, False), (False, True), (True, False), (True, True)], ids=str)
@pytest.mark.parametrize("sizes", [(300, 64, 20), (20, 64, 300), (1, 5, 1), (3, 1, 4), (0, 4, 3), (3, 4, 0)], ids=str)
def test_a_product_is_that_of_torch_however_its_factors_lie(
    sizes: tuple[int, int, int], transposed: tuple[bool, bool], dtype: torch.dtype
) -> None:
    m, k, n = sizes
    left, right = _matrix(m, k, transposed[0], dtype), _matrix(k, n, transposed[1], dtype)
    found = times(left, right)
    assert (found.shape, found.dtype) == ((m, n), dtype)
    expected = left.double() @ right.double()
    close = 0.05 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(found.double(), expected, rtol=close, atol=close * k**0.5)


def test_rows_of_a_larger_matrix_are_multiplied_as_they_are() -> None:
    large = torch.randn(40, 30, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(times(large[3:20, 2:12], large[:10]), large[3:20, 2:12].clone() @ large[:10].clone())


def test_gradients_of_a_product_are_those_of_torch() -> None:
    left, right = (_matrix(*shape, False, torch.float32).requires_grad_() for shape in ((6, 4), (4, 5)))
    found = torch.autograd.grad(product(left, right).square().sum(), (left, right))
    expected = torch.autograd.grad((left @ right).square().sum(), (left, right))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("bias", [True, False])
def test_a_quickened_model_gives_the_same(bias: bool) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(5, 3, bias)
    model = torch.nn.Sequential(layer, torch.nn.ReLU(), torch.nn.Linear(3, 2))
    x = torch.randn(4, 7, 5)
    expected = model(x)
    quicken(model)
    torch.testing.assert_close(model(x), expected)
    torch.testing.assert_close(model.double()(x.double()), expected.double(), rtol=1e-5, atol=1e-6)
