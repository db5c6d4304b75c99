"""Quality of profile texts, measured without any LLM: faithfulness, length, diversity, near-duplicates, spread."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain, product

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from spike_kit.data.study import SUBJECTS
from spike_kit.data.vectors import ProfileVectors
from spike_kit.errors import DataError, lookup, some
from spike_kit.seeds import numpy_generator

CHUNK_ENTRIES = 8_000_000
"""Numbers held in memory at once, where a measure works in chunks."""
BANDS, BAND_ROWS = 25, 5
"""MinHash: bands, and hash values per band; a pair with Jaccard similarity 0.8 is missed with probability 5e-5."""
BUCKET_WINDOW = 16
"""Texts of one bucket that each text is compared with: those that follow it in the order of their hash values."""

_WORD = re.compile(r"[^\W_]+(?:['’\-][^\W_]+)*")
_QUOTES = "|".join(f"{a}[^{a}{b}\n]{{1,120}}[{b}]" for a, b in ("“”", "„“", "«»", "「」", "『』", "《》", '""'))
_QUOTED = re.compile(rf"{_QUOTES}|(?<!\w)['‘](?:[^'‘’\n]|(?<=\w)['’](?=\w)){{1,120}}['’](?!\w)")
_BETWEEN = re.compile(r"[\W_]+")
_NUMBER = re.compile(r"\d{3,}s?")
_DECADE = re.compile(r"(\d{3})0s")
_TITLE = re.compile(r"(.*?)\s*(?:\((\d{4})\))?")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_POSSESSIVE = re.compile(r"['’]s\b")
_OPENS = re.compile(r"[.!?…:•*#(\[—\n]")
_JOINT = re.compile(r"[^\S\n]+|[^\S\n]*&[^\S\n]*")
_AFTER_INITIAL = re.compile(r"\.[^\S\n]*")


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_ARTICLES = _set("a an the")
_TITLES = _set("Mr Mrs Ms Dr St Prof")
_CONNECTORS = _set(
    "of the de del della di da das do dos du des la le les el los las van von der den ten zu al bin ibn y e"
)
_ORDINARY = _set(
    """a about after all also although among an and another any are as at avoids based be because before being best
    both but by can common consider despite directed does each either enjoys especially even every expect fans
    favors favours features featuring few film films finally first for from given has have he her here hers him his
    how however i i'm if in instead into is it it's its just later less likes liked likely listeners loves made
    many me more most movie movies much my neither no none nor not of often on once one only or other others our
    out over overall perfect perhaps prefers produced rarely rather readers recommended released seeks set several
    she since so some sometimes starring still such tends than that the their them then there these they this those
    though through thus to together too under unlike until up us user users viewers was watched we were what when
    where whether which while who whose why will with within without written yet you your"""
)


def comparable(text: str) -> str:
    """Text as it is compared: no accents, no case, words parted and surrounded by single spaces."""
    text = _THOUSANDS.sub("", text)
    if not text.isascii():
        folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
        text = "".join(character for character in folded if not unicodedata.combining(character))
    return f" {_BETWEEN.sub(' ', text.casefold()).strip()} "


def lower_words(texts: Iterable[str]) -> set[str]:
    """Words that occur in lower case; one of them at the start of a sentence is not taken for a name."""
    found: set[str] = set()
    for text in texts:
        found.update(_WORD.findall(text))
    return {word for word in found if word == word.lower()}


def named_facts(text: str, ordinary: Collection[str] = frozenset()) -> list[str]:
    """Names and numbers a text states, each once, in order.

    Names are runs of capitalised words and quoted titles; numbers have three digits or more. A capitalised word
    that begins a sentence is no name if it is a common word or occurs in lower case in the text.

    Parameters
    ----------
    text
        Any text.
    ordinary
        Further words in lower case that are no names at the start of a sentence, see `lower_words`.
    """
    text = _THOUSANDS.sub("", unicodedata.normalize("NFC", text))
    facts: list[tuple[int, str]] = []
    rest, end = [], 0
    for found in _QUOTED.finditer(text):
        title, year = _title(found[0][1:-1])
        if title:
            facts += [(found.start(), title), *([(found.end(), year)] if year else [])]
            closing = found[0][-2] if found[0][-2] in ".!?" else "|"
            rest += [text[end : found.start()], "|" * (len(found[0]) - 1), closing]
            end = found.end()
    unquoted = "".join([*rest, text[end:]])
    facts += _runs_and_numbers(unquoted, (_ORDINARY, lower_words([unquoted]), ordinary))
    distinct: dict[str, str] = {}
    for _, fact in sorted(facts):
        distinct.setdefault(_key(fact), fact)
    return [fact for key, fact in distinct.items() if key.strip()]


def _title(quoted: str) -> tuple[str, str | None]:
    """Title and year inside quotation marks; no title if it begins or ends in a space, is long, or has no capital."""
    found = _TITLE.fullmatch(quoted.rstrip(".,;:!?"))
    title, year = found.groups() if found else ("", None)
    cased = title.lower() != title or title.upper() == title
    if title != title.strip() or len(title.split()) > 12 or not cased or not _WORD.search(title):
        return "", None
    return title, year


def _runs_and_numbers(text: str, ordinary: Sequence[Collection[str]]) -> Iterator[tuple[int, str]]:
    """Position and text of every run of capitalised words and of every number."""
    run: list[re.Match[str]] = []
    links: list[re.Match[str]] = []
    opens, end = False, 0
    for word in _WORD.finditer(text):
        gap = text[end : word.start()]
        begins = end == 0 or (_OPENS.search(gap) is not None)
        end = word.end()
        low = word[0].lower()
        capital = low != word[0]
        if run and not _continues(gap, links[-1] if links else run[-1], low):
            yield from _name(text, run, opens, ordinary)
            run, links = [], []
        if capital:
            opens = begins if not run else opens
            run += [*links, word]
            links = []
            if _stem(word[0]) != len(word[0]):
                yield from _name(text, run, opens, ordinary)
                run = []
        elif run and low in _CONNECTORS and len(links) < 3:
            links.append(word)
        elif run and not links and low.isdigit() and len(low) < 3:
            run.append(word)
        else:
            yield from _name(text, run, opens, ordinary)
            run, links = [], []
            yield from ((word.start(), part) for part in low.split("-") if _NUMBER.fullmatch(part))
    yield from _name(text, run, opens, ordinary)


def _continues(gap: str, last: re.Match[str], low: str) -> bool:
    """Whether a word goes on with the run that ends in ``last``: after a space, ``&``, an initial or ``Mr.``."""
    if _JOINT.fullmatch(gap):
        return True
    initial = (len(last[0]) == 1 and last[0].isupper()) or last[0] in _TITLES
    return initial and low not in _ORDINARY and _AFTER_INITIAL.fullmatch(gap) is not None


def _name(
    text: str, run: list[re.Match[str]], opens: bool, ordinary: Sequence[Collection[str]]
) -> Iterator[tuple[int, str]]:
    """What is left of a run without an article or ordinary word at its start and ``I`` or ``'s`` at its end."""
    first = 0
    if opens and run:
        low = run[0][0].lower()
        first = int(_stem(run[0][0]) != len(run[0][0]) or any(low in words for words in ordinary))
    while first < len(run) and (run[first][0].lower() in _ARTICLES or run[first][0] == run[first][0].lower()):
        first += 1
    kept = run[first:]
    while kept and kept[-1][0] == "I":
        kept.pop()
    if all(word[0].lower() in _ORDINARY or len(word[0]) == 1 for word in kept):
        return
    name = text[kept[0].start() : kept[-1].start() + _stem(kept[-1][0])]
    yield kept[0].start(), name.removesuffix("'s").removesuffix("’s")


