"""The folder of SPiKE's authors: vectors follow their rows, and round trips with the writer."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from spike_kit.base import paths
from spike_kit.data.build import build, export
from spike_kit.data.pipeline import reorganize
from spike_kit.data.recipes import BuildConfig
from spike_kit.data.sources.kgat import AS_IT_IS
from spike_kit.data.sources.spike_release import VECTORS, parse, read_vectors
from spike_kit.data.workspace import workspace
from spike_kit.experiments.run import RunConfig, run
from tests.data.checks import FEW, built
from tests.data.random_tables import in_memory
from tests.data.raw_folders import N, lines_in, write_lines, write_spike_release


def test_vectors_follow_their_rows_through_filters_and_the_same_users_are_drawn_again(tmp_path: Path) -> None:
    write_spike_release(tmp_path)
    whole = built("spike-release", tmp_path)
    found = whole.vectors(*VECTORS)
    filters: dict[str, Any] = {"max_users": 3, "user_core": 1, "item_core": 1, "min_entity_items": 1}
    cut, again = (built("spike-release", tmp_path, **filters) for _ in range(2))
    assert len(cut.users) == 3
    assert again.manifest == cut.manifest
    for name, table in (("user", "users"), ("entity", "entities")):
        place = whole.tables.named()[table].set_index("source_id")[name]
        kept = torch.from_numpy(place[cut.tables.named()[table]["source_id"]].to_numpy(copy=True))
        assert torch.equal(getattr(cut.vectors(*VECTORS), name), getattr(found, name)[kept])


def test_a_release_is_found_by_the_authors_name_and_trains() -> None:
    write_spike_release(paths.raw_root() / "amazon-book_kg")
    assert build("book").manifest.build["source"] == "spike-release"
    config = RunConfig(dataset="amazon-book_kg", training={"epochs": 1}, profiles=VECTORS[0], encoder=VECTORS[1])
    assert run(config, progress=False).metrics["users_ranked"]["test"] == N


SETS = st.lists(st.sets(st.integers(0, 6), max_size=5), min_size=1, max_size=4)
TRIPLES = st.sets(st.tuples(st.integers(0, 9), st.integers(0, 2), st.integers(0, 9)), min_size=1, max_size=8)


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
    folder, config = tmp_path / "release", BuildConfig(**AS_IT_IS)
    train[0].add(0)
    pairs = enumerate(zip(train, test, strict=False))
    rows = {
        "train.txt": [[user, *sorted(items)] for user, items in enumerate(train)],
        "test.txt": [[user, *sorted(items - seen)] for user, (seen, items) in pairs if seen and items - seen],
        "kg_final.txt": sorted(triples),
    }
    files = {name: [" ".join(map(str, row)) for row in found] for name, found in rows.items()}
    for name, lines in files.items():
        write_lines(folder / name, lines)
    auxiliary = order if all_entities else [entity for entity in order if entity >= 7]
    for name, ids in (("user", range(len(train))[::-1]), ("item", range(7)), ("entity", auxiliary)):
        vectors = np.array(ids, dtype=np.float32)[:, None] + np.float32(0.5)
        np.savez(folder / f"{name}_embeddings.npz", ids=np.array(ids), embeddings=vectors)
    with workspace() as work:
        parse(folder, config, work)
        data = in_memory(reorganize(work, config), tmp_path / "made", work.vectors[VECTORS])
    place = export(data, "spike-release", tmp_path / "again", merge_valid=True, vectors=VECTORS, overwrite=True)
    assert {path.name: lines_in(path) for path in place.glob("*.txt")} == files
    for name, ids in (("user", range(len(train))), ("item", range(7)), ("entity", range(7, 10))):
        found, vectors = read_vectors(place / f"{name}_embeddings.npz")
        assert found.tolist() == list(ids)
        assert vectors[:, 0].tolist() == [number + 0.5 for number in ids]
