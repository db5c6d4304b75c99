from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spike_kit.base import paths
from spike_kit.base.errors import ConfigError, DataError
from spike_kit.data.build import build
from spike_kit.data.dataset import Dataset
from spike_kit.data.export import export
from spike_kit.data.sources import find_recipe
from spike_kit.data.sources.spike_release import VECTORS, read_vectors
from spike_kit.experiments.run import RunConfig, run
from tests.data.amazon_files import write_lines
from tests.data.test_amazon import explained

U, I, E = 6, 8, 11  # noqa: E741


def vectors(ids: Any, seed: int = 0, dim: int = 4) -> dict[str, Any]:
    rows = np.random.default_rng(seed).normal(size=(len(ids), dim))
    return {"ids": np.asarray(ids), "embeddings": rows.astype(np.float32)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A release of 6 users, 8 items and 3 other entities; rows of the vector files in any order."""
    place = tmp_path / "release"
    write_lines(place / "train.txt", [" ".join(map(str, [u, *((u + s) % I for s in range(5))])) for u in range(U)])
    write_lines(place / "test.txt", [f"{user} {(user + 6) % I}" for user in range(U)])
    write_lines(place / "kg_final.txt", [f"{item} {item % 2} {I + item % 3}" for item in range(I)])
    np.savez(place / "user_embeddings.npz", **vectors(np.arange(U)[::-1], 1))
    np.savez(place / "item_embeddings.npz", **vectors(np.arange(I), 2))
    np.savez(place / "entity_embeddings.npz", **vectors([10, 8, 9], 3))
    return place


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
    with pytest.raises(DataError, match=message):
        build("spike-release", name="mine", raw=folder)
    assert not (paths.data_root() / "mine").exists()


@pytest.mark.parametrize("keep", [0, 30, -20])
def test_a_truncated_vector_file_is_an_error(folder: Path, keep: int) -> None:
    path = folder / "item_embeddings.npz"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"item_embeddings\.npz"):
        build("spike-release", name="mine", raw=folder)


@pytest.mark.parametrize("header", [b"((((", b"'''", b"{'descr': '<i8', ("])
def test_an_array_with_a_broken_header_is_an_error(folder: Path, header: bytes) -> None:
    path = folder / "user_embeddings.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ids.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(DataError, match=r"user_embeddings\.npz is damaged"):
        build("spike-release", name="mine", raw=folder)


def test_an_array_whose_packed_bytes_are_broken_is_an_error(folder: Path) -> None:
    path = folder / "user_embeddings.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("ids.npy", bytes(100))
    data = bytearray(path.read_bytes())
    data[46:56] = b"\xff" * 10
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"user_embeddings\.npz is"):
        build("spike-release", name="mine", raw=folder)


def content(data: Dataset) -> list[Any]:
    tables = data.tables
    rows = [tables.interactions[["user", "item", "split"]], tables.triples.sort_values(["head", "relation", "tail"])]
    sizes = [len(tables.users), len(tables.items), len(tables.entities)]
    return [frame.to_numpy().tolist() for frame in rows] + sizes


def test_a_release_comes_back_from_its_study(folder: Path, tmp_path: Path) -> None:
    data = build("spike-release", name="mine", raw=folder)
    merged = export(data, "spike-release", tmp_path / "merged", merge_valid=True, vectors=VECTORS)
    for name in ("train.txt", "test.txt", "kg_final.txt"):
        lines = [
            [line.split()[0], *sorted(line.split()[1:], key=int)] if "kg" not in name else line.split()
            for line in (folder / name).read_text().splitlines()
        ]
        assert [line.split() for line in (merged / name).read_text().splitlines()] == lines
    for name in ("user", "item", "entity"):
        first, second = (read_vectors(place / f"{name}_embeddings.npz") for place in (folder, merged))
        assert np.array_equal(first[0], second[0])
        assert np.array_equal(first[1], second[1])


def test_a_study_comes_back_from_its_export(data: Dataset, tmp_path: Path) -> None:
    place = export(data, "spike-release", tmp_path / "release")
    again = build("spike-release", name="again", raw=place)
    assert content(again) == content(data)
    assert torch.equal(again.vectors(*VECTORS).user, data.vectors().user)
    assert torch.equal(again.vectors(*VECTORS).entity, data.vectors().entity)
    with pytest.raises(DataError, match="no embeddings of profile set 'gone'"):
        export(data, "spike-release", tmp_path / "other", vectors=("gone", "x"))
    with pytest.raises(ConfigError, match="no format named 'mine'"):
        export(data, "mine", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def _npz(arrays: dict[str, np.ndarray]) -> bytes:
    file = io.BytesIO()
    np.savez(file, allow_pickle=True, **arrays)
    return file.getvalue()


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    data = bytearray(_npz(vectors(range(3))))
    for _ in range(draw(st.integers(1, 4))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data)


@given(st.binary(max_size=100) | damaged())
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_the_bytes_only_explained_errors_come_out(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(data)
    problem = explained(lambda: read_vectors(path))
    assert problem is None or "x.npz" in problem
