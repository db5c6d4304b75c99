"""Raw files that may be larger than memory: scanned, checked and joined by duckdb in a temporary folder.

A source fills the tables named in `TABLES` with rows under its own ids (strings); `spike_kit.data.reorganize` makes a
study folder of them. Memory stays under `MEMORY_LIMIT` for duckdb, whatever the size of the files: what does not fit
goes to the temporary folder, which is removed at the end.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import itertools
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

import duckdb
import pandas as pd

from spike_kit import paths, storage
from spike_kit.data.study import SourceFile
from spike_kit.data.vectors import ProfileVectors
from spike_kit.errors import DataError, StorageError, some

MEMORY_LIMIT = "1500MB"
"""Memory duckdb may use before it writes to the temporary folder."""

OnError = Literal["stop", "skip"]

TABLES: dict[str, str] = {
    "interactions": '"user" VARCHAR, item VARCHAR, rating DOUBLE, "timestamp" BIGINT, split VARCHAR',
    "users": '"user" VARCHAR, label VARCHAR',
    "items": "item VARCHAR, label VARCHAR, description VARCHAR",
    "entities": "entity VARCHAR, label VARCHAR, kind VARCHAR",
    "relations": "relation VARCHAR, label VARCHAR, template VARCHAR, behavioural BOOLEAN",
    "triples": "head VARCHAR, relation VARCHAR, tail VARCHAR",
}
"""Tables a source fills, with their columns; those in `ORDERED` have a ``position`` besides.

``users`` may stay empty (they are then taken from the interactions), ``split`` null (no given split). An item is named
by the same id in ``items`` and in ``triples``; ``entities`` holds the others only.
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
    """

    source: str
    kind: Literal["id", "number", "integer", "text", "date"] = "id"
    required: bool = True
    scale: int = 1

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
                return f"coalesce({raw}, '')"
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
    """A file with one JSON object per line (``.gz`` or not); every field is read as text."""

    path: Path

    @property
    def unit(self) -> str:
        """What holds one row."""
        return "line"

    def relation(self, file: Path, names: Sequence[str], skip: bool) -> str:
        """SQL of a scan of ``file`` (a plain alias of the path) with the named fields as text."""
        del skip
        columns = ", ".join(f"{literal(name)}: 'VARCHAR'" for name in names)
        return (
            f"read_json({literal(str(file))}, format='newline_delimited', ignore_errors=true, "
            f"maximum_object_size={64 << 20}, columns={{{columns}}})"
        )

    def missing(self, names: Sequence[str]) -> list[str]:
        """Columns the file as a whole lacks: none, since every line has its own."""
        del names
        return []

    def line_of(self, ordinal: int) -> tuple[int, str]:
        """Line number and text of the row with this ordinal, both from 1."""
        with open_text(self.path) as file:
            filled = ((number, line) for number, line in enumerate(file, 1) if line.strip())
            return next(itertools.islice(filled, ordinal - 1, None), (0, ""))


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

    @property
    def unit(self) -> str:
        """What holds one row."""
        return "line"

    def header(self) -> tuple[str, ...]:
        """Names of the columns."""
        if self.names:
            return self.names
        with open_text(self.path, self.encoding) as file:
            first = file.readline().rstrip("\r\n")
        if self.quoting and len(self.separator) == 1:
            found = next(csv.reader([first], delimiter=self.separator), [])
        else:
            found = first.split(self.separator)
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
        del names
        columns = ", ".join(f"{literal(name)}: 'VARCHAR'" for name in self.header())
        quote = literal('"' if self.quoting else "")
        return (
            f"read_csv({literal(str(file))}, auto_detect=false, header={'false' if self.names else 'true'}, "
            f"delim={literal(self.separator)}, quote={quote}, escape={quote}, encoding='{self.encoding}', "
            f"ignore_errors={'true' if skip else 'false'}, store_rejects={'true' if skip else 'false'}, "
            f"columns={{{columns}}})"
        )

    def line_of(self, ordinal: int) -> tuple[int, str]:
        """Line number and text of the row with this ordinal, both from 1."""
        with open_text(self.path, self.encoding) as file:
            if self.quoting and len(self.separator) == 1:
                reader = csv.reader(file, delimiter=self.separator)
                rows = ((reader.line_num, self.separator.join(row)) for row in reader if row)
            else:
                rows = ((number, line) for number, line in enumerate(file, 1) if line.strip())
            return next(itertools.islice(rows, ordinal - 1 + (not self.names), None), (0, ""))


_CHECK_HEADER = "the first line must name every column once"

RawFile = JsonLines | Delimited


def quoted(name: str) -> str:
    """Quote a name for SQL."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Quote a text for SQL."""
    return "'" + text.replace("'", "''") + "'"


