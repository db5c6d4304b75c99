"""Raw files as tables: JSON lines, delimited text and Parquet, packed or not, scanned by duckdb.

Every field is read as text and parsed by a `Field`; `spike_kit.data.workspace` does the scan and sets bad rows apart.
"""

import codecs
import csv
import glob
import itertools
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Literal, NamedTuple, Self

import pyarrow
import pyarrow.parquet

from spike_kit.base.errors import DataError, some
from spike_kit.data.files import AGAIN, Problem, Quoting, Survey, opened, packing, rewrite, survey, unpacked
from spike_kit.data.text import CONTROL

Time = Literal["seconds", "milliseconds", "date"]
"""What timestamps are: seconds or milliseconds since 1970, or dates."""

Kind = Literal["id", "number", "text"] | Time

_IDS = ("user", "item", "entity", "head", "relation", "tail", "tag", "split")
_BLANKS = " \t\u00a0\u3000"
_DATE = r"\d{4}-\d{1,2}-\d{1,2}([ T]\d{1,2}:\d{2}(:\d{2}([.]\d+)?)?( ?(Z|UTC|GMT|[+-]\d{2}(:?\d{2})?))?)?"


class Fault(NamedTuple):
    """A way in which a row is bad: the SQL condition, what is wrong then, and what to do."""

    condition: str
    problem: str
    remedy: str = "correct the row"


@dataclass(frozen=True)
class Field:
    """One column of a raw file.

    Attributes
    ----------
    source
        Its name in the file.
    kind
        ``id`` (a text that may not be empty), ``number``, ``text`` (any), or a time, which is read as seconds since
        1970: ``seconds``, ``milliseconds`` or ``date`` (``YYYY-MM-DD[ HH:MM[:SS]][Z or +HH:MM]``, UTC if it says
        nothing else).
    required
        Whether a row without it is bad.
    remedy
        What to do about a bad value.
    missing
        Texts that stand for no value.
    """

    source: str
    kind: Kind = "id"
    required: bool = True
    remedy: str = "correct the row"
    missing: tuple[str, ...] = ()

    @property
    def raw(self) -> str:
        """SQL expression of the text as it is read: without blanks around it (unless it is a text), null if missing."""
        text = quoted(self.source) if self.kind == "text" else f"trim({quoted(self.source)}, {literal(_BLANKS)})"
        if not self.missing:
            return text
        return f"CASE WHEN {text} NOT IN ({', '.join(map(literal, self.missing))}) THEN {text} END"

    def value(self) -> str:
        """SQL expression of the parsed value; null where it cannot be parsed."""
        raw = self.raw
        number = f"coalesce(TRY_CAST({raw} AS DOUBLE), CASE lower({raw}) WHEN 'true' THEN 1 WHEN 'false' THEN 0 END)"
        stamp = f"CASE WHEN regexp_full_match({raw}, {literal(_DATE)}) THEN replace({raw}, 'GMT', 'UTC') END"
        stamp = f"TRY_CAST(regexp_replace({stamp}, ' ?([+-]\\d\\d:?\\d*)$', '\\1') AS TIMESTAMPTZ)"
        return {
            "id": raw,
            "number": number,
            "seconds": f"TRY_CAST({number} AS BIGINT)",
            "milliseconds": f"TRY_CAST({number} AS BIGINT) // 1000",
            "date": f"CAST(floor(epoch({stamp})) AS BIGINT)",
            "text": f"coalesce({raw}, '')",
        }[self.kind]

    def altered(self) -> str:
        """SQL condition under which an id is not read as it stands: blanks around it are taken off."""
        return f"{quoted(self.source)} <> trim({quoted(self.source)}, {literal(_BLANKS)})" if self.kind == "id" else ""

    def faults(self) -> list[Fault]:
        """Faults of a row that this field can have."""
        raw, name = self.raw, repr(self.source)
        found = []
        if self.required and self.kind != "text":
            found.append(Fault(f"{raw} IS NULL OR {raw} = ''", f"{name} is missing", self.remedy))
        if self.kind == "id":
            odd = f"regexp_matches({raw}, {literal(CONTROL)})"
            found.append(Fault(odd, f"{name} holds a control character", self.remedy))
        elif self.kind != "text":
            expected = "a date" if self.kind == "date" else "a number"
            broken = f"NOT coalesce(isfinite(CAST({self.value()} AS DOUBLE)), false)"
            found.append(Fault(f"{raw} <> '' AND {broken}", f"{name} is not {expected}", self.remedy))
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

    @property
    def compression(self) -> str:
        """One more argument of duckdb's readers of text: how the file is packed."""
        is_packed = not self.rewritten and packing(self.path) == "gzip"
        return f"compression='{'gzip' if is_packed else 'none'}'"

    def prepared(self, _target: Path, _keys: Sequence[str]) -> tuple[Self, Survey | None, list[Problem]]:
        """Look through the file before duckdb scans it.

        Returns
        -------
        tuple
            The file to scan, possibly with a rewritten copy at ``target``; what was found; and its bad lines.
        """
        return self, None, []

    def relation(self, names: Sequence[str], /) -> str:
        """SQL of a scan with the named fields as text; rows that cannot be split are set apart by duckdb."""
        raise NotImplementedError

    def header(self) -> tuple[str, ...]:
        """Names of the columns; none if every row has its own."""
        return ()

    def rows(self) -> Iterator[tuple[int, str]]:
        """Line number and text of each row."""
        with opened(self.rewritten or self.path) as file:
            yield from ((number, line) for number, line in enumerate(file, 1) if line.strip())

    def row(self, place: int, rejected: Container[int] = ()) -> tuple[int, str]:
        """Line number and text of the row at a place, counted from 0 without the lines that were ``rejected``."""
        return next(itertools.islice((row for row in self.rows() if row[0] not in rejected), place, None), (0, ""))


