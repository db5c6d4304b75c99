from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from spike_kit.base import paths, storage
from spike_kit.base.errors import DataError, StorageError
from spike_kit.data.dataset import Dataset, create_dataset
from spike_kit.data.graph import Graph
from spike_kit.data.tables import Tables
from spike_kit.data.vectors import ProfileVectors
from spike_kit.profiles.encode import DEFAULT_ENCODER
from spike_kit.profiles.template import TEMPLATE
from tests.test_storage import fill_the_disk
from tests.world import World


def write(tables: Tables, name: str = "other") -> Dataset:
    return create_dataset(paths.data_root() / name, name, tables, sources=(), build={}, funnel=())


def test_a_study_reads_back_what_was_written(data: Dataset, world: World) -> None:
    again = Dataset.open("world")
    for name, table in world.tables.named().items():
        pd.testing.assert_frame_equal(getattr(again.tables, name), table, check_dtype=False)
    assert Dataset.open(data.path).manifest == data.manifest
    assert torch.equal(again.vectors().user, world.vectors.user)


def test_equal_tables_give_an_equal_manifest(world: World) -> None:
    first, second = write(world.tables), write(world.tables)
    assert first.manifest == second.manifest


@pytest.mark.parametrize("table", ["users", "items", "entities", "relations", "interactions", "triples"])
def test_an_empty_table_is_an_error_and_writes_nothing(world: World, table: str) -> None:
    empty = dataclasses.replace(world.tables, **{table: getattr(world.tables, table).iloc[:0]})
    with pytest.raises(DataError, match=f"table {table} is empty"):
        write(empty)
    assert not (paths.data_root() / "other").exists()


def change(tables: Tables, table: str, row: int, column: str, value: object) -> Tables:
    frame = getattr(tables, table).copy()
    frame.loc[row, column] = value
    return dataclasses.replace(tables, **{table: frame})


