"""Your own tables: interactions, items and triples as CSV, TSV, JSON, JSON lines or Parquet, with a column mapping.

Facts may also stand in columns of the items (``genres``: "Drama|Comedy"), and one-relation edge lists and KGAT's lists
of item ids are read, too.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from pydantic import Field as Setting

from spike_kit.base.errors import DataError, some
from spike_kit.data.cells import parted
from spike_kit.data.files import opened, survey
from spike_kit.data.raw import Delimited, Fault, Field, JsonLines, ParquetRows, RawFile, Time, fields, literal, quoted
from spike_kit.data.recipes import BuildConfig, Recipe, Source
from spike_kit.data.sources.kgat import read_lines, read_split
from spike_kit.data.tables import SPLITS
from spike_kit.data.text import readable, relation_name
from spike_kit.data.workspace import Workspace, facts_in

TERMS = "as the owner of the file says", "given by the user"

_SEPARATORS = {".csv": ",", ".tsv": "\t", ".tab": "\t", ".dat": "\t", ".txt": "\t", ".edgelist": " "}
"""Separator that is expected, by suffix; where the first line has other columns with it, the others are tried."""
_OTHERS = (",", "\t", ";", "|", "::", " ")

_COLUMNS: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "interactions": (("user", "item"), (), ("rating", "timestamp", "text", "split")),
    "items": (("item",), ("label",), ("description",)),
    "triples": (("head", "tail"), ("relation",), ()),
    "links": (("item", "entity"), (), ()),
    "entities": (("entity",), ("label", "kind"), ()),
}
"""Columns of each table: those it must have, those that are expected besides without a mapping, and the others."""


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
    time: Time = "seconds"
    """What timestamps are: seconds or milliseconds since 1970, or dates (2018-04-10 or 2018-04-10 12:30:00)."""
    items: Path | None = None
    """File of the items."""
    item_columns: dict[str, str] = Setting(default_factory=dict)
    """Columns of the items: item, label (default: of the same names), and where it exists description."""
    facts: dict[str, str] = Setting(default_factory=dict)
    """Facts in columns of the items: pairs of a relation and the column with the names at its other end."""
    fact_separator: str = Setting(default="|", min_length=1)
    """What stands between several names in one cell (lists of JSON, Python and numpy are taken apart by themselves)."""
    triples: tuple[Path, ...] = ()
    """Files of triples, or patterns such as ``*.edgelist``; a file without a column for the relation holds the one it
    is named after (.edgelist: lines of ``head tail``)."""
    triple_columns: dict[str, str] = Setting(default_factory=dict)
    """Columns of the triples: head, relation, tail (default: of the same names)."""
    templates: dict[str, str] = Setting(default_factory=dict)
    """Sentences of relations, with {head} and {tail}; default: "The <relation> of {head} is {tail}."."""
    links: Path | None = None
    """File that says which entity of the triples an item is, if items have other ids there."""
    link_columns: dict[str, str] = Setting(default_factory=dict)
    """Columns of the links: item, entity (default: of the same names)."""
    entities: Path | None = None
    """File of the entities that are no items; without it they are taken from the triples, named by readable ids, and
    of the kind of the relation whose tail they are most often."""
    entity_columns: dict[str, str] = Setting(default_factory=dict)
    """Columns of the entities: entity, label, kind (default: of the same names)."""
    user_ids: Path | None = None
    """File of pairs (your user id, id used in the interactions), apart by blanks or tabs."""
    item_ids: Path | None = None
    """File of pairs (id used by items and triples, id used in the interactions), apart by blanks or tabs."""
    missing: tuple[str, ...] = ()
    """Texts that stand for no value in any column ("Unknown", "nan"); a fact that is named so is none."""
    keep_first: bool = False
    """Where an id has several rows with different labels, keep the first (they are counted); else that is an error."""


def parse(folder: Path, config: TablesConfig, work: Workspace) -> None:
    """Parse the tables that the settings name.

    Raises
    ------
    DataError
        If no interactions are named, a file is missing or damaged, a column is missing, or a row is bad.
    """
    work.terms = TERMS
    work.keep_first = config.keep_first
    _read_interactions(folder, config, work)
    for name, ids in (("user", config.user_ids), ("item", config.item_ids)):
        if ids is not None:
            _translate(folder / ids, name, work)
    if config.items is not None:
        _read_items(folder / config.items, config, work)
    relations = list(config.facts)
    if config.triples:
        _read_triples(folder, config, work)
        found = work.frame("SELECT DISTINCT relation FROM triples_read ORDER BY 1")["relation"]
        relations += [relation for relation in found if relation not in config.facts]
    if unknown := sorted(set(config.templates) - set(relations)):
        raise DataError(
            f"there are sentences for relations that do not exist: {some(unknown)}",
            f"there are: {some(relations, limit=20)}",
        )
    sentences = {name: f"The {relation_name(name)} of {{head}} is {{tail}}." for name in relations}
    work.put_relations(sentences | config.templates)


def _columns(what: str, given: Mapping[str, str]) -> Mapping[str, str]:
    """Check a column mapping; without one, columns are expected under our names."""
    required, expected, optional = _COLUMNS[what]
    columns = given or {name: name for name in required + expected}
    unknown = sorted(set(columns) - {*required, *expected, *optional})
    missing = [name for name in required if name not in columns]
    if unknown or missing:
        problem = f"unknown: {some(unknown)}" if unknown else f"missing: {some(missing)}"
        raise DataError(
            f"the column mapping of the {what} is not right ({problem})",
            f"known: {some(required + expected + optional)}",
        )
    return columns


def _open(path: Path, work: Workspace, columns: Mapping[str, str]) -> RawFile:
    """Choose the reader by the file's suffix; columns that are all given by number mean that there is no header."""
    suffix = path.with_suffix("").suffix if path.suffix in (".gz", ".zip") else path.suffix
    work.register(path)
    if suffix in (".jsonl", ".ndjson"):
        return JsonLines(path)
    if suffix == ".json":
        return JsonLines(path, rewritten=_records(path, work), unit="record")
    if suffix == ".parquet":
        return ParquetRows(path)
    if suffix not in _SEPARATORS:
        known = ", ".join((*_SEPARATORS, ".json", ".jsonl", ".parquet"))
        raise DataError(f"{path}: files of the kind {suffix!r} are not read", f"use one of {known}")
    usual = Delimited(path, _SEPARATORS[suffix], strict=suffix == ".csv", surveyed=survey(path))
    separators = dict.fromkeys((usual.separator, *_OTHERS))
    found = (_table(replace(usual, separator=separator), suffix, columns) for separator in separators)
    return next(filter(None, found), usual)


