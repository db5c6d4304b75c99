"""Raw sources: each module fetches and parses one kind of raw data and names its recipe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from spike_kit.data.fetch import Wheel
from spike_kit.data.reorganize import BuildConfig
from spike_kit.data.sources import ml_100k
from spike_kit.data.study import Study
from spike_kit.errors import DataError, some


@dataclass(frozen=True)
class Source:
    """A data set that can be built by name.

    Attributes
    ----------
    recipe
        Default settings of the build.
    wheels
        Files it is fetched from.
    build
        Builds the study folder ``data/<name>`` from fetched files.
    """

    recipe: BuildConfig
    wheels: tuple[Wheel, ...]
    build: Callable[[str, BuildConfig], Study]


SOURCES: dict[str, Source] = {
    "ml-100k": Source(ml_100k.RECIPE, ml_100k.WHEELS, ml_100k.build),
}
"""Every source by the name of its data set."""


def find_source(name: str) -> Source:
    """Look up a source.

    Raises
    ------
    DataError
        If the name is unknown; the message lists the known ones.
    """
    if name not in SOURCES:
        raise DataError(f"no source for a data set named {name!r}", f"known: {some(SOURCES)}")
    return SOURCES[name]
