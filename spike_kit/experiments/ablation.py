"""Ablations of SPiKE: rows of the table, and which settings give the same model."""

from typing import Any

from spike_kit.models.base import ModelConfig, TrainedConfig
from spike_kit.models.spike import RECOMMENDED, SpikeConfig

NO_TEXT = "w/o any text"
"""Name of the variant that reads no profiles, in every table."""

ABLATIONS: dict[str, dict[str, Any]] = {
    "full model": {},
    "w/o user profiles": {"user_profiles": False},
    "w/o item profiles": {"item_profiles": False},
    "w/o auxiliary profiles": {"auxiliary_profiles": False},
    "w/o injection": {"inject": False, "remove": False},
    "w/o removal": {"remove": False},
    "w/o matching": {"matching": "off"},
    NO_TEXT: {"inject": False, "remove": False, "matching": "off"},
    "text as it is": {"text_components": 0},
    "mean instead of attention": {"attention": "mean"},
    "with users to items": {"user_to_item": "add"},
    "BPR instead of softmax on cosines": {"loss": "bpr"},
}
"""Rows of an ablation table: a name, and the settings that differ from the preset."""

PAPER_ROWS = (
    *("w/o user profiles", "w/o item profiles", "w/o auxiliary profiles"),
    *("w/o injection", "w/o removal", "w/o matching"),
)
"""Those of the rows that the paper has as well."""


def effective(settings: ModelConfig, usual: ModelConfig) -> ModelConfig:
    """Settings of any model that give the same model, those without effect set to their usual value."""
    if isinstance(settings, SpikeConfig) and isinstance(usual, SpikeConfig):
        return normalised(settings, usual)
    if not isinstance(settings, TrainedConfig):
        return settings
    return settings.replace(**{name: dict(usual)[name] for name, unused in _idle(settings).items() if unused})


def _idle(settings: TrainedConfig) -> dict[str, bool]:
    """Whether the loss leaves settings that every trained model has without effect."""
    return {"temperature": settings.loss != "cosine_softmax", "softmax_tf32": settings.loss == "bpr"}


def normalised(settings: SpikeConfig, usual: SpikeConfig = RECOMMENDED) -> SpikeConfig:
    """Settings that give the same model, with everything that has no effect set to what the full model has.

    Whoever flips a switch that changes nothing (the sample size of a matching that does not sample, say) gets the run
    that exists already.
    """
    if settings.matching_weight == 0:
        settings = settings.replace(matching="off")
    if without_text := not settings.uses_text:
        settings = settings.replace(inject=False, remove=False, matching="off")
    of_text = ("text", "user_profiles", "item_profiles", "auxiliary_profiles", "separate_masks")
    of_text += ("text_components", "text_dropout", "text_precision", "text_on")
    idle = dict.fromkeys(of_text, without_text) | {
        "matching_weight": settings.matching == "off",
        "gamma": settings.matching != "sampled",
        "repeats": settings.matching != "sampled",
        "rho": not (settings.inject or settings.remove),
        "heads": settings.attention == "mean",
        **_idle(settings),
    }
    return settings.replace(**{name: getattr(usual, name) for name, unused in idle.items() if unused})


def changes(settings: SpikeConfig, usual: SpikeConfig = RECOMMENDED) -> dict[str, Any]:
    """Settings that differ from the full model, those without effect left out."""
    return {name: value for name, value in normalised(settings, usual) if value != getattr(usual, name)}


def label(changed: dict[str, Any]) -> str:
    """Name of a combination: that of the table's row if it is one, else its settings."""
    return row_of(changed) or ", ".join(f"{name}={value}" for name, value in changed.items())


def row_of(changed: dict[str, Any]) -> str:
    """Name of the table's row with exactly these settings; empty where there is none."""
    return next((name for name, row in ABLATIONS.items() if row == changed), "")
