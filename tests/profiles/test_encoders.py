from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from spike_kit.base import paths
from spike_kit.base.errors import ConfigError, DataError
from spike_kit.data.dataset import Dataset
from spike_kit.profiles import ENCODERS
from spike_kit.profiles.encode import (
    DEFAULT_ENCODER,
    EncoderName,
    Reduction,
    SentenceTransformerEncoder,
    TfidfEncoder,
    ensure_vectors,
    make_encoder,
    parse_encoder,
    principal_components,
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("BAAI/bge-m3", EncoderName("transformer", "BAAI/bge-m3", "BAAI/bge-m3", None)),
        ("openai:BAAI/bge:m3", EncoderName("openai", "openai:BAAI/bge:m3", "BAAI/bge:m3", None)),
        ("tfidf-256@pca8", EncoderName("tfidf", "tfidf-256", "256", Reduction(8, whiten=False))),
        ("given:authors@pca64w", EncoderName("given", "given:authors", "authors", Reduction(64, whiten=True))),
        ("all-MiniLM-L6-v2@pca64w", EncoderName("transformer", DEFAULT_ENCODER, DEFAULT_ENCODER, Reduction(64, True))),
    ],
)
def test_a_name_says_kind_model_and_reduction(name: str, expected: EncoderName) -> None:
    assert parse_encoder(name) == expected


NO_ENCODER = ["", " ", "tfidf-x", "tfidf-0", "tfidf", "tfidf-8 ", "openai:", "openai: ", "given:", "OpenAI:m", "gpt:m"]
NO_ENCODER += ["@pca0", "@pca8", "m@pca0", "m@pca8W", "m@pca-8", "m@ica8", "m@pca8@pca4", "openai:m@v1@pca4", "m@"]


@pytest.mark.parametrize("name", NO_ENCODER)
def test_a_name_of_no_known_form_is_an_error_that_lists_the_forms(name: str) -> None:
    with pytest.raises(ConfigError, match=r"(?s)no text encoder named .*openai:<model>, tfidf-<d>, given:<name>.*@pca"):
        parse_encoder(name)


def test_a_folder_may_have_any_name(tmp_path: Path) -> None:
    folder = tmp_path / "my model@v2"
    folder.mkdir()
    assert parse_encoder(str(folder)) == EncoderName("transformer", str(folder), str(folder), None)
    assert parse_encoder(f"{folder}@pca2").reduction == Reduction(2, whiten=False)


def test_the_bundled_encoder_gives_meaning_and_unit_length() -> None:
    encoder = make_encoder(parse_encoder(DEFAULT_ENCODER))
    vectors = encoder.encode(["A film about space travel.", "A movie on astronauts.", "A recipe for soup."], 3)
    assert vectors.shape == (3, 384)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2


def test_weights_that_cannot_be_used_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"(?s)'no/such-model' could not be loaded.*all-MiniLM-L6-v2"):
        SentenceTransformerEncoder("no/such-model")
    monkeypatch.setattr("spike_kit.profiles.encode._BUNDLED_SHA256", "0" * 64)
    with pytest.raises(DataError, match="have sha256"):
        SentenceTransformerEncoder(DEFAULT_ENCODER)


WORDS = ["space", "ship", "rocket", "planet", "alien", "soup", "carrot", "onion", "kitchen", "spoon"]


def made_up_texts(n: int) -> list[str]:
    """Texts about space (even) or cooking (odd)."""
    rng = np.random.default_rng(0)
    extra = [f"word{k}" for k in range(400)]
    topics = [rng.choice(WORDS[5 * (k % 2) :][:5], size=6).tolist() for k in range(n)]
    return [" ".join([*topic, *rng.choice(extra, size=30).tolist()]) for topic in topics]


