"""What readers share: opening files, and interactions, facts and relations on their way into a workspace."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import pandas as pd

from spike_kit.base.errors import DataError
from spike_kit.data.raw import Field, Kind, RawFile, check_readable, literal, quoted
from spike_kit.data.text import plain
from spike_kit.data.workspace import Workspace, review_view

Time = Literal["seconds", "milliseconds", "date"]
"""What timestamps are: seconds or milliseconds since 1970, or dates."""


def registered(path: Path, licence: str, origin: str, work: Workspace) -> Path:
    """Check that a raw file can be read (`check_readable`), and record it for the manifest."""
    check_readable(path, text=path.suffix != ".parquet")
    work.register(path, licence, origin)
    return path


def check_folder(folder: Path) -> None:
    """Check that a folder of raw files exists.

    Raises
    ------
    DataError
        If it does not.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder", "name the folder of the raw files with --raw")


def interaction_fields(columns: Mapping[str, str], time: Time = "seconds") -> dict[str, Field]:
    """Fields of interactions from their columns: user, item, and where there are any rating, timestamp, text, split."""
    scale = 1000 if time == "milliseconds" else 1
    kinds: dict[str, Kind] = {
        "rating": "number",
        "timestamp": "date" if time == "date" else "integer",
        "text": "text",
    }
    return {
        name: Field(column, kinds.get(name, "id"), required=name != "timestamp", scale=scale)
        for name, column in columns.items()
    }


def read_interactions(
    file: RawFile,
    fields: Mapping[str, Field],
    work: Workspace,
    split: str = "",
    faults: Sequence[tuple[str, str]] = (),
) -> None:
    """Read a file of interactions, with the reviews in it; ``split`` is the part it holds, if it holds one."""
    if "text" in fields:
        read_reviews(file, fields, work, faults, interactions=False)
        columns, table = [name for name in fields if name != "text"] + ["review"], "raw_reviews"
    else:
        columns, table = list(fields), "raw_interactions"
        work.read(file, table, fields, faults)
    names = ", ".join(map(quoted, columns))
    part = (", split", f", {literal(split)}") if split else ("", "")
    work.db.execute(f"INSERT INTO interactions ({names}{part[0]}) SELECT {names}{part[1]} FROM {table}")
    work.db.execute("DROP TABLE IF EXISTS raw_interactions")
    work.origins["interactions"] = (file, fields["user"].source)


def read_reviews(
    file: RawFile,
    fields: Mapping[str, Field],
    work: Workspace,
    faults: Sequence[tuple[str, str]] = (),
    interactions: bool = True,
) -> None:
    """Read a file of reviews once and make it the raw reviews, and unless told otherwise the interactions, too."""
    content = f"hash(coalesce({quoted(fields['text'].source)}, ''))"
    work.read(file, "reviews.parquet", fields, faults, extra={"content": content})
    review_view(work, interactions)


def facts_in(
    items: pd.DataFrame, column: str, relation: str, split: Callable[[str], Iterable[str]], kind: str = ""
) -> pd.DataFrame:
    """Facts in a column of a table of items: a row (head, relation, label, kind) for each name in a cell, each once.

    Parameters
    ----------
    items
        Has the column ``item`` and the one that is read.
    column, relation
        Where the names stand, and what they are to the item.
    split
        Takes a cell apart into names.
    kind
        Kind of the entities that are named; default: the relation.
    """
    cells = items.set_index("item")[column].astype(object)
    names = cells.map(lambda cell: [*dict.fromkeys(filter(None, map(plain, split(str(cell)))))]).explode().dropna()
    facts = {"head": names.index, "relation": relation, "label": names.to_numpy(), "kind": kind or relation}
    return pd.DataFrame(facts, dtype="str")


def put_facts(facts: pd.DataFrame, work: Workspace) -> None:
    """Put facts (head, relation, label and kind of the tail) as triples and entities; a tail's id is ``kind:label``.

    A column ``tail`` gives the tails other ids.
    """
    if "tail" not in facts:
        facts = facts.assign(tail=facts["kind"] + ":" + facts["label"])
    work.put("triples", facts)
    work.put("entities", facts.drop_duplicates("tail").rename(columns={"tail": "entity"}))


def put_relations(templates: Mapping[str, str], work: Workspace, behavioural: Container[str] = ()) -> None:
    """Put relations, with the sentence of each; those in ``behavioural`` can encode what users did."""
    rows = [(name, name.replace("_", " "), text, name in behavioural) for name, text in templates.items()]
    work.put("relations", pd.DataFrame(rows, columns=["relation", "label", "template", "behavioural"]))
