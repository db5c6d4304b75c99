"""What a build works on: a duckdb database with a temporary folder, into which raw files larger than memory are read.

A reader fills the tables named in `TABLES` with rows under its own ids (strings); `spike_kit.data.pipeline` makes a
data-set folder of them. Memory stays under `MEMORY_LIMIT` for duckdb, whatever the size of the files: what does not fit
goes to the temporary folder, which is removed at the end.
"""

import os
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

import duckdb
import pandas as pd

from spike_kit.base import paths, storage
from spike_kit.base.errors import DataError, StorageError, some
from spike_kit.data.dataset import Dataset, SourceFile
from spike_kit.data.files import check_readable, survey
from spike_kit.data.raw import Delimited, Fault, Field, JsonLines, ParquetRows, RawFile, literal, quoted
from spike_kit.data.tables import SPLITS
from spike_kit.data.text import plain, relation_name
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
"""Tables a reader fills, with their columns; rows with a ``position`` get their ids in its order.

``users`` may stay empty (they are then taken from the interactions), ``split`` null (no given split). ``review`` points
at the text that belongs to an interaction (`Workspace.reviews`), if there is one. An item is named by the same id in
``items`` and in ``triples``; ``entities`` holds the others only.
``behavioural`` marks relations that can encode what users did (also bought, say).
"""

