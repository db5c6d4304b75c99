"""Folders in the format of KGAT (Wang et al., KDD 2019), which KGIN, SSLRec, KGRec and others read too.

``train.txt``, ``test.txt`` and, if there is one, ``valid.txt`` hold a user and their items on each line;
``kg_final.txt`` holds a triple on each line. All are integers that count from 0, the items before the other entities,
apart by blanks or tabs. ``user_list.txt``, ``item_list.txt``, ``entity_list.txt`` and ``relation_list.txt`` name them
where they exist: ``org_id remap_id``, a name and a number on each line. With the settings of the recipes, which filter
nothing, the ids of the data set are those of the folder.

Files of lists, ``user item item ...``, are read for CoLaKG's splits and for tables of one's own, too.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from spike_kit.base.errors import DataError, some
from spike_kit.data.dataset import Dataset
from spike_kit.data.raw import Fault, Field, lines_of, literal
from spike_kit.data.recipes import UNFILTERED, BuildConfig, Published, Recipe, Source
from spike_kit.data.tables import SPLITS
from spike_kit.data.text import CONTROL, readable
from spike_kit.data.workspace import Workspace

TERMS = (
    "that of the data underneath (Amazon, Last.fm, Yelp): for research, not to be passed on or sold",
    "a folder in KGAT's format",
)

AS_IT_IS: dict[str, Any] = {**UNFILTERED, "split": "given"}
"""Settings that filter nothing and keep the split."""

TRAIN, TRIPLES = "train.txt", "kg_final.txt"
LIST_FILES = {name: f"{name}_list.txt" for name in ("user", "item", "entity", "relation")}
"""Names of the files that name the ids."""

_ID = "remap_id"
_NAMES = ("org_id", "freebase_id")
_NUMBER = "[0-9]{1,15}"
_ANY = "[^ \t]+"
_SMALL = 100_000

Names = Mapping[int, tuple[str, ...]]
"""Names by id: the original id first, then (of items) the one in the knowledge graph."""


class KgatConfig(BuildConfig):
    """Settings of a build from a folder in KGAT's format."""

    names: Path | None = None
    """Titles of the items: a file with an original id, a tab and a title on each line, without a header."""


@dataclass(frozen=True)
class Known:
    """Ids that exist, and the file that says so."""

    ids: Collection[int]
    where: str


def parse(folder: Path, config: BuildConfig, work: Workspace, bounds: Mapping[str, Known] = {}) -> np.ndarray:
    """Parse a folder.

    Parameters
    ----------
    folder, config, work
        Folder of the raw files, settings of the build, and where the rows go.
    bounds
        Users, items and entities (by the names user, item, entity) that are known from elsewhere: others are bad, and
        these exist even if no file uses them.

    Returns
    -------
    ndarray
        Ids ``[U]`` of the users that were put, ascending: 0 to U-1, unless users that are missing were skipped.

    Raises
    ------
    DataError
        If a file is missing, damaged or holds a bad row.
    """
    work.terms = TERMS
    rows, users = _read_interactions(folder, work, bounds)
    known = {**bounds, "user": Known(range(int(users[-1]) + 1), TRAIN)}
    names = {
        what: _read_names(folder / file, what, work, known.get(what))
        for what, file in LIST_FILES.items()
        if (folder / file).exists()
    }
    used_items = {*rows["item"].unique().tolist(), *names.get("item", ())}
    n_items = len(bounds["item"].ids) if bounds else _size("item", folder / TRAIN, used_items)
    file = LIST_FILES["entity"]
    if not bounds and "entity" in names:
        known["entity"] = Known(range(_size("entity", folder / file, {*names["entity"], *range(n_items)})), file)
    triples, n_entities, n_relations = _read_triples(folder, work, n_items, known.get("entity"), names.get("relation"))
    complete = {"user": users.tolist(), "item": range(n_items), "relation": range(n_relations)}
    complete["entity"] = range(n_items if "item" in names else 0, n_entities)
    for what, found in names.items():
        if missing := [number for number in complete[what] if number not in found]:
            problem = f"it does not name the {what} ids {some(missing)}"
            work.bad(str(folder / LIST_FILES[what]), problem, "add a line for each", len(missing))

    named_users = _named(users.tolist(), names.get("user", {}), ["user"] * len(users))
    work.put("users", named_users.rename(columns={"id": "user"}))
    items, others = names.get("item", {}), names.get("entity", {})
    both = {node: items.get(node, ()) + others.get(node, ()) for node in range(n_entities)}
    nodes = _named(range(n_entities), both, ["item"] * n_items + ["entity"] * (n_entities - n_items))
    if isinstance(config, KgatConfig) and config.names:
        _entitle(work, config.names, [both[item] for item in range(n_items)], nodes)
    work.put("items", nodes[:n_items].rename(columns={"id": "item"}))
    work.put("entities", nodes[n_items:].rename(columns={"id": "entity"}).assign(kind="entity"))
    relations = _named(range(n_relations), names.get("relation", {}), ["relation"] * n_relations)
    templates = "{head} is linked to {tail} by " + relations["label"] + "."
    work.put("relations", relations.rename(columns={"id": "relation"}).assign(template=templates))

    user_ids = pd.Series(named_users["id"].to_numpy(), users)
    work.put("interactions", rows.assign(user=rows["user"].map(user_ids), item=rows["item"].map(nodes["id"])))
    ids = {"head": nodes["id"], "relation": relations["id"], "tail": nodes["id"]}
    work.put("triples", pd.DataFrame({name: triples[name].map(of) for name, of in ids.items()}))
    if config.split == "given" and config.valid and not (rows["split"] == SPLITS[1]).any():
        work.notes.append(
            f"the source has no validation file (valid.txt): {config.valid:g} of each user's train interactions were "
            "taken out of train for validation"
        )
    return users


