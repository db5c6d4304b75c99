"""The tables of a data-set folder: one schema each, and the rules that hold between them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pandera.errors
import pandera.pandas as pa
import pyarrow
import pyarrow.compute

from spike_kit.base.errors import DataError, some
from spike_kit.data.text import CONTROL

SPLITS = ("train", "valid", "test")
"""Names of the three splits of the interactions."""

SUBJECTS = ("item", "auxiliary", "user")
"""Who has a profile, in the order in which profiles are written (items, other entities, users)."""

BATCH_ROWS = 1_000_000
"""Rows of a table that are checked at a time."""


def _has_no_control(texts: pd.Series) -> pd.Series:
    found = pyarrow.compute.match_substring_regex(  # pyright: ignore[reportAttributeAccessIssue]
        pyarrow.array(texts, type=pyarrow.large_string()), CONTROL
    )
    return pd.Series(found.to_numpy(zero_copy_only=False), index=texts.index).eq(False)


_ID = pa.Column("int64", pa.Check.ge(0))
_TIME = pa.Column("Int64", nullable=True)
_NUMBER = pa.Column("float64", nullable=True)
_STRING = pa.Column("str")
_FILLED = pa.Column("str", pa.Check.str_length(min_value=1))
_LINE = pa.Column("str", pa.Check(_has_no_control, error="one line without control characters"))
_NAME = pa.Column("str", [*_LINE.checks, *_FILLED.checks])
_SENTENCE = pa.Column(
    "str", [pa.Check.str_contains(rf"\{{{end}\}}", error=f"needs {{{end}}}") for end in ("head", "tail")]
)
_SPLIT = pa.Column("str", pa.Check.isin(SPLITS))
_SUBJECT = pa.Column("str", pa.Check.isin(SUBJECTS))

_COLUMNS: dict[str, dict[str, pa.Column]] = {
    "users": {"user": _ID, "source_id": _NAME, "label": _NAME},
    "items": {"item": _ID, "source_id": _NAME, "label": _NAME, "description": _LINE},
    "entities": {"entity": _ID, "source_id": _NAME, "label": _NAME, "kind": _NAME},
    "relations": {"relation": _ID, "source_id": _NAME, "label": _NAME, "template": _SENTENCE},
    "interactions": {"user": _ID, "item": _ID, "split": _SPLIT, "rating": _NUMBER, "timestamp": _TIME},
    "triples": {"head": _ID, "relation": _ID, "tail": _ID},
    "reviews": {"user": _ID, "item": _ID, "text": _NAME, "timestamp": _TIME, "split": _SPLIT},
    "profiles": {
        "subject": _SUBJECT,
        "id": _ID,
        "text": _FILLED,
        "prompt_sha256": _STRING,
        "model": _FILLED,
        "usage": _STRING,
        "created": _STRING,
    },
}
SCHEMAS = {name: pa.DataFrameSchema(columns, strict=True, ordered=True) for name, columns in _COLUMNS.items()}
"""Schema of every table of a data-set folder, by table name; a folder may do without reviews.

