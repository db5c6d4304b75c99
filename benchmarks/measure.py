"""Measuring in processes of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from spike_kit.base.processes import fresh_process

Result = TypeVar("Result")


def alone(function: Callable[..., Result], *arguments: object) -> Result:
    """Run a function in a fresh process."""
    with fresh_process() as pool:
        return pool.submit(function, *arguments).result()