def _read_interactions(folder: Path, work: Workspace, bounds: Mapping[str, Known]) -> tuple[pd.DataFrame, np.ndarray]:
    """Read train, valid and test: their rows (user, item, split), and the ids of the users, ascending.

    Users of ``bounds`` that follow the last one of train have no interactions.
    """
    files = {split: folder / f"{split}.txt" for split in SPLITS}
    for split in SPLITS[1:]:
        path = files[split]
        if (path.is_file() and not path.stat().st_size) or (split == SPLITS[1] and not path.exists()):
            del files[split]
    rows, known = read_split(files, work, bounds.get("user"), bounds.get("item"))
    if not known:
        raise DataError(f"{folder / TRAIN} holds no user", "check that it is the right file")
    users, size = np.array(known, dtype=np.int64), _size("user", folder / TRAIN, known)
    if len(missing := np.setdiff1d(np.arange(size), users)):
        problem = f"users {some(missing.tolist())} have no line ({len(missing)} are missing; users must count from 0)"
        work.bad(str(folder / TRAIN), problem, "give each a line (it may do without items)", len(missing))
    return rows, np.concatenate([users, np.arange(size, len(bounds["user"].ids))]) if bounds else users


def _size(what: str, path: Path, used: Collection[int]) -> int:
    """Number of ids if the largest of ``used`` is the last one.

    Raises
    ------
    DataError
        If next to none of the ids up to the largest are used: they do not count from 0 then.
    """
    size = max(used, default=-1) + 1
    if size > _SMALL and size > 10 * len(used):
        raise DataError(
            f"{path}: the largest {what} id is {size - 1}, but only {len(used)} ids are used",
            f"{what} ids must count from 0; these seem to be those of another source",
        )
    return size


def _read_triples(
    folder: Path, work: Workspace, n_items: int, known: Known | None, relation_names: Names | None
) -> tuple[pd.DataFrame, int, int]:
    """Read the triples; returns them (head, relation, tail) with the number of entities and of relations."""
    path, what = folder / TRIPLES, "a triple of ids (head relation tail)"
    columns = {name: _number(f"ids[{place}]") for place, name in enumerate(("head", "relation", "tail"), 1)}
    rows = read_ids(path, "raw_triples", work, columns, what, len(columns))
    if relation_names is None:
        n_relations = _size("relation", path, set(rows["relation"]))
    else:
        n_relations = _size("relation", folder / LIST_FILES["relation"], relation_names)
        problem = f"the relation is not in {LIST_FILES['relation']}"
        rows = work.kept("raw_triples", rows, rows["relation"] < n_relations, problem)
    if known:
        is_known = rows[["head", "tail"]].max(axis=1) < len(known.ids)
        rows = work.kept("raw_triples", rows, is_known, f"an entity is not in {known.where}")
    if rows.empty:
        raise DataError(f"{path} holds no triple", "check that it is the right file")
    if known:
        return rows, max(len(known.ids), n_items), n_relations
    return rows, _size("entity", path, {*rows["head"], *rows["tail"], *range(n_items)}), n_relations


