from collections.abc import Mapping
from typing import Any

import pytest

from spike_kit.base.config import TrainingConfig
from spike_kit.base.errors import ConfigError, lookup
from spike_kit.data.sources import RECIPES
from spike_kit.models import MODELS
from spike_kit.models.spike import SpikeConfig


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"gama": 0.5}, r"(?s)unknown setting 'gama' for SpikeConfig.*SpikeConfig knows: .*gamma"),
        ({"gamma": 2}, r"SpikeConfig.gamma = 2"),
        ({"rho": float("nan")}, "SpikeConfig.rho"),
        ({"dim": 10, "heads": 4}, "dim 10 is not a multiple of heads 4"),
    ],
)
def test_settings_that_are_not_right_are_named(wrong: dict[str, float], message: str) -> None:
    for act in (SpikeConfig.parse, lambda values: SpikeConfig().replace(**values)):
        with pytest.raises(ConfigError, match=message):
            act(wrong)


def test_a_config_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValueError, match="frozen"):
        TrainingConfig().epochs = 3  # type: ignore[misc]


@pytest.mark.parametrize("known", [RECIPES, MODELS, TrainingConfig.model_fields, SpikeConfig.model_fields])
def test_an_unknown_name_is_answered_with_every_known_one(known: Mapping[str, Any]) -> None:
    with pytest.raises(ConfigError) as error:
        lookup(known, "tabels", "thing")
    assert error.value.hint == f"known: {', '.join(known)}"
