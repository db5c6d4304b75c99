from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spike_kit.base import paths
from spike_kit.base.errors import DataError, StorageError
from spike_kit.data import workspace as module
from spike_kit.data.pipeline import k_core, reorganize
from spike_kit.data.raw import Delimited, Field, JsonLines, ParquetRows
from spike_kit.data.recipes import UNFILTERED, BuildConfig
from spike_kit.data.workspace import Workspace, workspace

PAIRS = st.sets(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=24)


@given(PAIRS, st.integers(0, 3), st.integers(0, 3))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_k_core_drops_users_and_items_until_none_has_too_few(
    work: Workspace, pairs: set[tuple[int, int]], user_core: int, item_core: int
) -> None:
    work.table("n", pd.DataFrame(sorted(pairs), columns=["user", "item"]).astype("int64"))
    k_core(work, user_core, item_core)
    found = set(work.frame("SELECT * FROM n").itertuples(index=False, name=None))
    while True:
        users, items = Counter(user for user, _ in pairs), Counter(item for _, item in pairs)
        left = {(user, item) for user, item in pairs if users[user] >= user_core and items[item] >= item_core}
        if left == pairs:
            break
        pairs = left
    assert found == pairs


@pytest.mark.parametrize("folder", ["q?x", "brace{a,b}", "a=7"])
def test_a_workspace_larger_than_memory_works_in_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    monkeypatch.setenv(paths.HOME_VARIABLE, str(tmp_path / folder))
    monkeypatch.setattr(module, "MEMORY_LIMIT", "64MB")
    with workspace() as work:
        work.db.execute("SET threads = 1")
        work.db.execute("CREATE TABLE large AS SELECT range AS n, hash(range) AS h, hash(h) AS i FROM range(4_000_000)")
        assert sum(file.stat().st_size for file in (work.folder / "spill").iterdir()) > 10_000_000
        assert work.value("SELECT count(DISTINCT n) FROM large WHERE n % 1000 = 0 AND h = hash(n)") == 4_000
    assert [file.name for file in (tmp_path / folder).rglob("*")] == ["data"]


@pytest.mark.parametrize("folder", ["back\\slash", "C:\\data\\films"])
def test_a_folder_that_duckdb_takes_for_another_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    monkeypatch.setenv(paths.HOME_VARIABLE, str(tmp_path / folder))
    with pytest.raises(StorageError, match=r"(?s)cannot work below .*\\.*a backslash.*SPIKE_KIT_HOME"), workspace():
        pass
    assert [file.name for file in (tmp_path / folder).rglob("*")] == ["data"]


def fill(work: Workspace) -> Workspace:
    """Eight users who like six items each, three people of whom one is on a single item."""
    likes = [(f"u{user}", f"i{(user + step) % 8}", 5.0) for user in range(8) for step in range(6)]
    interactions = [(*like, time) for time, like in enumerate(likes)]
    interactions += [("u0", "i7", 2.0, 1), ("u0", "i0", 4.0, 99), ("lonely", "i0", 5.0, 3)]
    triples = [(f"i{item}", "cast", "p:a" if item < 4 else "p:b") for item in range(8)]
    triples += [("i0", "cast", "p:rare"), ("i0", "cast", "p:b"), ("i0", "writer", "p:b"), ("i9", "cast", "p:rare")]
    for table, columns, rows in (
        ("interactions", "user item rating timestamp", interactions),
        ("items", "item", [[f"i{n}"] for n in range(10)]),
        ("entities", "entity label", [("p:a", "Ann"), ("p:b", "Bob"), ("p:rare", "Rare")]),
        ("relations", "relation template", [(name, "{head} and {tail}.") for name in ("cast", "writer", "unused")]),
        ("triples", "head relation tail", triples),
    ):
        work.put(table, pd.DataFrame(rows, columns=columns.split()))
    return work


def test_reorganize_filters_numbers_counts_and_keeps_the_latest(work: Workspace) -> None:
    tables = reorganize(fill(work), BuildConfig())
    tables.check()
    assert tables.users["source_id"].tolist() == [f"u{n}" for n in range(8)]
    assert tables.items["source_id"].tolist() == [f"i{n}" for n in range(8)]
    assert tables.entities["label"].tolist()[8:] == ["Ann", "Bob"]
    assert tables.relations["source_id"].tolist() == ["cast", "writer"]
    named = tables.triples.merge(tables.entities, left_on="tail", right_on="entity")
    assert sorted(named.loc[named["head"] == 0, "label"]) == ["Ann", "Bob", "Bob"]
    assert tables.interactions.query("user == 0 and item == 0")["timestamp"].tolist() == [99]
    by_step = {row["step"]: row for row in work.funnel}
    assert by_step["rating >= 4"]["interactions"] == 50
    assert by_step["one interaction per user and item"]["interactions"] == 49
    assert by_step["k-core: users 5, items 5"]["users"] == 8
    assert by_step["entities on at least 2 items"]["entities"] == 2
    last = work.funnel[-1]
    assert last["interactions_train"] + last["interactions_valid"] + last["interactions_test"] == 48


