"""Generation that ends by a signal, at any moment: nothing is lost, nothing that arrived is asked for again."""

import asyncio
import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from spike_kit.base.errors import SpikeKitError
from spike_kit.data.dataset import SUBJECTS as KINDS
from spike_kit.data.dataset import Dataset
from spike_kit.profiles.generate import Outcome
from tests.profiles.llm_server import Gate, ScriptedServer, events, generation, stored

SUBJECTS = 124
CONCURRENCY = 8
KILLS = 20
PATIENCE = 60.0
"""Seconds that anything may take before a test gives up; none of them is part of what is tested."""


def generate(base_url: str, result: Path, notebook: bool) -> None:
    """Run a generation in a process of its own, in a running event loop as in a notebook's cell or without."""
    os.environ["SPIKE_KIT_HOME"] = str(result.parent)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores it
    setattr(httpx2._transports.default, "create_ssl_context", lambda **_: _CERTIFICATES)  # noqa: B010
    made = generation(Dataset.open("world"), base_url, concurrency=CONCURRENCY)

    async def cell() -> Outcome:
        return made.run()

    try:
        outcome = asyncio.run(cell()) if notebook else made.run()
        said = {"stopped": outcome.progress.stopped, "done": outcome.progress.done, "path": str(outcome.path)}
    except (SpikeKitError, KeyboardInterrupt) as error:
        said = {"error": type(error).__name__, "message": str(error)}
    result.write_text(json.dumps(said))


class Clients:
    """Starts client processes, one ``run`` each, forked from one that has imported everything."""

    def __init__(self, home: Path, base_url: str) -> None:
        self._home, self._base_url = home, base_url
        self._results: dict[Any, Path] = {}

    def start(self, notebook: bool = False) -> Any:
        """Start a run; gives its process."""
        result = self._home / f"result-{len(self._results)}.json"
        process = _CONTEXT.Process(target=generate, args=(self._base_url, result, notebook))
        process.start()
        self._results[process] = result
        return process

    def wait(self, process: Any = None) -> tuple[int, dict[str, Any]]:
        """Wait for the end of a run, or of a new one: exit code (negative: the signal), and what it said."""
        process = process or self.start()
        process.join(PATIENCE)
        result = self._results[process]
        return process.exitcode, json.loads(result.read_text()) if result.is_file() else {}

    def kill_all(self) -> None:
        """End what is still running."""
        for process in self._results:
            process.kill()
            process.join()


_CERTIFICATES = httpx2.create_ssl_context()
"""Read once, in the process that the clients are forked from."""

_CONTEXT = multiprocessing.get_context("forkserver")


@pytest.fixture(scope="module", autouse=True)
def preloaded() -> None:
    _CONTEXT.set_forkserver_preload([__name__, "openai"])


@pytest.fixture
def clients(films: Dataset, server: ScriptedServer, home: Path) -> Iterator[Clients]:
    running = Clients(home, server.base_url)
    yield running
    running.kill_all()


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait until something holds."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"waited {PATIENCE} s for {what}"
        time.sleep(0.001)


def kept(films: Dataset, server: ScriptedServer, folder: Path | None = None) -> list[str]:
    """Prompts whose answer is on disk, one entry for each answer.

    With a ``folder`` a copy made there is read: of a client that was killed the next one is the first to open the file.
    """
    made = generation(films, server.base_url)
    if folder is not None:
        shutil.copytree(made.answers.parent, folder)
        made.answers = folder / made.answers.name
    texts = stored(made, "SELECT text FROM answers")
    starts = {subject[:12]: subject for subject in server.counts}
    return [starts[text.split()[1]] for (text,) in texts]


def check_complete(films: Dataset, server: ScriptedServer) -> None:
    """Check that every prompt has exactly one answer, and the table a row for each."""
    made = generation(films, server.base_url)
    rows = stored(made, "SELECT subject, id FROM answers")
    expected = [(subject, number) for subject in KINDS for number in films.expected_ids(subject)]
    assert sorted(rows) == sorted(expected)
    assert stored(made, "SELECT count(DISTINCT prompt_sha256) FROM answers") == [(SUBJECTS,)]
    assert stored(made, "PRAGMA integrity_check") == [("ok",)]
    assert stored(made, "SELECT (SELECT count(*) FROM prompts), (SELECT count(*) FROM failures)") == [(SUBJECTS, 0)]
    assert len(server.counts) == SUBJECTS
    profiles = Dataset.open(films.name).profiles("told")
    assert (profiles["model"] == "told").sum() == len(profiles) == SUBJECTS
    assert profiles["text"].str.startswith("Profile ").all()
    assert not list(films.path.rglob(".spike-kit-tmp-*"))


