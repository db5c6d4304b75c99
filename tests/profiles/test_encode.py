import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from spike_kit.base import paths, storage
from spike_kit.base.errors import ConfigError, DataError, StorageError
from spike_kit.data.dataset import Dataset
from spike_kit.data.vectors import ProfileVectors
from spike_kit.profiles import encode
from spike_kit.profiles.encode import (
    Reduction,
    VectorCache,
    check_fresh,
    encode_profiles,
    encode_texts,
    ensure_vectors,
    principal_components,
    vectors_metadata,
)


def vector_of(text: str) -> np.ndarray:
    seed = int(storage.sha256_text(text)[:8], 16)
    return np.random.default_rng(seed).normal(size=5).astype(np.float32)


class Recorder:
    """The encoder of every name: hashes texts into vectors and remembers them; it can fail at the n-th batch."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.fail_at = 0
        self.answer: Callable[[Sequence[str]], np.ndarray] = lambda texts: np.stack([vector_of(text) for text in texts])

    def encode(self, texts: Sequence[str], batch_size: int) -> np.ndarray:
        assert len(texts) <= batch_size
        if len(self.batches) + 1 == self.fail_at:
            raise KeyboardInterrupt
        self.batches.append(list(texts))
        return self.answer(texts)

    def asked(self, texts: Sequence[str], name: str = "fake", batch_size: int | None = None) -> list[str]:
        """What is asked for in order to encode texts."""
        before = len(self.batches)
        rows = encode_texts(texts, name, batch_size=batch_size, progress=False)
        np.testing.assert_array_equal(rows, np.stack([vector_of(text) for text in texts]))
        return [text for batch in self.batches[before:] for text in batch]


@pytest.fixture(autouse=True)
def encoder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(encode, "make_encoder", lambda *_: recorder)
    return recorder


def test_each_distinct_text_is_encoded_once_ever(encoder: Recorder) -> None:
    texts = ["bb", "a", "bb", "ccc"]
    assert encoder.asked(texts, batch_size=2) == ["ccc", "bb", "a"]
    assert encoder.asked([*texts, "d"]) == ["d"]
    assert encoder.asked(["a"], "another") == ["a"]


def test_an_interrupt_keeps_the_finished_batches(encoder: Recorder) -> None:
    texts = [f"text {n}" for n in range(10)]
    encoder.fail_at = 3
    with pytest.raises(KeyboardInterrupt):
        encoder.asked(texts, batch_size=2)
    encoder.fail_at = 0
    assert len(encoder.asked(texts)) == 6


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.full((1, 3), np.nan, dtype=np.float32), "returned NaN or infinity"),
        (np.zeros((2, 3), dtype=np.float32), r"returned shape \[2, 3\] for 1 texts"),
        (np.zeros(3, dtype=np.float32), r"returned shape \[3\]"),
    ],
)
def test_a_broken_encoder_is_an_error_and_nothing_is_cached(encoder: Recorder, value: np.ndarray, message: str) -> None:
    usual, encoder.answer = encoder.answer, lambda _: value
    with pytest.raises(DataError, match=message):
        encode_texts(["a"], "fake", progress=False)
    encoder.answer = usual
    assert encoder.asked(["a"]) == ["a"]


def test_a_damaged_cache_is_set_aside_but_one_that_cannot_be_used_is_an_error_and_kept(
    encoder: Recorder, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder.asked(["a"])
    (file,) = paths.cache_root().glob("*.sqlite")
    file.write_bytes(b"damaged" * 1000)
    assert encoder.asked(["a"]) == ["a"]
    assert "not a readable cache" in caplog.text
    with sqlite3.connect(file, timeout=0) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StorageError, match="cannot be used: database is locked"):
            VectorCache(file, timeout=0.1).get(["a"])
    other.close()
    assert encoder.asked(["a"]) == []

    def full(*_: object, **__: object) -> sqlite3.Connection:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(sqlite3, "connect", full)
    with pytest.raises(StorageError, match="database or disk is full"):
        encoder.asked(["b"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that counts as an encoder; what it holds matters to the hashes only."""
    made = tmp_path / "model"
    (made / "deep").mkdir(parents=True)
    (made / "model.safetensors").write_bytes(b"one")
    (made / "deep" / "config.json").write_bytes(b"{}")
    return made


