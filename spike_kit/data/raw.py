"""Raw files that may be larger than memory: scanned, checked and joined by duckdb in a temporary folder.

A source fills the tables named in `TABLES` with rows under its own ids (strings); `spike_kit.data.pipeline` makes a
data-set folder of them. Memory stays under `MEMORY_LIMIT` for duckdb, whatever the size of the files: what does not fit
goes to the temporary folder, which is removed at the end.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import itertools
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

import duckdb
import pandas as pd
import pyarrow
import pyarrow.parquet

from spike_kit.base import paths, storage
from spike_kit.base.errors import DataError, StorageError, some
from spike_kit.data.dataset import SourceFile
from spike_kit.data.vectors import ProfileVectors

MEMORY_LIMIT = "1500MB"
"""Memory duckdb may use before it writes to the temporary folder."""

OnError = Literal["stop", "skip"]

TABLES: dict[str, str] = {
    "interactions": '"user" VARCHAR, item VARCHAR, rating DOUBLE, "timestamp" BIGINT, split VARCHAR, review BIGINT',
    "users": '"user" VARCHAR, label VARCHAR',
    "items": "item VARCHAR, label VARCHAR, description VARCHAR",
    "entities": "entity VARCHAR, label VARCHAR, kind VARCHAR",
    "relations": "relation VARCHAR, label VARCHAR, template VARCHAR, behavioural BOOLEAN",
    "triples": "head VARCHAR, relation VARCHAR, tail VARCHAR",
}
"""Tables a source fills, with their columns; those in `ORDERED` have a ``position`` besides.

