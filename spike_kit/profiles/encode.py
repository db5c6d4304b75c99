"""Texts into vectors: the text encoders, and vectors cached by content, so that nothing is encoded twice.

An encoder is chosen by one name, which is also the name of its vectors.

- ``all-MiniLM-L6-v2``, a Hugging Face id, a folder: a sentence-transformers model.
- ``openai:<model>``: the embeddings of OpenAI, or of a server that speaks the same protocol (``OPENAI_BASE_URL``).
- ``tfidf-<d>``: word counts, reduced to d dimensions; no neural network. Never cached: they depend on all texts.
- ``given:<name>``: vectors that others made; imported, never computed.
- ``<encoder>:<model>``: any other encoder of `spike_kit.profiles.ENCODERS`.
- any of them followed by ``@pca<d>`` or ``@pca<d>w``: its principal components, w for whitened.
"""

import hashlib
import json
import logging
import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from spike_kit.base import paths, storage
from spike_kit.base.errors import ConfigError, DataError, FetchError, SpikeKitError, StorageError, require, some
from spike_kit.data.dataset import Dataset, file_sha256, parts_of
from spike_kit.data.vectors import LEFT_OUT, ProfileVectors, normalised, principal_axes
from spike_kit.profiles import DEFAULT_ENCODER, ENCODERS
from spike_kit.profiles.jobs import LONGEST_MESSAGE, read_body
from spike_kit.profiles.llm import LLMConfig, hide_key
from spike_kit.profiles.shipped import shipped_vectors
from spike_kit.profiles.transformer import explained, folder_of

logger = logging.getLogger(__name__)

_BATCH_SIZE = 32
"""Texts per batch of an encoder that runs here."""

_SAME_WORDS = 100
"""Words of a text in which it must differ from another one, for equal vectors to be an error."""

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

_MADE_FROM = {"texts_sha256": "older texts", "weights": "other weights", "base_sha256": "other vectors"}
"""Facts that stand beside stored vectors, and what vectors belong to where a fact differs."""

