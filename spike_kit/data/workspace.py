"""What a build works on: a duckdb database in a temporary folder, into which raw files larger than memory are read.

A source fills the tables named in `TABLES` with rows under its own ids (strings); `spike_kit.data.pipeline` makes a
data-set folder of them. Memory stays under `MEMORY_LIMIT` for duckdb, whatever the size of the files: what does not fit
goes to the temporary folder, which is removed at the end.
"""

from __future__ import annotations

import gzip
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import duckdb
import pandas as pd

from spike_kit.base import paths, storage
from spike_kit.base.errors import DataError, StorageError, some
from spike_kit.data.dataset import SourceFile
from spike_kit.data.raw import (
    AGAIN,
    Delimited,
    Field,
    JsonLines,
    ParquetRows,
    RawFile,
    check_readable,
    literal,
    quoted,
    unpacking,
)
from spike_kit.data.vectors import ProfileVectors

MEMORY_LIMIT = "1500MB"
"""Memory duckdb may use before it writes to the temporary folder."""

OnError = Literal["stop", "skip"]

TABLES: dict[str, str] = {
    "interactions": '"user" VARCHAR, item VARCHAR, rating DOUBLE, "timestamp" BIGINT, split VARCHAR, review BIGINT',
    "users": 'position BIGINT, "user" VARCHAR, label VARCHAR',
    "items": "position BIGINT, item VARCHAR, label VARCHAR, description VARCHAR",
    "entities": "position BIGINT, entity VARCHAR, label VARCHAR, kind VARCHAR",
    "relations": "position BIGINT, relation VARCHAR, label VARCHAR, template VARCHAR, behavioural BOOLEAN",
    "triples": "head VARCHAR, relation VARCHAR, tail VARCHAR",
}
"""Tables a source fills, with their columns; rows with a ``position`` get their ids in its order.

``users`` may stay empty (they are then taken from the interactions), ``split`` null (no given split). ``review`` points
at the text that belongs to an interaction (`Workspace.reviews`), if there is one. An item is named by the same id in
``items`` and in ``triples``; ``entities`` holds the others only.
``behavioural`` marks relations that can encode what users did (also bought, say).
"""


