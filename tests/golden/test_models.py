"""Numbers of every model and preset: whoever changes them raises a declared version (`declared_versions`)."""

import pytest

from spike_kit.models import MODELS
from tests.golden import numbers

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
        model: numbers.versions(model) for model in MODELS
    }, f"a version or a model is not the recorded one: {RECORD}"
    assert {(model, name) for model, entry in recorded.items() for name in entry["presets"]} == {*CASES}, RECORD
