import asyncio
from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np
import pytest

from spike_kit.base import paths, storage
from spike_kit.base.errors import ConfigError, DataError, FetchError, LLMError
from spike_kit.data.dataset import Dataset
from spike_kit.profiles import encode
from spike_kit.profiles.encode import (
    OpenAIEncoder,
    TextError,
    TooLongError,
    encode_profiles,
    encode_texts,
    request_batches,
)
from tests.profiles.llm_server import Asked, Reply, ScriptedServer, fails, response, sends

KEY = "sk-'se\\cret/+1234"


def raw_vector(text: str) -> list[float]:
    seed = int(storage.sha256_text(text)[:8], 16)
    return (3 * np.random.default_rng(seed).normal(size=4)).tolist()


def assert_right(rows: np.ndarray, texts: list[str]) -> None:
    """Check that rows are what the server gives for texts, at unit length."""
    expected = np.array([raw_vector(text) for text in texts])
    np.testing.assert_allclose(rows, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-6)


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


def encoded(texts: list[str], batch_size: int | None = None) -> np.ndarray:
    return encode_texts(texts, "openai:m", batch_size=batch_size, progress=False)


@pytest.fixture
def server(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> ScriptedServer:
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.001)
    first(server)
    return server


def changed(change: Callable[[list[dict[str, Any]]], Any]) -> Reply:
    """A correct answer to three texts, but for a change of its list."""
    body = embeddings(["a", "b", "c"])
    change(body["data"])
    return sends(body)


def test_rows_are_in_the_order_of_the_index(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["a", "b", "c"]
    first(server, vectors, changed(lambda data: data.reverse()))
    for _ in range(2):
        assert_right(OpenAIEncoder("m").encode(texts), texts)
    assert server.bodies == [{"input": texts, "model": "m", "encoding_format": "float"}] * 2
    monkeypatch.delenv("OPENAI_API_KEY")
    OpenAIEncoder("m").encode(texts)
    assert [key_of(asked) for asked in server.log] == [KEY.lower(), KEY.lower(), "none"]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (changed(lambda data: data.pop(1)), r"indices 0, 2, expected 0\.\.2, each once"),
        (changed(lambda data: data[1].update(index=0)), r"indices 0, 0, 2, expected 0\.\.2"),
        (changed(lambda data: data[1]["embedding"].__setitem__(0, 1e300)), "NaN or infinity"),
        (changed(lambda data: data[1]["embedding"].__setitem__(0, None)), "NaN or infinity"),
        (changed(lambda data: data[1]["embedding"].pop()), "no.* a list of embeddings of one size"),
        (changed(lambda data: [entry.update(embedding=[]) for entry in data]), r"shape \[3, 0\]"),
        (changed(lambda data: data[0].pop("index")), "no.* a list of embeddings"),
        (sends({"data": None}), "no.* a list of embeddings"),
        (sends(b"<body>Please log in</body>"), "a list of embeddings of one size: a page of HTML: Please log in"),
    ],
)
def test_what_is_not_a_finite_vector_per_text_is_an_error(server: ScriptedServer, answer: Reply, message: str) -> None:
    first(server, answer)
    with pytest.raises(DataError, match=f"openai:m at 127.0.0.1: .*{message}"):
        encoded(["a", "b", "c"])
    assert list(paths.cache_root().glob("*")) == []


@pytest.mark.parametrize(
    ("reply", "kind", "message"),
    [
        (sends({"error": {"code": 402, "message": "no credits"}}), FetchError, "(?s)402: no credits.*check the quota"),
        (sends({"error": "Invalid API key"}), DataError, "(?s)error: Invalid API key.*check OPENAI_API_KEY"),
        (sends(b"", 308, "Location: https://example.org/\r\n"), DataError, "moved to https://example.org/"),
        (sends({"detail": [{"loc": ["input"], "msg": "no list"}]}, 422), DataError, "422: input: no list"),
    ],
)
def test_the_servers_own_words_reach_the_user(
    server: ScriptedServer, reply: Reply, kind: type[Exception], message: str
) -> None:
    server.script = lambda _: reply
    with pytest.raises(kind, match=message):
        OpenAIEncoder("m").encode(["a"])


@pytest.mark.parametrize(("row", "message"), [([1e300, 0], "NaN or infinity: 'bad one'"), ([0, 0], "zeros.*'bad one'")])
def test_a_text_without_a_vector_is_named(server: ScriptedServer, row: list[float], message: str) -> None:
    def answer(asked: Asked) -> dict[str, Any]:
        rows = [row if text == "bad one" else [1.0, len(text)] for text in asked.body["input"]]
        return {"data": [{"index": n, "embedding": row} for n, row in enumerate(rows)]}

    server.script = lambda _: sends(answer)
    with pytest.raises(TextError, match=message):
        encoded(["a", "bad one", "ccc"])