def test_twenty_kills_lose_nothing(films: Dataset, server: ScriptedServer, clients: Clients, tmp_path: Path) -> None:
    draw = random.Random(11)
    server.script = gate = Gate(0, lambda: draw.uniform(0, 0.03))
    on_disk: set[str] = set()
    lost = 0
    for number in range(KILLS):
        before = len(server.log)
        gate.left = budget = draw.randint(1, 6)
        process = clients.start()
        until(lambda before=before: len(server.log) > before, "the first request of a client")
        if number % 2:
            expected = len(on_disk) + budget
            until(lambda n=expected: len(kept(films, server)) >= n, "the answers of a round on disk")
        else:
            time.sleep(draw.uniform(0, 0.06))
        gate.left = 0
        process.kill()
        assert clients.wait(process)[0] == -signal.SIGKILL
        gate.dead = time.monotonic()
        of_round = {asked.subject for asked in server.log[before:]}
        assert not on_disk & of_round, "an answer on disk was asked for again"
        answers = kept(films, server, tmp_path / str(number))
        assert len(answers) == len(set(answers))
        assert on_disk <= set(answers), "an answer is gone"
        on_disk = set(answers)
        assert len(of_round - on_disk) <= CONCURRENCY, "more than the calls in flight was lost"
        lost += len(of_round - on_disk)
    killed_requests = len(server.log)
    gate.left = SUBJECTS
    code, result = clients.wait()
    assert (code, result["stopped"], result["path"]) == (0, False, str(films.profiles_path("told")))
    check_complete(films, server)
    assert killed_requests > KILLS
    assert events(generation(films, server.base_url)) == {}
    assert not on_disk & {asked.subject for asked in server.log[killed_requests:]}
    assert len(server.log) - SUBJECTS == lost
    assert min(lost, len(on_disk)) >= KILLS / 2, "the checks of what is lost or on disk had nothing to look at"


def started(films: Dataset, server: ScriptedServer, clients: Clients, notebook: bool = False) -> tuple[Gate, Any]:
    """A run that has 30 answers and waits for others; gives the gate that holds these back, and its process."""
    server.script = gate = Gate(30)
    process = clients.start(notebook)
    until(lambda: len(server.log) == 30 + CONCURRENCY, "calls in flight")
    until(lambda: len(kept(films, server)) == 30, "the answers on disk")
    return gate, process


@pytest.mark.parametrize(
    ("number", "twice", "notebook"),
    [
        (signal.SIGTERM, False, False),
        (signal.SIGTERM, True, False),
        (signal.SIGINT, True, False),
        (signal.SIGINT, False, True),
    ],
)
def test_a_polite_signal_awaits_the_calls_in_flight_and_a_second_one_ends_at_once(
    films: Dataset, server: ScriptedServer, clients: Clients, number: signal.Signals, twice: bool, notebook: bool
) -> None:
    server.script = gate = Gate(30)
    process = clients.start(notebook)
    until(lambda: len(server.log) == 30 + CONCURRENCY, "calls in flight")
    until(lambda: len(kept(films, server)) == 30, "the answers on disk")
    os.kill(process.pid, number)
    time.sleep(0.5)
    lost = CONCURRENCY * twice
    if twice:
        os.kill(process.pid, number)
        code, result = clients.wait(process)
        assert code == -number or result["error"] == "KeyboardInterrupt"
        gate.dead = time.monotonic()
    gate.left = SUBJECTS
    code, result = clients.wait(process)
    assert len(server.log) == 30 + CONCURRENCY, "the run went on after the signal"
    assert twice or notebook or (code, result) == (0, {"stopped": True, "done": 30 + CONCURRENCY, "path": "None"})
    assert len(kept(films, server)) == 30 + CONCURRENCY - lost
    assert clients.wait()[1]["done"] == SUBJECTS - 30 - CONCURRENCY + lost
    assert len(server.log) == SUBJECTS + lost
    check_complete(films, server)
