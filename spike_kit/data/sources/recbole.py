"""RecBole atomic files: tab-separated tables with a header ``field:type`` (Zhao et al., CIKM 2021).

Two more files, ``NAME.ent`` and ``NAME.rel``, bring the names of entities and relations; `export_recbole` of
`spike_kit.data.formats.recbole` writes them, and RecBole reads such files through ``additional_feat_suffix``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from spike_kit.base.errors import DataError, some
from spike_kit.data.labels import FREEBASE_ID, readable
from spike_kit.data.pipeline import BuildConfig
from spike_kit.data.raw import Delimited, Field, check_readable, literal, open_text, quoted
from spike_kit.data.recipes import Recipe, Source
from spike_kit.data.tables import SPLITS
from spike_kit.data.text import CONTROL
from spike_kit.data.workspace import Workspace

LICENCE = "that of the data set"
ORIGIN = "atomic files in RecBole's format"

_PARTS = {f"{split}.inter": split for split in SPLITS}
_SUFFIXES = ("inter", *_PARTS, "item", "user", "kg", "link", "ent", "rel")
_BATCH_ROWS = 50_000


class RecboleConfig(BuildConfig):
    """Settings of a build from RecBole atomic files."""

    dataset: str = ""
    """NAME of the files NAME.inter, NAME.item, ...; default: the only one in the folder."""
    label_field: str = ""
    """Field of NAME.item with the names of the items; default: the first token or token_seq field whose own name
    contains title or name."""
    description_field: str = ""
    """Field of NAME.item with the descriptions of the items; default: the field description, if there is one."""
    facts: tuple[str, ...] = ()
    """Fields of NAME.item that become triples (values of a _seq field stand apart by blanks); default: all token_seq
    fields besides label and description if there is no NAME.kg, else none."""


def parse(folder: Path, config: RecboleConfig, work: Workspace) -> None:
    """Parse the atomic files of one data set.

    An item stands for its entity (``.link``) in the triples; without a ``.link`` it is the entity of the same id. An
    entity that several items are linked to gives its triples to each of them.

    Raises
    ------
    DataError
        If a file is missing or damaged, the data set is not clear, a field does not exist, or a row is bad.
    """
    name, files = find_files(folder, config.dataset)
    for path in files.values():
        check_readable(path)
        work.register(path, LICENCE, ORIGIN)
    _read_interactions(files, config, work)
    if "user" in files:
        _read_users(files["user"], work)
    facts = _read_items(files, config, work)
    _read_links(files, work)
    _put_items(work)
    _put_facts(facts, work)
    if "kg" in files:
        _read_triples(files, work)
    _put_relations(files, list(facts), work)
    if name == "ml-100k" and work.value("SELECT count(*) FROM raw_link WHERE starts_with(entity, 'm.')"):
        work.notes.append(
            "the links of RecBole's ml-100k apply ids of MovieLens-20M to the items of MovieLens-100K, so that nearly "
            "every film has the facts of another one (RUCAIBox/RecSysDatasets issue 130): do not report results on it"
        )


def find_files(folder: Path, dataset: str = "") -> tuple[str, dict[str, Path]]:
    """Find the files of a data set: its name, and the files that exist by what follows the name (``train.inter``, say).

    Raises
    ------
    DataError
        If there is none, or several of which none was chosen; the message lists them.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder", "name the folder of the raw files with --raw")
    names = {re.sub(rf"\.({'|'.join(SPLITS)})$", "", path.stem) for path in folder.glob("*.inter") if path.is_file()}
    known = sorted(name for name in names if name)
    if not known or (dataset and dataset not in known):
        wanted = dataset or "<name>"
        held = f"; it holds {some(known)}" if known else ""
        raise DataError(f"{folder} holds no {wanted}.inter (or {wanted}.train.inter){held}", "choose with --dataset")
    if len(known) > 1 and not dataset:
        raise DataError(f"{folder} holds several data sets: {some(known)}", "choose one with --dataset")
    name = dataset or known[0]
    paths = {suffix: folder / f"{name}.{suffix}" for suffix in _SUFFIXES}
    return name, {suffix: path for suffix, path in paths.items() if path.is_file()}


