"""What a search may choose, as models declare it: ranges and choices of settings, and those that models share."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from spike_kit.base.errors import ConfigError


@dataclass(frozen=True)
class Range:
    """All numbers from ``low`` to ``high``, drawn evenly or, with ``log``, evenly in their logarithm.

    Raises
    ------
    ConfigError
        If the range is empty, not finite, or reaches 0 on a logarithmic scale.
    """

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        if not (-math.inf < self.low < self.high < math.inf) or (self.log and self.low <= 0):
            raise ConfigError(f"{self} is no range", "low < high, and low > 0 where log is set")

    def __contains__(self, value: object) -> bool:
        """Whether a number lies in the range."""
        return isinstance(value, int | float) and self.low <= value <= self.high


Space: TypeAlias = Mapping[str, Sequence[Any] | Range]
"""Choices or a range by the name of a setting of the model or of its training."""

SHARED: Space = {
    "learning_rate": Range(5e-4, 2e-2, log=True),
    "loss": ("bpr", "softmax", "cosine_softmax"),
    "temperature": Range(0.05, 0.5, log=True),
    "l2": (0.0, 1e-6, 1e-5, 1e-4, 1e-3),
    "batch_size": (2048, 4096, 16_384, 65_536),
}
"""Settings of every trained model; they are offered to all of them alike."""
PROPAGATED: Space = {**SHARED, "layers": (1, 2, 3, 4)}
"""Those of models that propagate over the interactions."""
CONTRAST: Space = {
    "contrast_weight": Range(1e-3, 1.0, log=True),
    "contrast_temperature": Range(0.05, 1.0, log=True),
}
"""Those of a contrastive term."""
