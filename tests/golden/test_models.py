"""Numbers of every model and preset: whoever changes them raises a declared version (`declared_versions`)."""

from __future__ import annotations

from pathlib import Path

import pytest

from spike_kit.experiments.run import declared_versions
from spike_kit.models import MODELS
from tests.golden import numbers
from tests.golden.numbers import EPOCHS, Form

RECORD = "record the golden numbers anew with `python -m tests.golden.record`"
CASES = [(model, name) for model in MODELS for name in numbers.forms(model)]


@pytest.fixture(scope="module")
def recorded() -> dict:
    return numbers.read()


@pytest.mark.parametrize(("model", "preset"), CASES)
def test_numbers_change_only_with_the_version(recorded: dict, model: str, preset: str) -> None:
    assert preset in recorded.get(model, {}).get("presets", {}), f"{model}/{preset} is new: {RECORD}"
    found = numbers.computed(model, numbers.forms(model)[preset])
    changed = [*numbers.differences(found, recorded[model]["presets"][preset])]
    where = "(or the version of graph, training or protocol)"
    assert not changed, f"numbers of {model}/{preset} changed: raise its `version` {where} and {RECORD}: {changed[:5]}"


def test_versions_are_those_recorded_and_nothing_else_is(recorded: dict) -> None:
    assert {model: entry["versions"] for model, entry in recorded.items()} == {
        model: declared_versions(model) for model in MODELS
    }, f"a version or a model is not the recorded one: {RECORD}"
    assert {(model, name) for model, entry in recorded.items() for name in entry["presets"]} == {*CASES}, RECORD


@pytest.mark.parametrize("model", ["spike", "lightgcn", "diffkg"])
def test_a_resumed_training_has_the_same_numbers(recorded: dict, tmp_path: Path, model: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        numbers.computed(model, Form(), tmp_path / "state", stop_after=2)
    assert (tmp_path / "state" / "last.safetensors").is_file()
    found = numbers.computed(model, Form(), tmp_path / "state")
    assert [*numbers.differences(found, recorded[model]["presets"]["recommended"])] == []


def test_some_trainings_stop_early_and_some_run_to_the_end(recorded: dict) -> None:
    trained = [preset for entry in recorded.values() for preset in entry["presets"].values() if "epochs" in preset]
    lengths = {len(preset["epochs"]["loss"]) for preset in trained}
    assert min(lengths) < EPOCHS == max(lengths)
    assert any(preset["best_epoch"] < len(preset["epochs"]["loss"]) for preset in trained)
