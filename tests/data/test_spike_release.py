"""The folder of SPiKE's authors: vectors follow their rows, and round trips with the writer."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from spike_kit.base import paths
from spike_kit.base.errors import DataError
from spike_kit.data.build import build
from spike_kit.data.dataset import Dataset
from spike_kit.data.export import export
from spike_kit.data.pipeline import BuildConfig, reorganize
from spike_kit.data.sources.kgat import AS_IT_IS
from spike_kit.data.sources.spike_release import VECTORS, parse, read_vectors
from spike_kit.data.tables import Tables
from spike_kit.data.vectors import ProfileVectors
from spike_kit.data.workspace import workspace
from spike_kit.experiments.run import RunConfig, run
from tests.data.checks import FEW, built, explained
from tests.data.random_tables import SETS, TRIPLES, in_memory, tables, write_files
from tests.data.raw_folders import N, lines_in, vectors, write_spike_release


@pytest.mark.parametrize("all_entities", [False, True])
def test_a_release_is_loaded_with_its_vectors_which_follow_their_rows_through_filters(
    tmp_path: Path, all_entities: bool
) -> None:
    write_spike_release(tmp_path)
    if all_entities:
        np.savez(tmp_path / "entity_embeddings.npz", **vectors(range(11), 5))
    whole = built("spike-release", tmp_path)
    found = whole.vectors(*VECTORS)
    held, order = (vectors(range(11), 5), [8, 9, 10]) if all_entities else (vectors([10, 8, 9], 3), [1, 2, 0])
    entities = np.concatenate([vectors(range(N), 2)["embeddings"], held["embeddings"][order]])
    assert found.user.numpy().tolist() == vectors(range(N), 1)["embeddings"][::-1].tolist()
    assert found.entity.numpy().tolist() == entities.tolist()
    cut = built("spike-release", tmp_path, max_users=3, user_core=1, item_core=1, min_entity_items=1)
    assert len(cut.users) == 3
    for name, table in (("user", "users"), ("entity", "entities")):
        place = whole.tables.named()[table].set_index("source_id")[name]
        kept = torch.from_numpy(place[cut.tables.named()[table]["source_id"]].to_numpy(copy=True))
        assert torch.equal(getattr(cut.vectors(*VECTORS), name), getattr(found, name)[kept])


def test_a_release_is_found_by_the_authors_name_and_trains() -> None:
    write_spike_release(paths.raw_root() / "amazon-book_kg")
    assert build("book").manifest.build["source"] == "spike-release"
    config = RunConfig(dataset="amazon-book_kg", training={"epochs": 1}, profiles=VECTORS[0], encoder=VECTORS[1])
    assert run(config, progress=False).metrics["users_ranked"]["test"] == N


def read_back(place: Path, config: BuildConfig) -> tuple[Tables, ProfileVectors]:
    with workspace() as work:
        parse(place, config, work)
        return reorganize(work, config), work.vectors[VECTORS]


@given(tables(used_relations=True))
@FEW
def test_a_data_set_comes_back_from_its_release(tmp_path: Path, made: Tables) -> None:
    rows = [torch.arange(3.0 * len(table)).reshape(-1, 3) + 0.1 for table in (made.users, made.entities)]
    data = in_memory(made, tmp_path / "made", ProfileVectors(*rows))
    place = export(data, "spike-release", tmp_path / "release", vectors=VECTORS, overwrite=True)
    again, found = read_back(place, BuildConfig(**AS_IT_IS, valid=0.0))
    sizes, expected = again.counts(), made.counts()
    assert sizes == expected
    columns = ["user", "item", "split"]
    assert again.interactions[columns].to_numpy().tolist() == made.interactions[columns].to_numpy().tolist()
    assert again.triples.to_numpy().tolist() == made.triples.to_numpy().tolist()
    assert torch.equal(found.user, rows[0])
    assert torch.equal(found.entity, rows[1])
    assert again.users["source_id"].tolist() == [f"user:{user}" for user in range(len(made.users))]


@given(SETS, SETS, TRIPLES, st.permutations(range(10)), st.booleans())
@FEW
def test_a_release_comes_back_from_its_data_set(
    tmp_path: Path,
    train: list[set[int]],
    test: list[set[int]],
    triples: set[tuple[int, int, int]],
    order: list[int],
    all_entities: bool,
) -> None:
    folder = tmp_path / "release"
    files = write_files(folder, train, test, triples)
    auxiliary = order if all_entities else [entity for entity in order if entity >= 7]
    for name, ids in (("user", range(len(train))), ("item", range(7)), ("entity", auxiliary)):
        rows = np.array(ids, dtype=np.float32)[:, None] + np.float32(0.5)
        np.savez(folder / f"{name}_embeddings.npz", ids=np.array(ids), embeddings=rows)
    made, kept = read_back(folder, BuildConfig(**AS_IT_IS))
    data = in_memory(made, tmp_path / "made", kept)
    place = export(data, "spike-release", tmp_path / "again", merge_valid=True, vectors=VECTORS, overwrite=True)
    assert {name: lines_in(place / name) for name in files} == files
    for name, ids in (("user", range(len(train))), ("item", range(7)), ("entity", range(7, 10))):
        found, rows = read_vectors(place / f"{name}_embeddings.npz")
        assert found.tolist() == list(ids)
        assert rows[:, 0].tolist() == [number + 0.5 for number in ids]


def test_a_relation_that_a_release_cannot_hold_is_an_error_and_nothing_is_written(data: Dataset, home: Path) -> None:
    last = int(data.relations["relation"].max())
    frames = data.tables.named() | {"triples": data.triples[data.triples["relation"] < last]}
    made = in_memory(Tables(**frames), home / "made")
    with pytest.raises(DataError, match=rf"cannot hold relations without a triple .* relation {last}"):
        export(made, "spike-release", home / "out" / "release", vectors=VECTORS)
    assert list((home / "out").iterdir()) == []


def archive(content: bytes, how: int = zipfile.ZIP_STORED) -> bytes:
    """Bytes of an archive with the file ids.npy."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", how) as opened:
        opened.writestr("ids.npy", content)
    return file.getvalue()


def array(header: bytes) -> bytes:
    """Bytes of an archive whose array has this header."""
    return archive(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)


LZMA = archive(bytes(100), zipfile.ZIP_LZMA)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    file = io.BytesIO()
    np.savez(file, **vectors(range(3)))
    content = bytearray(file.getvalue())
    for _ in range(draw(st.integers(1, 4))):
        content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(content)


@given(st.binary(max_size=100) | damaged())
@example(b"")
@example(archive(bytes(500))[:30])
@example(array(b"(((("))
@example(array(b"'''"))
@example(array(b"{'descr': '<i8', ("))
@example(LZMA[:46] + b"\xff" * 10 + LZMA[56:])
@settings(FEW, max_examples=200)
def test_whatever_the_bytes_only_explained_errors_come_out(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(content)
    problem = explained(lambda: read_vectors(path))
    assert problem is None or "x.npz" in problem
