"""A split in mapped ids, in CoLaKG's format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.data.amazon_files import write_lines


def write_mapped_split(
    folder: Path, held: Mapping[int, Sequence[int]], first_user: int, first_item: int, n_items: int
) -> None:
    """Write the four files; of what a user holds the first item is for test, and raw ids count from a number each."""
    write_lines(folder / "train.txt", [" ".join(map(str, [user, *items[1:]])) for user, items in held.items()])
    write_lines(folder / "test.txt", [f"{user} {items[0]}" for user, items in held.items()])
    write_lines(folder / "user_map.txt", [f"{first_user + user} {user}" for user in held])
    write_lines(folder / "item_map.txt", [f"{first_item + item} {item}" for item in range(n_items)])
