"""Full-ranking evaluation and result tables."""

from typing import Literal

Block = Literal["valid", "test", "valid_new", "test_new", "valid_new_all", "test_new_all"]
"""Results of a run: of a split, and of its new items, ranked among themselves and among all items."""
