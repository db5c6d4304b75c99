from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spike_kit.base import paths
from spike_kit.base.errors import DataError
from spike_kit.data.build import build, compared
from spike_kit.data.dataset import Dataset
from spike_kit.data.sources import find_recipe
from spike_kit.data.sources.amazon import AmazonConfig, parse
from spike_kit.data.workspace import workspace
from tests.data.amazon_files import products_2018, reviews_2018, write_lines, write_release
from tests.data.checks import FEW, explained, refused, refused_or_skipped, train_reviews


def built(folder: Path, **changes: Any) -> Dataset:
    return build("amazon", AmazonConfig(**changes), name="books", raw=folder)


@pytest.mark.parametrize("release", ["2014", "2018", "2023"])
def test_every_release_gives_the_same_study(tmp_path: Path, release: str) -> None:
    data = built(write_release(tmp_path / "raw", release))
    assert data.items["label"].tolist() == [f"Book {item} & more" for item in range(8)]
    assert data.items["description"].iloc[0].startswith("First part .")
    named = data.triples.merge(data.entities, left_on="tail", right_on="entity")
    named["relation"] = named["relation"].map(data.relations["source_id"])
    facts = set(named.loc[named["head"] == 1, ["relation", "label"]].itertuples(index=False, name=None))
    assert facts == {
        ("author", "Ann Author"),
        ("category", "Books"),
        ("category", "Fiction"),
        ("category", "Ten & under"),
    }
    assert data.relations["source_id"].tolist() == ["author", "category"]
    assert len(data.interactions) == 48
    row = data.interactions.query("user == 0 and item == 0").iloc[0]
    assert (row["rating"], row["timestamp"]) == (5.0, 1_500_000_000)
    train = data.interactions.query("split == 'train'")
    reviews = train_reviews(data)
    assert len(reviews) == len(train)
    users, items = data.users["source_id"], data.items["source_id"]
    for user, item, text in zip(reviews["user"], reviews["item"], reviews["text"], strict=True):
        assert text == f"Reader {users[user][1:]} about book {items[item][1:]}"


@pytest.mark.parametrize("release", ["2014", "2018"])
def test_links_between_products_come_on_request_and_are_flagged(tmp_path: Path, release: str) -> None:
    folder = write_release(tmp_path / "raw", release)
    data = built(folder, behavioural=True)
    relations = data.relations["source_id"].tolist()
    assert {"also_buy", "also_view"} <= set(relations)
    also_buy = data.triples[data.triples["relation"] == relations.index("also_buy")]
    linked = set(map(tuple, also_buy[["head", "tail"]].to_numpy().tolist()))
    assert linked == {(item, (item + 1) % 8) for item in range(8)}
    assert "also_buy" in data.manifest.notes[0]
    assert "held-out" in data.manifest.notes[0]


def test_titles_that_are_scripts_are_no_names(tmp_path: Path) -> None:
    folder = write_release(tmp_path / "raw", "2018")
    products = products_2018()
    products[3]["title"] = "var aPageStart = (new Date()).getTime();"
    write_lines(folder / "meta_Books.json.gz", map(json.dumps, products))
    data = built(folder)
    assert data.items["label"].iloc[3] == "B3"
    assert data.manifest.funnel[0]["items_without_name"] == 1


