"""Tables a reader can read: ids replaced by names."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.sparse import csgraph
from torch import Tensor

from spike_kit.base.errors import DataError
from spike_kit.base.seeds import numpy_generator
from spike_kit.data.dataset import Dataset
from spike_kit.profiles.template import fill
from spike_kit.views.search import nearest


def named_triples(data: Dataset, n: int = 10, seed: int = 0) -> pd.DataFrame:
    """Random triples with names: head, relation, tail, and the sentence they make."""
    size = min(n, len(data.triples))
    rows = data.triples.iloc[numpy_generator(seed, "triples").choice(len(data.triples), size, replace=False)]
    labels = data.entities["label"].to_numpy()
    heads, tails = labels[rows["head"]], labels[rows["tail"]]
    relations = data.relations.iloc[rows["relation"]]
    sentences = [fill(*parts) for parts in zip(relations["template"], heads, tails, strict=True)]
    return pd.DataFrame(
        {"head": heads, "relation": relations["label"].to_numpy(), "tail": tails, "sentence": sentences}
    )


def funnel_table(data: Dataset) -> pd.DataFrame:
    """Funnel of the build, a row for each step; what a step did not count is left blank."""
    return pd.DataFrame(data.manifest.funnel).convert_dtypes().astype(object).fillna("")


def graph_statistics(data: Dataset) -> pd.DataFrame:
    """Facts about the knowledge graph in one table (what, value): sizes, connected components, items without triples.

    Components are those of the graph without directions; an entity without a triple is a component of its own.
    """
    ends, n_items, n_entities = data.triples[["head", "tail"]].to_numpy(), len(data.items), len(data.entities)
    links = sparse.coo_array((np.ones(len(ends)), ends.T), shape=(n_entities, n_entities))
    sizes = np.bincount(csgraph.connected_components(links, directed=False)[1])
    degree = np.bincount(ends.ravel(), minlength=n_entities)
    rows = {
        "entities, items among them": n_entities,
        "items": n_items,
        "relations": len(data.relations),
        "triples": len(ends),
        "triples per item (median)": float(np.median(degree[:n_items])),
        "items without a triple": int((degree[:n_items] == 0).sum()),
        "other entities without a triple": int((degree[n_items:] == 0).sum()),
        "connected components": len(sizes),
        "entities in the largest component": int(sizes.max()),
    }
    return pd.DataFrame({"what": list(rows), "value": pd.Series(list(rows.values()), dtype=object)})


def relation_statistics(data: Dataset) -> pd.DataFrame:
    """One row per relation: its name, sentence, triples, and how many different heads and tails it has."""
    groups = data.triples.groupby("relation")
    counts = groups.agg(triples=("head", "size"), heads=("head", "nunique"), tails=("tail", "nunique"))
    named = data.relations.set_index("relation")[["label", "template"]].rename(columns={"label": "name"})
    table = named.join(counts).fillna({"triples": 0, "heads": 0, "tails": 0})
    return table.astype({"triples": int, "heads": int, "tails": int}).sort_values("triples", ascending=False)


def profile_of(data: Dataset, subject: str, number: int, name: str = "template") -> str:
    """Profile text of an ``item``, an ``auxiliary`` entity or a ``user`` in a profile set.

    Raises
    ------
    DataError
        If there is no such subject.
    """
    profiles = data.profiles(name)
    text = profiles.loc[(profiles["subject"] == subject) & (profiles["id"] == number), "text"]
    if text.empty:
        raise DataError(f"{data.name} has no {subject} {number}")
    return str(text.iloc[0])


def neighbours(data: Dataset, vectors: Tensor, entity: int, k: int = 5) -> pd.DataFrame:
    """Entities nearest to one of them by cosine of ``vectors [E, d]``: label, kind, cosine."""
    best, cosines = nearest(vectors.detach().cpu().numpy(), entity, k)
    return data.entities.iloc[best][["label", "kind"]].reset_index(drop=True).assign(cosine=cosines)


def train_history(data: Dataset, user: int) -> list[str]:
    """Names of a user's train items."""
    own = data.split("train")
    return data.items["label"].to_numpy()[own.loc[own["user"] == user, "item"]].tolist()
