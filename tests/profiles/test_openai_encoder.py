from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np
import pytest

from spike_kit.base import paths, storage
from spike_kit.base.errors import ConfigError, DataError, FetchError
from spike_kit.data.dataset import Dataset
from spike_kit.data.vectors import ProfileVectors
from spike_kit.profiles import openai_encoder
from spike_kit.profiles.encode import encode_profiles, encode_texts, ensure_vectors
from spike_kit.profiles.openai_encoder import OpenAIEncoder, TooLongError, request_batches
from tests.profiles.llm_server import Asked, Reply, ScriptedServer, fails, response, sends

KEY = "sk-'se\\cret/+1234"


def raw_vector(text: str) -> list[float]:
    seed = int(storage.sha256_text(text)[:8], 16)
    return (3 * np.random.default_rng(seed).normal(size=4)).tolist()


def expected_rows(texts: list[str]) -> np.ndarray:
    rows = np.array([raw_vector(text) for text in texts])
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def embeddings(texts: list[str]) -> dict[str, Any]:
    """A correct answer."""
    data = [{"object": "embedding", "index": n, "embedding": raw_vector(text)} for n, text in enumerate(texts)]
    return {"object": "list", "model": "m", "data": data, "usage": {"prompt_tokens": 1, "total_tokens": 1}}


async def vectors(asked: Asked, writer: asyncio.StreamWriter) -> None:
    """A correct answer."""
    writer.write(response(200, embeddings(asked.body["input"])))


def first(server: ScriptedServer, *replies: Reply) -> None:
    """Replies of the first requests; the others are answered correctly."""
    server.script = lambda asked: replies[asked.number - 1] if asked.number <= len(replies) else vectors


def inputs(server: ScriptedServer) -> list[list[str]]:
    return [body["input"] for body in server.bodies]


def key_of(asked: Asked) -> str:
    return asked.head.decode().lower().partition("authorization: bearer ")[2].split("\r\n")[0]


@pytest.fixture
def server(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> ScriptedServer:
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.001)
    first(server)
    return server


def test_openai_vectors_are_those_of_the_server_at_unit_length(server: ScriptedServer) -> None:
    texts = ["one", "two", "drei", "vier"]
    np.testing.assert_allclose(OpenAIEncoder("m").encode(texts), expected_rows(texts), atol=1e-6)
    assert server.bodies == [{"input": texts, "model": "m", "encoding_format": "float"}]
    assert key_of(server.log[0]) == KEY.lower()


def changed(change: Callable[[list[dict[str, Any]]], Any]) -> Reply:
    """A correct answer to three texts, but for a change of its list."""
    body = embeddings(["a", "b", "c"])
    change(body["data"])
    return sends(body)


def test_rows_follow_the_index_and_not_the_order_of_the_answer(server: ScriptedServer) -> None:
    texts = ["a", "b", "c"]
    first(server, changed(lambda data: data.reverse()))
    np.testing.assert_allclose(OpenAIEncoder("m").encode(texts), expected_rows(texts), atol=1e-6)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (changed(lambda data: data.pop(1)), r"indices 0, 2, expected 0\.\.2, each once"),
        (changed(lambda data: data[1].update(index=0)), r"indices 0, 0, 2, expected 0\.\.2"),
        (changed(lambda data: data[2].update(index=True)), r"indices 0, 1, True"),
        (changed(lambda data: data.append({"index": 3, "embedding": [1.0] * 4})), r"indices 0, 1, 2, 3"),
        (changed(lambda data: data[1]["embedding"].__setitem__(0, float("nan"))), "NaN or infinity"),
        (changed(lambda data: data[1]["embedding"].__setitem__(0, 1e300)), "NaN or infinity"),
        (changed(lambda data: data[1]["embedding"].__setitem__(0, None)), "NaN or infinity"),
        (changed(lambda data: data[1]["embedding"].pop()), "no.* a list of embeddings of one size"),
        (changed(lambda data: data[1].update(embedding="abc")), "no.* a list of embeddings"),
        (changed(lambda data: [entry.update(embedding=[]) for entry in data]), r"shape \[3, 0\]"),
        (changed(lambda data: [entry.update(embedding=1.0) for entry in data]), r"shape \[3\]"),
        (changed(lambda data: data[0].pop("index")), "no.* a list of embeddings"),
        (sends({"data": []}), r"indices , expected 0\.\.2"),
        (sends({"data": None}), "no.* a list of embeddings"),
        (sends([]), "no.* a list of embeddings"),
        (sends(b"<html>hello</html>"), "no.* a list of embeddings"),
        (sends(b"\xff\xfe"), "no.* a list of embeddings"),
        (sends(b""), "no.* a list of embeddings"),
    ],
)
def test_an_answer_that_is_not_one_finite_vector_per_text_is_an_error(
    server: ScriptedServer, answer: Reply, message: str
) -> None:
    first(server, answer)
    with pytest.raises(DataError, match=f"openai:m at 127.0.0.1: .*{message}"):
        encode_texts(["a", "b", "c"], "openai:m", OpenAIEncoder("m"), progress=False)
    assert list(paths.cache_root().glob("*")) == []


