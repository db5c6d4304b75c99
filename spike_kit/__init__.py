"""Recommendation with LLM profiles inside knowledge graphs: SPiKE, its ablations and its baselines.

``import spike_kit as sk`` is the front door: `spike_kit.api` holds its verbs, ``sk.views`` and ``sk.figures`` what can
be looked at. Nothing else is imported before it is asked for.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spike_kit import figures, views
    from spike_kit.api import *  # noqa: F403 (the names of `__all__`; each is imported when it is asked for)

__version__ = "0.1.0"

# cuBLAS is deterministic only with it, and torch looks it up once, at the first product on a GPU, whatever follows.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

__all__ = [
    "Dataset",
    "Run",
    "Runs",
    "ablate",
    "build",
    "compare",
    "dataset",
    "encode",
    "evaluate",
    "figures",
    "generation",
    "judge",
    "load",
    "profile",
    "prompt",
    "quality",
    "runs",
    "search",
    "settings",
    "table",
    "train",
    "usual_profiles",
    "views",
]


def __getattr__(name: str) -> Any:
    """Import a room or a verb of the front door when it is first asked for."""
    if name in ("figures", "views"):
        return importlib.import_module(f"spike_kit.{name}")
    if name in __all__:
        return getattr(importlib.import_module("spike_kit.api"), name)
    raise AttributeError(f"module 'spike_kit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
