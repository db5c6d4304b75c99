"""The tables of a data-set folder: one schema each, and the rules that hold between them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
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

BATCH_ROWS = 1_000_000
"""Rows of a table that are checked at a time."""


def _ids() -> pa.Column:
    return pa.Column("int64", pa.Check.ge(0))


def _text(unique: bool = False, filled: bool = True) -> pa.Column:
    checks = [pa.Check(_has_no_control, error="one line without control characters")]
    if filled:
        checks.append(pa.Check.str_length(min_value=1))
    return pa.Column("str", checks, unique=unique)


def _has_no_control(texts: pd.Series) -> pd.Series:
    found = pyarrow.compute.match_substring_regex(  # pyright: ignore[reportAttributeAccessIssue]
        pyarrow.array(texts, type=pyarrow.large_string()), CONTROL
    )
    return pd.Series(found.to_numpy(zero_copy_only=False), index=texts.index).eq(False)


def _template() -> pa.Column:
    slots = ("head", "tail")
    return pa.Column("str", [pa.Check.str_contains(rf"\{{{slot}\}}", error=f"needs {{{slot}}}") for slot in slots])


def _split() -> pa.Column:
    return pa.Column("str", pa.Check.isin(SPLITS))


def _time() -> pa.Column:
    return pa.Column("Int64", nullable=True)


def _schema(_name: str, _unique: list[str] | None = None, /, **columns: pa.Column) -> pa.DataFrameSchema:
    return pa.DataFrameSchema(columns, name=_name, strict=True, ordered=True, unique=_unique)


def _named(name: str, **more: pa.Column) -> dict[str, pa.Column]:
    return {name: _ids(), "source_id": _text(unique=True), "label": _text(), **more}


SCHEMAS: dict[str, pa.DataFrameSchema] = {
    "users": _schema("users", **_named("user")),
    "items": _schema("items", **_named("item", description=_text(filled=False))),
    "entities": _schema("entities", **_named("entity", kind=_text())),
    "relations": _schema("relations", **_named("relation", template=_template())),
    "interactions": _schema(
        "interactions",
        ["user", "item"],
        user=_ids(),
        item=_ids(),
        split=_split(),
        rating=pa.Column("float64", nullable=True),
        timestamp=_time(),
    ),
    "triples": _schema("triples", ["head", "relation", "tail"], head=_ids(), relation=_ids(), tail=_ids()),
    "reviews": _schema("reviews", user=_ids(), item=_ids(), text=_text(), timestamp=_time(), split=_split()),
}
"""Schema of every table of a data-set folder, by table name; a folder may do without reviews."""


def check_frame(schema: pa.DataFrameSchema, frame: pd.DataFrame, where: str) -> pd.DataFrame:
    """Check a table, which messages call ``where``, against a schema; large tables are checked in batches.

    Raises
    ------
    DataError
        If a column is missing, unknown, of another type, or holds a value that is not allowed.
    """
    if len(frame) <= BATCH_ROWS:
        return _validate(schema, frame, where)
    parts = schema.update_columns({name: {"unique": False} for name in schema.columns})
    parts.unique = None
    for start in range(0, len(frame), BATCH_ROWS):
        _validate(parts, frame.iloc[start : start + BATCH_ROWS], where)
    alone = [[name] for name, column in schema.columns.items() if column.unique]
    for names in [*alone, *([schema.unique] if schema.unique else [])]:
        repeated = frame.index[frame.duplicated(names)]
        if len(repeated):
            raise DataError(f"{where}: {', '.join(names)} must be unique; repeated in row {some(repeated)}")
    return frame


def _validate(schema: pa.DataFrameSchema, frame: pd.DataFrame, where: str) -> pd.DataFrame:
    try:
        return schema.validate(frame, lazy=True)
    except pandera.errors.SchemaErrors as error:
        raise DataError(f"{where} is not a valid {schema.name!r} table: {_explain(error.failure_cases)}") from error


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

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Names of the tables."""
        return tuple(field.name for field in fields(cls))

    def named(self) -> dict[str, pd.DataFrame]:
        """Return the tables by name."""
        return {name: getattr(self, name) for name in self.names()}

    def counts(self) -> dict[str, int]:
        """Return the number of users, items, entities, relations, interactions (per split too) and triples."""
        counts = {name: len(table) for name, table in self.named().items()}
        per_split = self.interactions["split"].value_counts()
        return counts | {f"interactions_{split}": int(per_split.get(split, 0)) for split in SPLITS}

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
            check_frame(SCHEMAS[name], table, where)
        tables = {"user": "users", "item": "items", "entity": "entities", "relation": "relations"}
        for column, name in tables.items():
            _check_dense(f"table {name}", column, getattr(self, name)[column])
        ends = {"head": "entity", "tail": "entity"}
        for name, columns in (("interactions", ("user", "item")), ("triples", ("head", "relation", "tail"))):
            for column in columns:
                size = len(getattr(self, tables[ends.get(column, column)]))
                ids = getattr(self, name)[column]
                if len(beyond := ids[ids >= size].unique()):
                    raise DataError(
                        f"table {name}: column {column} refers to ids that do not exist ({some(sorted(beyond))}); "
                        f"the largest is {size - 1}"
                    )
        self._check_items_are_entities()
        if not (self.interactions["split"] == "train").any():
            raise DataError("table interactions has no row of the train split", "check the split settings")

    def _check_items_are_entities(self) -> None:
        if len(self.entities) < len(self.items):
            raise DataError(
                f"there are {len(self.items)} items but only {len(self.entities)} entities; "
                "the first entities must be the items"
            )
        first = self.entities.iloc[: len(self.items)]
        for column in ("source_id", "label"):
            differs = (first[column].to_numpy() != self.items[column].to_numpy()).nonzero()[0]
            if differs.size:
                raise DataError(
                    f"items and entities disagree on {column} for ids {some(differs)}; "
                    "entity i must be item i for every item"
                )
        if not (first["kind"] == "item").all() or (self.entities["kind"].iloc[len(self.items) :] == "item").any():
            raise DataError("kind 'item' must mark the entities that are items, and only those")