_REMEDY = "run again; if it stays so, the server is not compatible"

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
    if reduced and not folder_of(name):
        base, reduction = reduced[1], Reduction(int(reduced[2]), bool(reduced[3]))
    kind, _, model = base.partition(":")
    if kind in ("given", *prefixes) and model.strip() and "@" not in model:
        return EncoderName(kind, base, model, reduction)
    if counted := re.fullmatch(r"tfidf-([1-9][0-9]*)", base):
        return EncoderName("tfidf", base, counted[1], reduction)
    if re.fullmatch(r"(?!tfidf[^/]*$)[^:@\s]+", base) or (base.strip() and folder_of(base)):
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
        If the weights cannot be loaded.
    ConfigError
        If a key is needed and missing.
    MissingExtraError
        If a package is not installed.
    """
    return ENCODERS[name.kind](name.model, device)


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
                f"the largest possible d is {possible}: tfidf-{possible}"
                if weights.shape[1] > 1
                else "use another encoder",
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
            http_client=self._library.DefaultHttpxClient(event_hooks={"response": [_look]}, follow_redirects=False),
        )
        self.model = model

    def encode(self, texts: Sequence[str], batch_size: int = MAX_INPUTS) -> np.ndarray:  # noqa: ARG002
        """Encode the texts of one request, see `request_batches`, into L2-normalised rows ``[n, d_t]`` float32.

        Raises
        ------
        DataError
            If a text is too long, the request is refused, or the answer is not one finite vector per text.
        FetchError
            If the server cannot be reached, has no capacity or fails.
        """
        embed = self._client.embeddings.with_raw_response.create
        try:
            answer = embed(model=self.model, input=list(texts), encoding_format="float")
        except self._library.OpenAIError as error:
            raise self._explain(getattr(error, "response", None), str(error), texts) from None
        try:
            entries = sorted(json.loads(answer.content)["data"], key=lambda entry: entry["index"])
            places = [entry["index"] for entry in entries]
            vectors = np.array([entry["embedding"] for entry in entries], dtype=np.float64)
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            raise self._explain(answer.http_response, "", texts) from None
        if places != list(range(len(texts))):
            raise self._broken(f"its answer has the indices {some(places)}, expected 0..{len(texts) - 1}, each once")
        if vectors.ndim != 2 or not vectors.shape[1]:
            raise self._broken(f"its answer has the shape {list(vectors.shape)} for {len(texts)} texts")
        largest = np.finfo(np.float32).max
        if bad := [text for text, row in zip(texts, vectors, strict=True) if not (np.abs(row) <= largest).all()]:
            raise TextError(self._message("its answer holds NaN or infinity"), _REMEDY, bad)
        return normalised(vectors)

    def _broken(self, problem: str) -> DataError:
        return DataError(self._message(problem), _REMEDY)

    def _message(self, said: str) -> str:
        shown = hide_key(said, self._key)[:LONGEST_MESSAGE]
        return f"openai:{self.model} at {self._client.base_url.host}: {shown}"

    def _explain(self, response: Any, error: str, texts: Sequence[str]) -> SpikeKitError:
        """Say what a response means that holds no vectors, or what went wrong where there is none."""
        status, body, headers = 0, error, {}
        if response is not None:
            status, body, headers = response.status_code, response.content.decode(errors="replace"), response.headers
        _, kind, words = read_body(status, body, headers)
        if not kind:
            return self._broken(f"its answer is not a list of embeddings of one size: {words}")
        message = self._message(words)
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
    if body and read_body(429, body, {})[1] == "quota":
        response.headers["x-should-retry"] = "false"


class TextError(DataError):
    """Something is wrong with some of the texts, or with their vectors.

    Attributes
    ----------
    texts
        These texts.
    """

    def __init__(self, message: str, hint: str, texts: Iterable[str]) -> None:
        self.texts = list(texts)
        super().__init__(f"{message}: {some([f'{text[:60]!r}...' for text in self.texts], limit=3)}", hint)


class TooLongError(TextError):
    """A text is too long for the model: the longest of a request, which must be the one."""

    def __init__(self, message: str, text: str) -> None:
        super().__init__(message, "shorten the profile, or choose another encoder", [text])


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


def principal_components(
    vectors: np.ndarray, reduction: Reduction, where: str, widths: tuple[int, ...] = ()
) -> tuple[np.ndarray, float]:
    """Reduce vectors to their principal components.

    Parameters
    ----------
    vectors
        ``[n, d_t]``; they are centred first.
    reduction
        Number of components d; whitened ones have unit variance.
    where
        What they are, for messages.
    widths
        Where rows may be zero for want of a text (`ProfileVectors.widths`); they stay zero.

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
    axes = principal_axes(torch.from_numpy(vectors), widths=widths)
    centre, variances, loadings = (part.numpy() for part in axes)
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
    if widths:
        scores *= vectors.any(axis=1, keepdims=True)
    return scores.astype(np.float32), float(variances[: reduction.dim].sum() / variances.sum())