def _read_names(path: Path, what: str, work: Workspace, known: Known | None) -> Names:
    """Read a list file; an id that is not ``known`` is bad.

    The first line names the columns: ``remap_id`` is the number, ``org_id`` and ``freebase_id`` are names, of which the
    first may hold blanks. The item list of KGAT's yelp2018 lacks the blank between its last two columns and repeats the
    first there (``abc 5abc``); that is understood.

    Raises
    ------
    DataError
        If the file is no text in UTF-8 or lacks its header; or if a line lacks its number, repeats one or names one
        that does not exist (unless bad rows are skipped).
    """
    view = f"{what}_list"
    lines = read_lines(path, view, work)
    texts = lines["line"].str.replace("\t", " ").str.strip(" ")
    columns = texts.iloc[0].split() if len(texts) else []
    if _ID not in columns or len(columns) < 2 or len(set(columns)) < len(columns) or not {_ID, *_NAMES} >= {*columns}:
        raise DataError(
            f"{path} line 1: the columns are {' '.join(columns)[:80]!r}, expected {_ID} and {' or '.join(_NAMES)}",
            "the first line must name the columns",
        )
    given = [name for name in _NAMES if name in columns]
    forms = {_ID: _NUMBER, given[0]: "[^ ](?:.*[^ ])?"}
    whole = " +".join(f"(?P<{name}>{forms.get(name, '[^ ]+')})" for name in columns)
    rows = texts[1:].str.extract(f"^{whole}$")
    if columns == [_NAMES[0], _ID, _NAMES[1]]:
        rows = rows.fillna(texts[1:].str.extract(rf"^(?P<{_NAMES[0]}>[^ ]+) +(?P<{_ID}>{_NUMBER}) *(?P={_NAMES[0]})$"))
    rows = rows.assign(place=lines["place"][1:])
    rows = work.kept(view, rows, rows[_ID].notna(), f"it does not hold {' '.join(columns)}").astype({_ID: "int64"})
    rows = work.kept(view, rows, ~rows[_ID].duplicated(), "its id is named a second time", "keep one line for each id")
    if known:
        rows = work.kept(view, rows, rows[_ID].isin(known.ids), f"its id is not in {known.where}", "take the line out")
    names = rows[given].fillna("").to_numpy().tolist()
    return {number: tuple(filter(None, found)) for number, found in zip(rows[_ID].tolist(), names, strict=True)}


def _named(numbers: Sequence[int], names: Names, kinds: Sequence[str]) -> pd.DataFrame:
    """Choose an id and a label by number; what has no name of its own is called by its kind and number.

    A name that equals what another row is called for lack of one counts as taken.
    """
    calls = pd.Series([f"{kind}:{number}" for kind, number in zip(kinds, numbers, strict=True)], dtype="str")
    first = pd.Series([next(iter(names.get(number, ())), None) for number in numbers], dtype="str")
    ids = first.where(first.notna() & ~first.duplicated(keep=False), calls)
    while (taken := ids.duplicated(keep=False) & (ids != calls)).any():
        ids = ids.where(~taken, calls)
    addresses = (next((name for name in names.get(number, ()) if "://" in name), None) for number in numbers)
    labels = [source_id if name is None else readable(name) for name, source_id in zip(addresses, ids, strict=True)]
    return pd.DataFrame({"id": ids, "label": labels}, dtype="str")


def _entitle(work: Workspace, path: Path, named: Sequence[tuple[str, ...]], nodes: pd.DataFrame) -> None:
    """Replace the labels of the items by their titles, which a file gives by original id: id, tab, title."""
    work.terms = TERMS[0], "titles of the items"
    lines = read_lines(path, "titles", work)
    rows = lines["line"].str.extract(r"^\s*(?P<name>[^\t]*?)\s*\t\s*(?P<title>.*\S)\s*$").assign(place=lines["place"])
    rows = work.kept("titles", rows, rows["title"].notna(), "it is not an id, a tab and a title")
    rows = rows.drop_duplicates(["name", "title"])
    again = rows["name"].duplicated()
    rows = work.kept("titles", rows, ~again, "its id has another title already", "keep one line for each id")
    titles = dict(zip(rows["name"], rows["title"], strict=True))
    found = {item: titles[name] for item, names in enumerate(named) if (name := next(filter(titles.get, names), None))}
    if not found:
        raise DataError(f"{path} names no item of the folder", "its first column must hold the original ids of items")
    nodes.loc[list(found), "label"] = list(found.values())


def read_lines(path: Path, view: str, work: Workspace) -> pd.DataFrame:
    """Read the lines of a text file that are not blank: line and place (its number from 0)."""
    has_control = f"regexp_matches(replace(line, '\t', ' '), {literal(CONTROL)})"
    work.read(
        lines_of(path), view, {"line": Field("line", "text")}, [Fault(has_control, "it holds a control character")]
    )
    return work.frame(f"SELECT line, place FROM {view} WHERE trim(line, ' \t') <> '' ORDER BY place")


