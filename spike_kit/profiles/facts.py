"""What the triples and the train split say about every entity and user, as group-bys: the matter of profiles.

A *link* is a triple seen from one of its ends: ``entity, relation, outward, other``; ``outward`` says that the
entity is the head.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from spike_kit.data.tables import Tables

CHUNK_ROWS = 2_000_000
"""Rows of one intermediate join; keeps memory flat on large studies."""

_NOISE = 1e-9
"""Residuals below this are rounding, not preference."""

_FEATURE = ["relation", "outward", "other"]


@dataclass(frozen=True)
class Group:
    """Links of one entity through one relation in one direction: ``others`` best first, out of ``total``."""

    relation: int
    outward: bool
    others: tuple[int, ...]
    total: int

    def without(self, entity: int, limit: int) -> Group | None:
        """The same group without one entity that is linked through it; nothing if that leaves none."""
        others = tuple(other for other in self.others if other != entity)[:limit]
        total = self.total - (entity in self.others)
        return Group(self.relation, self.outward, others, total) if others else None


def links(tables: Tables) -> pd.DataFrame:
    """Return every triple from both of its ends: entity, relation, outward, other (loops are left out)."""
    triples = tables.triples[tables.triples["head"] != tables.triples["tail"]]
    outward = triples.rename(columns={"head": "entity", "tail": "other"}).assign(outward=True)
    inward = triples.rename(columns={"tail": "entity", "head": "other"}).assign(outward=False)
    return pd.concat([outward, inward], ignore_index=True)[["entity", *_FEATURE]]


def interest(tables: Tables, all_links: pd.DataFrame) -> np.ndarray:
    """How much naming an entity tells, ``[E]`` float64.

    An auxiliary entity linked to the share p of the items gets p log(1/p): what nearly every item has and what only
    one item has both say little about tastes. An item gets its share of the train interactions.
    """
    n_items, n_entities = len(tables.items), len(tables.entities)
    pairs = all_links[all_links["other"] < n_items].drop_duplicates(["entity", "other"])
    share = np.bincount(pairs["entity"], minlength=n_entities) / n_items
    scores = -share * np.log(np.where(share > 0, share, 1.0))
    train = tables.interactions.loc[tables.interactions["split"] == "train", "item"]
    scores[:n_items] = np.bincount(train, minlength=n_items) / len(train)
    return scores


class Links:
    """All links, kept in arrays and grouped on demand: by entity, then relation and direction, most telling first.

    Parameters
    ----------
    tables
        Tables of the study.
    """

    def __init__(self, tables: Tables) -> None:
        frame = links(tables)
        self.interest = interest(tables, frame)
        entity, relation, outward, other = (frame[name].to_numpy() for name in ("entity", *_FEATURE))
        order = np.lexsort((other, -self.interest[other], ~outward, relation, entity))
        entity, relation, outward = entity[order], relation[order], outward[order]
        self._other = other[order]
        self._starts = np.append(_starts([entity, relation, outward]), len(order))
        first = self._starts[:-1]
        self._relation, self._outward = relation[first], outward[first]
        self._group_range = np.searchsorted(entity[first], np.arange(len(tables.entities) + 1))

    def groups(self, entity: int, limit: int) -> list[Group]:
        """Links of one entity: at most ``limit`` others per relation and direction."""
        found = []
        for group in range(self._group_range[entity], self._group_range[entity + 1]):
            start, stop = int(self._starts[group]), int(self._starts[group + 1])
            others = tuple(self._other[start : min(stop, start + limit)].tolist())
            found.append(Group(int(self._relation[group]), bool(self._outward[group]), others, stop - start))
        return found

    def degree(self, entity: int) -> int:
        """Links of an entity."""
        first, last = self._group_range[entity], self._group_range[entity + 1]
        return int(self._starts[last] - self._starts[first])


def typical(members: pd.DataFrame, item_links: pd.DataFrame, weight: np.ndarray, limit: int) -> dict[int, list[Group]]:
    """Find what is over-represented in sets of items.

    Parameters
    ----------
    members
        Columns ``owner`` (a user or an entity) and ``item``.
    item_links
        Links whose entity is an item.
    weight
        ``[I]``: how much each item counts in the expectation (its train interactions, or 1).
    limit
        Others kept per owner, relation and direction.

    Returns
    -------
    dict
        Groups of every owner that has any. The score is the residual (observed - expected) / sqrt(expected + 1);
        kept are positive ones seen on at least two items (on one, if the set has no more than three).
    """
    features = item_links.rename(columns={"entity": "item"})
    mass = features.assign(mass=weight[features["item"].to_numpy()] / weight.sum())
    share = mass.groupby(_FEATURE)["mass"].sum().reset_index()
    sizes = members.groupby("owner").size().rename("set_size")
    parts = [_over_represented(chunk, features, share, sizes) for chunk in _chunks(members, features)]
    return _groups(pd.concat(parts, ignore_index=True), "owner", limit) if parts else {}


def _over_represented(
    members: pd.DataFrame, features: pd.DataFrame, share: pd.DataFrame, sizes: pd.Series
) -> pd.DataFrame:
    counts = members.merge(features, on="item").groupby(["owner", *_FEATURE], as_index=False).size()
    counts = counts.rename(columns={"size": "observed"}).merge(share, on=_FEATURE).join(sizes, on="owner")
    expected = counts["set_size"] * counts["mass"]
    counts["score"] = (counts["observed"] - expected) / np.sqrt(expected + 1)
    often = (counts["observed"] >= 2) | (counts["set_size"] <= 3)
    return counts[often & (counts["score"] > _NOISE)]


def _chunks(members: pd.DataFrame, features: pd.DataFrame) -> Iterator[pd.DataFrame]:
    per_item = features.groupby("item").size()
    rows = members["item"].map(per_item).fillna(0).groupby(members["owner"]).sum().cumsum()
    for _, owners in rows.groupby(rows // CHUNK_ROWS):
        yield members[members["owner"].isin(owners.index)]


def _groups(ranked: pd.DataFrame, owner: str, limit: int) -> dict[int, list[Group]]:
    """Collect rows with a ``score`` into groups per owner; ties go to the smaller id."""
    keys = [owner, "relation", "outward"]
    ranked = ranked.sort_values([*keys, "score", "other"], ascending=[True, True, False, False, True])
    groups: dict[int, list[Group]] = {}
    columns = [ranked[name].to_numpy() for name in (*keys, "other")]
    starts = _starts(columns[:3])
    owners, relations, outwards, others = (values.tolist() for values in columns)
    for start, stop in zip(starts, [*starts[1:], len(ranked)], strict=False):
        group = Group(
            relations[start], outwards[start], tuple(others[start : min(stop, start + limit)]), int(stop - start)
        )
        groups.setdefault(owners[start], []).append(group)
    return groups


def _starts(columns: list[np.ndarray]) -> np.ndarray:
    """Places at which a run of equal rows begins."""
    if not len(columns[0]):
        return np.empty(0, dtype=np.int64)
    changes = np.any([values[1:] != values[:-1] for values in columns], axis=0)
    return np.flatnonzero(np.concatenate([[True], changes]))