def _stem(word: str) -> int:
    """Length of a capitalised word without hyphenated parts in lower case: ``Oscar`` of ``Oscar-winning``."""
    parts = word.split("-")
    while len(parts) > 1 and parts[-1].islower():
        parts.pop()
    return len("-".join(parts))


def _key(name: str) -> str:
    """A name as it is compared, without a leading article: ``" godfather "``."""
    first, _, rest = comparable(name).strip().partition(" ")
    return f" {rest if rest and first in _ARTICLES else f'{first} {rest}'.strip()} "


def supported(name: str, prompt_key: str) -> bool:
    """Whether a named fact stands in a prompt, whole words only.

    A decade is supported by any of its years, ``Spielberg's Jaws`` by its two parts, and a name in a script
    without capitals (which has no spaces either) by any occurrence.

    Parameters
    ----------
    name
        One of `named_facts`.
    prompt_key
        The prompt, by `comparable`.
    """
    key = _key(name)
    if key in prompt_key:
        return bool(key.strip())
    decade = _DECADE.fullmatch(key.strip())
    if decade:
        return re.search(rf" {decade[1]}\d ", prompt_key) is not None
    if key.upper() == key and not key.strip().isdigit():
        return key.strip() in prompt_key
    parts = [part for part in _POSSESSIVE.split(name) if part.strip()]
    return _POSSESSIVE.search(name) is not None and all(supported(part, prompt_key) for part in parts)


def unsupported_facts(profile: str, prompt: str, ordinary: Collection[str] | None = None) -> list[str]:
    """Named facts of a profile that do not stand in its prompt; ``ordinary`` defaults to the prompt's lower words."""
    key = comparable(prompt)
    facts = named_facts(profile, lower_words([prompt]) if ordinary is None else ordinary)
    return [fact for fact in facts if not supported(fact, key)]


