"""Readers of raw data: each module reads one kind of raw files, names its data sets and may write its format."""

from dataclasses import replace
from importlib import import_module

from spike_kit.base.errors import lookup
from spike_kit.data.recipes import Recipe, Source

READERS = ["ml_100k", "amazon", "yelp", "kgat", "spike_release", "recbole", "movielens", "lastfm", "colakg", "tables"]
"""Modules of this package with a reader each; a new reader is a new module and its name here."""

_FOUND: list[Source] = [import_module(f"{__name__}.{module}").SOURCE for module in READERS]

SOURCES: dict[str, Source] = {next(iter(source.recipes)): source for source in _FOUND}
"""Every reader by its name, that of its first data set."""

RECIPES: dict[str, Recipe] = {
    name: replace(recipe, source=reader)
    for reader, source in SOURCES.items()
    for name, recipe in source.recipes.items()
}
"""Every named data set; each reader has one of its own name besides."""


def find_recipe(name: str) -> Recipe:
    """Look up a recipe; an unknown name is a `ConfigError` that lists the known ones."""
    return lookup(RECIPES, name, "source or data set")
