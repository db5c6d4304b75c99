"""Generation that ends by a signal, at any moment: nothing is lost, nothing that arrived is asked for again."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from spike_kit.base import paths
from spike_kit.data.dataset import Dataset
from spike_kit.profiles.llm import AMBIGUOUS
from tests.profiles.llm_server import Gate, ScriptedServer, distinct_world, generation, stored

SUBJECTS = 124
CONCURRENCY = 8
KILLS = 20
PATIENCE = 60.0
"""Seconds that anything may take before a test gives up; none of them is part of what is tested."""

CLIENT = """
import asyncio, json, os, sys

from spike_kit.data.dataset import Study
from spike_kit.errors import SpikeKitError, require
from tests.profiles.llm_server import generation

require("openai", "llm"), require("httpx2", "llm")


def generate(order):
    try:
        os.environ["SPIKE_KIT_HOME"] = order["home"]
        made = generation(Dataset.open("world"), order["base_url"], concurrency=order["concurrency"])
        outcome = asyncio.new_event_loop().run_until_complete(cell(made)) if order["notebook"] else made.run()
        result = {"stopped": outcome.progress.stopped, "done": outcome.progress.done, "path": str(outcome.path)}
    except (SpikeKitError, KeyboardInterrupt) as error:
        result = {"error": type(error).__name__, "message": str(error)}
    with open(order["result"], "w") as file:
        json.dump(result, file)


async def cell(made):
    return made.run()


def say(value):
    sys.stdout.write(f"{value}\\n")
    sys.stdout.flush()


say("ready")
while line := sys.stdin.readline():
    order = json.loads(line)
    if "wait" in order:
        say(os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1]))
        continue
    child = os.fork()
    if child == 0:
        code = 1
        try:
            generate(order)
            code = 0
        finally:
            os._exit(code)
    say(child)
"""
"""A process that has imported everything, and starts clients by forking: a new one costs milliseconds."""


class Clients:
    """Starts client processes, one ``run`` each; use it as a context.

    Attributes
    ----------
    base_url
        Server the clients ask.
    home
        Their home folder, where their results are left, too.
    """

    def __init__(self) -> None:
        self.base_url, self.home = "", Path()
        self._started: dict[int, Path] = {}

    def __enter__(self) -> Self:
        self._parent = subprocess.Popen(
            [sys.executable, "-c", CLIENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._line() == "ready"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._parent.communicate(timeout=10)

    def _line(self) -> str:
        assert self._parent.stdout is not None
        return self._parent.stdout.readline().strip()

    def _order(self, value: dict[str, Any]) -> int:
        assert self._parent.stdin is not None
        self._parent.stdin.write(json.dumps(value) + "\n")
        self._parent.stdin.flush()
        return int(self._line())

    def start(self, notebook: bool = False) -> int:
        """Start a run, in a running event loop as in a notebook's cell or without; gives the id of its process."""
        result = self.home / f"result-{time.monotonic_ns()}.json"
        order = {"base_url": self.base_url, "home": str(self.home), "result": str(result)}
        process = self._order(order | {"concurrency": CONCURRENCY, "notebook": notebook})
        self._started[process] = result
        return process

    def wait(self, process: int) -> tuple[int, dict[str, Any]]:
        """Wait for the end of a run: exit code (negative: the signal that ended it), and what it said."""
        code = self._order({"wait": process})
        result = self._started.pop(process)
        return code, json.loads(result.read_text()) if result.is_file() else {}

    def kill(self, process: int) -> float:
        """End a run the hard way; gives the time just before."""
        moment = time.monotonic()
        os.kill(process, signal.SIGKILL)
        assert self.wait(process)[0] == -signal.SIGKILL
        return moment

    def kill_all(self) -> None:
        """End what is still running."""
        for process in list(self._started):
            self.kill(process)


@pytest.fixture
def films(home: Path) -> Dataset:
    return distinct_world(paths.data_root() / "world")


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as running:
        yield running


@pytest.fixture(scope="module")
def parent() -> Iterator[Clients]:
    with Clients() as running:
        yield running


@pytest.fixture
def clients(parent: Clients, films: Dataset, server: ScriptedServer, home: Path) -> Iterator[Clients]:
    parent.base_url, parent.home = server.base_url, home
    yield parent
    parent.kill_all()


