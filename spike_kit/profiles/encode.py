"""Profile texts into vectors, cached by content, so that nothing is encoded twice.

Encoders and their names stand in `spike_kit.profiles.encoders`. TF-IDF is never cached: its vectors depend on all texts
together.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
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
    Encoder,
    EncoderName,
    make_encoder,
    parse_encoder,
    principal_components,
)
from spike_kit.profiles.openai_encoder import MAX_INPUTS, TooLongError, request_batches

logger = logging.getLogger(__name__)

_BATCH_SIZE = 32
"""Texts per batch of an encoder that runs here."""


def encode_texts(
    texts: Sequence[str],
    name: str,
    encoder: Encoder | None = None,
    *,
    weights: str | None = None,
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
        Name of the encoder, without a reduction; the cache is kept per name.
    encoder
        Encoder to use under this name; none makes the one that is named, and only if some text is new.
    weights
        Hash of the files of an encoder that is a folder, where it is known.
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
        return _encoded(encoder or make_encoder(parsed, device), texts, name)
    weights = _weights_version(parsed) if weights is None else weights
    cache = VectorCache(paths.cache_root() / f"vectors--{quote(name + weights, safe='')}.sqlite")
    keys = [storage.sha256_text(text) for text in texts]
    distinct = dict(zip(keys, texts, strict=True))
    known = cache.get(list(distinct))
    todo = sorted(distinct.keys() - known.keys(), key=lambda key: (-len(distinct[key]), key))
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
    encoder: Encoder | None = None,
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
    encoder
        Encoder to use under this name; none makes the one that is named, and only if some text is new.
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
    encode = partial(encode_texts, encoder=encoder, device=device, batch_size=batch_size, progress=progress)
    job = _Job(data, profiles, parse_encoder(name), encode)
    if job.encoder.reduction:
        job.ensure(job.encoder.base)
    return job.write(name)


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
    job = _Job(data, profiles, parse_encoder(name), partial(encode_texts, device=device, progress=progress))
    job.ensure(job.encoder.base)
    return job.ensure(name)


def check_fresh(data: Dataset, profiles: str, name: str) -> None:
    """Check that vectors belong to the present texts, weights and unreduced vectors, as far as these are there.

    Raises
    ------
    DataError
        If the profiles, the files of the encoder or the unreduced vectors were written anew after they were encoded.
    """
    job = _Job(data, profiles, parse_encoder(name))
    if older := [what for fact, what in job.outdated(name).items() if fact in job.stored(name)]:
        raise DataError(
            f"the vectors of {profiles} by {name} belong to {older[0]}",
            f"encode them again: spike-kit encode {data.name} --profiles {profiles} --encoder {name}",
        )


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
    hashes = [[path.relative_to(folder).as_posix(), storage.sha256_file(path)] for path in files]
    return storage.sha256_text(storage.canonical_json(hashes))[:16]


@dataclass(frozen=True)
class _Job:
    """One call: texts and weights are read and hashed at most once, when they are first needed.

    A ``name`` is the full name of the encoder, or its base.
    """

    data: Dataset
    profiles: str
    encoder: EncoderName
    encode: Callable[..., np.ndarray] = encode_texts

    @cached_property
    def table(self) -> pd.DataFrame:
        return self.data.profiles(self.profiles)

    @cached_property
    def metadata(self) -> dict[str, str]:
        return vectors_metadata(self.table, self.encoder.base)

    def file(self, name: str) -> Path:
        return self.data.embeddings_path(self.profiles, name)

    def stored(self, name: str) -> dict[str, str]:
        return ProfileVectors.metadata(self.file(name))

    def base_sha256(self) -> str:
        """Hash of the unreduced vectors, whatever their file says of them."""
        base, digest = self.data.vectors(self.profiles, self.encoder.base), hashlib.sha256()
        for rows in (base.user, base.entity):
            digest.update(f"{list(rows.shape)}".encode())
            digest.update(rows.contiguous().to(torch.float32).numpy().data)
        return digest.hexdigest()

    def outdated(self, name: str) -> dict[str, str]:
        """What the stored vectors do not belong to, as far as it is there, and what they would belong to instead."""
        base, texts, present = self.encoder.base, self.data.profiles_path(self.profiles), dict[str, tuple[str, str]]()
        if texts.is_file() and self.encoder.kind != "given":
            present["texts_sha256"] = self.metadata["texts_sha256"], f"older texts than {texts} holds"
            present["weights"] = self.metadata["weights"], f"other weights than the folder {base} holds"
        if name != base and self.file(base).is_file():
            present["base_sha256"] = self.base_sha256(), f"other vectors than {self.file(base)} holds"
        stored = self.stored(name)
        return {fact: what for fact, (now, what) in present.items() if now and now != stored.get(fact)}

    def ensure(self, name: str) -> ProfileVectors:
        """Vectors under a name, written first if they are missing or outdated."""
        if not self.file(name).is_file() or self.outdated(name):
            self.write(name)
        return self.data.vectors(self.profiles, name)

    def write(self, name: str) -> Path:
        """Encode the profiles, or reduce what is encoded; of given vectors, check that they are there."""
        target, base = self.file(name), self.encoder.base
        if name != base:
            vectors, facts = self.reduced(name)
        elif self.encoder.kind != "given":
            vectors, facts = self.encoded(), self.metadata
        elif target.is_file():
            return target
        else:
            raise DataError(
                f"data set {self.data.name} has no vectors {base} of profile set {self.profiles!r} "
                f"({target} does not exist)",
                "given vectors are never computed: import them, spike_kit.profiles.imported.import_vectors",
            )
        vectors.save(target, {"source": self.profiles, "encoder": name, **facts})
        return target

    def encoded(self) -> ProfileVectors:
        texts, is_user = self.table["text"].tolist(), (self.table["subject"] == "user").to_numpy()
        try:
            rows = self.encode(texts, self.encoder.base, weights=self.metadata["weights"])
        except TooLongError as error:
            subject, number = self.table.loc[self.table["text"] == error.text, ["subject", "id"]].iloc[0]
            raise DataError(f"profile of {subject} {number}: {error.message}", error.hint) from None
        return ProfileVectors(torch.from_numpy(rows[is_user]), torch.from_numpy(rows[~is_user]))

    def reduced(self, name: str) -> tuple[ProfileVectors, dict[str, str]]:
        """Principal components of the unreduced vectors, and what they were made from."""
        base, vectors = self.encoder.base, self.data.vectors(self.profiles, self.encoder.base)
        rows = torch.cat([vectors.user, vectors.entity]).numpy()
        scores, share = principal_components(rows, self.encoder.reduction, f"{self.profiles} by {name}")
        user, entity = torch.from_numpy(scores).split([len(vectors.user), len(vectors.entity)])
        kept = {fact: value for fact, value in self.stored(base).items() if fact in ("texts_sha256", "weights")}
        facts = {"base": base, "explained_variance": f"{share:.6f}", "base_sha256": self.base_sha256(), **kept}
        return ProfileVectors(user, entity), facts


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

    def __init__(self, path: Path, timeout: float = 60) -> None:
        self.path = path
        self.timeout = timeout

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
