"""The base of every configuration class: frozen, documented, and strict about its keys."""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from spike_kit.errors import ConfigError


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


def _explain(error: ValidationError, cls: type[BaseModel]) -> str:
    parts = []
    for item in error.errors():
        name = ".".join(str(part) for part in item["loc"]) or cls.__name__
        if item["type"] == "extra_forbidden":
            parts.append(f"unknown setting {name!r} for {cls.__name__}")
        else:
            parts.append(f"{cls.__name__}.{name} = {item['input']!r}: {item['msg']}")
    return "; ".join(parts)
