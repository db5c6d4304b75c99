"""Answers that were paid for: one sqlite file per data set, written before anything else happens with them.

The file is data/llm/<data set>.sqlite, outside of the data-set folder: a new build does not touch it. Its
tables: ``answers`` (usable ones: one row per subject, id, prompt, model and parameters), ``rejected`` (every other
answer that arrived), ``failures`` (what has no answer, and why), ``events`` (attempts that brought none), ``prompts``
(texts), ``batched`` (what was written into batch files).
"""

import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

from spike_kit.base import paths, storage
from spike_kit.base.storage import database_errors, now
from spike_kit.data.dataset import Dataset
from spike_kit.profiles.llm import LLMConfig
from spike_kit.profiles.prompts import Prompt

_KEY = "subject, id, prompt_sha256, model, parameters"
_OF_KEY = f"({_KEY}) = (?, ?, ?, ?, ?)"
_OF_ROWS = "row IN (SELECT value FROM json_each(?))"
_KEY_COLUMNS = (
    "subject TEXT NOT NULL, id INTEGER NOT NULL, prompt_sha256 TEXT NOT NULL, model TEXT NOT NULL, "
    "parameters TEXT NOT NULL"
)
_ANSWER_COLUMNS = (
    f"row INTEGER PRIMARY KEY, {_KEY_COLUMNS}, text TEXT NOT NULL, usage TEXT NOT NULL, finish_reason TEXT NOT NULL, "
    "latency REAL NOT NULL, attempts INTEGER NOT NULL, problem TEXT NOT NULL, server TEXT NOT NULL, "
    "created TEXT NOT NULL"
)
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS answers ({_ANSWER_COLUMNS}, UNIQUE ({_KEY}));
CREATE TABLE IF NOT EXISTS rejected ({_ANSWER_COLUMNS});
CREATE INDEX IF NOT EXISTS rejected_key ON rejected ({_KEY});
CREATE TABLE IF NOT EXISTS failures
    ({_KEY_COLUMNS}, kind TEXT NOT NULL, message TEXT NOT NULL, created TEXT NOT NULL, PRIMARY KEY ({_KEY}));
