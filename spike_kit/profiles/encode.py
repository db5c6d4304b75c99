"""Profile texts into vectors, cached by content, so that nothing is encoded twice.

Encoders and their names stand in `spike_kit.profiles.encoders`. TF-IDF is never cached: its vectors depend on all texts
together.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from spike_kit.base import paths, storage
from spike_kit.base.errors import ConfigError, DataError, StorageError, some
from spike_kit.data.dataset import Dataset
from spike_kit.data.vectors import ProfileVectors
from spike_kit.profiles.encoders import (
    DEFAULT_ENCODER,
    MAX_INPUTS,
    Encoder,
    EncoderName,
    TooLongError,
    make_encoder,
    parse_encoder,
    principal_components,
    request_batches,
)

logger = logging.getLogger(__name__)

_BATCH_SIZE = 32
"""Texts per batch of an encoder that runs here."""


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
    known = cache.get(list(distinct))
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
    return np.stack([known[key] for key in keys])


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
    if not np.isfinite(vectors).all():
        raise DataError(f"encoder {name!r} returned NaN or infinity")
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
        Profile set, ``"template"`` for example.
    name
        Name of the encoder, see `spike_kit.profiles.encoders`; of a reduction, the base is encoded where it must be.
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
        rows, share = principal_components(rows, encoder.reduction, where)
        is_user = np.arange(len(rows)) < len(base.user)
        facts |= {"base": encoder.base, "explained_variance": f"{share:.6f}"}
    else:
        table = data.profiles(profiles)
        rows = _encoded_table(table, name, device, batch_size, progress)
        is_user = (table["subject"] == "user").to_numpy()
    vectors = ProfileVectors(torch.from_numpy(rows[is_user]), torch.from_numpy(rows[~is_user]))
    vectors.save(target, facts | _made_from(data, profiles, encoder))
    return target


def _encoded_table(
    table: pd.DataFrame, name: str, device: torch.device | str, batch_size: int | None, progress: bool
) -> np.ndarray:
    """Encode a profiles table, ``[n, d_t]``; a text that is too long is called by whom it is about."""
    try:
        return encode_texts(table["text"].tolist(), name, device=device, batch_size=batch_size, progress=progress)
    except TooLongError as error:
        subject, number = table.loc[table["text"] == error.text, ["subject", "id"]].iloc[0]
        raise DataError(f"profile of {subject} {number}: {error.message}", error.hint) from None


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
    if (encoder := parse_encoder(name)).reduction:
        ensure_vectors(data, profiles, encoder.base, device, progress)
    if not data.embeddings_path(profiles, name).is_file() or _outdated(data, profiles, name):
        encode_profiles(data, profiles, name, device=device, progress=progress)
    return data.vectors(profiles, name)


def check_fresh(data: Dataset, profiles: str, name: str) -> None:
    """Check that vectors belong to the present texts, weights and unreduced vectors, as far as these are there.

    Raises
    ------
    DataError
        If the profiles, the files of the encoder or the unreduced vectors were written anew after they were encoded.
    """
    encoder, stored = parse_encoder(name), ProfileVectors.metadata(data.embeddings_path(profiles, name))
    belong_to = {
        "texts_sha256": f"older texts than {data.profiles_path(profiles)} holds",
        "weights": f"other weights than the folder {encoder.base} holds",
        "base_sha256": f"other vectors than {data.embeddings_path(profiles, encoder.base)} holds",
    }
    for fact in _outdated(data, profiles, name):
        if fact in stored:
            raise DataError(
                f"the vectors of {profiles} by {name} belong to {belong_to[fact]}",
                f"encode them again: spike-kit encode {data.name} --profiles {profiles} --encoder {name}",
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
    folder = Path(name.base).expanduser()
    if name.kind != "transformer" or name.base == DEFAULT_ENCODER or not folder.is_dir():
        return ""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return _hash_of_files(folder, *((path, path.stat().st_mtime_ns, path.stat().st_size) for path in files))


@lru_cache(maxsize=16)
def _hash_of_files(folder: Path, *states: tuple[Path, int, int]) -> str:
    """Hash of files by what tells that they are still the same: they are large, and hashed once."""
    hashes = [[path.relative_to(folder).as_posix(), storage.sha256_file(path)] for path, *_ in states]
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
        query = "SELECT key, vector FROM vectors WHERE key IN (SELECT value FROM json_each(?))"
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
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows = [(key, row.astype("<f4").tobytes()) for key, row in zip(keys, vectors, strict=True)]
        with self._open() as database:
            database.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", rows)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """One transaction."""
        with (
            storage.database_errors(self.path),
            closing(sqlite3.connect(self.path, timeout=self.timeout)) as database,
            database,
        ):
            database.execute("CREATE TABLE IF NOT EXISTS vectors (key TEXT PRIMARY KEY, vector BLOB NOT NULL)")
            yield database