def test_a_busy_server_is_asked_again(server: ScriptedServer) -> None:
    first(server, *[fails(429, "rate_limit_exceeded", headers="Retry-After-Ms: 1\r\n")] * 8)
    np.testing.assert_allclose(OpenAIEncoder("m").encode(["a"]), expected_rows(["a"]), atol=1e-6)
    assert server.requests == 9


@pytest.mark.parametrize(
    ("status", "kind", "hint"),
    [
        (400, DataError, "name of the model"),
        (401, DataError, "check OPENAI_API_KEY"),
        (403, DataError, "check OPENAI_API_KEY"),
        (404, DataError, "name of the model"),
        (429, FetchError, "check the quota"),
        (500, FetchError, "run again"),
    ],
)
@pytest.mark.parametrize("form", ["json", "text"])
def test_a_refusal_says_what_to_do_and_never_the_key(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, status: int, kind: type[Exception], hint: str, form: str
) -> None:
    message = "x" * 150 + f" you sent {KEY}, and again: " + "x" * 60 + KEY
    reply = sends({"error": {"message": message}} if form == "json" else message.encode(), status)
    monkeypatch.setattr(openai_encoder, "_RETRIES", 0)
    first(server, reply)
    with pytest.raises(kind) as caught:
        OpenAIEncoder("m").encode(["a"])
    shown = str(caught.value)
    assert "you sent [key], and" in shown
    assert hint in shown
    assert "cret" not in shown
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (400, {"error": "the input length exceeds the context length"}, "400: the input length exceeds the context"),
        (400, {"error": {"message": "the input length exceeds the context length"}}, "400: the input length exceeds"),
        (413, {"detail": "inputs are too long"}, "413: inputs are too long"),
    ],
)
def test_a_text_that_is_too_long_for_the_server_is_named(
    server: ScriptedServer, status: int, body: Any, words: str
) -> None:
    first(server, sends(body, status))
    with pytest.raises(TooLongError, match=f"(?s){words}.*: 'a long one'.*shorten the profile") as caught:
        OpenAIEncoder("m").encode(["one", "a long one", "two"])
    assert caught.value.text == "a long one"


def test_a_profile_that_is_too_long_for_the_server_is_named(server: ScriptedServer, data: Dataset) -> None:
    first(server, sends({"error": "the input length exceeds the context length"}, 400))
    profiles = data.profiles().copy()
    profiles.loc[3, "text"] = f"{profiles['text'][3]}{' and so on' * 20}"
    data.write_profiles("long", profiles)
    with pytest.raises(DataError, match=r"(?s)profile of item 3: .*400: the input length exceeds.*shorten the profile"):
        encode_profiles(data, "long", "openai:m", progress=False)


def test_what_a_server_says_instead_of_vectors_is_shown(server: ScriptedServer) -> None:
    first(server, sends(b"<html><body>Please log in</body></html>"))
    with pytest.raises(DataError, match="not a list of embeddings of one size: <html><body>Please log in"):
        OpenAIEncoder("m").encode(["a"])


def test_no_server_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with ScriptedServer() as closed:
        url = closed.base_url
    monkeypatch.setenv("OPENAI_BASE_URL", url.replace("://", "://someone:password@"))
    monkeypatch.setattr(openai_encoder, "_RETRIES", 0)
    with pytest.raises(FetchError, match=r"(?s)openai:m at 127.0.0.1: Connection error.*OPENAI_BASE_URL") as caught:
        OpenAIEncoder("m").encode(["a"])
    assert "password" not in str(caught.value)


@pytest.mark.parametrize("url", ["", "https://api.openai.com/v1", "https://eu.api.openai.com/v1"])
def test_openai_itself_needs_a_key(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="OPENAI_API_KEY is not set"):
        OpenAIEncoder("m")


def test_another_server_needs_no_key(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    OpenAIEncoder("m").encode(["a"])
    assert key_of(server.log[0]) == "none"


def test_a_base_url_without_a_host_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "localhost")
    with pytest.raises(ConfigError, match="OPENAI_BASE_URL is no address"):
        OpenAIEncoder("m")


def test_many_short_texts_go_in_requests_of_2048(server: ScriptedServer) -> None:
    texts = [f"text {n}" for n in range(5000)]
    vectors = encode_texts(texts, "openai:m", OpenAIEncoder("m"), progress=False)
    assert [len(texts) for texts in inputs(server)] == [2048, 2048, 904]
    np.testing.assert_allclose(vectors, expected_rows(texts), atol=1e-6)


