"""A grid of experiments: models x data sets x seeds x variants, declared in one small file, done once, resumable.

Every cell makes profiles and their vectors, is a search, or a run. What is finished is found again by the hash of
everything that went into it and not done again; what was interrupted goes on from its state. Cells are processes of
their own: on this machine, or on a Ray cluster.
"""

from __future__ import annotations

import logging
import math
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args

import pandas as pd
import torch
from pydantic import AliasChoices, Field
from tqdm.auto import tqdm

from spike_kit.base import paths
from spike_kit.base.config import Config
from spike_kit.base.devices import resolve_device
from spike_kit.base.errors import ConfigError, DataError, SpikeKitError, require
from spike_kit.base.processes import fresh_process
from spike_kit.base.storage import read_text
from spike_kit.data.dataset import Dataset, parts_of
from spike_kit.experiments.archive import find_kept, keep_run
from spike_kit.experiments.run import (
    RunConfig,
    data_version,
    describe,
    describe_text,
    find_run,
    run,
    settings_of,
)
from spike_kit.experiments.search import save_tuned, search
from spike_kit.experiments.tuned import TUNED, Tuned, find_tuned
from spike_kit.experiments.versions import declared_for
from spike_kit.models import find_model
from spike_kit.models.base import TrainedRecommender
from spike_kit.profiles.encode import ensure_vectors
from spike_kit.profiles.generate import Generation, GenerationConfig
from spike_kit.profiles.imported import ensure_written
from spike_kit.profiles.template import TEMPLATE
from spike_kit.training.loop import MONITOR

logger = logging.getLogger(__name__)

