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
    Reduction,
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
        encoder = encoder or make_encoder(parsed, device)
        return _checked(encoder.encode(texts, len(texts)), len(texts), name)
    weights = _weights_version(parsed) if weights is None else weights
    stored = VectorCache(paths.cache_root() / f"vectors--{quote(name + weights, safe='')}.sqlite")
    keys = [storage.sha256_text(text) for text in texts]
    distinct = dict(zip(keys, texts, strict=True))
    known = stored.get(list(distinct))
    todo = sorted((key for key in distinct if key not in known), key=lambda key: (-len(distinct[key]), key))
    with tqdm(total=len(distinct), desc=f"encode {name}", unit="text", disable=not progress) as bar:
        bar.update(len(known))
        for part in _batches(parsed.kind, [distinct[key] for key in todo], batch_size):
            batch = [distinct[key] for key in todo[part]]
            encoder = encoder or make_encoder(parsed, device)
            vectors = _checked(encoder.encode(batch, len(batch)), len(batch), name)
            stored.put(todo[part], vectors)
            known |= dict(zip(todo[part], vectors, strict=True))
            bar.update(len(batch))
    widths = {len(row) for row in known.values()}
    if len(widths) != 1:
        raise DataError(f"vectors of encoder {name!r} have different sizes: {some(sorted(widths))}", "remove its cache")
    return np.stack([known[key] for key in keys])


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
    reduction = job.encoder_name.reduction
    return job.write_base() if reduction is None else job.write_reduced(name, reduction, job.ensure_base())


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
    base, reduction = job.ensure_base(), job.encoder_name.reduction
    if reduction is not None and not job.base_facts(base).items() <= job.stored(name).items():
        job.write_reduced(name, reduction, base)
    return data.vectors(profiles, name)


