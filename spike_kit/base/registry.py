"""Registries: the named things of one room, imported when they are first asked for."""

from __future__ import annotations

import importlib
from collections import UserDict
from collections.abc import Mapping
from operator import attrgetter
from typing import Any, TypeVar

from spike_kit.base.errors import lookup

Entry = TypeVar("Entry")


class Registry(UserDict[str, Entry]):
    """Things of one kind by their names.

    An entry is the thing itself, or ``"module:name"``, which is imported when the entry is first asked for: so the
    names are known without importing what stands behind them.

    Parameters
    ----------
    what
        Kind of thing, in words for messages, for example ``"model"``.
    entries
        Entries by name, in the order in which they are listed.
    """

    def __init__(self, what: str, entries: Mapping[str, Entry | str]) -> None:
        self.what = what
        self.data: dict[str, Any] = dict(entries)

    def __getitem__(self, name: str) -> Entry:
        """Return the entry of a name; an unknown name is a `ConfigError` that lists the known ones."""
        entry = lookup(self.data, name, self.what)
        if isinstance(entry, str):
            module, _, attribute = entry.partition(":")
            entry = self.data[name] = attrgetter(attribute)(importlib.import_module(module))
        return entry
