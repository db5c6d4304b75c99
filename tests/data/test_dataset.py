import dataclasses
from collections.abc import Callable
from pathlib import Path

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

DEFAULT = (TEMPLATE, DEFAULT_ENCODER)


def write(tables: Tables, name: str = "other", overwrite: bool = False) -> Dataset:
    return create_dataset(paths.data_root() / name, name, tables, sources=(), build={}, funnel=(), overwrite=overwrite)


def test_what_was_written_is_read_back_and_equal_tables_give_an_equal_manifest(data: Dataset, world: World) -> None:
    again = Dataset.open("world")
    for name, table in world.tables.named().items():
        pd.testing.assert_frame_equal(getattr(again.tables, name), table, check_dtype=False)
    assert Dataset.open(data.path).manifest == data.manifest
    assert torch.equal(again.vectors().user, world.vectors.user)
    assert write(world.tables).manifest == write(world.tables).manifest


def test_an_empty_table_is_an_error_and_writes_nothing(world: World) -> None:
    for name, table in world.tables.named().items():
        with pytest.raises(DataError, match=f"table {name} is empty"):
            write(dataclasses.replace(world.tables, **{name: table.iloc[:0]}))
    assert not paths.data_root().exists()


@pytest.mark.parametrize(
    ("table", "row", "column", "value", "message"),
    [
        ("users", 3, "user", 99, r"table users: column user must count from 0 without a gap, but 3 is missing"),
        ("interactions", 0, "item", 4711, r"interactions: column item refers to ids that do not exist \(4711"),
        ("interactions", 0, "split", "tset", r"column split.*'tset'"),
        ("interactions", slice(None), "split", "test", "no row of the train split"),
        ("triples", 5, "tail", 4711, r"triples: column tail refers to ids that do not exist"),
        ("triples", 5, "relation", 9, r"triples: column relation refers to ids that do not exist"),
        ("items", 2, "label", "another name", r"items and entities disagree on label for ids 2"),
        ("items", 2, "label", "", r"column label"),
        ("entities", 0, "kind", "person", r"kind 'item' must mark the entities that are items"),
        ("relations", 0, "template", "{head} only", r"needs \{tail\}"),
        ("users", 1, "source_id", "u0", r"column source_id"),
    ],
)
def test_a_broken_table_is_an_error_that_names_the_place(
    world: World, table: str, row: int | slice, column: str, value: object, message: str
) -> None:
    frame = getattr(world.tables, table).copy()
    frame.loc[row, column] = value
    with pytest.raises(DataError, match=message):
        write(dataclasses.replace(world.tables, **{table: frame}))
    assert not (paths.data_root() / "other").exists()


def test_a_table_changed_on_disk_is_an_error_even_if_its_hash_is_right_and_so_is_a_wrong_manifest(
    data: Dataset,
) -> None:
    file, manifest = data.path / "users.parquet", data.path / paths.MANIFEST
    right = storage.read_json(manifest)
    data.users.drop(columns="label").to_parquet(file)
    for change, message in (
        ({}, r"users\.parquet was changed after the build"),
        (
            {"tables": right["tables"] | {"users": storage.sha256_file(file)}},
            r"users\.parquet is not a valid 'users' table.*label",
        ),
        ({"schema_version": 99}, "schema version 99"),
        ({"surplus": 1}, r"manifest\.json is damaged: unknown setting 'surplus'"),
    ):
        storage.write_json(manifest, right | change)
        with pytest.raises(DataError, match=message):
            _ = Dataset.open("world").tables


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.drop(index=[7]), "no profile for item 7"),
        (lambda rows: rows.drop(index=[50, 68]), "no profile for auxiliary 50, user 0"),
        (lambda rows: pd.concat([rows, rows.iloc[-1:].assign(id=56)]), "unknown user 56; every item"),
        (lambda rows: pd.concat([rows, rows.iloc[:1]]), "subject, id must be unique; repeated in row"),
        (lambda rows: rows.replace({"text": {rows["text"][3]: ""}}), "column text"),
    ],
)
def test_a_missing_surplus_or_empty_profile_is_an_error(
    data: Dataset, change: Callable[[pd.DataFrame], pd.DataFrame], message: str
) -> None:
    wrong = change(data.profiles())
    with pytest.raises(DataError, match=message):
        data.write_profiles("other", wrong)
    assert data.profile_sets() == [TEMPLATE]
    if len(wrong) != 124:
        message = "profiles, expected 124"
    with pytest.raises(DataError, match=message):
        data.write_profiles("other", [wrong.iloc[:30], wrong.iloc[30:]])
        data.profiles("other")