def _table(path: Path) -> Delimited:
    return Delimited(path, separator="\t", quoting=False, typed=True)


def _fields(path: Path) -> dict[str, str]:
    """Types of the fields of a file, by name."""
    with open_text(path) as file:
        header = file.readline().rstrip("\r\n").split("\t")
    return {name: kind for name, _, kind in (field.rpartition(":") for field in header)}


def _has_rows(path: Path) -> bool:
    with open_text(path) as file:
        file.readline()
        return any(line.strip() for line in file)


def _no_control(*names: str) -> list[tuple[str, str]]:
    """Faults of fields that become ids."""
    pattern = literal(CONTROL)
    return [(f"regexp_matches({quoted(name)}, {pattern})", f"{name!r} holds a control character") for name in names]


def _read_interactions(files: Mapping[str, Path], config: RecboleConfig, work: Workspace) -> None:
    """Read ``.inter``, or the files of a given split where they are wanted or all there is."""
    parts = {suffix: split for suffix, split in _PARTS.items() if suffix in files}
    if parts and (config.split == "given" or "inter" not in files):
        if "train.inter" not in files:
            path = next(iter(files.values())).parent
            raise DataError(f"{path} holds {some(parts)} of a given split but no train.inter", "add it")
        chosen = {suffix: literal(split) for suffix, split in parts.items()}
    else:
        chosen = {"inter": "NULL"}
    for suffix, split in chosen.items():
        path = files[suffix]
        if suffix in ("valid.inter", "test.inter") and not _has_rows(path):
            continue
        fields = {"user": Field("user_id"), "item": Field("item_id")}
        known = _fields(path)
        if "rating" in known:
            fields["rating"] = Field("rating", "number", required=False)
        if "timestamp" in known:
            fields["timestamp"] = Field("timestamp", "integer", required=False)
        work.read(_table(path), "raw_inter", fields, _no_control("user_id", "item_id"))
        names = ", ".join(map(quoted, fields))
        work.db.execute(f"INSERT INTO interactions ({names}, split) SELECT {names}, {split} FROM raw_inter")
        work.db.execute("DROP TABLE raw_inter")


def _read_users(path: Path, work: Workspace) -> None:
    """Read ``.user``; users it lacks follow."""
    fields = {"user": Field("user_id")}
    if "label" in _fields(path):
        fields["label"] = Field("label", "text")
    work.read(_table(path), "raw_user", fields, _no_control("user_id"))
    label = "nullif(label, '')" if "label" in fields else "NULL"
    work.db.execute(
        f"""INSERT INTO users SELECT row_number() OVER (ORDER BY place NULLS LAST, "user") - 1, "user", label FROM (
              SELECT rowid AS place, "user", {label} AS label FROM raw_user
              UNION ALL SELECT DISTINCT NULL, "user", NULL FROM interactions ANTI JOIN raw_user USING ("user"))"""
    )
    work.located["users"] = (_table(path), "user_id")


def _read_items(files: Mapping[str, Path], config: RecboleConfig, work: Workspace) -> dict[str, str]:
    """Read ``.item`` into the table ``raw_item``; returns the types of the fields that become triples."""
    if "item" not in files:
        if chosen := [name for name in (config.label_field, config.description_field, *config.facts) if name]:
            raise DataError(f"there is no file of the items, which should hold {some(chosen)}", "add NAME.item")
        work.db.execute("CREATE TABLE raw_item (item VARCHAR, label VARCHAR, description VARCHAR)")
        return {}
    path = files["item"]
    known = _fields(path)
    for name in filter(None, (config.label_field, config.description_field, *config.facts)):
        if name not in known:
            raise DataError(f"{path} line 1: there is no field {name!r}; it has {some(known, 20)}", "choose another")
    named = [
        name
        for name, kind in known.items()
        if kind in ("token", "token_seq") and name != "item_id" and re.search("title|name", name, re.I)
    ]
    label = config.label_field or next(iter(named), "")
    description = config.description_field or ("description" if "description" in known else "")
    texts = [
        name for name, kind in known.items() if kind == "token_seq" and name not in ("item_id", label, description)
    ]
    facts = list(dict.fromkeys(config.facts)) or ([] if "kg" in files else texts)
    fields = {"item": Field("item_id")}
    fields |= {target: Field(name, "text") for target, name in (("label", label), ("description", description)) if name}
    fields |= {f"fact:{name}": Field(name, "text") for name in facts}
    work.read(_table(path), "raw_item", fields, _no_control("item_id", *facts))
    for target in ("label", "description"):
        if target not in fields:
            work.db.execute(f"ALTER TABLE raw_item ADD COLUMN {target} VARCHAR DEFAULT ''")
    work.located["items"] = (_table(path), "item_id")
    return {name: known[name] for name in facts}