@pytest.mark.parametrize(
    ("changes", "step"),
    [
        ({"user_core": 50}, "k-core: users 50, items 5': no interactions"),
        ({"min_entity_items": 50}, "entities on at least 50 items': no triples"),
        ({"min_rating": 6.0}, "rating >= 6': no interactions"),
        ({"exclude_relations": ("cast", "writer")}, "without the relations cast, writer': no triples"),
    ],
)
def test_a_filter_that_leaves_nothing_is_an_error_that_names_it(work: Workspace, changes: dict, step: str) -> None:
    with pytest.raises(DataError, match=f"nothing is left after the step '{step}"):
        reorganize(fill(work), BuildConfig(**changes))


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_no_character_of_a_path_means_anything(
    work: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    file = Path("item=9", f"it's [a]*?{{}} #.{kind}")
    file.parent.mkdir(parents=True)
    rows = pd.DataFrame({"item": ["a", "b"], "number": [1, 2]})
    if kind == "parquet":
        rows.to_parquet(file)
    else:
        file.write_text(rows.to_csv(index=False) if kind == "csv" else rows.to_json(orient="records", lines=True))
    reader = {"csv": Delimited, "jsonl": JsonLines, "parquet": ParquetRows}[kind](file)
    work.read(reader, "raw_items", {"item": Field("item"), "number": Field("number", "seconds")})
    assert work.frame("SELECT item, number FROM raw_items").to_dict("list") == rows.to_dict("list")
    assert work.origin("items", "b") == f"{file} {reader.unit} {3 if kind == 'csv' else 2}"


def test_a_manifest_records_the_settings_of_its_task_alone() -> None:
    recorded = {task: BuildConfig(task=task).recorded() for task in ("known", "new-items", "few-interactions")}
    assert recorded["new-items"].items() >= {"task": "new-items", "new_share": 0.15, "new_for": "both"}.items()
    assert recorded["few-interactions"].items() >= {"task": "few-interactions", "at_most": 5}.items()
    assert not {"task", "new_share", "new_for", "at_most"} & set(recorded["known"])
    assert "at_most" not in recorded["new-items"]
    assert "new_share" not in recorded["few-interactions"]


LIKED = [(f"u{user}", f"i{(user + step) % 12}") for user in range(9) for step in range(8)]
Pair = tuple[str, str]


def held_out(pairs: list[Pair], items: list[str], title: str = "", **changes: Any) -> dict[Pair, str]:
    """Split of each pair by ids of the source; a given split has no valid part, all pairs have one time."""
    rows = pd.DataFrame(pairs, columns=["user", "item"]).assign(timestamp=7)
    rows["split"] = ["test" if user[-1] == item[-1] else "train" for user, item in pairs]
    facts = pd.DataFrame({"head": sorted({item for _, item in pairs}), "relation": "genre", "tail": "g"})
    with workspace() as work:
        work.put("interactions", rows)
        work.put("items", pd.DataFrame({"item": items, "label": [title and title + item for item in items]}))
        work.put("entities", pd.DataFrame({"entity": ["g"], "label": ["Drama"]}))
        work.put("relations", pd.DataFrame({"relation": ["genre"], "template": ["{head} is {tail}."]}))
        work.put("triples", facts)
        tables = reorganize(work, BuildConfig(**UNFILTERED, **changes))
    names = (tables.users["source_id"], tables.items["source_id"])
    found = tables.interactions
    users, of_items = (name[found[column]] for name, column in zip(names, ("user", "item"), strict=True))
    return dict(zip(zip(users, of_items, strict=True), found["split"], strict=True))


DRAWN: list[dict[str, Any]] = [
    {"valid": 0.2, "test": 0.2},
    {"split": "given", "valid": 0.3},
    {"split": "leave_one_out"},
    {"max_users": 4},
    {"task": "few-interactions", "at_most": 3},
]
NEW_ITEMS: list[dict[str, Any]] = [{"task": "new-items", "new_share": 0.4}, {"task": "new-items", "new_for": "valid"}]


@pytest.mark.parametrize("changes", DRAWN + NEW_ITEMS)
def test_draws_follow_from_ids_of_the_source_alone(home: Path, changes: dict[str, Any]) -> None:
    """Not from the order of rows, from titles, or from whatever others did."""
    items = [f"i{n}" for n in range(12)]
    before = held_out(LIKED, [], seed=3, **changes)
    assert held_out(LIKED[::-1], items[::-1], "Film ", seed=3, **changes) == before
    assert held_out(LIKED[::-1], items, seed=4, **changes) != before
    added = held_out([("a user", item) for item in items[:7]] + LIKED, items, seed=3, **changes)
    gone = {user for user, _ in before.keys() - added.keys()}
    assert len(gone) == (1 if "max_users" in changes and any(user == "a user" for user, _ in added) else 0)
    others = {pair: split for pair, split in added.items() if pair[0] != "a user"}
    assert others == {pair: split for pair, split in before.items() if pair[0] not in gone}


@pytest.mark.parametrize("changes", DRAWN)
@pytest.mark.parametrize("added", ["a film", "i1:"])
def test_an_item_more_moves_nobody_elses_pairs(home: Path, changes: dict[str, Any], added: str) -> None:
    before, after = held_out(LIKED, [], **changes), held_out([("u3", added), *LIKED], [added], "Film ", **changes)
    others = [{pair: split for pair, split in found.items() if pair[0] != "u3"} for found in (before, after)]
    assert others[0] == others[1]