def test_profiles_may_come_in_any_order_or_in_batches(data: Dataset) -> None:
    profiles = data.profiles()
    data.write_profiles("other", profiles.sample(frac=1, random_state=0), {"how": ["so"]})
    data.write_profiles("batches", (profiles.iloc[start : start + 40] for start in range(0, len(profiles), 40)))
    for name in ("other", "batches"):
        pd.testing.assert_frame_equal(data.profiles(name), profiles)
    assert (data.provenance("other"), data.provenance("batches")) == ({"how": ["so"]}, {})


def test_vectors_that_are_missing_damaged_or_of_another_size_are_an_error(data: Dataset, world: World) -> None:
    file, user, entity = data.embeddings_path(*DEFAULT), world.vectors.user, world.vectors.entity
    broken = entity.clone()
    broken[17, 3] = float("nan")
    for wrong, message in (
        (broken, "entity holds NaN or infinity in row 17"),
        (entity[:-1], r"entity has shape \[67, 24\], expected \[68, 24\]"),
        (entity[:, 1:], r"entity has shape \[68, 23\], expected \[68, 24\]"),
        (entity[0], r"entity has shape \[24\], expected \[68, 24\]"),
    ):
        ProfileVectors(user, wrong).save(file, {})
        with pytest.raises(DataError, match=message):
            data.vectors()
    file.write_bytes(b"damaged")
    with pytest.raises(DataError, match="not a readable safetensors file"):
        data.vectors()
    file.unlink()
    assert data.vectors_sha256(*DEFAULT) == ""
    with pytest.raises(DataError, match=r"(?s)no embeddings of profile set 'template'.*spike-kit encode world"):
        data.vectors()


def test_a_file_is_loaded_and_hashed_once_until_it_changes(
    data: Dataset, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed = []
    sha256_file = storage.sha256_file
    monkeypatch.setattr(storage, "sha256_file", lambda path: hashed.append(path) or sha256_file(path))
    again, first = Dataset.open("world"), data.vectors_sha256(*DEFAULT)
    assert again.vectors() is data.vectors()
    assert again.vectors_sha256(*DEFAULT) == first
    assert len(hashed) == len(set(hashed))
    ProfileVectors(world.vectors.user + 1, world.vectors.entity).save(hashed[0], {})
    assert again.vectors_sha256(*DEFAULT) != first
    assert torch.equal(again.vectors().user, world.vectors.user + 1)


def test_the_graph_holds_train_interactions_and_every_triple_with_its_inverse_in_order(world: World) -> None:
    tables = world.tables
    shuffled = {name: getattr(tables, name).sample(frac=1, random_state=0) for name in ("interactions", "triples")}
    graph = Graph.from_tables(dataclasses.replace(tables, **shuffled))
    train = tables.interactions.query("split == 'train'").sort_values(["user", "item"])
    assert torch.stack([graph.train_user, graph.train_item]).tolist() == train[["user", "item"]].to_numpy().T.tolist()
    facts = set(tables.triples.itertuples(index=False, name=None))
    inverse = {(tail, relation + graph.n_relations, head) for head, relation, tail in facts}
    assert torch.stack([graph.head, graph.relation, graph.tail], dim=1).tolist() == [
        *map(list, sorted(facts | inverse))
    ]


def test_data_sets_are_found_by_path_and_missing_ones_list_the_known_ones(data: Dataset, tmp_path: Path) -> None:
    hidden = data.path.parent / ".spike-kit-tmp-x"
    hidden.mkdir()
    (hidden / paths.MANIFEST).write_text("{}")
    with pytest.raises(DataError, match=r"(?s)no data-set folder for data set 'book'.*known here: world$"):
        Dataset.open("book")
    data.path.rename(tmp_path / "elsewhere")
    assert Dataset.open(tmp_path / "elsewhere").name == "world"


def test_a_build_replaces_neither_other_folders_nor_profiles_that_cost_something_nor_anything_on_a_full_disk(
    data: Dataset, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    (paths.runs_root() / "spike").mkdir(parents=True)
    data.write_profiles("gpt", data.profiles())
    for name, message in (("runs", "is no data-set folder"), ("world", r"(?s)holds profiles of gpt.*--overwrite")):
        with pytest.raises(DataError, match=message):
            write(world.tables, name)
    with monkeypatch.context() as patch, pytest.raises(StorageError, match="disk is full"):
        fill_the_disk(patch)
        write(world.tables, "world", overwrite=True)
    assert Dataset.open("world").profiles("gpt").equals(data.profiles("gpt"))
    assert {file.name for file in paths.data_root().iterdir()} == {"runs", "world"}
    assert write(world.tables, "world", overwrite=True).profile_sets() == []


def test_names_that_would_leave_data_or_hide_in_it_are_refused() -> None:
    for name in ("runs", "raw", "..", ".", "a/b", "/tmp/x", "", ".hidden", "a b"):
        with pytest.raises(DataError, match="cannot be the name of a data set"):
            paths.new_dataset_path(name)
