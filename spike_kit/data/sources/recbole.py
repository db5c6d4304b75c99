"""RecBole atomic files: tab-separated tables with a header ``field:type`` (Zhao et al., CIKM 2021).

Two more files, ``NAME.ent`` and ``NAME.rel``, bring the names of entities and relations; `write` writes them, and
RecBole reads such files through ``additional_feat_suffix``.
"""

import csv
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd

from spike_kit.base.errors import DataError, some
from spike_kit.data.dataset import Dataset
from spike_kit.data.raw import Fault, atomic, fields, literal, quoted
from spike_kit.data.recipes import BuildConfig, Recipe, Source
from spike_kit.data.tables import SPLITS
from spike_kit.data.text import FREEBASE_ID, clean, plain, readable
from spike_kit.data.workspace import Workspace, facts_in

TERMS = "that of the data set", "atomic files in RecBole's format"

_PARTS = {f"{split}.inter": split for split in SPLITS}
_SUFFIXES = ("inter", *_PARTS, "item", "user", "kg", "link", "ent", "rel")

_FILES = {
    "item": ("raw_items", {"item": "item_id"}),
    "user": ("raw_users", {"user": "user_id", "label": "label"}),
    "link": ("raw_links", {"item": "item_id", "entity": "entity_id"}),
    "kg": ("raw_triples", {"head": "head_id", "relation": "relation_id", "tail": "tail_id"}),
    "ent": ("raw_entities", {"entity": "entity_id", "label": "label", "kind": "kind"}),
    "rel": ("raw_relations", {"relation": "relation_id", "label": "label", "template": "template"}),
}
"""View of each file, and the fields that are read into it, by our names."""

_LACKS = "NOT (contains(template, '{head}') AND contains(template, '{tail}'))"
_FAULTS = {
    "kind": Fault("trim(kind) = 'item'", "the kind 'item' is for the items alone"),
    "template": Fault(f"template <> '' AND {_LACKS}", "the template lacks {head} or {tail}"),
}
"""What is wrong with a row, by the field in which it is."""

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
    work.terms = TERMS
    name, files = find_files(folder, config.dataset)
    for path in files.values():
        work.register(path)
    _read_interactions(files, config, work)
    _read(files, "user", work)
    work.put("users", work.frame(_listed("raw_users", '"user"', 'SELECT "user" FROM interactions')))
    facts = _read_items(files, config, work)
    if "kg" in files:
        _read_triples(files, work)
    _put_relations(files, facts, work)
    if name == "ml-100k" and work.value("SELECT count(*) FROM raw_links WHERE starts_with(entity, 'm.')"):
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


def _types(path: Path | None) -> dict[str, str]:
    """Types of the fields of a file, by name."""
    row = atomic(path).first_row() if path else []
    return {name: kind for name, _, kind in (field.rpartition(":") for field in row)}


def _read(files: Mapping[str, Path], suffix: str, work: Workspace, more: Mapping[str, str] = {}) -> None:
    """Read a file into its view, which is empty if there is none; texts that the file lacks are empty."""
    view, columns = _FILES[suffix]
    wanted = fields({**columns, **more})
    if suffix not in files:
        names = ", ".join(f"{quoted(name)} VARCHAR" for name in wanted)
        work.db.execute(f"CREATE TABLE {view} ({names}, place BIGINT)")
        return
    known = _types(files[suffix])
    given = {name: field for name, field in wanted.items() if field.kind != "text" or field.source in known}
    absent = {name: "''" for name in wanted if name not in given}
    faults = [fault for name, fault in _FAULTS.items() if name in given]
    work.read(atomic(files[suffix]), view, given, faults, absent)


def _listed(view: str, key: str, others: str) -> str:
    """SQL of the rows of a view in their order, and then of the ids that only another query has."""
    more = f"SELECT DISTINCT {key} FROM ({others}) ANTI JOIN {view} USING ({key})"
    return f"SELECT * FROM (SELECT * FROM {view} UNION ALL BY NAME {more}) ORDER BY place NULLS LAST, {key}"


def _read_interactions(files: Mapping[str, Path], config: RecboleConfig, work: Workspace) -> None:
    """Read ``.inter``, or the files of a given split where they are wanted or all there is."""
    parts = {suffix: split for suffix, split in _PARTS.items() if suffix in files}
    if not parts or (config.split != "given" and "inter" in files):
        parts = {"inter": ""}
    elif "train.inter" not in files:
        path = next(iter(files.values())).parent
        raise DataError(f"{path} holds {some(parts)} of a given split but no train.inter", "add it")
    for suffix, split in parts.items():
        path = files[suffix]
        if suffix in ("valid.inter", "test.inter") and not any(atomic(path).rows()):
            continue
        optional = [name for name in ("rating", "timestamp") if name in _types(path)]
        columns = fields({"user": "user_id", "item": "item_id", **{name: name for name in optional}})
        if "rating" in columns:
            columns["rating"] = replace(columns["rating"], required=False)
        work.read_interactions(atomic(path), columns, split)


