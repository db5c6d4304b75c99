"""How fast and in how much memory raw reviews become a data-set folder, beside a bare scan of the same file.

The file is synthetic but shaped like a public one: packed JSON lines with all fields of the release, word frequencies
after Zipf, skewed activity of users and items, some HTML, some repeated texts.
"""

from __future__ import annotations

import gzip
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import duckdb
import numpy as np
import pandas as pd
from pydantic import Field
from tqdm.auto import tqdm

from benchmarks.common import GIB, Measured, Setup, alone, main, temporary_home
from spike_kit.base.devices import peak_bytes
from spike_kit.base.seeds import numpy_generator
from spike_kit.data.build import build
from spike_kit.data.raw import literal
from spike_kit.data.sources.amazon import RELEASES, AmazonConfig

Release = Literal["2018", "2023"]
CATEGORY = "Synthetic"
"""Category of the synthetic file."""

_CHUNK = 50_000
_RATINGS = [0.06, 0.05, 0.08, 0.19, 0.62]
_REVIEWS_PER_USER, _REVIEWS_PER_ITEM, _ITEMS_PER_BRAND = 4, 20, 12
_NAMES_2018 = {"rating": "overall", "user_id": "reviewerID", "text": "reviewText", "title": "summary"}


class DataSetup(Setup):
    """What `bench_data` measures."""

    reviews: int = Field(default=1_000_000, ge=1000)
    """Reviews in the synthetic file (ten million take about 5 GiB of disk), at least 1000: fewer tell nothing."""
    release: Release = "2018"
    """Format of the synthetic file."""


def bench_data(setup: DataSetup) -> Measured:
    """Build a data set from a synthetic raw file, beside a bare scan of it.

    Scan and build run in a fresh process each, so that memory is theirs alone; everything is removed again.
    """
    with temporary_home() as folder:
        path = write_reviews(folder, setup.reviews, setup.release)
        scan_seconds = alone(_scan, path, setup.release)
        seconds, peak, counts = alone(_build, folder, setup.release)
        size = path.stat().st_size
    return {
        "release": (setup.release, "format of the synthetic file"),
        "reviews": (setup.reviews, "reviews in it"),
        "file_gib": (round(size / GIB, 3), "size of the packed file in GiB"),
        "seconds": (round(seconds, 2), "time of the whole build, from the raw files to the finished data-set folder"),
        "reviews_per_second": (round(setup.reviews / seconds), "raw reviews per second of the build"),
        "scan_seconds": (round(scan_seconds, 2), "time in which duckdb counts the rows and sums the lengths of texts"),
        "ratio": (round(seconds / scan_seconds, 2), "build over bare scan"),
        "peak_rss_gib": (round(peak / GIB, 2), "largest resident memory of the build in GiB, the interpreter included"),
        "interactions": (counts["interactions"], "interactions in the data-set folder"),
        "kept_reviews": (counts.get("reviews", 0), "reviews in the data-set folder"),
    }


def _scan(path: Path, release: Release) -> float:
    text = RELEASES[release].reviews["text"].source
    with duckdb.connect() as database:
        database.execute("SET enable_progress_bar = false")
        started = time.perf_counter()
        database.execute(f'SELECT count(*), sum(length("{text}")) FROM read_json({literal(str(path))})').fetchall()
        return time.perf_counter() - started


def _build(folder: Path, release: Release) -> tuple[float, int, dict[str, int]]:
    started = time.perf_counter()
    data = build("amazon", AmazonConfig(generation=release), raw=folder)
    return time.perf_counter() - started, peak_bytes(), data.manifest.counts