@dataclass
class Workspace:
    """What a build works on: a duckdb database in a temporary folder, the funnel, and what the manifest must say.

    Attributes
    ----------
    db
        Connection to the database; it holds the tables of `TABLES`.
    folder
        Temporary folder.
    on_error
        What a bad row does: ``stop`` raises, ``skip`` counts it.
    funnel, notes
        Rows left after each step (`record`), warnings for the reader of the manifest.
    extra
        Counts that belong to the first row of the funnel.
    sources
        Files that were read (`register`).
    origins
        What a table was filled from, for messages: a file's name, or a file and the field of it that holds the id.
    reviews
        Query that yields the raw reviews: review (a number that ``interactions`` refer to), timestamp, text, content
        (a hash of the text); empty if there are none.
    parsed
        What the first step of the pipeline is called in the funnel.
    vectors
        Profile vectors that came with the source, by (profile set, encoder): a row for every row of ``users``,
        and for every row of ``items`` and then of ``entities``.
    """

    db: duckdb.DuckDBPyConnection
    folder: Path
    on_error: OnError = "stop"
    funnel: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    extra: dict[str, int] = field(default_factory=dict)
    sources: list[SourceFile] = field(default_factory=list)
    origins: dict[str, str | tuple[RawFile, str]] = field(default_factory=dict)
    reviews: str = ""
    parsed: str = "raw files"
    vectors: dict[tuple[str, str], ProfileVectors] = field(default_factory=dict)

    def record(self, step: str, counts: Mapping[str, int], **extra: int) -> None:
        """Add a step to the funnel: what is left after it, and ``extra`` counts of what it dropped or changed."""
        self.funnel.append({"step": step, **{name: int(value) for name, value in {**counts, **extra}.items()}})

    def put(self, table: str, frame: pd.DataFrame) -> None:
        """Append rows to one of `TABLES`; columns that the frame lacks become null."""
        columns = [part.split()[0].strip('"') for part in TABLES[table].split(", ")]
        start = self.count(table)
        rows = frame.assign(position=range(start, start + len(frame)))
        names = ", ".join(quoted(name) for name in columns if name in rows)
        self.db.register("incoming", rows)
        self.db.execute(f"INSERT INTO {table} ({names}) SELECT {names} FROM incoming")
        self.db.unregister("incoming")

    def table(self, name: str, frame: pd.DataFrame) -> None:
        """Make a table of a frame; one of the same name is replaced."""
        self.db.register("incoming", frame)
        self.db.execute(f"CREATE OR REPLACE TABLE {quoted(name)} AS SELECT * FROM incoming")
        self.db.unregister("incoming")

    def count(self, table: str) -> int:
        """Rows of a table."""
        return self.value(f"SELECT count(*) FROM {table}")

    def value(self, sql: str) -> Any:
        """First value of a query."""
        rows = self.db.execute(sql).fetchall()
        return rows[0][0] if rows else None

    def frame(self, sql: str) -> pd.DataFrame:
        """Rows of a query, in its order."""
        return self.db.sql(sql).to_arrow_table().to_pandas()

    def batches(self, sql: str, rows: int) -> Iterator[pd.DataFrame]:
        """Rows of a query in its order, so many at a time; the workspace may be written to meanwhile."""
        with self.db.cursor() as cursor:
            cursor.execute("SET enable_progress_bar = false")
            for batch in cursor.sql(sql).to_arrow_reader(rows):
                yield batch.to_pandas()

    def origin(self, table: str, identifier: str) -> str:
        """What to call the last row with an id in messages: file and line, as far as they are known."""
        origin = self.origins.get(table, f"table {table}")
        if isinstance(origin, str):
            return origin
        file, name = origin
        with unpacking(file.path):
            lines = file.lines_with(name, identifier)
        return f"{file.path} {file.unit} {lines[-1]}" if lines else str(file.path)

    def skip(self, where: str, problem: str, rows: int) -> None:
        """Count bad rows that were skipped, in the funnel and in the notes of the manifest."""
        if rows:
            self.extra["bad_rows"] = self.extra.get("bad_rows", 0) + rows
            self.notes.append(f"{where}: {rows} rows skipped because {problem}")

    def bad(self, where: str, problem: str, remedy: str, rows: int = 1) -> None:
        """Meet ``rows`` bad rows the first of which stands at ``where``: an error, or counted under ``skip``.

        Raises
        ------
        DataError
            Unless bad rows are skipped.
        """
        if self.on_error == "stop":
            raise DataError(f"{where}: {problem}", f"{remedy}, or leave such rows out with --on-error skip")
        self.skip(where, problem, rows)

    def read(
        self,
        file: RawFile,
        target: str,
        fields: Mapping[str, Field],
        faults: Sequence[tuple[str, str]] = (),
        extra: Mapping[str, str] | None = None,
        remedy: str = "correct the row",
    ) -> None:
        """Scan a raw file once into a new table ``target`` and set its bad rows apart.

        Parameters
        ----------
        file
            The file.
        target
            Name of the new table; if it ends in ``.parquet``, a file of this name in the temporary folder (for wide
            rows that are read once more), whose bad rows have a number in the column ``fault``.
        fields
            Columns of the new table and where they come from.
        faults
            More SQL conditions, on the columns of the file, under which a row is bad, each with what is wrong then.
        extra
            More columns of the new table: SQL expressions on the columns of the file.
        remedy
            What to do about a bad row.

        Raises
        ------
        DataError
            If the file is damaged or in another encoding, lacks a column, or a row is bad and ``on_error`` is
            ``stop``; the message names file and line.
        """
        check_readable(file.path, text=not isinstance(file, ParquetRows))
        names = _columns(file, fields)
        checks = [check for spec in fields.values() for check in spec.faults()] + list(faults)
        if isinstance(file, JsonLines):
            nothing = " AND ".join(f"{quoted(name)} IS NULL" for name in names)
            checks.insert(0, (nothing, "the line is not a JSON object with the expected fields"))
        cases = " ".join(f"WHEN {condition} THEN {number}" for number, (condition, _) in enumerate(checks))
        columns = {name: spec.value() for name, spec in fields.items()} | dict(extra or {})
        values = ", ".join(f"{value} AS {quoted(name)}" for name, value in columns.items())
        query = f"""SELECT {values}, CAST(CASE {cases or "WHEN false THEN 0"} END AS TINYINT) AS fault
                    FROM {file.relation(names, self.on_error == "skip")}"""
        with _duckdb_errors(file.path):
            if target.endswith(".parquet"):
                place = literal(str(self.folder / target))
                self.db.execute(f"COPY ({query}) TO {place} (FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1)")
                place, ordinal = f"read_parquet({place}, file_row_number=true)", "file_row_number"
            else:
                self.db.execute(f"CREATE TABLE {quoted(target)} AS {query}")
                place, ordinal = quoted(target), "rowid"
            found = self.db.execute(
                f"SELECT fault, count(*), min({ordinal}) FROM {place} WHERE fault IS NOT NULL GROUP BY fault ORDER BY 3"
            ).fetchall()
            self._meet(file, [(checks[number][1], rows, first) for number, rows, first in found], remedy)
            if not target.endswith(".parquet"):
                self.db.execute(f"DELETE FROM {place} WHERE fault IS NOT NULL")
            if not self.value(f"SELECT count(*) FROM {place} WHERE fault IS NULL"):
                raise DataError(f"{file.path} holds no usable row", "check that it is the right file")

    def _meet(self, file: RawFile, faults: Sequence[tuple[str, int, int]], remedy: str) -> None:
        """Meet the bad rows of a file: what is wrong with them, how many, and the place of the first (from 0)."""
        if faults and self.on_error == "stop":
            problem, _, first = faults[0]
            with unpacking(file.path):
                line, text = file.line_of(first + 1)
            self.bad(f"{file.path} {file.unit} {line}", f"{problem} in {text.strip()[:120]!r}", remedy)
        if faults and file.path.suffix == ".gz":
            _unpack_whole(file.path)
        for problem, rows, _ in faults:
            self.skip(file.path.name, problem, rows)
        if isinstance(file, Delimited) and self.on_error == "skip":
            rejected = self.db.execute(
                """SELECT lower(replace(CAST(error_type AS VARCHAR), '_', ' ')), count(DISTINCT line)
                   FROM reject_errors GROUP BY 1 ORDER BY 1"""
            ).fetchall()
            for problem, rows in rejected:
                self.skip(file.path.name, f"they cannot be split into columns ({problem})", rows)
            self.db.execute("DELETE FROM reject_errors; DELETE FROM reject_scans")

    def register(self, path: Path, licence: str, origin: str) -> None:
        """Record a file that is read: its name and sha256 go into the manifest.

        Raises
        ------
        DataError
            If it does not exist, or is empty or damaged (`check_readable`).
        """
        check_readable(path, text=False)
        sha256 = storage.sha256_file(path)
        self.sources.append(SourceFile(name=path.name, sha256=sha256, licence=licence, origin=origin))


