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

_IDENTIFIER = re.compile(rf"{FREEBASE_ID.pattern}|[A-Za-z]{{0,3}}[-_:.]?\d+")
_LINKED = 3
"""Entities named in the label of an unnamed one."""


@dataclass(frozen=True)
class Names:
    """Clean labels of all entities, and sentences and labels of all relations."""

    labels: list[str]
    templates: list[str]
    relations: list[str]

    @classmethod
    def of(cls, tables: Tables, links: Links) -> Self:
        """Take the labels of the tables.

        An auxiliary entity whose label is only its identifier (``m.0dl567``, ``1204``) is called by its relation and
        the most telling entities at the other end: "genre of Alien, Aliens and 4 more".
        """
        labels = [clean(label, 20) for label in tables.entities["label"]]
        source_ids = tables.entities["source_id"].tolist()
        templates = [clean(template) for template in tables.relations["template"]]
        relations = [clean(label, 10) for label in tables.relations["label"]]
        named = list(labels)
        for entity in range(len(tables.items), len(labels)):
            if not labels[entity] or (labels[entity] == source_ids[entity] and _IDENTIFIER.fullmatch(labels[entity])):
                named[entity] = _described(links.groups(entity, _LINKED), relations, labels) or "unnamed entity"
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


def _described(groups: list[Group], relations: list[str], labels: list[str]) -> str:
    if not groups:
        return ""
    inward = [group for group in groups if not group.outward]
    group = max(inward or groups, key=lambda candidate: candidate.total)
    others = listed([labels[other] for other in group.others], group.total)
    return (
        f"{relations[group.relation]} of {others}" if inward else f"what has the {relations[group.relation]} {others}"
    )