def test_a_busy_server_is_asked_again_but_not_one_whose_quota_is_used_up(server: ScriptedServer) -> None:
    first(server, fails(429, "insufficient_quota"))
    with pytest.raises(FetchError, match="check the quota"):
        OpenAIEncoder("m").encode(["a"])
    assert server.requests == 1
    first(server, vectors, *[fails(429, "rate_limit_exceeded", headers="Retry-After-Ms: 1\r\n")] * 8)
    assert_right(OpenAIEncoder("m").encode(["a"]), ["a"])
    assert server.requests == 10


@pytest.mark.parametrize(
    ("status", "kind", "hint"),
    [
        (401, DataError, "check OPENAI_API_KEY"),
        (404, DataError, "name of the model"),
        (429, FetchError, "check the quota"),
        (500, FetchError, "run again"),
    ],
)
def test_a_refusal_says_what_to_do_and_never_the_key(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, status: int, kind: type[Exception], hint: str
) -> None:
    monkeypatch.setattr(encode, "_RETRIES", 0)
    message = "x" * 150 + f" you sent {KEY}, and again: " + "x" * 60 + KEY
    for body in ({"error": {"message": message}}, message.encode()):
        server.script = lambda _, body=body: sends(body, status)
        with pytest.raises(kind, match=rf"(?s)you sent \[key\], and.*{hint}") as caught:
            OpenAIEncoder("m").encode(["a"])
        assert "cret" not in str(caught.value)
        assert caught.value.__suppress_context__


TOO_LONG = "the inputs are too long"


@pytest.mark.parametrize("reply", [fails(400, message=TOO_LONG), sends({"detail": TOO_LONG}, 413)])
def test_a_profile_too_long_for_the_server_is_named(server: ScriptedServer, data: Dataset, reply: Reply) -> None:
    server.script = lambda _: reply
    with pytest.raises(TooLongError, match=f"(?s)4..: {TOO_LONG}.*: 'a long one'.*shorten the"):
        OpenAIEncoder("m").encode(["one", "a long one", "two"])
    profiles = data.profiles()
    profiles.loc[3, "text"] = f"{profiles['text'][3]}{' and so on' * 20}"
    data.write_profiles("long", profiles)
    with pytest.raises(DataError, match=rf"(?s)profile of item 3: .*4..: {TOO_LONG}.*shorten the"):
        encode_profiles(data, "long", "openai:m", progress=False)


def test_a_server_that_is_not_there_or_has_no_address_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with ScriptedServer() as closed:
        url = closed.base_url
    monkeypatch.setattr(encode, "_RETRIES", 0)
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    with pytest.raises(FetchError, match=r"(?s)openai:m at 127.0.0.1: Connection error.*OPENAI_BASE_URL"):
        OpenAIEncoder("m").encode(["a"])
    for wrong in ("localhost", url.replace("://", "://someone:password@")):
        monkeypatch.setenv("OPENAI_BASE_URL", wrong)
        with pytest.raises(LLMError, match="OPENAI_BASE_URL holds no usable address") as caught:
            OpenAIEncoder("m")
        assert "password" not in str(caught.value)


def test_requests_keep_the_limits_of_texts_and_tokens(server: ScriptedServer) -> None:
    short, long = [f"text {n}" for n in range(5000)], [f"{n:03}" + "é" * 12_000 for n in range(80)]
    assert_right(encoded(short), short)
    encoded(long)
    encoded(["a", "b", "c"], batch_size=2)
    of_long = 300_000 // (24_003 // 3)
    assert [len(texts) for texts in inputs(server)] == [2048, 2048, 904, of_long, of_long, 80 - 2 * of_long, 2, 1]
    assert sorted(chain(*inputs(server))) == sorted([*short, *long, "a", "b", "c"])
    with pytest.raises(ConfigError, match="batch size is 0"):
        encoded(["d"], batch_size=0)
    server.forget()
    longest = "z" * (3 * 8191)
    assert request_batches([longest]) == [slice(0, 1)]
    with pytest.raises(DataError, match=r"about 8192 tokens is too long for OpenAI \(8191\): 'zzzz"):
        encoded(["short", longest + "z"])
    assert server.requests == 0, "a text that is too long is an error before anything is sent"