CREATE TABLE IF NOT EXISTS events
    (subject TEXT NOT NULL, id INTEGER NOT NULL, kind TEXT NOT NULL, message TEXT NOT NULL, created TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS batched (custom_id TEXT PRIMARY KEY, {_KEY_COLUMNS}, imported INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS prompts (sha256 TEXT PRIMARY KEY, version TEXT NOT NULL, text TEXT NOT NULL);
"""


class Key(NamedTuple):
    """What an answer is stored under; the fields are in the order of the columns."""

    subject: str
    id: int
    prompt_sha256: str
    model: str
    parameters: str

    @classmethod
    def of(cls, prompt: Prompt, llm: LLMConfig) -> Self:
        """Key of a question to a model."""
        return cls(prompt.subject, prompt.id, prompt.sha256, llm.model, llm.parameters)


class Stored(NamedTuple):
    """A stored answer: its row, text and problem (``too_long`` or nothing in ``answers``)."""

    row: int
    text: str
    problem: str


@dataclass(frozen=True)
class Answer:
    """What a model said.

    Attributes
    ----------
    text
        As it came, cleaned by `spike_kit.profiles.checks.tidy` only later; empty if the model refused.
    finish_reason
        ``stop``, ``length``, ``content_filter``, ...
    usage
        ``prompt_tokens`` and ``completion_tokens`` as the server counted them (0 where it did not).
    seconds
        Latency of the attempt that succeeded.
    refusal
        What the model said when it declined, where the server tells.
    thoughts
        Field of the message that holds thoughts (``reasoning``, for example); empty if none does.
    """

    text: str
    finish_reason: str
    usage: dict[str, int]
    seconds: float
    refusal: str = ""
    thoughts: str = ""


@dataclass(frozen=True)
class Verdict:
    """Judgement of an answer: its clean text, what is wrong with it, whether it may be used all the same.

    ``advice`` says what must change before it is of any use to ask again; the question is then not asked once more.
    """

    text: str
    problem: str
    usable: bool
    advice: str = ""


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
            # In a notebook the questions are asked in another thread, while the one that opened the file waits.
            self._database = sqlite3.connect(self.path, timeout=60, isolation_level=None, check_same_thread=False)
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = NORMAL")
            self._database.executescript(_SCHEMA)
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()
        self._database.close()

    def flush(self) -> None:
        """Wait until the disk itself has what was committed: a kill loses nothing, a power cut what came after this."""
        with database_errors(self.path):
            if (journal := self.path.with_name(f"{self.path.name}-wal")).is_file():
                with journal.open("r+b") as file:
                    os.fsync(file.fileno())

    def run(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run one statement; outside of a `transaction` what it writes is committed once this returns."""
        with database_errors(self.path):
            return self._database.execute(sql, values).fetchall()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Make the statements of a block one transaction: at its end all are committed, or none is."""
        with database_errors(self.path), self._database:
            self._database.execute("BEGIN IMMEDIATE")
            yield

    def answer(self, key: Key) -> Stored | None:
        """Usable answer under a key."""
        rows = self.run(f"SELECT row, text, problem FROM answers WHERE {_OF_KEY}", key)
        return Stored(*rows[0]) if rows else None

    def rejected(self, key: Key) -> list[Stored]:
        """Answers under a key that were not usable, oldest first."""
        rows = self.run(f"SELECT row, text, problem FROM rejected WHERE {_OF_KEY} ORDER BY row", key)
        return [Stored(*row) for row in rows]

    def is_refused(self, key: Key) -> bool:
        """Whether the server would not take a question because of its content."""
        return bool(self.run(f"SELECT 1 FROM failures WHERE {_OF_KEY} AND kind='content'", key))

    def details(self, rows: Sequence[int]) -> dict[int, list[Any]]:
        """Text, prompt_sha256, model, usage and creation time of answers by row."""
        sql = f"SELECT row, text, prompt_sha256, model, usage, created FROM answers WHERE {_OF_ROWS}"
        return {row: values for row, *values in self.run(sql, [json.dumps(rows)])}

    def with_problem(self, problem: str, rows: Sequence[int]) -> int:
        """How many of these answers have a problem that did not make them unusable."""
        sql = f"SELECT count(*) FROM answers WHERE problem=? AND {_OF_ROWS}"
        return self.run(sql, (problem, json.dumps(rows)))[0][0]

    def prompt(self, sha256: str) -> str | None:
        """Text of a prompt by its hash."""
        rows = self.run("SELECT text FROM prompts WHERE sha256=?", (sha256,))
        return rows[0][0] if rows else None

    def keep(self, key: Key, answer: Answer, verdict: Verdict, *, attempts: int, server: str) -> bool:
        """Store an answer as it was judged; gives whether it is usable, which ends what was said of a failure.

        One that is usable in spite of a problem is so the second time only: before, the model may do better.
        """
        usable = verdict.usable and (not verdict.problem or bool(self.rejected(key)))
        usage = json.dumps(answer.usage)
        values = (verdict.text, usage, answer.finish_reason, answer.seconds, attempts, verdict.problem, server, now())
        into = "OR IGNORE INTO answers" if usable else "INTO rejected"
        self.run(f"INSERT {into} VALUES (NULL, {', '.join('?' * 13)})", (*key, *values))
        if usable:
            forget = "DELETE FROM failures WHERE subject=? AND id=? AND model=? AND parameters=?"
            self.run(forget, (key.subject, key.id, key.model, key.parameters))
        return usable

    def keep_prompt(self, prompt: Prompt) -> None:
        """Store the text of a prompt."""
        self.run("INSERT OR IGNORE INTO prompts VALUES (?,?,?)", (prompt.sha256, prompt.version, prompt.text))

    def fail(self, key: Key, kind: str, message: str) -> None:
        """List a subject as failed."""
        self.run("INSERT OR REPLACE INTO failures VALUES (?,?,?,?,?,?,?,?)", (*key, kind, message, now()))

    def record(self, key: Key, kind: str, message: str) -> None:
        """Record an attempt without an answer."""
        self.run("INSERT INTO events VALUES (?,?,?,?,?)", (key.subject, key.id, kind, message, now()))


def answers_path(data: Dataset) -> Path:
    """File of a data set's answers."""
    return paths.data_root() / "llm" / f"{data.name}.sqlite"


@contextmanager
def asking_store(path: Path) -> Iterator[Store]:
    """Open a file of answers, and keep other processes from asking for the same data set meanwhile.

    Raises
    ------
    DataError
        If another process is asking.
    StorageError
        If the file cannot be used.
    """
    lock = path.with_suffix(".lock")
    with storage.exclusive(lock, f"another process is asking a model for {path.stem}"), Store(path) as store:
        yield store
