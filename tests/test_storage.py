import errno
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue
from pathlib import Path

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
        with pytest.raises(DataError, match="broken is not valid JSON"):
            storage.read_json(file)
        with pytest.raises(DataError, match="broken is not a readable parquet"):
            storage.read_parquet(file)


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
    with pytest.raises(StorageError, match="cannot be used"), storage.exclusive(tmp_path / "file" / "b.lock", ""):
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
