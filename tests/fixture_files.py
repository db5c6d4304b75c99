"""Parity fixtures: numbers of reference implementations, read from ``SPIKE_KIT_FIXTURES`` or tests/fixtures."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from spike_kit.data.graph import Graph
from spike_kit.data.vectors import ProfileVectors
from spike_kit.models.base import Batch, TrainedConfig, TrainedRecommender

TOLERANCE = 2e-5
"""Largest difference allowed, relative to the largest absolute value of the array."""

MLPS = {
    "text_user_fc": "user_projection",
    "text_entity_fc": "entity_projection",
    "text_fc": "text_mlp",
    "contrast_ui_fc": "interaction_mlp",
    "contrast_kg_fc": "knowledge_mlp",
    "denoise_fc": "denoiser",
}
"""Modules of two layers by what the files call them."""
LAYERS = {"denoise_time_": "denoiser.time.", "text_user_": "user_map.", "text_item_": "item_map."}
OTHERS = {"attention_w": "attention_weight", "neighbour_w": "attention_weight", "neighbour_a": "attention_vector"}

SETTINGS = {
    "dim": ("embedding_size",),
    "layers": ("layer_num",),
    "kg_layers": ("layer_num_kg",),
    "heads": ("n_heads",),
    "l2": ("reg_weight", "decay", "decay_weight"),
    "message_dropout": ("mess_dropout_rate",),
    "text_dropout": ("text_dropout_rate",),
    "text_weight": ("kd_weight", "recon_weight"),
    "text_temperature": ("kd_temperature", "re_temperature"),
    "contrast_weight": ("cl_weight", "cl_coef"),
    "contrast_temperature": ("temperature", "temp", "tau"),
    "contrast_drop": ("cl_drop_ratio",),
    "reconstruction_weight": ("mae_coef",),
    "hidden_edges": ("mae_msize",),
    "dropped_edges": ("mae_msize",),
    "mask_share": ("mask_ratio",),
    "neighbours": ("neighbor_k",),
    "rank": ("svd_q",),
    "rho": ("text_rho",),
    "matching_weight": ("align_coef",),
    "gamma": ("anchor_ratio",),
    "repeats": ("num_repeat",),
    "per_head": ("triplet_num",),
    "residual": ("res_lambda",),
    "denoiser_dim": ("denoise_hidden",),
    "time_dim": ("d_emb_size",),
    "collaborative_share": ("e_loss",),
    **{name: (name,) for name in ("steps", "noise_scale", "noise_min", "noise_max", "rebuild_k")},
}
"""What the files call our settings."""

Model = TypeVar("Model", bound=TrainedRecommender)
SettingsT = TypeVar("SettingsT", bound=TrainedConfig)


def our_name(parameter: str) -> str:
    """Name of a parameter here by its name in the files."""
    if parameter in OTHERS:
        return OTHERS[parameter]
    places = {
        f"{mlp}{n}_": f"{ours}.{layer}." for mlp, ours in MLPS.items() for n, layer in ((1, "first"), (2, "second"))
    }
    for theirs, ours in {**places, **LAYERS}.items():
        if parameter.startswith(theirs):
            return ours + parameter.removeprefix(theirs)
    return parameter


class Fixture:
    """One fixture file: arrays by name, hyper-parameters read as written, and what compares a model with it."""

    def __init__(self, name: str) -> None:
        folder = Path(os.environ.get("SPIKE_KIT_FIXTURES", Path(__file__).parent / "fixtures"))
        with np.load(folder / f"{name}.npz", allow_pickle=False) as file:
            self.arrays = {key: file[key] for key in file.files}

    def tensor(self, key: str) -> Tensor:
        return torch.from_numpy(self.arrays[key])

    def integer(self, key: str) -> int:
        return int(self.arrays[key])

    def real(self, key: str) -> float:
        """Float hyper-parameter; going through its text undoes the rounding to float32."""
        return float(str(self.arrays[key]))

    def config(self, usual: SettingsT, **own: Any) -> SettingsT:
        """Settings of the file, ``own`` ones, and for all others the usual ones."""
        known = {name: theirs for name, theirs in SETTINGS.items() if name in type(usual).model_fields}
        given = {
            name: self.real(f"hp.{key}") for name, keys in known.items() for key in keys if f"hp.{key}" in self.arrays
        }
        return usual.replace(**given | own)

    @property
    def batch(self) -> Batch:
        return Batch(self.tensor("batch.users"), self.tensor("batch.pos"), self.tensor("batch.neg"))

    @property
    def graph(self) -> Graph:
        """Interactions, and the knowledge graph where the file has one; else items are the only entities.

        All items count as trained: for the implementations behind the files every item is a negative.
        """
        n_items = self.integer("input.n_items")
        graph = Graph.from_arrays(
            n_users=self.integer("input.n_users"),
            n_items=n_items,
            n_entities=int(self.arrays.get("input.n_entities", n_items)),
            n_relations=int(self.arrays.get("input.n_relations", 0)),
            interactions=self.arrays["input.train"],
            triples=self.arrays.get("input.kg", np.empty((0, 3), dtype=np.int64)),
        )
        return replace(graph, trained_items=torch.arange(n_items))

    def model(self, cls: type[Model], config: Any) -> Model:
        """Model with all weights of the file but those that nothing uses; it has no others."""
        vectors = None
        if "input.text_user" in self.arrays:
            names = [name for name in ("input.text_item", "input.text_aux_entity") if name in self.arrays]
            vectors = ProfileVectors(self.tensor("input.text_user"), torch.cat([*map(self.tensor, names)]))
        model = cls(config, self.graph, vectors, torch.Generator().manual_seed(0))
        given = {our_name(key): self.tensor(f"weight.{key}") for key in self.under("weight")}
        model.load_state_dict({**dict(model.named_buffers()), **given}, strict=True)
        return model

    def under(self, prefix: str) -> list[str]:
        """Names of the parameters under a prefix."""
        names = [key.removeprefix(f"{prefix}.") for key in self.arrays if key.startswith(f"{prefix}.")]
        return [name for name in names if not name.startswith("unused")]

    def places(self, columns: tuple[Tensor, ...], key: str) -> Tensor:
        """Where the rows of an array stand in a table given by its columns."""
        known = {row: place for place, row in enumerate(zip(*(column.tolist() for column in columns), strict=True))}
        return torch.tensor([known[tuple(row)] for row in self.arrays[key].tolist()])

    def check(self, found: Tensor, key: str, factor: float = 1.0) -> None:
        """Compare with ``factor`` times an array, relative to its largest absolute value."""
        assert_close(found, factor * self.arrays[key], key)

    def check_sides(self, found: tuple[Tensor, Tensor], prefix: str) -> None:
        """Compare rows of users and items."""
        for side, rows in zip(("user", "item"), found, strict=True):
            self.check(rows, f"{prefix}{side}")

    def check_evaluation(self, model: TrainedRecommender) -> None:
        """Compare final embeddings, and scores of the batch's users where the file does not mask them."""
        self.check_sides(model.embeddings(), "eval.")
        expected = next(value for key, value in self.arrays.items() if key.startswith("eval.scores_batch"))
        shown = expected > -1e7
        assert_close(model.score(self.batch.users)[torch.from_numpy(shown)], expected[shown], "scores")

    def check_losses(self, model: TrainedRecommender, terms: dict[str, Tensor], prefix: str, **keys: str) -> None:
        """Compare terms (by their keys in the file), their sum, and its gradients."""
        for name, key in {"bpr": "bpr", **keys}.items():
            self.check(terms[name], f"{prefix}.loss.{key}")
        self.check(total_of(terms), f"{prefix}.loss.total")
        self.check_gradients(model, total_of(terms), f"{prefix}.grad")

    def check_gradients(self, model: TrainedRecommender, loss: Tensor, prefix: str) -> None:
        """Compare every gradient that the file has of a loss."""
        model.zero_grad()
        loss.backward(retain_graph=True)
        names = self.under(prefix)
        assert len(names) >= 2
        for key in names:
            gradient = model.get_parameter(our_name(key)).grad
            expected = self.arrays[f"{prefix}.{key}"]
            assert_close(torch.zeros(expected.shape) if gradient is None else gradient, expected, f"{prefix}.{key}")


def total_of(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(terms.values())).sum()


def assert_close(found: Tensor, expected: np.ndarray, name: str) -> None:
    target = torch.from_numpy(np.asarray(expected))
    assert found.shape == target.shape, f"{name}: shape {list(found.shape)}, expected {list(target.shape)}"
    difference = float((found.detach() - target).abs().max())
    scale = float(target.abs().max())
    assert difference <= TOLERANCE * scale, f"{name}: off by {difference:.3g}, allowed {TOLERANCE * scale:.3g}"
