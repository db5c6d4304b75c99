"""Options that several commands share."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from spike_kit.base.devices import resolve_device


@dataclass(frozen=True, kw_only=True)
class OnDevice:
    """Options of the commands that compute."""

    device: str = "auto"
    """Device: auto (CUDA where present), cpu, cuda or cuda:N."""
    gpu: int | None = None
    """Short for --device cuda:N."""

    def chosen_device(self) -> torch.device:
        """Device that is meant, if it exists; else a `DeviceError`."""
        return resolve_device(self.device, self.gpu)
