"""Writing that is all or nothing, and reading that names the file when it fails."""

import errno
import hashlib
import json
import os
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
from filelock import FileLock, Timeout
from safetensors import SafetensorError

from spike_kit.base.errors import DataError, StorageError

Value = TypeVar("Value")

_TEMPORARY = ".spike-kit-tmp-"
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_PERMISSION = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn a full disk or a missing permission into a `StorageError` that names what was not written."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        told = re.search(r"os error (\d+)", str(error))  # safetensors has the number in its text only
        number = error.errno if isinstance(error, OSError) else told and int(told[1])
        if number in _DISK_FULL:
            problem = f"the disk is full: {path} was not written (what stood there before is untouched)"
            raise StorageError(problem, "free some space and run the same command again") from error
        if number in _NO_PERMISSION:
            hint = "choose another folder or change its permissions"
            raise StorageError(f"no permission to write {path}", hint) from error
        raise


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """Give an empty temporary folder in ``parent``; it is removed, however the work in it ends.

    Raises
    ------
    StorageError
        If the disk is full or the folder may not be written.
    """
    with storage_errors(parent):
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=_TEMPORARY, dir=parent, ignore_cleanup_errors=True) as folder:
            yield Path(folder)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; on success it becomes ``path``, on any error it is removed.

    Raises
    ------
    StorageError
        If the disk is full or the folder may not be written.
    """
    with scratch_folder(path.parent) as folder, storage_errors(path):
        temporary = folder / path.name
        yield temporary
        _flush(temporary)
        temporary.chmod(0o644)
        temporary.replace(path)
        _flush(path.parent)


@contextmanager
def atomic_folder(path: Path, last: str | None = None) -> Iterator[Path]:
    """Give a temporary folder beside ``path``; on success it takes the place of ``path``, else it is removed.

    A folder that stood at ``path`` before is replaced as a whole, never mixed with the new one. Where ``last`` names
    the file that makes the folder valid, the new files move into the old folder instead, that one at the end, and what
    else was there goes afterwards: then there is no moment at which neither of the two is in its place.

    Raises
    ------
    StorageError
        If the disk is full or the folder may not be written.
    """
    with scratch_folder(path.parent) as temporary, storage_errors(path):
        new, old = temporary / "new", temporary / "old"
        new.mkdir()
        new.chmod(0o755)
        try:
            yield new
            for file in new.rglob("*"):
                _flush(file)
            if last is not None and path.is_dir():
                _move_in(new, path, last)
            else:
                if path.exists():
                    path.replace(old)
                new.replace(path)
            _flush(path.parent)
        finally:
            if old.exists() and not path.exists():
                old.replace(path)


def _move_in(new: Path, path: Path, last: str) -> None:
    files = sorted(new.iterdir(), key=lambda file: file.name == last)
    for file in files:
        file.replace(path / file.name)
    _flush(path)
    names = {file.name for file in files}
    for old in path.iterdir():
        if old.name not in names:
            remove(old)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it."""
    shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def database_errors(path: Path, *others: type[Exception]) -> Iterator[None]:
    """Turn an error of sqlite, of the file system or of ``others`` into a `StorageError` that names the file."""
    try:
        yield
    except (sqlite3.Error, OSError, *others) as error:
        hint = "free some space or check its permissions, and run again; what it holds is not lost"
        raise StorageError(f"{path} cannot be used: {error.__cause__ or error}", hint) from error


@contextmanager
def exclusive(path: Path, held: str) -> Iterator[None]:
    """Hold a lock file against other processes and threads; released with the process, however it ends.

    Parameters
    ----------
    path
        The lock file; it stays behind, empty.
    held
        What the error says if another process holds it.

    Raises
    ------
    DataError
        If another process holds it.
    StorageError
        If the file cannot be used.
    """
    lock = FileLock(path, thread_local=False)
    with database_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except Timeout as error:
            raise DataError(held, "wait until it has ended, or stop it") from error
    try:
        yield
    finally:
        lock.release()


def _flush(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_file(path: Path) -> str:
    """Hexadecimal sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def now() -> str:
    """Time in ISO 8601, UTC, as tables keep it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def sha256_text(text: str) -> str:
    """Hexadecimal sha256 of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises
    ------
    DataError
        If the file is missing or is not JSON.
    """
    return _read(path, "valid JSON", lambda: json.loads(path.read_text(encoding="utf-8")))


def read_parquet(path: Path) -> pd.DataFrame:
    """Read a parquet table.

    Raises
    ------
    DataError
        If the file is missing or is not parquet.
    """
    return _read(path, "a readable parquet table", lambda: pd.read_parquet(path))


def _read(path: Path, kind: str, read: Callable[[], Value]) -> Value:
    try:
        return read()
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is not {kind}: {error}", "build or fetch it again") from error
