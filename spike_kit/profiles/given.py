"""Vectors that others made: read from their files, checked, and written beside the vectors made here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from spike_kit.base import storage
from spike_kit.base.errors import ConfigError, DataError, some
from spike_kit.data.dataset import Dataset
from spike_kit.data.sources.spike_release import read_vectors
from spike_kit.data.vectors import ProfileVectors
from spike_kit.profiles.encoders import parse_encoder


def import_vectors(data: Dataset, profiles: str, name: str, user_file: Path, entity_file: Path) -> Path:
    """Write vectors that others made into the study's embeddings, as encoder ``given:<name>``.

    Parameters
    ----------
    data
        Data-set folder they belong to.
    profiles
        Profile set they were made from; the study need not hold its texts.
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
    user = _read_rows(Path(user_file), len(data.users), "user")
    entity = _read_rows(Path(entity_file), len(data.entities), "entity")
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
    target = data.embeddings_path(profiles, encoder)
    vectors = ProfileVectors(torch.from_numpy(user), torch.from_numpy(entity))
    vectors.save(target, {"source": profiles, "encoder": encoder, **facts})
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


def possibly_leaky(encoder: str) -> list[str]:
    """Kinds of subjects whose vectors may come from held-out interactions: users, where others made the vectors."""
    return ["user"] if parse_encoder(encoder).kind == "given" else []
