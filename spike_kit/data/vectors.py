"""Profile vectors: the text side of a data set, one row per user and per entity."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from spike_kit.base import storage
from spike_kit.base.errors import DataError, some

_CHECKED_ROWS = 8192
"""Rows that are checked at once: the check of a memory-mapped table must not copy all of it."""

_VARIANCE = 1e-9
"""Share of the largest variance below which a direction counts as constant."""
_NOTHING = 1e-20
"""Variance below which any direction does."""

LEFT_OUT = "left_out"
"""Fact beside stored vectors, and in the provenance of profiles: subjects that have no text, and why."""

_AGAIN = "encode the profiles again: spike-kit encode"

_FACTS = "spike_kit"
"""The one metadata key, with all facts as JSON: safetensors writes several keys in a random order."""


@dataclass(frozen=True)
class ProfileVectors:
    """Text vectors of all profiles: ``user [U, d_t]`` and ``entity [E, d_t]`` (items are entities 0..I-1).

    Attributes
    ----------
    widths
        Where texts may be missing: the columns of each part of the profile set, d_t together. A row that is zero in
        all columns of a part has no text there. Empty where every row has its text.
    """

    user: Tensor
    entity: Tensor
    widths: tuple[int, ...] = field(default=(), kw_only=True)

    @property
    def dim(self) -> int:
        """Dimension d_t of the text vectors."""
        return self.user.shape[1]

    def to(self, device: torch.device | str) -> ProfileVectors:
        """Copy on another device."""
        return replace(self, user=self.user.to(device), entity=self.entity.to(device))

    @classmethod
    def beside(cls, parts: Sequence[ProfileVectors]) -> ProfileVectors:
        """Vectors of several profile sets side by side, ``[n, d_1 + d_2 + ...]``; one alone stays as it is."""
        if len(parts) == 1:
            return parts[0]
        widths = tuple(width for part in parts for width in part.widths or (part.dim,))
        user, entity = (torch.cat([getattr(part, name) for part in parts], dim=1) for name in ("user", "entity"))
        return cls(user, entity, widths=widths)

    def has_text(self) -> Tensor:
        """Whether each user, then each entity, has a text in any part, ``[U + E]`` bool."""
        return torch.cat([(rows != 0).any(1) for rows in (self.user, self.entity)])

    def whitening(self, dim: int) -> tuple[Tensor, Tensor]:
        """Return centre ``[d_t]`` and loadings ``[d_t, k]`` of the whitened principal components of all rows.

        k is ``dim``, or what there can be at most (but 1). A direction in which the rows do not vary scores zero
        everywhere; the largest absolute loading of each component is positive. A missing text counts as the centre.
        """
        centre, variances, loadings = principal_axes(self.user, self.entity, widths=self.widths)
        k = max(1, min(dim, self.user.shape[0] + self.entity.shape[0] - 1, self.dim))
        variances, loadings = variances[:k], loadings[:, :k]
        varies = variances > (_VARIANCE * variances[:1]).clamp_min(_NOTHING)
        scale = torch.where(varies, variances, torch.inf).rsqrt()
        kind = torch.promote_types(self.user.dtype, torch.float32)
        return centre.to(kind), (loadings * scale).to(kind)

    def transformed(self, centre: Tensor, loadings: Tensor) -> ProfileVectors:
        """Scores of all rows, float32 or finer: what `whitening` gave, taken off and multiplied, in chunks.

        A part without text adds nothing to the scores of its row.
        """
        kind = torch.promote_types(self.user.dtype, torch.float32)
        centre, loadings = centre.to(kind), loadings.to(kind)

        def scores(rows: Tensor) -> Tensor:
            parts = rows.split(_CHECKED_ROWS)
            return torch.cat([_told(part.to(kind) - centre, part, self.widths) @ loadings for part in parts])

        widths = (loadings.shape[1],) if self.widths else ()
        return ProfileVectors(scores(self.user), scores(self.entity), widths=widths)

    def check(self, n_users: int, n_entities: int, where: str, hint: str = _AGAIN) -> None:
        """Check shapes and values; ``where`` they come from and what to do (``hint``) stand in the error.

        Raises
        ------
        DataError
            If a row is missing or surplus, the dimensions differ, or a value is NaN or infinite.
        """
        dim = self.user.shape[1] if self.user.ndim == 2 else 0
        for name, rows, expected in (("user", self.user, n_users), ("entity", self.entity, n_entities)):
            if not dim or rows.shape != (expected, dim):
                shape = f"shape {list(rows.shape)}, expected [{expected}, {dim or 'd_t'}]"
                raise DataError(f"{where}: {name} has {shape} (one row per {name})", hint)
            finite = [torch.isfinite(part).all(dim=1) for part in rows.split(_CHECKED_ROWS)]
            if broken := (~torch.cat(finite)).nonzero().flatten().tolist():
                raise DataError(f"{where}: {name} holds NaN or infinity in row {some(broken)}", hint)

    def save(self, path: Path, metadata: dict[str, str]) -> None:
        """Write as safetensors, atomically, with facts about the encoder and the profiles as metadata.

        The same vectors and facts give the same bytes.
        """
        tensors = {"user": self.user.contiguous(), "entity": self.entity.contiguous()}
        with storage.atomic_file(path) as temporary:
            save_file(tensors, temporary, metadata={_FACTS: storage.canonical_json(metadata)})

    @classmethod
    def load(cls, path: Path) -> ProfileVectors:
        """Read a safetensors file with ``user`` and ``entity``; texts may be missing if its metadata say `LEFT_OUT`.

        Raises
        ------
        DataError
            If the file is not safetensors or one of the two is missing.
        """
        try:
            with safe_open(path, framework="pt") as file:
                if missing := {"user", "entity"} - set(file.keys()):
                    raise DataError(f"{path} holds no tensor {some(sorted(missing))}", _AGAIN)
                user, entity = file.get_tensor("user"), file.get_tensor("entity")
        except (SafetensorError, OSError) as error:
            raise DataError(f"{path} is not a readable safetensors file: {error}", _AGAIN) from error
        return cls(user, entity, widths=(user.shape[-1],) if LEFT_OUT in cls.metadata(path) else ())

    @staticmethod
    def metadata(path: Path) -> dict[str, str]:
        """Read the metadata written by `save`, or one key per fact; empty if the file has none or cannot be read."""
        try:
            with safe_open(path, framework="pt") as file:
                stored = dict(file.metadata() or {})
            facts = json.loads(stored[_FACTS]) if _FACTS in stored else stored
        except (SafetensorError, OSError, ValueError, RecursionError):
            return {}
        is_flat = isinstance(facts, dict) and all(isinstance(value, str) for value in facts.values())
        return facts if is_flat else {}


def _told(values: Tensor, rows: Tensor, widths: tuple[int, ...]) -> Tensor:
    """Values ``[n, d]`` of rows ``[n, d]``, zero where a part has no text (`ProfileVectors.widths`)."""
    if not widths:
        return values
    blocks = zip(values.split(widths, 1), rows.split(widths, 1), strict=True)
    return torch.cat([block * (own != 0).any(1, keepdim=True) for block, own in blocks], dim=1)


def principal_axes(*tables: Tensor, widths: tuple[int, ...] = ()) -> tuple[Tensor, Tensor, Tensor]:
    """Return centre ``[d]``, variances ``[d]`` (largest first) and loadings ``[d, d]`` of all rows, in float64.

    Column i of the loadings is the direction of variance i; its largest absolute loading is positive. Where texts may
    be missing (`ProfileVectors.widths`), the centre is that of the texts, and a missing one counts as the centre.
    """
    parts = [part for rows in tables for part in rows.split(_CHECKED_ROWS) if part.shape[0]]
    n_rows = sum(rows.shape[0] for rows in tables)
    told = [_told(torch.ones_like(part, dtype=torch.float64), part, widths).sum(0) for part in parts if widths]
    number = torch.stack(told).sum(0).clamp_min(1) if told else n_rows
    centre = torch.stack([part.double().sum(0) for part in parts]).sum(0) / number
    covariance = torch.zeros(*centre.shape, *centre.shape, dtype=torch.float64, device=centre.device)
    for part in parts:
        centred = _told(part.double() - centre, part, widths)
        covariance.addmm_(centred.T, centred)
    variances, loadings = torch.linalg.eigh(covariance / max(n_rows - 1, 1))
    variances, loadings = variances.flip(0), loadings.flip(1)
    largest = loadings.gather(0, loadings.abs().argmax(0, keepdim=True))
    return centre, variances, loadings * largest.sign()


def normalised(rows: np.ndarray) -> np.ndarray:
    """Scale rows ``[n, d]`` to length 1, as float32; rows that are zero but for rounding become zero."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 1e-9).astype(np.float32)
