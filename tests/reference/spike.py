"""SPiKE's training step without dropout, the plain way, from the equations of docs/method.md: right before it is fast.

Attention works edge by edge in any order of the edges, and matching forms its k x k cosine matrices.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from spike_kit.data.vectors import ProfileVectors
from spike_kit.models.base import Batch
from spike_kit.models.spike import Spike, SpikeDraws


class PlainSpike:
    """The plain step of a `Spike`, whose parameters it shares; equal draws give equal losses and gradients.

    Parameters
    ----------
    model
        Its settings, its graph (on the CPU) and its parameters are used, none of its arithmetic; it must use text.
    vectors
        Profile vectors of the model, in the type of its parameters.
    """

    def __init__(self, model: Spike, vectors: ProfileVectors) -> None:
        self.config, self.graph = model.config, model.graph
        self.parameters = dict(model.named_parameters())
        self.vectors = vectors
        graph, config = self.graph, self.config
        kinds = [graph.n_users, graph.n_items, graph.n_entities - graph.n_items]
        chosen = [config.user_profiles, config.item_profiles, config.auxiliary_profiles]
        self.profiled = torch.repeat_interleave(torch.tensor(chosen), torch.tensor(kinds))
        met = set(graph.train_item.tolist())
        self.trained = [item for item in range(graph.n_items) if item in met]
        new = [graph.n_users + item for item in range(graph.n_items) if item not in met]
        self.known = torch.ones(graph.n_nodes, 1)
        self.known[new if config.new_items else []] = 0

    def training_losses(self, batch: Batch, draws: SpikeDraws) -> dict[str, Tensor]:
        """Loss terms of `Spike.training_losses`."""
        config, graph = self.config, self.graph
        text = self._project()
        nodes = torch.cat([self.parameters["user_embedding"], self.parameters["entity_embedding"]])
        known = self.known if draws.known is None else draws.known
        nodes = known * nodes
        if config.inject:
            nodes = nodes + config.rho * text
        final = self._propagate(nodes, draws)
        if config.remove:
            final = final - config.rho * known * text
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
        chances = torch.log_softmax(users @ items[self.trained].T, dim=1)
        places = torch.tensor([self.trained.index(item) for item in batch.positives.tolist()])
        return -chances[torch.arange(len(users)), places].mean()

    def _project(self) -> Tensor:
        parts = []
        for kind, text in (("user", self.vectors.user), ("entity", self.vectors.entity)):
            w1, b1, w2, b2 = (
                self.parameters[f"{kind}_projection.{layer}.{name}"]
                for layer in ("first", "second")
                for name in ("weight", "bias")
            )
            parts.append(torch.relu(text @ w1.T + b1) @ w2.T + b2)
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
            nodes = functional.normalize(torch.cat([torch.sparse.mm(to_users, items), entity_message]))
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


def matching_by_pairs(graph_side: Tensor, text_side: Tensor) -> Tensor:
    """Mean squared difference of the two k x k cosine matrices, formed in full."""
    a, b = functional.normalize(graph_side, dim=-1), functional.normalize(text_side, dim=-1)
    return (a @ a.mT - b @ b.mT).square().mean()
