"""Where a score of a trained SPiKE comes from: layers, profiles or structure, attention; and what it would be without.

Given the attention weights and the lengths by which rows are normalised, every row is linear in the id embeddings and
the injected profiles (docs/method.md, section 3). So each layer's row splits exactly into a part that began as id
embeddings and a part that began as profiles, and a score into products of such parts that add up to it. What a score
would be *without* a profile or an edge is not read off such parts: the model itself computes its rows again, without
it. Parameters stay as they were trained in either case, so this is not what a model trained without it would do.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, Self

import pandas as pd
import torch
from torch import Tensor

from spike_kit.base.errors import DataError
from spike_kit.data.graph import Graph
from spike_kit.models.best import best_items
from spike_kit.models.layers import row_norms
from spike_kit.models.sparse import count, segment_softmax
from spike_kit.models.spike import Spike, SpikeDraws

PARTS = ("structure", "profile")
"""Where a part of a row began: as an id embedding, or as an injected profile."""


@dataclass(frozen=True)
class Removal:
    """Something taken out of a trained model's inputs.

    Attributes
    ----------
    kind
        ``profile`` of a node, a ``triple``, or a train ``interaction``.
    what
        The node (users 0..U-1, entity e is U + e); head, relation and tail; user and item.
    """

    kind: Literal["profile", "triple", "interaction"]
    what: tuple[int, ...]


@dataclass(frozen=True)
class LayerRows:
    """Rows of all nodes in every layer, split by where they began.

    Attributes
    ----------
    parts
        ``[L + 1, 2, U + E, d]``: layer, part (`PARTS`), node. Layer 0 holds the input with the removed profile already
        subtracted, so the sum over layers and parts is the final row.
    attention
        Weight of every edge in the graph's order, mean over attention heads, ``[L, 2 m]``; over the edges of a head
        entity they sum to 1. Under ``user_to_item="instead"`` those of items are computed, but their messages dropped.
    """

    parts: Tensor
    attention: Tensor


class SpikeExplainer:
    """Rows, attention and scores of a trained SPiKE, as they are or without something.

    Parameters
    ----------
    model
        A trained model; it is not changed.
    removals
        What is taken out.
    """

    def __init__(self, model: Spike, removals: Sequence[Removal] = ()) -> None:
        self.model, self.removals = model, tuple(removals)
        self.graph = _without_edges(model.graph, self.removals)
        self._on_graph = model if self.graph is model.graph else _moved(model, self.graph)

    def without(self, *removals: Removal) -> Self:
        """The same with more taken out.

        Raises
        ------
        DataError
            If the graph has no such triple, interaction or node.
        """
        other = type(self)(self.model, (*self.removals, *removals))
        other.__dict__["_projected"] = self._projected
        return other

    @cached_property
    def _projected(self) -> Tensor:
        """Projected profiles of all nodes before anything is taken out, ``[U + E, d]``."""
        model = self.model
        if not model.config.uses_text:
            return model.user_embedding.new_zeros(self.graph.n_nodes, model.config.dim)
        with torch.no_grad():
            return model.projected(None, 1)[0]

    @cached_property
    def profiles(self) -> Tensor:
        """Projected profiles z of all nodes ``[U + E, d]``, zero where there is none or it is taken out."""
        gone = [removal.what[0] for removal in self.removals if removal.kind == "profile"]
        return self._projected.index_fill(0, torch.tensor(gone, dtype=torch.long, device=self.model.device), 0.0)

    @cached_property
    def final(self) -> Tensor:
        """Final rows of all nodes ``[U + E, d]`` by the model's own forward pass, with what is taken out gone."""
        with torch.no_grad():
            return self._on_graph.final_rows(self.profiles, self.profiles, SpikeDraws())

    @cached_property
    def rows(self) -> LayerRows:
        """Rows of every layer, nothing sampled or dropped; their sum is `final`."""
        model, config = self.model, self.model.config
        with torch.no_grad():
            ids = model.nodes
            profiles = config.rho * self.profiles
            nothing = torch.zeros_like(ids)
            parts = torch.stack([ids, profiles if config.inject else nothing])
            removed = nothing if not config.remove else profiles if model.known is None else profiles * model.known
            layers, attention = [parts - torch.stack([nothing, removed])], []
            for _ in range(config.layers):
                parts, weights = _step(self._on_graph, parts)
                layers.append(parts)
                attention.append(weights)
            return LayerRows(torch.stack(layers), torch.stack(attention))

    def scores(self, user: int) -> Tensor:
        """Scores of all items for a user ``[I]``, as evaluation ranks them.

        Raises
        ------
        DataError
            If there is no such user.
        """
        self._check(user, ())
        items = self.model.users_and_items(self.final)[1]
        users, items = self.model.comparable(self.final[user : user + 1], items)
        return (users @ items.T)[0]

    def _check(self, user: int, items: Sequence[int]) -> None:
        graph = self.graph
        if not 0 <= user < graph.n_users:
            raise DataError(f"there is no user {user}", f"users are 0 to {graph.n_users - 1}")
        if missing := [item for item in items if not 0 <= item < graph.n_items]:
            raise DataError(f"there is no item {missing[0]}", f"items are 0 to {graph.n_items - 1}")

    def contributions(self, user: int, items: Sequence[int]) -> Tensor:
        """Exact parts of a user's scores; their sum over everything but the items is the score.

        Returns
        -------
        Tensor
            ``[n, L + 1, 2, L + 1, 2]``: item, layer and part of the user's row, layer and part of the item's row.

        Raises
        ------
        DataError
            If there is no such user or item.
        """
        graph, rows = self.graph, self.rows
        self._check(user, items)
        chosen = torch.tensor(list(items), dtype=torch.long, device=rows.parts.device)
        ours, theirs = rows.parts[:, :, user], rows.parts.index_select(2, graph.n_users + chosen)
        found = torch.einsum("apd,bqnd->napbq", ours, theirs)
        if self.model.config.loss == "cosine_softmax":
            ends = theirs.sum(dim=(0, 1)), ours.sum(dim=(0, 1))
            lengths = torch.linalg.vector_norm(ends[0], dim=1) * torch.linalg.vector_norm(ends[1])
            found = found / lengths.clamp_min(1e-12)[:, None, None, None, None]
        factors = self.model.scaled(torch.ones(graph.n_items, device=chosen.device)).index_select(0, chosen)
        return found * factors[:, None, None, None, None]

    def top(self, user: int, seen: Sequence[int], k: int) -> list[int]:
        """Best ``k`` items that are not among ``seen``, best first; equal scores by item id."""
        scores = self.scores(user)
        scores[list(seen)] = float("-inf")
        return best_items(scores.unsqueeze(0), min(k, len(scores) - len(set(seen))))[1][0].tolist()

    def attention(self) -> Tensor:
        """Attention of every edge, the mean over layers, ``[2 m]``."""
        return self.rows.attention.mean(0)