def test_text_hygiene_is_counted(tmp_path: Path) -> None:
    rows = reviews_2018()
    texts = {
        0: "Good &amp; <br />short",
        1: "two\nlines\twith\u200b tabs",
        2: "word " * 1000,
        3: "",
        4: "  ",
        5: rows[20]["reviewText"],
        6: "Очень хорошая книга",
    }
    for place, text in texts.items():
        rows[place]["reviewText"] = text
    folder = write_release(tmp_path / "raw", "2018")
    write_lines(folder / "Books_5.json.gz", map(json.dumps, rows))
    data = built(folder, valid=0.0, test=0.0)
    counts = data.manifest.funnel[-1]
    found = {
        name: counts[f"reviews_{name}"] for name in ("html_resolved", "control_characters_removed", "cut", "not_latin")
    }
    assert found == {"html_resolved": 1, "control_characters_removed": 1, "cut": 1, "not_latin": 1}
    assert counts["reviews_empty"] == 2
    texts_kept = train_reviews(data)["text"]
    assert "Good & short" in texts_kept.tolist()
    assert "two lines with tabs" in texts_kept.tolist()
    assert "Очень хорошая книга" in texts_kept.tolist()
    assert texts_kept.str.len().max() <= 2000
    assert counts["reviews"] == len(texts_kept) == 48 - 2 - counts["reviews_duplicated"]


def test_a_text_repeated_by_a_user_or_for_an_item_is_kept_once(tmp_path: Path) -> None:
    rows = reviews_2018()
    for row in rows:
        if row["reviewerID"] == "A0" or row["asin"] == "B7":
            row["reviewText"] = "the same words"
    folder = write_release(tmp_path / "raw", "2018")
    write_lines(folder / "Books_5.json.gz", map(json.dumps, rows))
    data = built(folder, valid=0.0, test=0.0)
    same = train_reviews(data).query("text == 'the same words'")
    assert not same["user"].duplicated().any()
    assert not same["item"].duplicated().any()
    assert len(same) >= 1
    assert data.manifest.funnel[-1]["reviews_duplicated"] == 12 - len(same)


def test_the_five_core_file_is_preferred_and_a_choice_is_asked_for(tmp_path: Path) -> None:
    folder = write_release(tmp_path / "raw", "2018")
    write_lines(folder / "Books.json.gz", ["broken"])
    assert len(built(folder).interactions) == 48
    write_release(folder, "2018", category="Toys")
    with pytest.raises(DataError, match=r"several categories or releases: Books \(2018\), Toys \(2018\)"):
        built(folder)
    assert built(folder, category="Toys").relations["source_id"].tolist() == ["brand", "category"]


def amazon_kg(folder: Path) -> Path:
    """Amazon-KG's three files for the same products."""
    folder.mkdir(parents=True)
    pairs = [f"{row['reviewerID']}\t{row['asin']}\t1" for row in reviews_2018()]
    write_lines(folder / "Amazon-KG-5core-Books.inter", ["user_id:token\titem_id:token\trating:float", *pairs])
    links = [f"B{item}\tres:Book_{item}_(novel)" for item in range(8)]
    write_lines(folder / "Amazon-KG-5core-Books.link", ["item_id:token\tentity_id:token", *links])
    triples = [f"res:Book_{item}_(novel)\tdbo:author\tres:Ann_Author" for item in range(8)]
    triples.append("res:Ann_Author\tdbo:birthPlace\tres:Lima")
    write_lines(folder / "Amazon-KG-5core-Books.kg", ["head_id:token\trelation_id:token\ttail_id:token", *triples])
    return folder


def test_amazon_kg_gives_the_graph_and_joins_titles_and_reviews(tmp_path: Path) -> None:
    folder = amazon_kg(tmp_path / "raw")
    bare = build("book", name="bare", raw=folder)
    assert bare.items["label"].tolist() == [f"Book {item} (novel)" for item in range(8)]
    assert bare.entities["label"].tolist()[8:] == ["Ann Author", "Lima"]
    assert len(bare.triples) == 9
    assert not bare.has_reviews
    write_release(folder, "2018")
    full = build("book", name="full", raw=folder)
    assert full.items["label"].tolist() == [f"Book {item} & more" for item in range(8)]
    assert full.interactions["timestamp"].notna().all()
    assert len(train_reviews(full)) == len(full.split("train"))
    table = compared(full.manifest).set_index("what")
    assert (table["published"]["users"], table["found"]["users"]) == (10_485, 8)
    assert table["equal"].tolist() == [False] * 6


