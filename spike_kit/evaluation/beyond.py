"""What ranking metrics do not see: whom and what a model's lists serve, how varied, popular and fitting they are.

Everything is computed from top-k lists. Definitions and their sources:

- coverage: share of all items that stand in some list (Herlocker et al., TOIS 2004).
- novelty: mean self-information -log2 p(i) of the listed items, p(i) the share of users with a train interaction with
  i; an item without any counts as one with one (Zhou et al., PNAS 2010; Castells et al., 2015).
- diversity: mean distance of two items of a list (intra-list diversity; Ziegler et al., WWW 2005). By knowledge graph:
  1 - Jaccard similarity of their facts (relation and entity); by text: 1 - cosine of their profile vectors.
- miscalibration: Kullback-Leibler divergence of the genres of a list from those of the user's train items, the list's
  smoothed with a hundredth of the user's (Steck, RecSys 2018); 0 is a perfect match.
- ARP: mean number of train interactions of the listed items (average recommendation popularity; Yin et al.,
  PVLDB 2012).
- Gini: inequality of how often items are listed, over all items; 0 is equal, near 1 is few items for all.
"""

from collections.abc import Iterable
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import torch

from spike_kit.base.errors import ConfigError, DataError, some
from spike_kit.data.dataset import TEMPLATE, Dataset
from spike_kit.data.vectors import ProfileVectors
from spike_kit.evaluation.groups import degree_groups
from spike_kit.evaluation.ranking import RankingTask, ranked
from spike_kit.models.base import Recommender
from spike_kit.profiles.encode import DEFAULT_ENCODER

GENRES = ("genre", "genres", "category", "categories", "tag")
"""Relations that say what kind of item one is; the first of them that a data set has is used for calibration."""

SMOOTHING = 0.01
"""Share of the user's own distribution in that of a list, so that the divergence stays finite (Steck 2018, alpha)."""

MEASURES = ("coverage", "novelty", "diversity by kg", "diversity by text", "miscalibration", "arp", "gini")
"""Names of the measures of `BeyondAccuracy.measure`."""


@torch.no_grad()
def recommended(recommender: Recommender, task: RankingTask, k: int) -> np.ndarray:
    """Best ``k`` unseen items of every user of a task, best first, ``[n, k]``; -1 where there are not so many.

    Raises
    ------
    ConfigError
        If ``k`` is not positive.
    """
    if k < 1:
        raise ConfigError(f"a list must have at least 1 item, not {k}")
    k_here = min(k, task.n_items)
    chunks = ranked(recommender.fixed(), task, k_here)
    found = torch.cat([items.masked_fill(best == float("-inf"), -1).cpu() for best, items in chunks]).numpy()
    return np.pad(found, ((0, 0), (0, k - k_here)), constant_values=-1)


def listed_items(recommender: Recommender, task: RankingTask, k: int = 20) -> dict[str, int]:
    """How many different ``items`` stand in the lists of k items of all users, ``of`` how many that could be."""
    lists = recommended(recommender, task, k)
    return {"items": len(np.unique(lists[lists >= 0])), "of": min(task.n_items, lists.size)}


