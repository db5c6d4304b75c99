"""Round trips of the exports in KGAT's format and in that of SPiKE's release, and what they refuse."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spike_kit.base.errors import DataError, StorageError
from spike_kit.data.dataset import Dataset
from spike_kit.data.export import export
from spike_kit.data.pipeline import reorganize
from spike_kit.data.sources import kgat, spike_release
from spike_kit.data.sources.kgat import AS_IT_IS, KgatConfig
from spike_kit.data.sources.spike_release import VECTORS, read_vectors
from spike_kit.data.tables import Tables
from spike_kit.data.vectors import ProfileVectors
from spike_kit.data.workspace import workspace
from tests.data.amazon_files import write_lines
from tests.data.random_tables import in_memory, same, tables

UNCUT = KgatConfig(**AS_IT_IS).replace(valid=0.0)
SLOW: dict[str, Any] = {"suppress_health_check": [HealthCheck.function_scoped_fixture]}


def write_study(made: Tables, path: Path) -> Dataset:
    """A data-set folder with vectors that tell every row apart."""
    rows = [torch.arange(3.0 * len(table)).reshape(-1, 3) + 0.1 for table in (made.users, made.entities)]
    return in_memory(made, path, ProfileVectors(*rows))


def read_kgat(place: Path) -> Tables:
    with workspace() as work:
        kgat.parse(place, UNCUT, work)
        return reorganize(work, UNCUT)


def read_release(place: Path) -> tuple[Tables, ProfileVectors]:
    with workspace() as work:
        spike_release.parse(place, UNCUT, work)
        return reorganize(work, UNCUT), work.vectors[VECTORS]


def content(made: Tables) -> list[Any]:
    sizes = [len(made.users), len(made.items), len(made.entities), len(made.relations)]
    frames = [made.interactions[["user", "item", "split"]], made.triples]
    return [sizes, *(sorted(frame.to_numpy().tolist()) for frame in frames)]


@given(tables(used_relations=True))
@settings(max_examples=150, **SLOW)
def test_a_study_comes_back_from_its_release(tmp_path: Path, made: Tables) -> None:
    data = write_study(made, tmp_path / "made")
    again, vectors = read_release(export(data, "spike-release", tmp_path / "release", vectors=VECTORS, overwrite=True))
    assert content(again) == content(made)
    assert torch.equal(vectors.user, data.vectors(*VECTORS).user)
    assert torch.equal(vectors.entity, data.vectors(*VECTORS).entity)
    assert again.users["source_id"].tolist() == [f"user:{user}" for user in range(len(made.users))]


SETS = st.lists(st.sets(st.integers(0, 6), max_size=5), min_size=1, max_size=4)
TRIPLES = st.sets(st.tuples(st.integers(0, 9), st.integers(0, 2), st.integers(0, 9)), min_size=1, max_size=8)


@given(SETS, SETS, TRIPLES, st.permutations(range(10)), st.booleans())
@settings(max_examples=150, **SLOW)
def test_a_release_comes_back_from_its_study(
    tmp_path: Path,
    train: list[set[int]],
    test: list[set[int]],
    triples: set[tuple[int, int, int]],
    order: list[int],
    all_entities: bool,
) -> None:
    train[0].add(0)
    folder, config = tmp_path / "release", KgatConfig(**AS_IT_IS)
    pairs = enumerate(zip(train, test, strict=False))
    held = {user: sorted(items - seen) for user, (seen, items) in pairs if seen and items - seen}
    files = {
        "train.txt": [" ".join(map(str, [user, *sorted(items)])) for user, items in enumerate(train)],
        "test.txt": [" ".join(map(str, [user, *items])) for user, items in held.items()],
        "kg_final.txt": [" ".join(map(str, triple)) for triple in sorted(triples)],
    }
    for name, lines in files.items():
        write_lines(folder / name, lines)
    if not held:
        (folder / "test.txt").write_bytes(b"")
    auxiliary = order if all_entities else [entity for entity in order if entity >= 7]
    for name, ids in (("user", range(len(train))), ("item", range(7)), ("entity", auxiliary)):
        rows = np.array(ids, dtype=np.float32)[:, None] + np.float32(0.5)
        np.savez(folder / f"{name}_embeddings.npz", ids=np.array(ids), embeddings=rows)
    with workspace() as work:
        spike_release.parse(folder, config, work)
        made, vectors = reorganize(work, config), work.vectors[VECTORS]
    path = tmp_path / "made"
    data = in_memory(made, path, vectors)
    place = export(data, "spike-release", tmp_path / "again", vectors=VECTORS, merge_valid=True, overwrite=True)
    assert {name: (place / name).read_text().splitlines() for name in files} == files
    for name, ids in (("user", range(len(train))), ("item", range(7)), ("entity", range(7, 10))):
        found, rows = read_vectors(place / f"{name}_embeddings.npz")
        assert found.tolist() == list(ids)
        assert rows[:, 0].tolist() == [number + 0.5 for number in ids]


def test_merging_puts_valid_into_train_and_leaves_test(data: Dataset, tmp_path: Path) -> None:
    apart = export(data, "kgat", tmp_path / "apart")
    merged = export(data, "kgat", tmp_path / "merged", merge_valid=True)
    sizes = [len(data.split(name)) for name in ("train", "valid", "test")]
    assert min(sizes) > 0
    assert [len(read_kgat(apart).interactions.query("split == @name")) for name in ("train", "valid", "test")] == sizes
    together = read_kgat(merged).interactions["split"].value_counts()
    assert together.to_dict() == {"train": sizes[0] + sizes[1], "test": sizes[2]}
    assert not (merged / "valid.txt").exists()


def small(**names: list[str]) -> Tables:
    """Two users, two items, one other entity and two relations, of which the second has no triple."""
    users, nodes = names.get("users", ["a", "b"]), names.get("nodes", ["x", "y", "z"])
    relations = names.get("relations", ["r", "s"])
    return Tables(
        pd.DataFrame({"user": [0, 1], "source_id": users, "label": "user"}),
        pd.DataFrame({"item": [0, 1], "source_id": nodes[:2], "label": "item", "description": ""}),
        pd.DataFrame(
            {
                "entity": [0, 1, 2],
                "source_id": nodes,
                "label": ["item", "item", "other"],
                "kind": ["item", "item", "thing"],
            }
        ),
        pd.DataFrame(
            {"relation": [0, 1], "source_id": relations, "label": "relation", "template": "{head} is {tail}."}
        ),
        pd.DataFrame({"user": [0, 1], "item": [0, 1], "split": "train", "rating": 1.0, "timestamp": pd.NA}).astype(
            {"timestamp": "Int64"}
        ),
        pd.DataFrame({"head": [0], "relation": [0], "tail": [2]}),
    )


@pytest.mark.parametrize(
    "names",
    [{"users": ["a ", "b"]}, {"nodes": [" x", "y", "z"]}, {"nodes": ["x", "y", "z "]}, {"relations": [" ", "s"]}],
)
def test_an_id_that_a_list_cannot_hold_is_an_error_and_nothing_is_written(
    home: Path, names: dict[str, list[str]]
) -> None:
    data = write_study(small(**names), home / "made")
    with pytest.raises(DataError, match=r"cannot hold .* ids that begin or end in a blank"):
        export(data, "kgat", home / "out" / "kgat")
    assert list((home / "out").iterdir()) == []


def test_ids_that_look_like_columns_of_a_list_come_back(home: Path) -> None:
    made = small(users=["user:1", "user:0"], nodes=["1 0", '"1" 2 3', "item:0"], relations=["0", "relation:0"])
    data = write_study(made, home / "made")
    assert same(made, read_kgat(export(data, "kgat", home / "kgat")))


def test_a_relation_that_a_release_cannot_hold_is_an_error_and_nothing_is_written(home: Path) -> None:
    data = write_study(small(), home / "made")
    with pytest.raises(DataError, match=r"cannot hold relations without a triple .* relation 1"):
        export(data, "spike-release", home / "out" / "release", vectors=VECTORS)
    assert list((home / "out").iterdir()) == []


def test_a_full_disk_leaves_what_stood_there(data: Dataset, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = home / "out" / "release"
    place.mkdir(parents=True)
    (place / "mine.txt").write_text("old")

    def full(*args: Any, **arrays: Any) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(StorageError, match="the disk is full"):
        export(data, "spike-release", place, overwrite=True)
    assert [path.name for path in (home / "out").rglob("*")] == ["release", "mine.txt"]
