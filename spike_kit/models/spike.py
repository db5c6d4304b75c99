"""SPiKE: profiles injected into a knowledge graph, propagated, removed again, and matched pairwise.

Seokho Ahn, Sungbok Shin, Young-Duk Seo: Enriching Semantic Profiles into Knowledge Graph for Recommender Systems Using
Large Language Models (KDD 2026). The equations are those of the authors' released code; every place where the kit's
recommended form differs is a field of `SpikeConfig`.
"""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from spike_kit.base.config import TrainingConfig, later
from spike_kit.data.vectors import ProfileVectors
from spike_kit.models import losses
from spike_kit.models.base import Batch, Preset
from spike_kit.models.kg_encoder import EncoderDraws, KgEncoder, KgEncoderConfig
from spike_kit.models.layers import Precision, ProfileProjection, keep_mask, random_nodes
from spike_kit.models.spaces import SHARED, Range


class SpikeConfig(KgEncoderConfig):
    """Settings of SPiKE; the ablations of the paper are fields, so each is a toggle."""

    text: bool = later(True)
    """Whether any text is read; no is short for neither inject, remove nor match profiles."""
    rho: float = Field(default=0.25, ge=0)
    """Strength of an injected profile, rho = lambda_p (released code: 0.25)."""
    user_profiles: bool = True
    """Whether users have profiles: injected, removed and matched."""
    item_profiles: bool = True
    """Whether items have profiles."""
    auxiliary_profiles: bool = True
    """Whether the other entities have profiles."""
    inject: bool = True
    """Add rho times the projected profile to the id embedding before propagation."""
    remove: bool = True
    """Subtract rho times the projected profile from the sum over layers."""
    matching: Literal["exact", "sampled", "off"] = "exact"
    """Pairwise matching of graph and text: over all nodes, over sampled nodes (released code), or not at all."""
    matching_weight: float = Field(default=5.0, ge=0)
    """Weight of the matching loss (released code: 5)."""
    gamma: float = Field(default=0.1, gt=0, le=1)
    """Share of the nodes in one sample, gamma (released code: 0.1); used by sampled matching."""
    repeats: int = Field(default=8, ge=1)
    """Samples per step (released code: 8); used by sampled matching."""
    text_components: int = Field(default=0, ge=0)
    """Whitened principal components to which the profile vectors are reduced, fewer where there are not so many; 0
    takes the vectors as they are (released code). Sentences of one template are nearly parallel: without whitening a
    few directions that all texts share outweigh what tells them apart."""
    text_dropout: float = Field(default=0.1, ge=0, le=0.99)
    """Dropout inside the projection of profiles (released code: 0.1)."""
    separate_masks: bool = False
    """Project three times per step with three dropout masks: to inject, to remove, to match (released code: yes; then
    removal does not undo injection in training)."""
    new_items: bool = later(True)
    """Whether the profile of an item without train interactions stands for its id embedding, which counts as zero, and
    so is not removed (released code: no; it scores such items by embeddings that were never trained)."""
    id_dropout: float = later(0.0, ge=0, lt=1)
    """Probability that a training step treats an item as new, so that new items are scored in a way that was trained
    (ours, after DropoutNet: Volkovs et al., NeurIPS 2017)."""
    dropped_edges: int = Field(default=0, ge=0)
    """Edges dropped per step by noisy attention, and as many at random, together at most half of the sample (released
    code: 256, a leftover of KGRec)."""
    text_precision: Precision = "float32"
    """Number format of the products of the text projection; bfloat16 pays where the processor or GPU has it."""
    text_on: Literal["device", "host"] = "device"
    """Where the text vectors stay: on the training device, or in main memory (memory-mapped), streaming in chunks."""

    @model_validator(mode="after")
    def _check_new(self) -> Self:
        if self.id_dropout and not self.new_items:
            raise ValueError(f"id_dropout {self.id_dropout} treats items as new, which needs new_items")
        return self

    @property
    def uses_text(self) -> bool:
        """Whether any profile has any effect."""
        profiled = self.user_profiles or self.item_profiles or self.auxiliary_profiles
        matched = self.matching != "off" and self.matching_weight > 0
        return self.text and profiled and (self.inject or self.remove or matched)


