"""Errors a user can act on, and the look-ups that raise them: each says what was wrong, expected, and to be done."""

import importlib
from collections import UserDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pkgutil import resolve_name
from types import ModuleType
from typing import Any, TypeVar

Value = TypeVar("Value")


class SpikeKitError(Exception):
    """Base of every error the kit raises on purpose.

    Parameters
    ----------
    message
        What is wrong: the file, the row or the id, and what was expected.
    hint
        What to do about it; shown on a line of its own.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(f"{message}\n  -> {hint}" if hint else message)
        self.message = message
        self.hint = hint


class ConfigError(SpikeKitError):
    """A setting is unknown, contradictory or out of range."""


class DataError(SpikeKitError):
    """A file or a table does not hold what it must."""


class FetchError(SpikeKitError):
    """A download failed or brought something else than expected."""


class StorageError(SpikeKitError):
    """Something could not be written (disk full, no permission)."""


class DeviceError(SpikeKitError):
    """The requested device does not exist here, or is of another model than those of the other processes."""


class TrainingError(SpikeKitError):
    """Training cannot go on (a loss became NaN, for example)."""


class TrainingStoppedError(SpikeKitError):
    """SIGTERM ended a training after an epoch; its state is on the disk."""


class LLMError(SpikeKitError):
    """A language model cannot be asked (no key, no quota, no such model, no server)."""


class NotebookError(SpikeKitError):
    """A cell of a notebook failed."""


class MissingExtraError(SpikeKitError):
    """An optional package is not installed."""


@contextmanager
def path_errors() -> Iterator[None]:
    """Turn what the file system says of any path into a `StorageError` that names it, where nobody has explained it."""
    try:
        yield
    except OSError as error:
        if error.errno is None or not isinstance(error.filename, str):
            raise
        hint = "check that path: is it spelt right and not too long, may it be used, is its disk mounted?"
        raise StorageError(f"{error.filename} cannot be used: {error.strerror}", hint) from error


def lookup(known: Mapping[str, Value], name: str, what: str) -> Value:
    """Look a name up in a registry.

    Raises
    ------
    ConfigError
        If the name is unknown; the message lists the known ones.
    """
    if name not in known:
        raise ConfigError(f"no {what} named {name!r}", f"known: {', '.join(known)}")
    return known[name]


class Registry(UserDict[str, Value]):
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

    def __init__(self, what: str, entries: Mapping[str, Value | str]) -> None:
        self.what = what
        self.data: dict[str, Any] = dict(entries)

    def __getitem__(self, name: str) -> Value:
        """Return the entry of a name; an unknown name is a `ConfigError` that lists the known ones."""
        entry = lookup(self.data, name, self.what)
        if isinstance(entry, str):
            entry = self.data[name] = resolve_name(entry)
        return entry


def require(module: str, extra: str) -> ModuleType:
    """Import an optional module, or say which extra brings it.

    Parameters
    ----------
    module
        Dotted name, for example ``"sentence_transformers"``.
    extra
        Name of the extra of this package that installs it, for example ``"text"``.

    Raises
    ------
    MissingExtraError
        If the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and not module.startswith(error.name):
            raise
        raise MissingExtraError(
            f"the package {module!r} is not installed",
            f"install the extra that brings it: pip install 'spike_kit[{extra}]' (or run `make setup`)",
        ) from error


def some(values: Iterable[object], limit: int = 10) -> str:
    """List the first few values for a message: ``"3, 7, 9 ... (12 in all)"``."""
    shown = [str(value) for value in values]
    if len(shown) <= limit:
        return ", ".join(shown)
    return f"{', '.join(shown[:limit])} ... ({len(shown)} in all)"
