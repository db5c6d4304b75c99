"""Folders in the format of KGAT (Wang et al., KDD 2019), which KGIN, SSLRec, KGRec and others read too.

``train.txt``, ``test.txt`` and, if there is one, ``valid.txt`` hold a user and their items on each line;
``kg_final.txt`` holds a triple on each line. All are integers that count from 0, the items before the other entities,
apart by blanks or tabs. ``user_list.txt``, ``item_list.txt``, ``entity_list.txt`` and ``relation_list.txt`` name them
where they exist. With the settings of the recipes, which filter nothing, the ids of the study are those of the folder.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from spike_kit.base.errors import DataError, some
from spike_kit.data.pipeline import BuildConfig
from spike_kit.data.recipes import UNFILTERED, Published, Recipe, Source
from spike_kit.data.sources.kgat_lists import LIST_FILES, Bound, Names, label, read_names, read_titles, source_ids
from spike_kit.data.sources.kgat_rows import LICENCE, ORIGIN, Bounds, read_interactions, read_triples, size
from spike_kit.data.tables import SPLITS
from spike_kit.data.workspace import Workspace

AS_IT_IS: dict[str, Any] = {**UNFILTERED, "split": "given"}
"""Settings that filter nothing and keep the split."""


class KgatConfig(BuildConfig):
    """Settings of a build from a folder in KGAT's format."""

    names: Path | None = None
    """Titles of the items: a file with an original id, a tab and a title on each line, without a header."""


def parse(folder: Path, config: KgatConfig, work: Workspace) -> None:
    """Parse a folder.

    Raises
    ------
    DataError
        If a file is missing, damaged or holds a bad row.
    """
    load(folder, config, work, titles=config.names)


def load(
    folder: Path, config: BuildConfig, work: Workspace, bounds: Bounds | None = None, titles: Path | None = None
) -> np.ndarray:
    """Put a folder into a workspace.

    Parameters
    ----------
    folder, config, work
        As for `parse`.
    bounds
        Sizes that are known from elsewhere.
    titles
        File with titles of the items (`KgatConfig.names`).

    Returns
    -------
    ndarray
        Ids ``[U]`` of the users that were put, ascending: 0 to U-1, unless users that are missing were skipped.

    Raises
    ------
    DataError
        If a file is missing, damaged or holds a bad row.
    """
    bounds = bounds or Bounds()
    rows, users = read_interactions(folder, work, bounds)
    user_names = _read_list(folder, work, "user", (int(users[-1]) + 1, "train.txt"))
    item_names = _read_list(folder, work, "item", bounds.items)
    used_items = set(rows["item"].unique().tolist()) | set(item_names or ())
    n_items = bounds.items[0] if bounds.items else size("item", folder / "train.txt", used_items)
    entity_names = _read_list(folder, work, "entity", bounds.entities)
    relation_names = _read_list(folder, work, "relation", None)
    n_entities, n_relations = read_triples(folder, work, n_items, bounds.entities, entity_names, relation_names)

    named_elsewhere = range(n_items if item_names is not None else 0)
    _check_complete(folder, work, "user", user_names, users, ())
    _check_complete(folder, work, "item", item_names, range(n_items), ())
    _check_complete(folder, work, "entity", entity_names, range(n_entities), named_elsewhere)
    _check_complete(folder, work, "relation", relation_names, range(n_relations), ())

    _put_users(work, users, user_names or {})
    _put_nodes(work, n_items, n_entities, item_names or {}, entity_names or {}, titles)
    _put_relations(work, n_relations, relation_names or {})
    _put_rows(work, rows)
    if config.split == "given" and config.valid and not (rows["split"] == SPLITS[1]).any():
        work.notes.append(
            f"the source has no validation file (valid.txt): {config.valid:g} of each user's train interactions were "
            "taken out of train for validation"
        )
    return users


def _read_list(folder: Path, work: Workspace, what: str, bound: Bound | None) -> Names | None:
    """Names by id, if the folder has a list of them."""
    path = folder / LIST_FILES[what]
    if not path.exists():
        return None
    names = read_names(path, work, bound)
    work.register(path, LICENCE, ORIGIN)
    return names


def _check_complete(
    folder: Path, work: Workspace, what: str, names: Names | None, ids: Iterable[int], elsewhere: Container[int]
) -> None:
    """Meet the ids that a list does not name, unless it names none of those that are named elsewhere."""
    if names is None:
        return
    missing = [int(number) for number in ids if number not in names and number not in elsewhere]
    if missing:
        problem = f"it does not name the {what} ids {some(missing)}"
        work.bad(str(folder / LIST_FILES[what]), problem, "add a line for each", len(missing))


def _put_users(work: Workspace, users: np.ndarray, names: Names) -> None:
    named = [names.get(user, ()) for user in users.tolist()]
    ids = source_ids([name[0] if name else None for name in named], [f"user:{user}" for user in users])
    work.put("users", pd.DataFrame({"user": ids, "label": list(map(label, named, ids))}))
    _register(work, "user_ids", users, ids)


