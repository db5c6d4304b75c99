"""Facts in words, and template profiles: a paragraph for every item, auxiliary entity and user, without an LLM.

Facts come from triples and the train split alone. A *link* is a triple seen from one of its ends: ``owner, relation,
outward, other``; ``outward`` says that the owner is the head. Labels may hold anything; a sentence made of them is one
clean line. Template profiles follow the order of the paper (items, auxiliary entities, users; docs/method.md,
section 1) and its word limits.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from spike_kit.base.storage import now, sha256_text
from spike_kit.data.dataset import TEMPLATE, Dataset
from spike_kit.data.tables import Tables
from spike_kit.data.text import FREEBASE_ID, clean

VERSION = "template 2"
"""Changes whenever the wording changes; its sha256 stands in the profiles table."""

WORD_LIMIT = {"item": 150, "auxiliary": 150, "user": 100}
"""Longest profile in words (paper: 150, 150, 100)."""

UNKNOWN_TASTE = "Nothing is known of this user's taste."
"""Profile of a user without train interactions."""

_SHOWN = 8
"""Names listed per fact."""
_TASTES = 3
"""Names listed per taste."""
_LIKED = 8
"""Items named in a user's profile."""

CHUNK_OWNERS = 20_000
"""Sets of items that are compared at a time; keeps memory flat on large data sets."""

_NOISE = 1e-9
"""Residuals below this are rounding, not preference."""
_FEATURE = ["relation", "outward", "other"]
_SLOT = re.compile(r"(?:\b([Aa])n? )?\{(head|tail)\}")
_IDENTIFIER = rf"{FREEBASE_ID.pattern}|[QP]?\d{{5,}}"
_NUMBERED = 0.9
"""Share of entities with numbers as labels from which on short numbers are identifiers, too (not years or ratings)."""
_LINKED = 3
"""Entities named in the label of an unnamed one."""
_SEARCHED = 50
"""Links per relation among which these are looked for."""


def template_profiles(data: Dataset) -> pd.DataFrame:
    """Write the template profile of every item, auxiliary entity and user of a data set.

    Returns
    -------
    DataFrame
        As `spike_kit.data.tables.SCHEMAS` asks, ready for `Dataset.write_profiles`.
    """
    parts = [
        pd.DataFrame({"subject": subject, "id": data.expected_ids(subject), "text": texts})
        for subject, texts in template_texts(data.tables).items()
    ]
    profiles = pd.concat(parts, ignore_index=True).astype({"subject": "str", "text": "str", "id": "int64"})
    return profiles.assign(prompt_sha256=sha256_text(VERSION), model=TEMPLATE, usage="{}", created=now())


def ensure_profiles(data: Dataset) -> pd.DataFrame:
    """Return the template profiles of a data set, writing them first if they are missing or have another wording."""
    if TEMPLATE in data.profile_sets():
        profiles = data.profiles(TEMPLATE)
        if set(profiles["prompt_sha256"]) == {sha256_text(VERSION)}:
            return profiles
    data.write_profiles(TEMPLATE, template_profiles(data))
    return data.profiles(TEMPLATE)


