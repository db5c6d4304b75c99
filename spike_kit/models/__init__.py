"""The models, and the registry that names them: a new model is a file in this folder and a line here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spike_kit.base.errors import Registry, lookup

if TYPE_CHECKING:
    from spike_kit.models.base import Preset, Recommender

MODELS: Registry[type[Recommender]] = Registry(
    "model",
    {
        "spike": "spike_kit.models.spike:Spike",
        "bprmf": "spike_kit.models.bprmf:BprMf",
        "lightgcn": "spike_kit.models.lightgcn:LightGcn",
        "sgl": "spike_kit.models.sgl:Sgl",
        "lightgcl": "spike_kit.models.lightgcl:LightGcl",
        "kgrec": "spike_kit.models.kgrec:KgRec",
        "diffkg": "spike_kit.models.diffkg:DiffKg",
        "rlmrec_con": "spike_kit.models.rlmrec:RlmRecCon",
        "rlmrec_gen": "spike_kit.models.rlmrec:RlmRecGen",
        "colakg": "spike_kit.models.colakg:CoLaKg",
        "kgat": "spike_kit.models.kgat:Kgat",
        "kgin": "spike_kit.models.kgin:Kgin",
        "kgcl": "spike_kit.models.kgcl:Kgcl",
        "popularity": "spike_kit.models.popularity:Popularity",
        "itemknn": "spike_kit.models.itemknn:ItemKnn",
        "ease": "spike_kit.models.ease:Ease",
        "ials": "spike_kit.models.ials:Ials",
        "text_knn": "spike_kit.models.text_knn:TextKnn",
        "text_ridge": "spike_kit.models.text_ridge:TextRidge",
    },
)
"""Every model by its name."""


def find_model(name: str) -> type[Recommender]:
    """Look up a model; an unknown name is a `ConfigError` that lists the known ones."""
    return MODELS[name]


def find_preset(model: str, preset: str = "recommended") -> Preset:
    """Look up a named setting of a model; an unknown name is a `ConfigError` that lists the known ones."""
    return lookup(find_model(model).presets, preset, f"preset of model {model}")