``users`` may stay empty (they are then taken from the interactions), ``split`` null (no given split). ``review`` points
at the text that belongs to an interaction (`Workspace.reviews`), if there is one. An item is named by the same id in
``items`` and in ``triples``; ``entities`` holds the others only.
``behavioural`` marks relations that can encode what users did (also bought, say).
"""

ORDERED = ("users", "items", "entities", "relations")
"""Tables whose rows get their ids in the order of their ``position``."""


@dataclass(frozen=True)
class Field:
    """One column of a raw file.

    Attributes
    ----------
    source
        Its name in the file.
    kind
        ``id`` (a text that may not be empty), ``number``, ``integer``, ``text`` (any), or ``date``
        (``YYYY-MM-DD[ HH:MM:SS]`` in UTC, read as seconds since 1970).
    required
        Whether a row without it is bad.
    scale
        What an integer is divided by (1000 for milliseconds).
    only_if
        SQL condition without which a text is not kept.
    """

    source: str
    kind: Literal["id", "number", "integer", "text", "date"] = "id"
    required: bool = True
    scale: int = 1
    only_if: str = ""

    def value(self) -> str:
        """SQL expression of the parsed value; null where it cannot be parsed."""
        raw = quoted(self.source)
        match self.kind:
            case "number":
                return f"TRY_CAST({raw} AS DOUBLE)"
            case "integer":
                return f"TRY_CAST(TRY_CAST({raw} AS DOUBLE) AS BIGINT)" + (
                    f" // {self.scale}" if self.scale > 1 else ""
                )
            case "date":
                return f"CAST(epoch(TRY_CAST({raw} AS TIMESTAMP)) AS BIGINT)"
            case "text":
                return (
                    f"CASE WHEN {self.only_if} THEN coalesce({raw}, '') END" if self.only_if else f"coalesce({raw}, '')"
                )
        return raw

    def faults(self) -> list[tuple[str, str]]:
        """SQL conditions under which a row is bad, each with what is wrong then."""
        raw, name = quoted(self.source), repr(self.source)
        found = []
        if self.required and self.kind != "text":
            found.append((f"{raw} IS NULL OR {raw} = ''", f"{name} is missing"))
        if self.kind == "id":
            found.append((f"regexp_matches({raw}, '[\\x00-\\x1f\\x7f]')", f"{name} holds a control character"))
        elif self.kind in ("number", "integer", "date"):
            expected = "a date" if self.kind == "date" else "a number"
            broken = f"{self.value()} IS NULL"
            if self.kind == "number":
                broken += f" OR NOT isfinite({self.value()})"
            found.append((f"{raw} IS NOT NULL AND {raw} <> '' AND ({broken})", f"{name} is not {expected}"))
        return found


@dataclass(frozen=True)
class JsonLines:
    """A file with one JSON object per line (``.gz`` or not); every field is read as text.

    Attributes
    ----------
    path
        The file, for messages.
    strict
        The same lines as JSON, if those of ``path`` are not.
    unit
        What messages count.
    """

    path: Path
    strict: Path | None = None
    unit: str = "line"

    def relation(self, file: Path, names: Sequence[str], skip: bool) -> str:
        """SQL of a scan of ``file`` (a plain alias of the path) with the named fields as text."""
        del skip
        columns = ", ".join(f"{literal(name)}: 'VARCHAR'" for name in names)
        return f"read_json({literal(str(file))}, format='newline_delimited', ignore_errors=true, columns={{{columns}}})"

    @property
    def content(self) -> Path:
        """File to scan."""
        return self.strict or self.path

    def missing(self, names: Sequence[str]) -> list[str]:
        """Columns the file as a whole lacks: none, since every line has its own."""
        del names
        return []

    def line_of(self, ordinal: int) -> tuple[int, str]:
        """Line number and text of the row with this ordinal, both from 1."""
        with open_text(self.path) as file:
            filled = ((number, line) for number, line in enumerate(file, 1) if line.strip())
            return next(itertools.islice(filled, ordinal - 1, None), (0, ""))

    def lines_with(self, name: str, value: str) -> list[int]:
        """Numbers of the lines whose field ``name`` has this value (as far as they are strict JSON)."""
        found = []
        with open_text(self.content) as file:
            for number, line in enumerate(file, 1):
                if value in line:
                    with suppress(ValueError, RecursionError, AttributeError):
                        if json.loads(line).get(name) == value:
                            found.append(number)
        return found


@dataclass(frozen=True)
class Delimited:
    """A table as text: one row per line, fields apart by a separator (``.gz`` or not).

    Attributes
    ----------
    separator
        One to four characters.
    names
        Names of the columns; none takes them from the first line.
    quoting
        Whether fields may stand in double quotes.
    encoding
        ``utf-8`` or ``latin-1``.
    typed
        Whether names in the first line carry a type after a colon (RecBole).
    """

    path: Path
    separator: str = ","
    names: tuple[str, ...] = ()
    quoting: bool = True
    encoding: Literal["utf-8", "latin-1"] = "utf-8"
    typed: bool = False
    unit: str = "line"

    @property
    def content(self) -> Path:
        """File to scan."""
        return self.path

    def first_row(self) -> list[str]:
        """Fields of the first line."""
        with unpacking(self.path), open_text(self.path, self.encoding) as file:
            first = file.readline().rstrip("\r\n")
        if self.quoting and len(self.separator) == 1:
            with suppress(csv.Error):
                return next(csv.reader([first], delimiter=self.separator), [])
        return first.split(self.separator)

    def header(self) -> tuple[str, ...]:
        """Names of the columns."""
        if self.names:
            return self.names
        found = self.first_row()
        if self.typed:
            found = [name.rsplit(":", 1)[0] for name in found]
        if len(set(found)) < len(found) or not all(found):
            raise DataError(f"{self.path} line 1: column names are empty or repeated: {some(found)}", _CHECK_HEADER)
        return tuple(found)

    def missing(self, names: Sequence[str]) -> list[str]:
        """Columns among ``names`` the file lacks."""
        return [name for name in names if name not in self.header()]

    def relation(self, file: Path, names: Sequence[str], skip: bool) -> str:
        """SQL of a scan of ``file`` (a plain alias of the path) with the named columns as text."""
        places = {name: f"column{place}" for place, name in enumerate(self.header())}
        columns = ", ".join(f"{place}: 'VARCHAR'" for place in places.values())
        wanted = ", ".join(f"{places[name]} AS {quoted(name)}" for name in names)
        quote, header = literal('"' if self.quoting else ""), "false" if self.names else "true"
        return (
            f"(SELECT {wanted} FROM read_csv({literal(str(file))}, auto_detect=false, header={header}, "
            f"delim={literal(self.separator)}, quote={quote}, escape={quote}, encoding='{self.encoding}', "
            f"ignore_errors={'true' if skip else 'false'}, store_rejects={'true' if skip else 'false'}, "
            f"columns={{{columns}}}))"
        )

    def line_of(self, ordinal: int) -> tuple[int, str]:
        """Line number and text of the row with this ordinal, both from 1."""
        rows = ((number, self.separator.join(row)) for number, row in self._rows())
        return next(itertools.islice(rows, ordinal - 1, None), (0, ""))

    def lines_with(self, name: str, value: str) -> list[int]:
        """Numbers of the lines whose column ``name`` has this value."""
        place = self.header().index(name)
        return [number for number, row in self._rows() if row[place : place + 1] == [value]]

    def _rows(self) -> Iterator[tuple[int, list[str]]]:
        """Rows with the number of their (last) line, without the header; for messages only."""
        with open_text(self.path, self.encoding) as file:
            if self.quoting and len(self.separator) == 1:
                reader = csv.reader(file, delimiter=self.separator)
                rows = ((reader.line_num, row) for row in reader if row)
            else:
                lines = ((number, line.rstrip("\r\n")) for number, line in enumerate(file, 1))
                rows = ((number, line.split(self.separator)) for number, line in lines if line.strip())
            with suppress(csv.Error):
                yield from itertools.islice(rows, 0 if self.names else 1, None)


_CHECK_HEADER = "the first line must name every column once"


@dataclass(frozen=True)
class ParquetRows:
    """A Parquet file; every column is read as text, nested ones as JSON."""

    path: Path
    unit: str = "row"

    @property
    def content(self) -> Path:
        """File to scan."""
        return self.path

    def _schema(self) -> pyarrow.Schema:
        try:
            return pyarrow.parquet.read_schema(self.path)
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{self.path} is not a readable Parquet file: {error}", _AGAIN) from error

    def header(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(self._schema().names)

    def missing(self, names: Sequence[str]) -> list[str]:
        """Columns among ``names`` the file lacks."""
        return [name for name in names if name not in self.header()]

    def relation(self, file: Path, names: Sequence[str], skip: bool) -> str:
        """SQL of a scan of ``file`` (a plain alias of the path) with the named columns as text."""
        del skip
        kinds = {column.name: column.type for column in self._schema()}
        texts = ", ".join(
            f"CAST({f'to_json({quoted(name)})' if pyarrow.types.is_nested(kinds[name]) else quoted(name)} AS VARCHAR) "
            f"AS {quoted(name)}"
            for name in names
        )
        return f"(SELECT {texts} FROM read_parquet({literal(str(file))}))"

    def line_of(self, ordinal: int) -> tuple[int, str]:
        """Number of the row with this ordinal, from 1; its text is not looked up."""
        return ordinal, ""

    def lines_with(self, name: str, value: str) -> list[int]:
        """Numbers of the rows whose column ``name`` has this value."""
        column = pyarrow.parquet.read_table(self.path, columns=[name])[name].to_pylist()
        return [number for number, found in enumerate(column, 1) if str(found) == value]


RawFile = JsonLines | Delimited | ParquetRows


@contextmanager
def unpacking(path: Path) -> Iterator[None]:
    """Turn errors of unpacking a file into a `DataError` that names it."""
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DataError(f"{path} is damaged or was not downloaded to its end: {error}", _AGAIN) from error


def quoted(name: str) -> str:
    """Quote a name for SQL."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Quote a text for SQL."""
    return "'" + text.replace("'", "''") + "'"