def _table(file: Delimited, suffix: str, columns: Mapping[str, str]) -> Delimited | None:
    """The table, if its first line has the columns with its separator (a relation may be missing).

    In .csv a quote that opens a cell must be closed; elsewhere it may be a part of the text.
    """
    file = replace(file, quoting=len(file.separator) == 1)
    cells = file.first_row()
    if suffix == ".edgelist":
        return replace(file, names=("head", "tail")) if len(cells) == 2 else None
    if all(column.isdigit() for column in columns.values()):
        names = tuple(str(place) for place in range(1, len(cells) + 1))
        return replace(file, names=names) if {*columns.values()} <= {*names} else None
    return file if {column for name, column in columns.items() if name != "relation"} <= {*cells} else None


def _records(path: Path, work: Workspace) -> Path:
    """Rewrite a JSON list of objects as lines; a file that holds lines already stays as it is."""
    with opened(path, errors="strict") as file:
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


def _read_interactions(folder: Path, config: TablesConfig, work: Workspace) -> None:
    columns = _columns("interactions", config.columns)
    given = {"train": config.train_file, "valid": config.valid_file, "test": config.test_file}
    files = {split: folder / path for split, path in given.items() if path is not None}
    if config.interactions is not None:
        files = {"": folder / config.interactions}
    elif not {"train", "test"} <= set(files):
        raise DataError("no interactions are named", "give --interactions, or --train-file and --test-file")
    elif all(path.suffix == ".txt" for path in files.values()):
        rows, _ = read_split(files, work, as_text=True)
        work.put("interactions", rows)
        return
    elif "text" in columns:
        raise DataError("texts of reviews are read from one file of interactions only", "name it with --interactions")
    faults = []
    if "split" in columns:
        allowed, column = ", ".join(map(literal, SPLITS)), columns["split"]
        faults.append(Fault(f"{quoted(column)} NOT IN ({allowed})", f"{column!r} is none of {allowed}"))
    wanted = _fields(columns, config)
    for split, path in files.items():
        part = "" if "split" in columns else split
        work.read_interactions(_open(path, work, columns), wanted, part, faults)


