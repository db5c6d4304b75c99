"""Readers of raw data: each module reads one kind of raw files, names its data sets and may write its format."""

from dataclasses import replace

from spike_kit.base.errors import lookup
from spike_kit.data.recipes import Recipe, Source
from spike_kit.data.sources import (
    amazon,
    colakg,
    kgat,
    lastfm,
    ml_100k,
    movielens,
    recbole,
    spike_release,
    tables,
    yelp,
)

READERS = (ml_100k, amazon, yelp, kgat, spike_release, recbole, movielens, lastfm, colakg, tables)
"""Modules of this package with a reader each; a new reader is a new module and its name here."""

SOURCES: dict[str, Source] = {next(iter(module.SOURCE.recipes)): module.SOURCE for module in READERS}
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