def test_few_long_texts_go_in_requests_of_300_000_tokens(server: ScriptedServer) -> None:
    texts = [f"{n:03}" + "é" * 12_000 for n in range(80)]
    encode_texts(texts, "openai:m", OpenAIEncoder("m"), progress=False)
    tokens = 24_003 // 3
    assert [len(texts) for texts in inputs(server)] == [300_000 // tokens, 300_000 // tokens, 80 - 2 * 37]
    assert sorted(chain(*inputs(server))) == texts


@pytest.mark.parametrize("batch_size", [1, 7, 2048, 10_000])
def test_requests_hold_every_text_once_in_order_and_keep_the_limits(batch_size: int) -> None:
    rng = np.random.default_rng(0)
    texts = ["x" * length for length in rng.integers(1, 3 * 8191, size=300)] + ["y"] * 5000
    batches = [texts[part] for part in request_batches(texts, batch_size)]
    assert list(chain(*batches)) == texts
    assert all(1 <= len(batch) <= min(batch_size, 2048) for batch in batches)
    assert all(sum(-(-len(text) // 3) for text in batch) <= 300_000 for batch in batches)
    assert request_batches([]) == []


def test_a_text_that_is_too_long_is_an_error_before_anything_is_sent(server: ScriptedServer) -> None:
    longest = "z" * (3 * 8191)
    assert request_batches([longest]) == [slice(0, 1)]
    with pytest.raises(DataError, match=r"about 8192 tokens is too long for OpenAI \(8191\): 'zzzz"):
        encode_texts(["short", longest + "z"], "openai:m", OpenAIEncoder("m"), progress=False)
    assert server.requests == 0


def test_a_smaller_batch_size_is_kept(server: ScriptedServer) -> None:
    encode_texts(["a", "b", "c"], "openai:m", OpenAIEncoder("m"), batch_size=2, progress=False)
    assert [len(texts) for texts in inputs(server)] == [2, 1]
    with pytest.raises(ConfigError, match="batch size is 0"):
        encode_texts(["d"], "openai:m", OpenAIEncoder("m"), batch_size=0, progress=False)


def test_ten_more_texts_are_ten_texts_more(server: ScriptedServer) -> None:
    texts = [f"text {n}" for n in range(3000)]
    first = encode_texts(texts, "openai:m", OpenAIEncoder("m"), progress=False)
    more = [f"new {n}" for n in range(10)]
    again = encode_texts([*more, *texts], "openai:m", OpenAIEncoder("m"), progress=False)
    assert sorted(inputs(server)[-1]) == more
    assert server.requests == 3
    np.testing.assert_array_equal(again[10:], first)


def test_an_error_keeps_the_requests_before_it(server: ScriptedServer) -> None:
    texts = [f"text {n}" for n in range(3000)]
    first(server, vectors, sends({"data": []}))
    with pytest.raises(DataError):
        encode_texts(texts, "openai:m", OpenAIEncoder("m"), progress=False)
    encode_texts(texts, "openai:m", OpenAIEncoder("m"), progress=False)
    assert [len(texts) for texts in inputs(server)] == [2048, 952, 952]


def test_openai_vectors_of_a_study_need_no_server_once_they_are_known(
    server: ScriptedServer, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = ensure_vectors(data, "template", "openai:m", progress=False)
    texts = data.profiles()["text"].tolist()
    assert sorted(chain(*inputs(server))) == sorted(set(texts))
    np.testing.assert_allclose(vectors.entity.numpy(), expected_rows(texts[: len(data.entities)]), atol=1e-6)
    monkeypatch.delenv("OPENAI_BASE_URL")
    monkeypatch.delenv("OPENAI_API_KEY")
    data.embeddings_path("template", "openai:m").unlink()
    again = ensure_vectors(data, "template", "openai:m", progress=False)
    assert again.user.equal(vectors.user)


def test_a_reduction_of_openai_vectors_encodes_the_profiles_once(server: ScriptedServer, data: Dataset) -> None:
    encode_profiles(data, "template", "openai:m@pca2w", progress=False)
    asked = server.requests
    assert asked
    vectors = ensure_vectors(data, "template", "openai:m@pca2w", progress=False)
    assert server.requests == asked
    rows = np.concatenate([vectors.user.numpy(), vectors.entity.numpy()])
    np.testing.assert_allclose(np.cov(rows.T), np.eye(2), atol=1e-4)
    stored = ProfileVectors.metadata(data.embeddings_path("template", "openai:m@pca2w"))
    assert 0 < float(stored["explained_variance"]) < 1
