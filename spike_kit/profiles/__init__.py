"""Profiles: facts into texts, texts into vectors; and the registry of text encoders: a new one is a class and a line.

An encoder named ``mine`` gives the vectors ``mine:<model>``. Its entry is called with the model and a device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from spike_kit.base.errors import Registry

DEFAULT_ENCODER = "all-MiniLM-L6-v2"
"""Encoder whose weights come from the package index (extra ``text``): 384 dimensions, 256 tokens."""

if TYPE_CHECKING:
    import torch

    from spike_kit.profiles.encode import Encoder

ENCODERS: Registry[Callable[[str, torch.device | str], Encoder]] = Registry(
    "text encoder",
    {
        "transformer": "spike_kit.profiles.transformer:SentenceTransformerEncoder",
        "openai": "spike_kit.profiles.encode:OpenAIEncoder",
        "tfidf": "spike_kit.profiles.encode:TfidfEncoder",
    },
)
"""Every text encoder by its name."""