def test_files_of_an_encoder_are_hashed_once_and_other_weights_are_another_encoder(
    encoder: Recorder, data: Dataset, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[Path] = []
    original = storage.sha256_file
    monkeypatch.setattr(storage, "sha256_file", lambda path: hashed.append(path) or original(path))
    assert encoder.asked(["a"], str(folder)) == ["a"]
    encode_profiles(data, "template", str(folder), progress=False)
    ensure_vectors(data, "template", f"{folder}@pca2", progress=False)
    check_fresh(data, "template", f"{folder}@pca2")
    assert sorted(path.name for path in hashed if path.is_relative_to(folder)) == ["config.json", "model.safetensors"]
    (folder / "model.safetensors").write_bytes(b"others")
    assert encoder.asked(["a"], str(folder)) == ["a"]
    (folder / "model.safetensors").write_bytes(b"one")
    assert encoder.asked(["a"], str(folder)) == []


@pytest.mark.parametrize("suffix", ["", "@pca2w"])
def test_vectors_outlive_the_folder_of_their_encoder_but_not_other_weights_in_it(
    data: Dataset, folder: Path, suffix: str
) -> None:
    name = f"{folder}{suffix}"
    encode_profiles(data, "template", name, progress=False)
    folder.rename(folder.with_name("elsewhere"))
    check_fresh(data, "template", name)
    assert ensure_vectors(data, "template", name, progress=False).dim in (2, 5)
    folder.with_name("elsewhere").rename(folder)
    (folder / "model.safetensors").write_bytes(b"others")
    with pytest.raises(DataError, match=r"(?s)belong to other weights.*spike-kit encode world"):
        check_fresh(data, "template", name)
    ensure_vectors(data, "template", name, progress=False)
    check_fresh(data, "template", name)


def test_profiles_become_rows_in_the_order_of_ids(data: Dataset) -> None:
    encode_profiles(data, "template", "fake", progress=False)
    vectors = data.vectors("template", "fake")
    profiles = data.profiles()
    is_user = profiles["subject"] == "user"
    for rows, texts in ((vectors.user, profiles["text"][is_user]), (vectors.entity, profiles["text"][~is_user])):
        np.testing.assert_array_equal(rows, np.stack([vector_of(text) for text in texts]))


def test_reduced_vectors_come_from_users_and_entities_together(data: Dataset) -> None:
    encode_profiles(data, "template", "fake@pca3", progress=False)
    reduced, base = data.vectors("template", "fake@pca3"), data.vectors("template", "fake")
    rows = torch.cat([base.user, base.entity]).numpy()
    expected, share = principal_components(rows, Reduction(3, whiten=False), "here")
    np.testing.assert_array_equal(torch.cat([reduced.user, reduced.entity]), expected)
    stored = ProfileVectors.metadata(data.embeddings_path("template", "fake@pca3"))
    assert stored["explained_variance"] == f"{share:.6f}"
    assert vectors_metadata(data.profiles(), "fake@pca3").items() <= stored.items()


def test_reduced_vectors_follow_their_base_and_its_texts(encoder: Recorder, data: Dataset) -> None:
    before = ensure_vectors(data, "template", "fake@pca3", progress=False)
    base, file = data.vectors("template", "fake"), data.embeddings_path("template", "fake")
    written = data.embeddings_path("template", "fake@pca3").stat().st_mtime_ns
    ensure_vectors(data, "template", "fake@pca3", progress=False)
    assert data.embeddings_path("template", "fake@pca3").stat().st_mtime_ns == written
    profiles = data.profiles()
    profiles.loc[0, "text"] = "something new"
    data.write_profiles("template", profiles)
    with pytest.raises(DataError, match="belong to older texts"):
        check_fresh(data, "template", "fake@pca3")
    after = ensure_vectors(data, "template", "fake@pca3", progress=False)
    assert encoder.batches[-1] == ["something new"]
    assert not torch.equal(before.user, after.user)
    assert torch.equal(data.vectors("template", "fake").entity[1:], base.entity[1:])
    ProfileVectors(base.user + torch.arange(5), base.entity).save(file, ProfileVectors.metadata(file))
    with pytest.raises(DataError, match="belong to other vectors than"):
        check_fresh(data, "template", "fake@pca3")
    ensure_vectors(data, "template", "fake@pca3", progress=False)
    check_fresh(data, "template", "fake@pca3")


def test_components_that_do_not_exist_and_names_without_texts_are_errors(data: Dataset) -> None:
    with pytest.raises(DataError, match=r"(?s)template by fake@pca6.*largest possible d is 5"):
        encode_profiles(data, "template", "fake@pca6", progress=False)
    assert not data.embeddings_path("template", "fake@pca6").exists()
    for name in ("fake@pca2", "given:authors"):
        with pytest.raises(ConfigError, match="makes no vectors from texts alone"):
            encode_texts(["a"], name, progress=False)
