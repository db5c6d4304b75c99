"""The tables of a study folder: one schema each, and the rules that hold between them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import pandas as pd
import pandera.errors
import pandera.pandas as pa

from spike_kit.errors import DataError, some

SPLITS = ("train", "valid", "test")
"""Names of the three splits of the interactions."""


def _ids() -> pa.Column:
    return pa.Column("int64", pa.Check.ge(0))


def _text(unique: bool = False, filled: bool = True) -> pa.Column:
    checks = [pa.Check.str_length(min_value=1)] if filled else []
    return pa.Column("str", checks, unique=unique)


def _schema(name: str, columns: dict[str, pa.Column], unique: list[str] | None = None) -> pa.DataFrameSchema:
    return pa.DataFrameSchema(columns, name=name, strict=True, ordered=True, unique=unique)


SCHEMAS: dict[str, pa.DataFrameSchema] = {
    "users": _schema("users", {"user": _ids(), "source_id": _text(unique=True), "label": _text()}),
    "items": _schema(
        "items",
        {
            "item": _ids(),
            "source_id": _text(unique=True),
            "label": _text(),
            "description": _text(filled=False),
        },
    ),
    "entities": _schema(
        "entities",
        {"entity": _ids(), "source_id": _text(unique=True), "label": _text(), "kind": _text()},
    ),
    "relations": _schema(
        "relations",
        {
            "relation": _ids(),
            "source_id": _text(unique=True),
            "label": _text(),
            "template": pa.Column(
                "str",
                [
                    pa.Check(lambda text: text.str.contains("{head}", regex=False), error="needs {head}"),
                    pa.Check(lambda text: text.str.contains("{tail}", regex=False), error="needs {tail}"),
                ],
            ),
        },
    ),
    "interactions": _schema(
        "interactions",
        {
            "user": _ids(),
            "item": _ids(),
            "split": pa.Column("str", pa.Check.isin(SPLITS)),
            "rating": pa.Column("float64", nullable=True),
            "timestamp": pa.Column("Int64", nullable=True),
        },
        unique=["user", "item"],
    ),
    "triples": _schema(
        "triples",
        {"head": _ids(), "relation": _ids(), "tail": _ids()},
        unique=["head", "relation", "tail"],
    ),
    "reviews": _schema(
        "reviews",
        {
            "user": _ids(),
            "item": _ids(),
            "text": _text(),
            "timestamp": pa.Column("Int64", nullable=True),
            "split": pa.Column("str", pa.Check.isin(SPLITS)),
        },
    ),
}
"""Schema of every table of a study folder, by table name."""

OPTIONAL = frozenset({"reviews"})
"""Tables a study folder may do without."""


def check_table(name: str, frame: pd.DataFrame, where: str = "") -> pd.DataFrame:
    """Check one table against its schema.

    Parameters
    ----------
    name
        A key of `SCHEMAS`.
    frame
        The table.
    where
        What to call the table in messages (its file, say); default: its name.

    Raises
    ------
    DataError
        If a column is missing, unknown, of another type, or holds a value that is not allowed.
    """
    where = where or f"table {name}"
    if frame.empty and name not in OPTIONAL:
        raise DataError(f"{where} is empty", "check the source files and the filters of the recipe")
    return check_frame(SCHEMAS[name], frame, where)


def check_frame(schema: pa.DataFrameSchema, frame: pd.DataFrame, where: str) -> pd.DataFrame:
    """Check a table against any schema; same errors as `check_table`."""
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
    """All tables of a study folder (columns: `SCHEMAS`); item ids equal their entity ids."""

    users: pd.DataFrame
    items: pd.DataFrame
    entities: pd.DataFrame
    relations: pd.DataFrame
    interactions: pd.DataFrame
    triples: pd.DataFrame
    reviews: pd.DataFrame | None = None

    def named(self) -> dict[str, pd.DataFrame]:
        """Return the tables that are present, by name."""
        tables = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: table for name, table in tables.items() if table is not None}

    def counts(self) -> dict[str, int]:
        """Return the number of users, items, entities, relations, interactions (per split too) and triples."""
        counts = {name: len(table) for name, table in self.named().items()}
        per_split = self.interactions["split"].value_counts()
        return counts | {f"interactions_{split}": int(per_split.get(split, 0)) for split in SPLITS}

    def check(self) -> None:
        """Check every table, and what must hold between them.

        Raises
        ------
        DataError
            If ids have gaps, an id refers to nothing, items and entities disagree, or the train split is empty.
        """
        for name, table in self.named().items():
            check_table(name, table)
        for name, column in (
            ("users", "user"),
            ("items", "item"),
            ("entities", "entity"),
            ("relations", "relation"),
        ):
            check_dense(f"table {name}", column, getattr(self, name)[column])
        sizes = {"user": len(self.users), "item": len(self.items), "relation": len(self.relations)}
        for name in ("interactions", "reviews"):
            if name in self.named():
                _check_references(name, getattr(self, name), {key: sizes[key] for key in ("user", "item")})
        n_entities = len(self.entities)
        _check_references(
            "triples", self.triples, {"head": n_entities, "relation": sizes["relation"], "tail": n_entities}
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


def check_dense(where: str, column: str, ids: Any) -> None:
    """Check that ids are exactly 0, 1, ..., n-1 in this order.

    Raises
    ------
    DataError
        If an id is missing, repeated or out of order; the message names the first ones.
    """
    values = pd.Series(ids).reset_index(drop=True)
    if (values == values.index).all():
        return
    missing = sorted(set(range(len(values))) - set(values.tolist()))
    problem = f"missing: {some(missing)}" if missing else "all present, but not in ascending order"
    raise DataError(f"{where}: column {column} must count 0 to {len(values) - 1} without a gap ({problem})")


def _check_references(name: str, table: pd.DataFrame, sizes: dict[str, int]) -> None:
    for column, size in sizes.items():
        beyond = table.loc[table[column] >= size, column].unique()
        if len(beyond):
            raise DataError(
                f"table {name}: column {column} refers to ids that do not exist ({some(sorted(beyond))}); "
                f"the largest is {size - 1}"
            )