def _read_items(files: Mapping[str, Path], config: RecboleConfig, work: Workspace) -> list[str]:
    """Put the items of ``.item`` and those of the interactions it lacks; returns the fields that become triples.

    An item without a name is called by the id of its entity.
    """
    chosen = [name for name in (config.label_field, config.description_field, *config.facts) if name]
    if "item" not in files and chosen:
        raise DataError(f"there is no file of the items, which should hold {some(chosen)}", "add NAME.item")
    known = {name: kind for name, kind in _types(files.get("item")).items() if name != "item_id"}
    if unknown := [name for name in chosen if name not in known]:
        held = some(_types(files["item"]), 20)
        raise DataError(f"{files['item']} line 1: there is no field {unknown[0]!r}; it has {held}", "choose another")
    words = [name for name, kind in known.items() if kind in ("token", "token_seq")]
    label = config.label_field or next((name for name in words if re.search("title|name", name, re.I)), "")
    description = config.description_field or "description"
    facts = list(dict.fromkeys(config.facts))
    if not facts and "kg" not in files:
        facts = [name for name, kind in known.items() if kind == "token_seq" and name not in (label, description)]
    texts = {"label": label, "description": description, **{f"fact {name}": name for name in facts}}
    _read(files, "item", work, texts)
    _read(files, "link", work)
    query = f"""SELECT items.*, coalesce(entity, item) AS named_by
                FROM ({_listed("raw_items", "item", "SELECT item FROM interactions")}) AS items
                LEFT JOIN (SELECT item, min(entity) AS entity FROM raw_links GROUP BY item) USING (item)
                ORDER BY place NULLS LAST, item"""
    for batch in work.batches(query):
        work.put("items", batch.assign(label=_labels(batch["label"], batch["named_by"])))
    for name in facts:
        cells = work.frame(f"SELECT item, {quoted(f'fact {name}')} AS cell FROM raw_items ORDER BY place")
        separator = " " if known[name].endswith("_seq") else "\n"  # which no cell holds
        found = facts_in(cells, "cell", name, partial(str.split, sep=separator)).sort_values("label")
        work.put_facts(found.assign(tail=name + ":" + found["label"], label=found["label"].map(readable)))
    return facts


def _labels(labels: pd.Series, ids: pd.Series) -> pd.Series:
    """Labels as they are given, else as they can be read from the ids."""
    pairs = zip(labels.fillna(""), ids, strict=True)
    return pd.Series([label or readable(name) for label, name in pairs], labels.index, dtype="str")


def _read_triples(files: Mapping[str, Path], work: Workspace) -> None:
    """Read ``.kg``; heads and tails that are linked to an item become the item."""
    db = work.db
    _read(files, "kg", work)
    _read(files, "ent", work)
    if "link" not in files:
        db.execute("INSERT INTO raw_links BY NAME SELECT item, item AS entity FROM items")
    ends = "SELECT head AS entity FROM raw_triples UNION SELECT tail FROM raw_triples"
    db.execute("CREATE TABLE linked AS SELECT DISTINCT entity, item FROM raw_links SEMI JOIN items USING (item)")
    db.execute(
        f"""CREATE TABLE free AS SELECT * FROM ({_listed("raw_entities", "entity", ends)})
            ANTI JOIN linked USING (entity)"""
    )
    clash = work.value("SELECT count(*) FROM free JOIN items ON items.item = free.entity")
    prefix = literal("entity:" if clash else "")
    db.execute(
        f"""INSERT INTO triples SELECT coalesce(h.item, {prefix} || head), relation, coalesce(n.item, {prefix} || tail)
            FROM raw_triples LEFT JOIN linked AS h ON h.entity = head LEFT JOIN linked AS n ON n.entity = tail"""
    )
    nameless = 0
    query = (
        f"SELECT {prefix} || entity AS entity, entity AS named_by, label, kind FROM free ORDER BY place NULLS LAST, 2"
    )
    for batch in work.batches(query):
        labels = _labels(batch["label"], batch["named_by"])
        nameless += sum(label.isdecimal() or FREEBASE_ID.fullmatch(label) is not None for label in labels)
        work.put("entities", batch.assign(label=labels, kind=batch["kind"].replace("", None).fillna("entity")))
    if nameless:
        remedy = "a file NAME.ent (entity_id:token, label:token_seq) can name them"
        work.notes.append(f"{nameless} entities have ids that say nothing and no name; {remedy}")


