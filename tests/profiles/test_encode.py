from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from spike_kit.base import paths, storage
from spike_kit.base.errors import ConfigError, DataError, StorageError
from spike_kit.data.dataset import Dataset
from spike_kit.data.vectors import ProfileVectors
from spike_kit.profiles.encode import (
    VectorCache,
    check_fresh,
    encode_profiles,
    encode_texts,
    ensure_vectors,
    vectors_metadata,
)


class Counting:
    """An encoder that hashes texts into vectors and remembers what it was asked; it can fail at the n-th batch."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.texts: list[str] = []
        self.batches = 0
        self.fail_at = fail_at

    def encode(self, texts: Sequence[str], batch_size: int) -> np.ndarray:
        self.batches += 1
        if self.batches == self.fail_at:
            raise KeyboardInterrupt
        assert len(texts) <= batch_size
        self.texts += texts
        return np.stack([vector_of(text) for text in texts])


def vector_of(text: str) -> np.ndarray:
    seed = int(storage.sha256_text(text)[:8], 16)
    return np.random.default_rng(seed).normal(size=5).astype(np.float32)


def test_each_distinct_text_is_encoded_once_ever() -> None:
    encoder = Counting()
    texts = ["bb", "a", "bb", "ccc"]
    first = encode_texts(texts, "fake", encoder, batch_size=2, progress=False)
    assert encoder.texts == ["ccc", "bb", "a"]
    np.testing.assert_array_equal(first, np.stack([vector_of(text) for text in texts]))
    again = encode_texts([*texts, "d"], "fake", encoder, progress=False)
    assert encoder.texts[3:] == ["d"]
    np.testing.assert_array_equal(again[:4], first)
    encode_texts(["a"], "another", encoder, progress=False)
    assert encoder.texts[4:] == ["a"]


def test_an_interrupt_keeps_the_finished_batches() -> None:
    texts = [f"text {n}" for n in range(10)]
    with pytest.raises(KeyboardInterrupt):
        encode_texts(texts, "fake", Counting(fail_at=3), batch_size=2, progress=False)
    encoder = Counting()
    encode_texts(texts, "fake", encoder, batch_size=2, progress=False)
    assert len(encoder.texts) == 6


class Broken:
    """An encoder that returns what it is told."""

    def __init__(self, value: np.ndarray) -> None:
        self.value = value

    def encode(self, texts: Sequence[str], batch_size: int) -> np.ndarray:  # noqa: ARG002
        return self.value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.full((1, 3), np.nan, dtype=np.float32), "returned NaN or infinity"),
        (np.zeros((2, 3), dtype=np.float32), r"returned shape \[2, 3\] for 1 texts"),
        (np.zeros(3, dtype=np.float32), r"returned shape \[3\]"),
    ],
)
def test_a_broken_encoder_is_an_error_and_nothing_is_cached(value: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        encode_texts(["a"], "fake", Broken(value), progress=False)
    encoder = Counting()
    encode_texts(["a"], "fake", encoder, progress=False)
    assert encoder.texts == ["a"]


def test_a_damaged_cache_is_set_aside(caplog: pytest.LogCaptureFixture) -> None:
    encode_texts(["a"], "fake", Counting(), progress=False)
    (file,) = paths.cache_root().glob("*.sqlite")
    file.write_bytes(b"damaged" * 1000)
    encoder = Counting()
    encode_texts(["a"], "fake", encoder, progress=False)
    assert encoder.texts == ["a"]
    assert "not a readable cache" in caplog.text


def test_a_locked_cache_is_an_error_and_is_kept() -> None:
    encode_texts(["a"], "fake", Counting(), progress=False)
    (file,) = paths.cache_root().glob("*.sqlite")
    with sqlite3.connect(file, timeout=0) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StorageError, match="cannot be used: database is locked"):
            VectorCache(file, timeout=0.1).get(["a"])
    other.close()
    assert len(VectorCache(file).get([storage.sha256_text("a")])) == 1


def test_a_folder_with_other_weights_is_another_encoder(folder: Path) -> None:
    encoders = []
    for weights in (b"one", b"two", b"one"):
        (folder / "model.safetensors").write_bytes(weights)
        encoders.append(Counting())
        encode_texts(["a"], str(folder), encoders[-1], progress=False)
    assert [encoder.texts for encoder in encoders] == [["a"], ["a"], []]


def test_a_cache_that_cannot_be_written_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> sqlite3.Connection:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr("spike_kit.profiles.encode.sqlite3.connect", full)
    with pytest.raises(StorageError, match="database or disk is full"):
        encode_texts(["a"], "fake", Counting(), progress=False)


def test_profiles_become_rows_in_the_order_of_ids(data: Dataset) -> None:
    encode_profiles(data, "template", "fake", Counting(), progress=False)
    vectors = data.vectors("template", "fake")
    profiles = data.profiles()
    users = profiles.loc[profiles["subject"] == "user", "text"]
    others = profiles.loc[profiles["subject"] != "user", "text"]
    assert torch.equal(vectors.user, torch.from_numpy(np.stack([vector_of(text) for text in users])))
    assert torch.equal(vectors.entity, torch.from_numpy(np.stack([vector_of(text) for text in others])))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that counts as an encoder; what it holds matters to the hashes only."""
    made = tmp_path / "model"
    (made / "deep").mkdir(parents=True)
    (made / "model.safetensors").write_bytes(b"one")
    (made / "deep" / "config.json").write_bytes(b"{}")
    return made


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[Path]:
    """Files of the encoder folder that were hashed."""
    files: list[Path] = []
    original = storage.sha256_file

    def counted(path: Path) -> str:
        if path.is_relative_to(folder):
            files.append(path)
        return original(path)

    monkeypatch.setattr(storage, "sha256_file", counted)
    return files


