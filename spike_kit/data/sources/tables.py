"""Your own tables: interactions, items and triples as CSV, TSV, JSON, JSON lines or Parquet, with a column mapping.

Facts may also stand in columns of the items (``genres``: "Drama|Comedy"), and one-relation edge lists and KGAT's lists
of item ids are read, too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import pandas as pd
from pydantic import Field as Setting

from spike_kit.base.errors import DataError, some
from spike_kit.data.labels import readable, relation_name
from spike_kit.data.lists import read_given_lists
from spike_kit.data.pipeline import BuildConfig
from spike_kit.data.raw import (
    Delimited,
    Field,
    JsonLines,
    ParquetRows,
    RawFile,
    check_readable,
    literal,
    open_text,
    quoted,
    unpacking,
)
from spike_kit.data.recipes import Recipe, Source
from spike_kit.data.tables import SPLITS
from spike_kit.data.text import plain
from spike_kit.data.workspace import Workspace, review_view

LICENCE = "as the owner of the file says"

_SEPARATORS = {".csv": ",", ".tsv": "\t", ".edgelist": " "}
_BATCH_ROWS = 50_000


class TablesConfig(BuildConfig):
    """Settings of a build from your own tables; paths are relative to the folder of raw files."""

    interactions: Path | None = None
    """File of the interactions: .csv, .tsv, .jsonl, .json or .parquet (text files packed with .gz or not)."""
    train_file: Path | None = None
    """With test_file, instead of interactions: files of a given split (use --split given); .txt means lines of
    ``user item item ...``."""
    valid_file: Path | None = None
    """Validation part of a given split."""
    test_file: Path | None = None
    """Test part of a given split."""
    columns: dict[str, str] = Setting(default_factory=dict)
    """Columns of the interactions, as pairs of ours and yours: user, item (default: of the same names), and where they
    exist rating, timestamp, text (a review), split. In every mapping, numbers ("1", "2") mean columns of a file without
    a header."""
    time: Literal["seconds", "milliseconds", "date"] = "seconds"
    """What timestamps are: seconds or milliseconds since 1970, or dates (2018-04-10 or 2018-04-10 12:30:00)."""
    items: Path | None = None
    """File of the items."""
    item_columns: dict[str, str] = Setting(default_factory=dict)
    """Columns of the items: item, label (default: of the same names), and where it exists description."""
    facts: dict[str, str] = Setting(default_factory=dict)
    """Facts in columns of the items: pairs of a relation and the column with the names at its other end."""
    fact_separator: str = Setting(default="|", min_length=1)
    """What stands between several names in one cell (JSON lists are taken apart by themselves)."""
    triples: tuple[Path, ...] = ()
    """Files of triples; a file without a column for the relation holds the one it is named after (.edgelist: lines of
    ``head tail``)."""
    triple_columns: dict[str, str] = Setting(default_factory=dict)
    """Columns of the triples: head, relation, tail (default: of the same names)."""
    templates: dict[str, str] = Setting(default_factory=dict)
    """Sentences of relations, with {head} and {tail}; default: "The <relation> of {head} is {tail}."."""
    links: Path | None = None
    """File that says which entity of the triples an item is, if items have other ids there."""
    link_columns: dict[str, str] = Setting(default_factory=dict)
    """Columns of the links: item, entity (default: of the same names)."""
    entities: Path | None = None
    """File of the entities that are no items; without it they are taken from the triples, named by readable ids."""
    entity_columns: dict[str, str] = Setting(default_factory=dict)
    """Columns of the entities: entity, label, kind (default: of the same names)."""
    user_ids: Path | None = None
    """File of pairs (your user id, id used in the interactions), apart by blanks or tabs."""
    item_ids: Path | None = None
    """File of pairs (id used by items and triples, id used in the interactions), apart by blanks or tabs."""


def parse(folder: Path, config: TablesConfig, work: Workspace) -> None:
    """Parse the tables that the settings name.

    Raises
    ------
    DataError
        If no interactions are named, a file is missing or damaged, a column is missing, or a row is bad.
    """
    _read_interactions(folder, config, work)
    for name, ids in (("user", config.user_ids), ("item", config.item_ids)):
        if ids is not None:
            _translate(folder / ids, name, work)
    facts = dict(config.facts)
    if config.items is not None:
        _read_items(folder / config.items, config, facts, work)
    relations = pd.DataFrame({"relation": list(facts)}, dtype="str")
    if config.triples:
        known = set(facts)
        relations = pd.concat([relations, _read_triples(folder, config, work, known)], ignore_index=True)
    names = relations["relation"].map(relation_name)
    templates = [
        config.templates.get(relation, f"The {name} of {{head}} is {{tail}}.")
        for relation, name in zip(relations["relation"], names, strict=True)
    ]
    if unknown := sorted(set(config.templates) - set(relations["relation"])):
        raise DataError(
            f"there are sentences for relations that do not exist: {some(unknown)}",
            f"there are: {some(relations['relation'], limit=20)}",
        )
    work.put("relations", relations.assign(label=names, template=templates))


def _open(path: Path, work: Workspace, columns: Mapping[str, str]) -> RawFile:
    """Choose the reader by the file's suffix; columns that are all given by number mean that there is no header."""
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    work.register(_existing(path), LICENCE, "given by the user")
    if suffix in (".jsonl", ".ndjson"):
        return JsonLines(path)
    if suffix == ".json":
        return JsonLines(path, _records(path, work), unit="record")
    if suffix == ".parquet":
        return ParquetRows(path)
    if suffix in _SEPARATORS:
        if suffix == ".edgelist":
            return Delimited(path, " ", ("head", "tail"), quoting=False)
        file = Delimited(path, _SEPARATORS[suffix])
        if not all(column.isdigit() for column in columns.values()):
            return file
        width = len(file.first_row())
        return Delimited(path, _SEPARATORS[suffix], tuple(str(place) for place in range(1, width + 1)))
    raise DataError(
        f"{path}: files of the kind {suffix!r} are not read", "use .csv, .tsv, .json, .jsonl, .parquet or .edgelist"
    )