def read_ids(
    path: Path,
    view: str,
    work: Workspace,
    columns: Mapping[str, str],
    what: str = "a line of ids (0, 1, 2, ...)",
    count: int | None = None,
    form: str = _NUMBER,
) -> pd.DataFrame:
    """Read the lines of a file that hold ids; blank ones are passed over, a line that holds something else is bad.

    Parameters
    ----------
    path, view, work
        File, view and workspace, as in `Workspace.read`.
    columns
        Columns of the result, besides the place: SQL expressions on ``ids``, a list of texts.
    what, count
        What a line is, for messages, and how many ids it holds if that is always the same.
    form
        Regular expression of an id.
    """
    more = "*" if count is None else f"{{{count - 1}}}"
    is_line = f"regexp_full_match(line, '[ \t]*{form}([ \t]+{form}){more}[ \t]*')"
    fault = Fault(f"trim(line, ' \t') <> '' AND NOT {is_line}", f"it is not {what}")
    parts = "CASE WHEN trim(line, ' \t') <> '' THEN string_split_regex(trim(line, ' \t'), '[ \t]+') END"
    work.read(lines_of(path), view, {"line": Field("line", "text")}, [fault], {"ids": parts})
    wanted = ", ".join(f'{value} AS "{name}"' for name, value in columns.items())
    return work.frame(f"SELECT {wanted}, place FROM {view} WHERE ids IS NOT NULL ORDER BY place")


def _number(text: str) -> str:
    return f"CAST({text} AS BIGINT)"


def read_split(
    files: Mapping[str, Path],
    work: Workspace,
    users: Known | None = None,
    items: Known | None = None,
    items_from_train: bool = False,
    as_text: bool = False,
) -> tuple[pd.DataFrame, list[int]]:
    """Read the files of a given split (by the names train, valid, test): rows (user, item, split), and train's users.

    Bad rows: a line that names a user again, or one who is unknown (of valid and test: has no line in train), and an
    unknown item.

    Parameters
    ----------
    files
        Files by split, train first.
    work
        Workspace.
    users, items
        Ids that exist, if that is known from elsewhere.
    items_from_train
        Whether an item of valid and test must be in train.
    as_text
        Whether ids are texts, which stay as they are written; else they are numbers.

    Raises
    ------
    DataError
        If a file is not readable, or a line is bad (unless bad rows are skipped).
    """
    parts, train_users = [], []
    for split, path in files.items():
        view = f"lists_{split}"
        if as_text:
            lists = read_ids(path, view, work, {"user": "ids[1]", "items": "ids[2:]"}, "a line of ids", form=_ANY)
        else:
            lists = read_ids(path, view, work, {"user": _number("ids[1]"), "items": "CAST(ids[2:] AS BIGINT[])"})
        first = ~lists["user"].duplicated()
        lists = work.kept(view, lists, first, "its user has a line already", "make one line of the two")
        if users:
            known = lists["user"].isin(users.ids) | ((split != SPLITS[0]) & (lists["items"].str.len() == 0))
            problem = f"its user is not in {users.where}"
            lists = work.kept(view, lists, known, problem, "add the user there (without items will do)")
        rows = lists.rename(columns={"items": "item"}).explode("item").dropna(subset=["item"])
        if items:
            rows = work.kept(view, rows, rows["item"].isin(items.ids), f"an item is not in {items.where}")
        parts.append(rows[["user", "item"]].astype("str" if as_text else "int64").assign(split=split))
        if split == SPLITS[0]:
            train_users = sorted(lists["user"].tolist())
            users, seen = Known(set(train_users), path.name), Known(set(parts[0]["item"]), path.name)
            items = seen if items_from_train else items
    return pd.concat(parts, ignore_index=True), train_users


