"""DiffKG: a knowledge graph denoised by diffusion, contrasted with the original (Jiang et al., WSDM 2024)."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from spike_kit.base.config import TrainingConfig
from spike_kit.models import losses
from spike_kit.models.base import Batch, Preset
from spike_kit.models.kgcl import RelationalGat, RelationalGatConfig
from spike_kit.models.layers import check_generator, keep_mask, linear, random_nodes
from spike_kit.models.spaces import CONTRAST, PROPAGATED, Range
from spike_kit.models.sparse import dense_rows, spmm


class DiffKgConfig(RelationalGatConfig):
    """Settings of DiffKG."""

    edge_keep: float = Field(default=0.5, gt=0, le=1)
    """Share of the denoised graph's edges kept in a step (SSLRec: 0.5, the authors: 0.1)."""
    predict_on: Literal["original", "denoised"] = "original"
    """Graph of the recommendation loss and of scores; the other one is the view it is contrasted with (the authors'
    cl_pattern 1 and 0)."""
    contrast_weight: float = Field(default=0.1, ge=0)
    """Weight of the contrast (SSLRec: 0.1)."""
    contrast_temperature: float = Field(default=0.1, gt=0)
    """Temperature of the contrast (SSLRec: 0.1)."""
    steps: int = Field(default=5, ge=1)
    """Diffusion steps T (SSLRec: 5)."""
    noise_scale: float = Field(default=0.1, gt=0)
    """Scale of the noise (SSLRec: 0.1)."""
    noise_min: float = Field(default=1e-4, gt=0)
    """Variance of the first step, before scaling (SSLRec: 1e-4)."""
    noise_max: float = Field(default=0.02, gt=0)
    """Variance of the last step, before scaling (SSLRec: 0.02)."""
    denoiser_dim: int = Field(default=1000, ge=1)
    """Hidden units of the denoiser (SSLRec: 1000)."""
    time_dim: int = Field(default=10, ge=2)
    """Dimensions of the time embedding (SSLRec: 10)."""
    collaborative_share: float = Field(default=0.5, ge=0, le=1)
    """Share of the collaborative term in the diffusion loss, e_loss (SSLRec: 0.5)."""
    rebuild_k: int = Field(default=1, ge=1)
    """Tails kept per head in the denoised graph (SSLRec: 1)."""
    denoiser_batch: int = Field(default=1024, ge=1)
    """Entities per step of the diffusion phase."""


DiffKgDraws = tuple[Tensor, torch.Generator | None]
"""Randomness of a step: edges of the denoised view, positions ``[k]``; source of dropout masks, if there are any."""


@dataclass(frozen=True)
class Schedule:
    """Constants of the diffusion, ``[T]`` float64 each; computed once, on the CPU."""

    betas: np.ndarray
    kept: np.ndarray
    """Cumulative products of 1 - beta."""
    toward_prediction: np.ndarray
    """Weight of the predicted clean row in the mean of the posterior."""
    toward_current: np.ndarray
    """Weight of the current row in the mean of the posterior."""
    row_weights: np.ndarray
    """Weight of the squared error by step: fall of the signal-to-noise ratio, 1 at the first step."""

    @classmethod
    def of(cls, config: DiffKgConfig) -> Self:
        """Variances linear between the scaled ends, as the authors' code has them; the first beta is 1e-4."""
        ends = config.noise_scale * config.noise_min, config.noise_scale * config.noise_max
        variance = np.linspace(*ends, config.steps)
        signal = 1 - variance
        betas = np.concatenate([variance[:1], np.minimum(1 - signal[1:] / signal[:-1], 0.999)])
        betas[0] = 1e-4
        kept = np.cumprod(1 - betas)
        before = np.concatenate([[1.0], kept[:-1]])
        ratio = kept / (1 - kept)
        return cls(
            betas=betas,
            kept=kept,
            toward_prediction=betas * np.sqrt(before) / (1 - kept),
            toward_current=(1 - before) * np.sqrt(1 - betas) / (1 - kept),
            row_weights=np.concatenate([[1.0], ratio[:-1] - ratio[1:]]),
        )