@dataclass(frozen=True)
class JsonLines(RawFile):
    """A file with one JSON object per line (``.gz`` or not)."""

    def prepared(self, target: Path, _keys: Sequence[str]) -> tuple[Self, Survey | None, list[Problem]]:
        """Rewrite the file if it is packed as zip or begins with a byte order mark, which duckdb does not read."""
        with unpacked(self.path) as file:
            has_mark = file.read(3) == codecs.BOM_UTF8
        if self.rewritten or not (has_mark or packing(self.path) == "zip"):
            return self, None, []
        found = survey(self.path)
        return replace(self, rewritten=target), found, list(rewrite(self.path, target, "utf-8", found, None))

    def relation(self, names: Sequence[str], /) -> str:
        """SQL of a scan; a line that is no object is a row without any field."""
        columns = ", ".join(f"{literal(name)}: 'VARCHAR'" for name in names)
        arguments = f"{self.scanned}, {self.compression}, format='newline_delimited', ignore_errors=true"
        return f"read_json({arguments}, columns={{{columns}}})"


@dataclass(frozen=True)
class Delimited(RawFile):
    """A table as text: one row per line, fields apart by a separator (``.gz`` or not).

    Attributes
    ----------
    separator
        One to four characters; one if fields may stand in quotes.
    names
        Names of the columns; none takes them from the first line.
    quoting, strict
        Whether fields may stand in double quotes, and whether a quote that opens a field must be closed there; else it
        may be a part of the text.
    encoding
        ``utf-8`` or ``cp1252``, the encoding of Windows, which latin-1 is a part of.
    typed
        Whether names in the first line carry a type after a colon (RecBole).
    surveyed
        What `survey` found, where somebody has read the file through already.
    """

    separator: str = ","
    names: tuple[str, ...] = ()
    quoting: bool = True
    strict: bool = True
    encoding: Literal["utf-8", "cp1252"] = "utf-8"
    typed: bool = False
    surveyed: Survey | None = field(default=None, kw_only=True)

    def _opened(self) -> AbstractContextManager[IO[str]]:
        return opened(self.rewritten) if self.rewritten else opened(self.path, self.encoding)

    def prepared(self, target: Path, keys: Sequence[str]) -> tuple[Self, Survey | None, list[Problem]]:
        """Rewrite the file unless duckdb reads it as it is.

        Raises
        ------
        DataError
            If it is damaged, or not in the encoding.
        """
        found = self.surveyed or survey(self.path, self.encoding)
        is_quoted = self.quoting and found.has_quotes
        if not (is_quoted or found.has_mark or found.is_mixed or found.packed == "zip" or self.encoding != "utf-8"):
            return self, found, []
        header = self.header()
        places = [header.index(key) for key in keys]
        quoting = Quoting(self.separator, len(header), places, self.strict) if is_quoted else None
        problems = list(rewrite(self.path, target, self.encoding, found, quoting))
        return replace(self, rewritten=target), found, problems

    def first_row(self) -> list[str]:
        """Fields of the first line."""
        with self._opened() as file:
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

    def relation(self, names: Sequence[str], /) -> str:
        """SQL of a scan."""
        places = {name: f"column{place}" for place, name in enumerate(self.header())}
        columns = ", ".join(f"{place}: 'VARCHAR'" for place in places.values())
        wanted = ", ".join(f"{places[name]} AS {quoted(name)}" for name in names)
        quote = literal('"' if self.quoting else "")
        return (
            f"(SELECT {wanted} FROM read_csv({self.scanned}, {self.compression}, auto_detect=false, "
            f"header={not self.names}, delim={literal(self.separator)}, quote={quote}, escape={quote}, "
            f"ignore_errors=true, store_rejects=true, columns={{{columns}}}))"
        )

    def rows(self) -> Iterator[tuple[int, str]]:
        """Rows with the number of their (last) line, without the header."""
        with self._opened() as file, suppress(csv.Error):
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

    def relation(self, names: Sequence[str], /) -> str:
        """SQL of a scan."""
        schema = self._schema()
        is_nested = {name: pyarrow.types.is_nested(schema.field(name).type) for name in names}
        texts = ", ".join(
            f"CAST({f'to_json({quoted(name)})' if is_nested[name] else quoted(name)} AS VARCHAR) AS {quoted(name)}"
            for name in names
        )
        return f"(SELECT {texts} FROM read_parquet({self.scanned}))"

    def rows(self) -> Iterator[tuple[int, str]]:
        """Number and text of each row."""
        with pyarrow.parquet.ParquetFile(self.path) as file:
            rows = (row for batch in file.iter_batches() for row in batch.to_pylist())
            yield from ((number, str(row)) for number, row in enumerate(rows, 1))


def quoted(name: str) -> str:
    """Quote a name for SQL."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Quote a text for SQL."""
    return "'" + text.replace("'", "''") + "'"
