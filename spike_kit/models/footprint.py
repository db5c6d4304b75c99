"""How much memory training will take, before anything is built."""

from collections.abc import Iterator
from dataclasses import dataclass

from spike_kit.base.devices import chunks
from spike_kit.data.graph import Graph
from spike_kit.models.base import TrainedConfig
from spike_kit.models.edges import keeps_rows, pairs_per_block
from spike_kit.models.spike import SpikeConfig

_FLOAT, _INT = 4, 8
_SCRATCH = 2**26
"""What allocators and threads hold beside tensors."""


@dataclass(frozen=True)
class Footprint:
    """Estimated peak of one training process in bytes, by what takes it."""

    parameters: int
    """Parameters, gradients, two moments of Adam, and the best weights so far."""
    text: int
    """Text vectors on the training device."""
    hidden: int
    """Hidden rows and dropout masks of the text projection."""
    nodes: int
    """Rows of all nodes that the backward pass needs."""
    pairs: int
    """Rows of (relation, tail) pairs and their gradients."""
    edges: int
    """Positions, order and attention of edges and interactions."""
    batch: int
    """Rows and scores of one batch, and scores of one chunk of the evaluation."""

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return sum(vars(self).values())

    def __str__(self) -> str:
        """Total and the parts that matter, in GiB."""
        shown = sorted(vars(self).items(), key=lambda part: -part[1])[:3]
        return f"{gib(self.total)} ({', '.join(f'{name} {gib(size)}' for name, size in shown)})"


def gib(size: float) -> str:
    """Bytes as a text in GiB."""
    return f"{size / 2**30:.2f} GiB"


def footprint(config: TrainedConfig, graph: Graph, text_dim: int, batch_size: int) -> Footprint:
    """Estimate the memory of training, without what Python and torch take for themselves.

    The estimate is meant to be somewhat too high; docs/training.md has measured peaks beside it.

    Parameters
    ----------
    config
        Settings of the model.
    graph
        Graph it will be trained on.
    text_dim
        Dimension d_t of the profile vectors; 0 without.
    batch_size
        Train interactions per step; more than there are count as all of them.
    """
    n_nodes, rows = graph.n_nodes, _FLOAT * config.dim
    evaluation = 4 * _FLOAT * max(2**21, min(chunks(graph.device).ranked_scores, graph.n_users * graph.n_items))
    batch = 6 * min(batch_size, graph.n_interactions) * rows + evaluation + _SCRATCH
    if not isinstance(config, SpikeConfig):
        n_tables = graph.n_users + graph.n_items
        propagated = 8 + 4 * getattr(config, "layers", 0)
        edges = 20 * _INT * graph.n_interactions
        return Footprint(5 * n_tables * rows, 0, 0, propagated * n_tables * rows, 0, edges, batch)
    budget = config.budget_mib * 2**20
    masks = 3 if config.separate_masks else 1
    text_dim = min(text_dim, config.text_components or text_dim)
    text = n_nodes * text_dim * _FLOAT
    weights = 2 * (text_dim * text_dim + text_dim * config.dim)
    hidden = min(masks * text, 2 * budget) + min((masks + 2) * text, budget)
    n_pairs = min(graph.n_edges, pairs_per_block(graph.n_entities, config.dim, budget, graph.device))
    return Footprint(
        parameters=5 * (n_nodes * rows + weights * _FLOAT),
        text=0 if config.text_on == "host" else text,
        hidden=hidden if config.uses_text else 0,
        nodes=(20 + 6 * config.layers + 3 * masks) * n_nodes * rows,
        pairs=(5 * config.layers + 2 if keeps_rows(graph.n_edges, config.dim, budget) else 5) * n_pairs * rows,
        edges=(16 + (6 + config.layers) * config.heads) * _INT * graph.n_edges + 12 * _INT * graph.n_interactions,
        batch=batch,
    )


def leaner_settings(config: TrainedConfig) -> Iterator[tuple[str, TrainedConfig]]:
    """Settings of the same model that take less memory, the mildest first, each with how to ask for it.

    They give another run of the same quality: chunks draw other dropout masks.
    """
    if not isinstance(config, SpikeConfig):
        return
    for budget in (128, 32):
        if budget < config.budget_mib:
            yield f"--budget-mib {budget}", config.replace(budget_mib=budget)
    if config.text_on == "device" and config.uses_text:
        smallest = min(32, config.budget_mib)
        yield f"--text-on host --budget-mib {smallest}", config.replace(text_on="host", budget_mib=smallest)
