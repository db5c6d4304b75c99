"""Reviews for prompts: of the train split only, the longest first, whatever the size of the file."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from spike_kit.base import paths
from spike_kit.data.dataset import Dataset
from spike_kit.data.raw import literal
from spike_kit.data.tables import SPLITS
from spike_kit.data.workspace import database

_ROWS = 1000


def longest_train_reviews(
    data: Dataset, by: Literal["user", "item"], limit: int, only: int | None = None
) -> Iterator[tuple[int, list[str]]]:
    """Give the longest train reviews by each user or of each item, ids ascending; those without any are left out.

    With ``only``, those of one user or item.

    Reviews of equal length are ordered by the id at their other end. Reviews of valid and test are never read out of
    the database. Memory does not grow with the file.

    Raises
    ------
    DataError
        If the data set has no reviews, or their file is missing or was changed.
    """
    other = "item" if by == "user" else "user"
    order = f"length(text) DESC, {other}"
    paths.data_root().mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix=".spike-kit-tmp-", dir=paths.data_root()) as folder,
        database(Path(folder)) as db,
    ):
        result = db.execute(
            f"""
            SELECT {by}, list(text ORDER BY {order}) FROM (
                SELECT user, item, text FROM read_parquet({literal(str(data.reviews_file))})
                WHERE split = '{SPLITS[0]}' AND {by} = {by if only is None else int(only)}
                QUALIFY row_number() OVER (PARTITION BY {by} ORDER BY {order}) <= {int(limit)}
            ) GROUP BY {by} ORDER BY {by}
            """
        )
        while rows := result.fetchmany(_ROWS):
            yield from rows