def template_texts(tables: Tables) -> dict[str, list[str]]:
    """Texts of all template profiles by subject, ids ascending.

    An item: its description and its facts. An auxiliary entity: what it is to which items, and what these share. A
    user: some of the train items, rare ones first, and what is over-represented in them.
    """
    told = Links.of(tables)
    names = Names(tables, told)
    n_items, n_users, n_entities = len(tables.items), len(tables.users), len(tables.entities)
    frame = links(tables)
    item_links = frame[frame["owner"] < n_items]
    pairs = item_links.loc[item_links["other"] >= n_items, ["other", "owner"]].drop_duplicates().to_numpy()
    common = typical(pairs[:, 0], pairs[:, 1], item_links, np.ones(n_items), n_entities)
    popularity, liked = train_items(tables)
    users = np.repeat(np.arange(n_users), [len(items) for items in liked])
    tastes = typical(users, np.concatenate(liked), item_links, popularity, n_users)

    def facts(entity: int) -> list[str]:
        return [names.fact(entity, group) for group in told.groups(entity, _SHOWN)]

    texts: dict[str, list[str]] = {"item": [], "auxiliary": [], "user": []}
    for item, description in enumerate(tables.items["description"]):
        described = clean(description, 60)
        opening = f"{names.labels[item]}: {described}" if described else names.labels[item]
        texts["item"].append(paragraph([sentence(opening), *facts(item)], WORD_LIMIT["item"]))
    for entity, kind in enumerate(tables.entities["kind"].iloc[n_items:], start=n_items):
        opening = sentence(f"{names.labels[entity]} ({clean(kind)})")
        shared = _tastes(names, common.groups(entity, _TASTES + 1), "Common to them", entity)
        texts["auxiliary"].append(paragraph([opening, *facts(entity), *shared], WORD_LIMIT["auxiliary"]))
    for user, items in enumerate(liked):
        shown = [names.labels[item] for item in items[:_LIKED]]
        sentences = [sentence(f"Liked {listed(shown, len(items))}")] if shown else [UNKNOWN_TASTE]
        sentences += _tastes(names, tastes.groups(user, _TASTES), "Prefers", None)
        texts["user"].append(paragraph(sentences, WORD_LIMIT["user"]))
    return texts


def _tastes(names: Names, groups: Sequence[Group], opening: str, owner: int | None) -> list[str]:
    parts = []
    for group in groups:
        others = [names.labels[other] for other in group.others if other != owner][:_TASTES]
        if others and group.outward:
            parts.append(f"{names.relations[group.relation]} {listed(others)}")
    return [sentence(f"{opening}: {'; '.join(parts)}")] if parts else []


def paragraph(sentences: Sequence[str], max_words: int) -> str:
    """Join sentences in order, leaving out whole sentences that no longer fit; the first one always stays."""
    kept, used = [], 0
    for position, text in enumerate(sentences):
        words = len(text.split())
        if position == 0 or used + words <= max_words:
            kept.append(text)
            used += words
    return " ".join(kept)


@dataclass(frozen=True)
class Group:
    """Links of one owner through one relation in one direction: ``others`` best first, out of ``total``."""

    relation: int
    outward: bool
    others: tuple[int, ...]
    total: int

    def without(self, entity: int, limit: int) -> Group | None:
        """The same group without one entity that is linked through it; nothing if that leaves none."""
        others = tuple(other for other in self.others if other != entity)[:limit]
        total = self.total - (entity in self.others)
        return Group(self.relation, self.outward, others, total) if others else None


class Links:
    """Links in arrays, grouped on demand: by owner, then relation and direction, the highest score first.

    Parameters
    ----------
    frame
        Columns owner, relation, outward, other; ties in the score go to the smaller other.
    score
        Score of each row.
    n_owners
        Owners are 0..n_owners-1.
    """

    def __init__(self, frame: pd.DataFrame, score: np.ndarray, n_owners: int) -> None:
        owner, relation, outward, other = (frame[name].to_numpy() for name in ("owner", *_FEATURE))
        order = np.lexsort((other, -score, ~outward, relation, owner))
        keys = np.stack([owner[order], relation[order], outward[order]])
        first = np.flatnonzero((np.diff(keys, prepend=-1) != 0).any(axis=0))
        self._other, self._starts = other[order], np.append(first, len(order))
        self._owner, self._relation, self._outward = keys[:, first]
        self._ranges = np.searchsorted(self._owner, np.arange(n_owners + 1))

    @classmethod
    def of(cls, tables: Tables) -> Links:
        """All links of the triples, the most telling entities first (`interest`)."""
        frame = links(tables)
        return cls(frame, interest(tables, frame)[frame["other"].to_numpy()], len(tables.entities))

    def groups(self, owner: int, limit: int) -> list[Group]:
        """Links of one owner: at most ``limit`` others per relation and direction."""
        found = []
        for group in range(self._ranges[owner], self._ranges[owner + 1]):
            start, stop = int(self._starts[group]), int(self._starts[group + 1])
            others = tuple(self._other[start : min(stop, start + limit)].tolist())
            found.append(Group(int(self._relation[group]), bool(self._outward[group]), others, stop - start))
        return found

    def degree(self, owner: int) -> int:
        """Links of an owner."""
        return int(self._starts[self._ranges[owner + 1]] - self._starts[self._ranges[owner]])