def _fields(columns: Mapping[str, str], config: TablesConfig) -> dict[str, Field]:
    """Fields of a file, with the texts that stand for no value."""
    other = {"date": "seconds or milliseconds"}.get(config.time, "date")
    remedy = f"correct the row, say --time {other} if all are like this"
    found = {name: replace(one, missing=config.missing) for name, one in fields(columns, config.time).items()}
    return found | {name: replace(found[name], remedy=remedy) for name in ("timestamp",) if name in found}


def _translate(path: Path, name: str, work: Workspace) -> None:
    """Replace the ids of the interactions by those that a file of pairs gives for them."""
    view = f"{name}_ids"
    lines = read_lines(path, view, work)
    pairs = lines["line"].str.extract(r"^\s*(?P<own>\S.*?)\s+(?P<used>\S+)\s*$").assign(place=lines["place"])
    remedy = "write one pair of ids per line"
    pairs = work.kept(view, pairs, pairs["used"].notna(), "it does not hold two ids", remedy)
    pairs = work.kept(view, pairs, ~pairs["used"].duplicated(), "its second id was given before", remedy)
    work.table("pairs", pairs)
    missing = work.db.execute(
        f"""SELECT "{name}", count(*) FROM interactions WHERE "{name}" NOT IN (SELECT used FROM pairs)
            GROUP BY 1 ORDER BY 1"""
    ).fetchall()
    if missing:
        remedy = f"add it; the ids used in the interactions must stand second, as {pairs['used'].iloc[0]!r} does"
        work.bad(str(path), f"no {name} id for {missing[0][0]!r}", remedy, sum(row[1] for row in missing))
        work.db.execute(f'DELETE FROM interactions WHERE "{name}" NOT IN (SELECT used FROM pairs)')
    work.db.execute(f'UPDATE interactions SET "{name}" = own FROM pairs WHERE used = interactions."{name}"')


def _read_items(path: Path, config: TablesConfig, work: Workspace) -> None:
    """Read the items, and the facts that stand in their columns."""
    columns = _columns("items", config.item_columns)
    cells = {f"fact {relation}": column for relation, column in config.facts.items()}
    file = _open(path, work, {**columns, **cells})
    work.read(file, "raw_items", _fields({**columns, **cells}, config))
    for batch in work.batches("SELECT * FROM raw_items ORDER BY place"):
        work.put("items", batch)
        for relation, column in config.facts.items():
            texts = batch[f"fact {relation}"].astype("str")
            names, bad = parted(texts, config.fact_separator)
            if bad:
                problem = f"{column!r} looks like a list that cannot be read, as in {texts.iloc[bad[0]][:60]!r}"
                remedy = "write the names as a JSON list"
                work.refuse(work.files["raw_items"], problem, len(bad), int(batch["place"].iloc[bad[0]]), remedy)
            work.put_facts(facts_in(batch, f"fact {relation}", relation, names.__getitem__, missing=config.missing))


