"""Quality of profile texts, measured without any LLM: faithfulness, length, diversity, near-duplicates, spread.

Faithfulness asks which names and numbers a profile states, and which of them its prompt has.
"""

import math
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain, dropwhile, product

import numpy as np
import pandas as pd
from scipy.sparse import csr_array
from torch import Tensor
from torch.nn import functional

from spike_kit.base.errors import DataError, some
from spike_kit.data.dataset import FILLED, SUBJECTS
from spike_kit.data.vectors import ProfileVectors

CHUNK_ENTRIES = 8_000_000
"""Shingles that are compared at a time; keeps memory flat on large data sets."""
BUCKET_WINDOW = 16
"""Texts with the same rare shingle that each text is compared with: those that follow it in an order of likeness."""
Prompts = Mapping[str, Mapping[tuple[str, int], str]]
"""What profiles are held to, by profile set, then subject and id: see `spike_kit.profiles.prompts.prompt_texts`."""
WORD = re.compile(r"[^\W_]+(?:['’\-][^\W_]+)*")
"""A word, with apostrophes and hyphens inside."""

_QUOTES = "|".join(f"{a}[^{a}{b}\n]{{1,120}}[{b}]" for a, b in ("“”", "„“", "«»", "「」", "『』", "《》", '""'))
_QUOTED = re.compile(rf"{_QUOTES}|(?<!\w)['‘](?:[^'‘’\n]|(?<=\w)['’](?=\w)){{1,120}}['’](?!\w)")
_BETWEEN = re.compile(r"[\W_]+")
_NUMBER = re.compile(r"\d{3,}s?")
_DECADE = re.compile(r"(\d{3})0s")
_TITLE = re.compile(r"(.*?)\s*(?:\((\d{4})\))?")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_TRADE_MARK = re.compile(r"[™℠®©℗]+(\w?)")
_REST = re.compile(r"\band \d+ more\b")
_POSSESSIVE = re.compile(r"['’]s\b")
_OPENS = re.compile(r"[.!?…:•*#(\[—\n]")
_JOINT = re.compile(r"[^\S\n]+|[^\S\n]*&[^\S\n]*")
_AFTER_INITIAL = re.compile(r"\.[^\S\n]*")
_RUN = re.compile(r"[+|](?:E|C(?:\+n|(?:\+l){0,3}\+C)*(?:(?:\+l){0,3}\+E)?)")
"""Words that may be a name, by their kinds: capitalised (C), the same with an end in lower case, which ends the run
(E), at most three connectors between (l), a short number (n); others (o) are in no run."""


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
    how however i i'm if in instead into is it it's its just later less likes liked likely listeners lovers loves made
    many me more most movie movies much my neither no none nor not of often on once one only or other others our
    out over overall perfect perhaps prefers produced rarely rather readers recommended released seeks set several
    she since so some sometimes starring still such tends than that the their them then there these they this those
    though through thus to together too under unlike until up us user users viewers was watched we were what when
    where whether which while who whose why will with within without written yet you your"""
)


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


def ngrams(texts: Sequence[str] | pd.Series, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Word n-grams as dense ids ``[m]``, and the text each comes from ``[m]``, ascending; none crosses texts."""
    words = [words_of(text) for text in texts]
    rows = [[" ".join(row[start : start + size]) for start in range(len(row) - size + 1)] for row in words]
    owner = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    return pd.factorize(np.array(list(chain.from_iterable(rows)), dtype=object))[0], owner


def near_duplicates(texts: Sequence[str] | pd.Series, threshold: float = 0.8) -> np.ndarray:
    """Whether each of ``n`` texts has another one with much the same 3-word shingles, ``[n]`` bool.

    Two texts are near-duplicates if the Jaccard similarity of their shingles reaches the threshold. Such texts share
    one of their rarest shingles (prefix filtering: Bayardo, Ma, Srikant 2007), so only these are looked up. Texts with
    the same words are duplicates whatever their length.
    """
    code, kept = pd.factorize(np.array([" ".join(words_of(text)) for text in texts], dtype=object))
    near = np.bincount(code) > 1
    grams, owner = ngrams(kept.tolist(), 3)
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
    found: list[np.ndarray] = [np.empty((2, 0), dtype=np.int64)]
    for step in range(1, BUCKET_WINDOW + 1):
        same = np.flatnonzero(gram[rare[:-step]] == gram[rare[step:]])
        found.append(np.stack([row[rare[same]], row[rare[same + step]]]))
    a, b = np.unique(np.sort(np.concatenate(found, axis=1), axis=0), axis=1)
    return a, b