def links(tables: Tables) -> pd.DataFrame:
    """Return every triple from both of its ends: owner, relation, outward, other (loops are left out)."""
    triples = tables.triples[tables.triples["head"] != tables.triples["tail"]]
    outward = triples.rename(columns={"head": "owner", "tail": "other"}).assign(outward=True)
    inward = triples.rename(columns={"tail": "owner", "head": "other"}).assign(outward=False)
    return pd.concat([outward, inward], ignore_index=True)[["owner", *_FEATURE]]


def interest(tables: Tables, all_links: pd.DataFrame) -> np.ndarray:
    """How much naming an entity tells, ``[E]`` float64.

    An auxiliary entity linked to the share p of the items gets p log(1/p): what nearly every item has and what only
    one item has both say little about tastes. An item gets its share of the train interactions.
    """
    n_items, n_entities = len(tables.items), len(tables.entities)
    pairs = all_links[all_links["other"] < n_items].drop_duplicates(["owner", "other"])
    share = np.bincount(pairs["owner"], minlength=n_entities) / n_items
    scores = -share * np.log(np.where(share > 0, share, 1.0))
    train = tables.interactions.loc[tables.interactions["split"] == "train", "item"]
    scores[:n_items] = np.bincount(train, minlength=n_items) / len(train)
    return scores


def train_items(tables: Tables) -> tuple[np.ndarray, list[np.ndarray]]:
    """Train interactions of each item ``[I]``, and the train items of each user, the rarest first.

    What few people like tells more of a taste; of equally popular items the one with the smaller id comes first.
    """
    train = tables.interactions[tables.interactions["split"] == "train"]
    users, items = train["user"].to_numpy(), train["item"].to_numpy()
    popularity = np.bincount(items, minlength=len(tables.items))
    order = np.lexsort((items, popularity[items], users))
    return popularity, np.split(items[order], np.searchsorted(users[order], np.arange(1, len(tables.users))))


def typical(
    owners: np.ndarray, items: np.ndarray, item_links: pd.DataFrame, weight: np.ndarray, n_owners: int
) -> Links:
    """Find what is over-represented in sets of items.

    Parameters
    ----------
    owners, items
        Members of the sets ``[n]``: ``items[i]`` belongs to the set of ``owners[i]``, a user or an entity.
    item_links
        Links whose owner is an item.
    weight
        ``[I]``: how much each item counts in the expectation (its train interactions, or 1).
    n_owners
        Owners are 0..n_owners-1.

    Returns
    -------
    Links
        What is typical of each owner. The score is the residual (observed - expected) / sqrt(expected + 1); kept are
        positive ones seen on at least two items (on one, if the set has no more than three).
    """
    linked = item_links["owner"].to_numpy()
    by_feature = item_links.assign(mass=weight[linked] / weight.sum()).groupby(_FEATURE)
    features = by_feature["mass"].sum().reset_index()
    mass = features["mass"].to_numpy()
    having = csr_array(
        (np.ones(len(linked), np.int64), (linked, by_feature.ngroup())), shape=(len(weight), len(features))
    )
    sets = csr_array((np.ones(len(items), np.int64), (owners, items)), shape=(n_owners, len(weight)))
    sizes, parts = np.bincount(owners, minlength=n_owners), []
    for start in range(0, n_owners, CHUNK_OWNERS):
        counts = (sets[start : start + CHUNK_OWNERS] @ having).tocoo()
        size, observed, expected = sizes[counts.row + start], counts.data, sizes[counts.row + start] * mass[counts.col]
        score = (observed - expected) / np.sqrt(expected + 1)
        kept = ((observed >= 2) | (size <= 3)) & (score > _NOISE)
        parts.append(features.iloc[counts.col[kept]].assign(owner=counts.row[kept] + start, score=score[kept]))
    frame = pd.concat(parts)
    return Links(frame, frame["score"].to_numpy(), n_owners)