def test_tfidf_tells_topics_apart_at_unit_length_with_the_same_bytes_on_any_number_of_threads() -> None:
    texts = [*made_up_texts(1500), "the and of", "unheard"]
    vectors = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            vectors.append(TfidfEncoder(128).encode(texts))
    rows, unknown = np.split(vectors[0], [1500])
    assert rows.dtype == np.float32
    assert vectors[0].tobytes() == vectors[1].tobytes()
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    assert not unknown.any()
    similar = rows @ rows.T
    assert similar[::2, ::2].mean() > similar[::2, 1::2].mean() + 0.1
    few = TfidfEncoder(2).encode(["red apple", "green pear", "blue plum"])
    assert few.any(axis=1).sum() >= 2


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["red apple", "green pear", "green pear"], r"(?s)2 different texts with 6 .*largest possible d is 2: tfidf-2"),
        (["apple", "pear", "apple pear plum"], r"largest possible d is 3"),
        (["the", "of and"], "no usable word"),
    ],
)
def test_tfidf_says_how_many_dimensions_are_possible(texts: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        TfidfEncoder(7).encode(texts)


def test_tfidf_of_a_data_set_depends_on_all_texts_and_is_not_cached(data: Dataset) -> None:
    profiles, before = data.profiles(), ensure_vectors(data, "template", "tfidf-8", progress=False)
    assert not paths.cache_root().exists()
    profiles.loc[0, "text"] = "Entirely different words about soup and carrots."
    data.write_profiles("template", profiles)
    assert (before.entity[1:] != ensure_vectors(data, "template", "tfidf-8", progress=False).entity[1:]).any()


def planted(n: int = 500) -> tuple[np.ndarray, np.ndarray]:
    """Vectors with known variances 16, 4, 1, 0.25 along known orthogonal directions, around a far centre."""
    rng = np.random.default_rng(0)
    directions, _ = np.linalg.qr(rng.normal(size=(6, 4)))
    noise = rng.normal(size=(n, 4))
    factors, _ = np.linalg.qr(noise - noise.mean(axis=0))
    scores = factors * np.sqrt(n - 1) * np.array([4, 2, 1, 0.5])
    return scores @ directions.T + 100, directions


def test_principal_components_find_the_planted_directions_whatever_the_order_of_rows() -> None:
    vectors, directions = planted()
    scores, share = principal_components(vectors, Reduction(3, whiten=False), "here")
    signs = np.sign(directions[np.abs(directions).argmax(axis=0), range(4)])
    expected = (vectors - vectors.mean(axis=0)) @ (directions * signs)
    np.testing.assert_allclose(scores, expected[:, :3], atol=1e-4)
    assert share == pytest.approx(21 / 21.25)
    white, _ = principal_components(vectors, Reduction(4, whiten=True), "here")
    np.testing.assert_allclose(np.cov(white.T), np.eye(4), atol=1e-4)
    order = np.random.default_rng(1).permutation(len(vectors))
    np.testing.assert_allclose(
        white[order], principal_components(vectors[order], Reduction(4, whiten=True), "here")[0], atol=1e-4
    )


@pytest.mark.parametrize(
    ("vectors", "reduction", "message"),
    [
        (planted()[0], Reduction(7, whiten=False), r"(?s)have no 7 principal components.*largest possible d is 6"),
        (planted()[0][:3], Reduction(3, whiten=False), "largest possible d is 2"),
        (planted()[0], Reduction(5, whiten=True), r"(?s)vary in 4 directions, .*of unit variance.*possible d is 4"),
        (np.ones((5, 3)), Reduction(1, whiten=False), "all vectors are equal"),
    ],
)
def test_components_that_do_not_exist_are_an_error(vectors: np.ndarray, reduction: Reduction, message: str) -> None:
    with pytest.raises(DataError, match=message):
        principal_components(vectors, reduction, "here")


class Lengths:
    """An encoder that somebody adds: one class, one line."""

    def __init__(self, model: str, _device: object) -> None:
        self.dim = int(model)

    def encode(self, texts: Sequence[str], batch_size: int) -> np.ndarray:  # noqa: ARG002
        return np.array([[len(text) % (place + 2) for place in range(self.dim)] for text in texts], dtype=np.float32)


def test_an_encoder_that_is_added_is_named_cached_and_reduced_like_the_others(data: Dataset) -> None:
    with pytest.raises(ConfigError, match="no text encoder named 'lengths:4'"):
        parse_encoder("lengths:4")
    ENCODERS["lengths"] = Lengths
    try:
        assert parse_encoder("lengths:4@pca2") == EncoderName("lengths", "lengths:4", "4", Reduction(2, whiten=False))
        assert ensure_vectors(data, "template", "lengths:4@pca2", progress=False).dim == 2
        assert len(list(paths.cache_root().glob("vectors--lengths%3A4.sqlite"))) == 1
        with pytest.raises(ConfigError, match=r"lengths:<model>, tfidf-<d>"):
            parse_encoder("widths:4")
    finally:
        del ENCODERS["lengths"]