def encode_texts(
    texts: Sequence[str],
    name: str,
    *,
    device: torch.device | str = "cpu",
    batch_size: int | None = None,
    progress: bool = True,
) -> np.ndarray:
    """Encode texts, each distinct one once ever; batches hold texts of similar length, the longest first.

    Parameters
    ----------
    texts
        ``n`` texts.
    name
        Name of the encoder, without a reduction; the cache is kept per name and weights.
    device
        Where to encode.
    batch_size
        Texts per batch; every finished batch is kept when the run is interrupted. None: as many as a request to
        OpenAI may hold, 32 for other encoders.
    progress
        Show a bar with an estimate.

    Returns
    -------
    ndarray
        ``[n, d_t]`` float32.

    Raises
    ------
    ConfigError
        If the name is unknown, or names vectors that are not made from texts.
    DataError
        If the encoder returns NaN, infinity, or another number of rows.
    """
    parsed = parse_encoder(name)
    if parsed.reduction or parsed.kind == "given":
        raise ConfigError(f"{name} makes no vectors from texts alone", f"name a plain encoder, {DEFAULT_ENCODER} say")
    if parsed.kind == "tfidf":
        return _encoded(make_encoder(parsed, device), texts, name)
    cache = VectorCache(paths.cache_root() / f"vectors--{quote(name + _weights_version(parsed), safe='')}.sqlite")
    keys = [storage.sha256_text(text) for text in texts]
    distinct = dict(zip(keys, texts, strict=True))
    known = cache.get(list(distinct)) | shipped_vectors(name, distinct)
    todo = sorted(distinct.keys() - known.keys(), key=lambda key: (-len(distinct[key]), key))
    encoder: Encoder | None = None
    with tqdm(total=len(distinct), desc=f"encode {name}", unit="text", disable=not progress) as bar:
        bar.update(len(known))
        for part in _batches(parsed.kind, [distinct[key] for key in todo], batch_size):
            encoder = encoder or make_encoder(parsed, device)
            vectors = _encoded(encoder, [distinct[key] for key in todo[part]], name)
            cache.put(todo[part], vectors)
            known |= dict(zip(todo[part], vectors, strict=True))
            bar.update(len(vectors))
    widths = {len(row) for row in known.values()}
    if len(widths) != 1:
        raise DataError(f"vectors of encoder {name!r} have different sizes: {some(sorted(widths))}", "remove its cache")
    _check_vectors({distinct[key]: row for key, row in known.items()}, name, f"then remove {cache.path}")
    return np.stack([known[key] for key in keys])


def _check_vectors(vectors: Mapping[str, np.ndarray], name: str, then: str) -> None:
    """Refuse vectors that say nothing of their texts: zeros, or mostly equal ones, as without a tokenizer.

    Two texts are the same here if their first hundred words are, in any order and case: blanks, punctuation, the order
    of words, and what lies beyond the longest input of an encoder need not show in a vector. Vectors are equal if they
    are so to five decimals. If more than half of all texts share a vector with another text, that is an error; if
    fewer do, a warning. TF-IDF is not looked at: it is made here, and on few dimensions its vectors may be equal.
    """
    groups: dict[bytes, list[str]] = {}
    for text, row in vectors.items():
        groups.setdefault(np.round(row, 5).tobytes(), []).append(text)
    hint = f"does the encoder know the language, and has it its tokenizer and all its weights? If not, mend it, {then}"
    if blank := [text for text, row in vectors.items() if not row.any() or not np.isfinite(row).all()]:
        raise TextError(f"encoder {name!r} gives {len(blank)} texts vectors of zeros or NaN", hint, blank)
    alike = [text for texts in groups.values() if len(set(map(_words, texts))) > 1 for text in texts]
    if alike:
        error = TextError(f"encoder {name!r} gives {len(alike)} of {len(vectors)} texts equal vectors", hint, alike)
        if 2 * len(alike) > len(vectors):
            raise error
        logger.warning("%s", error)


def _words(text: str) -> tuple[str, ...]:
    return tuple(sorted(re.findall(r"\w+", text.casefold())[:_SAME_WORDS]))


def _batches(kind: str, texts: Sequence[str], batch_size: int | None) -> list[slice]:
    if batch_size is not None and batch_size < 1:
        raise ConfigError(f"the batch size is {batch_size}, expected at least 1")
    if kind == "openai":
        return request_batches(texts, batch_size or MAX_INPUTS)
    step = batch_size or _BATCH_SIZE
    return [slice(start, start + step) for start in range(0, len(texts), step)]


def _encoded(encoder: Encoder, texts: Sequence[str], name: str) -> np.ndarray:
    """Encode texts and check what an encoder returns."""
    vectors = encoder.encode(texts, len(texts))
    if vectors.ndim != 2 or len(vectors) != len(texts):
        raise DataError(f"encoder {name!r} returned shape {list(vectors.shape)} for {len(texts)} texts")
    if bad := [text for text, row in zip(texts, vectors, strict=True) if not np.isfinite(row).all()]:
        raise TextError(f"encoder {name!r} returned NaN or infinity", "mend the encoder", bad)
    return vectors


