"""What holds for every reader: the data set that a raw folder gives, bad rows, files that are something else."""

import ast
import gzip
import io
import json
import re
import tempfile
import zipfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from spike_kit.base import paths
from spike_kit.data.pipeline import reorganize
from spike_kit.data.sources import SOURCES, find_recipe
from spike_kit.data.workspace import workspace
from tests.data import raw_folders as raw
from tests.data.checks import (
    FEW,
    built,
    explained,
    facts_of,
    interactions_of,
    refused,
    refused_or_skipped,
    train_reviews,
)
from tests.data.raw_folders import PAIRS, film, lines_in, products_2018, vectors, write_lines

OF_BOOK = {("author", "Ann Author"), ("category", "Books"), ("category", "Fiction"), ("category", "Ten & under")}
OF_PLACE = {("city", "Springfield, IL"), ("state", "IL"), ("category", "Mexican"), ("category", "Restaurants")}
OF_PLACE |= {("category", "Bars"), ("attribute", "WiFi: free"), ("attribute", "GoodForKids")}
OF_PLACE |= {("attribute", "BusinessParking: street")}
OF_FILM = {("genre", "Comedy"), ("genre", "Drama"), ("director", "A. Person"), ("writer", "A. Person")}
OF_FILM |= {("actor", "Actor 1"), ("actor", "Actor 2"), ("country", "France"), ("language", "fr"), ("decade", "1990s")}


class Folder(NamedTuple):
    """A folder of raw files: recipe, what writes it, settings; facts, label and plot of item 1; the first time."""

    recipe: str
    write: Callable[[Path], Any]
    changes: dict[str, Any]
    facts: set[tuple[str, str]]
    label: str = ""
    plot: str = ""
    time: int | None = None


def _amazon(release: str, plot: str = "First part . Second part.") -> Folder:
    write = partial(raw.write_release, release=release)
    return Folder("amazon", write, {}, OF_BOOK, "Book 1 & more", plot, 1_500_000_000)


def _films(suffix: str) -> Folder:
    facts = {("genre", "Drama"), ("decade", "2000s")}
    plot = "A film released in 2001."
    write = partial(raw.write_movielens, suffix=suffix)
    return Folder("movielens", write, {}, facts, "Amélie (2001)", plot, 978_300_000)


FOLDERS = {
    "amazon-2014": _amazon("2014", "First part . It's the 2nd."),
    "amazon-2018": _amazon("2018"),
    "amazon-2023": _amazon("2023"),
    "amazon-kg": Folder("book", raw.write_amazon_kg, {}, {("author", "Ann Author")}, "Book 1 (novel)"),
    "colakg": Folder(
        "ml-1m-colakg", raw.write_colakg, {}, OF_FILM, "The Film 1 (1991)", 'What happens, "twice", in film 1.'
    ),
    "kgat": Folder("kgat", raw.write_kgat, {}, {("genre", "m.0ab")}, "B 1"),
    "kgat bare": Folder("kgat", raw.write_rows, {}, {("relation:1", "entity:9")}, "item:1"),
    "lastfm": Folder(
        *("lastfm", raw.write_lastfm, {}, {("tag", "chanson fran\u00e7aise")}, "Artist 1 \u2013 \u00e9"),
    ),
    "lastfm-colakg": Folder("lastfm-colakg", raw.write_lastfm, {}, {("tag", "chanson fran\u00e7aise")}),
    "movielens.csv": _films("csv"),
    "movielens.dat": _films("dat"),
    "recbole": Folder("recbole", raw.write_recbole, {}, {("cast", "Ann 1 (actor)")}, 'Film "1"', "", 0),
    "spike-release": Folder("spike-release", raw.write_spike_release, {}, {("relation:1", "entity:9")}, "item:1"),
    "tables": Folder(
        *("tables", raw.write_tables, raw.TABLES, {("genre", "Drama"), ("genre", "War"), ("director", "Ann")}),
        *("Film, the 1th", 'A "plot"', 0),
    ),
    "yelp": Folder(
        *("yelp", raw.write_yelp, {"user_core": 5, "item_core": 5}, OF_PLACE, "Café 1 & Bar"),
        *("A local business at 1 Main St, Springfield, IL.", 1_456_850_650),
    ),
}