def until(condition: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.001)


def sent(server: ScriptedServer) -> int:
    """Answers that were sent completely."""
    return sum(asked.sent < float("inf") for asked in server.log)


def kept(films: Dataset, server: ScriptedServer, folder: Path | None = None) -> list[str]:
    """Prompts whose answer is on disk, one entry for each answer.

    With a ``folder`` a copy made there is read: of a client that was killed the next one is the first to open the file.
    """
    made = generation(films, server.base_url)
    if folder is not None:
        shutil.copytree(made.answers.parent, folder)
        made.answers = folder / made.answers.name
    starts = {subject[:12]: subject for subject in server.counts}
    return [starts[text.split()[1]] for (text,) in stored(made, "SELECT text FROM answers")]


def check_complete(films: Dataset, server: ScriptedServer) -> None:
    """Check that every prompt has exactly one answer, and the table a row for each."""
    made = generation(films, server.base_url)
    rows = stored(made, "SELECT subject, id, count(*) FROM answers GROUP BY subject, id")
    expected = {
        (subject, number) for subject in ("item", "auxiliary", "user") for number in films.expected_ids(subject)
    }
    assert {row[:2] for row in rows} == expected
    assert {row[2] for row in rows} == {1}
    hashes = stored(made, "SELECT count(DISTINCT prompt_sha256), count(*) FROM answers")
    assert hashes == [(SUBJECTS, SUBJECTS)]
    assert stored(made, "PRAGMA integrity_check") == [("ok",)]
    assert stored(made, "SELECT count(*) FROM failures") == [(0,)]
    assert stored(made, "SELECT count(*) FROM prompts") == [(SUBJECTS,)]
    assert len(server.counts) == SUBJECTS
    profiles = Dataset.open(films.name).profiles("told")
    assert len(profiles) == SUBJECTS
    assert (profiles["model"] == "told").all()
    assert profiles["text"].str.startswith("Profile ").all()
    assert not list(films.path.rglob(".spike-kit-tmp-*"))


def test_twenty_kills_at_random_moments_lose_nothing(
    films: Dataset, server: ScriptedServer, clients: Clients, tmp_path: Path
) -> None:
    draw = random.Random(11)
    gate = Gate(0, lambda: draw.uniform(0, 0.03))
    server.script = gate
    on_disk: set[str] = set()
    lost = 0
    for number in range(KILLS):
        before, answered_before = len(server.log), sent(server)
        budget = draw.randint(1, 6)
        gate.left = budget
        process = clients.start()
        until(lambda before=before: len(server.log) > before, "the first request of a client")
        if number % 2:
            expected = len(on_disk) + budget
            until(lambda n=expected: len(kept(films, server)) >= n, "the answers of a round on disk")
        else:
            time.sleep(draw.uniform(0, 0.06))
        gate.left = 0
        clients.kill(process)
        gate.dead = time.monotonic()
        of_round = server.log[before:]
        assert not on_disk & {asked.subject for asked in of_round}, "an answer on disk was asked for again"
        answers = kept(films, server, tmp_path / str(number))
        assert len(answers) == len(set(answers))
        assert on_disk <= set(answers), "an answer is gone"
        on_disk = set(answers)
        lost_now = len({asked.subject for asked in of_round} - on_disk)
        assert lost_now <= CONCURRENCY, "more than the calls in flight was lost"
        if number % 2:
            assert sent(server) - answered_before == budget
        lost += lost_now
    killed_requests = len(server.log)
    gate.left = SUBJECTS
    code, result = clients.wait(clients.start())
    assert (code, result["stopped"], result["path"]) == (0, False, str(films.profiles_path("told")))
    check_complete(films, server)

    made = generation(films, server.base_url)
    kinds = dict(stored(made, "SELECT kind, count(*) FROM events GROUP BY kind"))
    ambiguous = sum(count for kind, count in kinds.items() if kind in AMBIGUOUS)
    assert killed_requests > KILLS
    assert (server.peak, ambiguous) == (CONCURRENCY, 0)
    assert not on_disk & {asked.subject for asked in server.log[killed_requests:]}
    assert len(server.log) - SUBJECTS == lost
    assert lost >= KILLS / 2
    assert len(on_disk) >= KILLS / 2, "the checks of what is on disk had nothing to look at"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_polite_signal_awaits_the_calls_in_flight(
    films: Dataset, server: ScriptedServer, clients: Clients, number: signal.Signals
) -> None:
    gate = Gate(30)
    server.script = gate
    process = clients.start()
    until(lambda: len(server.log) == 30 + CONCURRENCY, "calls in flight")
    os.kill(process, number)
    time.sleep(1.0)
    assert len(server.log) == 30 + CONCURRENCY
    gate.left = SUBJECTS
    code, result = clients.wait(process)
    assert (code, result) == (0, {"stopped": True, "done": 30 + CONCURRENCY, "path": "None"})
    made = generation(films, server.base_url)
    assert stored(made, "SELECT count(*) FROM answers") == [(30 + CONCURRENCY,)]
    assert clients.wait(clients.start())[1]["done"] == SUBJECTS - 30 - CONCURRENCY
    assert len(server.log) == SUBJECTS
    check_complete(films, server)


