from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from spike_kit import paths, storage
from spike_kit.data.study import Study
from spike_kit.errors import DataError, StorageError
from spike_kit.profiles.encode import (
    DEFAULT_ENCODER,
    SentenceTransformerEncoder,
    VectorCache,
    encode_profiles,
    encode_texts,
    ensure_vectors,
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
    texts = ["b", "a", "b", "c"]
    first = encode_texts(texts, "fake", encoder, batch_size=2, progress=False)
    assert sorted(encoder.texts) == ["a", "b", "c"]
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


def test_a_folder_with_other_weights_is_another_encoder(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
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


def test_profiles_become_rows_in_the_order_of_ids(study: Study) -> None:
    encode_profiles(study, "template", "fake", Counting(), progress=False)
    vectors = study.vectors("template", "fake")
    profiles = study.profiles()
    users = profiles.loc[profiles["subject"] == "user", "text"]
    others = profiles.loc[profiles["subject"] != "user", "text"]
    assert torch.equal(vectors.user, torch.from_numpy(np.stack([vector_of(text) for text in users])))
    assert torch.equal(vectors.entity, torch.from_numpy(np.stack([vector_of(text) for text in others])))


def test_vectors_are_made_again_when_texts_changed(study: Study) -> None:
    encode_profiles(study, "template", "fake", Counting(), progress=False)
    before = ensure_vectors(study, "template", "fake", progress=False)
    profiles = study.profiles()
    profiles.loc[0, "text"] = "something new"
    study.write_profiles("template", profiles)
    encode_texts(["something new"], "fake", Counting(), progress=False)
    after = ensure_vectors(study, "template", "fake", progress=False)
    assert not torch.equal(before.entity[0], after.entity[0])
    assert torch.equal(before.entity[1:], after.entity[1:])


def test_the_bundled_encoder_gives_meaning_and_unit_length() -> None:
    encoder = SentenceTransformerEncoder(DEFAULT_ENCODER)
    vectors = encoder.encode(["A film about space travel.", "A movie on astronauts.", "A recipe for soup."], 3)
    assert vectors.shape == (3, 384)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2


def test_an_unknown_encoder_is_an_error_that_says_what_works() -> None:
    with pytest.raises(DataError, match=r"(?s)'no/such-model' could not be loaded.*all-MiniLM-L6-v2"):
        SentenceTransformerEncoder("no/such-model")


def test_damaged_weights_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spike_kit.profiles.encode._BUNDLED_SHA256", "0" * 64)
    with pytest.raises(DataError, match="have sha256"):
        SentenceTransformerEncoder(DEFAULT_ENCODER)