def test_a_build_that_differs_from_the_published_counts_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build("book", name="bare", raw=amazon_kg(tmp_path / "raw"))
    assert "WARNING: the raw files of bare are not the version published in Amazon-KG v2.0" in caplog.text
    assert "users 8 instead of 10485" in caplog.text


def test_the_authors_folder_name_finds_the_files_and_the_study() -> None:
    amazon_kg(paths.raw_root() / "amazon-book_kg")
    build("book")
    assert Dataset.open("amazon-book_kg").path.name == "book"
    assert find_recipe("movie").source == "amazon"


BAD_LINES = {
    "broken JSON": (b'{"overall": 5.0, "reviewerID": "A1", ', "the line is not a JSON object"),
    "no object": (b"[1, 2]", "the line is not a JSON object"),
    "no user": (b'{"overall": 5.0, "asin": "B1", "unixReviewTime": 1, "reviewText": "x"}', "'reviewerID' is missing"),
    "empty item": (b'{"overall": 5.0, "reviewerID": "A1", "asin": "", "reviewText": "x"}', "'asin' is missing"),
    "rating": (b'{"overall": "good", "reviewerID": "A1", "asin": "B1"}', "'overall' is not a number"),
    "infinite rating": (b'{"overall": "inf", "reviewerID": "A1", "asin": "B1"}', "'overall' is not a number"),
    "time": (
        b'{"overall": 5.0, "reviewerID": "A1", "asin": "B1", "unixReviewTime": "May"}',
        "'unixReviewTime' is not a number",
    ),
    "latin-1": (b'{"overall": 5.0, "reviewerID": "A1", "asin": "B1", "reviewText": "caf\xe9"}', "not a JSON object"),
}


@pytest.mark.parametrize(("case", "suffix"), list(zip(BAD_LINES, ["", ".gz"] * 4, strict=True)))
def test_a_bad_line_is_named_or_skipped_and_counted(tmp_path: Path, case: str, suffix: str) -> None:
    line, problem = BAD_LINES[case]
    good = [json.dumps(row) for row in reviews_2018()]
    folder = tmp_path / "raw"
    write_lines(folder / f"Books_5.json{suffix}", [*good[:4], "", line, *good[4:]])
    write_lines(folder / "meta_Books.json.gz", map(json.dumps, products_2018()))
    message = rf"(?s)Books_5\.json{suffix} line 6: .*{problem}.*--on-error skip"
    data = refused_or_skipped("amazon", folder, message)
    assert "1 rows skipped" in data.manifest.notes[0]
    assert len(data.interactions) == 48


def test_bad_lines_of_2014_are_named_too(tmp_path: Path) -> None:
    folder = write_release(tmp_path / "raw", "2014")
    good = gzip.decompress((folder / "reviews_Books_5.json.gz").read_bytes()).decode().splitlines()
    evil = "__import__('os').system('touch executed')"
    write_lines(folder / "reviews_Books_5.json.gz", [good[0], evil, *good[1:]])
    refused_or_skipped("amazon", folder, r"reviews_Books_5\.json\.gz line 2: the line is not a JSON object")
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[: len(data) // 2], "not a readable .gz file: Compressed file ended"),
        (lambda data: data[:-9], "damaged or was not downloaded to its end"),
        (lambda _: b"no archive", "not a readable .gz file"),
        (lambda data: gzip.compress(gzip.decompress(data).decode().encode("utf-16")), "UTF-16 or binary"),
        (lambda _: b"", "is not a readable|is empty"),
        (lambda data: data[:200] + b"\xff" * 40 + data[240:], "damaged|cannot be read|not a JSON object"),
    ],
)
@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_a_damaged_file_is_always_an_error(tmp_path: Path, damage: Any, message: str, on_error: str) -> None:
    folder = write_release(tmp_path / "raw", "2018")
    path = folder / "Books_5.json.gz"
    path.write_bytes(damage(path.read_bytes()))
    refused("amazon", folder, message, on_error=on_error)


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    folder = write_release(tmp_path / "raw", "2018")
    path = folder / "Books_5.json.gz"
    path.write_bytes(gzip.compress(b"\xef\xbb\xbf" + gzip.decompress(path.read_bytes())))
    assert len(built(folder).interactions) == 48


