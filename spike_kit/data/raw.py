"""Raw files as tables: JSON lines, delimited text and Parquet, packed or not, scanned by duckdb.

Every field is read as text and parsed by a `Field`; `spike_kit.data.workspace` does the scan and sets bad rows apart.
"""

from __future__ import annotations

import codecs
import csv
import glob
import gzip
import itertools
import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

import pyarrow
import pyarrow.parquet

from spike_kit.base.errors import DataError, some
from spike_kit.data.text import CONTROL

Kind = Literal["id", "number", "integer", "text", "date"]

AGAIN = "download it again"
"""What to do about a damaged file."""


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
    kind: Kind = "id"
    required: bool = True
    scale: int = 1
    only_if: str = ""

    def value(self) -> str:
        """SQL expression of the parsed value; null where it cannot be parsed."""
        raw = quoted(self.source)
        number, text = f"TRY_CAST({raw} AS DOUBLE)", f"coalesce({raw}, '')"
        return {
            "id": raw,
            "number": number,
            "integer": f"TRY_CAST({number} AS BIGINT) // {self.scale}",
            "date": f"CAST(epoch(TRY_CAST({raw} AS TIMESTAMP)) AS BIGINT)",
            "text": f"CASE WHEN {self.only_if} THEN {text} END" if self.only_if else text,
        }[self.kind]

    def faults(self) -> list[tuple[str, str]]:
        """SQL conditions under which a row is bad, each with what is wrong then."""
        raw, name = quoted(self.source), repr(self.source)
        found = []
        if self.required and self.kind != "text":
            found.append((f"{raw} IS NULL OR {raw} = ''", f"{name} is missing"))
        if self.kind == "id":
            found.append((f"regexp_matches({raw}, {literal(CONTROL)})", f"{name} holds a control character"))
        elif self.kind != "text":
            expected = "a date" if self.kind == "date" else "a number"
            broken = f"NOT coalesce(isfinite(CAST({self.value()} AS DOUBLE)), false)"
            found.append((f"{raw} <> '' AND {broken}", f"{name} is not {expected}"))
        return found


@dataclass(frozen=True)
class RawFile:
    """A file of rows; ``unit`` is what messages count.

    A subclass says how duckdb scans it (`relation`) and, for messages only, how to find a row again (`rows`).
    """

    path: Path
    unit: str = field(default="line", kw_only=True)

    @property
    def content(self) -> Path:
        """File to scan."""
        return self.path

    @property
    def scanned(self) -> str:
        """First arguments of duckdb's readers: the path to scan, no character of which means anything."""
        return f"{literal(glob.escape(str(self.content.absolute())))}, hive_partitioning=false"

    def relation(self, names: Sequence[str], skip: bool) -> str:
        """SQL of a scan with the named fields as text; ``skip`` passes over rows that cannot be split into fields."""
        raise NotImplementedError

    def header(self) -> tuple[str, ...]:
        """Names of the columns; none if every row has its own."""
        return ()

    def missing(self, names: Sequence[str]) -> list[str]:
        """Columns among ``names`` the file lacks."""
        header = self.header()
        return [name for name in names if name not in header] if header else []

    def rows(self, name: str = "") -> Iterator[tuple[int, str, Any]]:
        """Line number and text of each row, and its field ``name``, if one is given."""
        raise NotImplementedError

    def line_of(self, ordinal: int) -> tuple[int, str]:
        """Line number and text of the row with this ordinal, both from 1."""
        return next(((number, text) for number, text, _ in itertools.islice(self.rows(), ordinal - 1, None)), (0, ""))

    def lines_with(self, name: str, value: str) -> list[int]:
        """Numbers of the rows whose field ``name`` has this value."""
        return [number for number, _, found in self.rows(name) if found == value]


@dataclass(frozen=True)
class JsonLines(RawFile):
    """A file with one JSON object per line (``.gz`` or not).

    Attributes
    ----------
    strict
        The same lines as JSON, if those of ``path`` are not.
    """

    strict: Path | None = None

    @property
    def content(self) -> Path:
        """File to scan."""
        return self.strict or self.path

    def relation(self, names: Sequence[str], skip: bool) -> str:
        """SQL of a scan; a line that is no object is a row without any field."""
        del skip
        columns = ", ".join(f"{literal(name)}: 'VARCHAR'" for name in names)
        return f"read_json({self.scanned}, format='newline_delimited', ignore_errors=true, columns={{{columns}}})"

    def rows(self, name: str = "") -> Iterator[tuple[int, str, Any]]:
        """Lines that are not blank."""
        with open_text(self.content) as file:
            for number, line in enumerate(file, 1):
                found = None
                if name and name in line:
                    with suppress(ValueError, RecursionError, AttributeError):
                        found = json.loads(line).get(name)
                if line.strip():
                    yield number, line, found


