"""Settings that a search chose for a model on a data set, and the files that keep them."""

from pathlib import Path
from typing import Any

from pydantic import Field

from spike_kit.base import paths, storage
from spike_kit.base.config import Config

TUNED = "tuned"
"""Name of the preset that takes the settings a search chose."""


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
    """Declared versions that were searched with (`declared_versions`)."""
    code_sha256: str = ""
    """Hash of the source files that were searched with, in files from before versions were declared."""
    commit: str | None
    """Its commit; with ``+`` if files differed from it."""
    date: str
    """Day of the search."""

    def save(self) -> Path:
        """Keep them as what a search made here chose; returns the file."""
        file = paths.data_root() / "tuned" / self.dataset / f"{self.model}.json"
        storage.write_json(file, self.model_dump(mode="json"))
        return file


def find_tuned(dataset: str, model: str) -> Tuned | None:
    """Tuned settings for a data set (a name or a path), if any: of a search made here, else those of the package.

    Raises
    ------
    ConfigError, DataError
        If the file does not hold what it must.
    """
    roots = (paths.data_root(), Path(__file__).parent)
    files = [root / "tuned" / Path(dataset).name / f"{model}.json" for root in roots]
    return next((Tuned.parse(storage.read_json(file)) for file in files if file.is_file()), None)
