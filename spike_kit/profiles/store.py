"""Answers that were paid for: one sqlite file per study, written before anything else happens with them.

The file is data/llm/<study>.sqlite, outside of the data-set folder, so building the study again does not touch it. Its
tables: ``answers`` (usable ones: one row per subject, id, prompt, model and parameters), ``rejected`` (every other
answer that arrived), ``failures`` (what has no answer, and why), ``events`` (attempts that brought none), ``prompts``
(texts), ``batched`` (what was written into batch files).
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from spike_kit.base import paths, storage
from spike_kit.base.errors import StorageError
from spike_kit.base.storage import database_errors, now
from spike_kit.data.dataset import Dataset
from spike_kit.profiles.llm import Answer

_KEY = "subject, id, prompt_sha256, model, parameters"
_OF_KEY = "subject=? AND id=? AND prompt_sha256=? AND model=? AND parameters=?"
_ROWS_AT_A_TIME = 500
_KEY_COLUMNS = (
    "subject TEXT NOT NULL, id INTEGER NOT NULL, prompt_sha256 TEXT NOT NULL, model TEXT NOT NULL, "
    "parameters TEXT NOT NULL"
)
_ANSWER_COLUMNS = (
    "text TEXT NOT NULL, usage TEXT NOT NULL, finish_reason TEXT NOT NULL, latency REAL NOT NULL, "
    "attempts INTEGER NOT NULL, problem TEXT NOT NULL, server TEXT NOT NULL, created TEXT NOT NULL"
)
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS answers (row INTEGER PRIMARY KEY, {_KEY_COLUMNS}, {_ANSWER_COLUMNS}, UNIQUE ({_KEY}));
CREATE TABLE IF NOT EXISTS rejected (row INTEGER PRIMARY KEY, {_KEY_COLUMNS}, {_ANSWER_COLUMNS});
CREATE INDEX IF NOT EXISTS rejected_key ON rejected ({_KEY});
CREATE TABLE IF NOT EXISTS failures
    ({_KEY_COLUMNS}, kind TEXT NOT NULL, message TEXT NOT NULL, created TEXT NOT NULL, PRIMARY KEY ({_KEY}));
CREATE TABLE IF NOT EXISTS events
    (subject TEXT NOT NULL, id INTEGER NOT NULL, kind TEXT NOT NULL, message TEXT NOT NULL, created TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS batched (custom_id TEXT PRIMARY KEY, {_KEY_COLUMNS}, imported INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS prompts (sha256 TEXT PRIMARY KEY, version TEXT NOT NULL, text TEXT NOT NULL);
"""
_INSERT = {
    table: f"{verb} INTO {table} ({_KEY}, text, usage, finish_reason, latency, attempts, problem, server, created) "
    "VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)"
    for table, verb in (("answers", "INSERT OR IGNORE"), ("rejected", "INSERT"))
}


@dataclass(frozen=True)
class Key:
    """What an answer is stored under."""

    subject: str
    id: int
    prompt_sha256: str
    model: str
    parameters: str

    @property
    def values(self) -> tuple[str, int, str, str, str]:
        """In the order of the columns."""
        return self.subject, self.id, self.prompt_sha256, self.model, self.parameters


@dataclass(frozen=True)
class Stored:
    """A stored answer: its row, text and problem (``too_long`` or nothing in ``answers``)."""

    row: int
    text: str
    problem: str


Statement = tuple[str, Sequence[Any]]


