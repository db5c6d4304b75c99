import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from spike_kit.base import paths
from spike_kit.base.errors import ConfigError, DataError
from spike_kit.cli import main
from spike_kit.data.dataset import Dataset
from spike_kit.experiments import archive
from spike_kit.experiments import grid as module
from spike_kit.experiments.ablation import ABLATIONS
from spike_kit.experiments.grid import STUDY, Block, Cell, Grid, GridRun, Outcome, SearchBudget, perform, workers
from spike_kit.experiments.run import Run, RunConfig, finished_runs
from spike_kit.experiments.tuned import find_tuned
from spike_kit.models import MODELS
from spike_kit.models.bprmf import BprMf
from spike_kit.profiles.generate import GenerationConfig
from spike_kit.results.tables import run_label
from spike_kit.training.checkpoint import LAST
from tests.profiles.llm_server import ScriptedServer, distinct_world

SHORT = {"epochs": 2, "batch_size": 512}
WORDS = SHORT | {"encoder": "tfidf-8"}
"""The same with texts that no neural network reads."""


def small(**changes: object) -> Grid:
    """Two models with two seeds each, trained for two epochs."""
    block = Block(datasets=("world",), models=("bprmf", "popularity"), seeds=(0, 1), variants={"short": SHORT})
    return Grid(search=SearchBudget(trials=1, trial_seconds=30), blocks=(block.replace(**changes),))


def here(cell: Cell) -> Future[Outcome]:
    """Do a cell in this process."""
    future: Future[Outcome] = Future()
    future.set_result(perform(cell))
    return future


def done(grid: Grid, archive: Path | None = None) -> GridRun:
    """The grid, carried out in this process."""
    progress = GridRun(grid, archive=archive)
    progress.do(nullcontext(here), 2)
    return progress


def refuse(cell: Cell) -> Future[Outcome]:
    raise AssertionError(cell.name)


def test_every_combination_is_one_cell_and_is_done_once(data: Dataset) -> None:
    grid = small(variants={"short": SHORT, "less": SHORT | {"epochs": 1}})
    first = done(grid)
    assert len(first.cells) == len(first.table) == 2 * 2 * 2
    assert set(first.table["state"]) == {"finished"}
    assert first.table["valid"].between(0, 1).all()
    assert len(finished_runs(data)) == 6  # popularity has no epochs: both variants are one run
    again, only_looked = GridRun(grid), GridRun(grid)
    again.do(nullcontext(refuse), 2)
    only_looked.look()
    assert again.table.equals(first.table)
    assert only_looked.table.equals(first.table)
    shared = small().blocks[0]
    assert len(Grid(blocks=(shared, shared.replace(seeds=(1, 2)))).cells()) == 2 * 3


def test_kept_tables_stand_for_runs_whose_folders_are_gone(data: Dataset, tmp_path: Path) -> None:
    root = tmp_path / "kept"
    done(small(seeds=(0,)))
    assert archive.read_archive("world") == []
    cells = done(small(), archive=root).cells
    assert len(archive.read_archive("world", root)) == len(cells)
    shutil.rmtree(paths.data_root() / "runs")
    asked: list[str] = []

    def note(cell: Cell) -> Future[Outcome]:
        asked.append(cell.name)
        return here(cell)

    again = GridRun(small(seeds=(0, 1, 2)), archive=root)
    again.do(nullcontext(note), 2)
    assert len(asked) == len(cells) / 2
    assert all(name.endswith("seed 2") for name in asked)
    assert len(archive.read_archive("world", root)) == len(again.cells)
    forgetful = GridRun(small(), archive=tmp_path / "another")
    forgetful.look()
    assert set(forgetful.table["state"]) == {"waiting"}


def test_tuned_settings_are_searched_first_and_used(data: Dataset) -> None:
    grid = small(preset="tuned", models=("bprmf",), seeds=(0,), variants={"": {}, "small": {"dim": 8}})
    table = done(grid).table
    assert list(table["kind"]) == ["search", "run", "run"]
    assert set(table["state"]) == {"finished"}, table["error"].tolist()
    found = find_tuned("world", "bprmf")
    assert found is not None
    assert (found.trials, found.trial_seconds, found.data_sha256 != "") == (1, 30.0, True)
    first, second = finished_runs(data)
    settings, training = RunConfig(model="bprmf", dataset="world", preset="tuned").resolved()
    assert first.config["model_settings"] == settings.model_dump(mode="json")
    assert first.config["training_settings"] == training.model_dump(mode="json")
    assert all(dict(settings)[name] == value for name, value in found.settings.items())
    assert second.config["model_settings"]["dim"] == 8
    assert [run_label(run) for run in (first, second)] == ["BPR-MF (tuned)", "BPR-MF (tuned) dim=8"]


