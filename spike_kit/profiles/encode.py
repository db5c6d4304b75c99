"""Profile texts into vectors, cached by content, so that nothing is encoded twice.

Encoders and their names stand in `spike_kit.profiles.encoders`, the cache in `spike_kit.profiles.vector_cache`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from spike_kit.base import storage
from spike_kit.base.errors import ConfigError, DataError
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
from spike_kit.profiles.vector_cache import encode_cached


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
    return encode_cached(texts, parsed, _weights_version(parsed), encoder, batch_size, progress)


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
    """Encode all profiles of a set and write them into the study's embeddings.

    Parameters
    ----------
    data
        Data-set folder with the profiles.
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
    job = _Job(data, profiles, name, encoder, device, batch_size, progress)
    reduction = job.parsed.reduction
    return job.write_base() if reduction is None else job.write_reduced(job.ensure_base(), reduction)


def ensure_vectors(
    data: Dataset, profiles: str, name: str, device: torch.device | str = "cpu", progress: bool = True
) -> ProfileVectors:
    """Return the vectors of a profile set under an encoder, encoding first if they are missing or of older texts.

    Vectors that are given, or whose profiles the study does not hold, are returned as they are.

    Raises
    ------
    ConfigError
        If the name is unknown.
    DataError
        If a profile is missing, the encoder fails, or given vectors were not imported.
    """
    job = _Job(data, profiles, name, device=device, progress=progress)
    base, reduction = job.ensure_base(), job.parsed.reduction
    if reduction is None:
        return base
    if not job.base_facts(base).items() <= job.stored(name).items():
        job.write_reduced(base, reduction)
    return data.vectors(profiles, name)


def check_fresh(data: Dataset, profiles: str, name: str) -> None:
    """Check that vectors belong to the present texts, weights and unreduced vectors, as far as these are there.

    Raises
    ------
    DataError
        If the profiles, the files of the encoder or the unreduced vectors were written anew after they were encoded.
    """
    if older := _Job(data, profiles, name).older(name):
        raise DataError(
            f"the vectors of {profiles} by {name} belong to {older}",
            f"encode them again: spike-kit encode {data.name} --profiles {profiles} --encoder {name}",
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

    data: Dataset
    profile_set: str
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
        return self.data.profiles(self.profile_set)

    @cached_property
    def has_profiles(self) -> bool:
        return self.profile_set in self.data.profile_sets()

    @cached_property
    def metadata(self) -> dict[str, str]:
        """As `vectors_metadata`."""
        return {"texts_sha256": _texts_sha256(self.profiles), "weights": self.weights}

    @cached_property
    def weights(self) -> str:
        return _weights_version(self.parsed)

    def file(self, name: str) -> Path:
        """File of the vectors under the full name or its base."""
        return self.data.embeddings_path(self.profile_set, name)

    def stored(self, name: str) -> dict[str, str]:
        """Metadata of that file."""
        return ProfileVectors.metadata(self.file(name))

    def older(self, name: str) -> str:
        """What the stored vectors belong to, if it is not what is there now; else empty."""
        stored, base = self.stored(name), self.parsed.base
        if "texts_sha256" in stored and self.has_profiles:
            if stored["texts_sha256"] != self.metadata["texts_sha256"]:
                return f"older texts than {self.data.profiles_path(self.profile_set)} holds"
            if self.weights and stored.get("weights", "") != self.weights:
                return f"other weights than the folder {base} holds"
        if "base_sha256" in stored and self.file(base).is_file():
            vectors = self.data.vectors(self.profile_set, base)
            if stored["base_sha256"] != _tensors_sha256(vectors):
                return f"other vectors than {self.file(base)} holds"
        return ""

    def ensure_base(self) -> ProfileVectors:
        """Vectors under the base name, encoded first if they are missing or older; given ones as they are."""
        base = self.parsed.base
        as_they_are = self.file(base).is_file() and not self.has_profiles
        if not as_they_are and ("texts_sha256" not in self.stored(base) or self.older(base)):
            self.write_base()
        return self.data.vectors(self.profile_set, base)

    def write_base(self) -> Path:
        """Encode the profiles under the base name; of given vectors, check that they are there."""
        parsed, target = self.parsed, self.file(self.parsed.base)
        if parsed.kind == "given":
            if not target.is_file():
                raise DataError(
                    f"data set {self.data.name} has no vectors {parsed.base} of profile set {self.profile_set!r} "
                    f"({target} does not exist)",
                    "given vectors are never computed: import them, spike_kit.profiles.given.import_vectors",
                )
            return target
        texts, is_user = self.profiles["text"].tolist(), (self.profiles["subject"] == "user").to_numpy()
        encoder = self.encoder or _Lazy(parsed, self.device)
        vectors = encode_cached(texts, parsed, self.weights, encoder, self.batch_size, self.progress)
        result = ProfileVectors(torch.from_numpy(vectors[is_user]), torch.from_numpy(vectors[~is_user]))
        result.check(len(self.data.users), len(self.data.entities), f"vectors of {self.profile_set} by {parsed.base}")
        result.save(target, {"source": self.profile_set, "encoder": parsed.base, **self.metadata})
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
        scores, share = principal_components(rows, reduction, f"{self.profile_set} by {self.name}")
        user, entity = torch.from_numpy(scores).split([len(base.user), len(base.entity)])
        facts = {"base": self.parsed.base, "explained_variance": f"{share:.6f}", **self.base_facts(base)}
        target = self.file(self.name)
        ProfileVectors(user, entity).save(target, {"source": self.profile_set, "encoder": self.name, **facts})
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