def check_fresh(data: Dataset, profiles: str, name: str) -> None:
    """Check that vectors belong to the present texts, weights and unreduced vectors, as far as these are there.

    Raises
    ------
    DataError
        If the profiles, the files of the encoder or the unreduced vectors were written anew after they were encoded.
    """
    if older := _Job(data, profiles, parse_encoder(name)).older(name):
        raise DataError(
            f"the vectors of {profiles} by {name} belong to {older}",
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
    """One call: texts and weights are read and hashed at most once, when they are first needed."""

    data: Dataset
    profiles: str
    encoder_name: EncoderName
    encode: Callable[..., np.ndarray] = encode_texts

    @cached_property
    def table(self) -> pd.DataFrame:
        return self.data.profiles(self.profiles)

    @cached_property
    def metadata(self) -> dict[str, str]:
        return vectors_metadata(self.table, self.encoder_name.base)

    @property
    def has_profiles(self) -> bool:
        return self.data.profiles_path(self.profiles).is_file()

    def file(self, name: str) -> Path:
        return self.data.embeddings_path(self.profiles, name)

    def stored(self, name: str) -> dict[str, str]:
        """Metadata of the vectors under the full name or its base."""
        return ProfileVectors.metadata(self.file(name))

    def older(self, name: str) -> str:
        """What the stored vectors belong to, if it is not what is there now; else empty."""
        stored, base = self.stored(name), self.encoder_name.base
        if "texts_sha256" in stored and self.has_profiles:
            if stored["texts_sha256"] != self.metadata["texts_sha256"]:
                return f"older texts than {self.data.profiles_path(self.profiles)} holds"
            if self.metadata["weights"] not in ("", stored.get("weights")):
                return f"other weights than the folder {base} holds"
        if "base_sha256" in stored and self.file(base).is_file():
            present = self.base_facts(self.data.vectors(self.profiles, base))
            if stored["base_sha256"] != present["base_sha256"]:
                return f"other vectors than {self.file(base)} holds"
        return ""

    def ensure_base(self) -> ProfileVectors:
        """Vectors under the base name, encoded first if they are missing or older; given ones as they are."""
        base = self.encoder_name.base
        as_they_are = self.file(base).is_file() and not self.has_profiles
        if not as_they_are and ("texts_sha256" not in self.stored(base) or self.older(base)):
            self.write_base()
        return self.data.vectors(self.profiles, base)

    def write_base(self) -> Path:
        """Encode the profiles under the base name; of given vectors, check that they are there."""
        name, target = self.encoder_name, self.file(self.encoder_name.base)
        if name.kind == "given":
            if not target.is_file():
                raise DataError(
                    f"data set {self.data.name} has no vectors {name.base} of profile set {self.profiles!r} "
                    f"({target} does not exist)",
                    "given vectors are never computed: import them, spike_kit.profiles.imported.import_vectors",
                )
            return target
        texts, is_user = self.table["text"].tolist(), (self.table["subject"] == "user").to_numpy()
        try:
            vectors = self.encode(texts, name.base, weights=self.metadata["weights"])
        except TooLongError as error:
            subject, number = self.table.loc[self.table["text"] == error.text, ["subject", "id"]].iloc[0]
            raise DataError(f"profile of {subject} {number}: {error.message}", error.hint) from None
        result = ProfileVectors(torch.from_numpy(vectors[is_user]), torch.from_numpy(vectors[~is_user]))
        result.check(len(self.data.users), len(self.data.entities), f"vectors of {self.profiles} by {name.base}")
        result.save(target, {"source": self.profiles, "encoder": name.base, **self.metadata})
        return target

    def base_facts(self, base: ProfileVectors) -> dict[str, str]:
        """Hashes of what decides reduced vectors."""
        digest = hashlib.sha256()
        for rows in (base.user, base.entity):
            digest.update(f"{list(rows.shape)}".encode())
            digest.update(rows.contiguous().to(torch.float32).numpy().data)
        stored = self.stored(self.encoder_name.base)
        kept = {key: stored[key] for key in ("texts_sha256", "weights") if key in stored}
        return {**kept, "base_sha256": digest.hexdigest()}

    def write_reduced(self, name: str, reduction: Reduction, base: ProfileVectors) -> Path:
        """Reduce the vectors of the base and write them under the full name."""
        rows, target = torch.cat([base.user, base.entity]).numpy(), self.file(name)
        scores, share = principal_components(rows, reduction, f"{self.profiles} by {name}")
        user, entity = torch.from_numpy(scores).split([len(base.user), len(base.entity)])
        facts = {"base": self.encoder_name.base, "explained_variance": f"{share:.6f}", **self.base_facts(base)}
        ProfileVectors(user, entity).save(target, {"source": self.profiles, "encoder": name, **facts})
        return target


def _batches(kind: str, texts: Sequence[str], batch_size: int | None) -> list[slice]:
    if batch_size is not None and batch_size < 1:
        raise ConfigError(f"the batch size is {batch_size}, expected at least 1")
    if kind == "openai":
        return request_batches(texts, batch_size or MAX_INPUTS)
    step = batch_size or _BATCH_SIZE
    return [slice(start, start + step) for start in range(0, len(texts), step)]


def _checked(vectors: np.ndarray, n: int, name: str) -> np.ndarray:
    if vectors.ndim != 2 or len(vectors) != n:
        raise DataError(f"encoder {name!r} returned shape {list(vectors.shape)} for {n} texts")
    if not np.isfinite(vectors).all():
        raise DataError(f"encoder {name!r} returned NaN or infinity")
    return vectors


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
            with self._open(sqlite3.OperationalError) as database:
                rows = database.execute(query, [json.dumps(keys)])
                return {key: np.frombuffer(vector, dtype="<f4") for key, vector in rows}
        except sqlite3.DatabaseError as error:
            aside = self.path.with_suffix(".broken")
            self.path.replace(aside)
            logger.warning("%s is not a readable cache (%s); moved to %s", self.path, error, aside.name)
            return {}

    def put(self, keys: Sequence[str], vectors: np.ndarray) -> None:
        """Store vectors ``[n, d_t]``, all or none."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows = [(key, row.astype("<f4").tobytes()) for key, row in zip(keys, vectors, strict=True)]
        with self._open(sqlite3.DatabaseError) as database:
            database.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", rows)

    @contextmanager
    def _open(self, failure: type[sqlite3.DatabaseError]) -> Iterator[sqlite3.Connection]:
        """One transaction; a ``failure`` in it becomes a `StorageError`."""
        try:
            with closing(sqlite3.connect(self.path, timeout=self.timeout)) as database, database:
                database.execute("CREATE TABLE IF NOT EXISTS vectors (key TEXT PRIMARY KEY, vector BLOB NOT NULL)")
                yield database
        except failure as error:
            raise StorageError(
                f"the vector cache {self.path} cannot be used: {error}",
                "free some space, or wait until no other process encodes, and run again; the file may be deleted",
            ) from error
