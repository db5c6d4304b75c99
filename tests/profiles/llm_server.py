"""A chat server that can be told how to fail, request by request, and remembers everything it was asked.

It listens on 127.0.0.1 in a thread with an event loop of its own, so that clients may be in this process or another.
"""

import asyncio
import hashlib
import json
import re
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Self

from spike_kit.data.dataset import Dataset
from spike_kit.profiles.checks import remedy
from spike_kit.profiles.generate import Generation, GenerationConfig, judged
from spike_kit.profiles.jobs import Asking, Progress
from spike_kit.profiles.llm import LLMConfig
from spike_kit.profiles.loopback import completion
from spike_kit.profiles.store import Store
from tests.world import ITEMS_PER_GROUP, USERS_PER_GROUP, make_world, write_world


@dataclass
class Asked:
    """One request.

    Attributes
    ----------
    number
        Place among all requests, from 1.
    subject
        Hash of the first two messages: the prompt, whatever was said after it.
    nth
        How often this prompt was sent by now, from 1.
    body, head
        JSON of the request; its first line and headers.
    arrived, sent
        Times (monotonic) of the last byte in and of the last byte out; ``sent`` is infinite until then.
    """

    number: int
    subject: str
    nth: int
    body: dict[str, Any]
    head: bytes
    arrived: float
    sent: float = float("inf")

    @property
    def messages(self) -> list[dict[str, str]]:
        return self.body["messages"]

    @property
    def prompt(self) -> str:
        return self.messages[1]["content"]

    @property
    def item(self) -> int:
        """Item the prompt is about; -1 if it is about another subject."""
        named = re.match(r'item: "\w+ film (\d+)"', self.prompt.splitlines()[1])
        return int(named[1]) if named else -1


Reply = Callable[[Asked, asyncio.StreamWriter], Awaitable[None]]
"""Answers one request; raises `ConnectionError` to drop the connection."""

Script = Callable[[Asked], Reply]
"""Chooses a reply for every request."""


def prose(asked: Asked, words: int = 30) -> str:
    """Harmless English, different for every prompt."""
    said = f"Profile {asked.subject[:12]} is for the viewer who likes a story of the sea and of the people in it"
    return " ".join((said.split() * 20)[:words])


