"""Files of other people, their cells, ids and dates: what is read, what is refused, and that nothing gets lost."""

import codecs
import csv
import gzip
import io
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from spike_kit.base.errors import DataError
from spike_kit.data.cells import names_in
from spike_kit.data.files import opened, survey
from spike_kit.data.raw import Delimited, Field, JsonLines, ParquetRows, RawFile, fields, literal
from spike_kit.data.workspace import OnError, Workspace, workspace

TEXT = {name: Field(name, "text") for name in ("a", "b", "c")}
ID = {"item": Field("item"), "label": Field("label", "text"), "genres": Field("genres", "text")}


def rows_of(file: RawFile, wanted: dict[str, Field], on_error: OnError = "stop") -> tuple[list[Any], Workspace]:
    """Rows of a file, and the workspace that read it."""
    with workspace(on_error) as work:
        work.read(file, "raw_items", wanted)
        names = ", ".join(f'"{name}"' for name in wanted)
        return work.db.execute(f"SELECT {names} FROM raw_items ORDER BY place").fetchall(), work


def written(path: Path, content: str | bytes) -> Path:
    """A file with this content."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def zipped(content: bytes, *names: str) -> bytes:
    """An archive in which every name holds the content."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, content)
    return file.getvalue()


TABLE = "item,label,genres\n1,Amélie,Drama\n2,Toys,Comedy\n"
ROWS = [("1", "Amélie", "Drama"), ("2", "Toys", "Comedy")]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("r.csv", gzip.compress),
        ("r.csv.gz", gzip.compress),
        ("r.csv.gz", lambda content: content),
        ("r.csv", lambda content: zipped(content, "r.csv")),
        ("r.zip", lambda content: zipped(content, "folder/", "__MACOSX/._r.csv", "folder/r.csv")),
        ("r.csv", lambda content: codecs.BOM_UTF8 + content),
        ("r.csv", lambda content: content.replace(b"\n", b"\r\n")),
        ("r.csv", lambda content: content.replace(b"\n", b"\r")),
        ("r.csv", lambda content: content.replace(b"\n", b"\r\n", 1)),
        ("r.csv", lambda content: content.replace(b"\n", b"\r\n", 2)),
        ("r.csv", lambda content: gzip.compress(codecs.BOM_UTF8 + content.replace(b"\n", b"\r\n", 2))),
        ("r.csv", lambda content: content[:-1]),
    ],
)
def test_a_table_is_read_whatever_its_packing_and_line_ends_are(
    tmp_path: Path, name: str, change: Callable[[bytes], bytes]
) -> None:
    assert rows_of(Delimited(written(tmp_path / name, change(TABLE.encode()))), ID)[0] == ROWS


