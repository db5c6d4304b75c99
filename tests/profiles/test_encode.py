import re
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.numpy import save
from threadpoolctl import threadpool_limits

from spike_kit.base import paths, storage
from spike_kit.base.errors import ConfigError, DataError, StorageError
from spike_kit.data.dataset import Dataset
from spike_kit.data.vectors import ProfileVectors
from spike_kit.profiles import encode, transformer
from spike_kit.profiles.encode import (
    DEFAULT_ENCODER,
    EncoderName,
    Reduction,
    TextError,
    check_fresh,
    encode_profiles,
    encode_texts,
    ensure_vectors,
    make_encoder,
    parse_encoder,
    principal_components,
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


@pytest.fixture
def encoder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(encode, "make_encoder", lambda *_: recorder)
    return recorder


def test_each_text_is_encoded_once_ever_even_after_a_stop(encoder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["bb", "a", "bb", "ccc"]
    assert encoder.asked(texts, batch_size=2) == ["ccc", "bb", "a"]
    assert encoder.asked([*texts, "d"]) == ["d"]
    assert encoder.asked(["a"], "another") == ["a"]
    many, encoder.fail_at = [f"text {n}" for n in range(10)], len(encoder.batches) + 3
    with pytest.raises(KeyboardInterrupt):
        encoder.asked(many, batch_size=2)
    encoder.fail_at = 0
    assert len(encoder.asked(many)) == 6
    monkeypatch.delattr(encode, "make_encoder")
    assert encoder.asked([*texts, *many]) == [], "vectors that are known need no encoder, no server and no key"


def test_a_broken_encoder_is_an_error_and_nothing_is_cached(encoder: Recorder) -> None:
    usual = encoder.answer
    for value, message in (
        (np.full((1, 3), np.nan, dtype=np.float32), "returned NaN or infinity"),
        (np.zeros((2, 3), dtype=np.float32), r"returned shape \[2, 3\] for 1 texts"),
        (np.zeros(3, dtype=np.float32), r"returned shape \[3\]"),
    ):
        encoder.answer = lambda _, value=value: value
        with pytest.raises(DataError, match=message):
            encode_texts(["a"], "fake", progress=False)
    encoder.answer = usual
    assert encoder.asked(["a"]) == ["a"]


def test_texts_without_a_vector_are_named(encoder: Recorder, data: Dataset) -> None:
    usual = encoder.answer
    bad = data.profiles()["text"][2]
    for wrong, message in ((np.nan, "profile of item 2: encoder 'fake' returned NaN"), (0, "item 2: .*zeros or NaN")):
        encoder.answer = lambda texts, wrong=wrong: np.stack(
            [usual([t])[0] * (wrong if t == bad else 1) for t in texts]
        )
        with pytest.raises(DataError, match=message):
            encode_profiles(data, "template", "fake", progress=False)
        next(iter(paths.cache_root().glob("*.sqlite")), paths.cache_root()).unlink(missing_ok=True)


def length(texts: Sequence[str]) -> np.ndarray:
    """Vectors of an encoder that sees only how many words a text has, as without a tokenizer."""
    return np.array([[1, len(text.split())] for text in texts], dtype=np.float32)


@pytest.mark.parametrize(
    ("texts", "problem"),
    [
        (["red apple", "green pear", "blue plum", "a tale", "one more text"], "error"),
        (["a tale of", "b story by", "c d"], "error"),
        (["red apple", "green pear", "a", "b c d", "e f g h"], "warning"),
        (["red apple", "Apple,  RED", "apple red!", "one more text"], ""),
        (["red apple", "one more text"], ""),
        (["apple"], ""),
        ([f"{'word ' * 150}{n}" for n in range(5)], ""),
    ],
)
def test_different_texts_of_equal_vectors_are_an_error(
    encoder: Recorder, caplog: pytest.LogCaptureFixture, texts: list[str], problem: str
) -> None:
    encoder.answer = length
    message = rf"encoder 'fake' gives \d of {len(texts)} texts equal vectors: '"
    if problem == "error":
        with pytest.raises(TextError, match=rf"(?s){message}.*its tokenizer.*then remove .*sqlite"):
            encode_texts(texts, "fake", progress=False)
    else:
        encode_texts(texts, "fake", progress=False)
        assert bool(re.search(message, caplog.text)) == (problem == "warning")


def test_tfidf_may_give_equal_vectors() -> None:
    texts = ["red apple", "the red apple is by her", "green pear", "a green pear of his"]
    assert len(np.unique(encode_texts(texts, "tfidf-1", progress=False).round(5))) <= 2


def test_a_damaged_row_of_the_cache_is_encoded_again(encoder: Recorder) -> None:
    encoder.asked(["a", "b", "c"])
    (file,) = paths.cache_root().glob("*.sqlite")
    with sqlite3.connect(file) as database:
        for text, vector in (("a", b"odd"), ("b", "words"), ("c", b"")):
            database.execute("UPDATE vectors SET vector=? WHERE key=?", (vector, storage.sha256_text(text)))
    database.close()
    assert sorted(encoder.asked(["a", "b", "c"])) == ["a", "b", "c"]


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
            encode.VectorCache(file, timeout=0.1).get(["a"])
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


@pytest.mark.parametrize("suffix", ["", "@pca2w"])
def test_files_of_an_encoder_are_hashed_once_and_vectors_outlive_them_but_not_other_weights(
    encoder: Recorder, data: Dataset, folder: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    hashed: list[Path] = []
    original = storage.sha256_file
    monkeypatch.setattr(storage, "sha256_file", lambda path: hashed.append(path) or original(path))
    name = f"{folder}{suffix}"
    assert encoder.asked(["a"], str(folder)) == ["a"]
    encode_profiles(data, "template", name, progress=False)
    ensure_vectors(data, "template", name, progress=False)
    check_fresh(data, "template", name)
    assert sorted(path.name for path in hashed if path.is_relative_to(folder)) == ["config.json", "model.safetensors"]
    folder.rename(folder.with_name("elsewhere"))
    check_fresh(data, "template", name)
    assert ensure_vectors(data, "template", name, progress=False).dim in (2, 5)
    folder.with_name("elsewhere").rename(folder)
    (folder / "model.safetensors").write_bytes(b"others")
    with pytest.raises(DataError, match=r"(?s)belong to other weights.*spike-kit encode world"):
        check_fresh(data, "template", name)
    assert encoder.asked(["a"], str(folder)) == ["a"]
    ensure_vectors(data, "template", name, progress=False)
    check_fresh(data, "template", name)
    (folder / "model.safetensors").write_bytes(b"one")
    assert encoder.asked(["a"], str(folder)) == []


@pytest.mark.usefixtures("encoder")
def test_profiles_become_rows_in_the_order_of_ids_and_are_reduced_together(data: Dataset) -> None:
    encode_profiles(data, "template", "fake@pca3", progress=False)
    reduced, base = data.vectors("template", "fake@pca3"), data.vectors("template", "fake")
    profiles = data.profiles()
    entities_first = profiles.sort_values("subject", key=lambda subject: subject == "user", kind="stable")
    rows = torch.cat([base.entity, base.user]).numpy()
    np.testing.assert_array_equal(rows, np.stack([vector_of(text) for text in entities_first["text"]]))
    rows = torch.cat([base.user, base.entity]).numpy()
    expected, share = principal_components(rows, Reduction(3, whiten=False), "here")
    np.testing.assert_array_equal(torch.cat([reduced.user, reduced.entity]), expected)
    stored = ProfileVectors.metadata(data.embeddings_path("template", "fake@pca3"))
    assert stored["explained_variance"] == f"{share:.6f}"
    assert encode.vectors_metadata(profiles, "fake@pca3").items() <= stored.items()


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


@pytest.mark.usefixtures("encoder")
def test_components_that_do_not_exist_and_names_without_texts_are_errors(data: Dataset) -> None:
    with pytest.raises(DataError, match=r"(?s)template by fake@pca6.*largest possible d is 5"):
        encode_profiles(data, "template", "fake@pca6", progress=False)
    assert not data.embeddings_path("template", "fake@pca6").exists()
    for name in ("fake@pca2", "given:authors"):
        with pytest.raises(ConfigError, match="makes no vectors from texts alone"):
            encode_texts(["a"], name, progress=False)


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


def encoded(name: str, texts: Sequence[str]) -> np.ndarray:
    return make_encoder(parse_encoder(name)).encode(texts, len(texts))


def test_the_bundled_encoder_gives_meaning_and_unit_length() -> None:
    vectors = encoded(DEFAULT_ENCODER, ["A film about space travel.", "A movie on astronauts.", "A recipe for soup."])
    assert vectors.shape == (3, 384)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2


def test_weights_that_cannot_be_used_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformer, "_BUNDLED_SHA256", "0" * 64)
    for name, message in (("no/such-model", "could not be loaded.*all-MiniLM-L6-v2"), (DEFAULT_ENCODER, "have sha256")):
        with pytest.raises(DataError, match=f"(?s){message}"):
            make_encoder(parse_encoder(name))


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:53\nsize 90868376\n"


class Panic(BaseException):
    """What a library in Rust raises."""


@pytest.mark.parametrize(
    ("file", "content", "error", "message"),
    [
        (
            "model.safetensors",
            POINTER,
            SafetensorError("header too large"),
            "is a pointer of Git LFS.*header too large.*pull",
        ),
        ("vocab.txt", POINTER, KeyError("x"), "is a pointer of Git LFS.*KeyError.*git lfs pull"),
        (
            "model.safetensors",
            save({"a": np.ones(100)})[:-1],
            Panic("rust"),
            "is cut off or damaged.*Panic: rust.*again",
        ),
        ("model.safetensors", b"", ValueError(), "is cut off or damaged"),
        (
            "deep/tokenizer.json",
            b'{"model": ',
            TypeError("y"),
            "is cut off or damaged.*TypeError: y.*download it again",
        ),
        ("config.json", b"\xff\xfe\x00", OSError("z"), "is cut off or damaged"),
        ("pytorch_model.bin", b"PK\x03\x04" + bytes(1000), RuntimeError("miniz"), "is cut off or damaged.*miniz"),
        ("pytorch_model-00001-of-00002.bin", b"", EOFError(), "is cut off or damaged.*EOFError"),
    ],
)
def test_a_damaged_file_of_an_encoder_is_named(
    tmp_path: Path, file: str, content: bytes, error: BaseException, message: str
) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "training_args.bin").write_bytes(b"of no interest")
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_bytes(content)
    with (
        pytest.raises(DataError, match=f"(?s)encoder 'm' could not be loaded: {tmp_path / file} {message}"),
        transformer.explained("m", "could not be loaded", tmp_path),
    ):
        raise error


def test_files_that_may_not_be_read_are_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", refused)
        with pytest.raises(
            DataError, match=rf"(?s)could not be loaded: {folder}/\S+ cannot be read \(Permission denied\)"
        ):
            encode_texts(["a"], str(folder), progress=False)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "is_dir", refused)
        with pytest.raises(DataError, match=r"could not be loaded: .*Permission denied"):
            make_encoder(parse_encoder(str(folder)))