_KEYS = {"interactions": ("user",), "users": ("user",), "items": ("item",), "entities": ("entity",)}
_KEYS |= {"relations": ("relation",), "triples": ("head", "tail")}


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
    terms
        Licence and origin of the files that are read from now on.
    funnel, notes
        Rows left after each step (`record`), warnings for the reader of the manifest.
    extra
        Counts that belong to the first row of the funnel.
    sources
        Files that were read (`register`).
    files
        Files by the name of the view they were read into (`read`).
    reviews
        Query that yields the raw reviews: review (a number that ``interactions`` refer to), timestamp, text, content
        (a hash of the text); empty if there are none.
    parsed
        What the first step of the pipeline is called in the funnel.
    keep_first
        Whether the first of several rows of an id is kept where their labels differ; else they are bad.
    vectors
        Profile vectors that came with the source, by (profile set, encoder): a row for every row of ``users``,
        and for every row of ``items`` and then of ``entities``.
    """

    db: duckdb.DuckDBPyConnection
    folder: Path
    on_error: OnError = "stop"
    terms: tuple[str, str] = ("", "")
    funnel: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    extra: dict[str, int] = field(default_factory=dict)
    sources: dict[Path, SourceFile] = field(default_factory=dict)
    files: dict[str, RawFile] = field(default_factory=dict)
    reviews: str = ""
    parsed: str = "raw files"
    keep_first: bool = False
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
        self.db.from_df(rows).query("incoming", f"INSERT INTO {table} ({names}) SELECT {names} FROM incoming")

    def put_facts(self, facts: pd.DataFrame) -> None:
        """Put facts (head, relation, label and kind of the tail) as triples and entities.

        A tail's id is ``kind:label``; a column ``tail`` gives the tails other ids.
        """
        if "tail" not in facts:
            facts = facts.assign(tail=facts["kind"] + ":" + facts["label"])
        self.put("triples", facts)
        self.put("entities", facts.drop_duplicates("tail").rename(columns={"tail": "entity"}))

    def put_relations(self, templates: Mapping[str, str], behavioural: Container[str] = ()) -> None:
        """Put relations, with the sentence of each; those in ``behavioural`` can encode what users did."""
        rows = [(name, relation_name(name), text, name in behavioural) for name, text in templates.items()]
        self.put("relations", pd.DataFrame(rows, columns=["relation", "label", "template", "behavioural"]))

    def table(self, name: str, frame: pd.DataFrame) -> None:
        """Make a table of a frame; one of the same name is replaced."""
        self.db.from_df(frame).query("incoming", f"CREATE OR REPLACE TABLE {quoted(name)} AS SELECT * FROM incoming")

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

    def batches(self, sql: str, rows: int = 50_000) -> Iterator[pd.DataFrame]:
        """Rows of a query in its order, so many at a time; the workspace may be written to meanwhile."""
        with self.db.cursor() as cursor:
            cursor.execute("SET enable_progress_bar = false")
            for batch in cursor.sql(sql).to_arrow_reader(rows):
                yield batch.to_pandas()

    def register(self, path: Path) -> Path:
        """Record a file that is read: its name, sha256 and `terms` go into the manifest.

        Raises
        ------
        DataError
            If it cannot be read (`check_readable`).
        """
        if path not in self.sources:
            check_readable(path)
            licence, origin = self.terms
            sha256 = storage.sha256_file(path)
            self.sources[path] = SourceFile(name=path.name, sha256=sha256, licence=licence, origin=origin)
        return path

    def read(
        self,
        file: RawFile,
        view: str,
        fields: Mapping[str, Field],
        faults: Sequence[Fault] = (),
        extra: Mapping[str, str] | None = None,
    ) -> None:
        """Register a raw file, scan it once into a view, and set its bad rows apart.

        The view ``raw_items`` holds the items, and so on: `origin` finds them there again.

        Parameters
        ----------
        file
            The file; one in the temporary folder is not registered.
        view
            Name of the new view; a Parquet file in the temporary folder holds its rows.
        fields
            Columns of the view and where they come from; one more, ``place``, counts the rows of the file from 0.
        faults
            More ways in which a row is bad, on the columns of the file.
        extra
            More columns of the view: SQL expressions on the columns of the file.

        Raises
        ------
        DataError
            If the file is damaged or in another encoding, lacks a column, or a row is bad and ``on_error`` is
            ``stop``; the message names file and line.
        """
        if not file.path.is_relative_to(self.folder):
            self.register(file.path)
        names = _columns(file, fields)
        file = self._prepared(file, view, [spec.source for spec in fields.values() if spec.kind == "id"])
        checks = [fault for spec in fields.values() for fault in spec.faults()] + list(faults)
        if isinstance(file, JsonLines):
            nothing = " AND ".join(f"{quoted(name)} IS NULL" for name in names)
            checks.insert(0, Fault(nothing, "the line is not a JSON object with the expected fields"))
        cases = " ".join(f"WHEN {fault.condition} THEN {number}" for number, fault in enumerate(checks))
        altered = " OR ".join(filter(None, (spec.altered() for spec in fields.values()))) or "false"
        columns = {name: spec.value() for name, spec in fields.items()} | dict(extra or {})
        values = ", ".join(f"{value} AS {quoted(name)}" for name, value in columns.items())
        query = f"""SELECT {values}, CAST(CASE {cases or "WHEN false THEN 0"} END AS TINYINT) AS fault,
                           coalesce({altered}, false) AS altered FROM {file.relation(names)}"""
        place = literal(str(self.folder / f"{view}.parquet"))
        rows = f"read_parquet({RawFile(self.folder / f'{view}.parquet').scanned}, file_row_number=true)"
        with _duckdb_errors(file):
            self.db.execute(f"COPY ({query}) TO {place} (FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1)")
            found = self.db.execute(
                f"""SELECT fault, count(*), min(file_row_number) FROM {rows} WHERE fault IS NOT NULL
                    GROUP BY fault ORDER BY 3"""
            ).fetchall()
            if found and isinstance(file, JsonLines):
                survey(file.path)
            rejected = self._refuse_rejected(file)
            for number, count, first in found:
                self.refuse(file, checks[number].problem, count, first, checks[number].remedy, rejected)
            self.db.execute(
                f"""CREATE VIEW {quoted(view)} AS SELECT * EXCLUDE (fault, altered, file_row_number),
                           file_row_number AS place FROM {rows} WHERE fault IS NULL"""
            )
            if not self.count(quoted(view)):
                problem, remedy = checks[found[0][0]][1:] if found else ("", "check that it is the right file")
                raise DataError(f"{file.path} holds no usable row{problem and ': '}{problem}", remedy)
            trimmed, first = self.db.execute(
                f"SELECT count(*), min(file_row_number) FROM {rows} WHERE altered AND fault IS NULL"
            ).fetchall()[0]
        if trimmed:
            where = f"{file.path.name}: blanks around ids were taken off in {trimmed} rows"
            self.notes.append(f"{where}, the first at {file.unit} {file.row(first)[0]}")
        self.files[view] = file

    def _prepared(self, file: RawFile, view: str, keys: Sequence[str]) -> RawFile:
        """Look through a file before duckdb scans it, and meet its bad lines."""
        file, found, problems = file.prepared(self.folder / f"{view}.txt", keys)
        for problem, lines in groupby(sorted(problems, key=itemgetter(1)), itemgetter(1)):
            (line, _, text), *others = lines
            self._refuse_line(file, line, problem, text, 1 + len(others))
        for note, lines in found.notes.items() if found else ():
            self.notes.append(f"{file.path.name}: {note} at line {lines[0]} ({len(lines)} such rows)")
        return file

    def read_interactions(
        self,
        file: RawFile,
        fields: Mapping[str, Field],
        split: str = "",
        faults: Sequence[Fault] = (),
        keep: bool = True,
    ) -> None:
        """Read a file of interactions with the reviews in it, if there are any (``text``).

        Parameters
        ----------
        file, fields, faults
            As for `read`.
        split
            Part of a given split that the file holds, if it holds one.
        keep
            Whether its rows are interactions; else they are reviews only.
        """
        view, extra = f"raw_interactions{split}", {"split": literal(split)} if split else {}
        if "text" in fields:
            view, extra["content"] = "raw_reviews", f"hash(coalesce({quoted(fields['text'].source)}, ''))"
            self.reviews = 'SELECT place AS review, "timestamp", text, content FROM raw_reviews'
        self.read(file, view, fields, faults, extra)
        if keep:
            names = ", ".join(quoted(name) for name in (*fields, *extra) if name not in ("text", "content"))
            review = ("review, ", "place, ") if "text" in fields else ("", "")
            self.db.execute(f"INSERT INTO interactions ({review[0]}{names}) SELECT {review[1]}{names} FROM {view}")

    def origin(self, table: str, identifier: str, which: Literal["min", "max"] = "max") -> str:
        """What to call the last (or first) row with an id in messages: file and line, as far as they are known."""
        for view, file in self.files.items():
            if view.startswith(f"raw_{table}") or (table == "interactions" and view == "raw_reviews"):
                names = " OR ".join(f'"{name}" = {literal(identifier)}' for name in _KEYS[table])
                place = self.value(f'SELECT {which}(place) FROM "{view}" WHERE {names}')
                if place is not None:
                    return f"{file.path} {file.unit} {file.row(place)[0]}"
        return f"table {table}"

    def bad(self, where: str, problem: str, remedy: str, rows: int = 1) -> None:
        """Meet ``rows`` bad rows the first of which stands at ``where``: an error, or counted under ``skip``.

        Those that are skipped stand in the funnel, and in the notes of the manifest.

        Raises
        ------
        DataError
            Unless bad rows are skipped.
        """
        if self.on_error == "stop":
            raise DataError(f"{where}: {problem}", f"{remedy}, or leave such rows out with --on-error skip")
        self.extra["bad_rows"] = self.extra.get("bad_rows", 0) + rows
        self.notes.append(f"{where}: {rows} rows skipped because {problem}")

    def refuse(
        self,
        file: RawFile,
        problem: str,
        rows: int,
        place: int,
        remedy: str = "correct the row",
        rejected: Container[int] = (),
    ) -> None:
        """Meet bad rows of a file, the first of which stands at a place (from 0), as `bad` does.

        Lines that were ``rejected`` before have no place.
        """
        line, text = file.row(place, rejected)
        self._refuse_line(file, line, problem, text, rows, remedy)

    def _refuse_line(
        self, file: RawFile, line: int, problem: str, text: str, rows: int = 1, remedy: str = "correct the row"
    ) -> None:
        if self.on_error == "stop":
            self.bad(f"{file.path} {file.unit} {line}", f"{problem} in {text.strip()[:120]!r}", remedy, rows)
        self.bad(file.path.name, f"{problem} (the first at {file.unit} {line})", remedy, rows)

    def kept(
        self, view: str, rows: pd.DataFrame, good: pd.Series, problem: str, remedy: str = "correct the line"
    ) -> pd.DataFrame:
        """Rows of a view that are good; the others are bad (`refuse`)."""
        if not good.all():
            self.refuse(self.files[view], problem, int((~good).sum()), int(rows["place"][~good].min()), remedy)
        return rows[good]

    def _refuse_rejected(self, file: RawFile) -> set[int]:
        """Meet the lines that duckdb could not split into columns; returns their numbers."""
        if not isinstance(file, Delimited):
            return set()
        rows = self.db.execute(
            "SELECT line, any_value(error_message), any_value(csv_line) FROM reject_errors GROUP BY line ORDER BY line"
        ).fetchall()
        self.db.execute("DELETE FROM reject_errors; DELETE FROM reject_scans")
        if rows:
            line, said, text = rows[0]
            problem = f"it cannot be split into {len(file.header())} columns ({' '.join(said.split())})"
            self._refuse_line(file, line, problem, text or "", len(rows))
        return {row[0] for row in rows}


def facts_in(
    items: pd.DataFrame,
    column: str,
    relation: str,
    split: Callable[[str], Iterable[str]],
    kind: str = "",
    missing: Container[str] = (),
) -> pd.DataFrame:
    """Facts in a column of a table of items: a row (head, relation, label, kind) for each name in a cell, each once.

    Parameters
    ----------
    items
        Has the column ``item`` and the one that is read.
    column, relation
        Where the names stand, and what they are to the item.
    split
        Takes a cell apart into names.
    kind
        Kind of the entities that are named; default: the relation.
    missing
        Names that stand for no value.
    """

    def named(cell: str) -> list[str]:
        return [name for name in dict.fromkeys(map(plain, split(str(cell)))) if name and name not in missing]

    names = items.set_index("item")[column].astype(object).map(named).explode().dropna()
    facts = {"head": names.index, "relation": relation, "label": names.to_numpy(), "kind": kind or relation}
    return pd.DataFrame(facts, dtype="str")


def _columns(file: RawFile, fields: Mapping[str, Field]) -> list[str]:
    """Columns of a file that fields need, each once.

    Raises
    ------
    DataError
        If one is missing, or two differ in case only.
    """
    names, header = list(dict.fromkeys(spec.source for spec in fields.values())), file.header()
    if lacking := [name for name in names if header and name not in header]:
        raise DataError(
            f"{file.path} line 1: there is no column {lacking[0]!r}; it has {some(header, limit=20)}",
            "name the column that holds it, or add it",
        )
    if len({name.lower() for name in names}) < len(names):
        raise DataError(f"{file.path}: two of the columns {some(names)} differ in case only", "rename one")
    return names


@contextmanager
def _duckdb_errors(file: RawFile) -> Iterator[None]:
    """Turn errors of duckdb into a `DataError` or `StorageError` that names the file and says all that duckdb said."""
    path = file.path
    try:
        yield
    except duckdb.Error as error:
        said = " ".join(str(error).split())[:400]
        if isinstance(error, duckdb.OutOfMemoryException):
            raise StorageError(f"{path} does not fit: {said}", "free some disk space or memory") from error
        if "No space left" in said or "disk full" in said.lower():
            raise StorageError(f"the disk is full while reading {path}", "free some space and run again") from error
        if not isinstance(file, ParquetRows):
            survey(path, file.encoding if isinstance(file, Delimited) else "utf-8")
        raise DataError(f"{path} cannot be read: {said}", "check that it is the right file, and whole") from error


@contextmanager
def workspace(on_error: OnError = "stop") -> Iterator[Workspace]:
    """Open an empty workspace in a temporary folder beside the data-set folders; both are gone afterwards.

    Raises
    ------
    StorageError
        If the folder cannot be used.
    """
    with storage.scratch_folder(paths.data_root()) as folder:
        if "\\" in folder.as_posix():
            hint = f"move to a folder without one, or name one in {paths.HOME_VARIABLE}"
            raise StorageError(f"duckdb cannot work below {folder.parent}: a backslash is in its name", hint)
        settings: dict[str, Any] = {
            "memory_limit": MEMORY_LIMIT,
            "temp_directory": str(folder / "spill"),
            "threads": min(os.cpu_count() or 1, 8),
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
            "allow_community_extensions": "false",
        }
        with duckdb.connect(":memory:", config=settings) as db:
            db.execute("SET enable_progress_bar = false; SET TimeZone = 'UTC'")
            for table, columns in TABLES.items():
                db.execute(f"CREATE TABLE {table} ({columns})")
            yield Workspace(db, folder, on_error)


def longest_train_reviews(
    data: Dataset, by: Literal["user", "item"], limit: int, only: int | None = None
) -> Iterator[tuple[int, list[str]]]:
    """Give the longest train reviews by each user or of each item, ids ascending; those without any are left out.

    With ``only``, those of one user or item.

    Reviews of equal length are ordered by the id at their other end. Reviews of valid and test are never read out of
    the database. Memory does not grow with the file.

    Raises
    ------
    DataError
        If the data set has no reviews, or their file is missing or was changed.
    """
    order = f"length(text) DESC, {'item' if by == 'user' else 'user'}"
    with workspace() as work:
        result = work.db.execute(
            f"""
            SELECT {by}, list(text ORDER BY {order}) FROM (
                SELECT user, item, text FROM read_parquet({RawFile(data.reviews_file).scanned})
                WHERE split = '{SPLITS[0]}' AND {by} = {by if only is None else int(only)}
                QUALIFY row_number() OVER (PARTITION BY {by} ORDER BY {order}) <= {int(limit)}
            ) GROUP BY {by} ORDER BY {by}
            """
        )
        while rows := result.fetchmany(1000):
            yield from rows