def _codes(splits: pd.Series) -> np.ndarray:
    return splits.astype(pd.CategoricalDtype(list(SPLITS))).cat.codes.to_numpy()


def checked_reviews(batches: Iterable[pd.DataFrame], interactions: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Pass on the reviews of a data set batch by batch, each after a check.

    Parameters
    ----------
    batches
        Reviews, sorted by user and item.
    interactions
        Interactions of the data set, sorted by user and item.

    Raises
    ------
    DataError
        If a batch breaks the schema, is out of order, holds a second review of an interaction, or a review whose
        split is not that of its interaction (it would leak held-out text into train).
    """
    stride = int(interactions["item"].max()) + 1

    def keys_of(frame: pd.DataFrame) -> np.ndarray:
        return frame["user"].to_numpy(dtype=np.int64) * stride + frame["item"].to_numpy(dtype=np.int64)

    known, splits, last = keys_of(interactions), _codes(interactions["split"]), -1
    for batch in batches:
        check_frame(SCHEMAS["reviews"], batch, "reviews")
        keys = keys_of(batch)
        if (np.diff(keys, prepend=last) <= 0).any():
            raise DataError("reviews must be sorted by user and item, one for each interaction")
        last = max([last, *keys[-1:].tolist()])
        place = np.minimum(np.searchsorted(known, keys), len(known) - 1)
        wrong = (known[place] != keys) | (splits[place] != _codes(batch["split"]))
        if wrong.any():
            rows = batch.loc[wrong, ["user", "item"]].itertuples(index=False, name=None)
            raise DataError(f"no interaction of the same split for the review of (user, item) {some(rows)}")
        yield batch


def _check_dense(where: str, column: str, ids: pd.Series) -> None:
    """Check that ids are exactly 0, 1, ..., n-1 in this order."""
    n = len(ids)
    if (ids.to_numpy() == np.arange(n)).all():
        return
    missing = sorted(set(range(n)) - set(ids.tolist()))
    problem = f"missing: {some(missing)}" if missing else "all present, but not in ascending order"
    raise DataError(f"{where}: column {column} must count 0 to {n - 1} without a gap ({problem})")