def _existing(path: Path) -> Path:
    check_readable(path, text=".parquet" not in path.suffixes)
    return path


def _records(path: Path, work: Workspace) -> Path:
    """Rewrite a JSON list of objects as lines; a file that holds lines already stays as it is."""
    with unpacking(path), open_text(path, strict=True) as file:
        try:
            if file.read(1024).lstrip().startswith("{"):
                return path
            file.seek(0)
            records = json.load(file)
        except (ValueError, RecursionError) as error:
            line = f" line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
            raise DataError(f"{path}{line}: not valid JSON: {error}", "correct the file") from error
    if not isinstance(records, list):
        raise DataError(f"{path} line 1: expected a list of objects", "write one object per row")
    target = work.folder / f"records-{len(list(work.folder.iterdir()))}.jsonl"
    with target.open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(record) + "\n" for record in records)
    return target


def _mapping(
    given: Mapping[str, str], required: tuple[str, ...], optional: tuple[str, ...], default: tuple[str, ...], what: str
) -> Mapping[str, str]:
    """Check a column mapping; without one, the columns of ``default`` are expected under our names."""
    columns = given or {name: name for name in default}
    unknown = sorted(set(columns) - {*required, *optional})
    missing = [name for name in required if name not in columns]
    if unknown or missing:
        problem = f"unknown: {some(unknown)}" if unknown else f"missing: {some(missing)}"
        raise DataError(
            f"the column mapping of the {what} is not right ({problem})", f"known: {some(required + optional)}"
        )
    return columns


def _interaction_columns(config: TablesConfig) -> Mapping[str, str]:
    optional = ("rating", "timestamp", "text", "split")
    return _mapping(config.columns, ("user", "item"), optional, ("user", "item"), "interactions")


def _triple_columns(config: TablesConfig) -> Mapping[str, str]:
    return _mapping(config.triple_columns, ("head", "tail"), ("relation",), ("head", "relation", "tail"), "triples")


def _read_interactions(folder: Path, config: TablesConfig, work: Workspace) -> None:
    columns = _interaction_columns(config)
    if config.interactions is not None:
        _read_rows(folder / config.interactions, config, work)
        return
    given = {"train": config.train_file, "valid": config.valid_file, "test": config.test_file}
    files = {split: folder / path for split, path in given.items() if path is not None}
    if not {"train", "test"} <= set(files):
        raise DataError("no interactions are named", "give --interactions, or --train-file and --test-file")
    if all(path.suffix == ".txt" for path in files.values()):
        for path in files.values():
            work.register(_existing(path), LICENCE, "given by the user")
        rows = read_given_lists(files, work)
        work.put("interactions", rows.astype({"user": "str", "item": "str"}))
        return
    if "text" in columns:
        raise DataError("texts of reviews are read from one file of interactions only", "name it with --interactions")
    for split, path in files.items():
        _read_rows(path, config, work, split)