class ScriptedServer:
    """Answers as a script says, counts and remembers; use it as a context: it runs in a thread.

    Parameters
    ----------
    script
        Chooses the reply of every request; may be replaced at any time.

    Attributes
    ----------
    log
        All requests so far, in the order of their arrival.
    """

    def __init__(self, script: Script | None = None) -> None:
        self.script: Script = script or (lambda _: good())
        self._ready = threading.Event()
        self.forget()

    def forget(self) -> None:
        """Start counting anew."""
        self.log: list[Asked] = []
        self.counts: Counter[str] = Counter()

    @property
    def requests(self) -> int:
        """How many requests came."""
        return len(self.log)

    @property
    def bodies(self) -> list[dict[str, Any]]:
        """JSON of all requests."""
        return [asked.body for asked in self.log]

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._thread.start()
        assert self._ready.wait(10), "the server did not start"
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(10)
        assert not self._thread.is_alive(), "the server did not end"

    async def _run(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        async with await asyncio.start_server(self._serve, "127.0.0.1", 0) as server:
            self.base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
            self._ready.set()
            await self._over.wait()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                size = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
                await self._respond(head, json.loads(await reader.readexactly(size)), writer)
        writer.close()

    async def _respond(self, head: bytes, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        """Answer one request as the script says."""
        subject = hashlib.sha256(json.dumps(body.get("messages", [])[:2], sort_keys=True).encode()).hexdigest()
        self.counts[subject] += 1
        asked = Asked(self.requests + 1, subject, self.counts[subject], body, head, time.monotonic())
        self.log.append(asked)
        await self.script(asked)(asked, writer)
        await writer.drain()
        asked.sent = time.monotonic()


def response(status: int, value: Any, headers: str = "") -> bytes:
    """HTTP response with a JSON body, or with these bytes; ``headers`` are further lines, each ending in CRLF."""
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    kind = "" if "Content-Type" in headers else "Content-Type: application/json\r\n"
    return f"HTTP/1.1 {status} -\r\n{kind}Content-Length: {len(body)}\r\n{headers}\r\n".encode() + body


def sends(value: Any, status: int = 200, headers: str = "", delay: float = 0.0) -> Reply:
    """A JSON value, or bytes as they are, or what a function makes of the request."""

    async def reply(asked: Asked, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(delay)
        writer.write(response(status, value(asked) if callable(value) else value, headers))

    return reply


def says(text: str | Callable[[Asked], str], finish_reason: str = "stop", delay: float = 0.0, **message: Any) -> Reply:
    """A chat completion; ``message`` are further fields of the message."""

    def body(asked: Asked) -> dict[str, Any]:
        made = completion(text if isinstance(text, str) else text(asked), asked.body, finish_reason)
        made["choices"][0]["message"] |= message
        return made

    return sends(body, delay=delay)


def good(delay: float = 0.0) -> Reply:
    """A profile without any problem."""
    return says(prose, delay=delay)


def fails(status: int, code: str = "", message: str = "made to fail", headers: str = "", delay: float = 0.0) -> Reply:
    """An error as OpenAI words it; ``headers`` are lines that end in CRLF."""
    error = {"message": message, "type": "error", "param": None, "code": code or None}
    return sends({"error": error}, status, headers, delay)


def speaks(data: bytes, pause: float = 0.0) -> Reply:
    """These bytes, and the end of the connection; with a ``pause`` after each byte."""

    async def reply(asked: Asked, writer: asyncio.StreamWriter) -> None:
        for place in range(len(data)) if pause else ():
            writer.write(data[place : place + 1])
            await asyncio.sleep(pause)
        writer.write(b"" if pause else data)
        await writer.drain()
        raise ConnectionResetError

    return reply


class Gate:
    """Script that answers so many requests well, and holds the others back until more are let through.

    Parameters
    ----------
    left
        Requests still answered; may be set at any time.
    delay
        Gives the seconds an answer takes.

    Attributes
    ----------
    dead
        Requests that came up to this moment (monotonic) are dropped: their client is gone.
    """

    def __init__(self, left: int, delay: Callable[[], float] = lambda: 0.0) -> None:
        self.left, self.delay, self.dead = left, delay, 0.0

    def __call__(self, asked: Asked) -> Reply:  # noqa: ARG002
        return self._reply

    async def _reply(self, asked: Asked, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(self.delay())
        while self.left <= 0 or asked.arrived <= self.dead:
            if asked.arrived <= self.dead:
                raise ConnectionResetError
            await asyncio.sleep(0.003)
        self.left -= 1
        await good()(asked, writer)


def distinct_world(path: Path) -> Dataset:
    """The tiny world, but for a train item less of some users: no two of its 124 prompts are the same."""
    tables = make_world().tables
    rows = tables.interactions
    twins = rows[(rows["user"] % USERS_PER_GROUP >= ITEMS_PER_GROUP) & (rows["split"] == "train")]
    fewer = rows.drop(index=twins.groupby("user").head(1).index).reset_index(drop=True)
    return write_world(path, tables=replace(tables, interactions=fewer))


def generation(
    data: Dataset, base_url: str, profiles: str = "told", *, fill: str = "", prompts: Any = None, **llm: Any
) -> Generation:
    """Profiles of a data set by the server at ``base_url``."""
    values = {"model": "told", "base_url": base_url, "concurrency": 4, "timeout": 10.0, **llm}
    config = {"llm": LLMConfig.parse(values), "prompts": prompts or {}, "fill": fill}
    return Generation(data, GenerationConfig.parse(config), profiles)


def ask(made: Generation, most: int, progress: Progress | None = None, stop: threading.Event | None = None) -> Progress:
    """Ask about the first items only; the progress is counted up also where the run ends in an error."""
    progress = Progress() if progress is None else progress
    with Store(made.answers) as store:
        prompts = islice(made.prompts("item", store), most)
        rules = partial(judged, 150), partial(remedy, 150), partial(made.found, store)
        Asking(prompts, *rules, made.config.llm, store, progress, stop or threading.Event()).run()
    return progress


def stored(made: Generation, sql: str) -> list[tuple[Any, ...]]:
    """Rows of the file of answers, read by another connection."""
    with closing(sqlite3.connect(made.answers)) as connection:
        return connection.execute(sql).fetchall()


def ids(made: Generation, table: str) -> set[int]:
    """Ids in one of its tables."""
    return {row[0] for row in stored(made, f"SELECT id FROM {table}")}


def events(made: Generation) -> dict[str, int]:
    """Attempts without an answer by kind."""
    return dict(stored(made, "SELECT kind, count(*) FROM events GROUP BY kind"))