def _read_triples(folder: Path, config: TablesConfig, work: Workspace) -> None:
    """Read files of triples; items take the place of the entities they are linked to."""
    columns = _columns("triples", config.triple_columns)
    db = work.db
    db.execute("CREATE TABLE triples_read (head VARCHAR, relation VARCHAR, tail VARCHAR)")
    for number, path in enumerate(path for name in config.triples for path in _files(folder, name)):
        file, view = _open(path, work, columns), f"raw_triples_{number}"
        found = dict(columns) if file.path.suffix != ".edgelist" else {"head": "head", "tail": "tail"}
        if file.header() and found.get("relation") not in file.header():
            found.pop("relation", None)
        work.read(file, view, _fields(found, config))
        relation = "relation" if "relation" in found else literal(file.path.name.split(".")[0])
        db.execute(f"INSERT INTO triples_read SELECT head, {relation}, tail FROM {view}")
    if config.links is not None:
        links = _columns("links", config.link_columns)
        work.read(_open(folder / config.links, work, links), "raw_links", _fields(links, config))
        for end in ("head", "tail"):
            db.execute(
                f"""CREATE OR REPLACE TABLE triples_read AS SELECT t.* REPLACE (coalesce(l.item, t.{end}) AS {end})
                    FROM triples_read AS t LEFT JOIN raw_links AS l ON l.entity = t.{end}"""
            )
    _put_entities(folder, config, work)
    db.execute("INSERT INTO triples SELECT * FROM triples_read")


def _files(folder: Path, name: Path) -> list[Path]:
    """Files of a name that may be a pattern; a name that is a file is no pattern."""
    if (folder / name).exists() or not any(character in str(name) for character in "*?["):
        return [folder / name]
    if found := sorted(folder.glob(str(name))):
        return found
    raise DataError(f"{folder} holds no file {str(name)!r}", "check the pattern")


def _put_entities(folder: Path, config: TablesConfig, work: Workspace) -> None:
    """Fill the entities from their file, or from the ends of the triples that are no items."""
    nodes = """SELECT DISTINCT entity FROM
               (SELECT head AS entity FROM triples_read UNION ALL SELECT tail FROM triples_read)
               WHERE entity NOT IN (SELECT item FROM interactions UNION SELECT item FROM items)"""
    if config.entities is None:
        found = work.frame(
            f"""SELECT entity, kind FROM ({nodes}) LEFT JOIN (
                  SELECT tail AS entity, relation AS kind FROM triples_read GROUP BY tail, relation
                  QUALIFY row_number() OVER (PARTITION BY tail ORDER BY count(*) DESC, relation) = 1) USING (entity)
                ORDER BY 1"""
        )
        kinds = found["kind"].map(relation_name, na_action="ignore").fillna("entity").replace("item", "entity")
        work.put("entities", found.assign(label=found["entity"].map(readable), kind=kinds))
        return
    columns = _columns("entities", config.entity_columns)
    work.read(_open(folder / config.entities, work, columns), "raw_entities", _fields(columns, config))
    work.put("entities", work.frame("SELECT * FROM raw_entities ORDER BY place"))
    unknown = work.frame(f"SELECT entity FROM ({nodes}) WHERE entity NOT IN (SELECT entity FROM entities) ORDER BY 1")
    if len(unknown):
        first = unknown["entity"][0]
        where = work.origin("triples", first, "min")
        problem = f"it is neither in {config.entities} nor an item ({len(unknown)} such ids)"
        work.bad(f"{where}: entity {first!r}", problem, "add it to the entities", len(unknown))


_ABOUT = "your own tables: interactions, items and triples as CSV, JSON or Parquet, with a column mapping"

SOURCE = Source(parse, {"tables": Recipe(TablesConfig(min_rating=None), _ABOUT)})
"""The reader; what it reads is said by its settings."""