def _read_links(files: Mapping[str, Path], work: Workspace) -> None:
    if "link" in files:
        fields = {"item": Field("item_id"), "entity": Field("entity_id")}
        work.read(_table(files["link"]), "raw_link", fields, _no_control("item_id", "entity_id"))
    else:
        work.db.execute("CREATE TABLE raw_link (item VARCHAR, entity VARCHAR)")


def _put_items(work: Workspace) -> None:
    """Put the items of ``.item`` and those of the interactions it lacks; without a name, the entity's id stands in."""
    query = """SELECT item, coalesce(label, '') AS label, description, coalesce(entity, item) AS named_by FROM (
                 SELECT rowid AS place, item, label, description FROM raw_item
                 UNION ALL SELECT DISTINCT NULL, item, '', '' FROM interactions ANTI JOIN raw_item USING (item))
               LEFT JOIN (SELECT item, min(entity) AS entity FROM raw_link GROUP BY item) USING (item)
               ORDER BY place NULLS LAST, item"""
    for batch in work.batches(query, _BATCH_ROWS):
        work.put("items", batch.assign(label=_labels(batch["label"], batch["named_by"])))


def _labels(labels: Sequence[str] | pd.Series, ids: Sequence[str] | pd.Series) -> pd.Series:
    """Labels as they are given, else as they can be read from the ids."""
    return pd.Series([label or readable(name) for label, name in zip(labels, ids, strict=True)], dtype="str")


def _put_facts(facts: Mapping[str, str], work: Workspace) -> None:
    """Turn fields of the items into triples; an entity's id is ``field:value``."""
    for name, kind in facts.items():
        column = quoted(f"fact:{name}")
        values = f"unnest(string_split({column}, ' '))" if kind.endswith("_seq") else f"trim({column})"
        pairs = f"SELECT item, {values} AS value FROM raw_item"
        prefix = literal(f"{name}:")
        work.db.execute(
            f"INSERT INTO triples SELECT item, {literal(name)}, {prefix} || value FROM ({pairs}) WHERE value <> ''"
        )
        query = f"SELECT DISTINCT {prefix} || value AS entity, value FROM ({pairs}) WHERE value <> '' ORDER BY value"
        for batch in work.batches(query, _BATCH_ROWS):
            work.put("entities", batch.assign(label=batch["value"].map(readable), kind=name))