OPTIONAL = {
    "kgat": {"user_list.txt", "item_list.txt", "entity_list.txt", "relation_list.txt"},
    "movielens.csv": {"tags.csv"},
    "recbole": {f"shop.{suffix}" for suffix in ("item", "link", "kg", "user", "ent", "rel")},
    "amazon-kg": {"Amazon-KG-5core-Books.link", "Amazon-KG-5core-Books.kg"},
    "lastfm": {"train.txt", "test.txt", "user_map.txt", "item_map.txt"},
}
"""Files that a folder may do without."""


@pytest.mark.parametrize("name", FOLDERS)
def test_a_raw_folder_gives_its_data_set(tmp_path: Path, name: str) -> None:
    folder = FOLDERS[name]
    folder.write(tmp_path / "raw")
    data = built(folder.recipe, tmp_path / "raw", **folder.changes)
    assert interactions_of(data) == set(PAIRS)
    assert facts_of(data, 1) == folder.facts
    assert folder.label in data.items["label"].tolist()[1]
    assert data.items["description"][1] == folder.plot
    times = data.interactions["timestamp"]
    assert times.isna().all() if folder.time is None else times[0] == folder.time
    assert data.manifest.funnel[0]["interactions"] == len(PAIRS)
    if data.manifest.build["split"] == "given":
        assert interactions_of(data, "test") == {(user, user) for user in range(8) if name != "amazon-kg"}
        assert len(interactions_of(data, "valid")) == 8
    if data.has_reviews:
        reviews = train_reviews(data)
        assert len(reviews) == len(data.split("train"))
        said = [tuple(map(int, re.findall(r"\d", text))) for text in reviews["text"]]
        assert said == list(zip(reviews["user"], reviews["item"], strict=True))
    first = data.manifest
    assert built(folder.recipe, tmp_path / "raw", **folder.changes).manifest == first
    assert all(source.licence and source.origin for source in first.sources)


def test_tags_of_films_come_on_request_from_enough_users_and_are_flagged(tmp_path: Path) -> None:
    raw.write_movielens(tmp_path, "csv")
    data = built("movielens", tmp_path, behavioural=True)
    assert facts_of(data, 1) == FOLDERS["movielens.csv"].facts | {("tag", "dark")}
    assert re.search("these relations .* held-out interactions.*: tag", data.manifest.notes[0])
    assert facts_of(built("movielens", tmp_path, behavioural=True, min_taggers=3), 1) == FOLDERS["movielens.csv"].facts