class Denoiser(nn.Module):
    """Predicts a clean row of the adjacency matrix from a noisy one: Linear, tanh, Linear, with a time embedding."""

    def __init__(self, size: int, config: DiffKgConfig, generator: torch.Generator, device: torch.device) -> None:
        super().__init__()
        self.time_dim = config.time_dim
        self.time = linear(config.time_dim, config.time_dim, generator, device)
        self.first = linear(size + config.time_dim, config.denoiser_dim, generator, device)
        self.second = linear(config.denoiser_dim, size, generator, device)

    def forward(self, rows: Tensor, steps: Tensor) -> Tensor:
        """Map rows ``[n, E]`` at diffusion steps ``[n]`` to rows ``[n, E]``."""
        half = self.time_dim // 2
        rates = torch.exp(-math.log(10_000) * torch.arange(half, device=rows.device) / half)
        angles = steps.to(rows.dtype).unsqueeze(1) * rates
        waves = torch.cat([angles.cos(), angles.sin()], dim=1)
        waves = functional.pad(waves, (0, self.time_dim - 2 * half))
        hidden = self.first(torch.cat([functional.normalize(rows), self.time(waves)], dim=1)).tanh()
        predicted: Tensor = self.second(hidden)
        return predicted


class DiffKg(RelationalGat[DiffKgConfig]):
    """Attention over the knowledge graph, LightGCN on top, and a second view on a denoised knowledge graph.

    Every epoch begins with a phase of its own: the denoiser learns to restore rows of the entity-entity matrix, then
    each row is restored, and of the graph's edges those to the likeliest tails of a row, and back, form the denoised
    graph. Rows are made dense in batches; no entity-entity matrix exists.
    """

    title: ClassVar = "DiffKG"
    scores_new: ClassVar = True
    presets: ClassVar = {
        "recommended": Preset(DiffKgConfig(), TrainingConfig(learning_rate=5e-3)),
        "reference": Preset(DiffKgConfig(l2_on="all"), TrainingConfig(epochs=50, batch_size=1024)),
    }
    search_space: ClassVar = {
        **PROPAGATED,
        **CONTRAST,
        "kg_layers": (1, 2),
        "residual": Range(0.1, 1.0),
        "edge_keep": Range(0.1, 1.0),
        "predict_on": ("original", "denoised"),
    }

    kept_edges: Tensor

    def build(self, generator: torch.Generator) -> None:
        """Draw the tables and the denoiser; at first no edge is noise."""
        super().build(generator)
        n_entities = self.graph.n_entities
        self.denoiser = Denoiser(n_entities, self.config, generator, self.device)
        self.schedule = Schedule.of(self.config)
        self.register_buffer("kept_edges", torch.ones(self.head.shape, dtype=torch.bool, device=self.device))
        self._order = torch.arange(n_entities, device=self.device)

    @property
    def auxiliary_steps(self) -> int:
        """Steps of the diffusion phase."""
        return math.ceil(self.graph.n_entities / self.config.denoiser_batch)

    def auxiliary_losses(self, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Diffusion loss of a batch of entities; the first step shuffles them."""
        check_generator(generator, self.device)
        n_entities, size = self.graph.n_entities, self.config.denoiser_batch
        if step == 0:
            self._order = random_nodes(n_entities, n_entities, generator, self.device)
        rows = self._order[step * size : (step + 1) * size]
        drawn = torch.randint(self.config.steps, rows.shape, generator=generator, device=generator.device)
        noise = torch.randn(rows.shape[0], n_entities, generator=generator, device=generator.device)
        squared, collaborative = self.diffusion_terms(rows, drawn.to(self.device), noise.to(self.device))
        share = self.config.collaborative_share
        return {"diffusion": (1 - share) * squared.mean() + share * collaborative.mean()}

    def after_auxiliary(self) -> None:
        """Restore every row and rebuild the denoised graph."""
        with torch.no_grad():
            self.kept_edges = self.rebuilt(self.likeliest())

    def draw(self, generator: torch.Generator) -> DiffKgDraws:
        """Edges of the denoised view."""
        kept = keep_mask((self.graph.n_edges,), self.config.edge_keep, generator, self.device)
        return (kept.index_select(0, self.places) & self.kept_edges).nonzero().flatten(), generator

    def training_losses(self, batch: Batch, draws: DiffKgDraws) -> dict[str, Tensor]:
        """Recommendation loss on one view, contrast with the other, and L2."""
        config, (denoised, generator) = self.config, draws
        views = [self.view(edges, generator) for edges in (self.original, denoised)]
        if config.predict_on == "denoised":
            views.reverse()
        terms = self.recommendation_losses(*views[0], batch) | self.penalties(batch)
        if config.contrast_weight:
            ids = batch.users, batch.positives
            contrast = losses.contrasts(views, ids, config.contrast_temperature, self.graph.trained_items)
            terms["contrast"] = config.contrast_weight * contrast
        return terms

    def embeddings(self, draws: None = None) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Final rows of users ``[U, d]`` and items ``[I, d]`` on the graph of `predict_on`."""
        denoised = self.config.predict_on == "denoised"
        return self.view(self.kept_edges.nonzero().flatten() if denoised else self.original)

    def noised(self, rows: Tensor, steps: Tensor, noise: Tensor) -> Tensor:
        """Clean rows ``[n, E]`` after ``steps [n]`` of diffusion with Gaussian ``noise [n, E]``."""
        kept = self._constant(self.schedule.kept, steps)
        return kept.sqrt() * rows + (1 - kept).sqrt() * noise

    def diffusion_terms(self, entities: Tensor, steps: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted squared error and collaborative error of the rows of some entities, ``[n]`` each.

        The second compares the entity's embedding with the embeddings of the users of the items that are predicted as
        its tails; both embeddings are taken as they are.
        """
        clean = dense_rows(self.pattern, entities)
        predicted = self.denoiser(self.noised(clean, steps, noise), steps)
        weights = self._constant(self.schedule.row_weights, steps).squeeze(1)
        squared = weights * (clean - predicted).square().mean(1)
        users, own = self.user_embedding.detach(), self.entity_embedding.detach().index_select(0, entities)
        ones = torch.ones_like(self.bipartite.weights[1])
        of_items = spmm(self.bipartite.pattern.transpose, ones, users)
        return squared, (predicted[:, : self.graph.n_items] @ of_items - own).square().mean(1)

    def denoised_rows(self, entities: Tensor) -> Tensor:
        """Result ``[n, E]`` of the reverse process for the clean rows of some entities, without noise."""
        rows = dense_rows(self.pattern, entities)
        for step in reversed(range(self.config.steps)):
            steps = torch.full_like(entities, step)
            predicted = self.denoiser(rows, steps)
            rows = self.schedule.toward_prediction[step] * predicted + self.schedule.toward_current[step] * rows
        return rows

    def likeliest(self) -> Tensor:
        """The ``rebuild_k`` likeliest tails of every entity after denoising, ``[E, k]``."""
        n_entities, size = self.graph.n_entities, self.config.denoiser_batch
        places = torch.arange(n_entities, device=self.device).split(size)
        k = min(self.config.rebuild_k, n_entities)
        return torch.cat([self.denoised_rows(part).topk(k, dim=1).indices for part in places])

    def rebuilt(self, likeliest: Tensor) -> Tensor:
        """Which edges go from an entity to one of its likeliest tails, or back: a mask in the edges' order."""
        forth = likeliest.index_select(0, self.head) == self.tail.unsqueeze(1)
        back = likeliest.index_select(0, self.tail) == self.head.unsqueeze(1)
        return forth.any(1) | back.any(1)

    def _constant(self, values: np.ndarray, steps: Tensor) -> Tensor:
        """Constants of the schedule at steps ``[n]``, ``[n, 1]`` float32."""
        return torch.from_numpy(values).float().to(self.device).index_select(0, steps).unsqueeze(1)