A set of profiles has one row per subject; ``id`` is a user id for users, else an entity id. ``usage`` is JSON,
``created`` ISO 8601.
"""

_UNIQUE = {
    **{table: ["source_id"] for table in ("users", "items", "entities", "relations")},
    "interactions": ["user", "item"],
    "triples": ["head", "relation", "tail"],
    "profiles": ["subject", "id"],
}
"""Columns that together name a row of a table."""

_REFERENCES = {"user": "users", "item": "items", "head": "entities", "relation": "relations", "tail": "entities"}
"""Tables that the ids of interactions and triples refer to, by column."""


def check_frame(table: str, frame: pd.DataFrame, where: str) -> None:
    """Check a frame, which messages call ``where``, against the schema of a table, `BATCH_ROWS` at a time.

    Raises
    ------
    DataError
        If a column is missing, unknown, of another type, or holds a value that is not allowed; or a row is repeated.
    """
    for start in range(0, max(len(frame), 1), BATCH_ROWS):
        try:
            SCHEMAS[table].validate(frame.iloc[start : start + BATCH_ROWS], lazy=True)
        except pandera.errors.SchemaErrors as error:
            raise DataError(f"{where} is not a valid {table!r} table: {_explain(error.failure_cases)}") from error
    names = _UNIQUE.get(table, [])
    if names and len(repeated := frame.index[frame.duplicated(names)]):
        raise DataError(f"{where}: column {', '.join(names)} must be unique; repeated in row {some(repeated)}")


def _explain(cases: pd.DataFrame) -> str:
    parts = []
    for (column, check), group in cases.groupby(["column", "check"], dropna=False, sort=False):
        rows = [str(int(row)) for row in group["index"].dropna().unique()]
        values = some(repr(value) for value in group["failure_case"].unique()[:5])
        parts.append(f"column {column}: {check} fails for {values}" + (f" in row {some(rows)}" if rows else ""))
    return "; ".join(parts)


@dataclass(frozen=True)
class Tables:
    """The tables of a data-set folder (columns: `SCHEMAS`) but for the reviews; item ids equal their entity ids."""

    users: pd.DataFrame
    items: pd.DataFrame
    entities: pd.DataFrame
    relations: pd.DataFrame
    interactions: pd.DataFrame
    triples: pd.DataFrame

    def named(self) -> dict[str, pd.DataFrame]:
        """Return the tables by name."""
        return dict(vars(self))

    def counts(self) -> dict[str, int]:
        """Return the number of users, items, entities, relations, interactions (per split too) and triples."""
        counts = {name: len(table) for name, table in self.named().items()}
        return counts | {f"interactions_{split}": int((self.interactions["split"] == split).sum()) for split in SPLITS}

    def check(self, folder: Path | None = None) -> None:
        """Check every table, and what must hold between them; messages name the files in ``folder``, if one is given.

        Raises
        ------
        DataError
            If a table is empty or breaks its schema, ids have gaps, an id refers to nothing, items and entities
            disagree, or the train split is empty.
        """
        for name, table in self.named().items():
            where = f"table {name}" if folder is None else str(folder / f"{name}.parquet")
            if table.empty:
                raise DataError(f"{where} is empty", "check the source files and the filters of the recipe")
            check_frame(name, table, where)
        for table, column in (("users", "user"), ("items", "item"), ("entities", "entity"), ("relations", "relation")):
            check_dense(f"table {table}: column {column}", getattr(self, table)[column].to_numpy())
        for column, target in _REFERENCES.items():
            table = "interactions" if column in self.interactions else "triples"
            ids, size = getattr(self, table)[column], len(getattr(self, target))
            if len(beyond := ids[ids >= size].unique()):
                raise DataError(
                    f"table {table}: column {column} refers to ids that do not exist ({some(sorted(beyond))}); "
                    f"the largest is {size - 1}"
                )
        self._check_items_are_entities()
        if not (self.interactions["split"] == "train").any():
            raise DataError("table interactions has no row of the train split", "check the split settings")

    def _check_items_are_entities(self) -> None:
        first = self.entities.reset_index(drop=True).reindex(range(len(self.items)))
        for column in ("source_id", "label"):
            differs = (first[column].to_numpy() != self.items[column].to_numpy()).nonzero()[0]
            if differs.size:
                raise DataError(
                    f"items and entities disagree on {column} for ids {some(differs)}; "
                    "entity i must be item i for every item"
                )
        is_item = np.arange(len(self.entities)) < len(self.items)
        if ((self.entities["kind"] == "item") != is_item).any():
            raise DataError("kind 'item' must mark the entities that are items, and only those")


def checked_reviews(batches: Iterable[pd.DataFrame], interactions: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Pass on the reviews of a data set batch by batch, each after a check.

    Parameters
    ----------
    batches
        Reviews.
    interactions
        Interactions of the data set, sorted by user and item.

    Raises
    ------
    DataError
        If a batch breaks the schema, or holds a review whose split is not that of its interaction (it would leak
        held-out text into train).
    """
    stride, kinds = int(interactions["item"].max()) + 1, pd.CategoricalDtype(list(SPLITS))

    def keys_of(frame: pd.DataFrame) -> np.ndarray:
        pairs = frame["user"].to_numpy(dtype=np.int64) * stride + frame["item"].to_numpy(dtype=np.int64)
        return len(SPLITS) * pairs + frame["split"].astype(kinds).cat.codes.to_numpy()

    known = keys_of(interactions)
    for batch in batches:
        check_frame("reviews", batch, "reviews")
        keys = keys_of(batch)
        wrong = known[np.minimum(np.searchsorted(known, keys), len(known) - 1)] != keys
        if wrong.any():
            rows = batch.loc[wrong, ["user", "item"]].itertuples(index=False, name=None)
            raise DataError(f"no interaction of the same split for the review of (user, item) {some(rows)}")
        yield batch


def check_dense(where: str, ids: np.ndarray, first: int = 0) -> None:
    """Check that ids, which messages call ``where``, are ``first``, ``first + 1``, ... in this order.

    Raises
    ------
    DataError
        If one is missing, stands twice or out of order; the message names the first such id.
    """
    wrong = np.flatnonzero(ids != np.arange(first, first + len(ids)))
    if len(wrong):
        place = wrong[0]
        twice = place > 0 and ids[place] == ids[place - 1]
        problem = f"{ids[place]} stands twice" if twice else f"{first + place} is missing in its place"
        problem = f"{where} must count from {first} without a gap, but {problem}"
        raise DataError(problem, "every id needs exactly one row")
