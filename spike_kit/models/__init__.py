"""The models, and the registry that names them."""

from __future__ import annotations

from spike_kit.base.errors import lookup
from spike_kit.models.bprmf import BprMf
from spike_kit.models.colakg import CoLaKg
from spike_kit.models.diffkg import DiffKg
from spike_kit.models.ease import Ease
from spike_kit.models.itemknn import ItemKnn
from spike_kit.models.kgat import Kgat
from spike_kit.models.kgcl import Kgcl
from spike_kit.models.kgin import Kgin
from spike_kit.models.kgrec import KgRec
from spike_kit.models.lightgcl import LightGcl
from spike_kit.models.lightgcn import LightGcn
from spike_kit.models.popularity import Popularity
from spike_kit.models.recommender import Preset, Recommender, TrainedRecommender
from spike_kit.models.rlmrec import RlmRecCon, RlmRecGen
from spike_kit.models.sgl import Sgl
from spike_kit.models.spike import Spike

MODELS: dict[str, type[Recommender]] = {
    "spike": Spike,
    "bprmf": BprMf,
    "lightgcn": LightGcn,
    "sgl": Sgl,
    "lightgcl": LightGcl,
    "kgrec": KgRec,
    "diffkg": DiffKg,
    "rlmrec_con": RlmRecCon,
    "rlmrec_gen": RlmRecGen,
    "colakg": CoLaKg,
    "kgat": Kgat,
    "kgin": Kgin,
    "kgcl": Kgcl,
    "popularity": Popularity,
    "itemknn": ItemKnn,
    "ease": Ease,
}
"""Every model by its name."""

__all__ = ["MODELS", "Preset", "Recommender", "TrainedRecommender", "find_model", "find_preset"]


def find_model(name: str) -> type[Recommender]:
    """Look up a model; an unknown name is a `ConfigError` that lists the known ones."""
    return lookup(MODELS, name, "model")


def find_preset(model: str, preset: str = "recommended") -> Preset:
    """Look up a named setting of a model; an unknown name is a `ConfigError` that lists the known ones."""
    return lookup(find_model(model).presets, preset, f"preset of model {model}")
