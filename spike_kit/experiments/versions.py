"""Declared versions of everything that decides the numbers of a run: whoever changes these raises its version."""

from collections.abc import Mapping
from typing import Any

from spike_kit.base.config import TrainingConfig
from spike_kit.data.dataset import Dataset
from spike_kit.data.graph import GRAPH_VERSION
from spike_kit.evaluation.ranking import PROTOCOL_VERSION
from spike_kit.models import find_model
from spike_kit.training.loop import BY_USER_VERSION, TRAINING_VERSION
from spike_kit.training.sampling import holds_users


def declared_versions(model: str, by_user: bool = False) -> dict[str, int]:
    """Versions that are declared now for a model; ``by_user`` says whether batches hold whole users (`holds_users`)."""
    return {
        "model": find_model(model).version,
        "graph": GRAPH_VERSION,
        "training": BY_USER_VERSION if by_user else TRAINING_VERSION,
        "protocol": PROTOCOL_VERSION,
    }


def declared_for(config: Mapping[str, Any], data: Dataset) -> dict[str, int]:
    """Versions that are declared now for a run with this configuration."""
    training, loss = TrainingConfig.parse(config["training_settings"]), config["model_settings"].get("loss", "bpr")
    by_user = holds_users(training, find_model(config["model"]), loss, data.manifest.counts["interactions_train"])
    return declared_versions(config["model"], by_user)


def versions(config: Mapping[str, Any]) -> dict[str, int]:
    """Versions that a run was made with; runs from before versions were declared count as version 1."""
    return config.get("versions") or dict.fromkeys(("model", "graph", "training", "protocol"), 1)
