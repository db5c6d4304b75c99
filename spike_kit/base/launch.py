"""Where ``torchrun`` put this process; known without importing torch."""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """Number of this process, and its number on this machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1


def place() -> Place:
    """Place of this process; alone where ``torchrun`` did not start it."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return Place()
    return Place(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")))
