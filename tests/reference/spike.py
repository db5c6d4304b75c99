"""SPiKE's training step the plain way, from the equations of docs/method.md: right before it is fast.

Every node's text is projected three times per step, edges are sampled by a loop over relations, attention works edge by
edge in any order of the edges, and matching forms its k x k cosine matrices.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from spike_kit.data.vectors import ProfileVectors
from spike_kit.models.base import Batch
from spike_kit.models.spike import Spike, SpikeDraws
from tests.reference import matching_by_pairs


class PlainSpike:
    """The plain step of a `Spike`, whose parameters it shares; equal draws give equal losses and gradients.

    Parameters
    ----------
    model
        Its settings, its graph (on the CPU) and its parameters are used, none of its arithmetic; it must use text.
    vectors
        Profile vectors of the model, in the type of its parameters.
    rng
        Source of the edges sampled in `draw`.
    """

    def __init__(self, model: Spike, vectors: ProfileVectors, rng: np.random.Generator) -> None:
        self.config, self.graph = model.config, model.graph
        self.parameters = dict(model.named_parameters())
        self.vectors, self.rng = vectors, rng
        graph, config = self.graph, self.config
        kinds = [graph.n_users, graph.n_items, graph.n_entities - graph.n_items]
        chosen = [config.user_profiles, config.item_profiles, config.auxiliary_profiles]
        self.profiled = torch.repeat_interleave(torch.tensor(chosen), torch.tensor(kinds))

    def draw(self, generator: torch.Generator) -> SpikeDraws:
        """Sample one step's edges (in no particular order), interactions and nodes; the generator makes the dropout."""
        config, graph = self.config, self.graph
        relation = graph.relation.numpy()
        chosen = []
        for number in range(2 * graph.n_relations - config.skip_last_relation):
            places = np.flatnonzero(relation == number)
            chosen.append(self.rng.choice(places, size=int(config.edge_keep * len(places)), replace=False))
        edges = torch.from_numpy(np.concatenate(chosen))
        if config.dropped_edges:
            edges = self._drop(edges, generator)
        interactions = torch.rand(graph.n_interactions, generator=generator) < config.edge_keep
        nodes = None
        if config.matching == "sampled":
            profiled = torch.nonzero(self.profiled).flatten()
            size = max(1, int(config.gamma * len(profiled)))
            samples = [torch.randperm(len(profiled), generator=generator)[:size] for _ in range(config.repeats)]
            nodes = profiled[torch.stack(samples)]
        return SpikeDraws(edges, interactions, generator, nodes)

    def training_losses(self, batch: Batch, draws: SpikeDraws) -> dict[str, Tensor]:
        """Loss terms of `Spike.training_losses`."""
        config, graph = self.config, self.graph
        injected, removed, text = (self._project(draws.generator) for _ in range(3))
        nodes = torch.cat([self.parameters["user_embedding"], self.parameters["entity_embedding"]])
        if config.inject:
            nodes = nodes + config.rho * injected
        final = self._propagate(nodes, draws)
        if config.remove:
            final = final - config.rho * removed
        items = final[graph.n_users : graph.n_users + graph.n_items]
        users, positives = final[: graph.n_users][batch.users], items[batch.positives]
        negatives = items[batch.negatives]
        terms = {config.loss: self._ranking(users, positives, negatives, items, batch)}
        if config.l2:
            rows = [users, positives, *([negatives] if config.loss == "bpr" else [])]
            terms["l2"] = config.l2 * (torch.cat(rows) ** 2).sum() / 2 / len(users)
        if config.matching != "off" and config.matching_weight:
            samples = self.profiled.nonzero().flatten().unsqueeze(0) if draws.nodes is None else draws.nodes
            differences = [matching_by_pairs(final[sample], text[sample]) for sample in samples]
            terms["matching"] = config.matching_weight * torch.stack(differences).mean()
        return terms

    def _ranking(self, users: Tensor, positives: Tensor, negatives: Tensor, items: Tensor, batch: Batch) -> Tensor:
        if self.config.loss == "bpr":
            difference = (users * negatives).sum(1) - (users * positives).sum(1)
            return functional.softplus(difference).mean()
        if self.config.loss == "cosine_softmax":
            users, items = functional.normalize(users) / self.config.temperature, functional.normalize(items)
        chances = torch.log_softmax(users @ items.T, dim=1)
        return -chances[torch.arange(len(users)), batch.positives].mean()

    def _project(self, generator: torch.Generator | None) -> Tensor:
        parts = []
        for kind, text in (("user", self.vectors.user), ("entity", self.vectors.entity)):
            w1, b1, w2, b2 = (
                self.parameters[f"{kind}_projection.{layer}.{name}"]
                for layer in ("first", "second")
                for name in ("weight", "bias")
            )
            hidden = _dropout(torch.relu(text @ w1.T + b1), self.config.text_dropout, generator)
            parts.append(hidden @ w2.T + b2)
        return torch.cat(parts) * self.profiled.unsqueeze(1)

    def _propagate(self, nodes: Tensor, draws: SpikeDraws) -> Tensor:
        graph, config = self.graph, self.config
        kept = torch.arange(graph.n_edges) if draws.edges is None else draws.edges
        head, relation, tail = graph.head[kept], graph.relation[kept], graph.tail[kept]
        everything = torch.ones(graph.n_interactions, dtype=torch.bool)
        present = everything if draws.interactions is None else draws.interactions
        pairs = torch.stack([graph.train_user[present], graph.train_item[present]])
        to_users = _mean_matrix(pairs, (graph.n_users, graph.n_items), nodes.dtype)
        total = nodes
        for _ in range(config.layers):
            users, entities = nodes[: graph.n_users], nodes[graph.n_users :]
            items = entities[: graph.n_items]
            entity_message = self._graph_message(entities, head, relation, tail)
            if config.user_to_item != "off":
                own, others = entity_message[: graph.n_items], entity_message[graph.n_items :]
                to_items = _mean_matrix(pairs.flip(0), (graph.n_items, graph.n_users), nodes.dtype)
                from_users = torch.sparse.mm(to_items, users)
                entity_message = torch.cat([own + from_users if config.user_to_item == "add" else from_users, others])
            messages = torch.cat([torch.sparse.mm(to_users, items), entity_message])
            nodes = functional.normalize(_dropout(messages, config.message_dropout, draws.generator))
            total = total + nodes
        return total

    def _graph_message(self, entities: Tensor, head: Tensor, relation: Tensor, tail: Tensor) -> Tensor:
        n_entities = self.graph.n_entities
        values = entities[tail] * self.parameters["relation_embedding"][relation]
        if self.config.attention == "mean":
            weights = (1 / torch.bincount(head, minlength=n_entities)[head].to(values.dtype)).unsqueeze(1)
        else:
            weights = _softmax(self._scores(entities, head, relation, tail), head, n_entities)
        values = values.view(len(head), weights.shape[1], -1) * weights.unsqueeze(2)
        return torch.zeros_like(entities).index_add(0, head, values.view(len(head), -1))

    def _scores(self, entities: Tensor, head: Tensor, relation: Tensor, tail: Tensor) -> Tensor:
        """Attention scores ``[m, M]``: query and key of every edge."""
        weight, size = self.parameters["attention_weight"], self.config.dim // self.config.heads
        query, key = entities[head] @ weight, entities[tail] @ weight
        product = query * (key * self.parameters["relation_embedding"][relation])
        return product.view(len(head), -1, size).sum(2) / math.sqrt(size)

    def _drop(self, edges: Tensor, generator: torch.Generator) -> Tensor:
        """Drop edges of high noisy attention, and as many at random."""
        graph = self.graph
        head, relation, tail = graph.head[edges], graph.relation[edges], graph.tail[edges]
        with torch.no_grad():
            scores = self._scores(self.parameters["entity_embedding"], head, relation, tail).mean(1, keepdim=True)
            weights = _softmax(scores, head, graph.n_entities).squeeze(1)
            weights = weights * torch.bincount(head, minlength=graph.n_entities)[head]
        noise = -torch.log(-torch.log(torch.rand(len(edges), generator=generator)))
        size = min(self.config.dropped_edges, len(edges) // 2)
        kept = torch.ones(len(edges), dtype=torch.bool)
        kept[torch.topk(weights + noise, size).indices] = False
        kept[torch.randperm(len(edges), generator=generator)[:size]] = False
        return edges[kept]


def _dropout(x: Tensor, rate: float, generator: torch.Generator | None) -> Tensor:
    if generator is None or not rate:
        return x
    return x * torch.empty_like(x).bernoulli_(1 - rate, generator=generator).div_(1 - rate)


def _mean_matrix(pairs: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Sparse matrix that averages the columns of each row, from positions ``[2, n]``."""
    degree = torch.bincount(pairs[0], minlength=shape[0])
    return torch.sparse_coo_tensor(pairs, 1 / degree[pairs[0]].to(dtype), shape, check_invariants=False)


def _softmax(scores: Tensor, segment: Tensor, n_segments: int) -> Tensor:
    """Softmax over the rows of each segment, by scattering, whatever their order."""
    shape = (n_segments, scores.shape[1])
    index = segment.unsqueeze(1).expand_as(scores)
    largest = torch.full(shape, -math.inf, dtype=scores.dtype).scatter_reduce(0, index, scores.detach(), "amax")
    powers = torch.exp(scores - largest[segment])
    return powers / torch.zeros(shape, dtype=scores.dtype).index_add(0, segment, powers)[segment]
