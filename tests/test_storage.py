import codecs
import errno
import re
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from spike_kit.base import storage
from spike_kit.base.errors import DataError, StorageError


def fill_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every flush fail the way a full disk does."""

    def no_space(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", no_space)


def test_a_full_disk_or_a_forbidden_folder_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "value.json"
    storage.write_json(target, {"old": 1})
    fill_the_disk(monkeypatch)
    with pytest.raises(StorageError, match=r"disk is full.*value\.json"):
        storage.write_json(target, {"new": 2})
    assert storage.read_json(target) == {"old": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["value.json"]
    for error in (PermissionError(errno.EROFS, "read-only"), SafetensorError("I/O error (os error 13)")):
        with pytest.raises(StorageError, match="no permission to write"), storage.atomic_file(target):
            raise error


def test_a_folder_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(name: str, error: type[BaseException] | None = None) -> None:
        with storage.atomic_folder(tmp_path / "folder") as folder:
            (folder / name).write_text(name)
            if error is not None:
                raise error

    write("old")
    write("new")
    for error in (KeyboardInterrupt, ValueError):
        with pytest.raises(error):
            write("half", error)
    fill_the_disk(monkeypatch)
    with pytest.raises(StorageError, match="disk is full"):
        write("half")
    assert [file.name for file in tmp_path.rglob("*")] == ["folder", "new"]


def test_broken_files_are_errors_that_name_them(tmp_path: Path) -> None:
    file = tmp_path / "broken"
    for content in (b"{", b"\xff\xfe{\x00}\x00", b"", b"[" * 100_000):
        file.write_bytes(content)
        with pytest.raises(DataError, match=r"broken (is not valid JSON|line 1 is not text in UTF-8)"):
            storage.read_json(file)
        with pytest.raises(DataError, match="broken is not a readable parquet"):
            storage.read_parquet(file)


@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path: Path, mark: bytes) -> None:
    file = tmp_path / "file"
    file.write_bytes(mark + '{"é": 1}\r\n'.encode())
    assert storage.read_json(file) == {"é": 1}
    assert storage.read_text(file).splitlines() == ['{"é": 1}']


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"a\nb\ncaf\xe9\n", 3),
        (codecs.BOM_UTF8 + b"a\n\xe9\n", 2),
        ("a\n".encode("utf-16"), 1),
        (b"\n" * 9 + b"\x80", 10),
    ],
)
def test_another_encoding_is_refused_with_its_line(tmp_path: Path, content: bytes, line: int) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)
    with pytest.raises(DataError, match=rf"(?s)file line {line} is not text in UTF-8.*iconv"):
        storage.read_text(file)


LONG = "s" * 300


def in_the_way(folder: Path, what: str) -> tuple[Path, str, str]:
    """A path that cannot be written, what is said of it, and what is advised."""
    (folder / "file").write_text("")
    (folder / "nowhere").symlink_to(folder / "not-mounted" / "disk")
    (folder / "loop").symlink_to(folder / "loop")
    return {
        "below a file": (folder / "file" / "a", "file", "is in the way"),
        "far below a file": (folder / "file" / "data" / "a", "file", "is in the way"),
        "below a dangling link": (folder / "nowhere" / "a", "nowhere", "is in the way"),
        "far below a dangling link": (folder / "nowhere" / "data" / "a", "nowhere", "is in the way"),
        "a dangling link": (folder / "nowhere", "nowhere", "mount the disk"),
        "a link to itself": (folder / "loop", "loop", "remove the link"),
        "long name": (folder / LONG, LONG, "choose a shorter name"),
        "below a long name": (folder / LONG / "a", LONG, "choose a shorter name"),
    }[what]


WAYS = ["below a file", "far below a file", "below a dangling link", "far below a dangling link", "a dangling link"]


@pytest.mark.parametrize("write", [storage.atomic_file, storage.atomic_folder, storage.scratch_folder])
@pytest.mark.parametrize("what", [*WAYS, "a link to itself", "long name", "below a long name"])
def test_what_is_in_the_way_of_a_path_is_said(tmp_path: Path, write: Callable[..., Any], what: str) -> None:
    path, named, advice = in_the_way(tmp_path, what)
    path = path / "folder" if write is storage.scratch_folder else path
    with pytest.raises(StorageError) as raised, write(path) as temporary:
        temporary.touch()
    assert named in raised.value.message
    assert any(said in raised.value.hint for said in (advice, "is in the way"))
    assert not (tmp_path / "not-mounted").exists()


def test_a_folder_in_the_place_of_a_file_stays(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with (
        pytest.raises(StorageError, match=r"(?s)a was not written.*is in the way"),
        storage.atomic_file(tmp_path / "a") as file,
    ):
        file.touch()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        *(
            (errno.ENOSPC, "free some space"),
            (errno.EDQUOT, "free some space"),
            (errno.EROFS, "change its permissions"),
        ),
        *((errno.EIO, "check the disk"), (errno.ESTALE, "check the disk"), (errno.EFBIG, "check the disk")),
        (errno.ENAMETOOLONG, "shorter name"),
    ],
)
@pytest.mark.parametrize("write", [storage.atomic_file, storage.atomic_folder, storage.scratch_folder])
def test_an_error_of_the_disk_names_what_was_not_written(
    tmp_path: Path, write: Callable[..., Any], number: int, hint: str
) -> None:
    with pytest.raises(StorageError, match=rf"(?s){tmp_path.name}.*{hint}"), write(tmp_path / "a"):
        raise OSError(number, "as the system says it")


@pytest.mark.parametrize("write", [storage.atomic_file, storage.atomic_folder, storage.scratch_folder])
@pytest.mark.parametrize(
    "error",
    [
        PermissionError(errno.EACCES, "Permission denied", "/elsewhere/raw.csv"),
        FileNotFoundError(errno.ENOENT, "No such file", "/elsewhere/raw.csv"),
        OSError(errno.EIO, "Input/output error", "/elsewhere/raw.csv"),
        ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
        TimeoutError("timed out"),
        OSError("no number"),
    ],
    ids=repr,
)
def test_errors_of_other_files_and_of_the_network_are_not_explained_as_ours(
    tmp_path: Path, write: Callable[..., Any], error: OSError
) -> None:
    with pytest.raises(OSError, match=re.escape(str(error))) as raised, write(tmp_path / "a"):
        raise error
    assert raised.value is error


def test_an_error_of_a_file_beside_is_not_explained_as_ours(tmp_path: Path) -> None:
    """A workspace lies beside the raw files that are read in it."""
    with pytest.raises(IsADirectoryError), storage.scratch_folder(tmp_path):
        (tmp_path / "raw.csv").mkdir()
        (tmp_path / "raw.csv").read_bytes()


@pytest.mark.parametrize("last", [None, "new"])
@pytest.mark.parametrize("links", [1, 2])
def test_a_linked_folder_is_replaced_behind_its_link(tmp_path: Path, last: str | None, links: int) -> None:
    disk, path = tmp_path / "disk" / "moved", tmp_path / "home" / "a"
    for folder in (disk, path.parent):
        folder.mkdir(parents=True)
    (disk / "old").write_text("old")
    (disk / "linked").symlink_to(path.parent)
    behind = disk
    for number in range(links):
        link = path if number == links - 1 else tmp_path / f"link{number}"
        link.symlink_to(behind)
        behind = link
    with storage.atomic_folder(path, last) as folder:
        (folder / "new").write_text("new")
    assert path.is_symlink()
    assert [file.name for file in disk.iterdir()] == ["new"]
    assert [file.name for file in disk.parent.iterdir()] == ["moved"]
    assert [file.name for file in path.parent.iterdir()] == ["a"]


@pytest.mark.parametrize("target", ["disk/table.json", "../table.json"])
def test_a_linked_file_is_replaced_behind_its_link(tmp_path: Path, target: str) -> None:
    path = tmp_path / "home" / "a.json"
    path.parent.mkdir()
    path.symlink_to(target)
    disk = path.parent / target
    disk.parent.mkdir(exist_ok=True)
    storage.write_json(disk, {"old": 1})
    storage.write_json(path, {"new": 2})
    assert path.is_symlink()
    assert storage.read_json(disk) == {"new": 2}


def sqlite_error(folder: Path, kind: str) -> tuple[Path, sqlite3.Connection | None]:
    """A file of sqlite that cannot be used, and a connection that is to stay open meanwhile."""
    path, other = folder / "a.sqlite", None
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE kept (word TEXT)")
        database.executemany("INSERT INTO kept VALUES (?)", [["word" * 500]] * 50)
    if kind == "cut off":
        path.write_bytes(path.read_bytes()[:9000])
    elif kind == "garbage":
        path.write_bytes(bytes(range(256)) * 30)
    elif kind == "of another program":
        with closing(sqlite3.connect(path)) as database:
            database.execute("ALTER TABLE kept RENAME COLUMN word TO other")
    elif kind == "locked":
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
    elif kind == "folder":
        path.unlink()
        path.mkdir()
    return path, other


@pytest.mark.parametrize(
    ("kind", "pragma", "hint", "safe"),
    [
        ("cut off", "", "put a copy back or move it away", False),
        ("garbage", "", "put a copy back or move it away", False),
        ("of another program", "", "put a copy back or move it away", False),
        ("locked", "", "another process is using it", True),
        ("full disk", "PRAGMA max_page_count = 1", "free some space", True),
        ("no permission", "PRAGMA query_only = 1", "permissions", True),
        ("folder", "", "check that it is a file", True),
    ],
)
def test_what_to_do_about_a_file_of_sqlite_depends_on_what_is_wrong(
    tmp_path: Path, kind: str, pragma: str, hint: str, safe: bool
) -> None:
    path, other = sqlite_error(tmp_path, kind)
    with pytest.raises(StorageError) as raised, storage.database_errors(path, RuntimeError):
        try:
            with closing(sqlite3.connect(path, timeout=0)) as database, database:
                database.execute(pragma)
                database.executemany("INSERT INTO kept (word) VALUES (?)", [["more" * 500]] * 200)
                database.execute("SELECT sum(length(word)) FROM kept").fetchall()
        except sqlite3.Error as error:
            raise RuntimeError("what a library makes of it") from error
    if other is not None:
        other.close()
    assert "a.sqlite cannot be used" in raised.value.message
    assert "library" not in raised.value.message
    assert hint in raised.value.hint
    assert ("not lost" in raised.value.hint) == safe


@pytest.mark.parametrize(
    "error", [ConnectionResetError(errno.ECONNRESET, "reset"), FileNotFoundError(2, "no", "/else")]
)
def test_what_happens_beside_a_file_of_sqlite_is_not_its_fault(tmp_path: Path, error: OSError) -> None:
    with pytest.raises(type(error)), storage.database_errors(tmp_path / "a.sqlite"):
        raise error


def test_canonical_json_depends_on_values_only() -> None:
    assert storage.canonical_json({"b": 1, "a": [2, None]}) == '{"a":[2,null],"b":1}'


def hold(path: Path, held: SimpleQueue[bool]) -> None:
    with storage.exclusive(path, ""):
        held.put(True)
        time.sleep(600)


def test_a_lock_is_held_against_threads_and_processes_and_goes_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.lock"
    refused = pytest.raises(DataError, match=r"(?s)somebody is at it.*wait until it has ended")
    with storage.exclusive(path, ""), ThreadPoolExecutor(1) as pool, refused:
        pool.submit(storage.exclusive(path, "somebody is at it").__enter__).result()
    context = get_context("fork")
    held = context.SimpleQueue()
    process = context.Process(target=hold, args=(path, held))
    process.start()
    assert held.get()
    with refused, storage.exclusive(path, "somebody is at it"):
        pass
    process.kill()
    process.join()
    with storage.exclusive(path, "somebody is at it"):
        pass
    (tmp_path / "file").write_text("")
    in_the_way = pytest.raises(StorageError, match=r"(?s)b\.lock was not written.*is in the way")
    with in_the_way, storage.exclusive(tmp_path / "file" / "b.lock", ""):
        pass


def test_others_may_read_what_was_written(tmp_path: Path) -> None:
    with storage.atomic_file(tmp_path / "table.csv") as temporary:
        temporary.write_text("a\n")
    with storage.atomic_folder(tmp_path / "run") as folder:
        (folder / "metrics.json").write_text("{}")
    assert (tmp_path / "table.csv").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o755


def test_the_file_that_makes_a_folder_valid_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, moved = tmp_path / "run", []
    path.mkdir()
    (path / "state").write_text("old")
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda file, target: moved.append(file.name) or replace(file, target))
    with storage.atomic_folder(path, last="metrics.json") as folder:
        for name in ("config.json", "metrics.json", "model.safetensors"):
            (folder / name).write_text("new")
    assert moved[-1] == "metrics.json"
    assert {file.name for file in path.iterdir()} == set(moved)
