"""What a prompt is made of; known without importing torch."""

from typing import Literal

from pydantic import Field

from spike_kit.base.config import Config

WORDING = 2
"""Version of the wording, part of every prompt's hash; an older one can still be chosen (`PromptConfig.wording`)."""


class PromptConfig(Config):
    """What a prompt is made of."""

    wording: Literal[1, 2] = WORDING
    """Version of the wording. Since 2 the profile of an item names the facts that place it; answers that 1 got are
    found again with 1."""
    domain: str = ""
    """Words to use: books, movies, business, music, games or generic; empty: by the name and source of the data set."""
    names_per_fact: int = Field(default=8, ge=1)
    """Entities named per relation; the most telling first (those that neither all nor few items have)."""
    second_hop: int = Field(default=6, ge=0)
    """Facts about what an item is linked to, from the linked entity with the fewest links upwards."""
    description_words: int = Field(default=120, ge=0)
    """Words kept of an item's description."""
    linked_items: int = Field(default=8, ge=0)
    """Items whose profiles an auxiliary entity's prompt quotes, from the most train interactions downwards."""
    linked_words: int = Field(default=60, ge=1)
    """Words kept of each of them."""
    user_items: int = Field(default=20, ge=1)
    """Train items in a user's prompt, from the fewest train interactions upwards: rare ones tell more of a taste."""
    user_item_words: int = Field(default=30, ge=1)
    """Words kept of each of their profiles."""
    reviews: int = Field(default=5, ge=0)
    """Reviews per prompt, of the train split only: the longest first, as far as the token budget goes."""
    review_tokens: int = Field(default=400, ge=0)
    """Token budget for all reviews of a prompt (estimated); the one that crosses it is cut."""


_COUNTS = ("names_per_fact", "second_hop", "linked_items", "linked_words", "user_items", "user_item_words")
EVERYTHING = PromptConfig.parse(
    dict.fromkeys(_COUNTS, 10**9) | {"description_words": 10_000, "reviews": 100, "review_tokens": 100_000}
)
"""A prompt that leaves nothing out: what profiles that no model wrote can be held to."""