def test_a_product_with_two_titles_is_named_with_its_line(tmp_path: Path) -> None:
    folder = write_release(tmp_path / "raw", "2018")
    products = products_2018()
    write_lines(
        folder / "meta_Books.json.gz", map(json.dumps, [*products, products[2], products[3] | {"title": "Other"}])
    )
    message = r"meta_Books\.json\.gz line 10: item 'B3'.*different labels.*'Other'"
    data = refused_or_skipped("amazon", folder, message)
    assert data.items["label"].iloc[3] == "Book 3 & more"


def test_missing_metadata_and_missing_folders_say_where_to_look(tmp_path: Path) -> None:
    folder = write_release(tmp_path / "raw", "2018")
    (folder / "meta_Books.json.gz").unlink()
    with pytest.raises(DataError, match=r"(?s)no file of metadata.*docs/datasets.md"):
        built(folder)
    with pytest.raises(DataError, match=r"(?s)no raw files of amazon.*docs/datasets.md.*--raw"):
        build("amazon")
    with pytest.raises(DataError, match="holds no reviews of Toys"):
        built(folder, category="Toys")


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
FIELDS = ["overall", "reviewerID", "asin", "reviewText", "unixReviewTime", "title", "brand", "category", "related"]
LINES = (
    st.binary(max_size=60).map(lambda raw: raw.replace(b"\n", b" "))
    | st.dictionaries(st.sampled_from([*FIELDS, "parent_asin", "user_id", "text", "rating"]), JSON_VALUES).map(
        lambda row: json.dumps(row).encode()
    )
    | st.dictionaries(st.sampled_from(FIELDS), JSON_VALUES).map(lambda row: repr(row).encode(errors="replace"))
)


@given(
    st.sampled_from(["2014", "2018", "2023"]), st.lists(LINES, max_size=6), st.lists(LINES, max_size=4), st.booleans()
)
@FEW
def test_whatever_the_lines_only_explained_errors_come_out(
    tmp_path: Path, release: str, reviews: list[bytes], products: list[bytes], skip: bool
) -> None:
    suffix = "jsonl" if release == "2023" else "json"
    name = {"2014": "reviews_Books.json", "2018": "Books.json", "2023": "Books.jsonl"}[release]
    folder = tmp_path / f"raw-{release}"
    write_lines(folder / name, reviews)
    write_lines(folder / f"meta_Books.{suffix}", products)
    with workspace("skip" if skip else "stop") as work:
        problem = explained(lambda: parse(folder, AmazonConfig(behavioural=True), work))
        if problem is None:
            liked = work.frame("SELECT item FROM interactions")["item"]
            assert work.frame("SELECT item FROM items")["item"].isin(liked).all()
        else:
            assert str(folder) in problem
    assert not list(paths.data_root().glob(".spike-kit-tmp-*"))


def test_equal_files_give_an_equal_manifest(tmp_path: Path) -> None:
    folder = write_release(tmp_path / "raw", "2018")
    first, second = built(folder).manifest, built(folder).manifest
    assert first == second
    assert {source.name for source in first.sources} == {"Books_5.json.gz", "meta_Books.json.gz"}


def test_reviews_are_written_in_batches_and_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spike_kit.data.pipeline.BATCH_ROWS", 7)
    data = built(write_release(tmp_path / "raw", "2018"))
    reviews = pd.read_parquet(data.path / "reviews.parquet")
    assert len(reviews) == 48
    assert reviews[["user", "item"]].equals(reviews[["user", "item"]].sort_values(["user", "item"]))
    assert reviews["split"].value_counts().to_dict() == {"train": 32, "valid": 8, "test": 8}
