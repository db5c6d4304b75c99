from __future__ import annotations

import pytest

from spike_kit.base.config import TrainingConfig
from spike_kit.base.errors import ConfigError
from spike_kit.models.spike import SpikeConfig


def test_a_misspelt_setting_is_an_error_that_names_it_and_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"(?s)unknown setting 'patient' for TrainingConfig.*patience"):
        TrainingConfig.parse({"patient": 10})


def test_a_value_out_of_range_is_an_error_that_names_it() -> None:
    with pytest.raises(ConfigError, match=r"SpikeConfig.gamma = 2"):
        SpikeConfig().replace(gamma=2)
    with pytest.raises(ConfigError, match=r"rho"):
        SpikeConfig().replace(rho=float("nan"))


def test_settings_that_contradict_each_other_are_an_error() -> None:
    with pytest.raises(ConfigError, match="dim 10 is not a multiple of heads 4"):
        SpikeConfig.parse({"dim": 10, "heads": 4})


def test_a_config_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValueError, match="frozen"):
        TrainingConfig().epochs = 3  # type: ignore[misc]