HEADER = ["org_id remap_id"]
REVIEW = '{"business_id": "b1", "user_id": "u1", "stars": 4, "date": "2016-03-01", "text": ""}'
A, K, L, R = "Books_5.json.gz", "kgat", "lastfm-colakg", "recbole"
FAULTS: list[tuple[Any, ...]] = [
    ("amazon-2018", A, '\n{"overall": 5.0, "reviewerID": "A1", ', r"gz line 50: the line is not a JSON object"),
    ("amazon-2018", A, "[1, 2]", r"Books_5\.json\.gz line 49: the line is not a JSON object"),
    ("amazon-2018", A, '{"overall": 5.0, "asin": "B1"}', "line 49: 'reviewerID' is missing"),
    ("amazon-2018", A, '{"overall": 5.0, "reviewerID": "A1", "asin": ""}', "line 49: 'asin' is missing"),
    ("amazon-2018", A, '{"overall": "good", "reviewerID": "A1", "asin": "B1"}', "49: 'overall' is not a number"),
    ("amazon-2018", A, '{"overall": "inf", "reviewerID": "A1", "asin": "B1"}', "49: 'overall' is not a number"),
    (
        *("amazon-2018", A, '{"overall": 5, "reviewerID": "A1", "asin": "B1", "unixReviewTime": "May"}'),
        "line 49: 'unixReviewTime' is not a number",
    ),
    (
        "amazon-2014",
        "reviews_Books_5.json.gz",
        "__import__('os').system('touch executed')",
        "line 49: .* a JSON",
    ),
    (
        *("amazon-2018", "meta_Books.json.gz", json.dumps(products_2018()[3] | {"title": "Other"})),
        r"meta_Books\.json\.gz line 9: item 'B3'.*different labels.*'Other'",
    ),
    ("yelp", "yelp_academic_dataset_review.json.gz", REVIEW.replace("2016-03-01", "May"), "49: 'date' is not a date"),
    (K, "train.txt", "0 -1", r"train\.txt line 9: it is not a line of ids .* in '0 -1'"),
    (K, "train.txt", "1 2", r"train\.txt line 9: its user has a line already in '1 2'"),
    ("kgat bare", "train.txt", "9", r"train\.txt: users 8 have no line"),
    (K, "test.txt", "9 1", r"test\.txt line 9: its user is not in train\.txt"),
    (K, "kg_final.txt", "0 1", r"kg_final\.txt line 10: it is not a triple of ids.*'0 1'"),
    (K, "kg_final.txt", "\n0 1 -3", r"kg_final\.txt line 11: it is not a triple of ids"),
    (K, "kg_final.txt", "0 1 99", r"kg_final\.txt line 10: an entity is not in entity_list"),
    (K, "kg_final.txt", "0 9 1", r"kg_final\.txt line 10: the relation is not in relation_list"),
    (K, "relation_list.txt", "b 0", r"relation_list\.txt line 4: its id is named a second time"),
    (K, "relation_list.txt", [*HEADER, "a 1"], r"relation_list\.txt: it does not name .* ids 0"),
    (K, "user_list.txt", "d 8", r"user_list\.txt line 10: its id is not in train\.txt"),
    (K, "user_list.txt", "a\x02 0", r"user_list\.txt line 10: it holds a control character"),
    (K, "item_list.txt", "b", r"item_list\.txt line 10: it does not hold org_id remap_id freebase_id in 'b'"),
    ("kgat bare", "item_list.txt", [*HEADER, *(f"a{n} {n}" for n in range(7))], "does not name the item ids 7"),
    ("lastfm", "user_artists.dat", "2\t52\tmany", r"user_artists\.dat line 50: 'weight' is not a number"),
    ("lastfm", "artists.dat", "52\tOther\tx\ty", r"artists\.dat line 11: item '52': it has different labels"),
    (L, "train.txt", "8 1", r"train\.txt line 9: its user is not in user_map\.txt"),
    (L, "item_map.txt", "70 1", r"item_map\.txt line 9: one of its ids stands in an earlier line"),
    (L, "user_map.txt", "70", r"user_map\.txt line 9: it is not a raw and a mapped id"),
    ("colakg", "ml1m_extended_movie.csv", film(2, Title="Other"), r"movie\.csv line 17: item '102': it has different"),
    ("colakg", "ml1m_extended_movie.csv", "107,Film", r"movie\.csv line 9: it cannot be split into 10 columns"),
    ("movielens.dat", "ratings.dat", "1::2::good::5", r"ratings\.dat line 49: 'rating' is not a number"),
    ("movielens.csv", "ratings.csv", ",2,4,5", r"ratings\.csv line 50: 'userId' is missing"),
    ("movielens.csv", "movies.csv", "2,Other (1990),Drama", r"movies\.csv line 11: item '2': it has different labels"),
    (R, "shop.inter", "u1\t2\tgood\t1", r"shop\.inter line 50: 'rating' is not a number"),
    (R, "shop.inter", "u\x85\t2\t5\t1", r"shop\.inter line 50: 'user_id' holds a control character"),
    (R, "shop.kg", "a\t\tb", r"shop\.kg line 10: 'relation_id' is missing"),
    (R, "shop.kg", "a\tb", r"shop\.kg line 10: it cannot be split into 3 columns .*Found: 2"),
    (R, "shop.rel", "x\ty\t{head}", r"shop\.rel line 3: the template lacks {head} or {tail}"),
    (R, "shop.ent", "x\ty\titem", r"shop\.ent line 3: the kind 'item' is for the items alone"),
    (R, "shop.item", "2\tOther\t", r"shop\.item line 10: item '2': it has different labels"),
    ("tables", "ratings.csv", "u1,f1,many,3", r"ratings\.csv line 50: 'stars' is not a number in 'u1,f1,many,3'"),
    ("tables", "ratings.csv", "u1,f1", r"ratings\.csv line 50: it cannot be split .*'u1,f1'"),
    ("tables", "films.csv", "f3,Another,,Drama,", r"films\.csv line 10: item 'f3'.*different labels"),
    ("spike-release", "train.txt", "8 1", r"train\.txt line 9: its user is not in user_embeddings\.npz"),
]
"""Folder, file, a line that is added (or all lines), what the message says, and how many rows are bad (if not one)."""