@pytest.mark.parametrize("change", [gzip.compress, lambda content: zipped(content, "r.jsonl"), lambda content: content])
def test_so_are_lines_of_json(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    content = codecs.BOM_UTF8 + '{"item": "1", "label": "Amélie"}\r\n{"item": 2, "genres": ["x"]}\n'.encode()
    read, _ = rows_of(JsonLines(written(tmp_path / "r.jsonl", change(content))), ID)
    assert read == [("1", "Amélie", ""), ("2", "", '["x"]')]


@pytest.mark.parametrize("on_error", ["stop", "skip"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (TABLE.encode("cp1252"), r"r.csv line 2: not text in UTF-8 \(byte 0xe9 in '1,Amélie,Drama'\)"),
        (TABLE.replace("Toys", "Łódź").replace("é", "e").encode("iso8859-2"), r"r.csv line 3: not text in UTF-8"),
        (TABLE.replace("Toys", "千と千尋").replace("é", "e").encode("shift_jis"), r"r.csv line 3: not text in UTF-8"),
        (TABLE.encode("utf-16"), "UTF-16 or binary"),
        (TABLE.encode()[:-14] + "é".encode()[:1], "line 3: not text in UTF-8"),
        (zipped(b"x", "a.csv", "b.csv"), r"archive of 2 files \(a.csv, b.csv\)"),
        (zipped(TABLE.encode(), "a.csv")[:60], "damaged or was not downloaded to its end"),
        (gzip.compress(TABLE.encode() * 99)[:-20], "damaged or was not downloaded to its end"),
        (b"BZh91AY&SY" + bytes(50), "packed with bzip2"),
        (b"\x28\xb5\x2f\xfd" + bytes(50), "packed with zstd"),
    ],
    ids=lambda value: value if isinstance(value, str) else "content",
)
def test_what_is_no_text_is_an_error_whatever_is_skipped(
    tmp_path: Path, content: bytes, message: str, on_error: OnError
) -> None:
    with pytest.raises(DataError, match=message):
        rows_of(Delimited(written(tmp_path / "r.csv", content)), ID, on_error)


def test_bytes_that_are_no_text_in_lines_of_json_are_an_error_too(tmp_path: Path) -> None:
    path = written(tmp_path / "r.json", b'{"item": "1"}\n{"item": "caf\xe9"}\n')
    with pytest.raises(DataError, match="line 2: not text in UTF-8"):
        rows_of(JsonLines(path), ID, "skip")


def test_a_character_may_stand_across_two_chunks(tmp_path: Path) -> None:
    content = b"x" * ((1 << 20) - 1) + "é\r\n".encode()
    found = survey(written(tmp_path / "r.txt", content))
    assert (found.line_feeds, found.both, found.is_mixed) == (1, 1, False)
    found = survey(written(tmp_path / "r.txt", b"x" * ((1 << 20) - 1) + b"\r\nend\n"))
    assert (found.both, found.line_feeds) == (1, 2)


def test_letters_of_windows_are_read_where_latin_1_is_expected(tmp_path: Path) -> None:
    path = written(tmp_path / "r.dat", "1::L’été\n2::Toys\n".encode("cp1252"))
    file = Delimited(path, "::", ("item", "label"), quoting=False, encoding="cp1252")
    wanted = {name: ID[name] for name in ("item", "label")}
    assert rows_of(file, wanted)[0] == [("1", "L’été"), ("2", "Toys")]
    path.write_bytes(b"1::x\n2::\x81\n")
    with pytest.raises(DataError, match=r"r.dat line 2: not text in CP1252"):
        rows_of(file, wanted)


HEROES = ["item\tlabel\tgenres", *(f"i{n}\tT{n}\tDrama" for n in range(1, 9))]


@pytest.mark.parametrize(
    "titles",
    [{3: '"Heroes'}, {3: '"Heroes', 6: 'The 17"'}, {1: '"', 2: '5" single', 8: '"'}, {3: '"a" and "b"', 4: '"""'}],
)
def test_a_quote_in_a_table_with_tabs_is_a_part_of_the_text(tmp_path: Path, titles: dict[int, str]) -> None:
    lines = [line.replace(f"\tT{n}\t", f"\t{titles.get(n, f'T{n}')}\t") for n, line in enumerate(HEROES)]
    file = Delimited(written(tmp_path / "r.tsv", "\n".join(lines)), "\t", strict=False)
    read, work = rows_of(file, ID)
    assert [row[1] for row in read] == [titles.get(n, f"T{n}") for n in range(1, 9)]
    assert work.notes == []


def test_cells_that_pandas_quotes_in_a_table_with_tabs_come_back(tmp_path: Path) -> None:
    frame = pd.DataFrame({"item": ["1", "2"], "label": ['A "b"', "x\ty"], "genres": ["one\ntwo", '"']})
    frame.to_csv(tmp_path / "r.tsv", sep="\t", index=False)
    read, work = rows_of(Delimited(tmp_path / "r.tsv", "\t", strict=False), ID)
    assert read == list(frame.itertuples(index=False, name=None))
    assert "quotes around a cell were taken off at line 2 (2 such rows)" in work.notes[0]


@pytest.mark.parametrize(
    ("titles", "message"),
    [
        ({3: '"Heroes'}, "line 4: a quote opens a cell and is not closed"),
        ({3: '"Heroes', 6: 'The 17"'}, "line 4: a quote opens a cell that goes on for 4 lines, which look like rows"),
        ({3: '"Heroes', 4: 'The 17"'}, "line 4: a quote opens a cell that goes on for 2 lines"),
        ({3: '"He said "no" twice"'}, r"line 4: .* \(a quote inside of a quoted cell must be doubled"),
        ({3: '"He said \\"no\\""'}, "line 4: .* must be doubled"),
    ],
)
def test_a_quote_that_is_not_closed_swallows_no_row(tmp_path: Path, titles: dict[int, str], message: str) -> None:
    lines = [line.replace(f"\tT{n}\t", f"\t{titles.get(n, f'T{n}')}\t") for n, line in enumerate(HEROES)]
    file = Delimited(written(tmp_path / "r.csv", "\n".join(lines).replace("\t", ",")))
    with pytest.raises(DataError, match=message):
        rows_of(file, ID)
    read, work = rows_of(file, ID, "skip")
    assert [row[0] for row in read] == [f"i{n}" for n in range(1, 9) if n != 3]
    assert work.extra["bad_rows"] == 1
    assert "1 rows skipped because" in work.notes[0]


def test_text_of_several_lines_stays_one_cell(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {"item": ["i1", "i2"], "label": ["A story\nof love, and war,\nand peace", ' "x"'], "genres": "d"}
    )
    frame.to_csv(tmp_path / "r.csv", index=False, lineterminator="\r\n")
    read, work = rows_of(Delimited(tmp_path / "r.csv"), ID)
    assert [row[1].strip() for row in read] == [label.strip() for label in frame["label"]]
    assert work.notes == ["r.csv: a cell in quotes goes on over several lines at line 2 (1 such rows)"]


ODD = st.sampled_from(
    ['"', '"a', 'a"', '""', '"a,b"', "a\tb", "'", "\\", "\\N", "nan", "[x]", "é", "\u2028", "\v", "ab"]
)
CELLS = st.lists(st.tuples(*[st.one_of(ODD, st.text("ab ,\"'\n\r", max_size=4))] * 3), min_size=1, max_size=6)
QUICK = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@QUICK
@given(rows=CELLS, strict=st.booleans(), end=st.sampled_from(["\n", "\r\n", "\r"]), last=st.booleans())
@example(rows=[('"a', "b", "c"), ("d", 'e"', "f")], strict=True, end="\n", last=True)
def test_every_line_of_a_table_is_read_or_counted(
    tmp_path: Path, rows: list[tuple[str, str, str]], strict: bool, end: str, last: bool
) -> None:
    """Cells that are not quoted as they should be: each line is a row, a part of one, or a bad row."""
    body = [",".join(cell.replace("\n", " ").replace("\r", " ") for cell in row) for row in rows]
    path = written(tmp_path / "r.csv", end.join(["a,b,c", "1,2,3", *body]) + end * last)
    read, work = rows_of(Delimited(path, strict=strict), TEXT, "skip")
    lines = sum(1 + sum(cell.count("\n") for cell in row) for row in read)
    assert lines + work.extra.get("bad_rows", 0) == 1 + len(rows)


@QUICK
@given(rows=CELLS, separator=st.sampled_from([",", "\t", ";"]), strict=st.booleans())
def test_every_row_that_is_quoted_well_comes_back(
    tmp_path: Path, rows: list[tuple[str, str, str]], separator: str, strict: bool
) -> None:
    """What Python's csv module writes is read, or (rows in one cell) refused as bad; no other row is touched."""
    path = tmp_path / "r.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=separator).writerows([("a", "b", "c"), ("1", "2", "3"), *rows])
    read, work = rows_of(Delimited(path, separator, strict=strict), TEXT, "skip")
    if "bad_rows" not in work.extra:
        said = [tuple(cell.replace("\r\n", "\n").replace("\r", "\v").lstrip(" ") for cell in row) for row in rows]
        assert [tuple(cell.lstrip(" ") for cell in row) for row in read[1:]] == said


@QUICK
@given(
    st.lists(
        st.sampled_from(["i1", " i1", "i2\t", "", "\u00a0i3", "i\x024", "7", "007", "1.0"]), min_size=1, max_size=9
    )
)
def test_ids_are_read_trimmed_or_counted_and_never_merged(tmp_path: Path, ids: list[str]) -> None:
    pd.DataFrame({"item": ["x", *ids]}).to_parquet(tmp_path / "r.parquet")
    read, work = rows_of(ParquetRows(tmp_path / "r.parquet"), {"item": Field("item")}, "skip")
    good = [one.strip() for one in ids if one.strip() and "\x02" not in one]
    assert [row[0] for row in read[1:]] == good
    assert work.extra.get("bad_rows", 0) == len(ids) - len(good)
    altered = sum(one != one.strip() and "\x02" not in one for one in ids)
    assert (
        work.notes[-1:] == [] or not altered or f"blanks around ids were taken off in {altered} rows" in work.notes[-1]
    )
    assert bool(altered) == any("blanks" in note for note in work.notes)


LISTS = [
    ("Drama|Comedy", ["Drama", "Comedy"]),
    ('["Drama", "Comedy"]', ["Drama", "Comedy"]),
    ("['Drama', 'Comedy']", ["Drama", "Comedy"]),
    ("['Drama' 'Comedy']", ["Drama", "Comedy"]),
    ("['Drama'\n \"Child's play\"]", ["Drama", "Child's play"]),
    ("('Drama', 'Comedy')", ["Drama", "Comedy"]),
    ("{'Drama', 'Comedy'}", ["Comedy", "Drama"]),
    ("frozenset({'Drama'})", ["Drama"]),
    ("array(['a', 'b'], dtype=object)", ["a", "b"]),
    ('[{"id": 18, "name": "Drama"}, {"id": 35, "name": "Comedy"}]', ["Drama", "Comedy"]),
    ("[{'id': 18, 'label': 'Drama'}]", ["Drama"]),
    ('{"id": 18, "title": "Drama"}', ["Drama"]),
    ('{"genre": "Drama"}', ["Drama"]),
    ('[["a"], ["b", null]]', ["a", "b"]),
    ("[18, 35]", ["18", "35"]),
    ("[1 2 3]", ["1", "2", "3"]),
    ("['a', nan, None]", ["a"]),
    ("[]", []),
    ("set()", []),
    ("{}", []),
    ("[REC]", ["[REC]"]),
    ("(500) Days of Summer", ["(500) Days of Summer"]),
    ("array of light", ["array of light"]),
]


@pytest.mark.parametrize(("cell", "names"), LISTS, ids=str)
def test_names_are_found_in_a_cell(cell: str, names: list[str]) -> None:
    assert names_in(cell, "|") == names


@pytest.mark.parametrize(
    "cell",
    [
        *("['Drama', 'Com", "[Drama, Comedy]", "{Drama,Comedy}", "['It''s']", "['a' 'b', 'c']", "['a' ... 'z']"),
        *('[{"id": 18, "weight": 1}]', '{"a": "x", "b": "y"}', "['a', __import__('os').getcwd()]", "[" * 5000 + "'a'"),
    ],
)
def test_a_list_that_cannot_be_read_is_an_error(cell: str) -> None:
    with pytest.raises(ValueError, match=r"it looks like a list|an object has none"):
        names_in(cell, "|")


DATES = [
    ("2018-04-10T12:30:00+02:00", 1523356200),
    ("2018-04-10 12:30:00 -0700", 1523388600),
    ("2018-04-10 12:30:00+05:30", 1523343600),
    ("2018-04-10T11:00:00Z", 1523358000),
    ("2018-04-10 11:00:00 GMT", 1523358000),
    ("2018-04-10 11:00", 1523358000),
    ("2018-04-10 11:00:00.75", 1523358000),
    ("2018-4-1", 1522540800),
    (" 2018-04-10 ", 1523318400),
    *(
        (text, None)
        for text in ("18-04-10 11:00:00", "10/04/2018", "2018-02-30", "20180410", "1523318400", "May", "018-1-1")
    ),
    ("2018-04-10 11:00 Europe/Berlin", None),
]


@pytest.mark.parametrize(("text", "seconds"), DATES, ids=str)
def test_dates_are_read_with_their_zone_or_refused(text: str, seconds: int | None) -> None:
    stamp = fields({"timestamp": "when"}, "date")["timestamp"]
    with workspace() as work:
        query = f'SELECT {stamp.value()}, {stamp.faults()[0].condition} FROM (SELECT {literal(text)} AS "when")'
        assert work.db.execute(query).fetchall() == [(seconds, seconds is None)]


@pytest.mark.parametrize(("text", "number"), [("True", 1), ("false", 0), (" 4.5 ", 4.5), ("1e1", 10), ("good", None)])
def test_numbers_may_be_true_or_false(text: str, number: float | None) -> None:
    with workspace() as work:
        value = Field("rating", "number").value()
        assert work.value(f"SELECT {value} FROM (SELECT {literal(text)} AS rating)") == number


def test_texts_that_stand_for_no_value_are_missing() -> None:
    spec = Field("x", missing=("nan", "Unknown"))
    text = replace(spec, kind="text")
    with workspace() as work:
        for field, cell, found in ((spec, "nan", None), (text, "Unknown", ""), (text, "unknown", "unknown")):
            assert work.value(f"SELECT {field.value()} FROM (SELECT {literal(cell)} AS x)") == found


def test_a_text_file_is_opened_by_what_it_holds(tmp_path: Path) -> None:
    for content in (gzip.compress(b"\xef\xbb\xbfa"), zipped(b"a", "x.txt"), codecs.BOM_UTF8 + b"a"):
        with opened(written(tmp_path / "x.txt", content)) as file:
            assert file.read() == "a"


@pytest.mark.parametrize("name", ["item=3", "label=x", "st*r", "a[b]?"])
def test_no_name_of_a_folder_changes_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("SPIKE_KIT_HOME", str(tmp_path / name))
    assert rows_of(Delimited(written(tmp_path / "r.csv", TABLE)), ID)[0] == ROWS