def test_a_second_polite_signal_ends_at_once_and_keeps_what_arrived(
    films: Dataset, server: ScriptedServer, clients: Clients
) -> None:
    gate = Gate(30)
    server.script = gate
    process = clients.start()
    until(lambda: len(server.log) == 30 + CONCURRENCY, "calls in flight")
    until(lambda: len(kept(films, server)) == 30, "the answers on disk")
    os.kill(process, signal.SIGTERM)
    time.sleep(1.0)
    os.kill(process, signal.SIGTERM)
    assert clients.wait(process)[0] == -signal.SIGTERM
    gate.dead = time.monotonic()
    assert stored(generation(films, server.base_url), "SELECT count(*) FROM answers") == [(30,)]
    gate.left = SUBJECTS
    assert clients.wait(clients.start())[1]["done"] == SUBJECTS - 30
    assert len(server.log) == SUBJECTS + CONCURRENCY
    check_complete(films, server)


def test_an_interrupted_cell_of_a_notebook_ends_the_run_too(
    films: Dataset, server: ScriptedServer, clients: Clients
) -> None:
    gate = Gate(30)
    server.script = gate
    process = clients.start(notebook=True)
    until(lambda: len(server.log) == 30 + CONCURRENCY, "calls in flight")
    os.kill(process, signal.SIGINT)
    time.sleep(1.0)
    gate.left = SUBJECTS
    clients.wait(process)
    assert len(server.log) == 30 + CONCURRENCY, "the run went on after the interrupt"
    assert clients.wait(clients.start())[1]["path"] == str(films.profiles_path("told"))
    check_complete(films, server)


def test_two_processes_never_ask_for_one_study_at_once(
    films: Dataset, server: ScriptedServer, clients: Clients
) -> None:
    gate = Gate(10)
    server.script = gate
    first = clients.start()
    until(lambda: len(server.log) == 10 + CONCURRENCY, "calls in flight")
    code, result = clients.wait(clients.start())
    assert (code, result["error"]) == (0, "DataError")
    assert "another process is asking a model for world" in result["message"]
    assert len(server.log) == 10 + CONCURRENCY
    clients.kill(first)
    gate.dead = time.monotonic()
    gate.left = SUBJECTS
    code, result = clients.wait(clients.start())
    assert (code, result["done"]) == (0, SUBJECTS - 10), "the lock outlived its process"
    check_complete(films, server)


def test_a_kill_while_the_table_is_written_costs_no_request(
    films: Dataset, server: ScriptedServer, clients: Clients
) -> None:
    assert clients.wait(clients.start())[0] == 0
    table = films.profiles_path("told")
    halves = 0
    for _ in range(3):
        table.unlink()
        process = clients.start()
        until(lambda: table.exists() or any(table.parent.glob(".spike-kit-tmp-*")), "the table or its beginning")
        os.kill(process, signal.SIGKILL)
        clients.wait(process)
        halves += not table.exists()
        for left in table.parent.glob(".spike-kit-tmp-*"):
            left.unlink()
        assert Dataset.open(films.name).profile_sets() == (["told"] if table.exists() else [])
        assert clients.wait(clients.start())[0] == 0
        assert len(Dataset.open(films.name).profiles("told")) == SUBJECTS
    assert halves > 0, "no kill came before the table was in its place"
    assert len(server.log) == SUBJECTS