def _put_relations(files: Mapping[str, Path], facts: list[str], work: Workspace) -> None:
    """Put the relations of ``.rel`` in their order, then the others."""
    _read(files, "rel", work)
    known = work.frame("SELECT relation, label, template FROM raw_relations ORDER BY place")
    used = work.frame("SELECT DISTINCT relation FROM triples ORDER BY relation")["relation"]
    others = [name for name in dict.fromkeys([*facts, *used]) if name not in set(known["relation"])]
    rest = pd.DataFrame({"relation": others, "label": "", "template": ""}, dtype="str")
    relations = pd.concat([known, rest], ignore_index=True)
    relations["label"] = _labels(relations["label"], relations["relation"])
    default = "{head} is linked to {tail} by " + relations["label"] + "."
    work.put("relations", relations.assign(template=relations["template"].where(relations["template"] != "", default)))


def write(data: Dataset, folder: Path, _merge_valid: bool, _vectors: object) -> None:
    """Write RecBole atomic files ``<name>.train.inter``, ``.item``, ``.kg``, ...; the split as benchmark files.

    `parse` reads all of it back exactly; reviews, profiles and vectors have no place in it. Titles and descriptions are
    read back through `spike_kit.data.text.plain`; the few that would change under it are written with invisible word
    joiners.

    Raises
    ------
    DataError
        If something cannot be held by the format: an id that RecBole takes for a quoted or a missing value, a text that
        is no clean line.
    """
    users, items, entities, relations, interactions, triples = data.tables.named().values()
    _check_ids({"users": users, "entities": entities, "relations": relations})
    ids = {"user": users["source_id"], "item": items["source_id"], "relation": relations["source_id"]}
    ids |= dict.fromkeys(("head", "tail"), entities["source_id"])
    rows = {f"{name}_id:token": interactions[name].map(ids[name]) for name in ("user", "item")}
    rows |= {f"{name}:float": interactions[name] for name in ("rating", "timestamp")}
    facts = {f"{name}_id:token": triples[name].map(ids[name]) for name in ("head", "relation", "tail")}
    files = {f"{split}.inter": pd.DataFrame(rows)[interactions["split"] == split] for split in SPLITS}
    files["kg"] = pd.DataFrame(facts)
    files["link"] = pd.DataFrame({f"{name}_id:token": ids["item"] for name in ("item", "entity")})
    named = {"item": items, "user": users, "ent": entities[len(items) :], "rel": relations}
    for suffix, table in named.items():
        if len(table):
            files[suffix] = pd.DataFrame({field: _texts(table, column) for field, column in _FIELDS[suffix].items()})
    for suffix, frame in files.items():
        path = folder / f"{data.name}.{suffix}"
        frame.to_csv(path, sep="\t", index=False, quoting=csv.QUOTE_NONE, lineterminator="\n", encoding="utf-8")


def _check_ids(tables: Mapping[str, pd.DataFrame]) -> None:
    """Refuse ids that RecBole would not read as they are."""
    for name, table in tables.items():
        ids = table["source_id"]
        for what, wrong in (("a missing value", ids.isin(MISSING)), ("the start of a quoted value", ids.str[0] == '"')):
            if wrong.any():
                problem = f"table {name}: RecBole takes the id {ids[wrong].iloc[0]!r} for {what}"
                raise DataError(problem, "rename it in the raw files")


def _texts(table: pd.DataFrame, column: str) -> list[str]:
    """Texts of a column in a form that a build (which takes markup out of some) turns back into the same text.

    Ids stay as they are (`_check_ids`).
    """
    if column == "source_id":
        return table[column].tolist()
    read = plain if column in ("label", "description") else clean
    written = []
    for source_id, text in zip(table["source_id"], table[column], strict=True):
        loose = "".join(character if character.isascii() else _JOINER + character for character in text)
        forms = (_JOINER + form if text[:1] == '"' else form for form in (text, loose, _JOINER.join(text)))
        found = next((form for form in forms if read(form) == text), None)
        if found is None:
            raise DataError(f"{column} of {source_id!r} is no clean line: {text[:80]!r}", "build the data set again")
        written.append(found)
    return written


_ABOUT = "RecBole atomic files (.inter, .item, .kg, .link)"

SOURCE = Source(parse, {"recbole": Recipe(RecboleConfig(min_rating=None), _ABOUT)}, write=write)
"""The reader and the writer."""