class Names:
    """Clean labels of all entities and relations, the sentences of the relations, and facts in these words.

    What has only its identifier as a label (``m.0dl567``, ``Q1204567``) is called by a relation and the most telling
    named entities at its other end: "genre of Alien, Aliens and 4 more".
    """

    def __init__(self, tables: Tables, all_links: Links) -> None:
        self.templates = [clean(template) for template in tables.relations["template"]]
        self.relations = [clean(label, 10) for label in tables.relations["label"]]
        labels = pd.Series([clean(label, 20) for label in tables.entities["label"]], dtype="str")
        is_id = labels == tables.entities["source_id"].to_numpy()
        is_number = labels.str.fullmatch(r"\d+")
        is_bare = labels.str.fullmatch(_IDENTIFIER)
        if (is_id & is_number).mean() >= _NUMBERED:
            is_bare |= is_number
        bare = set(np.flatnonzero((labels == "") | (is_id & is_bare)).tolist())
        self.labels: list[str] = labels.tolist()
        described = {entity: self._described(all_links.groups(entity, _SEARCHED), bare) for entity in bare}
        for entity, label in described.items():
            self.labels[entity] = label or f"unnamed {'item' if entity < len(tables.items) else 'entity'}"

    def _described(self, groups: list[Group], bare: set[int]) -> str:
        """Label from the largest group of links that has named others, those that lead to the entity first."""
        named = [(group, [self.labels[other] for other in group.others if other not in bare]) for group in groups]
        usable = [(group, others[:_LINKED]) for group, others in named if others]
        if not usable:
            return ""
        group, others = max(usable, key=lambda pair: (not pair[0].outward, pair[0].total))
        names, relation = listed(others, group.total), self.relations[group.relation]
        return f"what has the {relation} {names}" if group.outward else f"{relation} of {names}"

    def fact(self, entity: int, group: Group, subject: str = "It") -> str:
        """Say one group of links in the words of its relation; ``subject`` stands for the entity where it can."""
        others = [self.labels[other] for other in group.others]
        template, label, names = self.templates[group.relation], self.labels[entity], listed(others, group.total)
        starts_with_head = template.startswith("{head} ")
        if group.outward:
            return fill(template, subject if starts_with_head else label, names)
        return fill(template, f"Each of {names}" if len(others) > 1 and starts_with_head else names, label)


def listed(names: Sequence[str], total: int | None = None) -> str:
    """Join names in words: ``"A, B and C"``, or ``"A, B and 7 more"`` when ``total`` exceeds the names given."""
    parts = list(names)
    if total is not None and total > len(parts):
        parts.append(f"{total - len(parts)} more")
    if len(parts) < 2:
        return "".join(parts)
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def fill(template: str, head: str, tail: str) -> str:
    """Put names into a relation's sentence; braces inside a name are plain characters.

    ``a`` before a slot becomes ``an`` where the name asks for it, and the sentence ends in one full stop.
    """
    names = {"head": head, "tail": tail}

    def name(slot: re.Match[str]) -> str:
        article, value = slot[1], names[slot[2]]
        vowel = value.startswith(tuple("aeiouAEIOU"))
        return f"{article}{'n' if vowel else ''} {value}" if article else value

    return sentence(_SLOT.sub(name, template))


def sentence(text: str) -> str:
    """End a text like a sentence: one full stop, unless it ends in other punctuation or in an ellipsis."""
    text = text.strip()
    if text.endswith("..") and not text.endswith("..."):
        return text[:-1]
    return text if text.endswith((".", "!", "?")) else f"{text}."
