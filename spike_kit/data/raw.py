"""Raw files as tables: JSON lines, delimited text and Parquet, packed or not, scanned by duckdb.

Every field is read as text and parsed by a `Field`; `spike_kit.data.workspace` does the scan and sets bad rows apart.
"""

import codecs
import csv
import glob
import gzip
import itertools
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

import pyarrow
import pyarrow.parquet

from spike_kit.base.errors import DataError, some
from spike_kit.data.text import CONTROL

Time = Literal["seconds", "milliseconds", "date"]
"""What timestamps are: seconds or milliseconds since 1970, or dates."""

Kind = Literal["id", "number", "text"] | Time

AGAIN = "download it again"
"""What to do about a damaged file."""

_IDS = ("user", "item", "entity", "head", "relation", "tail", "tag", "split")
_BINARY = (".parquet", ".npz", ".whl")


@dataclass(frozen=True)
class Field:
    """One column of a raw file.

    Attributes
    ----------
    source
        Its name in the file.
    kind
        ``id`` (a text that may not be empty), ``number``, ``text`` (any), or a time, which is read as seconds since
        1970: ``seconds``, ``milliseconds`` or ``date`` (``YYYY-MM-DD[ HH:MM:SS]`` in UTC).
    required
        Whether a row without it is bad.
    """

    source: str
    kind: Kind = "id"
    required: bool = True

    def value(self) -> str:
        """SQL expression of the parsed value; null where it cannot be parsed."""
        raw = quoted(self.source)
        number = f"TRY_CAST({raw} AS DOUBLE)"
        return {
            "id": raw,
            "number": number,
            "seconds": f"TRY_CAST({number} AS BIGINT)",
            "milliseconds": f"TRY_CAST({number} AS BIGINT) // 1000",
            "date": f"CAST(epoch(TRY_CAST({raw} AS TIMESTAMP)) AS BIGINT)",
            "text": f"coalesce({raw}, '')",
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


def fields(columns: Mapping[str, str], time: Time = "seconds") -> dict[str, Field]:
    """Fields by our names, from the columns that hold them: ids, rating and timestamp; anything else is a text."""
    kinds: dict[str, Kind] = {"rating": "number", "timestamp": time}
    kinds |= dict.fromkeys(_IDS, "id")
    return {name: Field(column, kinds.get(name, "text"), name != "timestamp") for name, column in columns.items()}


@dataclass(frozen=True)
class RawFile:
    """A file of rows.

    A subclass says how duckdb scans it (`relation`) and, for messages only, how to find a row again (`rows`).

    Attributes
    ----------
    path
        The file.
    unit
        What messages count.
    rewritten
        File to scan instead: the same rows in a form that duckdb reads.
    """

    path: Path
    unit: str = field(default="line", kw_only=True)
    rewritten: Path | None = field(default=None, kw_only=True)

    @property
    def scanned(self) -> str:
        """First arguments of duckdb's readers: the path to scan, no character of which means anything."""
        return f"{literal(glob.escape(str((self.rewritten or self.path).absolute())))}, hive_partitioning=false"

    def relation(self, names: Sequence[str], skip: bool, /) -> str:
        """SQL of a scan with the named fields as text; ``skip`` passes over rows that cannot be split into fields."""
        raise NotImplementedError

    def header(self) -> tuple[str, ...]:
        """Names of the columns; none if every row has its own."""
        return ()

    def rows(self) -> Iterator[tuple[int, str]]:
        """Line number and text of each row."""
        with opened(self.rewritten or self.path) as file:
            yield from ((number, line) for number, line in enumerate(file, 1) if line.strip())

    def row(self, place: int) -> tuple[int, str]:
        """Line number and text of the row at a place, counted from 0."""
        return next(itertools.islice(self.rows(), place, None), (0, ""))


@dataclass(frozen=True)
class JsonLines(RawFile):
    """A file with one JSON object per line (``.gz`` or not)."""

    def relation(self, names: Sequence[str], _skip: bool, /) -> str:
        """SQL of a scan; a line that is no object is a row without any field."""
        columns = ", ".join(f"{literal(name)}: 'VARCHAR'" for name in names)
        return f"read_json({self.scanned}, format='newline_delimited', ignore_errors=true, columns={{{columns}}})"


@dataclass(frozen=True)
class Delimited(RawFile):
    """A table as text: one row per line, fields apart by a separator (``.gz`` or not).

    Attributes
    ----------
    separator
        One to four characters; one if fields may stand in quotes.
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
        with opened(self.path, self.encoding) as file:
            first = file.readline().rstrip("\r\n")
        if self.quoting:
            with suppress(csv.Error):
                return next(csv.reader([first], delimiter=self.separator), [])
        return first.split(self.separator)

    def header(self) -> tuple[str, ...]:
        """Names of the columns."""
        if self.names:
            return self.names
        found = [name.rsplit(":", 1)[0] if self.typed else name for name in self.first_row()]
        if len(set(found)) < len(found) or not found or not all(found):
            raise DataError(
                f"{self.path} line 1: column names are empty or repeated: {some(found)}",
                "the first line must name every column once",
            )
        return tuple(found)

    def relation(self, names: Sequence[str], skip: bool, /) -> str:
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

    def rows(self) -> Iterator[tuple[int, str]]:
        """Rows with the number of their (last) line, without the header."""
        with opened(self.path, self.encoding) as file, suppress(csv.Error):
            if self.quoting:
                reader = csv.reader(file, delimiter=self.separator)
                rows = ((reader.line_num, self.separator.join(row)) for row in reader if row)
            else:
                rows = ((number, line) for number, line in enumerate(file, 1) if line.strip() or len(self.names) == 1)
            yield from itertools.islice(rows, 0 if self.names else 1, None)


def lines_of(path: Path) -> Delimited:
    """A text file as one column, ``line``; blank lines are rows, too."""
    return Delimited(path, "\x01", ("line",), quoting=False)


def atomic(path: Path) -> Delimited:
    """An atomic file of RecBole: tab-separated, with ``field:type`` in the first line."""
    return Delimited(path, "\t", quoting=False, typed=True)


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

    def relation(self, names: Sequence[str], _skip: bool, /) -> str:
        """SQL of a scan."""
        schema = self._schema()
        is_nested = {name: pyarrow.types.is_nested(schema.field(name).type) for name in names}
        texts = ", ".join(
            f"CAST({f'to_json({quoted(name)})' if is_nested[name] else quoted(name)} AS VARCHAR) AS {quoted(name)}"
            for name in names
        )
        return f"(SELECT {texts} FROM read_parquet({self.scanned}))"

    def row(self, place: int) -> tuple[int, str]:
        """Number of the row at a place; its text is not looked up."""
        return place + 1, ""


def quoted(name: str) -> str:
    """Quote a name for SQL."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Quote a text for SQL."""
    return "'" + text.replace("'", "''") + "'"


@contextmanager
def opened(path: Path, encoding: str = "utf-8", errors: str = "replace") -> Iterator[IO[str]]:
    """Open a text file of somebody else, packed or not; broken characters are replaced unless ``errors`` differs.

    Raises
    ------
    DataError
        If it cannot be unpacked.
    """
    opener: Any = gzip.open if path.suffix == ".gz" else open
    encoding += "-sig" if encoding == "utf-8" else ""
    try:
        with opener(path, "rt", encoding=encoding, errors=errors, newline="") as file:
            yield file
    except (OSError, EOFError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DataError(f"{path} is damaged or was not downloaded to its end: {error}", AGAIN) from error


def read_through(path: Path, encoding: str, errors: str = "strict") -> None:
    """Read a text file to its end, to find out whether it is whole and in this encoding."""
    with opened(path, encoding, errors) as file:
        while file.read(1 << 20):
            pass


def check_readable(path: Path) -> None:
    """Look at the beginning of a raw file.

    Raises
    ------
    DataError
        If it does not exist, is empty or damaged, or is UTF-16 or UTF-32 where text in UTF-8 is expected.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist", "docs/datasets.md says where to get it")
    try:
        with opened(path, "latin-1") as file:
            start = file.read(4096).encode("latin-1")
    except OSError as error:
        raise DataError(f"{path} is not readable: {error}", "check its permissions") from error
    if not start:
        raise DataError(f"{path} is empty", AGAIN)
    is_wide = start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in start[:64]
    if is_wide and path.suffix not in _BINARY:
        raise DataError(
            f"{path} line 1: the file is UTF-16 or binary, expected text in UTF-8",
            "convert it, for example: iconv -f UTF-16 -t UTF-8",
        )
