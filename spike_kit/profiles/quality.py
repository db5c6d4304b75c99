"""Quality of profile texts, measured without any LLM: faithfulness, length, diversity, near-duplicates, spread."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain, product

import numpy as np
import pandas as pd
import torch
from scipy.sparse import csr_array
from torch import Tensor
from torch.nn import functional

from spike_kit.base.errors import DataError, lookup, some
from spike_kit.base.seeds import numpy_generator
from spike_kit.data.dataset import FILLED, SUBJECTS
from spike_kit.data.vectors import ProfileVectors
from spike_kit.profiles.faithfulness import WORD, checked_facts, lower_words

CHUNK_ENTRIES = 8_000_000
"""Numbers held in memory at once, where a measure works in chunks."""
BANDS, BAND_ROWS = 25, 5
"""MinHash: bands, and hash values per band; a pair with Jaccard similarity 0.8 is missed with probability 5e-5."""
BUCKET_WINDOW = 16
"""Texts of one bucket that each text is compared with: those that follow it in the order of their hash values."""


def words_of(text: str) -> list[str]:
    """Words of a text without case."""
    return WORD.findall(text.casefold())


def mattr(texts: Sequence[str] | pd.Series, window: int = 50) -> float:
    """Moving-average type-token ratio (Covington & McFall 2010), the mean over texts; NaN without any word.

    Each text counts the same and windows never cross from one text to the next, so the order of texts does not
    matter. A text shorter than the window is one window.
    """
    rows = [words for words in map(words_of, texts) if words]
    return float(np.mean([_moving_ratio(words, window) for words in rows])) if rows else math.nan


def _moving_ratio(words: Sequence[str], window: int) -> float:
    """Mean over windows of distinct words / words: a word counts where it is the first of its kind."""
    n, width = len(words), min(window, len(words))
    last: dict[str, int] = {}
    distinct = 0
    for place, word in enumerate(words):
        earliest = max(last.get(word, -1) + 1, place - width + 1)
        distinct += max(0, min(place, n - width) - earliest + 1)
        last[word] = place
    return distinct / (width * (n - width + 1))


def distinct_2(texts: Sequence[str] | pd.Series) -> float:
    """Distinct word pairs / word pairs over all texts (Li et al. 2016); NaN without any pair.

    It falls with the number of words, so compare profile sets on the same subjects and with similar lengths.
    """
    grams, _ = ngrams([words_of(text) for text in texts], 2)
    return len(np.unique(grams)) / len(grams) if len(grams) else math.nan


def spread(rows: Tensor) -> float:
    """Mean cosine distance over all pairs of different rows of ``[n, d]``, exact, in O(n d); NaN below two rows."""
    n = len(rows)
    unit = functional.normalize(rows.double())
    return 1 - float((unit.sum(0).square().sum() - unit.square().sum()) / (n * (n - 1))) if n > 1 else math.nan


def nearest(rows: Tensor) -> float:
    """Mean cosine distance of each row of ``[n, d]`` to the nearest other one, in chunks; NaN below two rows."""
    n = len(rows)
    if n < 2:
        return math.nan
    unit = functional.normalize(rows.float())
    total = 0.0
    for part in torch.arange(n, device=rows.device).split(max(1, CHUNK_ENTRIES // n)):
        cosines = unit.index_select(0, part) @ unit.T
        cosines.scatter_(1, part.unsqueeze(1), float("-inf"))
        total += float((1 - cosines.amax(1)).double().sum())
    return total / n


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
    first = np.unique(code, return_index=True)[1]
    copies = np.setdiff1d(np.arange(len(code)), first)
    same = pd.DataFrame({"first": first[code[copies]], "second": copies, "similarity": np.ones(len(copies))})
    a, b, similarity = _similar_rows([key.split() for key in kept], threshold, seed)
    close = pd.DataFrame({"first": first[a], "second": first[b], "similarity": similarity})
    pairs = pd.concat([same, close]).sort_values(["first", "second"], ignore_index=True)
    found = np.union1d(pairs["first"], pairs["second"])
    return (len(found) / len(code) if len(code) else math.nan), pairs


def _similar_rows(
    rows: Sequence[Sequence[str]], threshold: float, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of rows (first < second) with a Jaccard similarity of 3-grams of at least ``threshold``, and that."""
    grams, owner = ngrams(rows, 3)
    if not len(grams):
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)
    holds = csr_array((np.ones(len(grams), np.int64), (owner, grams)), shape=(len(rows), int(grams.max()) + 1))
    holds.data[:] = 1
    sizes = np.diff(holds.indptr)
    shingled = np.flatnonzero(sizes)
    candidates = _candidates(_minhash(holds.indices, holds.indptr[shingled], seed))
    a, b = shingled[candidates[:, 0]], shingled[candidates[:, 1]]
    possible = np.minimum(sizes[a], sizes[b]) >= threshold * np.maximum(sizes[a], sizes[b])
    a, b = a[possible], b[possible]
    parts = np.array_split(np.arange(len(a)), 1 + sizes[a].sum() // CHUNK_ENTRIES)
    shared = np.concatenate([holds[a[part]].multiply(holds[b[part]]).sum(axis=1) for part in parts])
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


def measure_profiles(
    profiles: Mapping[str, pd.DataFrame], prompts: Mapping[str, Mapping[tuple[str, int], str]]
) -> pd.DataFrame:
    """Measure each profile of several profile sets, on the subjects that all of them have.

    Parameters
    ----------
    profiles
        Profile tables by profile set; of each the columns subject, id and text are used. Rows that were filled in from
        the template profiles (column usage) are left out.
    prompts
        What the facts of a profile are held to, by profile set, then subject and id; see
        `spike_kit.profiles.prompts.prompt_texts`.

    Returns
    -------
    DataFrame
        profiles, subject, id, text, words, names (number of named facts), faithfulness (NaN without any). Words in
        lower case of all texts and prompts together decide what is no name at the start of a sentence.

    Raises
    ------
    DataError
        If a subject is unknown or repeated, no subject is common to all profile sets, or a prompt is missing.
    """
    texts = {name: _by_subject(name, frame) for name, frame in profiles.items()}
    shared = set.intersection(*(set(column.index) for column in texts.values())) if texts else set()
    common = sorted(shared, key=lambda pair: (SUBJECTS.index(pair[0]), pair[1]))
    if not common:
        raise DataError(f"no subject has a profile of each profile set ({some(texts)})", "compare fewer profile sets")
    for name in profiles:
        missing = [pair for pair in common if pair not in prompts.get(name, {})]
        if missing:
            raise DataError(
                f"no prompt of profile set {name} for {some(missing)}",
                "give the prompt of every profile that is compared",
            )
    compared = pd.concat({name: column.loc[common] for name, column in texts.items()}, names=["profiles"])
    frame = compared.reset_index()
    asked = [prompts[name][pair] for name in texts for pair in common]
    ordinary = lower_words(chain(asked, frame["text"]))
    checked = [checked_facts(*pair, ordinary) for pair in zip(frame["text"], asked, strict=True)]
    return frame.assign(
        words=[len(text.split()) for text in frame["text"]],
        names=[len(row) for row in checked],
        faithfulness=[sum(row.values()) / len(row) if row else math.nan for row in checked],
    )


def _by_subject(name: str, frame: pd.DataFrame) -> pd.Series:
    """Texts by subject and id."""
    unknown = sorted(set(frame["subject"]) - set(SUBJECTS))
    if unknown:
        raise DataError(f"profiles of {name}: unknown subject {some(unknown)}", f"known: {some(SUBJECTS)}")
    if "usage" in frame:
        frame = frame[~frame["usage"].str.contains(FILLED, regex=False)]
    column = frame.set_index(["subject", "id"])["text"]
    if not column.index.is_unique:
        raise DataError(f"profiles of {name}: more than one for {some(column.index[column.index.duplicated()])}")
    return column


def quality_table(
    profiles: Mapping[str, pd.DataFrame],
    prompts: Mapping[str, Mapping[tuple[str, int], str]],
    limits: Mapping[str, int],
    vectors: Mapping[str, ProfileVectors] | None = None,
) -> pd.DataFrame:
    """Compare profile sets on the same subjects.

    Parameters
    ----------
    profiles, prompts
        As for `measure_profiles`.
    limits
        Most words of a profile, by subject (item, auxiliary, user).
    vectors
        Profile vectors by profile set, if there are any.

    Returns
    -------
    DataFrame
        One row per subject and profile set: profiles, subject, n (profiles compared), words_mean, words_max, over_limit
        (share), faithfulness (mean over profiles with a named fact), with_names (number of those), mattr, distinct_2,
        near_duplicates (share), spread, nearest (cosine distances, NaN without vectors).

    Raises
    ------
    ConfigError
        If a limit is missing.
    DataError
        As for `measure_profiles`, or if vectors do not reach the highest id.
    """
    rows = []
    measured = measure_profiles(profiles, prompts)
    for subject, name in product(SUBJECTS, profiles):
        part = measured[(measured["subject"] == subject) & (measured["profiles"] == name)]
        if part.empty:
            continue
        limit = lookup(limits, subject, "limit of words for the subject")
        chosen = _rows(name, subject, part["id"], vectors or {})
        rows.append(
            {
                "profiles": name,
                "subject": subject,
                "n": len(part),
                "words_mean": part["words"].mean(),
                "words_max": part["words"].max(),
                "over_limit": (part["words"] > limit).mean(),
                "faithfulness": part["faithfulness"].mean(),
                "with_names": int((part["names"] > 0).sum()),
                "mattr": mattr(part["text"]),
                "distinct_2": distinct_2(part["text"]),
                "near_duplicates": near_duplicates(part["text"])[0],
                "spread": spread(chosen),
                "nearest": nearest(chosen),
            }
        )
    return pd.DataFrame(rows)


def _rows(name: str, subject: str, ids: pd.Series, vectors: Mapping[str, ProfileVectors]) -> Tensor:
    """Vectors ``[n, d_t]`` of some subjects of a profile set; none without vectors."""
    if name not in vectors:
        return torch.empty(0, 1)
    table = vectors[name].user if subject == "user" else vectors[name].entity
    if ids.max() >= len(table):
        raise DataError(f"vectors of {name} have {len(table)} rows, but there is a profile of {subject} {ids.max()}")
    return table.index_select(0, torch.tensor(ids.tolist(), device=table.device))
