"""Figures of a paper, each a function of one table: ``sk.figures.draw`` shows one, ``sk.figures.export`` writes all."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spike_kit.figures.gallery import draw, export

__all__ = ["draw", "export"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from spike_kit.figures import gallery

        return getattr(gallery, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