def _put_nodes(
    work: Workspace, n_items: int, n_entities: int, item_names: Names, entity_names: Names, titles: Path | None
) -> None:
    named = [item_names.get(node, ()) + entity_names.get(node, ()) for node in range(n_entities)]
    fallbacks = [f"{'item' if node < n_items else 'entity'}:{node}" for node in range(n_entities)]
    ids = source_ids([name[0] if name else None for name in named], fallbacks)
    labels = list(map(label, named, ids))
    if titles:
        _entitle(work, titles, named[:n_items], labels)
    items, others = slice(n_items), slice(n_items, None)
    work.put("items", pd.DataFrame({"item": ids[items], "label": labels[items]}).assign(description=""))
    work.put("entities", pd.DataFrame({"entity": ids[others], "label": labels[others]}).assign(kind="entity"))
    _register(work, "node_ids", np.arange(n_entities), ids)
    work.origins |= {"items": LIST_FILES["item"], "entities": LIST_FILES["entity"]}


def _entitle(work: Workspace, path: Path, named: Sequence[tuple[str, ...]], labels: list[str]) -> None:
    """Replace the labels of the items by their titles."""
    titles = read_titles(path, work)
    found = {item: titles[name] for item, names in enumerate(named) if (name := next(filter(titles.get, names), None))}
    if not found:
        raise DataError(f"{path} names no item of the folder", "its first column must hold the original ids of items")
    for item, title in found.items():
        labels[item] = title
    work.register(path, LICENCE, "titles of the items")


def _put_relations(work: Workspace, n_relations: int, names: Names) -> None:
    named = [names.get(relation, ()) for relation in range(n_relations)]
    fallbacks = [f"relation:{relation}" for relation in range(n_relations)]
    ids = source_ids([name[0] if name else None for name in named], fallbacks)
    labels = list(map(label, named, ids))
    templates = [f"{{head}} is linked to {{tail}} by {name}." for name in labels]
    work.put("relations", pd.DataFrame({"relation": ids, "label": labels, "template": templates}))
    _register(work, "relation_ids", np.arange(n_relations), ids)
    work.origins["relations"] = LIST_FILES["relation"]


def _register(work: Workspace, table: str, numbers: np.ndarray, ids: Sequence[str]) -> None:
    """Make a table of the source ids by number."""
    frame = pd.DataFrame({"number": numbers, "id": pd.Series(ids, dtype="str")})
    work.db.register("incoming", frame)
    work.db.execute(f"CREATE TABLE {table} AS SELECT * FROM incoming")
    work.db.unregister("incoming")


def _put_rows(work: Workspace, rows: pd.DataFrame) -> None:
    """Put interactions and triples, under source ids."""
    work.db.register("incoming", rows)
    work.db.execute(
        """INSERT INTO interactions ("user", item, split) SELECT u.id, i.id, split FROM incoming
           JOIN user_ids AS u ON u.number = "user" JOIN node_ids AS i ON i.number = item"""
    )
    work.db.unregister("incoming")
    work.db.execute(
        """INSERT INTO triples SELECT h.id, r.id, t.id FROM kg_final JOIN node_ids AS h ON h.number = head
           JOIN relation_ids AS r ON r.number = relation JOIN node_ids AS t ON t.number = tail"""
    )


def _published(users: int, items: int, interactions: int, entities: int, relations: int, triples: int) -> Published:
    counts = {
        "users": users,
        "items": items,
        "interactions": interactions,
        "entities": entities,
        "relations": relations,
        "triples": triples,
    }
    return Published(counts, "Table 1 of the KGAT paper")


SOURCE = Source(
    parse,
    {
        "kgat": Recipe("kgat", KgatConfig(**AS_IT_IS), "any folder in the format of KGAT, KGIN, SSLRec or KGRec"),
        "kgat-amazon-book": Recipe(
            "kgat",
            KgatConfig(**AS_IT_IS),
            "Amazon-book of KGAT: books with facts of Freebase",
            ("amazon-book",),
            _published(70_679, 24_915, 847_733, 88_572, 39, 2_557_746),
        ),
        "kgat-last-fm": Recipe(
            "kgat",
            KgatConfig(**AS_IT_IS),
            "Last-FM of KGAT: songs with facts of Freebase",
            ("last-fm",),
            _published(23_566, 48_123, 3_034_796, 58_266, 9, 464_567),
        ),
        "kgat-yelp2018": Recipe(
            "kgat",
            KgatConfig(**AS_IT_IS),
            "Yelp2018 of KGAT: businesses with their attributes",
            ("yelp2018",),
            _published(45_919, 45_538, 1_185_068, 90_961, 42, 1_853_704),
        ),
    },
)
"""The source, with the data sets of the KGAT paper."""