def write_reviews(folder: Path, reviews: int, release: Release, seed: int = 0) -> Path:
    """Write a synthetic category of ``reviews`` reviews with its metadata; returns the file of the reviews."""
    rng = numpy_generator(seed, "bench data")
    n_users, n_items = max(reviews // _REVIEWS_PER_USER, 1), max(reviews // _REVIEWS_PER_ITEM, 1)
    sentences = _sentences(rng)
    suffix, kind = ("jsonl.gz", "") if release == "2023" else ("json.gz", "_5")
    path = folder / f"{CATEGORY}{kind}.{suffix}"
    sizes = [min(_CHUNK, reviews - start) for start in range(0, reviews, _CHUNK)]
    _write(path, (_reviews(rng, size, n_users, n_items, release, sentences) for size in sizes), len(sizes))
    _write(folder / f"meta_{CATEGORY}.{suffix}", iter([_products(rng, n_items, release, sentences)]), 1)
    return path


def _write(path: Path, frames: Iterator[pd.DataFrame], total: int) -> None:
    with gzip.open(path, "wb", compresslevel=6) as file:
        for frame in tqdm(frames, total=total, desc=f"write {path.name}", unit="part"):
            frame.to_json(file, orient="records", lines=True)


def _sentences(rng: np.random.Generator) -> list[str]:
    """Sentences of words whose frequencies fall as 1 / rank."""
    letters = np.array(list("etaoinshrdlucmfwypvbgk"))
    words = ["".join(rng.choice(letters, size=size)) for size in rng.integers(2, 10, size=8_000)]
    frequency = 1 / np.arange(1, len(words) + 1)
    sizes = rng.integers(5, 20, size=40_000)
    drawn = iter(rng.choice(len(words), size=int(sizes.sum()), p=frequency / frequency.sum()))
    return [" ".join(words[next(drawn)] for _ in range(size)).capitalize() + "." for size in sizes]


def _reviews(
    rng: np.random.Generator, size: int, n_users: int, n_items: int, release: Release, sentences: list[str]
) -> pd.DataFrame:
    users = (n_users * rng.random(size) ** 1.8).astype(np.int64)
    asin = _asins((n_items * rng.random(size) ** 2.5).astype(np.int64))
    ratings = rng.choice(5, size=size, p=_RATINGS) + 1.0
    seconds = rng.integers(1_300_000_000, 1_538_000_000, size=size)
    lengths = np.clip(rng.lognormal(1.2, 0.8, size=size), 1, 60).astype(np.int64)
    first = rng.integers(0, len(sentences) - 60, size=size)
    texts = [_text(sentences, begin, n) for begin, n in zip(first.tolist(), lengths.tolist(), strict=True)]
    frame = pd.DataFrame(
        {
            "rating": ratings,
            "title": [text[:30] for text in texts],
            "text": texts,
            "asin": asin,
            "user_id": [f"A{number * 2_654_435_761 % 2**44:012X}" for number in users.tolist()],
        }
    )
    if release == "2023":
        rest = {"parent_asin": asin, "timestamp": seconds * 1000, "helpful_vote": 0, "verified_purchase": True}
        return frame.assign(**rest, images=pd.Series([[]] * size))
    rest = {"unixReviewTime": seconds, "verified": True, "reviewTime": "01 1, 2018"}
    names = [f"Reader {number}" for number in users.tolist()]
    return frame.rename(columns=_NAMES_2018).assign(
        **rest, style=pd.Series([{"Format:": " Paperback"}] * size), reviewerName=names
    )


def _text(sentences: list[str], begin: int, n: int) -> str:
    text = " ".join(sentences[begin : begin + n])
    return text.replace(". ", ".<br />", 1) + " &quot;So it is&quot;" if begin % 17 == 0 else text


def _asins(numbers: np.ndarray) -> list[str]:
    return [f"B{number * 40_503 % 2**36:09X}" for number in numbers.tolist()]


def _products(rng: np.random.Generator, n_items: int, release: Release, sentences: list[str]) -> pd.DataFrame:
    brands = rng.integers(0, max(n_items // _ITEMS_PER_BRAND, 1), size=n_items).tolist()
    described, titled = rng.integers(0, len(sentences), size=(2, n_items)).tolist()
    asin = _asins(np.arange(n_items))
    frame = pd.DataFrame(
        {
            "categories": [["Synthetic", f"Shelf {brand % 40}", f"Board {brand % 400}"] for brand in brands],
            "description": [[sentences[number]] for number in described],
            "title": [f"{sentences[number][:40]} {row}" for row, number in enumerate(titled)],
            "store": [f"Maker {brand}" for brand in brands],
            "also_buy": [[asin[(row + step) % n_items] for step in range(1, 6)] for row in range(n_items)],
            "parent_asin": asin,
        }
    )
    names_2018 = {"categories": "category", "store": "brand", "parent_asin": "asin"}
    return frame if release == "2023" else frame.rename(columns=names_2018)


if __name__ == "__main__":
    sys.exit(main(DataSetup, bench_data))