def read_mapped_split(folder: Path, work: Workspace) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read a split in mapped ids as CoLaKG writes it: ``train.txt``, ``test.txt``, ``user_map.txt``, ``item_map.txt``.

    Users are put in the order of their mapped ids. Returned are rows (user, item, split: train or test) and, in the
    order of their mapped ids, items (item), all in raw ids.

    Raises
    ------
    DataError
        If a file is not readable, or a line is bad (unless bad rows are skipped).
    """
    maps = {name: _read_map(folder / f"{name}_map.txt", f"{name}_map", work) for name in ("user", "item")}
    files = {split: folder / f"{split}.txt" for split in ("train", "test")}
    known = (Known(set(ids.index), f"{name}_map.txt") for name, ids in maps.items())
    rows, _ = read_split(files, work, *known, items_from_train=True)
    rows = rows.assign(**{name: rows[name].map(ids) for name, ids in maps.items()}).astype("str")
    users, items = (ids.sort_index().to_frame(name) for name, ids in maps.items())
    work.put("users", users)
    return rows, items


def _read_map(path: Path, view: str, work: Workspace) -> pd.Series:
    """Read lines of a raw id and the id it is mapped to: raw ids by mapped ids."""
    columns = {"raw": "ids[1]", "mapped": "TRY_CAST(ids[2] AS BIGINT)"}
    pairs = read_ids(path, view, work, columns, "a raw and a mapped id", 2, form=_ANY)
    pairs = work.kept(view, pairs, pairs["mapped"].notna(), "its second id is not a number").astype({"mapped": "int64"})
    again = pairs["raw"].duplicated() | pairs["mapped"].duplicated()
    pairs = work.kept(view, pairs, ~again, "one of its ids stands in an earlier line, too")
    return pairs.set_index("mapped")["raw"].astype("str")


def write(data: Dataset, folder: Path, merge_valid: bool, _vectors: object) -> None:
    """Write train.txt, valid.txt, test.txt, kg_final.txt and the four lists of original ids.

    Labels, ratings, timestamps, reviews, profiles and vectors have no place in them.

    Raises
    ------
    DataError
        If an id of the source begins or ends in a blank, which the lists cannot hold.
    """
    tables = data.tables
    write_rows(data, folder, merge_valid)
    items = tables.items["source_id"]
    twice = {"item": items} if not items.str.contains(" ").any() else {}
    ids = {"user": tables.users, "item": tables.items, "entity": tables.entities[len(items) :]}
    for name, table in {**ids, "relation": tables.relations}.items():
        _write_list(folder / LIST_FILES[name], table["source_id"], twice.get(name))


def _write_list(path: Path, ids: pd.Series, second: pd.Series | None) -> None:
    """Write a list of original ids by number (the index), with a second name for each if there is one."""
    bad = ids[ids.str.strip() != ids]
    if len(bad):
        raise DataError(
            f"the format of KGAT cannot hold ids that begin or end in a blank ({path.name}): {some(map(repr, bad))}",
            "rename them in the raw files, or export as recbole",
        )
    lines = ids + " " + ids.index.astype("str") + ("" if second is None else " " + second)
    header = " ".join((_NAMES[0], _ID, *(() if second is None else _NAMES[1:])))
    path.write_text("".join(f"{line}\n" for line in [header, *lines]), "utf-8", newline="\n")


def write_rows(data: Dataset, folder: Path, merge_valid: bool) -> None:
    """Write the interactions, every user on a line of train.txt, and the triples; an empty valid.txt is left out."""
    rows = data.tables.interactions
    splits = rows["split"].replace(SPLITS[1], SPLITS[0]) if merge_valid else rows["split"]
    for split in SPLITS:
        held = rows[splits == split].astype({"item": "str"}).groupby("user")["item"].agg(" ".join)
        if split == SPLITS[0]:
            held = held.reindex(range(len(data.tables.users)), fill_value="")
        if len(held) or split != SPLITS[1]:
            lines = (f"{user} {items}".rstrip() + "\n" for user, items in held.items())
            (folder / f"{split}.txt").write_text("".join(lines), "utf-8", newline="\n")
    data.tables.triples.to_csv(folder / TRIPLES, sep=" ", header=False, index=False, lineterminator="\n")


def _published(about: str, folder: str, *counts: int) -> Recipe:
    return Recipe(_KGAT, about, Published("Table 1 of the KGAT paper", *counts), (folder,))


_KGAT = KgatConfig(**AS_IT_IS)
_BOOK, _LAST_FM = (70_679, 24_915, 847_733, 88_572, 39, 2_557_746), (23_566, 48_123, 3_034_796, 58_266, 9, 464_567)
_YELP = (45_919, 45_538, 1_185_068, 90_961, 42, 1_853_704)

SOURCE = Source(
    parse,
    {
        "kgat": Recipe(_KGAT, "any folder in the format of KGAT, KGIN, SSLRec or KGRec"),
        "kgat-amazon-book": _published("Amazon-book of KGAT: books with facts of Freebase", "amazon-book", *_BOOK),
        "kgat-last-fm": _published("Last-FM of KGAT: songs with facts of Freebase", "last-fm", *_LAST_FM),
        "kgat-yelp2018": _published("Yelp2018 of KGAT: businesses with their attributes", "yelp2018", *_YELP),
    },
    write=write,
)
"""The reader and the writer, with the data sets of the KGAT paper."""
