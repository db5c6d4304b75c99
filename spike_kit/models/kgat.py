"""KGAT: attention over users, items and entities in one graph (Wang et al., KDD 2019)."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from spike_kit.base.config import TrainingConfig
from spike_kit.models import losses
from spike_kit.models.base import EntityRecommender, Preset, TrainedConfig
from spike_kit.models.layers import kept_entries, kept_share, linear, random_nodes, uniform, xavier_table
from spike_kit.models.spaces import SHARED
from spike_kit.models.sparse import SparsePattern, segment_softmax, spmm


class KgatConfig(TrainedConfig):
    """Settings of KGAT."""

    layers: int = Field(default=3, ge=1)
    """Propagation layers; each has half the dimensions of the one before (the authors: 64, 32, 16)."""
    message_dropout: float = Field(default=0.1, ge=0, le=0.99)
    """Dropout of messages (the authors: 0.1)."""
    relation_dim: int = Field(default=64, ge=1)
    """Dimension of the relations' space (the authors: 64)."""
    triple_batch: int = Field(default=2048, ge=1)
    """Edges per step of the TransR phase (the authors: 2048)."""
    triple_l2: float = Field(default=1e-5, ge=0)
    """Coefficient of the L2 term of the TransR phase (the authors: 1e-5)."""


class BiInteraction(nn.Module):
    """``LeakyReLU((e + m) W1) + LeakyReLU((e * m) W2)`` of rows e and what they receive, m (paper, eq. 8)."""

    def __init__(self, n_in: int, n_out: int, generator: torch.Generator, device: torch.device) -> None:
        super().__init__()
        self.sum = linear(n_in, n_out, generator, device)
        self.product = linear(n_in, n_out, generator, device)

    def forward(self, rows: Tensor, received: Tensor) -> Tensor:
        """Map ``[n, n_in]`` to ``[n, n_out]``."""
        return functional.leaky_relu(self.sum(rows + received)) + functional.leaky_relu(self.product(rows * received))