def changed(name: str, folder: Path, file: str, change: Any) -> Folder:
    """Write a folder in which a file has one more line, or another content."""
    found = FOLDERS[name]
    found.write(folder)
    path = folder / file
    if isinstance(change, list):
        write_lines(path, change)
    elif isinstance(change, str | bytes):
        write_lines(path, [*lines_in(path), change])
    else:
        path.write_bytes(change(path.read_bytes() if path.exists() else b""))
    return found


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault[0]} {fault[1]} {fault[3][-30:]}")
def test_a_bad_row_is_named_or_skipped_and_counted(tmp_path: Path, fault: tuple[Any, ...]) -> None:
    name, file, change, message, *rows = fault
    folder = changed(name, tmp_path / "raw", file, change)
    data = refused_or_skipped(folder.recipe, tmp_path / "raw", f"(?s){message}", *rows, **folder.changes)
    assert isinstance(change, list) or interactions_of(data) == set(PAIRS)
    assert not Path("executed").exists()


def _npz(**arrays: Any) -> Callable[[bytes], bytes]:
    file = io.BytesIO()
    np.savez(file, allow_pickle=True, **arrays)
    return lambda _: file.getvalue()


def _broken_array(_: bytes) -> bytes:
    """An archive whose array has a header that is no Python literal."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("ids.npy", b"\x93NUMPY\x01\x00\x04\x00((((")
    return file.getvalue()


def _lines(*lines: str) -> Callable[[bytes], bytes]:
    return lambda _: "".join(f"{line}\n" for line in lines).encode()


def _utf_16(content: bytes) -> bytes:
    packed = content[:2] == b"\x1f\x8b"
    wide = (gzip.decompress(content) if packed else content).decode().encode("utf-16")
    return gzip.compress(wide) if packed else wide


S, USER, ITEM, ENTITY = "spike-release", *(f"{name}_embeddings.npz" for name in ("user", "item", "entity"))
RATINGS = "user_id:token\titem_id:token"
OTHERS: list[tuple[str, str, Callable[[bytes], bytes], str]] = [
    ("amazon-2018", A, lambda content: content[:-9], "damaged or was not downloaded to its end"),
    ("amazon-2018", A, lambda _: b"no archive", "no usable row: the line is not a JSON object"),
    ("amazon-2018", A, lambda _: b'{"asin": "B1"}\n{"asin": "caf\xe9"}', r"gz line 2: not text in UTF-8 .*0xe9"),
    ("amazon-2018", A, _utf_16, "UTF-16 or binary"),
    ("amazon-2018", A, lambda _: b"", r"is empty|damaged"),
    ("amazon-2018", "Toys_5.json.gz", _lines("{}"), r"several categories or releases: Books \(2018\), Toys \(2018\)"),
    (K, "train.txt", _utf_16, r"train\.txt line 1: the file is UTF-16"),
    (K, "kg_final.txt", _utf_16, r"kg_final\.txt line 1: the file is UTF-16"),
    (K, "train.txt", _lines(""), "train.txt holds no user"),
    (K, "kg_final.txt", _lines(""), "kg_final.txt holds no triple"),
    (K, "user_list.txt", _lines("a 0"), "user_list.txt line 1: the columns are 'a 0', expected remap_id"),
    ("kgat bare", "train.txt", _lines("0 1", "1 1", "2 123456789"), "the largest item id is 123456789, but only"),
    ("tables", "films.csv", lambda content: b"\n" + content, r"films\.csv line 1: column names are empty or repeated"),
    ("kgat bare", "kg_final.txt", _lines("0 0 123456789"), "the largest entity id is 123456789, but only"),
    (R, "shop.inter", _lines(RATINGS), "shop.inter holds no usable row"),
    (R, "other.inter", _lines(RATINGS, "a\tb"), "several data sets: other, shop"),
    (S, USER, _npz(**vectors([0, 1, 2, 4, 5, 6, 7, 8])), "ids must count from 0 without a gap, but 3 is missing"),
    (S, ITEM, _npz(**vectors([0, 1, 1, 3, 4, 5, 6, 7])), r"but 1 stands twice"),
    (S, ITEM, _npz(**vectors([-1, 0, 1, 2, 3, 4, 5, 6])), r"but 0 is missing"),
    (S, ENTITY, _npz(**vectors([8, 10])), r"must count from 8 without a gap, but 9 is missing"),
    (S, ENTITY, _npz(**vectors(range(6))), r"holds vectors of items, but not of the ids 6, 7"),
    (S, USER, _npz(**vectors(np.arange(8) + 0.5)), r"expected ids \[n\] of integers"),
    (S, USER, _npz(**vectors(range(8)) | {"embeddings": np.zeros(4)}), r"embeddings \[4\] of float64, expected"),
    (
        S,
        USER,
        _npz(**vectors(range(8)) | {"embeddings": np.full((8, 4), np.nan)}),
        "ids 0, 1, .* hold NaN or inf",
    ),
    (S, USER, _npz(ids=np.arange(8)), r"holds no array .*embeddings"),
    (S, USER, _broken_array, "is damaged, or no npz file without pickles"),
    (S, USER, _npz(ids=np.array([{}]), embeddings=np.zeros((1, 4))), r"without pickles"),
    (S, ITEM, _npz(**vectors(range(8), dim=5)), "different dimensions: user 4, item 5, entity 4"),
    (S, ITEM, lambda content: content[:-20], "item_embeddings.npz is damaged"),
]
"""Folder, file, what becomes of its content, and what the message says."""


@pytest.mark.parametrize("case", OTHERS, ids=lambda case: f"{case[0]} {case[1]} {case[3][-30:]}")
def test_a_file_that_is_something_else_is_an_error_whatever_is_skipped(
    tmp_path: Path, case: tuple[str, str, Callable[[bytes], bytes], str]
) -> None:
    name, file, change, message = case
    folder = changed(name, tmp_path / "raw", file, change)
    refused(folder.recipe, tmp_path / "raw", message, **folder.changes | {"on_error": "skip"})


@pytest.mark.parametrize("name", ["amazon-2018", "kgat", "movielens.csv", "tables"])
def test_a_byte_order_mark_is_passed_over(tmp_path: Path, name: str) -> None:
    folder = FOLDERS[name]
    folder.write(tmp_path)
    for path in list(tmp_path.iterdir()):
        packed = path.suffix == ".gz"
        content = b"\xef\xbb\xbf" + (gzip.decompress(path.read_bytes()) if packed else path.read_bytes())
        path.write_bytes(gzip.compress(content) if packed else content)
    assert facts_of(built(folder.recipe, tmp_path, **folder.changes), 1) == folder.facts


@cache
def contents(name: str) -> dict[str, bytes]:
    """Files of a folder."""
    with tempfile.TemporaryDirectory() as folder:
        FOLDERS[name].write(Path(folder))
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def parsing(name: str, folder: Path, new: dict[str, bytes | None], on_error: str) -> tuple[str | None, str | None]:
    """Messages of the errors in which parsing and reorganizing a changed folder end, if they do."""
    folder.mkdir(exist_ok=True)
    for file, content in (contents(name) | new).items():
        (folder / file).unlink(missing_ok=True)
        if content is not None:
            (folder / file).write_bytes(content)
    recipe = find_recipe(FOLDERS[name].recipe)
    config = recipe.settings.replace(**FOLDERS[name].changes | {"on_error": on_error})
    with workspace(config.on_error) as work:
        problem = explained(lambda: SOURCES[recipe.source].parse(folder, config, work))
        return problem, problem or explained(lambda: reorganize(work, config).check())


@pytest.mark.parametrize("name", FOLDERS)
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    for file in contents(name).keys() - OPTIONAL.get(name, set()):
        problem, _ = parsing(name, tmp_path / "raw", {file: None}, "skip")
        assert problem is not None
        assert file.split(".")[0] in problem or "holds no" in problem or "must hold one" in problem
    refused(FOLDERS[name].recipe, tmp_path / "nowhere", "is no folder")


TOKENS = (b"-1", b"x", b"", b"\n", b"\t", b",", b"::", b'"', b"99999", b"\xff", b"\0", b"1e400", b"\x85", b"{", b"[")
EDITS = st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 6), st.sampled_from(TOKENS) | st.binary(max_size=6)))


@pytest.mark.parametrize("name", FOLDERS)
@given(st.integers(0, 9), EDITS | st.binary(max_size=100), st.booleans(), st.sampled_from(["stop", "skip"]))
@example(0, [(60, 0, b"\x00")], True, "skip")
@example(1, [(0, 4, b"\xff\xfe")], True, "stop")
@example(1, b"\x01", False, "skip")
@settings(FEW, max_examples=8)
def test_whatever_the_bytes_only_explained_errors_come_out(
    tmp_path: Path, name: str, which: int, change: bytes | list[tuple[int, int, bytes]], unpack: bool, on_error: str
) -> None:
    files = contents(name)
    file = sorted(files)[which % len(files)]
    packed = unpack and file.endswith(".gz")
    content = gzip.decompress(files[file]) if packed else files[file]
    for start, length, new in change if isinstance(change, list) else [(0, len(content), change)]:
        place = start % (len(content) + 1)
        content = content[:place] + new + content[place + length :]
    problem, later = parsing(name, tmp_path / "raw", {file: gzip.compress(content) if packed else content}, on_error)
    assert problem is None or str(tmp_path) in problem
    assert later is None or len(later) > 20
    assert not [*paths.data_root().glob(".spike-kit-tmp-*")]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.just("[" * 500),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@pytest.mark.parametrize("name", ["amazon-2014", "amazon-2018", "amazon-2023", "yelp"])
@given(st.data(), st.booleans())
@settings(FEW, max_examples=8)
def test_whatever_a_row_holds_only_explained_errors_come_out(
    tmp_path: Path, name: str, data: st.DataObject, skip: bool
) -> None:
    new: dict[str, bytes | None] = {}
    for file, content in contents(name).items():
        packed = file.endswith(".gz")
        text = (gzip.decompress(content) if packed else content).decode()
        rows = [ast.literal_eval(line) if name == "amazon-2014" else json.loads(line) for line in text.splitlines()]
        for row in rows[:4]:
            row |= data.draw(st.dictionaries(st.sampled_from(sorted(row)), VALUES, max_size=3))
        lines = "".join(f"{repr(row) if name == 'amazon-2014' else json.dumps(row)}\n" for row in rows).encode()
        new[file] = gzip.compress(lines) if packed else lines
    problem, _ = parsing(name, tmp_path / "raw", new, "skip" if skip else "stop")
    assert problem is None or str(tmp_path) in problem
