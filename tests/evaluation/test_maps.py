import numpy as np
import pandas as pd
import pytest

from spike_kit.base import paths, storage
from spike_kit.base.errors import DataError
from spike_kit.base.seeds import numpy_generator
from spike_kit.evaluation.maps import aligned, umap_coordinates


def test_coordinates_are_cached_with_their_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = np.arange(40) % 2
    vectors = (numpy_generator(0, "vectors").normal(size=(40, 6)) + 9 * np.eye(6)[groups]).astype(np.float32)
    first = umap_coordinates(vectors, neighbours=5)
    apart = np.linalg.norm(first.to_numpy()[:, None] - first.to_numpy(), axis=2) + 1e9 * np.eye(40)
    assert (groups[apart.argmin(axis=1)] == groups).all()
    (file,) = paths.cache_root().glob("umap--*.parquet")
    stored = storage.read_parquet(file)
    assert stored.attrs["neighbours"] == 5
    assert stored.attrs["shape"] == [40, 6]
    marked = stored.assign(x=7.0).astype(np.float32)
    marked.attrs = stored.attrs
    marked.to_parquet(file)
    assert (umap_coordinates(vectors, neighbours=5)["x"] == 7).all()
    file.write_bytes(b"damaged")
    pd.testing.assert_frame_equal(umap_coordinates(vectors, neighbours=5), first)
    monkeypatch.setattr("spike_kit.evaluation.maps._EXACT_UP_TO", 0)
    umap_coordinates(vectors, neighbours=6)
    assert len(list(paths.cache_root().glob("umap--*.parquet"))) == 2


@pytest.mark.parametrize("n", [4, 5, 15])
@pytest.mark.parametrize("kind", ["different", "equal", "zero"])
def test_few_vectors_have_fewer_neighbours_with_a_warning(n: int, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    vectors = {
        "different": numpy_generator(0, "few").normal(size=(n, 5)),
        "equal": np.ones((n, 5)),
        "zero": np.zeros((n, 5)),
    }
    points = umap_coordinates(vectors[kind])
    assert points.shape == (n, 2)
    assert np.isfinite(points).all(axis=None)
    assert points.attrs["neighbours"] == n - 1
    assert caplog.messages == [f"a map of {n} vectors: {n - 1} neighbours, not 15"]


def test_too_few_vectors_are_refused() -> None:
    with pytest.raises(DataError, match="at least 4 vectors, not 3"):
        umap_coordinates(np.eye(3))


def test_alignment_undoes_turns_and_mirrors() -> None:
    points = numpy_generator(0, "points").normal(size=(30, 2))
    turn = np.array([[0.6, -0.8], [0.8, 0.6]]) @ np.diag([1.0, -1.0])
    moved = points @ turn * 5 + 3
    maps = aligned({"a": pd.DataFrame(points, columns=["x", "y"]), "b": pd.DataFrame(moved, columns=["x", "y"])})
    np.testing.assert_allclose(maps["a"], maps["b"], atol=1e-5)
    constant = aligned({"a": pd.DataFrame(np.ones((3, 2)), columns=["x", "y"])})
    assert np.isfinite(constant["a"]).all(axis=None)
