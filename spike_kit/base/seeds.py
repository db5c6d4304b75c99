"""Random numbers: one seed in, an independent stream for every purpose out."""

import hashlib

import numpy as np
import torch


def stream_seed(seed: int, stream: str) -> int:
    """63-bit seed of a named stream: equal for equal ``(seed, stream)`` on every machine."""
    digest = hashlib.sha256(f"{seed}/{stream}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def torch_generator(seed: int, stream: str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a torch generator on ``device`` for the named stream."""
    return torch.Generator(device=device).manual_seed(stream_seed(seed, stream))


def numpy_generator(seed: int, stream: str) -> np.random.Generator:
    """Return a numpy generator for the named stream."""
    return np.random.default_rng(stream_seed(seed, stream))