Kind = Literal["text", "search", "run"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""Kinds of cells, in the order in which they are done: profiles with their vectors, searches, runs."""

Submit = Callable[["Cell"], "Future[Outcome]"]
"""Begins a cell somewhere else."""

STUDY = Path(__file__).with_name("study.toml")
"""The grid behind docs/results.md."""


class SearchBudget(Config):
    """What every search of a grid may spend; the same for every model."""

    trials: int = Field(default=8, ge=1)
    """Trials of a model on a data set; one without training tries its whole small grid instead."""
    trial_seconds: float | None = Field(default=90.0, gt=0)
    """Seconds after which a trial ends with what it reached."""
    preset_times: float | None = Field(default=None, gt=0)
    """The same as a multiple of what the preset takes, which is trained first; then `trial_seconds` does not count."""
    prune: bool = True
    """Whether a trial may be given up early."""
    seed: int = 0
    """Seed of all trials."""


class Block(Config):
    """One part of a grid: every combination of what it lists."""

    datasets: tuple[str, ...] = ("ml-100k",)
    """Data sets."""
    models: tuple[str, ...] = ("spike",)
    """Models."""
    seeds: tuple[int, ...] = (0,)
    """Seeds."""
    preset: str = "recommended"
    """Named setting to start from; ``tuned`` searches first where nothing is tuned yet."""
    searched_from: str = "recommended"
    """Named setting that such a search starts from."""
    profiles: str = TEMPLATE
    """Profile set of its searches, and of its runs where no variant names another."""
    variants: dict[str, dict[str, Any]] = Field(default_factory=lambda: {"": {}})
    """Changes of settings by a name of one's own, an ablation for example; also ``profiles`` and ``encoder``."""


class Grid(Config):
    """A grid of experiments."""

    search: SearchBudget = SearchBudget()
    """Budget of the searches that blocks with the preset ``tuned`` need."""
    blocks: tuple[Block, ...] = (Block(),)
    """Its parts; what two of them share is done once."""
    profiles: dict[str, GenerationConfig] = Field(
        default_factory=dict, validation_alias=AliasChoices("profiles", "sources")
    )
    """Profile sets written by a language model where a data set does not have them yet; template needs no entry."""

    @classmethod
    def read(cls, file: Path) -> Grid:
        """Read a grid from a TOML file.

        Raises
        ------
        DataError
            If the file cannot be read as text in UTF-8.
        ConfigError
            If it is no TOML, or holds an unknown or impossible setting.
        """
        try:
            values = tomllib.loads(read_text(file))
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{file} is not a readable grid: {error}", "see docs/experiments.md for one") from error
        return cls.parse(values)

    def cells(self) -> list[Cell]:
        """Cells of the grid, each once: texts, then searches, then runs, since each may need those before it."""
        found: dict[tuple[str, str], Cell] = {}

        def add(kind: Kind, config: RunConfig, variant: str = "") -> None:
            found.setdefault((kind, config.model_dump_json()), Cell(kind, config, self, variant))
            if kind != "text" and find_model(config.model).uses_text:
                text = RunConfig(dataset=config.dataset, profiles=config.profiles, encoder=config.encoder)
                add("text", text, f"{config.profiles} by {config.encoder}")

        for block in self.blocks:
            combinations = product(block.datasets, block.models, block.variants.items(), block.seeds)
            for dataset, model, (variant, changes), seed in combinations:
                usual = RunConfig(dataset=dataset, model=model, profiles=block.profiles)
                if block.preset == TUNED:
                    add("search", usual.replace(preset=block.searched_from, seed=self.search.seed))
                text = {name: str(changes[name]) for name in ("profiles", "encoder") if name in changes}
                config = usual.changed({name: value for name, value in changes.items() if name not in text})
                add("run", config.replace(preset=block.preset, seed=seed, **text), variant)
        return sorted(found.values(), key=lambda cell: KINDS.index(cell.kind))


@dataclass(frozen=True, eq=False)
class Cell:
    """One thing to do of a grid.

    Attributes
    ----------
    kind
        Whether it writes and encodes profiles, searches, or trains.
    config
        What is searched, or run; of a text its data set, profiles and encoder.
    grid
        The grid, which says how profiles are written and what a search may spend.
    variant
        Name of the block's variant.
    """

    kind: Kind
    config: RunConfig
    grid: Grid
    variant: str = ""

    @property
    def about(self) -> dict[str, Any]:
        """What it is, for a table."""
        model = "" if self.kind == "text" else self.config.model
        what = {"kind": self.kind, "dataset": self.config.dataset, "model": model}
        return what | {"variant": self.variant, "seed": self.config.seed}

    @property
    def name(self) -> str:
        """Short name for a log."""
        *words, seed = self.about.values()
        return " ".join(filter(None, [*words, f"seed {seed}" if self.kind == "run" else ""]))


@dataclass(frozen=True)
class Outcome:
    """Where a cell stands: validation NDCG@20 and seconds of a search or a run, or its error."""

    state: Literal["waiting", "finished", "failed"]
    valid: float = math.nan
    seconds: float = math.nan
    error: str = ""


def perform(cell: Cell, device: str = "cpu", threads: int = 1) -> Outcome:
    """Do one cell in this process; an error is part of the outcome, so that other cells go on.

    Parameters
    ----------
    cell
        What is done.
    device
        Where it trains.
    threads
        Threads of torch on the CPU; two processes with two threads each slow each other down many times on two cores.
    """
    torch.set_num_threads(threads)
    config, budget, where = cell.config, cell.grid.search, resolve_device(device)
    try:
        if cell.kind == "text":
            _write_text(cell, where)
        elif cell.kind == "search":
            limit = _trial_seconds(cell, where)
            result = search(config, budget.trials, device=where, trial_seconds=limit, prune=budget.prune)
            save_tuned(config, result, limit)
        else:
            run(config, where, progress=False)
    except (SpikeKitError, RuntimeError, MemoryError, OSError) as error:
        return Outcome("failed", error=str(error) or type(error).__name__)
    return _found(cell) or Outcome("failed", error="what it made is gone")


def _trial_seconds(cell: Cell, device: torch.device) -> float | None:
    """Limit of a trial of a search: as the budget says, or by what a run of the preset takes."""
    budget, config = cell.grid.search, cell.config
    if budget.preset_times is None or not issubclass(find_model(config.model), TrainedRecommender):
        return budget.trial_seconds
    return round(budget.preset_times * run(config, device, progress=False).metrics["seconds"], 1)


def _write_text(cell: Cell, device: torch.device) -> None:
    """Write the profiles of a cell where they are missing, and encode them."""
    data, profiles = Dataset.open(cell.config.dataset), cell.config.profiles
    ensure_written(data, profiles)
    for part in parts_of(profiles):
        if part not in data.profile_sets() and part in cell.grid.profiles:
            written = Generation(data, cell.grid.profiles[part], part).run()
            if written.path is None:
                missing = sum(written.missing.values())
                raise DataError(f"the model left {missing} profiles of {part} unwritten", "run again")
    ensure_vectors(data, profiles, cell.config.encoder, device, progress=False)


def _found(cell: Cell, archive: Path | None = None) -> Outcome | None:
    """Outcome of a cell that is finished already; where it cannot begin, its own process will say why."""
    config = cell.config
    try:
        data = Dataset.open(config.dataset)
        if cell.kind == "search":
            tuned = find_tuned(config.dataset, config.model)
            return Outcome("finished", tuned.valid, tuned.seconds) if tuned and _is_current(tuned, data) else None
        if cell.kind == "text":
            describe_text(data, config.profiles, config.encoder)
            return Outcome("finished")
        described = describe(config, data)
    except SpikeKitError:
        return None
    there = find_run(described) or (find_kept(described, archive) if archive else None)
    return Outcome("finished", there.valid[MONITOR], there.metrics["seconds"]) if there else None


def _is_current(tuned: Tuned, data: Dataset) -> bool:
    """Whether settings were searched on a data set as it is now, with the declared versions of now."""
    resolved = RunConfig(dataset=data.name, model=tuned.model, preset=TUNED).resolved()
    declared = declared_for({"model": tuned.model, **settings_of(*resolved)}, data)
    return (tuned.data_sha256, tuned.versions) == (data_version(data), declared)


class GridRun:
    """A grid being carried out, and how far it is.

    Parameters
    ----------
    grid
        What is to be done.
    only
        Words that the name of a cell must hold; a run of tuned settings needs its search among the cells, or done.
    archive
        Where the tables of finished runs are kept (`spike_kit.experiments.archive`), and those found there taken for
        done: a long study goes on where data/ was left behind. None: nowhere.
    """

    def __init__(self, grid: Grid, only: Sequence[str] = (), archive: Path | None = None) -> None:
        self.archive = archive
        cells = [cell for cell in grid.cells() if all(word in cell.name.split() for word in only)]
        if not cells:
            raise ConfigError("no cell has such a name", "see all with --look")
        self.cells = dict.fromkeys(cells, Outcome("waiting"))

    @property
    def table(self) -> pd.DataFrame:
        """Progress: kind, dataset, model, variant, seed, state, valid (NDCG@20), seconds, error; one row per cell."""
        return pd.DataFrame([cell.about | vars(outcome) for cell, outcome in self.cells.items()])

    @property
    def forecast(self) -> str:
        """How much training the waiting cells are, by the median of the finished ones of their data set and model."""
        table, by = self.table, ["kind", "dataset", "model"]
        known = table[table["state"] == "finished"].groupby(by)["seconds"].median()
        waiting = table[(table["state"] == "waiting") & (table["kind"] != "text")]
        seconds = known.reindex(pd.MultiIndex.from_frame(waiting[by]))
        unknown = f", {n} of them of unknown length" if (n := int(seconds.isna().sum())) else ""
        return (
            f"{len(waiting)} searches and runs wait{unknown}; the others are {seconds.sum() / 3600:.1f} h of training"
        )

    def look(self) -> None:
        """Find out which cells are finished, without doing any."""
        self.cells = {cell: _found(cell, self.archive) or outcome for cell, outcome in self.cells.items()}

    def do(self, workers: AbstractContextManager[Submit], jobs: int) -> None:
        """Do all cells that are not finished, in their order; a failure does not stop the others.

        Parameters
        ----------
        workers
            What begins cells somewhere else: see `workers`.
        jobs
            Cells at a time.

        Raises
        ------
        ConfigError
            If ``jobs`` is not positive.
        """
        if jobs < 1:
            raise ConfigError(f"{jobs} cells at a time were asked for", "give at least 1")
        with workers as submit:
            for cell, outcome in tqdm(self._outcomes(submit, jobs), total=len(self.cells), unit="cell"):
                self.cells[cell] = outcome
                if self.archive and cell.kind == "run" and outcome.state == "finished":
                    data = Dataset.open(cell.config.dataset)
                    if found := find_run(describe(cell.config, data)):
                        keep_run(found, data, self.archive)
                logger.info("%s: %s", cell.name, outcome.error or outcome.state)

    def _outcomes(self, submit: Submit, jobs: int) -> Iterator[tuple[Cell, Outcome]]:
        """Begin cells as long as fewer than ``jobs`` are being done; each is given when it has ended."""
        waiting = list(self.cells)
        running: dict[Future[Outcome], Cell] = {}
        while waiting or running:
            # Whatever a cell needs is of an earlier kind.
            if waiting and len(running) < jobs and all(other.kind == waiting[0].kind for other in running.values()):
                cell = waiting.pop(0)
                if found := _found(cell, self.archive):
                    yield cell, found
                else:
                    running[submit(cell)] = cell
            else:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), _outcome(future)


