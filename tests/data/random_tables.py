"""Random small tables of a data set, for round trips."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from hypothesis import strategies as st

from spike_kit.data.dataset import Dataset, Manifest
from spike_kit.data.sources.spike_release import VECTORS
from spike_kit.data.tables import Tables
from spike_kit.data.vectors import ProfileVectors

_NAMES = (
    st.text(
        alphabet=st.characters(codec="utf-8", exclude_categories=("Cs", "Cc", "Zl", "Zp", "Zs", "Cf", "Co", "Cn"))
        | st.just(" "),
        min_size=1,
        max_size=8,
    )
    .map(lambda text: " ".join(text.split()))
    .filter(bool)
)


@st.composite
def tables(draw: st.DrawFn, used_relations: bool = False) -> Tables:
    """Valid tables: some users, items, entities and relations may have no interaction or triple."""
    n_users, n_items, n_others, n_relations = (draw(st.integers(1, most)) for most in (5, 5, 4, 3))
    n_entities = n_items + n_others
    users = draw(st.lists(_NAMES, min_size=n_users, max_size=n_users, unique=True))
    nodes = draw(st.lists(_NAMES, min_size=n_entities, max_size=n_entities, unique=True))
    names = draw(st.lists(_NAMES, min_size=n_relations, max_size=n_relations, unique=True))
    pairs = st.tuples(st.integers(0, n_users - 1), st.integers(0, n_items - 1))
    split = draw(st.dictionaries(pairs, st.sampled_from(["train", "valid", "test"]), max_size=12))
    trained = {user for (user, _), part in split.items() if part == "train"}
    rows = [(user, item, part) for (user, item), part in sorted(split.items()) if user in trained]
    if not rows:
        rows = [(0, 0, "train")]
    ends = st.integers(0, n_entities - 1)
    triples = draw(st.sets(st.tuples(ends, st.integers(0, n_relations - 1), ends), min_size=1, max_size=10))
    if used_relations:
        triples |= {(0, n_relations - 1, 0)}
    frame = pd.DataFrame(rows, columns=["user", "item", "split"]).assign(rating=float("nan"), timestamp=None)
    items = pd.DataFrame(
        {"item": range(n_items), "source_id": nodes[:n_items], "label": nodes[:n_items], "description": ""}
    )
    kinds = ["item"] * n_items + ["entity"] * n_others
    return Tables(
        pd.DataFrame({"user": range(n_users), "source_id": users, "label": users}),
        items,
        pd.DataFrame({"entity": range(n_entities), "source_id": nodes, "label": nodes, "kind": kinds}),
        pd.DataFrame(
            {"relation": range(n_relations), "source_id": names, "label": names, "template": "{head} to {tail}."}
        ),
        frame.astype({"timestamp": "Int64", "split": "str"}),
        pd.DataFrame(sorted(triples), columns=["head", "relation", "tail"]),
    )


def in_memory(made: Tables, path: Path, vectors: ProfileVectors | None = None) -> Dataset:
    """A data set that is not written (but for its vectors): round trips by the hundred need no disk."""
    manifest = Manifest(schema_version=1, name=path.name, sources=(), build={}, funnel=(), counts={}, tables={})
    data = Dataset(path, manifest)
    data.__dict__["tables"] = made
    if vectors is not None:
        vectors.save(data.embeddings_path(*VECTORS), {})
    return data


def same(first: Tables, second: Tables) -> bool:
    """Whether what KGAT's format holds is equal: ids, interactions with their splits, triples."""
    columns = {
        "users": ["user", "source_id"],
        "items": ["item", "source_id"],
        "entities": ["entity", "source_id"],
        "relations": ["relation", "source_id"],
        "interactions": ["user", "item", "split"],
        "triples": ["head", "relation", "tail"],
    }
    return all(
        getattr(first, name)[wanted].to_numpy().tolist() == getattr(second, name)[wanted].to_numpy().tolist()
        for name, wanted in columns.items()
    )