def open_text(path: Path, encoding: str = "utf-8", strict: bool = False) -> IO[str]:
    """Open a text file, packed or not; unless ``strict``, broken characters are replaced (for headers and messages)."""
    opener: Any = gzip.open if path.suffix == ".gz" else open
    encoding += "-sig" if encoding == "utf-8" else ""
    return opener(path, "rt", encoding=encoding, errors="strict" if strict else "replace", newline="")


def check_readable(path: Path, text: bool = True) -> None:
    """Look at the first bytes of a raw file, which is expected to be ``text`` in UTF-8.

    Raises
    ------
    DataError
        If it does not exist, is empty, is not what its suffix says, or is UTF-16 or UTF-32.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist", "docs/datasets.md says where to get it")
    opener: Any = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            start = file.read(4096)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is not a readable {path.suffix or 'plain'} file: {error}", _AGAIN) from error
    if not start:
        raise DataError(f"{path} is empty", _AGAIN)
    if text and (start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in start[:64]):
        raise DataError(
            f"{path} line 1: the file is UTF-16 or binary, expected text in UTF-8",
            "convert it, for example: iconv -f UTF-16 -t UTF-8",
        )


_AGAIN = "download it again"


@dataclass
class Funnel:
    """Row counts after every step of a build, in order."""

    steps: list[dict[str, Any]] = field(default_factory=list)

    def add(self, step: str, counts: Mapping[str, int], **extra: int) -> None:
        """Record what is left after ``step``; ``extra`` are counts of what the step dropped, merged or changed."""
        self.steps.append({"step": step, **{name: int(value) for name, value in {**counts, **extra}.items()}})


@dataclass
class Workspace:
    """What a build works on: a duckdb database in a temporary folder, the funnel, and what the manifest must say.

    Attributes
    ----------
    db
        Connection to the database; it holds the tables of `TABLES`.
    folder
        Temporary folder.
    background
        A thread for what need not be waited for.
    on_error
        What a bad row does: ``stop`` raises, ``skip`` counts it.
    funnel, notes
        Rows left after each step, warnings for the reader of the manifest.
    extra
        Counts that belong to the first row of the funnel.
    origins
        File that a table was filled from, for messages.
    located
        The same with the name of the field that holds the id, so that a message can name the line.
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
    background: ThreadPoolExecutor
    on_error: OnError = "stop"
    funnel: Funnel = field(default_factory=Funnel)
    notes: list[str] = field(default_factory=list)
    extra: dict[str, int] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    located: dict[str, tuple[RawFile, str]] = field(default_factory=dict)
    reviews: str = ""
    parsed: str = "raw files"
    vectors: dict[tuple[str, str], ProfileVectors] = field(default_factory=dict)
    _aliases: dict[Path, Path] = field(default_factory=dict)
    _registered: list[tuple[Path, str, str, Future[str]]] = field(default_factory=list)

    def put(self, table: str, frame: pd.DataFrame) -> None:
        """Append rows to one of `TABLES`; columns that the frame lacks become null."""
        columns = [part.split()[0].strip('"') for part in TABLES[table].split(", ")]
        rows = frame[[name for name in columns if name in frame]]
        if table in ORDERED:
            start = self.count(table)
            rows = rows.assign(position=range(start, start + len(rows)))
        names = ", ".join(map(quoted, rows.columns))
        self.db.register("incoming", rows)
        self.db.execute(f"INSERT INTO {table} ({names}) SELECT {names} FROM incoming")
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
        cursor = self.db.cursor()
        cursor.execute("SET enable_progress_bar = false")
        try:
            reader = cursor.sql(sql).to_arrow_reader(rows)
            ahead = self.background.submit(next, reader, None)
            while (batch := ahead.result()) is not None:
                ahead = self.background.submit(next, reader, None)
                yield batch.to_pandas()
        finally:
            cursor.close()

    def origin(self, table: str, identifier: str) -> str:
        """What to call the last row with an id in messages: file and line, as far as they are known."""
        if table not in self.located:
            return self.origins.get(table, f"table {table}")
        file, name = self.located[table]
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

    def alias(self, path: Path) -> Path:
        """Return a link to a file whose name has no character that duckdb gives a meaning to."""
        if path not in self._aliases:
            suffixes = "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix
            link = self.folder / f"raw-{len(self._aliases)}{suffixes if suffixes.isascii() else ''}"
            link.symlink_to(path.resolve())
            self._aliases[path] = link
        return self._aliases[path]

    def read(
        self,
        file: RawFile,
        target: str,
        fields: Mapping[str, Field],
        faults: Sequence[tuple[str, str]] = (),
        extra: Mapping[str, str] | None = None,
        remedy: str = "correct the row",
    ) -> int:
        """Scan a raw file once into a new table ``target`` and set its bad rows apart.

        Parameters
        ----------
        file
            The file.
        target
            Name of the new table; if it ends in ``.parquet``, a file of this name in the temporary folder (for wide
            rows that are read once more).
        fields
            Columns of the new table and where they come from.
        faults
            More SQL conditions, on the columns of the file, under which a row is bad, each with what is wrong then.
        extra
            More columns of the new table: SQL expressions on the columns of the file.
        remedy
            What to do about a bad row.

        Returns
        -------
        int
            Rows of the new table.

        Raises
        ------
        DataError
            If the file is damaged or in another encoding, lacks a column, or a row is bad and ``on_error`` is
            ``stop``; the message names file and line.
        """
        check_readable(file.path, text=not isinstance(file, ParquetRows))
        needed = [spec.source for spec in fields.values()]
        if lacking := file.missing(needed):
            known = "" if isinstance(file, JsonLines) else f"; it has {some(file.header(), limit=20)}"
            raise DataError(
                f"{file.path} line 1: there is no column {lacking[0]!r}{known}",
                "name the column that holds it, or add it",
            )
        names = list(dict.fromkeys(needed))
        if len({name.lower() for name in names}) < len(names):
            raise DataError(f"{file.path}: two of the columns {some(names)} differ in case only", "rename one")
        checks = [*itertools.chain.from_iterable(spec.faults() for spec in fields.values()), *faults]
        if isinstance(file, JsonLines):
            nothing = " AND ".join(f"{quoted(name)} IS NULL" for name in names)
            checks.insert(0, (nothing, "the line is not a JSON object with the expected fields"))
        cases = " ".join(f"WHEN {condition} THEN {number}" for number, (condition, _) in enumerate(checks))
        fault = f"CASE {cases} END" if checks else "NULL"
        columns = {name: spec.value() for name, spec in fields.items()} | dict(extra or {})
        values = ", ".join(f"{value} AS {quoted(name)}" for name, value in columns.items())
        skip = self.on_error == "skip"
        scan = file.relation(self.alias(file.content), names, skip)
        query = f"SELECT {values}, CAST({fault} AS TINYINT) AS fault FROM {scan}"
        with self.explained(file.path):
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
            if found and not skip:
                number, _, before = found[0]
                with unpacking(file.path):
                    line, text = file.line_of(before + 1)
                where = f"{file.path} {file.unit} {line}"
                self.bad(where, f"{checks[number][1]} in {text.strip()[:120]!r}", remedy)
            if found:
                self._check_packed(file.path)
            for number, rows, _ in found:
                self.skip(file.path.name, checks[number][1], rows)
            if skip and isinstance(file, Delimited):
                self._count_rejects(file.path.name)
            if not target.endswith(".parquet"):
                self.db.execute(f"DELETE FROM {place} WHERE fault IS NOT NULL")
            rows = self.value(f"SELECT count(*) FROM {place} WHERE fault IS NULL")
        if not rows:
            raise DataError(f"{file.path} holds no usable row", "check that it is the right file")
        return rows

    def _check_packed(self, path: Path) -> None:
        """Make sure that bad rows do not come from a damaged archive, most of whose rows would be lost silently."""
        if path.suffix != ".gz":
            return
        with unpacking(path), gzip.open(path, "rb") as file:
            while file.read(1 << 20):
                pass

    def _count_rejects(self, name: str) -> None:
        rows = self.db.execute(
            """SELECT lower(replace(CAST(error_type AS VARCHAR), '_', ' ')), count(DISTINCT line) FROM reject_errors
               GROUP BY 1 ORDER BY 1"""
        ).fetchall()
        for problem, count in rows:
            self.skip(name, f"they cannot be split into columns ({problem})", count)
        if rows:
            self.db.execute("DELETE FROM reject_errors; DELETE FROM reject_scans")

    @contextmanager
    def explained(self, path: Path) -> Iterator[None]:
        """Turn errors of duckdb into errors that name the file.

        Raises
        ------
        DataError
            If the file is damaged or cannot be parsed.
        StorageError
            If disk or memory do not suffice.
        """
        try:
            yield
        except duckdb.Error as error:
            raise _explained(error, path) from error

    def register(self, path: Path, licence: str, origin: str) -> None:
        """Record a file that is read: its name and sha256 (computed meanwhile) go into the manifest."""
        self._registered.append((path, licence, origin, self.background.submit(storage.sha256_file, path)))

    def sources(self) -> list[SourceFile]:
        """Files that were read."""
        return [
            SourceFile(name=path.name, sha256=sha256.result(), licence=licence, origin=origin)
            for path, licence, origin, sha256 in self._registered
        ]


def _explained(error: duckdb.Error, path: Path) -> DataError | StorageError:
    message = str(error).splitlines()[0]
    if isinstance(error, duckdb.OutOfMemoryException):
        return StorageError(f"{path} does not fit: {message}", "free some disk space or memory")
    if "No space left" in message or "disk full" in message.lower():
        return StorageError(f"the disk is full while reading {path}", "free some space and run the same command again")
    if "GZIP" in message:
        return DataError(f"{path} is damaged or was not downloaded to its end: {message}", _AGAIN)
    if "UTF-8" in message or "unicode" in message.lower():
        return DataError(f"{path} is not text in UTF-8: {message}", "convert it, for example: iconv -t UTF-8")
    return DataError(f"{path} cannot be read: {message}", "correct the line, or leave it out with --on-error skip")


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
            position = "position BIGINT, " if table in ORDERED else ""
            db.execute(f"CREATE TABLE {table} ({position}{columns})")
        background = stack.enter_context(ThreadPoolExecutor(1))
        yield Workspace(db, folder, background, on_error)


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
