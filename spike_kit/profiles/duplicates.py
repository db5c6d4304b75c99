"""Near-duplicates among many texts, by their word n-grams; no pair is compared that shares nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain

import numpy as np
import pandas as pd

from spike_kit.base.seeds import numpy_generator
from spike_kit.profiles.faithfulness import WORD

CHUNK_ENTRIES = 8_000_000
"""Numbers held in memory at once, where a measure works in chunks."""
BANDS, BAND_ROWS = 25, 5
"""MinHash: bands, and hash values per band; a pair with Jaccard similarity 0.8 is missed with probability 5e-5."""
BUCKET_WINDOW = 16
"""Texts of one bucket that each text is compared with: those that follow it in the order of their hash values."""


def words_of(text: str) -> list[str]:
    """Words of a text without case."""
    return WORD.findall(text.casefold())


def ngrams(rows: Sequence[Sequence[str]], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Word n-grams as dense ids ``[m]``, and the row each comes from ``[m]``, ascending; none crosses rows."""
    vocabulary: dict[str, int] = {}
    counts = np.array([len(row) for row in rows], dtype=np.int64)
    ids = (vocabulary.setdefault(word, len(vocabulary)) for word in chain.from_iterable(rows))
    words = np.fromiter(ids, dtype=np.int64, count=int(counts.sum()))
    owner = np.repeat(np.arange(len(rows)), counts)
    grams = words
    for step in range(1, size):
        grams = np.unique(grams[:-1] * len(vocabulary) + words[step:], return_inverse=True)[1]
    inside = owner[: len(grams)] == owner[len(owner) - len(grams) :]
    return grams[inside], owner[: len(grams)][inside]


def near_duplicates(
    texts: Sequence[str] | pd.Series, threshold: float = 0.8, seed: int = 0
) -> tuple[float, pd.DataFrame]:
    """Share of texts that have another text with much the same 3-word shingles, and the pairs.

    Candidates come from MinHash with banding (Broder 1997), their Jaccard similarity is exact. Texts with the same
    words are duplicates whatever their length. Cost grows with n log n: of a large group of duplicates not every
    pair is given, but every text of it has one.

    Parameters
    ----------
    texts
        ``n`` texts.
    threshold
        Smallest Jaccard similarity of near-duplicates.
    seed
        Seed of the hash functions.

    Returns
    -------
    share, pairs
        The share (NaN without texts), and a table with first, second (positions in ``texts``) and similarity.
    """
    code, kept = pd.factorize(np.array([" ".join(words_of(text)) for text in texts], dtype=object))
    position = np.unique(code, return_index=True)[1]
    copies = np.setdiff1d(np.arange(len(code)), position)
    a, b, similarity = _similar_rows([key.split() for key in kept], threshold, seed)
    pairs = pd.DataFrame(
        {
            "first": np.concatenate([position[code[copies]], np.minimum(position[a], position[b])]),
            "second": np.concatenate([copies, np.maximum(position[a], position[b])]),
            "similarity": np.concatenate([np.ones(len(copies)), similarity]),
        }
    )
    found = np.union1d(pairs["first"], pairs["second"])
    share = len(found) / len(code) if len(code) else math.nan
    return share, pairs.sort_values(["first", "second"], ignore_index=True)


def _similar_rows(
    rows: Sequence[Sequence[str]], threshold: float, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of rows (first < second) with a Jaccard similarity of 3-grams of at least ``threshold``, and that."""
    grams, owner = ngrams(rows, 3)
    if not len(grams):
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)
    width = int(grams.max()) + 1
    keys = np.unique(owner * width + grams)
    owner, grams = np.divmod(keys, width)
    sizes = np.bincount(owner, minlength=len(rows))
    shingled = np.flatnonzero(sizes)
    candidates = _candidates(_minhash(grams, np.flatnonzero(np.diff(owner, prepend=-1)), seed))
    a, b = shingled[candidates[:, 0]], shingled[candidates[:, 1]]
    possible = np.minimum(sizes[a], sizes[b]) >= threshold * np.maximum(sizes[a], sizes[b])
    a, b = a[possible], b[possible]
    starts = np.cumsum(sizes) - sizes
    shared = np.zeros(len(a))
    chunk = np.cumsum(sizes[a]) // CHUNK_ENTRIES
    for part in np.split(np.arange(len(a)), np.flatnonzero(np.diff(chunk)) + 1):
        counts = sizes[a[part]]
        pair = np.repeat(np.arange(len(part)), counts)
        within = np.arange(len(pair)) - np.repeat(np.cumsum(counts) - counts, counts)
        wanted = b[part][pair] * width + grams[starts[a[part]][pair] + within]
        place = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
        shared[part] = np.bincount(pair, weights=keys[place] == wanted, minlength=len(part))
    similarity = shared / (sizes[a] + sizes[b] - shared)
    close = similarity >= threshold
    return a[close], b[close], similarity[close]


def _minhash(grams: np.ndarray, starts: np.ndarray, seed: int) -> np.ndarray:
    """Smallest hash values of each row's n-grams: ``[n, BANDS * BAND_ROWS]`` uint32."""
    rng = numpy_generator(seed, "near duplicates")
    factors, shifts = rng.integers(0, 2**63, size=(2, BANDS * BAND_ROWS), dtype=np.uint64)
    mixed = rng.permutation(int(grams.max()) + 1).astype(np.uint64)[grams]
    signature = np.empty((len(starts), BANDS * BAND_ROWS), dtype=np.uint32)
    for column, (factor, shift) in enumerate(zip(factors | np.uint64(1), shifts, strict=True)):
        signature[:, column] = np.minimum.reduceat((mixed * factor + shift) >> np.uint64(32), starts)
    return signature


def _candidates(signature: np.ndarray) -> np.ndarray:
    """Pairs of rows ``[m, 2]`` (first < second) that share a whole band; similar rows of a bucket are neighbours."""
    n = len(signature)
    found = [np.empty(0, dtype=np.int64)]
    for band in range(BANDS):
        columns = signature[:, (np.arange(2 * BAND_ROWS) + band * BAND_ROWS) % signature.shape[1]]
        order = np.lexsort(columns.T[::-1])
        shared = columns[order, :BAND_ROWS]
        for step in range(1, BUCKET_WINDOW + 1):
            same = np.flatnonzero((shared[:-step] == shared[step:]).all(axis=1))
            if not len(same):
                break
            a, b = order[same], order[same + step]
            found.append(np.minimum(a, b) * n + np.maximum(a, b))
    return np.stack(np.divmod(np.unique(np.concatenate(found)), n), axis=1)