RECOMMENDED = SpikeConfig(
    loss="cosine_softmax", temperature=0.2, layers=1, rho=0.5, matching_weight=0.5, text_components=64
)
"""For template profiles, chosen on validation of the three data sets of the study (docs/history/2026-11.md): one layer,
a stronger profile, whitened text, a softmax on cosines. The best temperature differs between them (.13 to .25): search
for it."""

LLM_PROFILES = RECOMMENDED.replace(matching_weight=5.0, text_components=128)
"""For profiles by a large language model, chosen on validation of ml-100k: the paper's weight of the matching loss, and
twice as many components. Why prose wants more of them is not known: 64 explain as much of it as of templates (61 %)."""

NEW_ITEMS = LLM_PROFILES.replace(temperature=0.25, matching_weight=10.0, id_dropout=0.2, new_item_scale=1.5)
"""For data sets of new items, chosen on validation of item splits of ml-100k (docs/log.md). The scale trades known
items for new ones."""

RELEASED_CODE = SpikeConfig(
    matching="sampled", separate_masks=True, skip_last_relation=True, dropped_edges=256, l2=0.0, new_items=False
)
"""What the authors' code computes (its L2 term never reaches the loss, hence 0)."""


RECOMMENDED_TRAINING = TrainingConfig(batch_size=65_536, learning_rate=5e-3, eval_every=5)

RELEASED_TRAINING = TrainingConfig(epochs=500, batch_size=1024, learning_rate=1e-4, patience=0, keep="last")
"""How the authors' code trains; `released_single_projection` is the same with one dropout mask per step."""


@dataclass(frozen=True)
class SpikeDraws(EncoderDraws):
    """Everything random of one training step.

    Attributes
    ----------
    nodes
        Nodes to match ``[repeats, k]`` (users 0..U-1, entity e is U + e); none matches all.
    known
        ``[U + E, 1]``: 0 for the items that this step treats as new, see `Spike.known`; none: those that are.
    """

    nodes: Tensor | None = None
    known: Tensor | None = None


