"""Profile texts into vectors, cached by content, so that nothing is encoded twice.

Encoders and their names stand in `spike_kit.profiles.encoders`.
"""

from __future__ import annotations

import hashlib
import logging
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from tqdm.auto import tqdm

from spike_kit import paths, storage
from spike_kit.data.sources.spike_release import read_vectors
from spike_kit.data.study import Study
from spike_kit.data.vectors import ProfileVectors
from spike_kit.errors import ConfigError, DataError, StorageError, some
from spike_kit.profiles.encoders import (
    DEFAULT_ENCODER,
    MAX_INPUTS,
    Encoder,
    EncoderName,
    Reduction,
    make_encoder,
    parse_encoder,
    principal_components,
    request_batches,
)

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


def encode_texts(
    texts: Sequence[str], name: str, encoder: Encoder, batch_size: int | None = None, progress: bool = True
) -> np.ndarray:
    """Encode texts, each distinct one once ever; batches hold texts of similar length, the longest first.

    TF-IDF is the exception: its vectors depend on all texts together, so they are made anew and never cached.

    Parameters
    ----------
    texts
        ``n`` texts.
    name
        Name of the encoder, without a reduction; the cache is kept per name.
    encoder
        The encoder itself.
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
    return _encode_texts(texts, parsed, _weights_version(parsed), encoder, batch_size, progress)


def _encode_texts(
    texts: Sequence[str], name: EncoderName, weights: str, encoder: Encoder, batch_size: int | None, progress: bool
) -> np.ndarray:
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


def encode_profiles(
    study: Study,
    source: str,
    name: str,
    encoder: Encoder | None = None,
    *,
    device: torch.device | str = "cpu",
    batch_size: int | None = None,
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
    job = _Job(study, source, name, encoder, device, batch_size, progress)
    reduction = job.parsed.reduction
    return job.write_base() if reduction is None else job.write_reduced(job.ensure_base(), reduction)


def ensure_vectors(
    study: Study, source: str, name: str, device: torch.device | str = "cpu", progress: bool = True
) -> ProfileVectors:
    """Return the vectors of a source under an encoder, encoding first if they are missing or of older texts.

    Vectors that are given, or whose profiles the study does not hold, are returned as they are.

    Raises
    ------
    ConfigError
        If the name is unknown.
    DataError
        If a profile is missing, the encoder fails, or given vectors were not imported.
    """
    job = _Job(study, source, name, device=device, progress=progress)
    base, reduction = job.ensure_base(), job.parsed.reduction
    if reduction is None:
        return base
    if not job.base_facts(base).items() <= job.stored(name).items():
        job.write_reduced(base, reduction)
    return study.vectors(source, name)


def check_fresh(study: Study, source: str, name: str) -> None:
    """Check that vectors belong to the present texts, weights and unreduced vectors, as far as these are there.

    Raises
    ------
    DataError
        If the profiles, the files of the encoder or the unreduced vectors were written anew after they were encoded.
    """
    if older := _Job(study, source, name).older(name):
        raise DataError(
            f"the vectors of {source} by {name} belong to {older}",
            f"encode them again: spike-kit encode {study.name} --source {source} --encoder {name}",
        )


def vectors_metadata(profiles: pd.DataFrame, name: str) -> dict[str, str]:
    """Hashes of what decides vectors: the texts, and the weights of an encoder that is a folder."""
    return {"texts_sha256": _texts_sha256(profiles), "weights": _weights_version(parse_encoder(name))}


def _texts_sha256(profiles: pd.DataFrame) -> str:
    return storage.sha256_text(storage.canonical_json(profiles["text"].tolist()))


def _weights_version(name: EncoderName) -> str:
    """Hash of the files of an encoder given as a folder; empty for one that is known by name."""
    folder = Path(name.base).expanduser()
    if name.kind != "transformer" or name.base == DEFAULT_ENCODER or not folder.is_dir():
        return ""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    hashes = [[path.relative_to(folder).as_posix(), storage.sha256_file(path)] for path in files]
    return storage.sha256_text(storage.canonical_json(hashes))[:16]


def _tensors_sha256(vectors: ProfileVectors) -> str:
    digest = hashlib.sha256()
    for rows in (vectors.user, vectors.entity):
        digest.update(f"{list(rows.shape)}".encode())
        digest.update(rows.contiguous().to(torch.float32).numpy().data)
    return digest.hexdigest()


@dataclass(frozen=True)
class _Job:
    """One call: texts and weights are read and hashed at most once, when they are first needed."""

    study: Study
    source: str
    name: str
    encoder: Encoder | None = None
    device: torch.device | str = "cpu"
    batch_size: int | None = None
    progress: bool = True

    @cached_property
    def parsed(self) -> EncoderName:
        return parse_encoder(self.name)

    @cached_property
    def profiles(self) -> pd.DataFrame:
        return self.study.profiles(self.source)

    @cached_property
    def has_profiles(self) -> bool:
        return self.source in self.study.profile_sources()

    @cached_property
    def metadata(self) -> dict[str, str]:
        """As `vectors_metadata`."""
        return {"texts_sha256": _texts_sha256(self.profiles), "weights": self.weights}

    @cached_property
    def weights(self) -> str:
        return _weights_version(self.parsed)

    def file(self, name: str) -> Path:
        """File of the vectors under the full name or its base."""
        return self.study.embeddings_path(self.source, name)

    def stored(self, name: str) -> dict[str, str]:
        """Metadata of that file."""
        return ProfileVectors.metadata(self.file(name))

    def older(self, name: str) -> str:
        """What the stored vectors belong to, if it is not what is there now; else empty."""
        stored, base = self.stored(name), self.parsed.base
        if "texts_sha256" in stored and self.has_profiles:
            if stored["texts_sha256"] != self.metadata["texts_sha256"]:
                return f"older texts than {self.study.profiles_path(self.source)} holds"
            if self.weights and stored.get("weights", "") != self.weights:
                return f"other weights than the folder {base} holds"
        if "base_sha256" in stored and self.file(base).is_file():
            vectors = self.study.vectors(self.source, base)
            if stored["base_sha256"] != _tensors_sha256(vectors):
                return f"other vectors than {self.file(base)} holds"
        return ""

    def ensure_base(self) -> ProfileVectors:
        """Vectors under the base name, encoded first if they are missing or older; given ones as they are."""
        base = self.parsed.base
        as_they_are = self.file(base).is_file() and not self.has_profiles
        if not as_they_are and ("texts_sha256" not in self.stored(base) or self.older(base)):
            self.write_base()
        return self.study.vectors(self.source, base)

    def write_base(self) -> Path:
        """Encode the profiles under the base name; of given vectors, check that they are there."""
        parsed, target = self.parsed, self.file(self.parsed.base)
        if parsed.kind == "given":
            if not target.is_file():
                raise DataError(
                    f"data set {self.study.name} has no vectors {parsed.base} of source {self.source!r} "
                    f"({target} does not exist)",
                    "given vectors are never computed: import them, spike_kit.profiles.encode.import_vectors",
                )
            return target
        texts, is_user = self.profiles["text"].tolist(), (self.profiles["subject"] == "user").to_numpy()
        encoder = self.encoder or _Lazy(parsed, self.device)
        vectors = _encode_texts(texts, parsed, self.weights, encoder, self.batch_size, self.progress)
        result = ProfileVectors(torch.from_numpy(vectors[is_user]), torch.from_numpy(vectors[~is_user]))
        result.check(len(self.study.users), len(self.study.entities), f"vectors of {self.source} by {parsed.base}")
        result.save(target, {"source": self.source, "encoder": parsed.base, **self.metadata})
        return target

    def base_facts(self, base: ProfileVectors) -> dict[str, str]:
        """Hashes of what decides reduced vectors."""
        kept = {
            key: value for key, value in self.stored(self.parsed.base).items() if key in ("texts_sha256", "weights")
        }
        return {**kept, "base_sha256": _tensors_sha256(base)}

    def write_reduced(self, base: ProfileVectors, reduction: Reduction) -> Path:
        """Reduce the vectors of the base and write them under the full name."""
        rows = torch.cat([base.user, base.entity]).numpy()
        scores, share = principal_components(rows, reduction, f"{self.source} by {self.name}")
        user, entity = torch.from_numpy(scores).split([len(base.user), len(base.entity)])
        facts = {"base": self.parsed.base, "explained_variance": f"{share:.6f}", **self.base_facts(base)}
        target = self.file(self.name)
        ProfileVectors(user, entity).save(target, {"source": self.source, "encoder": self.name, **facts})
        return target


class _Lazy:
    """Makes the encoder when the first text needs it: with everything cached it is never made."""

    def __init__(self, name: EncoderName, device: torch.device | str) -> None:
        self._arguments = (name, device)
        self._encoder: Encoder | None = None

    def encode(self, texts: Sequence[str], batch_size: int) -> np.ndarray:
        if self._encoder is None:
            self._encoder = make_encoder(*self._arguments)
        return self._encoder.encode(texts, batch_size)


def import_vectors(study: Study, source: str, name: str, user_file: Path, entity_file: Path) -> Path:
    """Write vectors that others made into the study's embeddings, as encoder ``given:<name>``.

    Parameters
    ----------
    study
        Study folder they belong to.
    source
        Profile source they were made from; the study need not hold its texts.
    name
        Name to give them.
    user_file, entity_file
        Vectors of all users and of all entities (items first): .npy or .safetensors (one array, [n, d_t], rows in
        the order of ids), or .npz with the arrays ``ids [n]`` and ``embeddings [n, d_t]`` in any order.

    Returns
    -------
    Path
        The safetensors file: user [U, d_t] and entity [E, d_t].

    Raises
    ------
    ConfigError
        If the name is not usable.
    DataError
        If a file is missing or damaged, lacks or repeats an id, or holds NaN or infinity, or the two files have
        different dimensions.
    """
    encoder = f"given:{name.removeprefix('given:')}"
    if parse_encoder(encoder).reduction:
        raise ConfigError(f"{name!r} cannot be the name of given vectors", "leave @pca away")
    user = _read_rows(Path(user_file), len(study.users), "user")
    entity = _read_rows(Path(entity_file), len(study.entities), "entity")
    if user.shape[1] != entity.shape[1]:
        raise DataError(
            f"{user_file} has vectors of {user.shape[1]} dimensions, {entity_file} of {entity.shape[1]}",
            "take both files from one encoder",
        )
    facts = {
        f"{kind}_{key}": value
        for kind, file in (("user", Path(user_file)), ("entity", Path(entity_file)))
        for key, value in (("file", file.name), ("sha256", storage.sha256_file(file)))
    }
    target = study.embeddings_path(source, encoder)
    vectors = ProfileVectors(torch.from_numpy(user), torch.from_numpy(entity))
    vectors.save(target, {"source": source, "encoder": encoder, **facts})
    return target


def _read_rows(path: Path, n: int, subject: str) -> np.ndarray:
    """Vectors ``[n, d_t]`` float32 of one file, checked, in the order of ids."""
    if not path.is_file():
        raise DataError(f"{path} does not exist")
    if path.suffix == ".npz":
        ids, rows = read_vectors(path)
        values, counts = np.unique(ids, return_counts=True)
        found = {
            "missing": np.setdiff1d(np.arange(n), values),
            "unknown": values[(values < 0) | (values >= n)],
            "repeated": values[counts > 1],
        }
        if wrong := [f"{problem} {some(which)}" for problem, which in found.items() if len(which)]:
            raise DataError(
                f"{path}: the ids must be 0..{n - 1}, each once; {'; '.join(wrong)}",
                f"every {subject} of the study needs exactly one vector",
            )
    else:
        rows = _read_array(path)
    if rows.ndim != 2 or rows.shape[0] != n or not rows.shape[1] or rows.dtype.kind != "f":
        raise DataError(
            f"{path} holds {rows.dtype} of shape {list(rows.shape)}, expected floats of shape [{n}, d_t]",
            f"every {subject} of the study needs exactly one row, in the order of ids",
        )
    with np.errstate(over="ignore"):
        rows = rows.astype(np.float32)
    broken = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(broken):
        raise DataError(f"{path}: the vectors of ids {some(broken)} hold NaN or infinity", "make the file again")
    return rows


def _read_array(path: Path) -> np.ndarray:
    try:
        if path.suffix == ".npy":
            with path.open("rb") as file:
                return np.lib.format.read_array(file, allow_pickle=False)
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                names = list(file.keys())
                if len(names) != 1:
                    raise DataError(f"{path} holds the tensors {some(names) or 'none'}, expected one")
                tensor = file.get_tensor(names[0])
                return (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    except (ValueError, OSError, SyntaxError, TypeError, MemoryError, OverflowError, SafetensorError) as error:
        raise DataError(f"{path} is not a readable {path.suffix} file without pickles: {error}") from error
    raise DataError(f"{path} is of no known kind", "give .npy, .npz or .safetensors")
