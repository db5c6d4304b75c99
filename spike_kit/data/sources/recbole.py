"""RecBole atomic files: tab-separated tables with a header ``field:type`` (Zhao et al., CIKM 2021).

Two more files, ``NAME.ent`` and ``NAME.rel``, bring the names of entities and relations; `write` writes them, and
RecBole reads such files through ``additional_feat_suffix``.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from spike_kit.base.errors import DataError, some
from spike_kit.data.dataset import Dataset
from spike_kit.data.labels import FREEBASE_ID, readable
from spike_kit.data.pipeline import BuildConfig
from spike_kit.data.raw import Delimited, Field, literal, open_text, quoted
from spike_kit.data.reading import check_folder, interaction_fields, read_interactions, registered
from spike_kit.data.recipes import Recipe, Source, WriteOptions
from spike_kit.data.tables import SPLITS
from spike_kit.data.text import clean, plain
from spike_kit.data.workspace import Workspace

LICENCE = "that of the data set"
ORIGIN = "atomic files in RecBole's format"

_PARTS = {f"{split}.inter": split for split in SPLITS}
_SUFFIXES = ("inter", *_PARTS, "item", "user", "kg", "link", "ent", "rel")
_BATCH_ROWS = 50_000

MAX_TIMESTAMP = 2**53
"""Largest timestamp that a field of the type float holds exactly."""

MISSING = frozenset(
    "#N/A|#N/A N/A|#NA|-1.#IND|-1.#QNAN|-NaN|-nan|1.#IND|1.#QNAN|<NA>|N/A|NA|NULL|NaN|None|n/a|nan|null".split("|")  # noqa: SIM905
)
"""Tokens that RecBole takes for a missing value (it reads with the defaults of pandas)."""

_JOINER = "\u2060"

_FIELDS = {
    "item": {"item_id:token": "source_id", "title:token_seq": "label", "description:token_seq": "description"},
    "user": {"user_id:token": "source_id", "label:token_seq": "label"},
    "ent": {"entity_id:token": "source_id", "label:token_seq": "label", "kind:token": "kind"},
    "rel": {"relation_id:token": "source_id", "label:token_seq": "label", "template:token_seq": "template"},
}
"""Fields of the files of names that are written, and the columns they hold."""


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
        registered(path, LICENCE, ORIGIN, work)
    _read_interactions(files, config, work)
    _read_users(files, work)
    facts = _read_items(files, config, work)
    _read(files, "link", {"item": Field("item_id"), "entity": Field("entity_id")}, work)
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
    check_folder(folder)
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
    return Delimited(path, "\t", quoting=False, typed=True)


def _kinds(path: Path) -> dict[str, str]:
    """Types of the fields of a file, by name."""
    return {name: kind for name, _, kind in (field.rpartition(":") for field in _table(path).first_row())}


def _has_rows(path: Path) -> bool:
    with open_text(path) as file:
        return any(line.strip() for line in islice(file, 1, None))


def _read(
    files: Mapping[str, Path],
    suffix: str,
    fields: Mapping[str, Field],
    work: Workspace,
    faults: Sequence[tuple[str, str]] = (),
    names: str = "",
) -> None:
    """Read a file into the table ``raw_<suffix>``, which is empty if there is none; ``names`` is what it names.

    Fields that are not required and that the file does not have are empty.
    """
    if suffix not in files:
        work.db.execute(f"CREATE TABLE raw_{suffix} ({', '.join(f'{quoted(name)} VARCHAR' for name in fields)})")
        return
    known = _kinds(files[suffix])
    given = {name: field for name, field in fields.items() if field.required or field.source in known}
    absent = {name: "''" for name in fields if name not in given}
    work.read(_table(files[suffix]), f"raw_{suffix}", given, faults, absent)
    if names:
        work.origins[names] = (_table(files[suffix]), next(iter(fields.values())).source)


def _read_interactions(files: Mapping[str, Path], config: RecboleConfig, work: Workspace) -> None:
    """Read ``.inter``, or the files of a given split where they are wanted or all there is."""
    parts = {suffix: split for suffix, split in _PARTS.items() if suffix in files}
    if parts and (config.split == "given" or "inter" not in files):
        if "train.inter" not in files:
            path = next(iter(files.values())).parent
            raise DataError(f"{path} holds {some(parts)} of a given split but no train.inter", "add it")
    else:
        parts = {"inter": ""}
    for suffix, split in parts.items():
        path = files[suffix]
        if suffix in ("valid.inter", "test.inter") and not _has_rows(path):
            continue
        optional = [name for name in ("rating", "timestamp") if name in _kinds(path)]
        fields = interaction_fields({"user": "user_id", "item": "item_id", **{name: name for name in optional}})
        if "rating" in fields:
            fields["rating"] = Field("rating", "number", required=False)
        read_interactions(_table(path), fields, work, split)


def _read_users(files: Mapping[str, Path], work: Workspace) -> None:
    """Read ``.user``; users it lacks follow."""
    _read(files, "user", {"user": Field("user_id"), "label": Field("label", "text", False)}, work, names="users")
    work.db.execute(
        """INSERT INTO users SELECT row_number() OVER (ORDER BY place NULLS LAST, "user") - 1, "user", label FROM (
             SELECT rowid AS place, "user", nullif(label, '') AS label FROM raw_user
             UNION ALL SELECT DISTINCT NULL, "user", NULL FROM interactions ANTI JOIN raw_user USING ("user"))"""
    )


def _read_items(files: Mapping[str, Path], config: RecboleConfig, work: Workspace) -> dict[str, str]:
    """Read ``.item`` into the table ``raw_item``; returns the types of the fields that become triples."""
    chosen = [name for name in (config.label_field, config.description_field, *config.facts) if name]
    if "item" not in files and chosen:
        raise DataError(f"there is no file of the items, which should hold {some(chosen)}", "add NAME.item")
    known = _kinds(files["item"]) if "item" in files else {}
    if unknown := [name for name in chosen if name not in known]:
        path = files["item"]
        raise DataError(f"{path} line 1: there is no field {unknown[0]!r}; it has {some(known, 20)}", "choose another")
    named = (
        name
        for name, kind in known.items()
        if kind in ("token", "token_seq") and name != "item_id" and re.search("title|name", name, re.I)
    )
    label, description = config.label_field or next(named, ""), config.description_field or "description"
    facts = list(dict.fromkeys(config.facts))
    if not facts and "kg" not in files:
        sequences = [name for name, kind in known.items() if kind == "token_seq"]
        facts = [name for name in sequences if name not in ("item_id", label, description)]
    texts = {"label": Field(label, "text", False), "description": Field(description, "text", False)}
    fields = {"item": Field("item_id"), **texts}
    fields |= {f"fact:{name}": Field(name, required=False) for name in facts}
    _read(files, "item", fields, work, names="items")
    return {name: known[name] for name in facts}


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
    _read(files, "kg", {"head": Field("head_id"), "relation": Field("relation_id"), "tail": Field("tail_id")}, work)
    if "link" not in files:
        db.execute("INSERT INTO raw_link SELECT item, item FROM items")
    fields = {"entity": Field("entity_id"), "label": Field("label", "text"), "kind": Field("kind", "text")}
    faults = [("trim(kind) = 'item'", "the kind 'item' is for the items alone")]
    _read(files, "ent", fields, work, faults, names="entities")
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
        remedy = "a file NAME.ent (entity_id:token, label:token_seq) can name them"
        work.notes.append(f"{nameless} entities have ids that say nothing and no name; {remedy}")


def _put_relations(files: Mapping[str, Path], facts: list[str], work: Workspace) -> None:
    """Put the relations of ``.rel`` in their order, then the others."""
    fields = {"relation": Field("relation_id"), "label": Field("label", "text"), "template": Field("template", "text")}
    incomplete = "template <> '' AND NOT (contains(template, '{head}') AND contains(template, '{tail}'))"
    _read(files, "rel", fields, work, [(incomplete, "the template lacks {head} or {tail}")], names="relations")
    known = work.frame("SELECT relation, label, template FROM raw_rel ORDER BY rowid")
    used = work.frame("SELECT DISTINCT relation FROM triples ORDER BY relation")["relation"]
    others = [name for name in dict.fromkeys([*facts, *used]) if name not in set(known["relation"])]
    rest = pd.DataFrame({"relation": others, "label": "", "template": ""}, dtype="str")
    relations = pd.concat([known, rest], ignore_index=True)
    relations["label"] = _labels(relations["label"], relations["relation"])
    default = "{head} is linked to {tail} by " + relations["label"] + "."
    work.put("relations", relations.assign(template=relations["template"].where(relations["template"] != "", default)))


def write(data: Dataset, folder: Path, options: WriteOptions) -> None:
    """Write RecBole atomic files ``<name>.train.inter``, ``.item``, ``.kg``, ...; the split as benchmark files.

    `parse` reads all of it back exactly; reviews, profiles and vectors have no place in it. Titles and descriptions are
    read back through `spike_kit.data.text.plain`; the few that would change under it are written with escaped ``&`` or
    with invisible word joiners.

    Raises
    ------
    DataError
        If something cannot be held by the format: an id that RecBole takes for a quoted or a missing value, a text that
        is no clean line, an infinite rating, a timestamp beyond `MAX_TIMESTAMP`.
    """
    del options
    users, items, entities, relations, interactions, triples = data.tables.named().values()
    _check_ids({"users": users, "entities": entities, "relations": relations})
    _check_numbers(interactions)
    nodes = entities["source_id"]
    rows = {
        "user_id:token": _coded(interactions["user"], users["source_id"]),
        "item_id:token": _coded(interactions["item"], items["source_id"]),
        "rating:float": interactions["rating"],
        "timestamp:float": interactions["timestamp"],
    }
    facts = {
        "head_id:token": _coded(triples["head"], nodes),
        "relation_id:token": _coded(triples["relation"], relations["source_id"]),
        "tail_id:token": _coded(triples["tail"], nodes),
    }
    files = {f"{split}.inter": pd.DataFrame(rows)[interactions["split"] == split] for split in SPLITS}
    files["kg"] = pd.DataFrame(facts)
    files["link"] = pd.DataFrame({"item_id:token": items["source_id"], "entity_id:token": items["source_id"]})
    named = {"item": items, "user": users, "ent": entities[len(items) :], "rel": relations}
    files |= {suffix: _named(table, _FIELDS[suffix]) for suffix, table in named.items() if len(table)}
    for suffix, frame in files.items():
        path = folder / f"{data.name}.{suffix}"
        frame.to_csv(path, sep="\t", index=False, quoting=csv.QUOTE_NONE, lineterminator="\n", encoding="utf-8")


def _named(table: pd.DataFrame, fields: Mapping[str, str]) -> pd.DataFrame:
    """Columns of a table of names, as fields of a file."""
    ids = table["source_id"]
    return pd.DataFrame(
        {field: ids if column == "source_id" else _texts(table, column) for field, column in fields.items()}
    )


def _coded(numbers: pd.Series, ids: pd.Series) -> pd.Categorical[Any]:
    """Ids by number, without a copy of each."""
    return pd.Categorical.from_codes(numbers, pd.Index(ids))


def _check_ids(tables: Mapping[str, pd.DataFrame]) -> None:
    """Refuse ids that RecBole would not read as they are."""
    for name, table in tables.items():
        ids = table["source_id"]
        for what, wrong in (("a missing value", ids.isin(MISSING)), ("the start of a quoted value", ids.str[0] == '"')):
            if wrong.any():
                problem = f"table {name}: RecBole takes the id {ids[wrong].iloc[0]!r} for {what}"
                raise DataError(problem, "rename it in the raw files")


def _check_numbers(interactions: pd.DataFrame) -> None:
    rating, stamp = interactions["rating"], interactions["timestamp"]
    infinite, beyond = np.isinf(rating.to_numpy()), stamp.abs().gt(MAX_TIMESTAMP).fillna(value=False)
    if infinite.any():
        row = infinite.argmax()
        raise DataError(f"table interactions row {row}: the rating is infinite", "correct the raw files")
    if beyond.any():
        row = int(beyond.argmax())
        problem = f"table interactions row {row}: the timestamp {stamp[row]} is too large for a float"
        raise DataError(problem, "build the data set with timestamps in seconds")


def _texts(table: pd.DataFrame, column: str) -> list[str]:
    """Texts of a column in a form that a build (which takes markup out of some) turns back into the same text."""
    read = plain if column in ("label", "description") else clean
    written = []
    for source_id, text in zip(table["source_id"], table[column], strict=True):
        loose = "".join(character if character.isascii() else _JOINER + character for character in text)
        forms = (text, text.replace("&", "&amp;"), loose, _JOINER.join(text))
        marked = (_JOINER + form if text.startswith('"') else form for form in forms)
        found = next((form for form in marked if read(form) == text), None)
        if found is None:
            raise DataError(f"{column} of {source_id!r} is no clean line: {text[:80]!r}", "build the data set again")
        written.append(found)
    return written


_ABOUT = "RecBole atomic files (.inter, .item, .kg, .link)"

SOURCE = Source(parse, {"recbole": Recipe(RecboleConfig(min_rating=None), _ABOUT)}, write=write)
"""The reader and the writer."""
