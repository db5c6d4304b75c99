"""What holds for every reader: a missing file is named, and whatever bytes a file holds, only explained errors come."""

from __future__ import annotations

import gzip
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from spike_kit.base.config import Config
from spike_kit.data.pipeline import reorganize
from spike_kit.data.sources import SOURCES, find_recipe
from spike_kit.data.workspace import workspace
from tests.data import (
    test_colakg,
    test_kgat,
    test_lastfm,
    test_movielens,
    test_recbole,
    test_spike_release,
    test_tables_source,
    test_yelp,
)
from tests.data.amazon_files import write_release
from tests.data.checks import FEW, explained

FOLDERS: dict[str, tuple[str, Callable[[Path], Any], dict[str, Any]]] = {
    "amazon-2014": ("amazon", partial(write_release, release="2014"), {"behavioural": True}),
    "amazon-2018": ("amazon", partial(write_release, release="2018"), {}),
    "amazon-2023": ("amazon", partial(write_release, release="2023"), {}),
    "colakg": ("ml-1m-colakg", test_colakg.write, {}),
    "kgat": ("kgat", test_kgat.write, {}),
    "kgat with lists": ("kgat", test_kgat.write_with_lists, {}),
    "lastfm": ("lastfm-colakg", test_lastfm.write, {}),
    "movielens.csv": ("movielens", test_movielens.write_csv, {"behavioural": True}),
    "movielens.dat": ("movielens", test_movielens.write_dat, {}),
    "recbole": ("recbole", test_recbole.write_all, {"split": "random"}),
    "spike-release": ("spike-release", test_spike_release.write, {}),
    "tables": ("tables", test_tables_source.write, test_tables_source.CONFIG.model_dump()),
    **{
        f"tables{suffix}": ("tables", partial(test_tables_source.write_as, suffix=suffix), {})
        for suffix in (".json", ".jsonl", ".parquet")
    },
    "yelp": ("yelp", test_yelp.write, {"user_core": 5, "item_core": 5}),
}
"""Recipe, function that writes a folder of raw files (and may return other settings), and settings."""

OPTIONAL = {
    "kgat with lists": {"user_list.txt", "item_list.txt", "entity_list.txt", "relation_list.txt"},
    "movielens.csv": {"tags.csv"},
    "recbole": {f"shop.{suffix}" for suffix in ("item", "link", "kg", "user", "ent", "rel")},
}
"""Files that a folder may do without."""


@cache
def contents(name: str) -> tuple[str, Config, dict[str, bytes]]:
    """Recipe, settings and files of a folder of raw files."""
    recipe, write, changes = FOLDERS[name]
    with tempfile.TemporaryDirectory() as folder:
        given = write(Path(folder))
        files = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    return recipe, given if isinstance(given, Config) else find_recipe(recipe).settings.replace(**changes), files


def parsing(name: str, folder: Path, changed: dict[str, bytes | None], on_error: str) -> tuple[str | None, str | None]:
    """Messages of the errors in which parsing and reorganizing a changed folder end, if they do."""
    recipe, given, files = contents(name)
    folder.mkdir(exist_ok=True)
    for file, content in (files | changed).items():
        (folder / file).unlink(missing_ok=True)
        if content is not None:
            (folder / file).write_bytes(content)
    config = given.replace(on_error=on_error)
    with workspace(config.on_error) as work:  # pyright: ignore[reportAttributeAccessIssue]
        problem = explained(lambda: SOURCES[find_recipe(recipe).source].parse(folder, config, work))
        return problem, problem or explained(lambda: reorganize(work, config).check())  # pyright: ignore


@pytest.mark.parametrize("name", FOLDERS)
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    files = contents(name)[2]
    assert parsing(name, tmp_path / "raw", {}, "stop") == (None, None)
    for file in files.keys() - OPTIONAL.get(name, set()):
        problem, _ = parsing(name, tmp_path / "raw", {file: None}, "skip")
        assert problem is not None
        assert file.split(".")[0] in problem or "holds no" in problem


TOKENS = (b"-1", b"x", b"", b"\n", b"\t", b",", b"::", b'"', b"99999", b"\xff", b"\0", b"1e400", b"\x85", b"{", b"[")
EDITS = st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 6), st.sampled_from(TOKENS) | st.binary(max_size=6)))


@pytest.mark.parametrize("name", FOLDERS)
@given(st.integers(0, 9), EDITS | st.binary(max_size=100), st.booleans(), st.sampled_from(["stop", "skip"]))
@example(0, [(60, 0, b"\x00")], True, "skip")
@example(1, [(0, 4, b"\xff\xfe")], True, "stop")
@example(1, b"\x01", False, "skip")
@settings(FEW, max_examples=15)
def test_whatever_the_bytes_only_explained_errors_come_out(
    tmp_path: Path, name: str, which: int, change: bytes | list[tuple[int, int, bytes]], unpack: bool, on_error: str
) -> None:
    files = contents(name)[2]
    file = sorted(files)[which % len(files)]
    packed = unpack and file.endswith(".gz")
    content = gzip.decompress(files[file]) if packed else files[file]
    for start, length, new in change if isinstance(change, list) else [(0, len(content), change)]:
        place = start % (len(content) + 1)
        content = content[:place] + new + content[place + length :]
    changed = gzip.compress(content) if packed else content
    problem, later = parsing(name, tmp_path / "raw", {file: changed}, on_error)
    assert problem is None or str(tmp_path) in problem
    assert later is None or len(later) > 20
