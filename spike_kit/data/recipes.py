"""What a source is: how it parses raw files, and the recipes of the data sets it is known for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spike_kit.data.fetch import Wheel
from spike_kit.data.pipeline import BuildConfig
from spike_kit.data.workspace import Workspace

UNFILTERED: dict[str, Any] = {
    "min_rating": None,
    "linked_only": False,
    "user_core": 0,
    "item_core": 0,
    "min_entity_items": 0,
    "min_relation_triples": 0,
}
"""Settings of a build that keeps everything, for data sets that were filtered by others."""


@dataclass(frozen=True)
class Published:
    """Counts of a data set as published, to find out whether raw files are the version that is meant.

    Attributes
    ----------
    counts
        Of the raw data, before any filter of ours: users, items, interactions, entities (without the items),
        relations, triples.
    where
        Who published them.
    """

    counts: Mapping[str, int]
    where: str


@dataclass(frozen=True)
class Recipe:
    """Settings of a named data set.

    Attributes
    ----------
    source
        Name of the source that parses it.
    settings
        Settings of the build.
    about
        What it is, in a few words.
    folders
        Other names its folder of raw files may have, besides the recipe's.
    published
        Counts to compare with, if it is one data set of known size.
    """

    source: str
    settings: BuildConfig
    about: str
    folders: tuple[str, ...] = ()
    published: Published | None = None


@dataclass(frozen=True)
class Source:
    """A kind of raw data.

    Attributes
    ----------
    parse
        Fills a workspace from a folder of raw files, under settings of the class of the recipes' settings.
    recipes
        Named data sets; the first has the name of the source.
    wheels
        Files that can be fetched from the package index, if it is one of those.
    """

    parse: Callable[[Path, Any, Workspace], None]
    recipes: Mapping[str, Recipe]
    wheels: tuple[Wheel, ...] = field(default=())