class Kgat(EntityRecommender[KgatConfig]):
    """Final embeddings: id embeddings and normalised layers side by side, over one graph of all nodes.

    An interaction is an edge of a relation of its own, and so is its inverse. Every epoch begins with a TransR phase
    over all edges, after which the attention weights are computed once for the whole epoch.
    """

    title: ClassVar = "KGAT"
    scores_new: ClassVar = True
    presets: ClassVar = {
        "recommended": Preset(KgatConfig(), TrainingConfig(learning_rate=5e-3)),
        "reference": Preset(KgatConfig(), TrainingConfig(epochs=1000, batch_size=1024, learning_rate=1e-4)),
    }
    search_space: ClassVar = {**SHARED, "layers": (1, 2, 3), "message_dropout": (0.0, 0.1, 0.3)}

    attention: Tensor

    @property
    def relation_shape(self) -> tuple[int, int]:
        """Interactions and their inverses are two more relations."""
        return 2 * self.graph.n_relations + 2, self.config.relation_dim

    def build(self, generator: torch.Generator) -> None:
        """Draw the tables, maps and layers, and join both graphs."""
        super().build(generator)
        config, graph = self.config, self.graph
        n_relations, relation_dim = self.relation_shape
        maps = xavier_table(n_relations * config.dim, relation_dim, generator, self.device)
        self.relation_map = nn.Parameter(maps.detach().view(n_relations, config.dim, relation_dim))
        sizes = [config.dim, *(max(config.dim // 2**layer, 1) for layer in range(config.layers))]
        layers = (BiInteraction(*ends, generator, self.device) for ends in pairwise(sizes))
        self.aggregators = nn.ModuleList(layers)
        users, items = graph.train_user, graph.train_item + graph.n_users
        head = torch.cat([graph.head + graph.n_users, users, items])
        tail = torch.cat([graph.tail + graph.n_users, items, users])
        of_interactions = torch.full_like(users, n_relations - 2)
        relation = torch.cat([graph.relation, of_interactions, of_interactions + 1])
        order = torch.argsort(head * graph.n_nodes + tail, stable=True)
        head, self.relation, tail = (x.index_select(0, order) for x in (head, relation, tail))
        self.pattern = SparsePattern(head, tail, graph.n_nodes, graph.n_nodes)
        degree = self.pattern.row_degree.index_select(0, self.pattern.rows)
        self.register_buffer("attention", degree.float().reciprocal())
        self._order = torch.arange(head.shape[0], device=self.device)

    @property
    def auxiliary_steps(self) -> int:
        """Steps of the TransR phase."""
        return math.ceil(self.relation.shape[0] / self.config.triple_batch)

    def auxiliary_losses(self, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        """TransR loss of a batch of edges (paper, eq. 2), each beside one with a random tail of its kind."""
        n_edges, size = self.relation.shape[0], self.config.triple_batch
        if step == 0:
            self._order = random_nodes(n_edges, n_edges, generator, self.device)
        edges = self._order[step * size : (step + 1) * size]
        relation = self.relation.index_select(0, edges)
        heads, tails = (ends.index_select(0, edges) for ends in (self.pattern.rows, self.pattern.columns))
        draws = uniform(edges.shape, generator, self.device, torch.float64)
        n_users, nodes = self.graph.n_users, self.nodes
        is_user = tails < n_users
        others = (draws * torch.where(is_user, n_users, self.graph.n_entities)).long()
        others = torch.where(is_user, others, others + n_users)
        rows = self._mapped([nodes.index_select(0, ids) for ids in (heads, tails, others)], relation)
        of_relation = self.relation_embedding.index_select(0, relation)
        right, wrong = ((rows[0] + of_relation - end).square().sum(1) for end in rows[1:])
        terms = {"transr": functional.softplus(right - wrong).mean()}
        if self.config.triple_l2:
            terms["transr_l2"] = self.config.triple_l2 * losses.l2(*rows, of_relation)
        return terms

    def _mapped(self, parts: Sequence[Tensor], relation: Tensor) -> list[Tensor]:
        """Rows ``[B, d]`` of each part by the map of their relation ``[B]``: one product per relation, not per row."""
        if relation.device.type == "meta":
            maps = self.relation_map.index_select(0, relation)
            return [torch.bmm(rows.unsqueeze(1), maps).squeeze(1) for rows in parts]
        order = relation.argsort(stable=True)
        sizes = relation.bincount(minlength=self.relation_map.shape[0]).tolist()
        groups = torch.stack(list(parts), 1).index_select(0, order).split(sizes)
        mapped = torch.cat([group @ one for group, one in zip(groups, self.relation_map, strict=True)])
        return list(mapped.index_select(0, order.argsort()).unbind(1))

    def after_auxiliary(self) -> None:
        """Compute the attention of all edges anew."""
        with torch.no_grad():
            self.attention = self.edge_attention()

    def edge_attention(self) -> Tensor:
        """Attention of every edge ``[m]``: softmax by head of ``(W_r e_t)' tanh(W_r e_h + e_r)`` (paper, eq. 4)."""
        nodes = self.nodes
        scores = torch.zeros_like(self.attention)
        for number in range(self.relation_embedding.shape[0]):
            mapped = nodes @ self.relation_map[number]
            own = (self.relation == number).nonzero().flatten()
            heads, tails = (ends.index_select(0, own) for ends in (self.pattern.rows, self.pattern.columns))
            keys = (mapped.index_select(0, heads) + self.relation_embedding[number]).tanh()
            scores = scores.index_copy(0, own, (mapped.index_select(0, tails) * keys).sum(1))
        return segment_softmax(scores, self.pattern.rows, self.pattern.n_rows)

    def draw(self, generator: torch.Generator) -> torch.Generator:
        """Source of the dropout masks."""
        return generator

    def embeddings(self, draws: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Id embeddings and normalised layers, side by side: users ``[U, d + d + d/2 + ...]``, items ``[I, ...]``."""
        nodes = self.nodes
        layers = [nodes]
        for aggregator in self.aggregators:
            nodes = aggregator(nodes, spmm(self.pattern, self.attention, nodes))
            mask = kept_entries(nodes, self.config.message_dropout, draws)
            if mask is not None:
                nodes = nodes * mask / kept_share(1 - self.config.message_dropout)
            layers.append(functional.normalize(nodes))
        return self.users_and_items(torch.cat(layers, dim=1))
