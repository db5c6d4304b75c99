"""Files that users have on their disks: folders of data sets and runs, paid answers, the archive."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from spike_kit.cli import main
from tests.golden import files

RECORD = "files that users have would no longer be read; if that is meant: `python -m tests.golden.record files`"


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    return files.read()


@pytest.fixture
def golden(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data set of these tests, in the working folder."""
    monkeypatch.chdir(home)
    files.build()
    return home / "data" / "golden"


class Counting(BaseHTTPRequestHandler):
    """Counts requests and fails them."""

    asked: list[str]

    def do_POST(self) -> None:
        self.asked.append(self.path)
        self.send_error(401)

    do_GET = do_POST  # noqa: N815


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    Counting.asked = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Counting) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_a_data_set_folder(golden: Path, recorded: dict[str, Any]) -> None:
    assert files.dataset(golden) == recorded["dataset"], RECORD


@pytest.mark.parametrize("model", files.MODELS)
def test_a_run_folder(golden: Path, recorded: dict[str, Any], model: str) -> None:
    assert files.run(files.train(model, golden.parent / "runs")) == recorded["runs"][model], RECORD


def test_answers_that_an_earlier_version_paid_for_are_not_asked_again(
    golden: Path, server: ThreadingHTTPServer, recorded: dict[str, Any]
) -> None:
    """The file is never made anew: it stands for those that users have."""
    (golden.parent / "llm").mkdir()
    shutil.copy(files.ANSWERS, golden.parent / "llm")
    assert main([*files.PAID, "--base-url", f"http://127.0.0.1:{server.server_address[1]}/v1"]) == 0
    assert Counting.asked == []
    assert files.digest(golden / "profiles" / "paid.parquet") == recorded["paid"]


def test_the_archive_of_the_study(recorded: dict[str, Any]) -> None:
    assert files.archive() == recorded["archive"], RECORD


@pytest.mark.pipeline
def test_the_small_cut_of_the_default_data_set(recorded: dict[str, Any]) -> None:
    assert files.SMALL.is_dir(), f"{files.SMALL} is missing: make pipeline"
    assert files.tables(files.SMALL) == recorded["small"]
