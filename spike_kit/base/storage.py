"""Writing that is all or nothing, and reading that names the file when it fails."""

import errno
import hashlib
import json
import os
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Sequence
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
_IN_THE_WAY = (errno.EEXIST, errno.ENOTDIR, errno.ELOOP, errno.EISDIR)
_CHECK_THE_DISK = "check the disk (is it mounted?), and run the same command again"
_REMEDIES = {
    **dict.fromkeys(_DISK_FULL, "free some space and run the same command again"),
    **dict.fromkeys(_NO_PERMISSION, "choose another folder or change its permissions"),
    **dict.fromkeys(_IN_THE_WAY, "a file, a folder or a link that leads nowhere (a disk not mounted?) is in the way"),
    **dict.fromkeys((errno.EIO, errno.EFBIG, errno.ESTALE), _CHECK_THE_DISK),
    errno.ENAMETOOLONG: "choose a shorter name",
}
"""What to do about errors of the file system; no other kind of error has one of these numbers and no file name."""

_NOT_LOST = "and run again; what it holds is not lost"
_SQLITE_REMEDIES = {
    sqlite3.SQLITE_BUSY: f"another process is using it: wait until that has ended, {_NOT_LOST}",
    sqlite3.SQLITE_FULL: f"free some space, {_NOT_LOST}",
    sqlite3.SQLITE_READONLY: f"check the permissions of it and of its folder, {_NOT_LOST}",
    sqlite3.SQLITE_CANTOPEN: f"check that it is a file, and the permissions of it and of its folder, {_NOT_LOST}",
    sqlite3.SQLITE_IOERR: "check the disk and its free space, and run again",
}
_DAMAGED = "it is damaged or of another kind: put a copy back or move it away, and run again; `sqlite3 FILE .recover` "
_DAMAGED += "may read what is left in it"


@contextmanager
def storage_errors(path: Path, *places: Path) -> Iterator[None]:
    """Turn errors of the file system into a `StorageError` that names what was not written, and says what to do.

    An error that names a file elsewhere, or comes from a network, passes as it is.

    Parameters
    ----------
    path
        What is being written.
    places
        Files and folders that are worked on, with all in them and all above them; default: ``path``.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        told = re.search(r"os error (\d+)", str(error))  # safetensors has the number in its text only
        number = error.errno if isinstance(error, OSError) else told and int(told[1])
        named = getattr(error, "filename", None)
        if not (_concerns(named, places or (path,)) if isinstance(named, str) else number in _REMEDIES):
            raise
        problem = f"{path} was not written: {error}"
        if number in _DISK_FULL:
            problem = f"the disk is full: {path} was not written (what stood there before is untouched)"
        elif number in _NO_PERMISSION:
            problem = f"no permission to write {named or path}"
        raise StorageError(problem, _REMEDIES.get(number or 0, _CHECK_THE_DISK)) from error


def _concerns(named: str, places: Sequence[Path]) -> bool:
    """Whether a file that an error names is one of some places, in it, or above it."""
    file, absolute = Path(named).absolute(), [place.absolute() for place in places]
    return any(file.is_relative_to(place) or place.is_relative_to(file) for place in absolute)


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """Give an empty temporary folder in ``parent``; it is removed, however the work in it ends.

    Raises
    ------
    StorageError
        If the folder cannot be written (full disk, no permission, a file in its place).
    """
    with storage_errors(parent):
        parent.mkdir(parents=True, exist_ok=True)
        made = tempfile.TemporaryDirectory(prefix=_TEMPORARY, dir=parent, ignore_cleanup_errors=True)
    with made as folder, storage_errors(parent, Path(folder)):
        yield Path(folder)


def _behind(path: Path) -> Path:
    """What a link leads to, which is replaced in its stead; a path that is no link as it is."""
    with storage_errors(path):
        if path.is_symlink() and not path.exists():
            problem = f"{path} is a link to {path.readlink()}, which is not there"
            raise StorageError(problem, "mount the disk it is on, or remove the link")
        return path.resolve() if path.is_symlink() else path


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; on success it becomes ``path``, on any error it is removed.

    Where ``path`` is a link, the file behind it is replaced.

    Raises
    ------
    StorageError
        If the file cannot be written (full disk, no permission, a folder in its place, a link that leads nowhere).
    """
    path = _behind(path)
    with scratch_folder(path.parent) as folder, storage_errors(path, path, folder):
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
    else was there goes afterwards: then there is no moment at which neither of the two is in its place. Where ``path``
    is a link, the folder behind it is replaced.

    Raises
    ------
    StorageError
        If the folder cannot be written (full disk, no permission, a file in its place, a link that leads nowhere).
    """
    path = _behind(path)
    with scratch_folder(path.parent) as temporary, storage_errors(path, path, temporary):
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
    """Remove a file, a link, or a folder with all that is in it."""
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


@contextmanager
def database_errors(path: Path, *others: type[Exception]) -> Iterator[None]:
    """Turn an error of sqlite, or of ``others`` that wrap one, into a `StorageError` that names the file and a remedy.

    Errors of the file system are those of `storage_errors`.
    """
    with storage_errors(path, path, path.with_name(f"{path.name}-wal")):
        try:
            yield
        except (sqlite3.Error, *others) as error:
            cause: BaseException = error
            while cause.__cause__ and not isinstance(cause, sqlite3.Error):
                cause = cause.__cause__
            code = getattr(cause, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF  # without the bits of its subkind
            hint = _SQLITE_REMEDIES.get(code, _DAMAGED)
            raise StorageError(f"{path} cannot be used: {cause}", hint) from error


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


def read_text(path: Path) -> str:
    """Read a text file in UTF-8, with a byte order mark or without.

    Raises
    ------
    DataError
        If the file cannot be read or is in another encoding; then the message names the line.
    """
    content = _read(path, "a readable file", path.read_bytes)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        hint = "convert it, for example: iconv -f CP1252 -t UTF-8"
        raise DataError(f"{path} line {line} is not text in UTF-8: {error}", hint) from error


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises
    ------
    DataError
        If the file is missing, in another encoding, or is not JSON.
    """
    return _read(path, "valid JSON", lambda: json.loads(read_text(path)))


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
        raise DataError(f"{path} is not {kind}: {error}", "correct it, or build or fetch it again") from error
