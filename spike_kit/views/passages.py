"""Passages of two profiles that share names or telling words, for reading and as safe HTML."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection
from functools import cached_property

import pandas as pd

from spike_kit.data.dataset import Dataset
from spike_kit.profiles.faithfulness import comparable, named_facts
from spike_kit.views.safe import html_text

COMMON_WORD, COMMON_NAME = 0.1, 0.5
"""A word, or a name, in more than this share of all profiles says nothing about one of them."""

_PASSAGE = re.compile(r"(?<=[.!?;])(?<!\b[A-Z]\.)\s+")
_SHORTEST_WORD = 4

MARK = '<mark style="background: rgba(255, 190, 0, 0.35); color: inherit">'
"""Begin of a mark, easy on the eyes on white and on black."""


class Passages:
    """Profiles of one set, cut into sentences and clauses.

    Profiles are made from triples and train interactions only, so what is shared gives no held-out item away (an
    imported profile set may be `possibly_leaky`, see `Dataset.provenance`).

    Parameters
    ----------
    data
        The study.
    profiles
        Name of the profile set.
    """

    def __init__(self, data: Dataset, profiles: str) -> None:
        table = data.profiles(profiles)
        self.texts = dict(zip(zip(table["subject"], table["id"], strict=True), table["text"], strict=True))

    @cached_property
    def _keys(self) -> dict[tuple[str, int], str]:
        """Every profile as it is compared: folded words with single spaces around them."""
        return {who: comparable(text) for who, text in self.texts.items()}

    @cached_property
    def _seen(self) -> Counter[str]:
        """In how many profiles each word occurs."""
        return Counter(word for key in self._keys.values() for word in set(key.split()))

    def _share(self, phrase: str) -> float:
        """Share of the profiles that hold a phrase."""
        n = sum(phrase in key for key in self._keys.values()) if " " in phrase.strip() else self._seen[phrase.strip()]
        return n / len(self._keys)

    def phrases(self, one: tuple[str, int], other: tuple[str, int]) -> dict[str, float]:
        """Names and telling words that two profiles share, with the share of all profiles that hold them.

        A word inside a longer name does not count: two first names alike say nothing.

        Parameters
        ----------
        one, other
            Subject (``user``, ``item``, ``auxiliary``) and id.
        """
        keys = [self._keys.get(who, "") for who in (one, other)]
        names = {comparable(name) for who in (one, other) for name in named_facts(self.texts.get(who, ""))}
        shared = {name: self._share(name) for name in names if name.strip() and all(name in key for key in keys)}
        found = {
            name.strip(): share
            for name, share in shared.items()
            if share <= COMMON_NAME and not name.replace(" ", "").isdigit()
        }
        inside = {word for name in names if " " in name.strip() for word in name.split()}
        words = set(keys[0].split()) & set(keys[1].split()) - inside
        for word in words:
            if len(word) >= _SHORTEST_WORD and word.isalpha() and (share := self._share(word)) <= COMMON_WORD:
                found[word] = share
        return dict(sorted(found.items(), key=lambda pair: (pair[1], pair[0])))

    def shared(self, one: tuple[str, int], other: tuple[str, int]) -> pd.DataFrame:
        """Passages of two profiles that share a phrase, the most telling first.

        A shared phrase is as telling as the logarithm of one over the share of profiles that hold it.

        Returns
        -------
        DataFrame
            shared (phrases, the rarest first), telling (their sum), ``one`` and ``other`` (the passages).
        """
        phrases = self.phrases(one, other)
        ours, theirs = (
            [(passage, comparable(passage)) for passage in _PASSAGE.split(self.texts.get(who, ""))]
            for who in (one, other)
        )
        rows = []
        for passage, key in ours:
            here = [phrase for phrase in phrases if f" {phrase} " in key]
            for opposite, other_key in theirs:
                common = [phrase for phrase in here if f" {phrase} " in other_key]
                if common:
                    telling = sum(-math.log(phrases[phrase]) for phrase in common)
                    rows.append({"shared": common, "telling": telling, "one": passage, "other": opposite})
        frame = pd.DataFrame(rows, columns=["shared", "telling", "one", "other"])
        return frame.sort_values("telling", ascending=False, kind="stable").reset_index(drop=True)


def marked(text: str, phrases: Collection[str]) -> str:
    """HTML of a text in which some phrases (words folded as in `comparable`, single spaces) are marked.

    Everything else is escaped.
    """
    pieces = re.split(r"(\w+)", text)
    folded = [comparable(piece).strip() if number % 2 else "" for number, piece in enumerate(pieces)]
    places = [number for number, piece in enumerate(folded) if piece]
    words = [folded[number] for number in places]
    chosen: set[int] = set()
    for phrase in phrases:
        parts = phrase.split()
        for first in range(len(words) - len(parts) + 1):
            if parts and words[first : first + len(parts)] == parts:
                chosen |= set(range(places[first], places[first + len(parts) - 1] + 1))
    html, begin = "", 0
    while begin < len(pieces):
        end = begin + 1
        while end < len(pieces) and (end in chosen) == (begin in chosen):
            end += 1
        run = html_text("".join(pieces[begin:end]))
        html += f"{MARK}{run}</mark>" if begin in chosen else run
        begin = end
    return html
