"""Raw sources: each module parses one kind of raw data into a workspace and names the recipes of its data sets."""

from __future__ import annotations

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

SOURCES: dict[str, Source] = {
    "ml-100k": ml_100k.SOURCE,
    "amazon": amazon.SOURCE,
    "yelp": yelp.SOURCE,
    "kgat": kgat.SOURCE,
    "spike-release": spike_release.SOURCE,
    "recbole": recbole.SOURCE,
    "movielens": movielens.SOURCE,
    "lastfm": lastfm.SOURCE,
    "ml-1m-colakg": colakg.SOURCE,
    "tables": tables.SOURCE,
}
"""Every source by its name."""

RECIPES: dict[str, Recipe] = {name: recipe for source in SOURCES.values() for name, recipe in source.recipes.items()}
"""Every named data set; each source has one of its own name besides."""


def find_recipe(name: str) -> Recipe:
    """Look up a recipe; an unknown name is a `ConfigError` that lists the known ones."""
    return lookup(RECIPES, name, "source or data set")