def encode_profiles(
    data: Dataset,
    profiles: str,
    name: str,
    *,
    device: torch.device | str = "cpu",
    batch_size: int | None = None,
    progress: bool = True,
) -> Path:
    """Encode all profiles of a set and write the vectors into the data-set folder.

    Parameters
    ----------
    data
        Data set with the profiles.
    profiles
        Profile set, ``"template"`` for example; of a composed one its parts are encoded one by one.
    name
        Name of the encoder, see the head of this module; of a reduction, the base is encoded where it must be.
    device, batch_size, progress
        Where to encode, texts per batch (see `encode_texts`), whether to show a bar.

    Returns
    -------
    Path
        The safetensors file: user [U, d_t] and entity [E, d_t].

    Raises
    ------
    ConfigError
        If the name is unknown.
    DataError
        If a profile is missing, the encoder fails, or given vectors were not imported.
    """
    encoder, target = parse_encoder(name), data.embeddings_path(profiles, name)
    if encoder.kind == "given" and not encoder.reduction:
        if not target.is_file():
            raise DataError(
                f"data set {data.name} has no vectors {name} of profile set {profiles!r} ({target} does not exist)",
                "given vectors are never computed: import them, spike_kit.profiles.imported.import_vectors",
            )
        return target
    facts = {"source": profiles, "encoder": name}
    if encoder.reduction:
        base = ensure_vectors(data, profiles, encoder.base, device, progress)
        rows, where = torch.cat([base.user, base.entity]).numpy(), f"{profiles} by {name}"
        rows, share = principal_components(rows, encoder.reduction, where, base.widths)
        facts |= {"base": encoder.base, "explained_variance": f"{share:.6f}"}
    else:
        table = data.profiles(profiles)
        try:
            rows = encode_texts(table["text"].tolist(), name, device=device, batch_size=batch_size, progress=progress)
        except TextError as error:
            named = table.loc[table["text"].isin(error.texts), ["subject", "id"]].itertuples(index=False)
            who = some([f"{subject} {number}" for subject, number in named], limit=5)
            raise DataError(f"profile of {who}: {error.message}", error.hint) from None
        told, places = rows, table["id"] + np.where(table["subject"] == "user", 0, len(data.users))
        rows = np.zeros((len(data.users) + len(data.entities), told.shape[1]), dtype=told.dtype)
        rows[places] = told
    if absent := data.left_out(profiles):
        facts[LEFT_OUT] = storage.canonical_json(absent)
    user, entity = torch.from_numpy(rows).split([len(data.users), len(data.entities)])
    vectors = ProfileVectors(user, entity)
    vectors.save(target, facts | _made_from(data, profiles, encoder))
    return target


def ensure_vectors(
    data: Dataset, profiles: str, name: str, device: torch.device | str = "cpu", progress: bool = True
) -> ProfileVectors:
    """Return the vectors of a profile set under an encoder, encoding first if they are missing or of older texts.

    Vectors that are given, or whose profiles the data set does not hold, are returned as they are.

    Raises
    ------
    ConfigError
        If the name is unknown.
    DataError
        If a profile is missing, the encoder fails, or given vectors were not imported.
    """
    encoder = parse_encoder(name)
    for part in parts_of(profiles):
        if encoder.reduction:
            ensure_vectors(data, part, encoder.base, device, progress)
        if not data.embeddings_path(part, name).is_file() or _outdated(data, part, name):
            encode_profiles(data, part, name, device=device, progress=progress)
    return data.vectors(profiles, name)


def check_fresh(data: Dataset, profiles: str, name: str) -> None:
    """Check that vectors belong to the present texts, weights and unreduced vectors, as far as these are there.

    Raises
    ------
    DataError
        If the profiles, the files of the encoder or the unreduced vectors were written anew after they were encoded.
    """
    for part in parts_of(profiles):
        stored = ProfileVectors.metadata(data.embeddings_path(part, name))
        for fact in _outdated(data, part, name):
            if fact in stored:
                raise DataError(
                    f"the vectors of {part} by {name} belong to {_MADE_FROM[fact]} than there are now",
                    f"encode them again: spike-kit encode {data.name} --profiles {part} --encoder {name}",
                )


