"""Numbers of every model and preset on the tiny world, and the file that keeps them."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spike_kit.base.config import TrainingConfig
from spike_kit.base.seeds import torch_generator
from spike_kit.data.vectors import ProfileVectors
from spike_kit.evaluation.ranking import RankingTask, evaluate
from spike_kit.experiments.versions import declared_versions
from spike_kit.models import MODELS
from spike_kit.models.base import Recommender, TrainedRecommender
from spike_kit.training.loop import BY_USER_VERSION, fit
from tests.world import World, make_world

FILE = Path(__file__).with_name("models.json")
EPOCHS = 4
TOLERANCE = 1e-5
"""Relative, and absolute for scores and tensors."""
SMALLEST = 1e-7
"""Absolute for losses, whose terms may be small."""

SMALL = {
    "dim": 16,
    "relation_dim": 16,
    "attention_dim": 8,
    "denoiser_dim": 32,
    "denoiser_batch": 30,
    "triple_batch": 50,
}
"""Sizes that are changed wherever a model has such a setting."""


@dataclass(frozen=True)
class Form:
    """A preset, and what differs from it: settings of the model, of the training, dimensions of the texts."""

    preset: str = "recommended"
    settings: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    text_dim: int = 0


IN_CHUNKS = {"budget_mib": 1, "text_on": "host"}
"""With long texts the projection passes in chunks and is computed again in the backward pass; with wide rows the
edges pass in blocks."""

WHOLE_USERS = Form(training={"batches": "users"})
"""Batches that hold users with all of their interactions."""

EXTRA = {
    "spike": {
        "recommended, user_to_item add": Form(settings={"user_to_item": "add"}),
        "recommended, user_to_item instead": Form(settings={"user_to_item": "instead"}),
        "recommended, whole users": WHOLE_USERS,
        "recommended, no injection": Form(settings={"inject": False}),
        "released_code, text in chunks": Form("released_code", IN_CHUNKS, {"epochs": 2}, text_dim=1400),
        "released_single_projection, text in chunks": Form(
            "released_single_projection", IN_CHUNKS, {"epochs": 2}, text_dim=2400
        ),
        "recommended, edges in blocks": Form(settings={**IN_CHUNKS, "dim": 2600, "matching": "off"}),
    },
    "lightgcn": {"recommended, whole users": WHOLE_USERS},
    "colakg": {"new_items, whole users": replace(WHOLE_USERS, preset="new_items")},
    "bprmf": {
        "cosine_softmax, whole users": replace(WHOLE_USERS, preset="cosine_softmax"),
        "recommended, softmax, cosine": Form(
            settings={"loss": "softmax"}, training={"schedule": "cosine", "warmup_steps": 5, "patience": 0}
        ),
    },
}
"""Forms beside the presets."""


def versions(model: str) -> dict[str, int]:
    """Declared versions that decide the numbers of a model."""
    return {**declared_versions(model), "training by users": BY_USER_VERSION}


def forms(model: str) -> dict[str, Form]:
    """What is computed of a model, by name; presets come first."""
    return {preset: Form(preset) for preset in MODELS[model].presets} | EXTRA.get(model, {})


def computed(model: str, form: Form) -> dict[str, Any]:
    """Compute the numbers of a form: losses and validation by epoch, tests, scores, tensors."""
    world = _world()
    built, training = _built(model, form, world)
    found: dict[str, Any] = {}
    if isinstance(built, TrainedRecommender):
        valid = RankingTask.from_tables(world.tables, "valid")
        history = fit(built, world.graph, valid, training, 0, False)
        frame = history.frame().drop(columns=["epoch", "seconds"])
        shown = [name for name in map(str, frame) if not name.startswith("valid_")] + [
            "valid_ndcg@20",
            "valid_recall@10",
        ]
        tests = evaluate(built, RankingTask.from_tables(world.tables, "test"))[0]
        found = {
            "epochs": {name: frame[name].tolist() for name in shown},
            "best_epoch": history.best_epoch,
            "test": {name: tests[name] for name in ("ndcg@10", "recall@10", "ndcg@20")},
        }
    with torch.no_grad():
        scores = built.fixed().score(torch.arange(len(world.tables.users)))
    return found | {
        "scores": [float(scores.double().mean()), float(scores.double().std()), _digest(scores)],
        "tensors": {name: [list(tensor.shape), _digest(tensor)] for name, tensor in built.tensors().items()},
    }


def _built(model: str, form: Form, world: World) -> tuple[Recommender, TrainingConfig]:
    cls = MODELS[model]
    preset = cls.presets[form.preset]
    small = {name: value for name, value in SMALL.items() if name in type(preset.model).model_fields}
    settings = preset.model.replace(**(small | form.settings))
    limits = {"epochs": EPOCHS, "batch_size": 100, "eval_every": 1, "patience": min(preset.training.patience, 1)}
    limits |= {"batches": "interactions"}
    training = preset.training.replace(**(limits | form.training))
    vectors = _long_texts(world, form.text_dim) if form.text_dim else world.vectors
    return cls(settings, world.graph, vectors, torch_generator(0, "init")), training


@cache
def _world() -> World:
    return make_world()


def _long_texts(world: World, dim: int) -> ProfileVectors:
    draw = np.random.default_rng(dim)
    sizes = (len(world.tables.users), len(world.tables.entities))
    user, entity = (torch.from_numpy(draw.normal(size=(size, dim)).astype(np.float32)) for size in sizes)
    return ProfileVectors(user / dim**0.5, entity / dim**0.5)


def _digest(values: Tensor) -> float:
    """One number that a change of any entry changes: a fixed random combination of all."""
    flat = values.double().flatten().numpy()
    return float(flat @ np.random.default_rng(0).normal(size=flat.size) / max(flat.size, 1) ** 0.5)


def differences(found: Any, expected: Any, where: str = "") -> Iterator[str]:
    """Where two values differ by more than rounding on another machine explains."""
    if isinstance(found, dict) and isinstance(expected, dict):
        for name in sorted({*found, *expected}):
            yield from differences(found.get(name), expected.get(name), f"{where}/{name}")
    elif isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        for place, pair in enumerate(zip(found, expected, strict=True)):
            yield from differences(*pair, f"{where}[{place}]")
    elif isinstance(found, float) and isinstance(expected, float):
        absolute = TOLERANCE if where.startswith(("/scores", "/tensors")) else SMALLEST
        if not math.isclose(found, expected, rel_tol=TOLERANCE, abs_tol=absolute):
            yield f"{where}: {found} instead of {expected}"
    elif found != expected:
        yield f"{where}: {found!r} instead of {expected!r}"


def read() -> dict[str, Any]:
    """Recorded numbers by model: declared ``versions`` and ``presets``."""
    return json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {}
