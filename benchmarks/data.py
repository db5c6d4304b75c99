"""How fast and in how much memory raw reviews become a data-set folder, beside a bare scan of the same file.

The file is synthetic but shaped like a public one: packed JSON lines with all fields of the release, word frequencies
after Zipf, skewed activity of users and items, some HTML, some repeated texts.
"""

from __future__ import annotations

import json
import tempfile
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import duckdb
import numpy as np
from tqdm.auto import tqdm

from benchmarks.measure import alone
from spike_kit.base import paths
from spike_kit.base.config import Config
from spike_kit.base.devices import peak_bytes
from spike_kit.base.seeds import numpy_generator
from spike_kit.data.build import build
from spike_kit.data.raw import literal
from spike_kit.data.sources.amazon import RELEASES, AmazonConfig

Release = Literal["2018", "2023"]
CATEGORY = "Synthetic"
"""Category of the synthetic file."""

_CHUNK = 50_000
_RATINGS = np.array([0.06, 0.05, 0.08, 0.19, 0.62])
_REVIEWS_PER_USER, _REVIEWS_PER_ITEM, _ITEMS_PER_BRAND = 4, 20, 12


class DataBenchmark(Config):
    """What `bench_data` measured."""

    release: Release
    """Format of the synthetic file."""
    reviews: int
    """Reviews in it."""
    file_gib: float
    """Size of the packed file in GiB."""
    seconds: float
    """Time of the whole build, from the raw files to the finished data-set folder."""
    reviews_per_second: float
    """Raw reviews per second of the build."""
    scan_seconds: float
    """Time in which duckdb counts the rows of the same file and sums the lengths of the texts: the floor."""
    ratio: float
    """Build over bare scan."""
    peak_rss_gib: float
    """Largest resident memory of the building process in GiB, the interpreter and its libraries included."""
    interactions: int
    """Interactions in the data-set folder."""
    kept_reviews: int
    """Reviews in the data-set folder."""


def bench_data(reviews: int, release: Release = "2018", seed: int = 0) -> DataBenchmark:
    """Write a synthetic Amazon category, scan it, build a data-set folder from it, and remove all of it again.

    Scan and build run in a fresh process each, so that memory is theirs alone.

    Parameters
    ----------
    reviews
        Number of raw reviews.
    release
        Format of the files.
    seed
        Seed of the synthetic data.
    """
    root = paths.data_root()
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".spike-kit-tmp-bench-", dir=root) as temporary:
        folder = Path(temporary)
        path = write_reviews(folder, reviews, release, seed)
        scan_seconds = alone(_scan, path, release)
        seconds, peak, interactions, kept = alone(_build, folder, release)
        return DataBenchmark(
            release=release,
            reviews=reviews,
            file_gib=round(path.stat().st_size / 2**30, 3),
            seconds=round(seconds, 2),
            reviews_per_second=round(reviews / seconds),
            scan_seconds=round(scan_seconds, 2),
            ratio=round(seconds / scan_seconds, 2),
            peak_rss_gib=round(peak / 2**30, 2),
            interactions=interactions,
            kept_reviews=kept,
        )


def _scan(path: Path, release: Release) -> float:
    text = RELEASES[release].reviews["text"].source
    with duckdb.connect() as database:
        database.execute("SET enable_progress_bar = false")
        started = time.perf_counter()
        database.execute(f'SELECT count(*), sum(length("{text}")) FROM read_json({literal(str(path))})').fetchall()
        return time.perf_counter() - started


def _build(folder: Path, release: Release) -> tuple[float, int, int, int]:
    started = time.perf_counter()
    data = build("amazon", AmazonConfig(generation=release), name=f"{folder.name.lstrip('.')}-study", raw=folder)
    seconds = time.perf_counter() - started
    counts = data.manifest.counts
    peak = peak_bytes()
    for file in data.path.iterdir():
        file.unlink()
    data.path.rmdir()
    return seconds, peak, counts["interactions"], counts.get("reviews", 0)


