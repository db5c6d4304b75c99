"""The list of one-line faults fits the code: each can be planted (``python -m tests.faults`` plants them)."""

from pathlib import Path

from tests.faults.__main__ import ROOT, place_of, read_faults


def test_each_fault_has_one_place_and_tests_that_exist() -> None:
    faults = read_faults()
    assert len({fault["name"] for fault in faults}) == len(faults) >= 40
    for fault in faults:
        assert fault["right"] != fault["wrong"]
        assert isinstance(place_of(fault), Path)
        assert all((ROOT / test).exists() for test in fault["tests"].split())
