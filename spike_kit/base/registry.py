"""Registries: the named things of one room, imported when they are first asked for."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, MutableMapping
from operator import attrgetter
from typing import TypeVar, cast

from spike_kit.base.errors import lookup

Entry = TypeVar("Entry")


class Registry(MutableMapping[str, Entry]):
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
        self._entries: dict[str, Entry | str] = dict(entries)

    def __getitem__(self, name: str) -> Entry:
        """Return the entry of a name; an unknown name is a `ConfigError` that lists the known ones."""
        entry = lookup(self._entries, name, self.what)
        if isinstance(entry, str):
            module, _, attribute = entry.partition(":")
            entry = self._entries[name] = cast(Entry, attrgetter(attribute)(importlib.import_module(module)))
        return entry

    def __setitem__(self, name: str, entry: Entry) -> None:
        self._entries[name] = entry

    def __delitem__(self, name: str) -> None:
        del self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
