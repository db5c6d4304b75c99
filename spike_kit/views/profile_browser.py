"""Profiles of one node: every profile set side by side, the prompt, the facts that were used, nearest neighbours.

Profiles and prompts hold triples and train interactions only, so nothing here gives a held-out item away (an imported
profile set may be `possibly_leaky`, see `Dataset.provenance`).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal

import numpy as np
import pandas as pd

from spike_kit.base.errors import DataError, some
from spike_kit.data.dataset import Dataset
from spike_kit.experiments.run_folder import Run
from spike_kit.profiles.prompts import EVERYTHING, PromptConfig, PromptWriter, prompt_writer_of, statements
from spike_kit.profiles.quality import comparable, faithfulness, named_facts, supported, unsupported_facts
from spike_kit.profiles.store import Store, answers_path
from spike_kit.views.safe import html_rows, html_table, html_text
from spike_kit.views.search import Nodes
from spike_kit.views.widgets import Panel

COMMON_WORD, COMMON_NAME = 0.1, 0.5
"""A word, or a name, in more than this share of all profiles says nothing about one of them."""

MARK = '<mark style="background: rgba(255, 190, 0, 0.35); color: inherit">'
"""Begin of a mark, easy on the eyes on white and on black."""

MOST_FACTS = 60
"""Statements that a panel shows; those that the profile mentions first."""

Origin = Literal["asked", "written again", "never asked"]
"""Of a prompt: the model was asked exactly this; it was asked something else, that is lost; no model was asked."""

_SAID: dict[Origin, str] = {
    "asked": "The model was asked exactly this (its hash is that of the stored question).",
    "written again": "The model was asked something else, which is not stored here: the data set or the kit's wording "
    "has changed since. This is the prompt as it would be written today.",
    "never asked": "No language model was asked for this profile set. This is what one would be asked.",
}
_PASSAGE = re.compile(r"(?<=[.!?;])(?<!\b[A-Z]\.)\s+")
_SHORTEST_WORD = 4
_SHORTEST_NAME = 4
"""Names with fewer characters are no sign that a profile mentions a fact."""
_KEPT = 64
"""Prompts that are remembered."""
_CARD = "flex: 1 1 18em; border-left: 3px solid var(--jp-border-color1, #888888); padding: 0 0.8em"
_PROMPT = "white-space: pre-wrap; line-height: 1.35; max-height: 28em; overflow-y: auto"


@dataclass(frozen=True)
class Asked:
    """The prompt of a profile.

    Attributes
    ----------
    text
        Both messages as they are sent.
    data
        The lines of data inside, as they are today; of what no model was asked, all that a prompt could hold.
    origin
        Whether this is what the model was asked.
    """

    text: str
    data: str
    origin: Origin


class ProfileBrowser:
    """Everything about the profiles of one node, from all profile sets of a data set.

    Parameters
    ----------
    data
        The data set.
    profile_sets
        Profile sets that are shown; default: all.
    spaces
        Vectors of all nodes by the name of the space, ``[U + E, d]``, users first, to find neighbours in; see
        `spike_kit.views.embedding_map.node_spaces`.
    node
        The node to begin with; default: the first item.

    Attributes
    ----------
    node
        The node whose profiles are shown.

    Raises
    ------
    DataError
        If there is no such node or profile set, or a space has another number of rows.
    """

    def __init__(
        self,
        data: Dataset,
        profile_sets: Sequence[str] | None = None,
        *,
        spaces: Mapping[str, np.ndarray] | None = None,
        node: int | None = None,
    ) -> None:
        self.data, self.nodes = data, Nodes(data)
        known = data.profile_sets()
        self.profile_sets = list(known if profile_sets is None else profile_sets)
        if missing := [name for name in self.profile_sets if name not in known]:
            raise DataError(f"{data.name} has no profile set {missing[0]!r}", f"it has {some(known)}")
        if not self.profile_sets:
            raise DataError(f"{data.name} has no profiles", f"write them with: spike-kit profile {data.name}")
        self.spaces = {name: _unit(rows) for name, rows in (spaces or {}).items()}
        for name, rows in self.spaces.items():
            if len(rows) != self.nodes.n_nodes:
                raise DataError(f"{name} has {len(rows)} rows, but {data.name} has {self.nodes.n_nodes} nodes")
        self._prompt = lru_cache(_KEPT)(self._prompt_of)
        self.node = 0
        self.choose(self.nodes.n_users if node is None else node)

    @classmethod
    def of(cls, run: Run | Dataset, device: str = "auto") -> ProfileBrowser:
        """Begin with the most popular item of a data set; with a SPiKE run, neighbours in its text and final space."""
        from spike_kit.views.embedding_map import node_spaces

        data = run if isinstance(run, Dataset) else Dataset.open(run.config["dataset"])
        spaces = {} if isinstance(run, Dataset) else node_spaces(data, run, ("text", "final"), device)
        return cls(data, spaces=spaces, node=Nodes(data).popular_item)

    def choose(self, node: int) -> None:
        """Show another node."""
        self.nodes.subject(node)
        self.node = node

    @property
    def subject(self) -> tuple[str, int]:
        """Who the node is: ``user``, ``item`` or ``auxiliary``, and its id."""
        return self.nodes.subject(self.node)

    @cached_property
    def _tables(self) -> dict[str, pd.DataFrame]:
        return {name: self.data.profiles(name).set_index(["subject", "id"]) for name in self.profile_sets}

    @cached_property
    def _writers(self) -> dict[str, tuple[PromptWriter, dict[int, str]]]:
        return {name: prompt_writer_of(self.data, name, PromptConfig()) for name in self.profile_sets}

    @cached_property
    def _everything(self) -> PromptWriter:
        return PromptWriter(self.data, EVERYTHING)

    def text(self, profiles: str) -> str:
        """Profile of the node from a profile set; empty where that has nothing to say."""
        return str(self._row(profiles)["text"])

    def _row(self, profiles: str) -> Mapping[str, Any]:
        if profiles not in self._tables:
            raise DataError(f"{self.data.name} shows no profile set {profiles!r}", f"it shows {some(self._tables)}")
        row: Any = self._tables[profiles].loc[self.subject]
        return row

    @property
    def table(self) -> pd.DataFrame:
        """Profiles of the node side by side.

        Returns
        -------
        DataFrame
            profiles, model, words, faithfulness (share of its names and numbers that stand in the prompt's data; NaN
            without any), not in the prompt (those that do not), profile.
        """
        rows = []
        for name in self.profile_sets:
            text, told = self.text(name), self.prompt(name).data
            found = len(text.split()), faithfulness(text, told), unsupported_facts(text, told)
            rows.append((name, self._row(name)["model"], *found, text))
        columns = ["profiles", "model", "words", "faithfulness", "not in the prompt", "profile"]
        return pd.DataFrame(rows, columns=columns)

    def prompt(self, profiles: str) -> Asked:
        """The prompt of the node's profile.

        It is written again from the data set, with the settings that the profile set's file keeps, and compared by its
        hash with what the model was asked. Where they differ (the data set was built again, the kit's wording changed)
        the text of the question is looked up among the stored answers.
        """
        return self._prompt(profiles, self.node)

    def _prompt_of(self, profiles: str, node: int) -> Asked:
        subject, number = self.nodes.subject(node)
        writer, items = self._writers[profiles]
        prompt = writer.prompt(subject, number, lambda _: items)
        if not self.data.provenance(profiles).get("prompt_settings"):
            told = self._everything.prompt(subject, number, lambda _: items).data
            return Asked(prompt.text, told, "never asked")
        asked = str(self._tables[profiles].loc[(subject, number), "prompt_sha256"])
        if prompt.sha256 == asked:
            return Asked(prompt.text, prompt.data, "asked")
        stored, file = None, answers_path(self.data)
        if file.is_file():
            with Store(file) as store:
                stored = store.prompt(asked)
        return Asked(stored or prompt.text, prompt.data, "asked" if stored else "written again")

    def facts(self, profiles: str) -> pd.DataFrame:
        """What the prompt told the model, statement by statement, and what of it the profile mentions.

        A profile mentions a statement if they share a name or a number, or the name of something that the node is
        linked to; the node's own name does not count, it is everywhere.

        Returns
        -------
        DataFrame
            section (description, facts, reviews, ...), statement, mentions (the shared phrases, folded as in
            `spike_kit.profiles.quality.comparable`).
        """
        profile = self.text(profiles)
        key, own = comparable(profile), comparable(self.nodes.labels[self.node])
        names = [name for name in named_facts(profile) if comparable(name) not in own]
        linked = [name for name in self._linked_names() if name in key and name not in own]
        rows = []
        for section, statement in statements(self.prompt(profiles).data):
            told = comparable(statement)
            shared = [comparable(name).strip() for name in names if supported(name, told)]
            shared += [name.strip() for name in linked if name in told]
            rows.append((section, statement, _longest(shared)))
        return pd.DataFrame(rows, columns=["section", "statement", "mentions"])

    def _linked_names(self) -> list[str]:
        """Names, folded, of what the node is linked to by one or two edges, over train interactions and triples."""
        subject, number = self.subject
        train, triples = self.data.split("train"), self.data.triples
        is_user = subject == "user"
        near = set(train.loc[train["user"] == number, "item"]) if is_user else {number}
        for _ in range(1 if is_user else 2):
            ends = triples[triples["head"].isin(near) | triples["tail"].isin(near)]
            near |= {*ends["head"], *ends["tail"]}
        labels = self.data.entities["label"].to_numpy()
        names = {comparable(labels[entity]) for entity in near if is_user or entity != number}
        return sorted(name for name in names if len(name.strip()) >= _SHORTEST_NAME)

    def neighbours(self, space: str, k: int = 8) -> pd.DataFrame:
        """Nodes of the same subject that are nearest by cosine in a space: node, kind, label, cosine.

        Raises
        ------
        DataError
            If there is no such space.
        """
        if space not in self.spaces:
            raise DataError(f"there is no space {space!r}", f"known here: {some(list(self.spaces)) or 'none'}")
        begin, end = self.nodes.bounds[self.subject[0]]
        rows = self.spaces[space]
        cosines = rows[begin:end] @ rows[self.node]
        cosines[self.node - begin] = -np.inf
        best = np.argsort(-cosines, kind="stable")[: min(k, end - begin - 1)]
        return self.nodes.table((begin + best).tolist()).assign(cosine=cosines[best])

    def profile_html(self, profiles: str) -> str:
        """Profile for an HTML widget: what the prompt tells is marked; everything from outside is escaped."""
        return marked(self.text(profiles), {phrase for found in self.facts(profiles)["mentions"] for phrase in found})

    def facts_html(self, profiles: str) -> str:
        """`facts` for an HTML widget, what the profile mentions marked; at most `MOST_FACTS`, those mentioned first."""
        facts = self.facts(profiles)
        mentioned = facts["mentions"].map(bool)
        kept = facts.loc[facts.index[np.argsort(~mentioned, kind="stable")][:MOST_FACTS]].sort_index()
        kept["title"] = kept["section"].where(kept["section"] != kept["section"].shift(), "")
        rows = [
            (
                f"<b>{html_text(row['title'])}</b>",
                "✓" if row["mentions"] else "",
                marked(row["statement"], row["mentions"]),
            )
            for row in kept.to_dict("records")
        ]
        number = "" if len(kept) == len(facts) else f"; {len(kept)} of {len(facts)} statements shown"
        return html_text(f"marked: what the profile mentions by name{number}") + html_rows((), rows)

    def _card(self, row: Mapping[Hashable, Any]) -> str:
        """One profile: where it comes from, the text with what the prompt tells marked, and what it does not tell."""
        model = "" if row["model"] in ("", row["profiles"]) else f" by {row['model']}"
        head = f"<b>{html_text(row['profiles'])}</b>{html_text(model)}, {row['words']} words"
        text = self.profile_html(row["profiles"]) or "<i>has nothing to say</i>"
        invented = row["not in the prompt"]
        foot = f"<br><small>not in the prompt: {html_text(', '.join(invented))}</small>" if invented else ""
        return f'<div style="{_CARD}">{head}<br><span style="white-space: pre-wrap">{text}</span>{foot}</div>'

    def panel(self) -> Any:
        """A search box, every profile set side by side, the facts, the prompt and the nearest neighbours."""
        panel = Panel(self)

        def show(node: int) -> None:
            self.choose(node)
            label, kind = self.nodes.labels[node], self.nodes.kinds.iloc[node]
            panel["title"].value = f"<h3>{html_text(label)} ({html_text(kind)})</h3>"
            panel["cards"].value = _beside([self._card(row) for row in self.table.to_dict("records")])
            tables = {name: self.neighbours(name)[["label", "kind", "cosine"]] for name in self.spaces}
            panel["neighbours"].value = _beside(
                [f"<div><b>in {html_text(name)} space</b>{html_table(one, 3)}</div>" for name, one in tables.items()]
            )
            of_set(panel["profiles"].value)

        def of_set(profiles: str) -> None:
            panel["facts"].value = self.facts_html(profiles)
            asked = self.prompt(profiles)
            said = html_text(_SAID[asked.origin])
            panel["prompt"].value = f"<i>{said}</i><div style='{_PROMPT}'>{html_text(asked.text)}</div>"

        search = panel.search("profile", self.nodes, show)
        texts = panel.texts("title", "cards")
        options = {"options": self.profile_sets, "tooltip": "whose prompt and facts are shown"}
        chosen = panel.add("profiles", "Dropdown", of_set, description="profiles", **options)
        facts, prompt, near = panel.texts("facts", "prompt", "neighbours")
        tabs = panel.tabs(facts=facts, prompt=prompt, neighbours=near)
        show(self.node)
        return panel.box(search, *texts, chosen, tabs)


def _beside(parts: Sequence[str]) -> str:
    """Pieces of HTML beside each other, in several lines where the page is narrow."""
    return f'<div style="display: flex; flex-wrap: wrap; gap: 1em">{"".join(parts)}</div>'


def _longest(phrases: Sequence[str]) -> list[str]:
    """Phrases that are no part of another one, each once."""
    found = list(dict.fromkeys(phrases))
    return [one for one in found if not any(f" {one} " in f" {other} " for other in found if other != one)]


def _unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1; a row of zeros stays."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.where(lengths > 0, lengths, 1)).astype(np.float32)


class Passages:
    """Profiles of one profile set, cut into sentences and clauses.

    Parameters
    ----------
    texts
        Every profile by subject and id.
    """

    def __init__(self, texts: Mapping[tuple[str, int], str]) -> None:
        self.texts = texts

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
