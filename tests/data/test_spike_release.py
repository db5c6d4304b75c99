from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spike_kit.base import paths
from spike_kit.base.errors import DataError
from spike_kit.data.build import build
from spike_kit.data.dataset import Dataset
from spike_kit.data.export import export
from spike_kit.data.pipeline import BuildConfig, reorganize
from spike_kit.data.sources import find_recipe
from spike_kit.data.sources.kgat import AS_IT_IS
from spike_kit.data.sources.spike_release import VECTORS, parse, read_vectors
from spike_kit.data.tables import Tables
from spike_kit.data.vectors import ProfileVectors
from spike_kit.data.workspace import workspace
from spike_kit.experiments.run import RunConfig, run
from tests.data.amazon_files import write_lines
from tests.data.checks import FEW, explained, refused
from tests.data.random_tables import SETS, TRIPLES, in_memory, tables, write_rows

U, I, E = 6, 8, 11  # noqa: E741


def vectors(ids: Any, seed: int = 0, dim: int = 4) -> dict[str, Any]:
    rows = np.random.default_rng(seed).normal(size=(len(ids), dim))
    return {"ids": np.asarray(ids), "embeddings": rows.astype(np.float32)}


def write(place: Path) -> None:
    """A release of 6 users, 8 items and 3 other entities; rows of the vector files in any order."""
    write_lines(place / "train.txt", [" ".join(map(str, [u, *((u + s) % I for s in range(5))])) for u in range(U)])
    write_lines(place / "test.txt", [f"{user} {(user + 6) % I}" for user in range(U)])
    write_lines(place / "kg_final.txt", [f"{item} {item % 2} {I + item % 3}" for item in range(I)])
    np.savez(place / "user_embeddings.npz", **vectors(np.arange(U)[::-1], 1))
    np.savez(place / "item_embeddings.npz", **vectors(np.arange(I), 2))
    np.savez(place / "entity_embeddings.npz", **vectors([10, 8, 9], 3))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "release")
    return tmp_path / "release"


def test_a_release_is_loaded_as_it_is_with_its_vectors(folder: Path) -> None:
    data = build("spike-release", name="mine", raw=folder)
    found = data.vectors(*VECTORS)
    assert torch.equal(found.user, torch.from_numpy(vectors(range(U), 1)["embeddings"][::-1].copy()))
    assert torch.equal(found.entity[:I], torch.from_numpy(vectors(range(I), 2)["embeddings"]))
    assert torch.equal(found.entity[I:], torch.from_numpy(vectors([10, 8, 9], 3)["embeddings"][[1, 2, 0]]))
    assert len(data.split("test")) == U
    assert len(data.split("valid")) == U
    assert "no validation file" in data.manifest.notes[0]


def test_all_entities_in_the_entity_file_are_understood(folder: Path) -> None:
    np.savez(folder / "entity_embeddings.npz", **vectors(range(E), 5))
    data = build("spike-release", name="mine", raw=folder)
    found = data.vectors(*VECTORS)
    assert torch.equal(found.entity[:I], torch.from_numpy(vectors(range(I), 2)["embeddings"]))
    assert torch.equal(found.entity[I:], torch.from_numpy(vectors(range(E), 5)["embeddings"][I:]))


def test_vectors_follow_their_rows_through_filters(folder: Path) -> None:
    whole = build("spike-release", name="whole", raw=folder)
    settings = {"max_users": 3, "user_core": 1, "item_core": 1, "min_entity_items": 1}
    cut = build("spike-release", find_recipe("spike-release").settings.replace(**settings), name="cut", raw=folder)
    assert len(cut.users) == 3
    for name, table, rows in (("user", "users", "user"), ("entity", "entities", "entity")):
        place = whole.tables.named()[table].set_index("source_id")[name]
        kept = place[cut.tables.named()[table]["source_id"]].to_numpy()
        expected = getattr(whole.vectors(*VECTORS), rows)[torch.from_numpy(kept.copy())]
        assert torch.equal(getattr(cut.vectors(*VECTORS), rows), expected)