@dataclass(frozen=True)
class Delimited(RawFile):
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

    separator: str = ","
    names: tuple[str, ...] = ()
    quoting: bool = True
    encoding: Literal["utf-8", "latin-1"] = "utf-8"
    typed: bool = False

    def first_row(self) -> list[str]:
        """Fields of the first line."""
        with unpacking(self.path), open_text(self.path, self.encoding) as file:
            first = file.readline().rstrip("\r\n")
        if self._is_csv:
            with suppress(csv.Error):
                return next(csv.reader([first], delimiter=self.separator), [])
        return first.split(self.separator)

    def header(self) -> tuple[str, ...]:
        """Names of the columns."""
        if self.names:
            return self.names
        found = [name.rsplit(":", 1)[0] if self.typed else name for name in self.first_row()]
        if len(set(found)) < len(found) or not all(found):
            raise DataError(
                f"{self.path} line 1: column names are empty or repeated: {some(found)}",
                "the first line must name every column once",
            )
        return tuple(found)

    def relation(self, names: Sequence[str], skip: bool) -> str:
        """SQL of a scan."""
        places = {name: f"column{place}" for place, name in enumerate(self.header())}
        columns = ", ".join(f"{place}: 'VARCHAR'" for place in places.values())
        wanted = ", ".join(f"{places[name]} AS {quoted(name)}" for name in names)
        quote = literal('"' if self.quoting else "")
        return (
            f"(SELECT {wanted} FROM read_csv({self.scanned}, auto_detect=false, header={not self.names}, "
            f"delim={literal(self.separator)}, quote={quote}, escape={quote}, encoding='{self.encoding}', "
            f"ignore_errors={skip}, store_rejects={skip}, columns={{{columns}}}))"
        )

    @property
    def _is_csv(self) -> bool:
        return self.quoting and len(self.separator) == 1

    def rows(self, name: str = "") -> Iterator[tuple[int, str, Any]]:
        """Rows with the number of their (last) line, without the header."""
        place = self.header().index(name) if name else 0
        with open_text(self.path, self.encoding) as file, suppress(csv.Error):
            if self._is_csv:
                reader = csv.reader(file, delimiter=self.separator)
                rows = ((reader.line_num, row) for row in reader if row)
            else:
                lines = ((number, line.rstrip("\r\n")) for number, line in enumerate(file, 1))
                rows = ((number, line.split(self.separator)) for number, line in lines if line.strip())
            for number, row in itertools.islice(rows, 0 if self.names else 1, None):
                yield number, self.separator.join(row), row[place] if place < len(row) else None


@dataclass(frozen=True)
class ParquetRows(RawFile):
    """A Parquet file; every column is read as text, nested ones as JSON."""

    unit: str = field(default="row", kw_only=True)

    def _schema(self) -> pyarrow.Schema:
        try:
            return pyarrow.parquet.read_schema(self.path)
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{self.path} is not a readable Parquet file: {error}", AGAIN) from error

    def header(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(self._schema().names)

    def relation(self, names: Sequence[str], skip: bool) -> str:
        """SQL of a scan."""
        del skip
        schema = self._schema()
        is_nested = {name: pyarrow.types.is_nested(schema.field(name).type) for name in names}
        texts = ", ".join(
            f"CAST({f'to_json({quoted(name)})' if is_nested[name] else quoted(name)} AS VARCHAR) AS {quoted(name)}"
            for name in names
        )
        return f"(SELECT {texts} FROM read_parquet({self.scanned}))"

    def rows(self, name: str = "") -> Iterator[tuple[int, str, Any]]:
        """Rows, without their text."""
        column = pyarrow.parquet.read_table(self.path, columns=[name])[name].to_pylist()
        return ((number, "", str(found)) for number, found in enumerate(column, 1))

    def line_of(self, ordinal: int) -> tuple[int, str]:
        """Number of the row with this ordinal, from 1; its text is not looked up."""
        return ordinal, ""


@contextmanager
def unpacking(path: Path) -> Iterator[None]:
    """Turn errors of unpacking a file into a `DataError` that names it."""
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DataError(f"{path} is damaged or was not downloaded to its end: {error}", AGAIN) from error


def quoted(name: str) -> str:
    """Quote a name for SQL."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Quote a text for SQL."""
    return "'" + text.replace("'", "''") + "'"


def open_text(path: Path, encoding: str = "utf-8", errors: str = "replace") -> IO[str]:
    """Open a text file, packed or not; broken characters are replaced unless ``errors`` says otherwise."""
    opener: Any = gzip.open if path.suffix == ".gz" else open
    encoding += "-sig" if encoding == "utf-8" else ""
    return opener(path, "rt", encoding=encoding, errors=errors, newline="")


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
        raise DataError(f"{path} is not a readable {path.suffix or 'plain'} file: {error}", AGAIN) from error
    if not start:
        raise DataError(f"{path} is empty", AGAIN)
    if text and (start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in start[:64]):
        raise DataError(
            f"{path} line 1: the file is UTF-16 or binary, expected text in UTF-8",
            "convert it, for example: iconv -f UTF-16 -t UTF-8",
        )