def measure_profiles(profiles: Mapping[str, pd.DataFrame], prompts: Prompts) -> pd.DataFrame:
    """Measure each profile of several profile sets, on the subjects that all of them have.

    Parameters
    ----------
    profiles
        Profile tables by profile set; of each the columns subject, id and text are used. Rows that were filled in from
        the template profiles (column usage) are left out.
    prompts
        What the facts of each profile are held to.

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
    written = {name: frame[frame["usage"] != FILLED] for name, frame in profiles.items()}
    every = pd.concat(written, names=["profiles"]).reset_index("profiles")[["profiles", "subject", "id", "text"]]
    frame = every[every.groupby(["subject", "id"])["text"].transform("size") == len(profiles)].reset_index(drop=True)
    if frame.empty:
        raise DataError(
            f"no subject has a profile of each profile set ({some(profiles)})", "compare fewer profile sets"
        )
    rows = zip(frame["profiles"], frame["subject"], frame["id"].tolist(), strict=True)
    asked = [prompts[name][subject, number] for name, subject, number in rows]
    ordinary = lower_words(chain(asked, frame["text"]))
    checked = [checked_facts(*pair, ordinary) for pair in zip(frame["text"], asked, strict=True)]
    return frame.assign(
        words=[len(text.split()) for text in frame["text"]],
        names=[len(facts) for facts in checked],
        faithfulness=[faithfulness(facts) for facts in checked],
    )


def quality_table(
    profiles: Mapping[str, pd.DataFrame],
    prompts: Prompts,
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
        near_duplicates (share), spread (cosine distance, NaN without vectors).

    Raises
    ------
    DataError
        As for `measure_profiles`.
    """
    measured = measure_profiles(profiles, prompts)
    measured["over_limit"] = measured["words"] > measured["subject"].map(limits)
    table = measured.groupby(["profiles", "subject"]).agg(
        n=("id", "size"),
        words_mean=("words", "mean"),
        words_max=("words", "max"),
        over_limit=("over_limit", "mean"),
        faithfulness=("faithfulness", "mean"),
        with_names=("faithfulness", "count"),
        distinct_2=("text", distinct_2),
        near_duplicates=("text", lambda texts: near_duplicates(texts).mean()),
    )
    table["spread"] = math.nan
    for (name, given), subject in product((vectors or {}).items(), SUBJECTS):
        ids = measured.loc[(measured["profiles"] == name) & (measured["subject"] == subject), "id"].tolist()
        if ids:
            table.loc[(name, subject), "spread"] = spread((given.user if subject == "user" else given.entity)[ids])
    order = [(name, subject) for subject, name in product(SUBJECTS, profiles) if (name, subject) in table.index]
    return table.reindex(order).reset_index()


def one_spelling(text: str) -> str:
    """Text with one way to write a name: no ligatures, wide letters, trade marks, lone accents, commas in numbers."""
    if not text.isascii():
        unmarked = _TRADE_MARK.sub(lambda mark: f" {mark[1]}" if mark[1] else "", text)
        text = _without_accents(unicodedata.normalize("NFKC", unmarked))
    return _THOUSANDS.sub("", text)


def _without_accents(text: str) -> str:
    """Text without the accents that are characters of their own."""
    for accent in filter(unicodedata.combining, set(text)):
        text = text.replace(accent, "")
    return text


def comparable(text: str) -> str:
    """Text as it is compared: no accents, no case, words parted and surrounded by single spaces."""
    text = one_spelling(text)
    if not text.isascii():
        text = _without_accents(unicodedata.normalize("NFKD", text.casefold()))
    return f" {_BETWEEN.sub(' ', text.casefold()).strip()} "


def lower_words(texts: Iterable[str]) -> set[str]:
    """Words that occur in lower case; one of them at the start of a sentence is not taken for a name."""
    found = set(chain.from_iterable(WORD.findall(one_spelling(text)) for text in texts))
    return {word for word in found if word == word.lower()}


