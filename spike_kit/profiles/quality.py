"""Quality of profile texts, measured without any LLM: faithfulness, length, diversity, near-duplicates, spread."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain

import numpy as np
import pandas as pd
import torch
from scipy.sparse import csr_array
from torch import Tensor
from torch.nn import functional

from spike_kit.base.errors import DataError, require, some
from spike_kit.data.dataset import FILLED, SUBJECTS
from spike_kit.data.vectors import ProfileVectors
from spike_kit.profiles.faithfulness import WORD, checked_facts, lower_words

CHUNK_ENTRIES = 8_000_000
"""Shingles that are compared at a time; keeps memory flat on large data sets."""
BUCKET_WINDOW = 16
"""Texts with the same rare shingle that each text is compared with: those that follow it in an order of likeness."""


def words_of(text: str) -> list[str]:
    """Words of a text without case."""
    return WORD.findall(text.casefold())


def distinct_2(texts: Sequence[str] | pd.Series) -> float:
    """Distinct word pairs / word pairs over all texts (Li et al. 2016); NaN without any pair.

    It falls with the number of words, so compare profile sets on the same subjects and with similar lengths.
    """
    grams, _ = ngrams(texts, 2)
    return len(np.unique(grams)) / len(grams) if len(grams) else math.nan


def spread(rows: Tensor) -> float:
    """Mean cosine distance over all pairs of different rows of ``[n, d]``, exact, in O(n d); NaN below two rows."""
    n = len(rows)
    unit = functional.normalize(rows.double())
    return 1 - float((unit.sum(0).square().sum() - unit.square().sum()) / (n * (n - 1))) if n > 1 else math.nan


def nearest(rows: Tensor) -> float:
    """Mean cosine distance of each row of ``[n, d]`` to the nearest other one; NaN below two rows."""
    if len(rows) < 2:
        return math.nan
    neighbours = require("sklearn.neighbors", "text").NearestNeighbors(n_neighbors=1, metric="cosine")
    return float(neighbours.fit(rows.cpu().numpy()).kneighbors()[0].mean())


def ngrams(texts: Sequence[str] | pd.Series, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Word n-grams as dense ids ``[m]``, and the text each comes from ``[m]``, ascending; none crosses texts."""
    rows = [words_of(text) for text in texts]
    owner = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    words, vocabulary = pd.factorize(np.array(list(chain.from_iterable(rows)), dtype=object))
    grams = words
    for step in range(1, size):
        grams = pd.factorize(grams[:-1] * len(vocabulary) + words[step:])[0]
    inside = owner[: len(grams)] == owner[len(owner) - len(grams) :]
    return grams[inside], owner[: len(grams)][inside]


def near_duplicates(texts: Sequence[str] | pd.Series, threshold: float = 0.8) -> np.ndarray:
    """Whether each of ``n`` texts has another one with much the same 3-word shingles, ``[n]`` bool.

    Two texts are near-duplicates if the Jaccard similarity of their shingles reaches the threshold. Such texts share
    one of their rarest shingles (prefix filtering: Bayardo, Ma, Srikant 2007), so only these are looked up. Texts with
    the same words are duplicates whatever their length.
    """
    code, kept = pd.factorize(np.array([" ".join(words_of(text)) for text in texts], dtype=object))
    near = np.bincount(code) > 1
    grams, owner = ngrams(kept, 3)
    holds = csr_array((np.ones(len(grams)), (owner, grams)), shape=(len(kept), int(grams.max(initial=0)) + 1))
    holds.data[:] = 1
    sizes, (a, b) = np.diff(holds.indptr), _candidates(holds, threshold)
    for part in np.array_split(np.arange(len(a)), 1 + sizes[a].sum() // CHUNK_ENTRIES):
        first, second = a[part], b[part]
        shared = holds[first].multiply(holds[second]).sum(axis=1)
        close = shared / (sizes[first] + sizes[second] - shared) >= threshold
        near[first[close]] = near[second[close]] = True
    return near[code]


def _candidates(holds: csr_array, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of rows (first < second) that share one of the shingles without which they cannot be near-duplicates.

    These are the rarest of each row: so many that those left out are fewer than the ones to be shared.
    """
    row, gram = holds.nonzero()
    order = np.lexsort((gram, np.bincount(gram, minlength=1)[gram], row))
    row, gram = row[order], gram[order]
    place = np.arange(len(row)) - holds.indptr[row]
    following = np.append(gram[1:], -1)
    rare = np.flatnonzero(place <= (1 - threshold) * np.diff(holds.indptr)[row] + 1e-9)
    rare = rare[np.lexsort((following[rare], gram[rare]))]
    found = [np.empty((2, 0), dtype=np.int64)]
    for step in range(1, BUCKET_WINDOW + 1):
        same = np.flatnonzero(gram[rare[:-step]] == gram[rare[step:]])
        found.append(np.stack([row[rare[same]], row[rare[same + step]]]))
    a, b = np.unique(np.sort(np.concatenate(found, axis=1), axis=0), axis=1)
    return a, b


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
        If no subject is common to all profile sets.
    """
    texts = {name: _written(frame) for name, frame in profiles.items()}
    shared = set.intersection(*(set(column.index) for column in texts.values())) if texts else set()
    common = sorted(shared, key=lambda pair: (SUBJECTS.index(pair[0]), pair[1]))
    if not common:
        raise DataError(f"no subject has a profile of each profile set ({some(texts)})", "compare fewer profile sets")
    frame = pd.concat({name: column.loc[common] for name, column in texts.items()}, names=["profiles"]).reset_index()
    asked = [prompts[name][pair] for name in texts for pair in common]
    ordinary = lower_words(chain(asked, frame["text"]))
    checked = [checked_facts(*pair, ordinary) for pair in zip(frame["text"], asked, strict=True)]
    return frame.assign(
        words=[len(text.split()) for text in frame["text"]],
        names=[len(row) for row in checked],
        faithfulness=[sum(row.values()) / len(row) if row else math.nan for row in checked],
    )


def _written(frame: pd.DataFrame) -> pd.Series:
    """Texts by subject and id, without those that were filled in."""
    return frame[frame["usage"] != FILLED].set_index(["subject", "id"])["text"]


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
        (share), faithfulness (mean over profiles with a named fact), with_names (number of those), distinct_2,
        near_duplicates (share), spread, nearest (cosine distances, NaN without vectors).

    Raises
    ------
    DataError
        As for `measure_profiles`.
    """
    rows = []
    measured = measure_profiles(profiles, prompts)
    by_subject = measured.sort_values("subject", key=lambda column: column.map(SUBJECTS.index), kind="stable")
    for (subject, name), part in by_subject.groupby(["subject", "profiles"], sort=False):
        chosen = torch.empty(0, 1)
        if vectors and name in vectors:
            table = vectors[name].user if subject == "user" else vectors[name].entity
            chosen = table[part["id"].tolist()]
        rows.append(
            {
                "profiles": name,
                "subject": subject,
                "n": len(part),
                "words_mean": part["words"].mean(),
                "words_max": part["words"].max(),
                "over_limit": (part["words"] > limits[subject]).mean(),
                "faithfulness": part["faithfulness"].mean(),
                "with_names": int((part["names"] > 0).sum()),
                "distinct_2": distinct_2(part["text"]),
                "near_duplicates": near_duplicates(part["text"]).mean(),
                "spread": spread(chosen),
                "nearest": nearest(chosen),
            }
        )
    return pd.DataFrame(rows)