class Store:
    """The file of answers; use it as a context.

    Parameters
    ----------
    path
        The sqlite file; see `answers_path` for that of a data set.

    Raises
    ------
    StorageError
        If the file cannot be written or read (full disk, no permission, damaged).
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Self:
        with database_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = sqlite3.connect(self.path, timeout=60, isolation_level=None, check_same_thread=False)
            self._writer.execute("PRAGMA journal_mode = WAL")
            self._writer.execute("PRAGMA synchronous = FULL")
            self._writer.executescript(_SCHEMA)
            self._reader = sqlite3.connect(self.path, timeout=60, isolation_level=None)
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()
        self._writer.close()

    def run(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run one query."""
        with database_errors(self.path):
            return self._reader.execute(sql, values).fetchall()

    def write(self, statements: Iterable[Statement]) -> None:
        """Run statements in one transaction; once this returns they are on the disk, or none is."""
        self.begin(statements)
        self.commit()

    def begin(self, statements: Iterable[Statement]) -> None:
        """Run statements in a transaction that `commit` ends."""
        with database_errors(self.path), self._or_none():
            self._writer.execute("BEGIN IMMEDIATE")
            for sql, values in statements:
                self._writer.execute(sql, values)

    def commit(self) -> None:
        """End the transaction: it is on the disk once this returns."""
        with database_errors(self.path), self._or_none():
            self._writer.execute("COMMIT")

    @contextmanager
    def _or_none(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")
            raise

    def answer(self, key: Key) -> Stored | None:
        """Usable answer under a key."""
        rows = self.run(f"SELECT row, text, problem FROM answers WHERE {_OF_KEY}", key.values)
        return Stored(*rows[0]) if rows else None

    def rejected(self, key: Key) -> list[Stored]:
        """Answers under a key that were not usable, oldest first."""
        rows = self.run(f"SELECT row, text, problem FROM rejected WHERE {_OF_KEY} ORDER BY row", key.values)
        return [Stored(*row) for row in rows]

    def is_refused(self, key: Key) -> bool:
        """Whether the server would not take a question because of its content."""
        return bool(self.run(f"SELECT 1 FROM failures WHERE {_OF_KEY} AND kind='content'", key.values))

    def texts(self, rows: Sequence[int]) -> dict[int, str]:
        """Texts of answers by row."""
        return dict(self._by_row("row, text", rows))

    def details(self, rows: Sequence[int]) -> Iterator[tuple[Any, ...]]:
        """Row, text, prompt_sha256, model, usage and creation time of answers."""
        return self._by_row("row, text, prompt_sha256, model, usage, created", rows)

    def newest(self, rows: Sequence[int]) -> str | None:
        """Creation time of the answer among these that was stored last."""
        return next((created for (created,) in self._by_row("created", [max(rows)])), None) if rows else None

    def _by_row(self, columns: str, rows: Sequence[int]) -> Iterator[tuple[Any, ...]]:
        for start in range(0, len(rows), _ROWS_AT_A_TIME):
            part = rows[start : start + _ROWS_AT_A_TIME]
            marks = ",".join("?" * len(part))
            yield from self.run(f"SELECT {columns} FROM answers WHERE row IN ({marks})", part)

    def with_problem(self, problem: str, rows: Sequence[int]) -> int:
        """How many of these answers have a problem that did not make them unusable."""
        flawed = {row for (row,) in self.run("SELECT row FROM answers WHERE problem=?", (problem,))}
        return sum(row in flawed for row in rows)

    def prompt(self, sha256: str) -> str | None:
        """Text of a prompt by its hash."""
        rows = self.run("SELECT text FROM prompts WHERE sha256=?", (sha256,))
        return rows[0][0] if rows else None


def answered(
    key: Key, answer: Answer, text: str, problem: str, *, usable: bool, attempts: int, server: str
) -> list[Statement]:
    """Statements that store an answer; a usable one ends what was said of its failure."""
    values = (
        *key.values,
        text,
        json.dumps(answer.usage),
        answer.finish_reason,
        answer.seconds,
        attempts,
        problem,
        server,
        now(),
    )
    if not usable:
        return [(_INSERT["rejected"], values)]
    forget = "DELETE FROM failures WHERE subject=? AND id=? AND model=? AND parameters=?"
    return [
        (_INSERT["answers"], values),
        (forget, (key.subject, key.id, key.model, key.parameters)),
    ]


def failed(key: Key, kind: str, message: str) -> Statement:
    """Statement that lists a subject as failed."""
    return f"INSERT OR REPLACE INTO failures ({_KEY}, kind, message, created) VALUES (?,?,?,?,?,?,?,?)", (
        *key.values,
        kind,
        message,
        now(),
    )


def event(key: Key, kind: str, message: str) -> Statement:
    """Statement that records an attempt without an answer."""
    return "INSERT INTO events VALUES (?,?,?,?,?)", (key.subject, key.id, kind, message, now())


def asked(sha256: str, version: str, text: str) -> Statement:
    """Statement that keeps the text of a prompt."""
    return "INSERT OR IGNORE INTO prompts VALUES (?,?,?)", (sha256, version, text)


class Committer:
    """Writes to a store from an event loop: what is handed in meanwhile is committed together.

    Only the commit, which waits for the disk, runs in a thread: every single statement there would wait for the
    interpreter's lock.

    Parameters
    ----------
    store
        An open store.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._pending: list[tuple[list[Statement], asyncio.Future[None]]] = []
        self._task: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1)

    async def commit(self, statements: list[Statement]) -> None:
        """Return once the statements are on the disk.

        Raises
        ------
        StorageError
            If they could not be written.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pending.append((statements, done))
        if self._task is None:
            self._task = asyncio.create_task(self._write())
        await asyncio.shield(done)

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        while self._pending:
            batch, self._pending = self._pending, []
            everything = [statement for statements, _ in batch for statement in statements]
            try:
                self._store.begin(everything)
                await loop.run_in_executor(self._thread, self._store.commit)
            except Exception as error:
                for _, done in batch:
                    done.set_exception(_copy(error))
            else:
                for _, done in batch:
                    done.set_result(None)
        self._task = None

    async def close(self) -> None:
        """Wait for what is being written."""
        while self._task is not None:
            await self._task
        self._thread.shutdown()


def answers_path(data: Dataset) -> Path:
    """File of a data set's answers."""
    return paths.answers_root() / f"{data.name}.sqlite"


def exclusive(store: Store) -> AbstractContextManager[None]:
    """Keep other processes from asking for the same study meanwhile; see `spike_kit.base.storage.exclusive`."""
    return storage.exclusive(
        store.path.with_suffix(".lock"), f"another process is asking a model for {store.path.stem}"
    )


def _copy(error: Exception) -> Exception:
    """The same error for another waiter: one exception object must not be raised twice."""
    if isinstance(error, StorageError):
        return StorageError(error.message, error.hint)
    return RuntimeError(f"an answer could not be stored: {error!r}")
