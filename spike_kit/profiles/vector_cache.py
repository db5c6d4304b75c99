"""Vectors by content: what was encoded once is read again, and only new texts meet an encoder."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import numpy as np
from tqdm.auto import tqdm

from spike_kit.base import paths, storage
from spike_kit.base.errors import ConfigError, DataError, StorageError, some
from spike_kit.profiles.encoders import Encoder, EncoderName
from spike_kit.profiles.openai_encoder import MAX_INPUTS, request_batches

logger = logging.getLogger(__name__)

_BATCH_SIZE = 32
"""Texts per batch of an encoder that runs here."""


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


def encode_cached(
    texts: Sequence[str], name: EncoderName, weights: str, encoder: Encoder, batch_size: int | None, progress: bool
) -> np.ndarray:
    """Encode the texts that the cache does not hold; TF-IDF is never cached.

    Arguments, result and errors are those of `spike_kit.profiles.encode.encode_texts`, with the name taken apart and
    ``weights``, the hash of the weights of an encoder that is a folder.
    """
    if name.kind == "tfidf":
        vectors = encoder.encode(texts, len(texts))
        _check_vectors(vectors, texts, name.base)
        return vectors
    cache = VectorCache(paths.cache_root() / f"vectors--{quote(name.base + weights, safe='')}.sqlite")
    keys = [storage.sha256_text(text) for text in texts]
    distinct = dict(zip(keys, texts, strict=True))
    known = cache.get(list(distinct))
    todo = sorted((key for key in distinct if key not in known), key=lambda key: (-len(distinct[key]), key))
    with tqdm(
        total=len(distinct), initial=len(known), desc=f"encode {name.base}", unit="text", disable=not progress
    ) as bar:
        for part in _batches(name, [distinct[key] for key in todo], batch_size):
            batch = todo[part]
            vectors = encoder.encode([distinct[key] for key in batch], len(batch))
            _check_vectors(vectors, batch, name.base)
            cache.put(batch, vectors)
            known |= dict(zip(batch, vectors, strict=True))
            bar.update(len(batch))
    rows = [known[key] for key in keys]
    widths = {len(row) for row in rows}
    if len(widths) != 1:
        raise DataError(
            f"vectors of encoder {name.base!r} have different sizes: {some(sorted(widths))}", "remove its cache"
        )
    return np.stack(rows)


def _batches(name: EncoderName, texts: Sequence[str], batch_size: int | None) -> list[slice]:
    if batch_size is not None and batch_size < 1:
        raise ConfigError(f"the batch size is {batch_size}, expected at least 1")
    if name.kind == "openai":
        return request_batches(texts, batch_size or MAX_INPUTS)
    step = batch_size or _BATCH_SIZE
    return [slice(start, start + step) for start in range(0, len(texts), step)]


def _check_vectors(vectors: np.ndarray, batch: Sequence[str], name: str) -> None:
    if vectors.ndim != 2 or len(vectors) != len(batch):
        raise DataError(f"encoder {name!r} returned shape {list(vectors.shape)} for {len(batch)} texts")
    if not np.isfinite(vectors).all():
        raise DataError(f"encoder {name!r} returned NaN or infinity")
