"""A server and a data set for the tests of everything around a language model, with pauses of milliseconds."""

import functools
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from spike_kit.base import paths
from spike_kit.data.dataset import Dataset
from spike_kit.profiles import jobs
from tests.profiles.llm_server import ScriptedServer, distinct_world


@pytest.fixture(scope="session", autouse=True)
def certificates() -> Iterator[None]:
    """Read the certificates once: that takes longer than most tests."""
    context = functools.cache(httpx2.create_ssl_context)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("httpx2._transports.default.create_ssl_context", lambda **_: context())
        yield


@pytest.fixture(scope="session")
def films_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return distinct_world(tmp_path_factory.mktemp("films") / "world").path


@pytest.fixture
def films(home: Path, films_folder: Path) -> Dataset:
    """The tiny world without profiles, with 124 subjects."""
    return Dataset.open(shutil.copytree(films_folder, paths.data_root() / "world"))


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as running:
        yield running


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the SDK's pauses between attempts, and ours, take milliseconds."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.005)
    monkeypatch.setattr("openai._base_client.MAX_RETRY_DELAY", 0.01)
    monkeypatch.setattr(jobs, "_BUSY_PAUSE", 0.01)
    monkeypatch.setattr(jobs, "_TICK", 0.02)