@pytest.mark.parametrize(
    ("table", "row", "column", "value", "message"),
    [
        ("users", 3, "user", 99, r"table users: column user must count 0 to 55 without a gap \(missing: 3\)"),
        ("entities", 60, "entity", 3, r"column entity must count .*missing: 60"),
        ("interactions", 0, "item", 4711, r"interactions: column item refers to ids that do not exist \(4711"),
        ("interactions", 0, "split", "tset", r"column split.*'tset'"),
        ("triples", 5, "tail", 4711, r"triples: column tail refers to ids that do not exist"),
        ("triples", 5, "relation", 9, r"triples: column relation refers to ids"),
        ("items", 2, "label", "another name", r"items and entities disagree on label for ids 2"),
        ("items", 2, "label", "", r"column label"),
        ("entities", 0, "kind", "person", r"kind 'item' must mark the entities that are items"),
        ("relations", 0, "template", "no slots", r"needs \{head\}"),
        ("users", 1, "source_id", "u0", r"column source_id"),
    ],
)
def test_a_broken_table_is_an_error_that_names_the_place(
    world: World, table: str, row: int, column: str, value: object, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        write(change(world.tables, table, row, column, value))
    assert not (paths.data_root() / "other").exists()


def test_a_train_split_without_rows_is_an_error(world: World) -> None:
    rows = world.tables.interactions
    with pytest.raises(DataError, match="no row of the train split"):
        write(dataclasses.replace(world.tables, interactions=rows[rows["split"] != "train"].reset_index(drop=True)))


def test_a_table_changed_on_disk_is_an_error(data: Dataset) -> None:
    storage.write_parquet(data.path / "users.parquet", data.users.iloc[::-1])
    with pytest.raises(DataError, match=r"users\.parquet was changed after the build"):
        _ = Dataset.open("world").tables


def test_a_table_is_checked_on_reading_even_if_its_hash_is_right(data: Dataset) -> None:
    file, manifest = data.path / "users.parquet", data.path / paths.MANIFEST
    storage.write_parquet(file, data.users.drop(columns="label"))
    values = storage.read_json(manifest)
    values["tables"]["users"] = storage.sha256_file(file)
    storage.write_json(manifest, values)
    with pytest.raises(DataError, match=r"users\.parquet is not a valid 'users' table.*label"):
        _ = Dataset.open("world").tables


def test_a_missing_study_lists_the_known_ones(data: Dataset) -> None:
    with pytest.raises(DataError, match=r"(?s)no data-set folder for data set 'book'.*known here: world"):
        Dataset.open("book")


def test_a_manifest_of_another_version_or_with_unknown_keys_is_an_error(data: Dataset) -> None:
    file = data.path / paths.MANIFEST
    values = storage.read_json(file)
    storage.write_json(file, values | {"schema_version": 99})
    with pytest.raises(DataError, match="schema version 99"):
        Dataset.open("world")
    storage.write_json(file, values | {"surplus": 1})
    with pytest.raises(DataError, match=r"manifest\.json is damaged: unknown setting 'surplus'"):
        Dataset.open("world")


def test_a_full_disk_keeps_the_old_study(data: Dataset, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    fill_the_disk(monkeypatch)
    with pytest.raises(StorageError, match="disk is full"):
        write(world.tables, "world")
    monkeypatch.undo()
    assert len(Dataset.open(data.path).profiles()) == len(world.tables.users) + len(world.tables.entities)
    assert [entry.name for entry in data.path.parent.iterdir()] == ["world"]


@pytest.mark.parametrize(("subject", "number"), [("item", 7), ("auxiliary", 50), ("user", 0)])
def test_a_missing_profile_is_an_error_with_its_id(data: Dataset, subject: str, number: int) -> None:
    profiles = data.profiles()
    rest = profiles[(profiles["subject"] != subject) | (profiles["id"] != number)]
    with pytest.raises(DataError, match=f"no profile for {subject} {number}"):
        data.write_profiles("other", rest)
    assert data.profile_sets() == [TEMPLATE]


def test_an_empty_or_surplus_profile_is_an_error(data: Dataset) -> None:
    profiles = data.profiles()
    with pytest.raises(DataError, match="column text"):
        data.write_profiles("other", profiles.assign(text=profiles["text"].where(profiles.index != 3, "")))
    surplus = profiles.assign(id=profiles["id"].where(profiles.index != len(profiles) - 1, 999))
    with pytest.raises(DataError, match="no profile for user 55"):
        data.write_profiles("other", surplus)


def test_profiles_are_found_whatever_the_order_of_their_rows(data: Dataset) -> None:
    data.write_profiles("other", data.profiles().sample(frac=1, random_state=0))
    pd.testing.assert_frame_equal(data.profiles("other"), data.profiles())


def test_a_nan_in_an_embedding_is_an_error_with_its_row(data: Dataset, world: World) -> None:
    broken = world.vectors.entity.clone()
    broken[17, 3] = float("nan")
    ProfileVectors(world.vectors.user, broken).save(data.embeddings_path(TEMPLATE, DEFAULT_ENCODER), {})
    with pytest.raises(DataError, match=r"entity holds NaN or infinity in row 17"):
        data.vectors()


def test_embeddings_of_another_size_or_damaged_are_an_error(data: Dataset, world: World) -> None:
    file = data.embeddings_path(TEMPLATE, DEFAULT_ENCODER)
    ProfileVectors(world.vectors.user, world.vectors.entity[:-1]).save(file, {})
    with pytest.raises(DataError, match=r"entity has shape \[67, 24\], expected \[68, d_t\]"):
        data.vectors()
    file.write_bytes(b"damaged")
    with pytest.raises(DataError, match="not a readable safetensors file"):
        data.vectors()
    file.unlink()
    with pytest.raises(DataError, match=r"(?s)no embeddings of profile set 'template'.*spike-kit encode world"):
        data.vectors()


def test_a_file_is_loaded_and_hashed_once_until_it_changes(
    data: Dataset, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed = []
    sha256_file = storage.sha256_file
    monkeypatch.setattr(storage, "sha256_file", lambda path: hashed.append(path) or sha256_file(path))
    first = data.vectors_sha256(TEMPLATE, DEFAULT_ENCODER)
    again = Dataset.open("world")
    assert again.vectors() is data.vectors()
    assert again.vectors_sha256(TEMPLATE, DEFAULT_ENCODER) == first
    file = data.embeddings_path(TEMPLATE, DEFAULT_ENCODER)
    assert hashed.count(file) == 1
    ProfileVectors(world.vectors.user + 1, world.vectors.entity).save(file, {})
    assert again.vectors_sha256(TEMPLATE, DEFAULT_ENCODER) != first
    assert torch.equal(again.vectors().user, world.vectors.user + 1)
    assert data.vectors_sha256(TEMPLATE, "none") == ""


def test_the_graph_holds_train_interactions_and_every_triple_with_its_inverse(world: World) -> None:
    graph, tables = world.graph, world.tables
    train = tables.interactions[tables.interactions["split"] == "train"]
    assert graph.n_interactions == len(train)
    edges = set(zip(graph.head.tolist(), graph.relation.tolist(), graph.tail.tolist(), strict=True))
    for head, relation, tail in tables.triples.itertuples(index=False, name=None):
        assert (head, relation, tail) in edges
        assert (tail, relation + graph.n_relations, head) in edges
    assert graph.n_edges == len(edges) == 2 * len(tables.triples)
    assert (np.diff(graph.head.numpy()) >= 0).all()
    assert (np.diff(graph.train_user.numpy()) >= 0).all()


def test_graphs_do_not_depend_on_the_order_of_rows(world: World) -> None:
    tables = world.tables
    shuffled = dataclasses.replace(
        tables,
        interactions=tables.interactions.sample(frac=1, random_state=0),
        triples=tables.triples.sample(frac=1, random_state=0),
    )
    other = Graph.from_tables(shuffled)
    assert torch.equal(other.train_item, world.graph.train_item)
    assert torch.equal(other.tail, world.graph.tail)


def test_the_study_path_may_be_given_instead_of_the_name(data: Dataset, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    data.path.rename(elsewhere)
    assert Dataset.open(elsewhere).name == "world"


def test_a_build_never_replaces_what_is_no_study(world: World) -> None:
    runs = paths.runs_root() / "spike"
    runs.mkdir(parents=True)
    with pytest.raises(DataError, match="exists and is no data-set folder"):
        write(world.tables, "runs")
    assert runs.is_dir()


def test_a_build_keeps_profiles_that_cost_something(data: Dataset, world: World) -> None:
    data.write_profiles("gpt", data.profiles())
    with pytest.raises(DataError, match=r"(?s)holds profiles of gpt.*--overwrite"):
        write(world.tables, "world")
    assert data.profile_sets() == ["gpt", "template"]
    create_dataset(data.path, "world", world.tables, sources=(), build={}, funnel=(), overwrite=True)
    assert Dataset.open("world").profile_sets() == []


@pytest.mark.parametrize("name", ["runs", "raw", "..", ".", "a/b", "/tmp/x", "", ".hidden", "a b"])
def test_names_that_would_leave_data_or_hide_in_it_are_refused(name: str) -> None:
    with pytest.raises(DataError, match="cannot be the name of a data set"):
        paths.new_dataset_path(name)


def test_temporary_folders_are_not_listed(data: Dataset) -> None:
    (data.path.parent / ".spike-kit-tmp-x").mkdir()
    (data.path.parent / ".spike-kit-tmp-x" / paths.MANIFEST).write_text("{}")
    with pytest.raises(DataError, match=r"known here: world$"):
        Dataset.open("book")