def _outdated(data: Dataset, profiles: str, name: str) -> list[str]:
    """Facts in which stored vectors differ from what is there now."""
    stored = ProfileVectors.metadata(data.embeddings_path(profiles, name))
    present = _made_from(data, profiles, parse_encoder(name))
    return [fact for fact, value in present.items() if value not in ("", stored.get(fact))]


def _made_from(data: Dataset, profiles: str, encoder: EncoderName) -> dict[str, str]:
    """Hashes of what decides vectors: texts, weights and unreduced vectors, as far as they are there."""
    facts = {}
    if encoder.kind != "given" and data.profiles_path(profiles).is_file():
        facts |= vectors_metadata(data.profiles(profiles), encoder.base)
    if encoder.reduction and data.embeddings_path(profiles, encoder.base).is_file():
        base, digest = data.vectors(profiles, encoder.base), hashlib.sha256()
        for rows in (base.user, base.entity):
            digest.update(f"{list(rows.shape)}".encode())
            digest.update(rows.contiguous().to(torch.float32).numpy().data)
        facts["base_sha256"] = digest.hexdigest()
    return facts


def vectors_metadata(profiles: pd.DataFrame, name: str) -> dict[str, str]:
    """Hashes of what decides vectors: the texts, and the weights of an encoder that is a folder."""
    texts_sha256 = storage.sha256_text(storage.canonical_json(profiles["text"].tolist()))
    return {"texts_sha256": texts_sha256, "weights": _weights_version(parse_encoder(name))}


def _weights_version(name: EncoderName) -> str:
    """Hash of the files of an encoder given as a folder; empty for one that is known by name."""
    if name.kind != "transformer" or name.base == DEFAULT_ENCODER or not (folder := folder_of(name.base)):
        return ""
    with explained(name.base, "could not be loaded", folder):
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        hashes = [[path.relative_to(folder).as_posix(), file_sha256(path)] for path in files]
    return storage.sha256_text(storage.canonical_json(hashes))[:16]


@dataclass(frozen=True)
class VectorCache:
    """Vectors by content: one sqlite file per encoder, key = sha256 of the text. Safe to interrupt at any time.

    Parameters
    ----------
    path
        The file.
    timeout
        Seconds to wait for another process that is writing.

    Raises
    ------
    StorageError
        By its methods, if the disk is full, or the file is locked or cannot be read or written.
    """

    path: Path
    timeout: float = 60

    def get(self, keys: Sequence[str]) -> dict[str, np.ndarray]:
        """Return the known vectors among ``keys``; a damaged cache file is set aside and counts as empty."""
        if not self.path.is_file():
            return {}
        sound = "typeof(vector) = 'blob' AND length(vector) > 0 AND length(vector) % 4 = 0"
        query = f"SELECT key, vector FROM vectors WHERE {sound} AND key IN (SELECT value FROM json_each(?))"
        try:
            with self._open() as database:
                rows = database.execute(query, [json.dumps(keys)])
                return {key: np.frombuffer(vector, dtype="<f4") for key, vector in rows}
        except StorageError as error:
            if isinstance(error.__cause__, sqlite3.OperationalError):
                raise
            aside = self.path.with_suffix(".broken")
            self.path.replace(aside)
            logger.warning("%s is not a readable cache (%s); moved to %s", self.path, error.message, aside.name)
            return {}

    def put(self, keys: Sequence[str], vectors: np.ndarray) -> None:
        """Store vectors ``[n, d_t]``, all or none."""
        rows = [(key, row.astype("<f4").tobytes()) for key, row in zip(keys, vectors, strict=True)]
        with self._open() as database:
            database.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", rows)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """One transaction."""
        with storage.database_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.path, timeout=self.timeout)) as database, database:
                database.execute("CREATE TABLE IF NOT EXISTS vectors (key TEXT PRIMARY KEY, vector BLOB NOT NULL)")
                yield database
