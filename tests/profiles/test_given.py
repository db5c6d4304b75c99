from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from spike_kit.base import storage
from spike_kit.base.errors import ConfigError, DataError
from spike_kit.data.dataset import Dataset
from spike_kit.data.vectors import ProfileVectors
from spike_kit.profiles.encode import check_fresh, encode_profiles, ensure_vectors
from spike_kit.profiles.imported import import_vectors


def given_rows(data: Dataset, dim: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(len(data.users), dim)), rng.normal(size=(len(data.entities), dim))


def write_rows(path: Path, rows: np.ndarray) -> Path:
    """Write vectors in the format that the suffix says; .npz in another order."""
    if path.suffix == ".npy":
        np.save(path, rows)
    elif path.suffix == ".safetensors":
        save_file({"anything": rows}, path)
    else:
        order = np.random.default_rng(1).permutation(len(rows))
        np.savez(path, ids=order, embeddings=rows[order])
    return path


@pytest.mark.parametrize(
    ("suffix", "dtype"), [(".npy", "float16"), (".npz", "float32"), (".safetensors", "float32"), (".npy", "float64")]
)
def test_vectors_of_others_are_used_as_given(data: Dataset, tmp_path: Path, suffix: str, dtype: str) -> None:
    user, entity = (rows.astype(dtype) for rows in given_rows(data))
    files = write_rows(tmp_path / f"u{suffix}", user), write_rows(tmp_path / f"e{suffix}", entity)
    written = import_vectors(data, "template", "authors", *files)
    assert written == data.embeddings_path("template", "given:authors")
    data.write_profiles("template", data.profiles().assign(text="other texts do not matter"))
    vectors = ensure_vectors(data, "template", "given:authors")
    check_fresh(data, "template", "given:authors")
    assert torch.equal(vectors.user, torch.from_numpy(user.astype(np.float32)))
    assert torch.equal(vectors.entity, torch.from_numpy(entity.astype(np.float32)))
    assert encode_profiles(data, "template", "given:authors") == written
    assert ProfileVectors.metadata(written)["user_sha256"] == storage.sha256_file(files[0])


def test_given_vectors_need_no_profiles_and_their_reduction_follows_them(data: Dataset, tmp_path: Path) -> None:
    user, entity = (write_rows(tmp_path / f"{n}.npy", rows) for n, rows in enumerate(given_rows(data)))
    import_vectors(data, "others", "authors", user, entity)
    before = ensure_vectors(data, "others", "given:authors@pca2w")
    assert before.dim == 2
    import_vectors(data, "others", "given:authors", write_rows(user, given_rows(data)[0] * [1, 2, 3]), entity)
    with pytest.raises(DataError, match="belong to other vectors"):
        check_fresh(data, "others", "given:authors@pca2w")
    assert not torch.equal(ensure_vectors(data, "others", "given:authors@pca2w").user, before.user)
    check_fresh(data, "others", "given:authors@pca2w")


def test_vectors_that_came_with_a_set_can_be_reduced(data: Dataset) -> None:
    user, entity = (torch.from_numpy(rows).float() for rows in given_rows(data))
    ProfileVectors(user, entity).save(data.embeddings_path("release", "authors"), {"source": "release"})
    assert torch.equal(ensure_vectors(data, "release", "authors").user, user)
    assert ensure_vectors(data, "release", "authors@pca2").dim == 2


def test_names_without_vectors_are_errors(data: Dataset, tmp_path: Path) -> None:
    for call in (ensure_vectors, encode_profiles):
        with pytest.raises(DataError, match=r"(?s)no vectors given:authors of profile set 'template'.*import them"):
            call(data, "template", "given:authors@pca2")
    for name in ("", "a@b"):
        with pytest.raises(ConfigError):
            import_vectors(data, "template", name, tmp_path / "u.npy", tmp_path / "e.npy")


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (lambda n: np.delete(np.arange(n), [1, 3]), r"ids must be 0\.\.55, each once; missing 1, 3"),
        (lambda n: np.where(np.arange(n) == 2, 0, np.arange(n)), "missing 2; repeated 0"),
        (lambda n: np.arange(n) + 1, "missing 0; unknown 56"),
    ],
)
def test_ids_that_are_not_dense_are_named(data: Dataset, tmp_path: Path, ids: Callable, message: str) -> None:
    user, entity = given_rows(data)
    chosen = ids(len(user))
    np.savez(tmp_path / "u.npz", ids=chosen, embeddings=user[: len(chosen)])
    with pytest.raises(DataError, match=rf"u\.npz: .*{message}"):
        import_vectors(data, "template", "x", tmp_path / "u.npz", write_rows(tmp_path / "e.npy", entity))
    assert not data.embeddings_path("template", "given:x").exists()


def save_pickle(path: Path) -> None:
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)


@pytest.mark.parametrize(
    ("file", "write", "message"),
    [
        ("u.npy", lambda path: np.save(path, np.ones((55, 3))), r"user has shape \[55, 3\], expected \[56, 3\]"),
        ("u.npy", lambda path: np.save(path, np.ones((56, 3), dtype=int)), "holds int64"),
        (
            "u.npy",
            lambda path: np.save(path, np.full((56, 3), np.nan)),
            "user holds NaN or infinity in row 0, 1",
        ),
        ("u.npy", lambda path: np.save(path, np.ones((56, 2))), r"entity has shape \[\d+, 3\], expected \[\d+, 2\]"),
        ("u.npy", save_pickle, "not a readable .npy file without pickles"),
        ("u.npy", lambda path: path.write_bytes(b"damaged"), "not a readable .npy file"),
        ("u.safetensors", lambda path: path.write_bytes(b"damaged"), "not a readable .safetensors file"),
        ("u.safetensors", lambda path: save_file(dict.fromkeys("ab", np.ones(1)), path), "of one array"),
        ("u.txt", lambda path: path.write_text("1 2 3"), "of no known kind"),
        ("u.npy", lambda _: None, "does not exist"),
    ],
)
def test_files_that_hold_no_vectors_are_errors(
    data: Dataset, tmp_path: Path, file: str, write: Callable[[Path], object], message: str
) -> None:
    write(tmp_path / file)
    with pytest.raises(DataError, match=message):
        import_vectors(data, "template", "x", tmp_path / file, write_rows(tmp_path / "e.npy", given_rows(data)[1]))
    assert not data.embeddings_path("template", "given:x").exists()