def test_files_of_an_encoder_are_hashed_once_per_call(data: Dataset, folder: Path, hashed: list[Path]) -> None:
    name = str(folder)
    encode_texts(data.profiles()["text"].tolist(), name, Counting(), progress=False)
    assert len(hashed) == len(set(hashed)) == 2
    for call in (
        lambda: encode_profiles(data, "template", name, Counting(), progress=False),
        lambda: ensure_vectors(data, "template", name, progress=False),
        lambda: check_fresh(data, "template", name),
        lambda: ensure_vectors(data, "template", f"{name}@pca2", progress=False),
    ):
        hashed.clear()
        call()
        assert len(hashed) == len(set(hashed)) == 2
    data.embeddings_path("template", name).unlink()
    hashed.clear()
    ensure_vectors(data, "template", f"{name}@pca3", progress=False)
    assert len(hashed) == 2


@pytest.mark.parametrize("suffix", ["", "@pca2w"])
def test_vectors_outlive_the_folder_of_their_encoder_but_not_other_weights_in_it(
    data: Dataset, folder: Path, suffix: str
) -> None:
    name = f"{folder}{suffix}"
    encode_profiles(data, "template", name, Counting(), progress=False)
    folder.rename(folder.with_name("elsewhere"))
    check_fresh(data, "template", name)
    assert ensure_vectors(data, "template", name, progress=False).dim in (2, 5)
    folder.with_name("elsewhere").rename(folder)
    (folder / "model.safetensors").write_bytes(b"two")
    with pytest.raises(DataError, match=r"(?s)belong to other weights than the folder .*spike-kit encode world"):
        check_fresh(data, "template", name)
    encode_texts(data.profiles()["text"].tolist(), str(folder), Counting(), progress=False)
    ensure_vectors(data, "template", name, progress=False)
    check_fresh(data, "template", name)


def write_again(data: Dataset, text: str) -> None:
    """Rewrite one profile, encoded under the name ``fake``."""
    profiles = data.profiles()
    profiles.loc[0, "text"] = text
    data.write_profiles("template", profiles)
    encode_texts([text], "fake", Counting(), progress=False)


def test_reduced_vectors_come_from_users_and_entities_together(data: Dataset) -> None:
    encode_profiles(data, "template", "fake@pca3", Counting(), progress=False)
    reduced, base = data.vectors("template", "fake@pca3"), data.vectors("template", "fake")
    rows = torch.cat([base.user, base.entity]).double()
    both = torch.cat([reduced.user, reduced.entity]).double()
    _, singular, _ = torch.linalg.svd(rows - rows.mean(dim=0), full_matrices=False)
    assert torch.allclose(both.mean(dim=0), torch.zeros(3, dtype=torch.float64), atol=1e-6)
    assert torch.allclose(both.square().sum(dim=0).sqrt(), singular[:3], rtol=1e-5)
    stored = ProfileVectors.metadata(data.embeddings_path("template", "fake@pca3"))
    share = singular[:3].square().sum() / singular.square().sum()
    assert float(stored["explained_variance"]) == pytest.approx(float(share), abs=1e-6)
    assert vectors_metadata(data.profiles(), "fake@pca3").items() <= stored.items()


def test_reduced_vectors_follow_their_base(data: Dataset) -> None:
    encode_profiles(data, "template", "fake", Counting(), progress=False)
    base = data.vectors("template", "fake")
    before = ensure_vectors(data, "template", "fake@pca3", progress=False)
    written = data.embeddings_path("template", "fake@pca3").stat().st_mtime_ns
    ensure_vectors(data, "template", "fake@pca3", progress=False)
    assert data.embeddings_path("template", "fake@pca3").stat().st_mtime_ns == written
    write_again(data, "something new")
    with pytest.raises(DataError, match="belong to older texts"):
        check_fresh(data, "template", "fake@pca3")
    after = ensure_vectors(data, "template", "fake@pca3", progress=False)
    assert not torch.equal(before.user, after.user)
    assert torch.equal(data.vectors("template", "fake").entity[0], torch.from_numpy(vector_of("something new")))
    assert torch.equal(data.vectors("template", "fake").entity[1:], base.entity[1:])
    check_fresh(data, "template", "fake@pca3")


def test_reduced_vectors_of_another_base_are_not_fresh(data: Dataset) -> None:
    base = data.embeddings_path("template", "fake")
    encode_profiles(data, "template", "fake@pca3", Counting(), progress=False)
    vectors = data.vectors("template", "fake")
    ProfileVectors(vectors.user + torch.arange(5), vectors.entity).save(base, ProfileVectors.metadata(base))
    with pytest.raises(DataError, match="belong to other vectors than"):
        check_fresh(data, "template", "fake@pca3")
    ensure_vectors(data, "template", "fake@pca3", progress=False)
    check_fresh(data, "template", "fake@pca3")


def test_too_many_components_are_an_error_and_leave_nothing(data: Dataset) -> None:
    with pytest.raises(DataError, match=r"(?s)template by fake@pca6.*largest possible d is 5"):
        encode_profiles(data, "template", "fake@pca6", Counting(), progress=False)
    assert not data.embeddings_path("template", "fake@pca6").exists()


@pytest.mark.parametrize("name", ["fake@pca2", "given:authors"])
def test_texts_alone_are_not_reduced_or_given(name: str) -> None:
    with pytest.raises(ConfigError, match="makes no vectors from texts alone"):
        encode_texts(["a"], name, Counting(), progress=False)
