"""Settings that a search chose: one small JSON file per data set and model.

Those of searches made here live in ``data/tuned``; those of docs/study come with the package and are only read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from spike_kit.base import paths, storage
from spike_kit.base.config import Config
from spike_kit.base.errors import ConfigError

TUNED = "tuned"
"""Name of the preset that takes the settings of these files."""

ROOT = Path(__file__).parent / "tuned"
"""Files that come with the package."""


class Tuned(Config):
    """Settings of a model for a data set, and the search that chose them (on validation alone)."""

    model: str
    """Name of the model."""
    dataset: str
    """Name of the data set."""
    preset: str
    """Named setting that the search started from."""
    settings: dict[str, Any]
    """Model settings that differ from it."""
    training: dict[str, Any]
    """Training settings that differ from it."""
    valid: float
    """Validation NDCG@20 of the best trial."""
    trials: int = Field(ge=1)
    """Trials that came to an end."""
    pruned: int = Field(ge=0)
    """Those of them that were given up early."""
    capped: int = Field(ge=0)
    """Those of them that the time limit ended."""
    trial_seconds: float | None
    """Time limit of a trial in seconds."""
    seconds: float
    """Seconds of all trials together."""
    seed: int
    """Seed of the search."""
    data_sha256: str
    """Version of the data set that was searched on."""
    versions: dict[str, int] = Field(default_factory=dict)
    """Declared versions that were searched with (`spike_kit.experiments.run.declared_versions`)."""
    code_sha256: str = ""
    """Hash of the source files that were searched with, in files from before versions were declared."""
    commit: str | None
    """Its commit; with ``+`` if files differed from it."""
    date: str
    """Day of the search."""


def own_path(dataset: str, model: str) -> Path:
    """File that a search made here is kept in (`spike_kit.experiments.search.save_tuned`)."""
    return paths.data_root() / "tuned" / dataset / f"{model}.json"


def tuned_path(dataset: str, model: str) -> Path:
    """File with the tuned settings of a model for a data set: that of a search made here, else that of the package."""
    own, shipped = own_path(dataset, model), ROOT / dataset / f"{model}.json"
    return shipped if shipped.is_file() and not own.is_file() else own


def read_tuned(dataset: str, model: str) -> Tuned:
    """Tuned settings of a model for a data set.

    Raises
    ------
    ConfigError
        If there are none, or the file does not hold what it must.
    """
    file = tuned_path(dataset, model)
    if not file.is_file():
        raise ConfigError(
            f"model {model} has no tuned settings for data set {dataset}",
            f"search for them: spike-kit search --model {model} --dataset {dataset} --save",
        )
    return Tuned.parse(storage.read_json(file))
