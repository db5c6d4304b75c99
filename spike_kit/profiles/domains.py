"""The words of a domain: what its items and users are called, and which aspects a taste has (docs/method.md, 1)."""

from __future__ import annotations

from dataclasses import dataclass

from spike_kit.base.errors import lookup
from spike_kit.data.dataset import Dataset


@dataclass(frozen=True)
class Domain:
    """Words for prompts."""

    item: str
    """One item."""
    items: str
    """Several."""
    user: str
    """Who they are recommended to."""
    users: str
    """Several of them."""
    did: str
    """What these did with the items."""
    aspects: tuple[str, str, str]
    """The three aspects of a user's preferences."""
    background: str
    """What the profile of an item should add where the data leave it out."""


DOMAINS: dict[str, Domain] = {
    "books": Domain(
        "book", "books", "reader", "readers", "read and liked",
        ("literary taste", "topics", "style of writing"),
        "author, period, genre and setting",
    ),
    "movies": Domain(
        "film or series", "films and series", "viewer", "viewers", "watched and liked",
        ("genres", "themes", "style of storytelling and direction"),
        "plot, genre, period and people behind it",
    ),
    "business": Domain(
        "local business", "local businesses", "customer", "customers", "visited and liked",
        ("kinds of food or service", "expectations of quality, price and service", "ambience"),
        "what it offers, its surroundings and its price level",
    ),
    "music": Domain(
        "artist or album", "artists and albums", "listener", "listeners", "listened to",
        ("genres", "moods", "era and sound"),
        "origin, genre, period and sound",
    ),
    "games": Domain(
        "game", "games", "player", "players", "played and liked",
        ("genres and mechanics", "worlds and themes", "way of playing"),
        "genre, platform, mechanics and setting",
    ),
    "generic": Domain(
        "item", "items", "user", "users", "chose and liked",
        ("kinds of items", "qualities looked for", "purposes and occasions"),
        "what it is, what it is for and what sets it apart",
    ),
}  # fmt: skip
"""Known domains by name."""

_OF_WORDS = (
    ("books", ("book", "kindle", "goodreads")),
    ("movies", ("movie", "film", "ml-100k", "movielens", "ml1m", "ml-1m", "ml-10m", "ml-20m", "ml-25m", "ml-32m")),
    ("business", ("yelp", "restaurant")),
    ("music", ("lastfm", "last-fm", "music", "vinyl")),
    ("games", ("game", "steam")),
)


def domain_name(data: Dataset, chosen: str = "") -> str:
    """Name of the domain of a data set: the chosen one, or else what its name, source and category speak of.

    Raises
    ------
    ConfigError
        If the chosen domain is unknown.
    """
    if chosen:
        lookup(DOMAINS, chosen, "domain")
        return chosen
    build = data.manifest.build
    hints = " ".join(str(part) for part in (data.name, build.get("source", ""), build.get("category", ""))).lower()
    return next((name for name, words in _OF_WORDS if any(word in hints for word in words)), "generic")