def test_a_hub_folder_of_this_machine_is_looked_at_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    file = tmp_path / "models--a--b" / "snapshots" / "1" / "config.json"
    file.parent.mkdir(parents=True)
    file.write_bytes(POINTER)
    with (
        pytest.raises(DataError, match=f"'a/b' could not be loaded: {file} is a pointer"),
        transformer.explained("a/b", "could not be loaded"),
    ):
        raise RuntimeError
    with (
        pytest.raises(DataError, match="'c/d' could not be loaded: RuntimeError: no network"),
        transformer.explained("c/d", "could not be loaded"),
    ):
        raise RuntimeError("no network")


@pytest.mark.parametrize(("tokens", "wanted", "refused"), [(5, 30522, True), (100, 201, True), (100, 128, False)])
def test_a_tokenizer_of_too_few_tokens_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tokens: int, wanted: int, refused: bool
) -> None:
    config = SimpleNamespace(vocab_size=wanted)
    model = SimpleNamespace(modules=list, tokenizer=range(tokens), transformers_model=SimpleNamespace(config=config))
    library = SimpleNamespace(SentenceTransformer=lambda *_, **__: model)
    monkeypatch.setattr(transformer, "require", lambda *_: library)
    with pytest.raises(DataError, match=f"has {tokens} tokens, .* {wanted}: is a file") if refused else nullcontext():
        make_encoder(parse_encoder(str(folder)))


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
            vectors.append(encoded("tfidf-128", texts))
    rows, unknown = np.split(vectors[0], [1500])
    assert rows.dtype == np.float32
    assert vectors[0].tobytes() == vectors[1].tobytes()
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    assert not unknown.any()
    similar = rows @ rows.T
    assert similar[::2, ::2].mean() > similar[::2, 1::2].mean() + 0.1
    few = encoded("tfidf-2", ["red apple", "green pear", "blue plum"])
    assert few.any(axis=1).sum() >= 2


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["red apple", "green pear", "green pear"], r"(?s)2 different texts with 6 .*largest possible d is 2: tfidf-2"),
        (["apple", "pear", "apple pear plum"], r"largest possible d is 3"),
        (["apple", "apple"], r"(?s)1 different texts with 1 words .*use another encoder"),
        (["the", "of and"], "no usable word"),
    ],
)
def test_tfidf_says_how_many_dimensions_are_possible(texts: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        encoded("tfidf-7", texts)


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