def _read_rows(path: Path, config: TablesConfig, work: Workspace, split: str = "") -> None:
    """Read one file of interactions; ``split`` is the part it holds, if it holds one."""
    columns = _interaction_columns(config)
    scale = 1000 if config.time == "milliseconds" else 1
    kinds = {
        "user": Field(columns["user"]),
        "item": Field(columns["item"]),
        "rating": Field(columns.get("rating", ""), "number"),
        "timestamp": Field(columns.get("timestamp", ""), "date" if config.time == "date" else "integer", False, scale),
        "text": Field(columns.get("text", ""), "text"),
        "split": Field(columns.get("split", "")),
    }
    fields = {name: kind for name, kind in kinds.items() if name in columns}
    faults = []
    if "split" in columns:
        allowed = ", ".join(map(literal, SPLITS))
        faults.append((f"{quoted(columns['split'])} NOT IN ({allowed})", f"{columns['split']!r} is none of {allowed}"))
    file = _open(path, work, columns)
    has_text = "text" in columns
    extra = {"content": f"hash(coalesce({quoted(columns['text'])}, ''))"} if has_text else None
    target = "reviews.parquet" if has_text else f"interactions {split}".strip().replace(" ", "_") + "_read"
    work.read(file, target, fields, faults, extra)
    if has_text:
        review_view(work, interactions=False)
    chosen = ", ".join(
        f"{quoted(name)}" if name in fields else f"NULL AS {quoted(name)}"
        for name in ("user", "item", "rating", "timestamp")
    )
    part = "split" if "split" in fields else (literal(split) if split else "NULL")
    review, source = ("review", "raw_reviews") if has_text else ("NULL", quoted(target))
    work.db.execute(f"INSERT INTO interactions SELECT {chosen}, {part}, {review} FROM {source}")
    work.located["interactions"] = (file, columns["user"])


def _translate(path: Path, name: str, work: Workspace) -> None:
    """Replace the ids of the interactions by those that a file of pairs gives for them."""
    work.register(_existing(path), LICENCE, "given by the user")
    pairs: dict[str, str] = {}
    with unpacking(path), open_text(path) as file:
        for number, line in enumerate(file, 1):
            parts = line.rsplit(None, 1)
            if not line.strip():
                continue
            if len(parts) != 2 or parts[1] in pairs:
                problem = "expected two ids" if len(parts) != 2 else f"the id {parts[1]!r} was given before"
                work.bad(f"{path} line {number}", problem, "write one pair of ids per line")
                continue
            pairs[parts[1]] = parts[0].strip()
    frame = pd.DataFrame({"used": list(pairs), "own": list(pairs.values())}, dtype="str")
    work.db.register("pairs", frame)
    missing = work.db.execute(
        f"""SELECT "{name}", count(*) FROM interactions WHERE "{name}" NOT IN (SELECT used FROM pairs)
            GROUP BY 1 ORDER BY 1"""
    ).fetchall()
    if missing:
        work.bad(str(path), f"no {name} id for {missing[0][0]!r}", "add it", sum(row[1] for row in missing))
        work.db.execute(f'DELETE FROM interactions WHERE "{name}" NOT IN (SELECT used FROM pairs)')
    work.db.execute(f'UPDATE interactions SET "{name}" = own FROM pairs WHERE used = interactions."{name}"')
    work.db.unregister("pairs")


def _read_items(path: Path, config: TablesConfig, facts: Mapping[str, str], work: Workspace) -> None:
    """Read the items, and the facts that stand in their columns."""
    columns = _mapping(config.item_columns, ("item",), ("label", "description"), ("item", "label"), "items")
    file = _open(path, work, columns)
    fields = {"item": Field(columns["item"])}
    fields |= {name: Field(columns[name], "text") for name in ("label", "description") if name in columns}
    fields |= {f"fact {number}": Field(column, "text") for number, column in enumerate(facts.values())}
    work.read(file, "items_read", fields)
    work.located["items"] = (file, columns["item"])
    seen: set[str] = set()
    for batch in work.batches("SELECT * FROM items_read ORDER BY rowid", _BATCH_ROWS):
        work.put("items", batch)
        triples, entities = [], []
        for number, relation in enumerate(facts):
            for item, cell in zip(batch["item"], batch[f"fact {number}"], strict=True):
                for name in _names(cell, config.fact_separator):
                    entity = f"{relation}:{name}"
                    triples.append((item, relation, entity))
                    if entity not in seen:
                        seen.add(entity)
                        entities.append((entity, name, relation))
        work.put("triples", pd.DataFrame(triples, columns=["head", "relation", "tail"], dtype="str"))
        work.put("entities", pd.DataFrame(entities, columns=["entity", "label", "kind"], dtype="str"))


def _names(cell: str, separator: str) -> Iterator[str]:
    """Names in one cell: a JSON list of texts, or a text with separators; each once."""
    parts: list[str] | None = None
    if cell.startswith("["):
        try:
            found = json.loads(cell)
            parts = [str(part) for part in found if isinstance(part, (str, int, float))]
        except (ValueError, RecursionError):
            parts = None
    if parts is None:
        parts = cell.split(separator)
    yield from (name for name in dict.fromkeys(map(plain, parts)) if name)