def write_reviews(folder: Path, reviews: int, release: Release, seed: int = 0) -> Path:
    """Write a synthetic category of ``reviews`` reviews with its metadata; returns the file of the reviews."""
    rng = numpy_generator(seed, "bench data")
    n_users = max(reviews // _REVIEWS_PER_USER, 1)
    n_items = max(reviews // _REVIEWS_PER_ITEM, 1)
    suffix = "jsonl" if release == "2023" else "json"
    path = folder / f"{CATEGORY}{'' if release == '2023' else '_5'}.{suffix}.gz"
    sentences = _sentences(rng)
    chunks = _review_chunks(rng, reviews, n_users, n_items, release, sentences)
    _write_packed(path, chunks, reviews, "write reviews")
    products = _product_chunks(rng, n_items, release, sentences)
    _write_packed(folder / f"meta_{CATEGORY}.{suffix}.gz", products, n_items, "write metadata")
    return path


def _sentences(rng: np.random.Generator) -> list[str]:
    """Sentences of words whose frequencies fall as 1 / rank."""
    letters = np.array(list("etaoinshrdlucmfwypvbgk"))
    words = ["".join(rng.choice(letters, size=size)) for size in rng.integers(2, 10, size=8_000)]
    frequency = 1 / np.arange(1, len(words) + 1)
    frequency /= frequency.sum()
    sizes = rng.integers(5, 20, size=40_000)
    drawn = iter(rng.choice(len(words), size=int(sizes.sum()), p=frequency))
    return [" ".join(words[next(drawn)] for _ in range(size)).capitalize() + "." for size in sizes]


def _review_chunks(
    rng: np.random.Generator, reviews: int, n_users: int, n_items: int, release: Release, sentences: list[str]
) -> Iterator[tuple[int, bytes]]:
    for start in range(0, reviews, _CHUNK):
        size = min(_CHUNK, reviews - start)
        users = (n_users * rng.random(size) ** 1.8).astype(np.int64)
        items = (n_items * rng.random(size) ** 2.5).astype(np.int64)
        ratings = rng.choice(5, size=size, p=_RATINGS) + 1
        times = rng.integers(1_300_000_000, 1_538_000_000, size=size)
        n_sentences = np.clip(rng.lognormal(1.2, 0.8, size=size), 1, 60).astype(np.int64)
        first = rng.integers(0, len(sentences) - 60, size=size)
        line = _review_2023 if release == "2023" else _review_2018
        lines = [
            line(user, item, rating, at, _text(sentences, begin, n))
            for user, item, rating, at, begin, n in zip(
                users.tolist(),
                items.tolist(),
                ratings.tolist(),
                times.tolist(),
                first.tolist(),
                n_sentences.tolist(),
                strict=True,
            )
        ]
        yield size, "".join(lines).encode()


def _text(sentences: list[str], begin: int, n: int) -> str:
    text = " ".join(sentences[begin : begin + n])
    return text.replace(". ", ".<br />", 1) + " &quot;So it is&quot;" if begin % 17 == 0 else text


def _user(number: int) -> str:
    return f"A{number * 2_654_435_761 % 2**44:012X}"


def _item(number: int) -> str:
    return f"B{number * 40_503 % 2**36:09X}"


def _review_2018(user: int, item: int, rating: int, at: int, text: str) -> str:
    return (
        f'{{"overall": {rating}.0, "verified": true, "reviewTime": "01 1, 2018", "reviewerID": "{_user(user)}", '
        f'"asin": "{_item(item)}", "style": {{"Format:": " Paperback"}}, "reviewerName": "Reader {user}", '
        f'"reviewText": "{text}", "summary": "{text[:30]}", "unixReviewTime": {at}}}\n'
    )


def _review_2023(user: int, item: int, rating: int, at: int, text: str) -> str:
    return (
        f'{{"rating": {rating}.0, "title": "{text[:30]}", "text": "{text}", "images": [], "asin": "{_item(item)}", '
        f'"parent_asin": "{_item(item)}", "user_id": "{_user(user)}", "timestamp": {at * 1000}, "helpful_vote": 0, '
        f'"verified_purchase": true}}\n'
    )


def _product_chunks(
    rng: np.random.Generator, n_items: int, release: Release, sentences: list[str]
) -> Iterator[tuple[int, bytes]]:
    brands = rng.integers(0, max(n_items // _ITEMS_PER_BRAND, 1), size=n_items).tolist()
    picked = rng.integers(0, len(sentences), size=(n_items, 2)).tolist()
    item, maker, categories = (
        ("parent_asin", "store", "categories") if release == "2023" else ("asin", "brand", "category")
    )
    for start in range(0, n_items, _CHUNK):
        rows = range(start, min(start + _CHUNK, n_items))
        lines = [
            json.dumps(
                {
                    categories: ["Synthetic", f"Shelf {brands[row] % 40}", f"Board {brands[row] % 400}"],
                    "description": [sentences[picked[row][0]]],
                    "title": f"{sentences[picked[row][1]][:40]} {row}",
                    maker: f"Maker {brands[row]}",
                    "also_buy": [_item((row + step) % n_items) for step in range(1, 6)],
                    item: _item(row),
                }
            )
            for row in rows
        ]
        yield len(rows), ("\n".join(lines) + "\n").encode()


def _write_packed(path: Path, chunks: Iterator[tuple[int, bytes]], total: int, what: str) -> None:
    """Write chunks as one gzip file of several members, two of them packed at a time."""
    waiting: list[Future[bytes]] = []
    with path.open("wb") as file, ThreadPoolExecutor(2) as pool, tqdm(total=total, desc=what, unit="row") as bar:
        for size, content in chunks:
            waiting.append(pool.submit(_packed, content))
            bar.update(size)
            if len(waiting) > 3:
                file.write(waiting.pop(0).result())
        for done in waiting:
            file.write(done.result())


def _packed(content: bytes) -> bytes:
    packer = zlib.compressobj(6, zlib.DEFLATED, 31)
    return packer.compress(content) + packer.flush()