def named_facts(text: str, ordinary: Collection[str] = frozenset()) -> list[str]:
    """Names and numbers a text states, each once, in order, as `one_spelling` writes them.

    Names are runs of capitalised words and quoted titles; numbers have three digits or more, and do not count what a
    list leaves out ("and 120 more"). A capitalised word that begins a sentence is no name if it is a common word or
    occurs in lower case in the text.

    Parameters
    ----------
    text
        Any text.
    ordinary
        Further words in lower case that are no names at the start of a sentence, see `lower_words`.
    """
    text = _REST.sub("and more", one_spelling(text))
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
    if title != title.strip() or len(title.split()) > 12 or not cased or not WORD.search(title):
        return "", None
    return title, year


def _runs_and_numbers(text: str, ordinary: Sequence[Collection[str]]) -> Iterator[tuple[int, str]]:
    """Position and text of every run of capitalised words and of every number."""
    words = list(WORD.finditer(text))
    gaps = [text[end : word.start()] for end, word in zip([0, *(word.end() for word in words)], words, strict=False)]
    kinds = "".join(map(_kind, gaps, [None, *words], words))
    for run in _RUN.finditer(kinds):
        first, last = run.start() // 2, run.end() // 2
        opens = first == 0 or _OPENS.search(gaps[first]) is not None
        yield from _name(text, words[first:last], opens, ordinary)
    for word in words:
        if word[0] == word[0].lower():
            yield from ((word.start(), part) for part in word[0].split("-") if _NUMBER.fullmatch(part))


def _kind(gap: str, before: re.Match[str] | None, word: re.Match[str]) -> str:
    """Two letters for a word: whether it continues what is before it, and its place in a run; see `_RUN`.

    It continues after a space, ``&``, an initial or ``Mr.``.
    """
    low, whole = word[0].lower(), _stem(word[0]) == len(word[0])
    initial = before is not None and ((len(before[0]) == 1 and before[0].isupper()) or before[0] in _TITLES)
    abbreviated = initial and low not in _ORDINARY and _AFTER_INITIAL.fullmatch(gap) is not None
    continues = "+" if abbreviated or _JOINT.fullmatch(gap) else "|"
    if low != word[0]:
        return continues + ("C" if whole else "E")
    return continues + ("l" if low in _CONNECTORS else "n" if low.isdigit() and len(low) < 3 else "o")


def _name(
    text: str, run: Sequence[re.Match[str]], opens: bool, ordinary: Sequence[Collection[str]]
) -> Iterator[tuple[int, str]]:
    """What is left of a run without an article or ordinary word at its start and ``I`` or ``'s`` at its end."""
    low = run[0][0].lower()
    begins_plainly = opens and (_stem(run[0][0]) != len(run[0][0]) or any(low in words for words in ordinary))
    kept = list(
        dropwhile(lambda word: word[0] == word[0].lower() or word[0].lower() in _ARTICLES, run[begins_plainly:])
    )
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
    if decade := _DECADE.fullmatch(key.strip()):
        return re.search(rf" {decade[1]}\d ", prompt_key) is not None
    if key.upper() == key and not key.strip().isdigit():
        return key.strip() in prompt_key
    parts = [part for part in _POSSESSIVE.split(name) if part.strip()]
    return _POSSESSIVE.search(name) is not None and all(supported(part, prompt_key) for part in parts)


def checked_facts(profile: str, prompt: str, ordinary: Collection[str] | None = None) -> dict[str, bool]:
    """Named facts of a profile, and whether each stands in its prompt.

    ``ordinary``: words in lower case that are no names at the start of a sentence; default: those of the prompt.
    """
    key, known = comparable(prompt), lower_words([prompt]) if ordinary is None else ordinary
    return {fact: supported(fact, key) for fact in named_facts(profile, known)}


def faithfulness(facts: Mapping[str, bool]) -> float:
    """Share of a profile's named facts (`checked_facts`) that stand in its prompt; NaN without any named fact.

    It finds invented names, titles and years; it does not find names put into a wrong relation.
    """
    return sum(facts.values()) / len(facts) if facts else math.nan