class BeyondAccuracy:
    """Measures of the lists of the users of one data set.

    Parameters
    ----------
    data
        The data set.
    split
        Split the lists are for; its users are measured.
    vectors
        Vectors of the profiles, for the diversity by text; none leaves it out (NaN).
    """

    def __init__(self, data: Dataset, split: str = "test", vectors: ProfileVectors | None = None) -> None:
        self.data, self.split, self.vectors = data, split, vectors
        self.task = RankingTask.from_tables(data.tables, split)
        self.task.check()
        self.users = self.task.users.numpy()

    @cached_property
    def popularity(self) -> np.ndarray:
        """Train interactions of every item ``[I]``."""
        return np.bincount(self.data.split("train")["item"], minlength=len(self.data.items))

    @cached_property
    def facts(self) -> list[frozenset[tuple[int, int]]]:
        """Facts of every item: relation (its inverse as -1 - relation) and the entity at the other end."""
        facts: list[set[tuple[int, int]]] = [set() for _ in range(len(self.data.items))]
        triples = self.data.triples
        for head, relation, tail in zip(triples["head"], triples["relation"], triples["tail"], strict=True):
            if head < len(facts):
                facts[head].add((relation, tail))
            if tail < len(facts):
                facts[tail].add((-1 - relation, head))
        return [frozenset(found) for found in facts]

    @cached_property
    def genres(self) -> np.ndarray | None:
        """Genres of every item as shares ``[I, g]``, all 0 for an item without one; none without such a relation."""
        relations = dict(zip(self.data.relations["label"].str.lower(), self.data.relations["relation"], strict=True))
        relation = next((relations[name] for name in GENRES if name in relations), None)
        if relation is None:
            return None
        triples = self.data.triples
        rows = triples[(triples["relation"] == relation) & (triples["head"] < len(self.data.items))]
        codes, _ = pd.factorize(rows["tail"], sort=True)
        shares = np.zeros((len(self.data.items), int(codes.max(initial=-1)) + 1))
        shares[rows["head"], codes] = 1.0
        return shares / shares.sum(1, keepdims=True).clip(min=1)

    @property
    def unknown(self) -> dict[str, str]:
        """Why a measure is not known of any list of this data set, by the name of the measure."""
        reasons, genres, labels = {}, self.genres, self.data.relations["label"]
        if self.vectors is None:
            reasons["diversity by text"] = f"profile set {TEMPLATE} is not encoded (spike-kit encode)"
        if genres is None:
            names = " or ".join(GENRES)
            reasons["miscalibration"] = f"no relation is called {names}; there are {some(labels) or 'none'}"
        elif not genres.any():
            reasons["miscalibration"] = "no item has a genre"
        return reasons

    def measure(self, lists: np.ndarray) -> dict[str, float]:
        """Every measure (`MEASURES`) of lists ``[n, k]`` (see `recommended`), means over users where there is one each.

        Raises
        ------
        DataError
            If the lists are not those of the ranked users.
        """
        if lists.shape[0] != len(self.users):
            raise DataError(f"there are lists of {lists.shape[0]} users, expected {len(self.users)}")
        given = lists >= 0
        listed = np.bincount(lists[given], minlength=len(self.popularity))
        n_users = max(1, self.data.split("train")["user"].nunique())
        information = -np.log2(self.popularity.clip(min=1) / n_users)
        return {
            "coverage": float((listed > 0).mean()),
            "novelty": _mean_of_lists(information, lists),
            "diversity by kg": _mean(np.array([self._distance_by_facts(row[row >= 0]) for row in lists])),
            "diversity by text": self._diversity_by_text(lists),
            "miscalibration": self._miscalibration(lists),
            "arp": _mean_of_lists(self.popularity, lists),
            "gini": gini(listed),
        }

    def _distance_by_facts(self, items: np.ndarray) -> float:
        distances = []
        for one, other in combinations((self.facts[item] for item in items), 2):
            union = len(one | other)
            distances.append(1 - len(one & other) / union if union else 1.0)
        return float(np.mean(distances)) if distances else float("nan")

    def _diversity_by_text(self, lists: np.ndarray) -> float:
        if self.vectors is None:
            return float("nan")
        rows = torch.nn.functional.normalize(self.vectors.entity[: len(self.popularity)].double(), dim=1).numpy()
        values = []
        for row in lists:
            items = row[row >= 0]
            n = len(items)
            if n > 1:
                # The sum of all pairs is the square of the sum, less the lengths.
                together = rows[items].sum(0)
                same = (rows[items] ** 2).sum()
                values.append(1 - (together @ together - same) / (n * (n - 1)))
        return _mean(np.array(values))

    def _miscalibration(self, lists: np.ndarray) -> float:
        if self.genres is None or not self.genres.any():
            return float("nan")
        train = self.data.split("train")
        history = np.zeros((len(self.data.users), self.genres.shape[1]))
        np.add.at(history, train["user"].to_numpy(), self.genres[train["item"]])
        values = []
        for user, row in zip(self.users, lists, strict=True):
            wanted, found = history[user], self.genres[row[row >= 0]].sum(0)
            if wanted.sum() and found.sum():
                wanted, found = wanted / wanted.sum(), found / found.sum()
                mixed = (1 - SMOOTHING) * found + SMOOTHING * wanted
                inside = wanted > 0
                values.append(float((wanted[inside] * np.log(wanted[inside] / mixed[inside])).sum()))
        return _mean(np.array(values))

    def by_items(self, lists: np.ndarray, groups: pd.Series) -> dict[str, float]:
        """How well, and how often, each group of items is recommended.

        Parameters
        ----------
        lists
            ``[n, k]``.
        groups
            Group of every item, indexed by item, from `item_groups` or `degree_groups` for example.

        Returns
        -------
        dict
            For every group that has items, with their number in brackets, ``recall`` (share of a user's relevant items
            of the group that are in the list, mean over users who have any; NaN if nobody has) and ``share`` (of all
            places in the lists), for example ``"cold (12): recall"``.
        """
        n_items, given, relevant = len(self.popularity), lists >= 0, self.task.relevant_key.numpy()
        hit = np.isin(relevant, np.repeat(np.arange(len(lists)), given.sum(1)) * n_items + lists[given])
        row = {}
        for name, items in groups.groupby(groups, observed=True).groups.items():
            member = np.zeros(n_items, dtype=bool)
            member[items] = True
            inside = member[relevant % n_items]
            users = relevant[inside] // n_items
            wanted = np.bincount(users, minlength=len(lists))
            found = np.bincount(users, weights=hit[inside], minlength=len(lists))
            row[f"{name} ({len(items)}): recall"] = _mean(found[wanted > 0] / wanted[wanted > 0])
            row[f"{name} ({len(items)}): share"] = _mean(member[lists[given]].astype(float))
        return row


