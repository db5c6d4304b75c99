"""Tables a reader can read: ids replaced by names."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from spike_kit.base.errors import DataError, require
from spike_kit.base.seeds import numpy_generator
from spike_kit.data.build import compared
from spike_kit.data.dataset import Dataset
from spike_kit.models.base import Recommender
from spike_kit.profiles.prompts import prompt_texts
from spike_kit.profiles.quality import unsupported_facts
from spike_kit.profiles.template import fill


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
    networkx = require("networkx", "lab")
    triples, n_items, n_entities = data.triples, len(data.items), len(data.entities)
    graph = networkx.Graph()
    graph.add_nodes_from(range(n_entities))
    graph.add_edges_from(triples[["head", "tail"]].to_numpy().tolist())
    sizes = [len(component) for component in networkx.connected_components(graph)]
    degree = np.bincount(triples[["head", "tail"]].to_numpy().ravel(), minlength=n_entities)
    rows = {
        "entities, items among them": n_entities,
        "items": n_items,
        "relations": len(data.relations),
        "triples": len(triples),
        "triples per item (median)": float(np.median(degree[:n_items])),
        "items without a triple": int((degree[:n_items] == 0).sum()),
        "other entities without a triple": int((degree[n_items:] == 0).sum()),
        "connected components": len(sizes),
        "entities in the largest component": max(sizes),
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
    rows = functional.normalize(vectors.detach().float())
    cosines = rows @ rows[entity]
    cosines[entity] = float("-inf")
    best, ids = cosines.topk(min(k, len(cosines) - 1))
    table = data.entities.iloc[ids.numpy()][["label", "kind"]].reset_index(drop=True)
    return table.assign(cosine=best.numpy())


def train_history(data: Dataset, user: int) -> list[str]:
    """Names of a user's train items."""
    own = data.split("train")
    return data.items["label"].to_numpy()[own.loc[own["user"] == user, "item"]].tolist()


def final_entity_vectors(model: Recommender) -> Tensor:
    """Final embeddings ``[E, d]`` of all entities of a model that has them (SPiKE).

    Raises
    ------
    DataError
        If the model has none.
    """
    nodes = getattr(model, "node_embeddings", None)
    if nodes is None:
        raise DataError(f"{type(model).__name__} has no embeddings of entities")
    with torch.no_grad():
        return nodes()[1]


def published_table(data: Dataset) -> pd.DataFrame:
    """Counts that the owners of a data set published beside ours, before any filter."""
    return compared(data.manifest)


def unsupported(data: Dataset, subjects: Sequence[tuple[str, int]], profiles: Sequence[str]) -> pd.DataFrame:
    """Names and numbers in some profiles that do not stand in their prompts, by subject, id and profile set."""
    rows = []
    for name in profiles:
        prompts = prompt_texts(data, name)
        for subject, number in subjects:
            found = unsupported_facts(profile_of(data, subject, number, name), prompts[subject, number])
            rows.append((subject, number, name, found))
    return pd.DataFrame(rows, columns=["subject", "id", "profiles", "unsupported"])
