"""How fast and in how much memory raw reviews become a data-set folder, beside a bare scan of the same file.

The file is synthetic but shaped like a public one: packed JSON lines with all fields of the release of 2018, word
frequencies after Zipf, skewed activity of users and items, some HTML, some repeated texts.
"""

import gzip
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
from pydantic import Field
from tqdm.auto import tqdm

from benchmarks.common import GIB, Measured, Setup, alone, main, seconds_of, temporary_home
from spike_kit.base.devices import peak_bytes
from spike_kit.base.seeds import numpy_generator
from spike_kit.data.build import build
from spike_kit.data.raw import literal
from spike_kit.data.sources.amazon import AmazonConfig

_CHUNK = 50_000
_RATINGS = [0.06, 0.05, 0.08, 0.19, 0.62]
_REVIEWS_PER_USER, _REVIEWS_PER_ITEM, _ITEMS_PER_BRAND = 4, 20, 12


class DataSetup(Setup):
    """What `bench_data` measures."""

    reviews: int = Field(default=1_000_000, ge=1000)
    """Reviews in the synthetic file (ten million take about 5 GiB of disk), at least 1000: fewer tell nothing."""


def bench_data(setup: DataSetup) -> Measured:
    """Build a data set from a synthetic raw file, beside a bare scan of it.

    Scan and build run in a fresh process each, so that memory is theirs alone; everything is removed again.
    """
    with temporary_home() as folder:
        path = write_reviews(folder, setup.reviews)
        scan_seconds = alone(_scan, path)
        seconds, peak, counts = alone(_build, folder)
        size = path.stat().st_size
    return {
        "reviews": (setup.reviews, "reviews in the file"),
        "file_gib": (round(size / GIB, 3), "size of the packed file in GiB"),
        "seconds": (round(seconds, 2), "time of the whole build, from the raw files to the finished data-set folder"),
        "reviews_per_second": (round(setup.reviews / seconds), "raw reviews per second of the build"),
        "scan_seconds": (round(scan_seconds, 2), "time in which duckdb counts the rows and sums the lengths of texts"),
        "ratio": (round(seconds / scan_seconds, 2), "build over bare scan"),
        "peak_rss_gib": (round(peak / GIB, 2), "largest resident memory of the build in GiB, the interpreter included"),
        "interactions": (counts["interactions"], "interactions in the data-set folder"),
        "kept_reviews": (counts.get("reviews", 0), "reviews in the data-set folder"),
    }


def _scan(path: Path) -> float:
    with duckdb.connect() as database:
        database.execute("SET enable_progress_bar = false")
        scan = f"SELECT count(*), sum(length(reviewText)) FROM read_json({literal(str(path))})"
        return seconds_of(lambda: database.execute(scan).fetchall())


def _build(folder: Path) -> tuple[float, int, dict[str, int]]:
    started = time.perf_counter()
    data = build("amazon", AmazonConfig(generation="2018"), raw=folder)
    return time.perf_counter() - started, peak_bytes(), data.manifest.counts


def write_reviews(folder: Path, reviews: int, seed: int = 0) -> Path:
    """Write a synthetic category of ``reviews`` reviews with its metadata; returns the file of the reviews."""
    rng = numpy_generator(seed, "bench data")
    n_users, n_items = max(reviews // _REVIEWS_PER_USER, 1), max(reviews // _REVIEWS_PER_ITEM, 1)
    sentences = _sentences(rng)
    path = folder / "Synthetic_5.json.gz"
    sizes = [min(_CHUNK, reviews - start) for start in range(0, reviews, _CHUNK)]
    _write(path, (_reviews(rng, size, n_users, n_items, sentences) for size in tqdm(sizes, desc="write", unit="part")))
    _write(folder / "meta_Synthetic.json.gz", [_products(rng, n_items, sentences)])
    return path


def _write(path: Path, frames: Iterable[pd.DataFrame]) -> None:
    with gzip.open(path, "wb", compresslevel=6) as file:
        for frame in frames:
            frame.to_json(file, orient="records", lines=True)


def _sentences(rng: np.random.Generator) -> list[str]:
    """Sentences of words whose frequencies fall as 1 / rank; every fiftieth holds some HTML."""
    letters = np.array(list("etaoinshrdlucmfwypvbgk"))
    words = ["".join(rng.choice(letters, size=size)) for size in rng.integers(2, 10, size=8_000)]
    frequency = 1 / np.arange(1, len(words) + 1)
    sizes = rng.integers(5, 20, size=40_000)
    drawn = iter(rng.choice(len(words), size=int(sizes.sum()), p=frequency / frequency.sum()))
    sentences = [" ".join(words[next(drawn)] for _ in range(size)).capitalize() + "." for size in sizes]
    sentences[::50] = [f"{sentence}<br />&quot;So it is&quot;" for sentence in sentences[::50]]
    return sentences


def _reviews(rng: np.random.Generator, size: int, n_users: int, n_items: int, sentences: list[str]) -> pd.DataFrame:
    users = (n_users * rng.random(size) ** 1.8).astype(np.int64).tolist()
    items = (n_items * rng.random(size) ** 2.5).astype(np.int64)
    ratings = rng.choice(5, size=size, p=_RATINGS) + 1.0
    seconds = rng.integers(1_300_000_000, 1_538_000_000, size=size)
    lengths = np.clip(rng.lognormal(1.2, 0.8, size=size), 1, 60).astype(np.int64)
    first = rng.integers(0, len(sentences) - 60, size=size)
    texts = [" ".join(sentences[begin : begin + n]) for begin, n in zip(first.tolist(), lengths.tolist(), strict=True)]
    return pd.DataFrame(
        {
            "overall": ratings,
            "verified": True,
            "reviewTime": "01 1, 2018",
            "reviewerID": [f"A{number * 2_654_435_761 % 2**44:012X}" for number in users],
            "asin": _asins(items),
            "style": [{"Format:": " Paperback"}] * size,
            "reviewerName": [f"Reader {number}" for number in users],
            "reviewText": texts,
            "summary": [text[:30] for text in texts],
            "unixReviewTime": seconds,
        }
    )


def _asins(numbers: np.ndarray) -> list[str]:
    return [f"B{number * 40_503 % 2**36:09X}" for number in numbers.tolist()]


def _products(rng: np.random.Generator, n_items: int, sentences: list[str]) -> pd.DataFrame:
    brands = rng.integers(0, max(n_items // _ITEMS_PER_BRAND, 1), size=n_items).tolist()
    described, titled = rng.integers(0, len(sentences), size=(2, n_items)).tolist()
    asin = _asins(np.arange(n_items))
    return pd.DataFrame(
        {
            "category": [["Synthetic", f"Shelf {brand % 40}", f"Board {brand % 400}"] for brand in brands],
            "description": [[sentences[number]] for number in described],
            "title": [f"{sentences[number][:40]} {row}" for row, number in enumerate(titled)],
            "brand": [f"Maker {brand}" for brand in brands],
            "also_buy": [[asin[(row + step) % n_items] for step in range(1, 6)] for row in range(n_items)],
            "asin": asin,
        }
    )


if __name__ == "__main__":
    sys.exit(main(DataSetup, bench_data))
