"""Quality of profile texts, measured without any LLM: faithfulness, length, diversity, near-duplicates, spread."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain, product

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from spike_kit.base.errors import DataError, lookup, some
from spike_kit.data.dataset import FILLED, SUBJECTS
from spike_kit.data.vectors import ProfileVectors
from spike_kit.profiles.duplicates import CHUNK_ENTRIES, near_duplicates, ngrams, words_of
from spike_kit.profiles.faithfulness import comparable, lower_words, named_facts, supported


def lengths(texts: Sequence[str] | pd.Series) -> np.ndarray:
    """Words of each text (parted by white space), ``[n]`` int64."""
    return np.array([len(text.split()) for text in texts], dtype=np.int64)


def over_limit(texts: Sequence[str] | pd.Series, limit: int) -> float:
    """Share of texts with more words than ``limit``; NaN without any text."""
    return float((lengths(texts) > limit).mean()) if len(texts) else math.nan


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
    chosen = {name: column.loc[common].tolist() for name, column in texts.items()}
    asked = {name: [prompts[name][pair] for pair in common] for name in chosen}
    ordinary = lower_words(chain(*asked.values(), *chosen.values()))
    parts = []
    for name, column in chosen.items():
        facts = [named_facts(text, ordinary) for text in column]
        keys = map(comparable, asked[name])
        good = [sum(supported(fact, key) for fact in row) for row, key in zip(facts, keys, strict=True)]
        frame = pd.DataFrame(common, columns=["subject", "id"])
        names = np.array([len(row) for row in facts])
        shares = np.divide(good, names, out=np.full(len(names), math.nan), where=names > 0)
        parts.append(frame.assign(text=column, words=lengths(column), names=names, faithfulness=shares, profiles=name))
    order = ["profiles", "subject", "id", "text", "words", "names", "faithfulness"]
    return pd.concat(parts, ignore_index=True)[order]


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
                "over_limit": over_limit(part["text"], limit),
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