def _columns(file: RawFile, fields: Mapping[str, Field]) -> list[str]:
    """Columns of a file that fields need, each once.

    Raises
    ------
    DataError
        If one is missing, or two differ in case only.
    """
    names = list(dict.fromkeys(spec.source for spec in fields.values()))
    if lacking := file.missing(names):
        raise DataError(
            f"{file.path} line 1: there is no column {lacking[0]!r}; it has {some(file.header(), limit=20)}",
            "name the column that holds it, or add it",
        )
    if len({name.lower() for name in names}) < len(names):
        raise DataError(f"{file.path}: two of the columns {some(names)} differ in case only", "rename one")
    return names


def _unpack_whole(path: Path) -> None:
    """Make sure that bad rows do not come from a damaged archive, most of whose rows would be lost silently."""
    with unpacking(path), gzip.open(path, "rb") as file:
        while file.read(1 << 20):
            pass


@contextmanager
def _duckdb_errors(path: Path) -> Iterator[None]:
    """Turn errors of duckdb into a `DataError` or `StorageError` that names the file."""
    try:
        yield
    except duckdb.Error as error:
        said = str(error).splitlines()[0]
        if isinstance(error, duckdb.OutOfMemoryException):
            raise StorageError(f"{path} does not fit: {said}", "free some disk space or memory") from error
        if "No space left" in said or "disk full" in said.lower():
            raise StorageError(f"the disk is full while reading {path}", "free some space and run again") from error
        problem, remedy = f"cannot be read: {said}", "correct the line, or leave it out with --on-error skip"
        if "GZIP" in said:
            problem, remedy = f"is damaged or was not downloaded to its end: {said}", AGAIN
        elif "UTF-8" in said or "unicode" in said.lower():
            problem, remedy = f"is not text in UTF-8: {said}", "convert it, for example: iconv -t UTF-8"
        raise DataError(f"{path} {problem}", remedy) from error


@contextmanager
def database(folder: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open an empty database in a folder; what does not fit into `MEMORY_LIMIT` goes to the folder, too."""
    db = duckdb.connect(
        str(folder / "work.duckdb"),
        config={
            "memory_limit": MEMORY_LIMIT,
            "temp_directory": str(folder / "spill"),
            "threads": min(os.cpu_count() or 1, 8),
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
            "allow_community_extensions": "false",
        },
    )
    try:
        db.execute("SET enable_progress_bar = false")
        yield db
    finally:
        db.close()


@contextmanager
def workspace(on_error: OnError = "stop") -> Iterator[Workspace]:
    """Open an empty workspace in a temporary folder beside the data-set folders; both are gone afterwards."""
    root = paths.data_root()
    with storage.storage_errors(root), ExitStack() as stack:
        root.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".spike-kit-tmp-", dir=root))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        db = stack.enter_context(database(folder))
        for table, columns in TABLES.items():
            db.execute(f"CREATE TABLE {table} ({columns})")
        yield Workspace(db, folder, on_error)


def review_view(work: Workspace, interactions: bool = True) -> None:
    """Make the good rows of ``reviews.parquet`` (see `Workspace.read`) the raw reviews of a workspace.

    They are the view ``raw_reviews`` (review, user, item, rating, timestamp, text, content).

    Parameters
    ----------
    work
        Its ``reviews.parquet`` has the columns user, item, rating, timestamp, text and content.
    interactions
        Make them the interactions, too.
    """
    place = literal(str(work.folder / "reviews.parquet"))
    work.db.execute(
        f"""CREATE VIEW raw_reviews AS SELECT file_row_number AS review, * EXCLUDE (fault, file_row_number)
            FROM read_parquet({place}, file_row_number=true) WHERE fault IS NULL"""
    )
    work.reviews = 'SELECT review, "timestamp", text, content FROM raw_reviews'
    if interactions:
        work.db.execute("DROP TABLE interactions")
        work.db.execute(
            """CREATE VIEW interactions AS
               SELECT "user", item, rating, "timestamp", CAST(NULL AS VARCHAR) AS split, review FROM raw_reviews"""
        )
