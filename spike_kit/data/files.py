"""Text files of other people: opened by what they hold, checked, and brought into one form.

gzip and zip are known by their first bytes, whatever the name says. A byte order mark is passed over. `survey` finds
what is not text in the expected encoding; `rewrite` makes a copy in UTF-8 with one kind of line end, in which every
quoted cell is closed, so that whoever reads it next needs no rules of their own.
"""

import codecs
import csv
import gzip
import io
import itertools
import re
import zipfile
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from spike_kit.base.errors import DataError, some

AGAIN = "download it again"
"""What to do about a damaged file."""

_PACKED = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"PK\x05\x06": "zip", b"BZh": "bzip2", b"\xfd7zXZ": "xz"}
_PACKED |= {b"\x28\xb5\x2f\xfd": "zstd", b"7z\xbc\xaf": "7z", b"Rar!": "rar"}
_BINARY = (".parquet", ".npz", ".whl")
_CHUNK = 1 << 20
_LONGEST_CELL = 1000
_OTHER_LINE_END = "\v"


def packing(path: Path) -> str:
    """How a file is packed, by its first bytes: gzip, zip, another name, or nothing."""
    with path.open("rb") as file:
        start = file.read(8)
    return next((name for magic, name in _PACKED.items() if start.startswith(magic)), "")


@contextmanager
def unpacked(path: Path) -> Iterator[IO[bytes]]:
    """Open a file as bytes, unpacked if it is gzip, or zip with one file in it.

    Raises
    ------
    DataError
        If it is packed in another way, holds several files, or is damaged.
    """
    how = packing(path)
    if how not in ("", "gzip", "zip"):
        raise DataError(f"{path} is packed with {how}, which is not read", "unpack it, or pack it with gzip")
    try:
        if how == "zip":
            with zipfile.ZipFile(path) as archive:
                names = [name for name in archive.namelist() if not name.endswith("/") and "__MACOSX/" not in name]
                if len(names) != 1:
                    problem = f"{path} is an archive of {len(names)} files ({some(names, 5)}), expected one text file"
                    raise DataError(problem, "unpack it and name the file; save a workbook of Excel as CSV")
                with archive.open(names[0]) as file:
                    yield file
        else:
            opener: Any = gzip.open if how else open
            with opener(path, "rb") as file:
                yield file
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DataError(f"{path} is damaged or was not downloaded to its end: {error}", AGAIN) from error


@contextmanager
def opened(path: Path, encoding: str = "utf-8", errors: str = "replace") -> Iterator[IO[str]]:
    """Open a text file of somebody else, packed or not; broken characters are replaced unless ``errors`` differs.

    Raises
    ------
    DataError
        If it cannot be unpacked.
    """
    encoding += "-sig" if encoding == "utf-8" else ""
    with unpacked(path) as file, io.TextIOWrapper(file, encoding=encoding, errors=errors, newline="") as text:
        yield text


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
        with path.open("rb") if path.suffix in _BINARY else unpacked(path) as file:
            start = file.read(4096)
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


@dataclass
class Survey:
    """What a text file holds.

    Attributes
    ----------
    packed
        How it is packed.
    has_mark, has_quotes
        Whether it begins with a byte order mark, and holds double quotes.
    line_feeds, both, returns
        Line feeds, how many of them follow a carriage return, and all carriage returns.
    notes
        What a reader of the data should know, with the lines where it is so (`rewrite` finds it).
    """

    packed: str
    has_mark: bool = False
    has_quotes: bool = False
    line_feeds: int = 0
    both: int = 0
    returns: int = 0
    notes: dict[str, list[int]] = field(default_factory=dict)

    @property
    def is_mixed(self) -> bool:
        """Whether the line ends are of several kinds, or of the kind of old Macs, which few programs know."""
        return self.returns > self.both or 0 < self.both < self.line_feeds


def survey(path: Path, encoding: str = "utf-8") -> Survey:
    """Read a text file to its end, and look at its line ends and quotes.

    Raises
    ------
    DataError
        If it is damaged, or holds bytes that are no text in this encoding: the message names the line.
    """
    found = Survey(packing(path))
    decoder = codecs.getincrementaldecoder(encoding)()
    with unpacked(path) as file:
        while chunk := file.read(_CHUNK):
            if chunk.endswith(b"\r"):
                chunk += file.read(1)
            if not found.line_feeds and not found.returns:
                found.has_mark = found.has_mark or chunk.startswith(codecs.BOM_UTF8)
            _decode(decoder, chunk, found, path, encoding)
            found.has_quotes = found.has_quotes or b'"' in chunk
            found.line_feeds += chunk.count(b"\n")
            found.returns += chunk.count(b"\r")
            found.both += chunk.count(b"\r\n")
    _decode(decoder, b"", found, path, encoding, final=True)
    return found