def test_a_release_is_found_by_the_authors_name_and_trains(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = paths.raw_root() / "amazon-book_kg"
    place.parent.mkdir(parents=True)
    folder.rename(place)
    data = build("book")
    assert data.manifest.build["source"] == "spike-release"
    config = RunConfig(dataset="amazon-book_kg", training={"epochs": 1}, profiles=VECTORS[0], encoder=VECTORS[1])
    assert run(config, progress=False).metrics["users_ranked"]["test"] == U


BAD: dict[str, tuple[str, dict[str, np.ndarray], str]] = {
    "gap": ("user", vectors([0, 1, 2, 4, 5, 6]), r"ids must count from 0 without a gap, but 3 is missing"),
    "twice": ("item", vectors([0, 1, 1, 3, 4, 5, 6, 7]), r"but 1 stands twice"),
    "negative": ("item", vectors([-1, 0, 1, 2, 3, 4, 5, 6]), r"but 0 is missing"),
    "entity gap": ("entity", vectors([8, 10]), r"must count from 8 without a gap, but 9 is missing"),
    "no integers": ("user", vectors(np.arange(U) + 0.5), r"expected \[n\] of integers"),
    "dimensions": ("item", vectors(range(I), dim=5), r"different dimensions: user 4, item 5, entity 4"),
    "unknown user": ("user", vectors(range(U - 1)), r"train\.txt line 6: user 5 is not in user_embeddings\.npz"),
    "unknown item": (
        "item",
        vectors(range(I - 1)),
        r"train\.txt line 4: item 7 is not in item_embeddings|entity_embed",
    ),
    "unknown entity": ("entity", vectors([8, 9]), r"kg_final\.txt line 3: an entity is not in entity_embeddings"),
    "some items": ("entity", vectors(range(I - 2)), r"holds vectors of items, but not of the ids 6, 7"),
    "nan": ("user", vectors(range(U)) | {"embeddings": np.full((U, 4), np.nan)}, r"ids 0, 1, .* hold NaN or infinity"),
    "one row": ("user", vectors(range(U)) | {"embeddings": np.zeros(4)}, r"expected \[6, d_t\]"),
    "no array": ("user", {"ids": np.arange(U)}, r"holds no array .*embeddings"),
    "pickle": ("user", {"ids": np.array([{}]), "embeddings": np.zeros((1, 4))}, r"without pickles"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_vector_file_is_an_error_that_names_it(folder: Path, case: str) -> None:
    name, arrays, message = BAD[case]
    np.savez(folder / f"{name}_embeddings.npz", allow_pickle=True, **arrays)
    refused("spike-release", folder, message)


def archive(name: str, content: bytes, how: int = zipfile.ZIP_STORED) -> bytes:
    """Bytes of an archive with one file."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", how) as opened:
        opened.writestr(name, content)
    return file.getvalue()


BROKEN = archive("ids.npy", bytes(100), zipfile.ZIP_LZMA)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        archive("ids.npy", bytes(500))[:30],
        archive("ids.npy", bytes(500))[:-20],
        *(
            archive("ids.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
            for header in (b"((((", b"'''", b"{'descr': '<i8', (")
        ),
        BROKEN[:46] + b"\xff" * 10 + BROKEN[56:],
    ],
    ids=["empty", "begun", "cut off", "brackets", "quotes", "dictionary", "checksum"],
)
def test_a_damaged_vector_file_is_an_error(folder: Path, content: bytes) -> None:
    (folder / "item_embeddings.npz").write_bytes(content)
    refused("spike-release", folder, r"item_embeddings\.npz is damaged")


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
    again, vectors = read_back(place, BuildConfig(**AS_IT_IS, valid=0.0))
    for name in ("users", "items", "entities", "relations"):
        assert len(again.named()[name]) == len(made.named()[name])
    columns = ["user", "item", "split"]
    assert again.interactions[columns].to_numpy().tolist() == made.interactions[columns].to_numpy().tolist()
    assert again.triples.to_numpy().tolist() == made.triples.to_numpy().tolist()
    assert torch.equal(vectors.user, rows[0])
    assert torch.equal(vectors.entity, rows[1])
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
    files = write_rows(folder, train, test, triples)
    auxiliary = order if all_entities else [entity for entity in order if entity >= 7]
    for name, ids in (("user", range(len(train))), ("item", range(7)), ("entity", auxiliary)):
        rows = np.array(ids, dtype=np.float32)[:, None] + np.float32(0.5)
        np.savez(folder / f"{name}_embeddings.npz", ids=np.array(ids), embeddings=rows)
    made, kept = read_back(folder, BuildConfig(**AS_IT_IS))
    data = in_memory(made, tmp_path / "made", kept)
    place = export(data, "spike-release", tmp_path / "again", merge_valid=True, vectors=VECTORS, overwrite=True)
    assert {name: (place / name).read_text().splitlines() for name in files} == files
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


def npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    content = bytearray(npz(**vectors(range(3))))
    for _ in range(draw(st.integers(1, 4))):
        content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(content)


@given(st.binary(max_size=100) | damaged())
@settings(FEW, max_examples=300)
def test_whatever_the_bytes_only_explained_errors_come_out(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(content)
    problem = explained(lambda: read_vectors(path))
    assert problem is None or "x.npz" in problem
