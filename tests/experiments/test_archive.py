import shutil
from pathlib import Path

import pandas as pd
import pytest

from spike_kit.base import storage
from spike_kit.base.errors import DataError
from spike_kit.data.dataset import Dataset
from spike_kit.experiments import archive
from spike_kit.experiments.archive import PER_USER, RUNS, find_kept, keep_run, known_runs, read_archive, write_archive
from spike_kit.experiments.run import Run, list_runs, load_model
from spike_kit.results.comparison import comparison_table
from spike_kit.results.frames import results_table
from spike_kit.training.loop import MONITOR


@pytest.fixture
def done(runs: dict[str, list[Run]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """Two models, two seeds each, and an archive of one's own."""
    monkeypatch.setattr(archive, "ROOT", tmp_path / "study")
    kept = [*runs["lightgcn"], *runs["bprmf"]]
    for one in (one for group in runs.values() for one in group if one not in kept):
        shutil.rmtree(one.path)
    return kept


def hide(one: Run) -> None:
    one.path.rename(one.path.with_name(f".{one.path.name}"))


def rewrite(old: str, new: str) -> None:
    """Change the configurations in the archive."""
    file = archive.own_root() / "world" / RUNS
    table = storage.read_parquet(file)
    table.assign(config=[text.replace(old, new) for text in table["config"]]).to_parquet(file, index=False)


def test_archived_runs_give_the_same_tables_and_tests(data: Dataset, done: list[Run]) -> None:
    write_archive(done, data)
    found = read_archive("world")
    assert results_table(found).equals(results_table(done))
    pd.testing.assert_frame_equal(comparison_table(found), comparison_table(done), rtol=1e-3, atol=1e-5)
    for one, other in zip(found, done, strict=True):
        assert (one.config, one.metrics, one.environment) == (other.config, other.metrics, other.environment)
        keys = ["split", "user"]
        mine, theirs = (run.per_user.sort_values(keys, ignore_index=True) for run in (one, other))
        assert mine[keys].equals(theirs[keys])
        assert mine[MONITOR].to_numpy() == pytest.approx(theirs[MONITOR].to_numpy(), abs=0.51 / 65_535)
        assert one.history.empty
        with pytest.raises(DataError, match=r"the weights of .* cannot be read"):
            load_model(one)


def test_runs_of_here_come_first_and_others_are_not_mixed_with_them(data: Dataset, done: list[Run]) -> None:
    write_archive(done, data)
    assert [known.path for known in known_runs(data)] == [known.path for known in done]
    first, second, *others = (one.config for one in done)
    hide(done[0])
    assert [one.config for one in known_runs(data)] == [second, *others, first]
    rewrite('"graph": 1', '"graph": 2')
    assert [one.config for one in known_runs(data)] == [second, *others]
    hide(done[1])
    expected = [(one["model"], one["seed"]) for one in (*others, first, second)]
    assert [(one.config["model"], one.config["seed"]) for one in known_runs(data)] == expected
    rewrite(first["data_sha256"], "0" * 64)
    assert [one.config for one in known_runs(data)] == others
    assert len(read_archive("world")) == len(done)


def test_a_run_that_is_deleted_meanwhile_is_left_out_and_a_damaged_one_an_error(
    done: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    glob = Path.glob

    def found_and_deleted(folder: Path, pattern: str) -> list[Path]:
        found = list(glob(folder, pattern))
        shutil.rmtree(done[0].path, ignore_errors=True)
        return found

    monkeypatch.setattr(Path, "glob", found_and_deleted)
    assert [one.path for one in list_runs("world")] == [one.path for one in done[1:]]
    (done[1].path / "config.json").unlink()
    with pytest.raises(DataError, match=r"config\.json does not exist"):
        list_runs("world")


def test_a_kept_run_takes_the_place_of_the_one_with_the_same_question(data: Dataset, done: list[Run]) -> None:
    write_archive(done[:3], data)
    rewrite('"graph": 1', '"graph": 2')
    for one in (done[0], done[3], done[3]):
        keep_run(one, data)
    found = read_archive("world")
    assert [one.path.name for one in found] == [done[place].path.name for place in (1, 2, 0, 3)]
    for one in done:
        kept = find_kept(one.config)
        assert kept is not None
        assert kept.metrics == one.metrics
    assert find_kept(done[0].config | {"seed": 7}) is None
    with pytest.raises(DataError, match="not all runs are of world"):
        write_archive([], data)


@pytest.mark.parametrize("damage", ["missing", "column", "json", "bytes"])
def test_damage_is_an_error(data: Dataset, done: list[Run], damage: str) -> None:
    folder = write_archive(done, data)
    if damage == "missing":
        (folder / PER_USER).unlink()
    elif damage == "column":
        storage.read_parquet(folder / PER_USER)[["user"]].to_parquet(folder / PER_USER, index=False)
    elif damage == "json":
        storage.read_parquet(folder / RUNS).assign(config="{").to_parquet(folder / RUNS, index=False)
    else:
        (folder / RUNS).write_bytes(b"PAR1")
    with pytest.raises(DataError):
        read_archive("world")
