"""Amazon: reviews and their cleaning, links on request, the choice of files, Amazon-KG."""

import json
from pathlib import Path

import pandas as pd
import pytest

from spike_kit.base import paths
from spike_kit.base.errors import DataError
from spike_kit.data.build import build, compared
from spike_kit.data.dataset import Dataset
from tests.data.checks import built, refused, train_reviews
from tests.data.raw_folders import products_2018, reviews_2018, write_amazon_kg, write_lines, write_release


def with_texts(folder: Path, texts: dict[int, str]) -> Dataset:
    """Build from reviews some of which have other texts; all are for training."""
    rows = reviews_2018()
    for place, text in texts.items():
        rows[place]["reviewText"] = text
    write_release(folder, "2018")
    write_lines(folder / "Books_5.json.gz", map(json.dumps, rows))
    return built("amazon", folder, valid=0.0, test=0.0)


@pytest.mark.parametrize("release", ["2014", "2018"])
def test_links_between_products_come_on_request_and_are_flagged(tmp_path: Path, release: str) -> None:
    data = built("amazon", write_release(tmp_path / "raw", release), behavioural=True)
    relations = data.relations["source_id"].tolist()
    assert {"also_buy", "also_view"} <= set(relations)
    also_buy = data.triples[data.triples["relation"] == relations.index("also_buy")]
    assert set(map(tuple, also_buy[["head", "tail"]].to_numpy().tolist())) == {(n, (n + 1) % 8) for n in range(8)}
    assert "also_buy" in data.manifest.notes[0]
    assert "held-out" in data.manifest.notes[0]


def test_titles_that_are_scripts_are_no_names(tmp_path: Path) -> None:
    folder, products = write_release(tmp_path / "raw", "2018"), products_2018()
    products[3]["title"] = "var aPageStart = (new Date()).getTime();"
    write_lines(folder / "meta_Books.json.gz", map(json.dumps, products))
    data = built("amazon", folder)
    assert data.items["label"].iloc[3] == "B3"
    assert data.manifest.funnel[0]["items_without_name"] == 1


def test_text_hygiene_is_counted(tmp_path: Path) -> None:
    texts = dict(enumerate(["Good &amp; <br />short", "two\nlines\twith\u200b tabs", "word " * 1000, "", "  "]))
    texts |= {5: "Очень хорошая книга", 6: "<script>steal()</script>Nice"}
    data = with_texts(tmp_path / "raw", texts)
    counts, kept = data.manifest.funnel[-1], train_reviews(data)["text"]
    names = ("html_resolved", "control_characters_removed", "cut", "not_latin", "empty", "duplicated")
    assert [counts[f"reviews_{name}"] for name in names] == [2, 1, 1, 1, 2, 0]
    assert {"Good & short", "two lines with tabs", "Очень хорошая книга", "Nice"} <= set(kept)
    assert kept.str.len().max() <= 2000
    assert counts["reviews"] == len(kept) == 46


def test_a_text_repeated_by_a_user_or_for_an_item_is_kept_once(tmp_path: Path) -> None:
    rows = enumerate(reviews_2018())
    repeated = [place for place, row in rows if row["reviewerID"] == "A0" or row["asin"] == "B7"]
    data = with_texts(tmp_path / "raw", dict.fromkeys(repeated, "the same words"))
    same = train_reviews(data).query("text == 'the same words'")
    assert not same["user"].duplicated().any()
    assert not same["item"].duplicated().any()
    assert len(same) >= 1
    assert data.manifest.funnel[-1]["reviews_duplicated"] == len(repeated) - len(same)


def test_reviews_are_written_in_batches_and_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spike_kit.data.pipeline.BATCH_ROWS", 7)
    reviews = pd.read_parquet(built("amazon", write_release(tmp_path / "raw", "2018")).reviews_file)
    assert len(reviews) == 48
    assert reviews[["user", "item"]].equals(reviews[["user", "item"]].sort_values(["user", "item"]))
    assert reviews["split"].value_counts().to_dict() == {"train": 32, "valid": 8, "test": 8}


def test_the_five_core_file_is_preferred_and_a_category_can_be_chosen(tmp_path: Path) -> None:
    folder = write_release(tmp_path / "raw", "2018")
    write_lines(folder / "Books.json.gz", ["broken"])
    assert len(built("amazon", folder).interactions) == 48
    write_release(folder, "2018", category="Toys")
    data = built("amazon", folder, category="Toys")
    assert data.relations["source_id"].tolist() == ["brand", "category"]


def test_missing_files_say_where_to_look(tmp_path: Path) -> None:
    folder = write_release(tmp_path / "raw", "2018")
    refused("amazon", folder, "holds no reviews of Toys", category="Toys")
    (folder / "meta_Books.json.gz").unlink()
    refused("amazon", folder, r"(?s)no file of metadata.*docs/datasets.md")
    refused("book", folder, r"must hold one Amazon-KG data set .* found none")
    with pytest.raises(DataError, match=r"(?s)no raw files of amazon.*docs/datasets.md.*--raw"):
        build("amazon")


def test_amazon_kg_joins_titles_and_reviews_and_is_compared_with_the_published_counts(
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = write_amazon_kg(paths.raw_root() / "amazon-book_kg")
    bare = build("book")
    assert Dataset.open("amazon-book_kg").path == bare.path
    assert bare.entities["label"].tolist()[8:] == ["Ann Author", "Lima"]
    assert not bare.has_reviews
    assert "WARNING: the raw files of book are not the version published in Amazon-KG v2.0" in caplog.text
    assert "users 8 instead of 10485" in caplog.text
    table = compared(bare.manifest).set_index("what")
    assert (table["published"]["users"], table["found"]["users"]) == (10_485, 8)
    assert table["equal"].tolist() == [False] * 6
    full = built("book", write_release(folder, "2018"))
    assert full.items["label"].tolist() == [f"Book {item} & more" for item in range(8)]
    assert full.interactions["timestamp"].notna().all()
    assert len(train_reviews(full)) == len(full.split("train"))
