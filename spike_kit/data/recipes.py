"""What a reader is: how it parses raw files, the data sets it is known for, and how its format is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from spike_kit.data.dataset import Dataset
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
    where
        Who published them.
    users, items, interactions, entities, relations, triples
        Counts of the raw data, before any filter of ours; entities without the items; 0 if it was not published.
    """

    where: str
    users: int
    items: int
    interactions: int
    entities: int = 0
    relations: int = 0
    triples: int = 0

    @property
    def counts(self) -> dict[str, int]:
        """The counts that are known, by name."""
        return {name: count for name, count in asdict(self).items() if name != "where" and count}


@dataclass(frozen=True)
class Recipe:
    """Settings of a named data set.

    Attributes
    ----------
    settings
        Settings of the build.
    about
        What it is, in a few words.
    published
        Counts to compare with, if it is one data set of known size.
    folders
        Other names its folder of raw files may have, besides the recipe's.
    source
        Name of the reader that parses it; given by the registry.
    """

    settings: BuildConfig
    about: str
    published: Published | None = None
    folders: tuple[str, ...] = ()
    source: str = ""


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
    write
        Writes a data set into an empty folder in this format, if the format can be exported. It is told whether the
        validation part goes into train (for codes that know two files only: kgat, spike-release), and the profile set
        and encoder whose vectors are written (spike-release).
    """

    parse: Callable[[Path, Any, Workspace], Any]
    recipes: Mapping[str, Recipe]
    wheels: tuple[Wheel, ...] = ()
    write: Callable[[Dataset, Path, bool, tuple[str, str]], None] | None = None