def open_text(path: Path, encoding: str = "utf-8") -> IO[str]:
    """Open a text file, packed or not; broken characters are replaced (it is for headers and messages)."""
    opener: Any = gzip.open if path.suffix == ".gz" else open
    return opener(path, "rt", encoding=encoding + ("-sig" if encoding == "utf-8" else ""), errors="replace", newline="")


def check_readable(path: Path) -> None:
    """Look at the first bytes of a raw file.

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
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in start[:64]:
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
    on_error
        What a bad row does: ``stop`` raises, ``skip`` counts it.
    funnel, sources, notes
        Rows left after each step, files read, warnings for the reader of the manifest.
    extra
        Counts that belong to the first row of the funnel.
    origins
        File that a table was filled from, for messages.
    reviews
        Query that yields the raw reviews: row_id (any unique number), user, item, timestamp, text; empty if there
        are none.
    parsed
        What the first step of the pipeline is called in the funnel.
    vectors
        Profile vectors that came with the source, by (profile source, encoder): a row for every row of ``users``,
        and for every row of ``items`` and then of ``entities``.
    """

    db: duckdb.DuckDBPyConnection
    folder: Path
    on_error: OnError = "stop"
    funnel: Funnel = field(default_factory=Funnel)
    sources: list[SourceFile] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    extra: dict[str, int] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    reviews: str = ""
    parsed: str = "raw files"
    vectors: dict[tuple[str, str], ProfileVectors] = field(default_factory=dict)
    _aliases: dict[Path, Path] = field(default_factory=dict)

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
        with self.in_order():
            return self.db.sql(sql).to_arrow_table().to_pandas()

    @contextmanager
    def in_order(self) -> Iterator[None]:
        """Make results keep the order of the file or of ORDER BY (elsewhere it is given up for speed and memory)."""
        self.db.execute("SET preserve_insertion_order = true")
        try:
            yield
        finally:
            self.db.execute("SET preserve_insertion_order = false")

    def origin(self, table: str) -> str:
        """What to call a table in messages: the file it was filled from."""
        return self.origins.get(table, f"table {table}")

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
        check_readable(file.path)
        needed = [spec.source for spec in fields.values()]
        if lacking := file.missing(needed):
            raise DataError(
                f"{file.path} line 1: lacks the column {lacking[0]!r}; it has {some(file.header())}"  # type: ignore[union-attr]
                if isinstance(file, Delimited)
                else f"{file.path} lacks {lacking[0]!r}",
                "name the column that holds it, or add it",
            )
        checks = [*itertools.chain.from_iterable(spec.faults() for spec in fields.values()), *faults]
        if isinstance(file, JsonLines):
            nothing = " AND ".join(f"{quoted(name)} IS NULL" for name in dict.fromkeys(needed))
            checks.insert(0, (nothing, "the line is not a JSON object with the expected fields"))
        cases = " ".join(f"WHEN {condition} THEN {number}" for number, (condition, _) in enumerate(checks))
        fault = f"CASE {cases} END" if checks else "NULL"
        values = ", ".join(f"{spec.value()} AS {quoted(name)}" for name, spec in fields.items())
        skip = self.on_error == "skip"
        scan = file.relation(self.alias(file.path), list(dict.fromkeys(needed)), skip)
        query = f"SELECT {values}, CAST({fault} AS TINYINT) AS fault FROM {scan}"
        with self.explained(file.path):
            if target.endswith(".parquet"):
                place = literal(str(self.folder / target))
                self.db.execute(f"COPY ({query}) TO {place} (FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1)")
                place = f"read_parquet({place})"
            else:
                self.db.execute(f"CREATE TABLE {quoted(target)} AS {query}")
                place = quoted(target)
            found = self.db.execute(
                f"SELECT fault, count(*) FROM {place} WHERE fault IS NOT NULL GROUP BY fault ORDER BY fault"
            ).fetchall()
            if found and not skip:
                self._stop_at_first(file, scan, fault, checks, remedy)
            if found:
                self._check_packed(file.path)
            for number, rows in found:
                self.skip(file.path.name, checks[number][1], rows)
            if skip and isinstance(file, Delimited):
                self._count_rejects(file.path.name)
            if not target.endswith(".parquet"):
                self.db.execute(f"DELETE FROM {place} WHERE fault IS NOT NULL")
            rows = self.value(f"SELECT count(*) FROM {place} WHERE fault IS NULL")
        if not rows:
            raise DataError(f"{file.path} holds no usable row", "check that it is the right file")
        return rows

    def _stop_at_first(
        self, file: RawFile, scan: str, fault: str, checks: Sequence[tuple[str, str]], remedy: str
    ) -> None:
        """Name the line of the first bad row: one more scan, in the order of the file."""
        with self.in_order():
            first = self.db.execute(
                f"SELECT ordinal, fault FROM (SELECT row_number() OVER () AS ordinal, {fault} AS fault FROM {scan}) "
                "WHERE fault IS NOT NULL ORDER BY ordinal LIMIT 1"
            ).fetchall()
        ordinal, number = first[0]
        try:
            line, text = file.line_of(ordinal)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{file.path} is damaged: {error}", _AGAIN) from error
        shown = text.strip()[:120]
        self.bad(f"{file.path} {file.unit} {line}", f"{checks[number][1]} in {shown!r}", remedy)

    def _check_packed(self, path: Path) -> None:
        """Make sure that bad rows do not come from a damaged archive, most of whose rows would be lost silently."""
        if path.suffix != ".gz":
            return
        try:
            with gzip.open(path, "rb") as file:
                while file.read(1 << 20):
                    pass
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path} is damaged: {error}", _AGAIN) from error

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
        """Record a file that was read: its name and sha256 go into the manifest."""
        self.sources.append(
            SourceFile(name=path.name, sha256=storage.sha256_file(path), licence=licence, origin=origin)
        )


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
def workspace(on_error: OnError = "stop") -> Iterator[Workspace]:
    """Open an empty workspace in a temporary folder beside the study folders; both are gone afterwards."""
    root = paths.data_root()
    root.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".spike-kit-tmp-", dir=root))
    try:
        db = duckdb.connect(
            str(folder / "work.duckdb"),
            config={
                "memory_limit": MEMORY_LIMIT,
                "temp_directory": str(folder / "spill"),
                "threads": min(os.cpu_count() or 1, 8),
                "preserve_insertion_order": "false",
                "autoinstall_known_extensions": "false",
                "autoload_known_extensions": "false",
                "allow_community_extensions": "false",
            },
        )
        try:
            for table, columns in TABLES.items():
                position = "position BIGINT, " if table in ORDERED else ""
                db.execute(f"CREATE TABLE {table} ({position}{columns})")
            yield Workspace(db, folder, on_error)
        finally:
            db.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def read_lists(path: Path, work: Workspace) -> Iterable[tuple[int, list[int]]]:
    """Read lines of integers (``user item item ...``): line number and numbers; blank lines are passed over.

    Raises
    ------
    DataError
        If the file is not readable, or a line holds something else than non-negative integers (unless bad rows are
        skipped).
    """
    check_readable(path)
    try:
        with open_text(path) as file:
            for number, line in enumerate(file, 1):
                parts = line.split()
                if not parts:
                    continue
                broken = next((part for part in parts if not (part.isascii() and part.isdigit())), None)
                if broken is None and max(map(len, parts)) > 15:
                    broken = max(parts, key=len)
                if broken is not None:
                    work.bad(
                        f"{path} line {number}", f"{broken[:40]!r} is not an id (0, 1, 2, ...)", "correct the line"
                    )
                    continue
                yield number, [int(part) for part in parts]
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged: {error}", _AGAIN) from error
