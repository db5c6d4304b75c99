"""Names of entities and relations, and facts in their words."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from spike_kit.data.labels import FREEBASE_ID
from spike_kit.data.tables import Tables
from spike_kit.data.text import clean
from spike_kit.profiles.facts import Group, Links
from spike_kit.profiles.wording import fill, listed, starts_with_head

_IDENTIFIER = re.compile(rf"{FREEBASE_ID.pattern}|[QP]?\d{{5,}}")
_NUMBER = re.compile(r"\d+")
_NUMBERED = 0.9
"""Share of entities with numbers as labels from which on short numbers are identifiers, too (not years or ratings)."""
_LINKED = 3
"""Entities named in the label of an unnamed one."""
_SEARCHED = 50
"""Links per relation among which these are looked for."""


@dataclass(frozen=True)
class Names:
    """Clean labels of all entities, and sentences and labels of all relations."""

    labels: list[str]
    templates: list[str]
    relations: list[str]

    @classmethod
    def of(cls, tables: Tables, links: Links) -> Self:
        """Take the labels of the tables.

        What has only its identifier as a label (``m.0dl567``, ``Q1204567``) is called by a relation and the most
        telling named entities at its other end: "genre of Alien, Aliens and 4 more".
        """
        labels = [clean(label, 20) for label in tables.entities["label"]]
        source_ids = tables.entities["source_id"].tolist()
        templates = [clean(template) for template in tables.relations["template"]]
        relations = [clean(label, 10) for label in tables.relations["label"]]
        is_id = [label == source_id for label, source_id in zip(labels, source_ids, strict=True)]
        numbers = sum(bool(same and _NUMBER.fullmatch(label)) for same, label in zip(is_id, labels, strict=True))
        pattern = _NUMBER if numbers >= _NUMBERED * len(labels) else _IDENTIFIER
        bare = {
            entity
            for entity, (label, same) in enumerate(zip(labels, is_id, strict=True))
            if not label or (same and (pattern.fullmatch(label) or _IDENTIFIER.fullmatch(label)))
        }
        named = list(labels)
        for entity in bare:
            kind = "item" if entity < len(tables.items) else "entity"
            named[entity] = _described(links.groups(entity, _SEARCHED), relations, labels, bare) or f"unnamed {kind}"
        return cls(named, templates, relations)

    def fact(self, entity: int, group: Group, subject: str = "It") -> str:
        """Say one group of links in the words of its relation; ``subject`` stands for the entity where it can."""
        others = [self.labels[other] for other in group.others]
        template, label = self.templates[group.relation], self.labels[entity]
        if group.outward:
            return fill(template, subject if starts_with_head(template) else label, listed(others, group.total))
        if len(others) > 1 and starts_with_head(template):
            return fill(template, f"Each of {listed(others, group.total)}", label)
        return fill(template, listed(others, group.total), label)


def _described(groups: list[Group], relations: list[str], labels: list[str], bare: set[int]) -> str:
    """Label from the largest group of links that has named others, those that lead to the entity first."""
    named = [(group, [labels[other] for other in group.others if other not in bare]) for group in groups]
    usable = [(group, others[:_LINKED]) for group, others in named if others]
    if not usable:
        return ""
    group, others = max(usable, key=lambda pair: (not pair[0].outward, pair[0].total))
    names, relation = listed(others, group.total), relations[group.relation]
    return f"what has the {relation} {names}" if group.outward else f"{relation} of {names}"