def _decode(
    decoder: codecs.IncrementalDecoder, chunk: bytes, found: Survey, path: Path, encoding: str, final: bool = False
) -> None:
    try:
        decoder.decode(chunk, final)
    except UnicodeDecodeError as error:
        before = error.object[: error.start]
        line = 1 + max(found.line_feeds + before.count(b"\n"), found.returns + before.count(b"\r"))
        odd = before.rsplit(b"\n")[-1][-20:] + error.object[error.start : error.start + 20].split(b"\n")[0]
        raise DataError(
            f"{path} line {line}: not text in {encoding.upper()} (byte 0x{error.object[error.start]:02x} in "
            f"{odd.decode('cp1252', 'replace')!r})",
            "save it as UTF-8, for example: iconv -f WINDOWS-1252 -t UTF-8",
        ) from error


@dataclass(frozen=True)
class Quoting:
    """How cells are taken apart where some stand in double quotes.

    Attributes
    ----------
    separator
        What stands between two cells.
    columns
        Number of columns.
    keys
        Places of the columns that hold ids.
    strict
        Whether a quote that opens a cell must be closed; else it may be a part of the text, if the row is whole then.
    """

    separator: str
    columns: int
    keys: Sequence[int] = ()
    strict: bool = True

    def plain(self, line: str) -> list[str]:
        """Cells of a line in which quotes mean nothing."""
        return line.rstrip("\n").split(self.separator)


Problem = tuple[int, str, str]
"""A line that cannot be read: its number, what is wrong, its text."""


def rewrite(path: Path, target: Path, encoding: str, found: Survey, quoting: Quoting | None) -> Iterator[Problem]:
    """Copy a text file into UTF-8 with line feeds; yields the bad lines, in whose places empty lines stand.

    A carriage return inside of a line becomes another control character. Lines keep their numbers.

    Parameters
    ----------
    path, encoding, found
        The file, and what `survey` found in it.
    target
        The copy.
    quoting
        How cells may be quoted; then every quoted cell is closed in the copy, in the way of RFC 4180.
    """
    end = "\n" if found.line_feeds else "\r"
    mark = "-sig" if encoding == "utf-8" else ""
    with unpacked(path) as file, target.open("w", encoding="utf-8", newline="") as out:
        text = io.TextIOWrapper(file, encoding=encoding + mark, newline=end)
        lines = (line.removesuffix(end).removesuffix("\r").replace("\r", _OTHER_LINE_END) + "\n" for line in text)
        if quoting is None or not found.has_quotes:
            out.writelines(lines)
            return
        for number, used, cells, problem in _records(lines, quoting):
            if problem:
                out.write("\n")
                yield number, problem, used[0]
            elif cells is None:
                out.write(used[0])
            else:
                csv.writer(out, delimiter=quoting.separator, lineterminator="\n").writerow(cells)
                if any(quoting.separator in line for line in used[1:]):
                    found.notes.setdefault("a cell in quotes goes on over several lines", []).append(number)
                if not quoting.strict and cells != quoting.plain(used[0]):
                    found.notes.setdefault("quotes around a cell were taken off", []).append(number)


def _records(lines: Iterator[str], quoting: Quoting) -> Iterator[tuple[int, Sequence[str], Sequence[str] | None, str]]:
    """Rows of a table: number of the first line, lines, cells (none if no quote is in it), and what is wrong.

    A bad row is one line: the next row begins on the next one.
    """
    waiting: deque[str] = deque()
    number = 1
    for line in _with_waiting(lines, waiting):
        used, cells, problem = [line], None, ""
        if '"' in line:
            try:
                following = _following(used, lines, waiting)
                cells = next(csv.reader(following, delimiter=quoting.separator, skipinitialspace=True, strict=True))
                if len(used) > 1 and (len(cells) != quoting.columns or _look_like_rows(used, quoting)):
                    problem = f"a quote opens a cell that goes on for {len(used)} lines, which look like rows"
            except csv.Error as error:
                closed = "a quote opens a cell and is not closed" if "end of data" in str(error) else str(error)
                problem = f"{closed} (a quote inside of a quoted cell must be doubled)"
            if problem:
                waiting.extendleft(reversed(used[1:]))
                used = [line]
                if not quoting.strict and len(quoting.plain(line)) == quoting.columns:
                    cells, problem = quoting.plain(line), ""
        yield number, used, cells, problem
        number += len(used)


def _with_waiting(lines: Iterator[str], waiting: deque[str]) -> Iterator[str]:
    while (line := waiting.popleft() if waiting else next(lines, None)) is not None:
        yield line


def _following(used: list[str], lines: Iterator[str], waiting: deque[str]) -> Iterator[str]:
    """The line in ``used``, then those that follow, which are added to it; a cell may not go on for ever."""
    yield used[0]
    for line in itertools.islice(_with_waiting(lines, waiting), _LONGEST_CELL):
        used.append(line)
        yield line


def _look_like_rows(lines: Sequence[str], quoting: Quoting) -> bool:
    """Whether each line of one record would be a row of its own: as many cells as columns, and ids where ids stand.

    Text of several lines seldom has as many separators in each of them; where it has, its first words are no ids:
    those hold no blank, and a digit if the first row's do.
    """
    rows = [quoting.plain(line) for line in lines]
    if quoting.columns < 2 or any(len(row) != quoting.columns for row in rows):
        return False
    return all(
        " " not in row[key].strip() and (bool(re.search(r"\d", row[key])) or not re.search(r"\d", rows[0][key]))
        for row in rows[1:]
        for key in quoting.keys
    )