def _read_triples(files: Mapping[str, Path], work: Workspace) -> None:
    """Read ``.kg``; heads and tails that are linked to an item become the item."""
    db = work.db
    fields = {"head": Field("head_id"), "relation": Field("relation_id"), "tail": Field("tail_id")}
    work.read(_table(files["kg"]), "raw_kg", fields, _no_control("head_id", "relation_id", "tail_id"))
    if "link" not in files:
        db.execute("INSERT INTO raw_link SELECT item, item FROM items")
    _read_entities(files, work)
    db.execute("CREATE TABLE raw_linked AS SELECT DISTINCT entity, item FROM raw_link SEMI JOIN items USING (item)")
    db.execute(
        """CREATE TABLE raw_free AS SELECT place, entity, label, kind FROM (
             SELECT rowid AS place, entity, label, kind FROM raw_ent
             UNION ALL SELECT NULL, entity, '', ''
             FROM (SELECT head AS entity FROM raw_kg UNION SELECT tail FROM raw_kg)
             ANTI JOIN raw_ent USING (entity)) ANTI JOIN raw_linked USING (entity)"""
    )
    clash = work.value("SELECT count(*) FROM raw_free JOIN items ON items.item = raw_free.entity")
    prefix = literal("entity:" if clash else "")
    db.execute(
        f"""CREATE TABLE raw_node AS SELECT entity, item AS node FROM raw_linked
            UNION ALL SELECT DISTINCT entity, {prefix} || entity FROM raw_free"""
    )
    db.execute(
        """INSERT INTO triples SELECT h.node, relation, n.node FROM raw_kg
           JOIN raw_node AS h ON h.entity = head JOIN raw_node AS n ON n.entity = tail"""
    )
    nameless = 0
    query = f"""SELECT {prefix} || entity AS entity, entity AS named_by, label, kind FROM raw_free
                ORDER BY place NULLS LAST, entity"""
    for batch in work.batches(query, _BATCH_ROWS):
        labels = _labels(batch["label"], batch["named_by"])
        nameless += sum(label.isdecimal() or FREEBASE_ID.fullmatch(label) is not None for label in labels)
        work.put("entities", batch.assign(label=labels, kind=batch["kind"].replace("", "entity")))
    if nameless:
        work.notes.append(
            f"{nameless} entities have ids that say nothing and no name; "
            "a file NAME.ent (entity_id:token, label:token_seq) can name them"
        )


def _read_entities(files: Mapping[str, Path], work: Workspace) -> None:
    """Read ``.ent`` into the table ``raw_ent``."""
    if "ent" not in files:
        work.db.execute("CREATE TABLE raw_ent (entity VARCHAR, label VARCHAR, kind VARCHAR)")
        return
    fields = {"entity": Field("entity_id"), "label": Field("label", "text"), "kind": Field("kind", "text")}
    faults = [*_no_control("entity_id"), ("trim(kind) = 'item'", "the kind 'item' is for the items alone")]
    work.read(_table(files["ent"]), "raw_ent", fields, faults)
    work.located["entities"] = (_table(files["ent"]), "entity_id")


def _put_relations(files: Mapping[str, Path], facts: list[str], work: Workspace) -> None:
    """Put the relations of ``.rel`` in their order, then the others."""
    parts = [pd.DataFrame({"relation": [], "label": [], "template": []}, dtype="str")]
    if "rel" in files:
        fields = {
            "relation": Field("relation_id"),
            "label": Field("label", "text"),
            "template": Field("template", "text"),
        }
        incomplete = "template <> '' AND NOT (contains(template, '{head}') AND contains(template, '{tail}'))"
        faults = [*_no_control("relation_id"), (incomplete, "the template lacks {head} or {tail}")]
        work.read(_table(files["rel"]), "raw_rel", fields, faults)
        parts.append(work.frame("SELECT relation, label, template FROM raw_rel ORDER BY rowid"))
        work.located["relations"] = (_table(files["rel"]), "relation_id")
    used = work.frame("SELECT DISTINCT relation FROM triples ORDER BY relation")["relation"]
    known = set(parts[-1]["relation"])
    others = [name for name in dict.fromkeys([*facts, *used]) if name not in known]
    parts.append(pd.DataFrame({"relation": others, "label": "", "template": ""}, dtype="str"))
    relations = pd.concat(parts, ignore_index=True)
    relations["label"] = _labels(relations["label"], relations["relation"])
    default = "{head} is linked to {tail} by " + relations["label"] + "."
    work.put("relations", relations.assign(template=relations["template"].where(relations["template"] != "", default)))


SOURCE = Source(
    parse,
    {"recbole": Recipe("recbole", RecboleConfig(min_rating=None), "RecBole atomic files (.inter, .item, .kg, .link)")},
)
"""The source."""
