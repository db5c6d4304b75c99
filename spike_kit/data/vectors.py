"""Profile vectors: the text side of a study, one row per user and per entity."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from spike_kit import storage
from spike_kit.errors import DataError, some


@dataclass(frozen=True)
class ProfileVectors:
    """Text vectors of all profiles: ``user [U, d_t]`` and ``entity [E, d_t]`` (items are entities 0..I-1)."""

    user: Tensor
    entity: Tensor

    @property
    def dim(self) -> int:
        """Dimension d_t of the text vectors."""
        return self.user.shape[1]

    def to(self, device: torch.device | str) -> ProfileVectors:
        """Copy on another device."""
        return ProfileVectors(self.user.to(device), self.entity.to(device))

    def check(self, n_users: int, n_entities: int, where: str) -> None:
        """Check shapes and values.

        Raises
        ------
        DataError
            If a row is missing or surplus, the dimensions differ, or a value is NaN or infinite.
        """
        for name, rows, expected in (("user", self.user, n_users), ("entity", self.entity, n_entities)):
            if rows.ndim != 2 or rows.shape[0] != expected:
                raise DataError(
                    f"{where}: {name} has shape {list(rows.shape)}, expected [{expected}, d_t] (one row per {name})",
                    "encode the profiles again: spike-kit encode",
                )
            broken = (~torch.isfinite(rows).all(dim=1)).nonzero().flatten()
            if broken.numel():
                raise DataError(
                    f"{where}: {name} holds NaN or infinity in row {some(broken.tolist())}",
                    "encode the profiles again: spike-kit encode",
                )
        if self.user.shape[1] != self.entity.shape[1]:
            raise DataError(
                f"{where}: user vectors have {self.user.shape[1]} dimensions, entity vectors {self.entity.shape[1]}"
            )

    def save(self, path: Path, metadata: dict[str, str]) -> None:
        """Write as safetensors, atomically, with facts about the encoder and the profiles as metadata."""
        with storage.atomic_file(path) as temporary:
            save_file(
                {"user": self.user.contiguous(), "entity": self.entity.contiguous()},
                temporary,
                metadata=metadata,
            )

    @classmethod
    def load(cls, path: Path) -> ProfileVectors:
        """Read a safetensors file with ``user`` and ``entity``.

        Raises
        ------
        DataError
            If the file is not safetensors or one of the two is missing.
        """
        try:
            with safe_open(path, framework="pt") as file:
                missing = {"user", "entity"} - set(file.keys())
                if missing:
                    raise DataError(f"{path} holds no tensor {some(sorted(missing))}", "encode the profiles again")
                return cls(file.get_tensor("user"), file.get_tensor("entity"))
        except (SafetensorError, OSError) as error:
            raise DataError(
                f"{path} is not a readable safetensors file: {error}", "encode the profiles again"
            ) from error

    @staticmethod
    def metadata(path: Path) -> dict[str, str]:
        """Read the metadata written by `save`; empty if the file has none or cannot be read."""
        try:
            with safe_open(path, framework="pt") as file:
                return dict(file.metadata() or {})
        except (SafetensorError, OSError):
            return {}
