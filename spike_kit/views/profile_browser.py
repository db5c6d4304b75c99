"""Profiles of one node: every profile set side by side, the prompt, the facts that were used, nearest neighbours.

Profiles and prompts hold triples and train interactions only, so nothing here gives a held-out item away (an imported
profile set may be `possibly_leaky`, see `Dataset.provenance`).
"""

import copy
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any, Literal, Self

import numpy as np
import pandas as pd

from spike_kit.base.errors import DataError, lookup
from spike_kit.data.dataset import Dataset
from spike_kit.experiments.run import Run
from spike_kit.profiles.prompt_config import EVERYTHING, PromptConfig
from spike_kit.profiles.prompts import PromptWriter, prompt_writer_of, statements
from spike_kit.profiles.quality import checked_facts, comparable, faithfulness, named_facts, supported
from spike_kit.profiles.shipped import told_of
from spike_kit.profiles.store import Store, answers_path
from spike_kit.profiles.template import TEMPLATE
from spike_kit.views.safe import html_rows, html_table, html_text
from spike_kit.views.tables import Nodes, absence, nearest
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
_SHORTEST = 4
"""A word with fewer characters tells nothing, and a name is no sign that a profile mentions a fact."""
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
    spaces
        Vectors of all nodes by the name of the space, ``[U + E, d]``, users first, to find neighbours in; see
        `spike_kit.views.embedding_map.node_spaces`.
    node
        The node to begin with; default: the first item.

    Attributes
    ----------
    profile_sets
        Names of the profile sets.
    node
        The node whose profiles are shown.

    Raises
    ------
    DataError
        If there is no such node or no profile set, or a space has another number of rows.
    """

    def __init__(
        self, data: Dataset, *, spaces: Mapping[str, np.ndarray] | None = None, node: int | None = None
    ) -> None:
        self.data, self.nodes, self.profile_sets = data, Nodes(data), data.profile_sets()
        if not self.profile_sets:
            raise DataError(f"{data.name} has no profiles", f"write them with: spike-kit profile {data.name}")
        self.spaces = dict(spaces or {})
        self.nodes.expect(self.spaces)
        self.choose(self.nodes.n_users if node is None else node)

    @classmethod
    def of(cls, run: Run | Dataset, device: str = "auto") -> Self:
        """Begin with the most popular item of a data set; with a SPiKE run, neighbours in its text and final space."""
        from spike_kit.views.embedding_map import node_spaces

        if isinstance(run, Dataset):
            return cls(run, node=Nodes(run).popular_item)
        return cls(run.data, spaces=node_spaces(run, ("text", "final"), device), node=Nodes(run.data).popular_item)

    def choose(self, node: int) -> None:
        """Show another node."""
        self.subject = self.nodes.subject(node)
        self.node = node

    @cached_property
    def _tables(self) -> dict[str, pd.DataFrame]:
        return {name: self.data.profiles(name).set_index(["subject", "id"]) for name in self.profile_sets}

    @cached_property
    def _writers(self) -> dict[str, tuple[PromptWriter, dict[int, str]]]:
        return {name: prompt_writer_of(self.data, name, PromptConfig()) for name in self.profile_sets}

    @cached_property
    def _everything(self) -> tuple[PromptWriter, dict[int, str]]:
        return prompt_writer_of(self.data, TEMPLATE, EVERYTHING)

    @cached_property
    def _entities(self) -> dict[str, str]:
        """Names of what links items, as they are compared: a profile that writes one in lower case mentions it too."""
        names = set(self.nodes.labels[self.nodes.bounds["auxiliary"][0] :])
        return {name: comparable(name) for name in names if len(name) >= _SHORTEST}

    def text(self, profiles: str) -> str:
        """Profile of the node from a profile set; empty where that has nothing to say."""
        return str(self._row(profiles)["text"])

    def _row(self, profiles: str) -> Mapping[str, Any]:
        """Row of the node in a profile set; without text, model and question where the set leaves it out."""
        table = lookup(self._tables, profiles, "profile set")
        row: Any = table.loc[self.subject] if self.subject in table.index else dict.fromkeys(table.columns, "")
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
            facts = checked_facts(text, told)
            missing = [fact for fact, stands in facts.items() if not stands]
            rows.append((name, self._row(name)["model"], len(text.split()), faithfulness(facts), missing, text))
        columns = ["profiles", "model", "words", "faithfulness", "not in the prompt", "profile"]
        return pd.DataFrame(rows, columns=columns)

    def prompt(self, profiles: str) -> Asked:
        """The prompt of the node's profile.

        It is written again from the data set, with the settings that the profile set's file keeps, and compared by its
        hash with what the model was asked. Where they differ (the data set was built again, the kit's wording changed)
        the text of the question is looked up among the stored answers.
        """
        writer, items = self._writers[profiles]
        prompt = writer.prompt(*self.subject, lambda _: items)
        if not self.data.provenance(profiles).get("prompt_settings"):
            everything, known = self._everything
            return Asked(prompt.text, everything.prompt(*self.subject, lambda _: known).data, "never asked")
        asked = str(self._row(profiles)["prompt_sha256"])
        if prompt.sha256 == asked:
            return Asked(prompt.text, prompt.data, "asked")
        stored, file = None, answers_path(self.data)
        if file.is_file():
            with Store(file) as store:
                stored = store.prompt(asked)
        return Asked(stored or prompt.text, prompt.data, "asked" if stored else "written again")

    def facts(self, profiles: str) -> pd.DataFrame:
        """What the prompt told the model, statement by statement, and what of it the profile mentions.

        A profile mentions a statement if they share a name or a number, or the name of an entity of the graph; the
        node's own name does not count, it is everywhere.

        Returns
        -------
        DataFrame
            section (description, facts, reviews, ...), statement, mentions (the shared phrases, folded as in
            `spike_kit.profiles.quality.comparable`).
        """
        key, own = comparable(self.text(profiles)), comparable(self.nodes.labels[self.node])
        entities = [name for name, folded in self._entities.items() if folded in key]
        names = [name for name in (*named_facts(self.text(profiles)), *entities) if comparable(name) not in own]
        rows = []
        for section, statement in statements(self.prompt(profiles).data):
            told = comparable(statement)
            shared = {comparable(name).strip() for name in names if supported(name, told)}
            rows.append((section, statement, sorted(shared)))
        return pd.DataFrame(rows, columns=["section", "statement", "mentions"])

    def neighbours(self, space: str, k: int = 8) -> pd.DataFrame:
        """Nodes of the same subject that are nearest by cosine in a space: node, kind, label, cosine.

        Raises
        ------
        ConfigError
            If there is no such space.
        """
        begin, end = self.nodes.bounds[self.subject[0]]
        best, cosines = nearest(lookup(self.spaces, space, "space")[begin:end], self.node - begin, k)
        return self.nodes.table((begin + best).tolist()).assign(cosine=cosines)

    def facts_html(self, profiles: str) -> str:
        """`facts` for an HTML widget, what the profile mentions marked; at most `MOST_FACTS`, those mentioned first."""
        facts = self.facts(profiles)
        kept = facts.iloc[np.argsort(~facts["mentions"].map(bool), kind="stable")[:MOST_FACTS]]
        rows = [
            (f"<b>{html_text(section)}</b>", "✓" if mentions else "", marked(statement, mentions))
            for section, statement, mentions in kept.itertuples(index=False)
        ]
        number = "" if len(kept) == len(facts) else f"; {len(kept)} of {len(facts)} statements shown"
        return html_text(f"marked: what the profile mentions by name{number}") + html_rows((), rows)

    def cards_html(self) -> str:
        """Profiles side by side: what the prompt tells is marked, what it does not tell and who wrote them below."""
        heads, texts, feet = [], [], []
        for row in self.table.to_dict("records"):
            name, model = row["profiles"], row["model"]
            by = "" if model in ("", name) else f" by {model}"
            heads.append(f"{html_text(name)}{html_text(by)}, {row['words']} words")
            told = {phrase for found in self.facts(name)["mentions"] for phrase in found}
            nothing = absence(self.data, name, *self.subject) or "has nothing to say"
            texts.append(marked(row["profile"], told) or f"<i>{html_text(nothing)}</i>")
            invented = html_text(", ".join(row["not in the prompt"]))
            lines = [f"not in the prompt: {invented}"] if invented else []
            lines += map(html_text, told_of(self.data, name)[:1])
            feet.append("<br>".join(f"<small>{line}</small>" for line in lines))
        return f'<div style="white-space: pre-wrap">{html_rows(heads, [texts, feet])}</div>'

    def panel(self) -> Any:
        """A search box, every profile set side by side, the facts, the prompt and the nearest neighbours."""
        panel = Panel(self)

        def show(node: int) -> None:
            self.choose(node)
            label, kind = self.nodes.labels[node], self.nodes.kinds.iloc[node]
            panel["title"].value = f"<h3>{html_text(label)} ({html_text(kind)})</h3>"
            panel["cards"].value = self.cards_html()
            near = [f"<b>{html_text(space)}</b>{html_table(self.neighbours(space), 3)}" for space in self.spaces]
            panel["neighbours"].value = "".join(near)
            of_set(panel["profiles"].value)

        def of_set(profiles: str) -> None:
            panel["facts"].value = self.facts_html(profiles)
            asked = self.prompt(profiles)
            said = html_text(_SAID[asked.origin])
            panel["prompt"].value = f"<i>{said}</i><div style='{_PROMPT}'>{html_text(asked.text)}</div>"

        search, texts = panel.search("profile", self.nodes, show), panel.texts("title", "cards")
        tip = "whose prompt and facts are shown"
        chosen = panel.add("profiles", "Dropdown", of_set, options=self.profile_sets, tooltip=tip)
        facts, prompt, near = panel.texts("facts", "prompt", "neighbours")
        tabs = panel.tabs(facts=facts, prompt=prompt, neighbours=near)
        show(self.node)
        return panel.box(search, *texts, chosen, tabs)


class Profiles:
    """Profiles of one profile set, as they are compared with each other.

    Parameters
    ----------
    texts
        Every profile by subject (``user``, ``item``, ``auxiliary``) and id.
    """

    def __init__(self, texts: Mapping[tuple[str, int], str]) -> None:
        self.texts = texts
        self._keys = {who: comparable(text) for who, text in texts.items()}

    def added(self, texts: Mapping[tuple[str, int], str]) -> Self:
        """Copy with more texts, or others."""
        other = copy.copy(self)
        other.texts = {**self.texts, **texts}
        other._keys = {**self._keys, **{who: comparable(text) for who, text in texts.items()}}
        return other

    def shared(self, one: tuple[str, int], other: tuple[str, int]) -> dict[str, float]:
        """Names and telling words that two profiles share, the rarest first, with the share of profiles that hold them.

        A word inside a longer name does not count: two first names alike say nothing.
        """
        keys = [self._keys.get(who, "") for who in (one, other)]
        names = {comparable(name).strip() for who in (one, other) for name in named_facts(self.texts.get(who, ""))}
        inside = {word for name in names if " " in name for word in name.split()}
        words = {word for word in keys[0].split() if len(word) >= _SHORTEST and word.isalpha()}
        limits = dict.fromkeys(words - inside, COMMON_WORD)
        limits |= {name: COMMON_NAME for name in names - inside if not name.replace(" ", "").isdigit()}
        both = [phrase for phrase in limits if all(f" {phrase} " in key for key in keys)]
        shares = {phrase: np.mean([f" {phrase} " in key for key in self._keys.values()]).item() for phrase in both}
        found = {phrase: share for phrase, share in shares.items() if share <= limits[phrase]}
        return dict(sorted(found.items(), key=lambda pair: (pair[1], pair[0])))


def marked(text: str, phrases: Collection[str]) -> str:
    """HTML of a text in which some phrases (words folded as in `comparable`, single spaces) are marked.

    Everything else is escaped.
    """
    pieces = re.split(r"(\w+)", text)
    places = [place for place in range(1, len(pieces), 2) if comparable(pieces[place]).strip()]
    words = [comparable(pieces[place]).strip() for place in places]
    chosen: set[int] = set()
    for parts in map(str.split, phrases):
        for first in range(len(words) - len(parts) + 1):
            if parts and words[first : first + len(parts)] == parts:
                chosen |= set(range(places[first], places[first + len(parts) - 1] + 1))
    html = ""
    for is_chosen, run in groupby(range(len(pieces)), chosen.__contains__):
        part = html_text("".join(pieces[place] for place in run))
        html += f"{MARK}{part}</mark>" if is_chosen else part
    return html