def _step(model: Spike, parts: Tensor) -> tuple[Tensor, Tensor]:
    """Next layer's parts ``[2, U + E, d]``, by weights and lengths of the whole rows, and the attention ``[2 m]``."""
    whole, weights = parts.sum(0), model.interaction_weights()
    following = torch.stack([model.messages(part, model.edges, weights, whole) for part in parts])
    return following / row_norms(following.sum(0)), _attention(model, whole)


def _attention(model: Spike, nodes: Tensor) -> Tensor:
    """Weights of all edges in the graph's order, mean over heads."""
    graph, edges = model.graph, model.edges
    if model.config.attention == "mean":
        degree = count(graph.head, graph.n_entities).clamp_min(1).to(nodes.dtype)
        return 1 / degree.index_select(0, graph.head)
    keyed = nodes[graph.n_users :] @ model.attention_weight
    scores = edges.scores(keyed, model.relation_embedding)
    weights = torch.stack([segment_softmax(row, edges.heads, graph.n_entities) for row in scores]).mean(0)
    return torch.zeros_like(weights).index_copy(0, edges.places, weights)


def _moved(model: Spike, graph: Graph) -> Spike:
    """The same parameters on another graph; the model itself is not changed."""
    other = copy.copy(model)
    other.graph = graph
    for name in ("interactions", "edges"):
        vars(other).pop(name, None)
    return other


def _without_edges(graph: Graph, removals: Sequence[Removal]) -> Graph:
    """The graph without the triples (and their inverses) and train interactions among the removals."""
    for removal in removals:
        if removal.kind == "profile":
            if not 0 <= removal.what[0] < graph.n_nodes:
                raise DataError(f"there is no node {removal.what[0]}")
            continue
        if removal.kind == "triple":
            columns, (head, relation, tail) = ("head", "relation", "tail"), removal.what
            forward = (graph.head == head) & (graph.relation == relation) & (graph.tail == tail)
            inverse = (graph.head == tail) & (graph.relation == relation + graph.n_relations) & (graph.tail == head)
            kept = ~(forward | inverse)
        else:
            columns, (user, item) = ("train_user", "train_item"), removal.what
            kept = ~((graph.train_user == user) & (graph.train_item == item))
        if bool(kept.all()):
            raise DataError(f"the graph has no {removal.kind} {removal.what}")
        graph = replace(graph, **{name: getattr(graph, name)[kept] for name in columns})
    return graph


def what_if(
    before: SpikeExplainer, user: int, seen: Sequence[int], removals: Sequence[Removal], k: int = 10
) -> pd.DataFrame:
    """Scores and ranks of a user's items with and without something, computed by the model's forward pass either time.

    Parameters of the model stay as they were trained, and an item of a removed interaction stays among the seen ones.

    Parameters
    ----------
    before
        The model as it is.
    user
        The user.
    seen
        Items that are not ranked.
    removals
        What is taken out.
    k
        Items of either top-k list are shown.

    Returns
    -------
    DataFrame
        item, score, rank (from 1), new score, new rank, change (of the score); by the old rank.
    """
    table = pd.DataFrame({"item": range(before.graph.n_items)})
    for prefix, explainer in (("", before), ("new ", before.without(*removals))):
        scores = explainer.scores(user)
        scores[list(seen)] = float("-inf")
        table[f"{prefix}score"] = scores.tolist()
        table[f"{prefix}rank"] = table[f"{prefix}score"].rank(method="first", ascending=False).astype(int)
    table = table[~table["item"].isin(list(seen))]
    table["change"] = table["new score"] - table["score"]
    return table[(table["rank"] <= k) | (table["new rank"] <= k)].sort_values("rank").reset_index(drop=True)