def test_a_trial_may_take_a_multiple_of_the_preset_which_is_trained_first(data: Dataset) -> None:
    budget = SearchBudget(trials=1, preset_times=2.5, prune=False)
    progress = done(small(preset="tuned", models=("bprmf", "itemknn"), seeds=(0,)).replace(search=budget))
    assert set(progress.table["state"]) == {"finished"}, progress.table["error"].tolist()
    preset = next(run for run in finished_runs(data) if run.config["preset"] == "recommended")
    trained, fitted = (find_tuned("world", model) for model in ("bprmf", "itemknn"))
    assert trained is not None
    assert trained.trial_seconds == round(2.5 * preset.metrics["seconds"], 1)
    assert fitted is not None
    assert fitted.trial_seconds == budget.trial_seconds


def test_a_search_counts_for_the_build_and_the_versions_it_was_made_with(
    data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = small(preset="tuned", models=("bprmf",), seeds=(0,))
    done(grid)
    assert _states(grid) == {"search": "finished", "run": "finished"}
    with monkeypatch.context() as patch:
        patch.setattr(BprMf, "version", 99)
        assert _states(grid) == {"search": "waiting", "run": "waiting"}
    found = find_tuned("world", "bprmf")
    assert found is not None
    found.replace(data_sha256="another").save()
    assert _states(grid) == {"search": "waiting", "run": "finished"}


def test_what_is_left_is_told_by_what_was_measured(data: Dataset) -> None:
    done(small(seeds=(0,), models=("bprmf",)))
    progress = GridRun(small(seeds=(0, 1, 2), models=("bprmf", "popularity")))
    progress.look()
    first, *others = progress.cells.items()
    progress.cells = dict([(first[0], replace(first[1], seconds=7200.0)), *others])
    said = "5 searches and runs wait, 3 of them of unknown length; the others are 4.0 h of training"
    assert progress.forecast == said


def _states(grid: Grid) -> dict[str, str]:
    """How far a grid is, by kind of cell."""
    progress = GridRun(grid)
    progress.look()
    return dict(zip(progress.table["kind"], progress.table["state"], strict=True))


class Pools:
    """Stands for the processes of a grid: notes where cells begin, which end when they are told to."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, Future[Outcome]]] = []

    def submit(self, _: object, __: Cell, device: str, ___: int) -> Future[Outcome]:
        self.begun.append((device, Future()))
        return self.begun[-1][1]

    def shutdown(self, wait: bool) -> None:
        """Nothing is to be ended."""


@pytest.mark.parametrize(
    ("device", "gpus", "expected", "said"),
    [
        ("cuda", 3, ["cuda:0", "cuda:1", "cuda:2", "cuda:1"], ""),
        ("cuda", 2, ["cuda:0", "cuda:1", "cuda:0", "cuda:1"], "3 cells at a time share cuda:0, cuda:1"),
        ("cuda", 1, ["cuda:0"] * 4, "3 cells at a time share cuda:0 "),
        ("cuda:1", 2, ["cuda:1"] * 4, "3 cells at a time share cuda:1 "),
        ("cpu", 2, ["cpu"] * 4, ""),
    ],
)
def test_cells_are_spread_over_gpus(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    device: str,
    gpus: int,
    expected: list[str],
    said: str,
) -> None:
    pools, cell = Pools(), small().cells()[0]
    monkeypatch.setattr(module, "fresh_process", lambda: pools)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    with workers(jobs=3, device=device) as submit:
        for _ in range(3):
            submit(cell)
        pools.begun[1][1].set_result(Outcome("finished"))
        submit(cell)
    assert [where for where, _ in pools.begun] == expected
    assert (said in caplog.text) if said else not caplog.text


def test_a_cell_that_fails_leaves_the_others_alone(data: Dataset) -> None:
    blocks = (
        Block(datasets=("world", "nowhere"), models=("bprmf",), variants={"": SHORT}),
        Block(datasets=("nowhere",), models=("bprmf",), preset="tuned"),
        Block(datasets=("world",), variants={"": SHORT | {"profiles": "nobody"}}),
    )
    table = done(Grid(blocks=blocks)).table
    assert table[["kind", "dataset", "state"]].to_numpy().tolist() == [
        ["text", "world", "failed"],
        ["search", "nowhere", "failed"],
        ["run", "world", "finished"],
        ["run", "nowhere", "failed"],
        ["run", "nowhere", "failed"],
        ["run", "world", "failed"],
    ]
    said = ("'nobody'", "nowhere", "", "nowhere", "nowhere", "'nobody'")
    assert all(word in error for word, error in zip(said, table["error"], strict=True))


def test_profiles_and_vectors_that_are_missing_come_first(home: Path) -> None:
    data = distinct_world(paths.data_root() / "world")
    variants = {"": WORDS, "told": WORDS | {"profiles": "told"}}
    with ScriptedServer() as server:
        told = GenerationConfig.parse({"llm": {"model": "told", "base_url": server.base_url}})
        block = Block(datasets=("world",), models=("spike", "bprmf"), variants=variants)
        grid = Grid(blocks=(block,), profiles={"told": told})
        table = done(grid).table
        assert set(table["state"]) == {"finished"}, table["error"].tolist()
        GridRun(grid).do(nullcontext(refuse), 1)
        assert len(server.log) == 124
    assert table[table["kind"] == "text"]["variant"].tolist() == ["template by tfidf-8", "told by tfidf-8"]
    assert data.profile_sets() == ["template", "told"]
    assert {run.config.get("profiles") for run in finished_runs(data)} == {"template", "told", None}


def _die(*_: object) -> Outcome:
    os.kill(os.getpid(), signal.SIGKILL)
    return Outcome("finished")


def test_the_death_of_a_process_is_the_error_of_its_cell_alone(data: Dataset) -> None:
    grid = small(models=("bprmf",))
    progress = GridRun(grid)
    with workers() as submit:

        def killed_first(cell: Cell) -> Future[Outcome]:
            if cell.config.seed == 1:
                return submit(cell)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(module, "perform", _die)
                return submit(cell)

        progress.do(nullcontext(killed_first), 2)
    table = progress.table.set_index("seed")
    assert table["state"].to_dict() == {0: "failed", 1: "finished"}
    assert "its process ended" in str(table.loc[0, "error"])
    assert set(done(grid).table["state"]) == {"finished"}


def test_the_processes_of_a_grid_end_with_it_and_keep_their_state(data: Dataset, home: Path) -> None:
    file = home / "long.toml"
    block = '[[blocks]]\ndatasets = ["world"]\nmodels = ["bprmf"]\n'
    file.write_text(block + "[blocks.variants]\nlong = { epochs = 1_000_000, eval_every = 1_000_000 }\n")
    environment = os.environ | {paths.HOME_VARIABLE: str(home), "OMP_NUM_THREADS": "1"}
    grid = subprocess.Popen(
        [sys.executable, "-m", "spike_kit", "grid", str(file)],
        env=environment,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not (states := list(home.glob(f"data/runs/*/state/{LAST}"))) and time.monotonic() < deadline:
        time.sleep(0.05)
    first = {state: state.stat().st_mtime_ns for state in states}
    processes = psutil.Process(grid.pid).children(recursive=True)
    grid.kill()
    grid.wait()
    _, alive = psutil.wait_procs(processes, timeout=60)
    for process in alive:
        process.kill()
    assert not alive
    assert [state.stat().st_mtime_ns > before for state, before in first.items()] == [True]


@pytest.mark.pipeline
def test_ray_writes_the_same_profiles_and_gives_the_same_run(home: Path) -> None:
    data = distinct_world(paths.data_root() / "world")
    grid = Grid(blocks=(Block(datasets=("world",), variants={"": WORDS}),))
    valid = done(grid).table["valid"].tolist()
    (kept,) = finished_runs(data)
    kept = Run(kept.path.rename(home / kept.path.name))
    for name in ("profiles", "embeddings"):
        shutil.rmtree(data.path / name)
    on_ray = GridRun(grid)
    on_ray.do(workers("local", 1), 1)
    assert on_ray.table["state"].tolist() == ["finished"] * 2, on_ray.table["error"].tolist()
    assert data.profile_sets() == ["template"]
    assert on_ray.table["valid"].tolist()[1:] == valid[1:]
    (found,) = finished_runs(data)
    assert found.path.name == kept.path.name
    assert found.per_user.equals(kept.per_user)
    assert all((found.tensors()[name] == tensor).all() for name, tensor in kept.tensors().items())


def test_the_command_reads_a_file_and_prints_every_cell(
    data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "grid.toml"
    file.write_text('[[blocks]]\ndatasets = ["world"]\nmodels = ["popularity", "bprmf"]\n', encoding="utf-8")
    assert main(["grid", str(file), "--only", "popularity", "--jobs", "1", "--device", "cpu", "--keep"]) == 0
    shown, said = capsys.readouterr()
    assert re.search(r"run +world +popularity +0 +finished", shown)
    assert "note: --keep now means --archive" in said
    assert [run.config["model"] for run in archive.read_archive("world", archive.own_root())] == ["popularity"]
    assert "bprmf" not in shown
    assert main(["grid", str(file), "--look"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"popularity +0 +finished", shown)
    assert re.search(r"bprmf +0 +waiting", shown)
    for wrong, message in (("--jobs=0", "0 cells at a time"), ("--only=nobody", "no cell has such a name")):
        assert main(["grid", str(file), wrong]) == 1
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        *("blocks = 3", "[[blocks", "[[blocks]]\nmodel = ['spike']", "[[blocks]]\nseeds = ['x']", "\x00", "jobs = 2"),
        "[[blocks]]\n[blocks.variants]\nx = { gama = 1 }",
    ],
)
def test_a_file_that_is_no_grid_is_refused_before_anything_is_done(tmp_path: Path, text: str) -> None:
    file = tmp_path / "grid.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="gama" if "gama" in text else None):
        GridRun(Grid.read(file))


def test_a_grid_may_have_a_byte_order_mark_but_no_other_encoding(tmp_path: Path) -> None:
    file = tmp_path / "grid.toml"
    text = "# Größe\n[[blocks]]\nmodels = ['bprmf']\ndatasets = ['world']\n"
    file.write_text(text, encoding="utf-8-sig")
    assert [cell.config.model for cell in Grid.read(file).cells() if cell.kind == "run"] == ["bprmf"]
    file.write_text("\n" + text, encoding="cp1252")
    with pytest.raises(DataError, match=r"grid\.toml line 2 is not text in UTF-8"):
        Grid.read(file)


@pytest.mark.parametrize("content", ["", "[]", '{"model": 1}'])
def test_a_damaged_file_of_settings_is_an_error(content: str) -> None:
    asked = RunConfig(model="bprmf", dataset="world", preset="tuned")
    with pytest.raises(ConfigError, match=r"(?s)no tuned settings.*--save"):
        asked.base()
    file = paths.data_root() / "tuned" / "world" / "bprmf.json"
    file.parent.mkdir(parents=True)
    file.write_text(content, encoding="utf-8")
    with pytest.raises(Exception, match=re.escape(str(file)) + "|Tuned"):
        asked.base()


def test_the_study_is_what_it_says() -> None:
    grid = Grid.read(STUDY)
    cells = grid.cells()
    assert (grid.search.trials, grid.search.preset_times, grid.search.prune) == (6, 1.5, False)
    runs = [cell for cell in cells if cell.kind == "run"]
    known = ("ml-100k", "amazon-books", "lastfm-colakg", "ml-1m-colakg")
    few = {"ml-100k-few", "amazon-books-few"}
    assert {cell.config.dataset for cell in cells} == {*known, *few, *(f"{d}-new-{n}" for d in known for n in range(3))}
    for dataset in known:
        here = [cell for cell in runs if cell.config.dataset == dataset]
        assert {cell.config.model for cell in here} == set(MODELS)
        rows = {cell.variant: cell.config.settings for cell in here if cell.config.settings}
        assert rows == {name: row for name, row in ABLATIONS.items() if name != "full model"}
    for dataset in {cell.config.dataset for cell in cells} - set(known):
        asked = {"spike", "text_knn", "text_ridge", "colakg", "kgrec", "lightgcn", "ease", "ials"}
        assert {cell.config.model for cell in runs if cell.config.dataset == dataset} == asked
    searched = Counter(cell.config.dataset for cell in cells if cell.kind == "search")
    assert {dataset: searched[dataset] for dataset in known} == dict.fromkeys(known, len(MODELS) - 1)
    seeds = {(cell.config.dataset, len(_seeds(cell, runs))) for cell in runs}
    assert {n for dataset, n in seeds if dataset == "ml-100k"} == {1, 5}
    assert {n for dataset, n in seeds if dataset not in ("ml-100k", "ml-100k-few")} == {1, 3}


def _seeds(cell: Cell, runs: list[Cell]) -> set[int]:
    """Seeds of the runs that differ from one in nothing else."""
    return {other.config.seed for other in runs if other.config.replace(seed=cell.config.seed) == cell.config}