class Spike(KgEncoder[SpikeConfig]):
    """SPiKE on one graph with the vectors of one profile set."""

    title: ClassVar = "SPiKE"
    whole_users: ClassVar = True
    scores_new: ClassVar = True
    presets: ClassVar = {
        "recommended": Preset(RECOMMENDED, RECOMMENDED_TRAINING),
        "llm_profiles": Preset(LLM_PROFILES, RECOMMENDED_TRAINING),
        "new_items": Preset(NEW_ITEMS, RECOMMENDED_TRAINING),
        "released_code": Preset(RELEASED_CODE, RELEASED_TRAINING),
        "released_single_projection": Preset(RELEASED_CODE.replace(separate_masks=False), RELEASED_TRAINING),
    }
    search_space: ClassVar = {
        **{name: values for name, values in SHARED.items() if name != "loss"},
        "rho": Range(0.1, 2.0, log=True),
        "matching_weight": Range(0.05, 50.0, log=True),
    }
    """Without the loss, which is part of the recommended form: the softmax on cosines was its best one on validation of
    every data set of docs/study."""
    uses_text: ClassVar = True

    text_loadings: Tensor
    known: Tensor | None
    """Column ``[U + E, 1]``: 0 for items without train interactions, else 1; none where there are no such items."""

    def build(self, generator: torch.Generator) -> None:
        """Draw the tables of the encoder, and where any profile has an effect the projections."""
        super().build(generator)
        treats_new = self.config.new_items and self.graph.has_new_items
        self.known = self._of_items(self.graph.known_items) if treats_new else None
        if self.config.uses_text:
            self._add_text(generator)

    def _add_text(self, generator: torch.Generator) -> None:
        config, graph, vectors = self.config, self.graph, self.profile_vectors()
        told = vectors.has_text().cpu() if vectors.widths else None
        if config.text_components:
            centre, loadings = self._of_profiled(vectors).whitening(config.text_components)
            self.register_buffer("text_centre", centre.to(graph.device))
            self.register_buffer("text_loadings", loadings.to(graph.device))
            vectors = vectors.transformed(centre, loadings)
        options = (vectors.dim, config.dim, config.text_dropout, generator, self.device, self._budget)
        self.user_projection = ProfileProjection(*options, config.text_precision)
        self.entity_projection = ProfileProjection(*options, config.text_precision)
        self.text = vectors if config.text_on == "host" else vectors.to(graph.device)
        bounds = (0, graph.n_users, graph.n_users + graph.n_items, graph.n_nodes)
        switches = (config.user_profiles, config.item_profiles, config.auxiliary_profiles)
        ranges = [torch.arange(*ends) for ends, profiled in zip(pairwise(bounds), switches, strict=True) if profiled]
        nodes = torch.cat(ranges)
        if told is not None:
            nodes = nodes[told.index_select(0, nodes)]
        self._all_profiled = nodes.numel() == graph.n_nodes
        self.profiled_nodes = nodes.to(self.device)
        profiled = torch.zeros(graph.n_nodes, dtype=torch.bool, device=self.device)
        self.profiled = profiled.index_fill(0, self.profiled_nodes, True)

    def _of_profiled(self, vectors: ProfileVectors) -> ProfileVectors:
        """Rows of the subjects that have profiles: others must not be seen, not even through the components."""
        config, n_items = self.config, self.graph.n_items
        start, end = 0 if config.item_profiles else n_items, None if config.auxiliary_profiles else n_items
        users = vectors.user if config.user_profiles else vectors.user[:0]
        return replace(vectors, user=users, entity=vectors.entity[start:end])

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Replace all parameters, and reduce the profile vectors as the stored components say."""
        super().load_tensors(tensors)
        if "text_loadings" in tensors:
            where = self.text.user.device
            given = self.profile_vectors()
            basis = (tensors[name].to(given.user.device) for name in ("text_centre", "text_loadings"))
            self.text = given.transformed(*basis).to(where)

    def is_static(self, n: int) -> bool:
        """Only where edges and hidden rows are in one piece, texts on the device, and no distinct users to be found."""
        config, fits = self.config, True
        if config.uses_text:
            masks, sides = 3 if config.separate_masks else 1, (self.text.user, self.text.entity)
            projections = self.user_projection, self.entity_projection
            kept = (one.keeps_hidden(text, masks) for one, text in zip(projections, sides, strict=True))
            fits = config.text_on == "device" and all(kept)
        return fits and len(self.edges.blocks) == 1 and (config.loss == "bpr" or n >= self.graph.n_users)

    def draw(self, generator: torch.Generator) -> SpikeDraws:
        """Sample edges per relation, interactions, and nodes to match; dropout takes the generator from there."""
        config = self.config
        edges, silent = self.sampled_edges(generator), None
        if config.dropped_edges:
            edges = torch.arange(self.graph.n_edges, device=self.device) if edges is None else edges
            _, _, silent = self.rationales(edges, config.dropped_edges, generator)
            if self.device.type == "cpu":
                edges, silent = self.mask(edges).index_fill(0, silent, False).nonzero().flatten(), None
        interactions = self.sampled_interactions(generator)
        sampled = config.uses_text and config.matching == "sampled"
        nodes = self._sample_nodes(generator) if sampled else None
        known = None
        if config.id_dropout:
            every = self.graph.known_items
            kept = keep_mask(every.shape, 1 - config.id_dropout, generator, self.device, every.dtype)
            known = self._of_items(every * kept)
        return SpikeDraws(edges, interactions, generator, nodes, known, silent=silent)

    def _of_items(self, items: Tensor) -> Tensor:
        """Column ``[U + E, 1]`` of all nodes: that of the items ``[I, 1]``, and 1 for the others."""
        n_users, n_after = self.graph.n_users, self.graph.n_entities - self.graph.n_items
        return functional.pad(items, (0, 0, n_users, n_after), value=1.0)

    def training_losses(self, batch: Batch, draws: SpikeDraws) -> dict[str, Tensor]:
        """Recommendation loss, L2 of the batch's final rows, and weighted matching."""
        config = self.config
        injected = removed = text = None
        if config.uses_text:
            injected, removed, text = self.projected(draws.generator, 3 if config.separate_masks else 1)
        final = self.final_rows(injected, removed, draws, draws.known)
        terms = self.recommendation_losses(*self.users_and_items(final), batch, config.l2)
        if text is not None and config.matching != "off" and config.matching_weight:
            terms["matching"] = config.matching_weight * self._matching(final, text, draws.nodes)
        return terms

    def encoded(self, draws: EncoderDraws) -> tuple[Tensor, Tensor]:
        """Final rows of users ``[U, d]`` and all entities ``[E, d]`` after removal; the projection drops nothing."""
        profiles = self.projected(None, 1)[0] if self.config.uses_text else None
        final = self.final_rows(profiles, profiles, draws)
        return final[: self.graph.n_users], final[self.graph.n_users :]

    def node_embeddings(self) -> tuple[Tensor, Tensor]:
        """Final rows of users ``[U, d]`` and all entities ``[E, d]`` after removal; nothing is sampled or dropped."""
        return self.encoded(EncoderDraws())

    def _sample_nodes(self, generator: torch.Generator) -> Tensor:
        n_nodes = self.profiled_nodes.numel()
        size = max(1, int(self.config.gamma * n_nodes))
        draws = [random_nodes(n_nodes, size, generator, self.graph.device) for _ in range(self.config.repeats)]
        chosen = torch.stack(draws)
        return self.profiled_nodes.index_select(0, chosen.flatten()).view_as(chosen)

    def projected(self, generator: torch.Generator | None, masks: int) -> tuple[Tensor, Tensor, Tensor]:
        """Projected profiles of all nodes ``[U + E, d]``, zero where a node has none: to inject, remove and match.

        They are one tensor, or one for each of three dropout masks.
        """
        users = self.user_projection(self.text.user, generator, masks)
        entities = self.entity_projection(self.text.entity, generator, masks)
        nodes = [torch.cat(parts) for parts in zip(users, entities, strict=True)]
        if not self._all_profiled:
            nodes = [rows * self.profiled.unsqueeze(1) for rows in nodes]
        return nodes[0], nodes[masks // 2], nodes[-1]

    def final_rows(
        self, injected: Tensor | None, removed: Tensor | None, draws: EncoderDraws, known: Tensor | None = None
    ) -> Tensor:
        """Final rows of all nodes ``[U + E, d]``, by the equations of docs/method.md, section 3.

        A new item has its profile instead of an id embedding, so it is not removed again.

        Parameters
        ----------
        injected, removed
            Projected profiles ``[U + E, d]`` as they go in and as they are taken out (their dropout may differ); none
            without text.
        draws
            What is dropped in this pass; an empty one drops nothing.
        known
            ``[U + E, 1]``: 0 for items that count as new; none: items without train interactions do.
        """
        config = self.config
        nodes = self.nodes
        if known is None:
            known = self.known
        if known is not None:
            nodes, removed = nodes * known, None if removed is None else removed * known
        if injected is not None and config.inject:
            nodes = torch.add(nodes, injected, alpha=config.rho)
        total = self.propagate(nodes, draws)
        if removed is not None and config.remove:
            total = torch.sub(total, removed, alpha=config.rho)
        return total

    def _matching(self, final: Tensor, text: Tensor, nodes: Tensor | None) -> Tensor:
        if nodes is None:
            if self._all_profiled:
                return losses.matching(final, text)
            nodes = self.profiled_nodes
        shape = (*nodes.shape, -1)
        flat = nodes.flatten()
        return losses.matching(final.index_select(0, flat).view(shape), text.index_select(0, flat).view(shape))
