"""The base of every configuration class: frozen, documented, and strict about its keys."""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from spike_kit.base.errors import ConfigError


class Config(BaseModel):
    """Settings of one part: immutable, unknown keys are errors, the docstring under a field is its help."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )

    @classmethod
    def parse(cls, values: dict[str, Any]) -> Self:
        """Build from plain values, with errors that name the key.

        Raises
        ------
        ConfigError
            If a key is unknown or a value is not allowed.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(_explain(error, cls), f"{cls.__name__} knows: {', '.join(cls.model_fields)}") from error

    def replace(self, **changes: Any) -> Self:
        """Copy with some settings changed, checked like a new one.

        Raises
        ------
        ConfigError
            If a key is unknown or a value is not allowed.
        """
        return self.parse({**dict(self), **changes})


def later(default: Any, **bounds: Any) -> Any:
    """Make a field that came later: at its default, which is how it was before, it has no part in a run's name."""
    return Field(default=default, exclude_if=lambda value: value == default, **bounds)


class TrainingConfig(Config):
    """How a model is trained; the same loop and the same settings for every model."""

    epochs: int = Field(default=300, ge=1)
    """Largest number of passes over the train interactions."""
    batch_size: int = Field(default=4096, ge=1)
    """Train interactions per step."""
    batches: Literal["auto", "interactions", "users"] = later("auto")
    """What is shuffled where an epoch has several batches: interactions, or users, each with all of theirs. A softmax
    over all items costs a row of scores per user of a batch, so that whole users cost a fraction. Auto: users for
    SPiKE and LightGCN with a softmax loss, else interactions (docs/training.md, "Batches")."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Learning rate of Adam; the highest one where the schedule changes it."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """Learning rate after the warm-up: constant, or falling to 0 over the remaining steps of all epochs."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps in which the learning rate rises linearly from 0 before the schedule begins."""
    eval_every: int = Field(default=2, ge=1)
    """Epochs between two validations."""
    patience: int = Field(default=10, ge=0)
    """Validations without a better NDCG@20 before training stops; 0 trains all epochs. Where an epoch has few
    steps, training goes on for a least number of them all the same (docs/training.md, "When a training ends")."""
    keep: Literal["best", "last"] = "best"
    """Weights that are kept: those of the best validation NDCG@20, or those of the last epoch."""
    stop_on: Literal["usual", "valid", "valid_new", "valid_new_all"] = later("usual")
    """Validation that stops the training and chooses the weights (docs/datasets.md, "Tasks"): of all items, or of new
    ones, among themselves or among all; usual: valid_new where the data set has new items and the model scores them."""
    cuda_graph: bool = Field(default=False, exclude=True)
    """Record the step on CUDA and replay it, where a model's steps have the same shapes each time (docs/training.md,
    "One GPU"; never run on a GPU so far). It changes no number, so it is no part of a run's name."""


def _explain(error: ValidationError, cls: type[BaseModel]) -> str:
    parts = []
    for item in error.errors():
        name = ".".join(str(part) for part in item["loc"]) or cls.__name__
        if item["type"] == "extra_forbidden":
            parts.append(f"unknown setting {name!r} for {cls.__name__}")
        else:
            parts.append(f"{cls.__name__}.{name} = {item['input']!r}: {item['msg']}")
    return "; ".join(parts)