def faithfulness(profile: str, prompt: str, ordinary: Collection[str] | None = None) -> float:
    """Share of a profile's named facts that stand in its prompt; NaN without any named fact.

    It finds invented names, titles and years; it does not find names put into a wrong relation. Same arguments as
    `unsupported_facts`.
    """
    facts = named_facts(profile, lower_words([prompt]) if ordinary is None else ordinary)
    key = comparable(prompt)
    return sum(supported(fact, key) for fact in facts) / len(facts) if facts else math.nan


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
    rows = [words for words in map(_words, texts) if words]
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

    It falls with the number of words, so compare sources on the same subjects and with similar lengths.
    """
    grams, _ = _ngrams([_words(text) for text in texts], 2)
    return len(np.unique(grams)) / len(grams) if len(grams) else math.nan


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _ngrams(rows: Sequence[Sequence[str]], size: int) -> tuple[np.ndarray, np.ndarray]:
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
    code, kept = pd.factorize(np.array([" ".join(_words(text)) for text in texts], dtype=object))
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
    grams, owner = _ngrams(rows, 3)
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


def measure_profiles(profiles: Mapping[str, pd.DataFrame], prompts: Mapping[tuple[str, int], str]) -> pd.DataFrame:
    """Measure each profile of several sources, on the subjects that all of them have.

    Parameters
    ----------
    profiles
        Profile tables by source; of each the columns subject, id and text are used.
    prompts
        Text of the prompt (the facts that were given) by subject and id.

    Returns
    -------
    DataFrame
        source, subject, id, text, words, names (number of named facts), faithfulness (NaN without any). Words in
        lower case of all texts and prompts together decide what is no name at the start of a sentence.

    Raises
    ------
    DataError
        If a subject is unknown or repeated, no subject is common to all sources, or a prompt is missing.
    """
    texts = {source: _by_subject(source, frame) for source, frame in profiles.items()}
    shared = set.intersection(*(set(column.index) for column in texts.values())) if texts else set()
    common = sorted(shared, key=lambda pair: (SUBJECTS.index(pair[0]), pair[1]))
    if not common:
        raise DataError(f"no subject has a profile of each source ({some(texts)})", "compare fewer sources")
    missing = [pair for pair in common if pair not in prompts]
    if missing:
        raise DataError(f"no prompt for {some(missing)}", "give the prompt of every profile that is compared")
    chosen = {source: column.loc[common].tolist() for source, column in texts.items()}
    asked = [prompts[pair] for pair in common]
    ordinary = lower_words(chain(asked, *chosen.values()))
    parts = []
    for source, column in chosen.items():
        facts = [named_facts(text, ordinary) for text in column]
        good = [
            sum(supported(fact, key) for fact in row) for row, key in zip(facts, map(comparable, asked), strict=True)
        ]
        frame = pd.DataFrame(common, columns=["subject", "id"])
        names = np.array([len(row) for row in facts])
        shares = np.divide(good, names, out=np.full(len(names), math.nan), where=names > 0)
        parts.append(frame.assign(text=column, words=lengths(column), names=names, faithfulness=shares, source=source))
    order = ["source", "subject", "id", "text", "words", "names", "faithfulness"]
    return pd.concat(parts, ignore_index=True)[order]


def _by_subject(source: str, frame: pd.DataFrame) -> pd.Series:
    """Texts by subject and id."""
    unknown = sorted(set(frame["subject"]) - set(SUBJECTS))
    if unknown:
        raise DataError(f"profiles of {source}: unknown subject {some(unknown)}", f"known: {some(SUBJECTS)}")
    column = frame.set_index(["subject", "id"])["text"]
    if not column.index.is_unique:
        raise DataError(f"profiles of {source}: more than one for {some(column.index[column.index.duplicated()])}")
    return column


def quality_table(
    profiles: Mapping[str, pd.DataFrame],
    prompts: Mapping[tuple[str, int], str],
    limits: Mapping[str, int],
    vectors: Mapping[str, ProfileVectors] | None = None,
) -> pd.DataFrame:
    """Compare sources of profiles on the same subjects.

    Parameters
    ----------
    profiles, prompts
        As for `measure_profiles`.
    limits
        Most words of a profile, by subject (item, auxiliary, user).
    vectors
        Profile vectors by source, if there are any.

    Returns
    -------
    DataFrame
        One row per subject and source: source, subject, n (profiles compared), words_mean, words_max, over_limit
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
    for subject, source in product(SUBJECTS, profiles):
        part = measured[(measured["subject"] == subject) & (measured["source"] == source)]
        if part.empty:
            continue
        limit = lookup(limits, subject, "limit of words for the subject")
        chosen = _rows(source, subject, part["id"], vectors or {})
        rows.append(
            {
                "source": source,
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


def _rows(source: str, subject: str, ids: pd.Series, vectors: Mapping[str, ProfileVectors]) -> Tensor:
    """Vectors ``[n, d_t]`` of some subjects of a source; none without vectors."""
    if source not in vectors:
        return torch.empty(0, 1)
    table = vectors[source].user if subject == "user" else vectors[source].entity
    if ids.max() >= len(table):
        raise DataError(f"vectors of {source} have {len(table)} rows, but there is a profile of {subject} {ids.max()}")
    return table.index_select(0, torch.tensor(ids.tolist(), device=table.device))
