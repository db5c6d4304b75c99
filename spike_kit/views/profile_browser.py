"""Profiles of one node: all sets side by side, the prompt, the facts that were used, the nearest neighbours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal

import numpy as np
import pandas as pd

from spike_kit.base.errors import DataError, some
from spike_kit.data.dataset import Dataset
from spike_kit.profiles.faithfulness import comparable, faithfulness, named_facts, supported, unsupported_facts
from spike_kit.profiles.prompts import EVERYTHING, PromptConfig, PromptWriter, prompt_writer_of, statements
from spike_kit.profiles.store import Store, answers_path
from spike_kit.views.passages import marked
from spike_kit.views.search import Nodes

Origin = Literal["asked", "written again", "never asked"]
"""Of a prompt: the model was asked exactly this; it was asked something else, that is lost; no model was asked."""

_SHORTEST_NAME = 4
"""Names with fewer characters are no sign that a profile mentions a fact."""
_KEPT = 64
"""Prompts that are remembered."""


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

    Prompts hold triples and train interactions only, so nothing here gives a held-out item away (an imported set may be
    `possibly_leaky`, see `Dataset.provenance`).

    Parameters
    ----------
    data
        The study.
    profile_sets
        Names of those that are shown; default: all.
    spaces
        Vectors of all nodes by the name of the space, ``[U + E, d]``, users first, to find neighbours in; see
        `spike_kit.views.embedding_map.node_spaces`.
    node
        The node to begin with.

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
        if missing := [profiles for profiles in self.profile_sets if profiles not in known]:
            raise DataError(f"{data.name} has no profile set {missing[0]!r}", f"it has {some(known)}")
        if not self.profile_sets:
            raise DataError(f"{data.name} has no profiles", f"write them with: spike-kit profile {data.name}")
        self.spaces = {name: _unit(rows) for name, rows in (spaces or {}).items()}
        for name, rows in self.spaces.items():
            if len(rows) != self.nodes.n_nodes:
                raise DataError(f"{name} has {len(rows)} rows, but {data.name} has {self.nodes.n_nodes} nodes")
        self._prompt = lru_cache(_KEPT)(self._prompt_of)
        self._everything: PromptWriter | None = None
        self.node = 0
        self.choose(self.nodes.n_users if node is None else node)

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
        return {profiles: self.data.profiles(profiles).set_index(["subject", "id"]) for profiles in self.profile_sets}

    @cached_property
    def _writers(self) -> dict[str, tuple[PromptWriter, dict[int, str]]]:
        return {profiles: prompt_writer_of(self.data, profiles, PromptConfig()) for profiles in self.profile_sets}

    def text(self, profiles: str) -> str:
        """Profile of the node in a set; empty where the set has nothing to say."""
        return str(self._row(profiles)["text"])

    def _row(self, profiles: str) -> Mapping[str, Any]:
        if profiles not in self._tables:
            raise DataError(
                f"{self.data.name} shows no profile set {profiles!r}", f"it shows {some(self.profile_sets)}"
            )
        row: Any = self._tables[profiles].loc[self.subject]
        return row

    @property
    def table(self) -> pd.DataFrame:
        """Profiles of the node side by side.

        Returns
        -------
        DataFrame
            profiles (name of the set), model, words, faithfulness (share of its names and numbers that stand in the
            prompt's data; NaN without any), not in the prompt (those that do not), profile.
        """
        rows = []
        for profiles in self.profile_sets:
            row, text = self._row(profiles), self.text(profiles)
            data = self.prompt(profiles).data
            unsupported = unsupported_facts(text, data)
            rows.append((profiles, row["model"], len(text.split()), faithfulness(text, data), unsupported, text))
        columns = ["profiles", "model", "words", "faithfulness", "not in the prompt", "profile"]
        return pd.DataFrame(rows, columns=columns)

    def prompt(self, profiles: str) -> Asked:
        """The prompt of the node's profile.

        It is written again from the study, with the settings that the set's file keeps, and compared by its hash
        with what the model was asked. Where they differ (the study was built again, the kit's wording changed) the text
        of the question is looked up among the stored answers.
        """
        return self._prompt(profiles, self.node)

    def _prompt_of(self, profiles: str, node: int) -> Asked:
        subject, number = self.nodes.subject(node)
        writer, items = self._writers[profiles]
        prompt = writer.prompt(subject, number, lambda _: items)
        asked = str(self._tables[profiles].loc[(subject, number), "prompt_sha256"])
        if not self.data.provenance(profiles).get("prompt_settings"):
            self._everything = self._everything or PromptWriter(self.data, EVERYTHING)
            data = self._everything.prompt(subject, number, lambda _: items).data
            return Asked(prompt.text, data, "never asked")
        if prompt.sha256 == asked:
            return Asked(prompt.text, prompt.data, "asked")
        stored = self._stored(asked)
        return Asked(stored or prompt.text, prompt.data, "asked" if stored else "written again")

    def _stored(self, sha256: str) -> str | None:
        """Text of a prompt among the stored answers."""
        file = answers_path(self.data)
        if not file.is_file():
            return None
        with Store(file) as store:
            return store.prompt(sha256)

    def facts(self, profiles: str) -> pd.DataFrame:
        """What the prompt told the model, statement by statement, and what of it the profile mentions.

        A profile mentions a statement if they share a name or a number, or the name of something that the node is
        linked to; the node's own name does not count, it is everywhere.

        Returns
        -------
        DataFrame
            section (description, facts, reviews, ...), statement, mentions (the shared phrases, folded as in
            `spike_kit.profiles.faithfulness.comparable`).
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
        triples = self.data.triples
        near = {number} if subject != "user" else set()
        if subject == "user":
            train = self.data.split("train")
            near |= set(train.loc[train["user"] == number, "item"].tolist())
        for _ in range(1 if subject == "user" else 2):
            ends = triples[triples["head"].isin(near) | triples["tail"].isin(near)]
            near |= set(ends["head"].tolist()) | set(ends["tail"].tolist())
        labels = self.data.entities["label"].to_numpy()
        names = {comparable(labels[entity]) for entity in near if subject == "user" or entity != number}
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
        subject, _ = self.subject
        first, rest = self.nodes.n_users, self.nodes.n_users + self.nodes.n_items
        begin, end = {"user": (0, first), "item": (first, rest), "auxiliary": (rest, self.nodes.n_nodes)}[subject]
        rows = self.spaces[space]
        cosines = rows[begin:end] @ rows[self.node]
        cosines[self.node - begin] = -np.inf
        best = np.argsort(-cosines, kind="stable")[: min(k, end - begin - 1)]
        return self.nodes.table((begin + best).tolist()).assign(cosine=cosines[best])

    def profile_html(self, profiles: str) -> str:
        """Profile for an HTML widget: what the prompt tells is marked; everything from outside is escaped."""
        found = self.facts(profiles)["mentions"]
        return marked(self.text(profiles), {phrase for phrases in found for phrase in phrases})

    def facts_html(self, profiles: str) -> list[tuple[str, str, bool]]:
        """`facts` for an HTML widget: section, statement with what the profile mentions marked, whether it does."""
        return [
            (row["section"], marked(row["statement"], row["mentions"]), bool(row["mentions"]))
            for row in self.facts(profiles).to_dict("records")
        ]


def _longest(phrases: Sequence[str]) -> list[str]:
    """Phrases that are no part of another one, each once."""
    found = list(dict.fromkeys(phrases))
    return [one for one in found if not any(f" {one} " in f" {other} " for other in found if other != one)]


def _unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1; a row of zeros stays."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.where(lengths > 0, lengths, 1)).astype(np.float32)