def gini(counts: np.ndarray) -> float:
    """Gini coefficient of non-negative counts: 0 where all are equal, (n - 1) / n where one has everything."""
    values, n = np.sort(counts.astype(np.float64)), len(counts)
    total = values.sum()
    return float(((2 * np.arange(1, n + 1) - n - 1) * values).sum() / (n * total)) if total else float("nan")


def item_groups(data: Dataset, tail: float = 0.2, few: int = 5) -> pd.Series:
    """Cold, long-tail and popular items.

    Parameters
    ----------
    data
        The data set.
    tail
        The least popular items that together hold at most this share of the train interactions are the long tail.
    few
        Items with fewer train interactions than this are cold; those with none can be recommended by their facts or
        texts alone, and are a group of their own.

    Returns
    -------
    Series
        Ordered categories: unseen, cold, long tail, popular; indexed by item (all items).

    Raises
    ------
    ConfigError
        If ``tail`` is no share.
    """
    if not 0 <= tail <= 1:
        raise ConfigError(f"the long tail holds {tail} of the interactions, expected a share between 0 and 1")
    counts = pd.Series(np.bincount(data.split("train")["item"], minlength=len(data.items)))
    held = counts.sort_values(kind="stable").cumsum().sort_index()
    names = ["unseen", "cold", "long tail", "popular"]
    codes = np.where(counts == 0, 0, np.where(counts < few, 1, np.where(held <= tail * counts.sum(), 2, 3)))
    kind = pd.CategoricalDtype(names, ordered=True)
    return pd.Series(pd.Categorical.from_codes(codes, dtype=kind), name="group")


def measure_lists(
    data: Dataset, models: Iterable[tuple[str, Recommender]], split: str = "test", k: int = 20
) -> dict[str, pd.DataFrame]:
    """Every measure of the lists of several trained models, averaged over those of one label.

    Parameters
    ----------
    data
        The data set.
    models
        Label and model; an iterator is asked for one at a time.
    split
        Split the lists are for.
    k
        Length of the lists.

    Returns
    -------
    dict
        "whole lists" (model and a column per measure), and "items by popularity" and "items by facts" (model and the
        columns of `BeyondAccuracy.by_items`). Of each the attribute ``unknown`` holds why cells are NaN, by what is not
        known.
    """
    vectors = data.vectors() if (TEMPLATE, DEFAULT_ENCODER) in data.encoded() else None
    measured = BeyondAccuracy(data, split, vectors)
    kinds = {"items by popularity": item_groups(data), "items by facts": degree_groups(data)}
    tables: dict[str, list[dict[str, Any]]] = {name: [] for name in ("whole lists", *kinds)}
    for label, model in models:
        lists = recommended(model, measured.task, k)
        tables["whole lists"].append({"model": label, **measured.measure(lists)})
        for name, groups in kinds.items():
            tables[name].append({"model": label, **measured.by_items(lists, groups)})
    means = {}
    for name, rows in tables.items():
        table = means[name] = pd.DataFrame(rows).groupby("model", sort=False).mean().reset_index()
        usual = "no user has a relevant item of this group" if name in kinds else "no list holds enough for it"
        empty = table.columns[table.isna().any()]
        table.attrs["unknown"] = {column: measured.unknown.get(column, usual) for column in empty}
    return means


def _mean_of_lists(values: np.ndarray, lists: np.ndarray) -> float:
    """Mean over users of the mean of a value over the items of their list."""
    given = lists >= 0
    sums = np.where(given, values[lists.clip(min=0)], 0.0).sum(1)
    sizes = given.sum(1)
    return _mean(sums[sizes > 0] / sizes[sizes > 0])


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