def _read_triples(folder: Path, config: TablesConfig, work: Workspace, known: set[str]) -> pd.DataFrame:
    """Read files of triples; items take the place of the entities they are linked to. Returns the new relations."""
    columns = _triple_columns(config)
    db = work.db
    db.execute("CREATE TABLE triples_read (head VARCHAR, relation VARCHAR, tail VARCHAR)")
    files: list[RawFile] = []
    for number, name in enumerate(config.triples):
        path = folder / name
        file = _open(path, work, columns)
        files.append(file)
        is_edges = path.suffix == ".edgelist"
        ends = {"head": "head", "tail": "tail"} if is_edges else {key: columns[key] for key in ("head", "tail")}
        fields = {key: Field(column) for key, column in ends.items()}
        has_relation = not is_edges and "relation" in columns and not file.missing([columns["relation"]])
        if has_relation:
            fields["relation"] = Field(columns["relation"])
        work.read(file, f"triples_{number}", fields)
        relation = "relation" if has_relation else literal(path.name.split(".")[0])
        db.execute(f"INSERT INTO triples_read SELECT head, {relation}, tail FROM triples_{number}")
    db.execute("CREATE TABLE links_read (item VARCHAR, entity VARCHAR)")
    if config.links is not None:
        ends = _mapping(config.link_columns, ("item", "entity"), (), ("item", "entity"), "links")
        fields = {key: Field(ends[key]) for key in ("item", "entity")}
        work.read(_open(folder / config.links, work, ends), "links_found", fields)
        db.execute("INSERT INTO links_read SELECT item, entity FROM links_found")
    for end in ("head", "tail"):
        db.execute(
            f"""CREATE OR REPLACE TABLE triples_read AS SELECT t.* REPLACE (coalesce(l.item, t.{end}) AS {end})
                FROM triples_read AS t LEFT JOIN links_read AS l ON l.entity = t.{end}"""
        )
    _put_entities(folder, config, files, work)
    db.execute("INSERT INTO triples SELECT * FROM triples_read")
    found = work.frame("SELECT DISTINCT relation FROM triples_read ORDER BY 1")
    return found[~found["relation"].isin(sorted(known))]


def _put_entities(folder: Path, config: TablesConfig, files: list[RawFile], work: Workspace) -> None:
    """Fill the entities from their file, or from the ends of the triples that are no items."""
    nodes = """SELECT DISTINCT entity FROM
               (SELECT head AS entity FROM triples_read UNION ALL SELECT tail FROM triples_read)
               WHERE entity NOT IN (SELECT item FROM interactions UNION SELECT item FROM items)"""
    if config.entities is None:
        ids = work.frame(f"{nodes} ORDER BY 1")["entity"]
        work.put("entities", pd.DataFrame({"entity": ids, "label": ids.map(readable), "kind": "entity"}))
        return
    names = ("entity", "label", "kind")
    columns = _mapping(config.entity_columns, names[:1], names[1:], names, "entities")
    file = _open(folder / config.entities, work, columns)
    fields = {"entity": Field(columns["entity"])}
    fields |= {name: Field(columns[name], "text") for name in ("label", "kind") if name in columns}
    work.read(file, "entities_read", fields)
    work.located["entities"] = (file, columns["entity"])
    work.put("entities", work.frame("SELECT * EXCLUDE (fault) FROM entities_read ORDER BY rowid"))
    unknown = work.db.execute(
        f"SELECT entity FROM ({nodes}) WHERE entity NOT IN (SELECT entity FROM entities) ORDER BY 1"
    ).fetchall()
    if unknown:
        first = unknown[0][0]
        work.bad(
            f"{_place_of(first, files, config)}: entity {first!r}",
            f"it is neither in {config.entities} nor an item ({len(unknown)} such ids)",
            "add it to the entities",
            len(unknown),
        )


def _place_of(entity: str, files: list[RawFile], config: TablesConfig) -> str:
    """File and line of the first triple with an entity."""
    for file in files:
        for end in ("head", "tail"):
            column = end if file.path.suffix == ".edgelist" else _triple_columns(config)[end]
            if lines := file.lines_with(column, entity):
                return f"{file.path} {file.unit} {lines[0]}"
    return some(str(file.path) for file in files)


SOURCE = Source(
    parse,
    {
        "tables": Recipe(
            "tables",
            TablesConfig(min_rating=None),
            "your own tables: interactions, items and triples as CSV, JSON or Parquet, with a column mapping",
        )
    },
)
"""The source; what it reads is said by its settings."""
