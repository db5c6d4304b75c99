"""Settings of a build, and what a reader is: how it parses raw files, the data sets it is known for, how it writes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from spike_kit.base.config import Config
from spike_kit.data.dataset import Dataset
from spike_kit.data.fetch import Wheel
from spike_kit.data.splits import Draws, NewFor, Split, Task
from spike_kit.data.text import MAX_REVIEW_CHARACTERS
from spike_kit.data.workspace import OnError, Workspace


class BuildConfig(Config):
    """Settings of a build; every data set has its own named recipe of them."""

    min_rating: float | None = 4.0
    """An interaction is a positive if its rating is at least this (in the rating's own scale); none takes all."""
    max_users: int | None = Field(default=None, ge=1)
    """Keep only this many users, drawn at random before the k-core; none keeps all."""
    linked_only: bool = True
    """Drop items that no triple names."""
    user_core: int = Field(default=5, ge=0)
    """Least number of interactions per user (k of the k-core); 0 keeps users without any."""
    item_core: int = Field(default=5, ge=0)
    """Least number of interactions per item (k of the k-core); 0 keeps items without any."""
    min_entity_items: int = Field(default=2, ge=0)
    """Least number of items an auxiliary entity must be linked to directly; 0 keeps all entities."""
    exclude_relations: tuple[str, ...] = ()
    """Relations to leave out, by their ids in the source."""
    min_relation_triples: int = Field(default=1, ge=0)
    """Least number of triples of a relation; 0 keeps relations without any."""
    behavioural: bool = False
    """Keep facts that can encode held-out behaviour (also_buy, also_view, tags given by the same users)."""
    split: Split = "random"
    """How interactions are split: random per user; each user's last two; by two points in time; as the source gives
    it (a missing validation part is cut from train)."""
    valid: float = Field(default=0.1, ge=0, lt=1)
    """Share of interactions held out for validation (per user; of all for split time)."""
    test: float = Field(default=0.1, ge=0, lt=1)
    """Share of interactions held out for the test (per user; of all for split time)."""
    seed: int = 0
    """Seed of the split, of the choice of users, and of the task."""
    draws: Draws = "ids"
    """What a draw depends on besides the seed: ids of the source, so that an item or a user more moves nobody else's
    pairs; or the order of the rows (as in every data set whose manifest does not have this setting)."""
    task: Task = "known"
    """What is asked: known items; new-items, a share of which nobody has in train; few-interactions of each user."""
    new_share: float = Field(default=0.15, gt=0, lt=1)
    """Share of the items that have no train interaction (task new-items)."""
    new_for: NewFor = "both"
    """For which split the new items are: half of them for each of valid and test, or all for valid (task new-items)."""
    at_most: int = Field(default=5, ge=1)
    """Most train interactions that a user keeps, drawn at random (task few-interactions)."""
    reviews: bool = True
    """Keep the reviews of the interactions, where the source has them."""
    max_review_characters: int = Field(default=MAX_REVIEW_CHARACTERS, ge=10)
    """Characters kept of a review."""
    on_error: OnError = "stop"
    """What a bad row of a raw file does: stop the build with its file and line, or be skipped and counted."""

    def recorded(self) -> dict[str, Any]:
        """Settings as a manifest holds them: those that came later only where they are not as before."""
        of_tasks = {name for names in TASK_SETTINGS.values() for name in names}
        as_before = {"draws"} if self.draws == "rows" else set()
        return self.model_dump(mode="json", exclude=of_tasks.difference(TASK_SETTINGS[self.task]) | as_before)


TASK_SETTINGS = {"known": (), "new-items": ("task", "new_share", "new_for"), "few-interactions": ("task", "at_most")}
"""Settings of each task that a manifest records; a data set of known items has none, as before there were tasks."""

UNFILTERED: dict[str, Any] = {
    "min_rating": None,
    "linked_only": False,
    "user_core": 0,
    "item_core": 0,
    "min_entity_items": 0,
    "min_relation_triples": 0,
}
"""Settings of a build that keeps everything, for data sets that were filtered by others."""

_COUNTED = ("users", "items", "interactions", "entities", "relations", "triples")


class Published:
    """Counts of a data set as published, to find out whether raw files are the version that is meant.

    Parameters
    ----------
    where
        Who published them.
    counts
        Users, items, interactions, entities, relations and triples of the raw data, as far as they were published:
        before any filter of ours, entities without the items.
    """

    def __init__(self, where: str, *counts: int) -> None:
        self.where = where
        self.counts = dict(zip(_COUNTED, counts, strict=False))


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