def _outcome(future: Future[Outcome]) -> Outcome:
    """What a process gave; its death is an error like others."""
    try:
        return future.result()
    except Exception as error:  # a worker that was killed raises what its pool or Ray has for it
        return Outcome("failed", error=f"its process ended: {(str(error).strip() or repr(error)).splitlines()[-1]}")


@contextmanager
def workers(cluster: str | None = None, jobs: int = 2, device: str = "cpu", threads: int = 1) -> Iterator[Submit]:
    """What begins cells: each in a process of its own on this machine, or as a task of a Ray cluster.

    On this machine the end of one, however violent, leaves the others alone. They end soon after this process, however
    that ended; trainings write their state before. All machines of a cluster must see the same data folder
    (``SPIKE_KIT_HOME``) and this package.

    Parameters
    ----------
    cluster
        Address of a running cluster, ``"auto"`` for the one this machine belongs to; ``"local"`` starts Ray here, with
        ``jobs`` CPUs. None: no Ray.
    jobs
        CPUs of a Ray that is started here.
    device, threads
        As in `perform`; here ``cuda`` stands for all GPUs, each cell begins on the one with the fewest. A task asks the
        cluster for as many CPUs as it has threads, and for a GPU if the device is one.
    """
    if cluster is None:
        n_gpus = torch.cuda.device_count() if device == "cuda" else 0
        busy = Counter(dict.fromkeys([f"cuda:{number}" for number in range(n_gpus)] or [device], 0))
        if device.startswith("cuda") and jobs > len(busy):
            logger.warning("%d cells at a time share %s and its memory", jobs, ", ".join(busy))

        def submit(cell: Cell) -> Future[Outcome]:
            pool, where = fresh_process(), min(busy, key=busy.__getitem__)
            busy[where] += 1
            future = pool.submit(perform, cell, where, threads)
            future.add_done_callback(lambda _: busy.subtract([where]))
            pool.shutdown(wait=False)
            return future

        yield submit
        return
    ray = require("ray", "cluster")
    local: dict[str, Any] = {"num_cpus": jobs, "include_dashboard": False}
    where = local if cluster == "local" else {"address": cluster}
    environment = {"env_vars": {paths.HOME_VARIABLE: str(paths.home())}}
    ray.init(**where, log_to_driver=False, logging_level="warning", runtime_env=environment)
    try:
        task = ray.remote(num_cpus=threads, num_gpus=int(device.startswith("cuda")), max_retries=0)(perform)
        yield lambda cell: task.remote(cell, device, threads).future()
    finally:
        ray.shutdown()
