"""A grid of experiments: models x data sets x seeds x variants, declared in one small file, done once, resumable.

Every cell makes profiles and their vectors, is a search, or a run. What is finished is found again by the hash of
everything that went into it and not done again; what was interrupted goes on from its state. Cells are processes of
their own: on this machine, or on a Ray cluster.
"""

from __future__ import annotations

import logging
import math
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from pydantic import AliasChoices, Field
from tqdm.auto import tqdm

from spike_kit.base import paths
from spike_kit.base.config import Config
from spike_kit.base.devices import resolve_device
from spike_kit.base.errors import ConfigError, DataError, SpikeKitError, require
from spike_kit.base.processes import fresh_process
from spike_kit.data.dataset import Dataset
from spike_kit.experiments.archive import find_kept, keep_run
from spike_kit.experiments.run import RunConfig, describe, describe_text, run
from spike_kit.experiments.run_folder import find_run
from spike_kit.experiments.search import save_tuned, search
from spike_kit.experiments.search_space import with_settings
from spike_kit.experiments.tuned import TUNED, read_tuned, tuned_path
from spike_kit.models import find_model
from spike_kit.profiles.encode import ensure_vectors
from spike_kit.profiles.generate import Generation, GenerationConfig
from spike_kit.profiles.template import TEMPLATE, ensure_profiles
from spike_kit.training.loop import MONITOR

logger = logging.getLogger(__name__)

State = Literal["waiting", "running", "finished", "failed", "blocked"]
"""Where a cell stands; a blocked one needs another that failed."""

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
        ConfigError
            If the file cannot be read, is no TOML, or holds an unknown or impossible setting.
        """
        try:
            values = tomllib.loads(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"{file} is not a readable grid: {error}", "see docs/experiments.md for one") from error
        return cls.parse(values)

    def cells(self) -> list[Cell]:
        """Cells of the grid, each once: texts, then searches, then runs, each after what it needs."""
        runs: dict[str, Cell] = {}
        searches: dict[tuple[str, str], Cell] = {}
        for block in self.blocks:
            combinations = product(block.datasets, block.models, block.variants.items(), block.seeds)
            for dataset, model, (variant, changes), seed in combinations:
                config = RunConfig(model=model, dataset=dataset, preset=block.preset, seed=seed)
                config = _changed(config, changes)
                runs.setdefault(config.model_dump_json(), Cell("run", config, variant=variant))
                if block.preset == TUNED:
                    start = RunConfig(model=model, dataset=dataset, seed=self.search.seed)
                    searches.setdefault((dataset, model), Cell("search", start, self.search))
        texts = {
            (used.dataset, used.profiles, used.encoder): Cell(
                "text",
                RunConfig(dataset=used.dataset, profiles=used.profiles, encoder=used.encoder),
                generation=self.profiles.get(used.profiles),
            )
            for used in (cell.config for cell in (*searches.values(), *runs.values()))
            if find_model(used.model).uses_text
        }
        return [*texts.values(), *searches.values(), *runs.values()]


def _changed(config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """A configuration with a variant's changes; settings are checked when the cell's turn comes, names at once."""
    text = {name: str(changes[name]) for name in ("profiles", "encoder") if name in changes}
    settings = {name: value for name, value in changes.items() if name not in text}
    return with_settings(config, settings).replace(**text)


_BUDGET = SearchBudget()


@dataclass(frozen=True, eq=False)
class Cell:
    """Profiles with their vectors, a search, or a run.

    Attributes
    ----------
    kind
        Whether it writes and encodes profiles, searches, or trains.
    config
        What is searched, or run; of a text its data set, profiles and encoder.
    budget
        Budget of a search.
    variant
        Name of the block's variant.
    generation
        How a language model writes the profiles of a text that a data set does not have.
    """

    kind: Literal["text", "search", "run"]
    config: RunConfig
    budget: SearchBudget = _BUDGET
    variant: str = ""
    generation: GenerationConfig | None = None

    def needs(self, other: Cell) -> bool:
        """Whether another cell must be finished first."""
        mine, its = self.config, other.config
        if self.kind == "text" or mine.dataset != its.dataset:
            return False
        if other.kind == "search":
            return self.kind == "run" and mine.preset == TUNED and mine.model == its.model
        same = (mine.profiles, mine.encoder) == (its.profiles, its.encoder)
        return other.kind == "text" and same and find_model(mine.model).uses_text

    @property
    def name(self) -> str:
        """Short name for a table or a log."""
        config = self.config
        if self.kind == "text":
            return f"text {config.dataset} {config.profiles} {config.encoder}"
        words = [self.kind, config.dataset, config.model, self.variant]
        return " ".join([*filter(None, words), *([f"seed {config.seed}"] if self.kind == "run" else [])])


@dataclass(frozen=True)
class Outcome:
    """What became of a cell: its validation NDCG@20 and seconds, or its error."""

    valid: float = float("nan")
    seconds: float = float("nan")
    error: str = ""

    @property
    def summary(self) -> str:
        """The error, or the quality if there is one and the seconds."""
        quality = "" if math.isnan(self.valid) else f"{MONITOR} {self.valid:.4f}, "
        return self.error or f"{quality}{self.seconds:.0f} s"


def perform(cell: Cell, device: str = "cpu", threads: int | None = 1) -> Outcome:
    """Do one cell in this process; an error is part of the outcome, so that other cells go on.

    Parameters
    ----------
    cell
        The search or run.
    device
        Where it trains.
    threads
        Threads of torch on the CPU; two processes with two threads each slow each other down many times on two cores.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    config, where = cell.config, resolve_device(device)
    try:
        if cell.kind == "search":
            budget = cell.budget
            result = search(config, budget.trials, device=where, trial_seconds=budget.trial_seconds)
            save_tuned(config, result, budget.trial_seconds)
            return Outcome(result.valid, float(result.trials["seconds"].sum()))
        if cell.kind == "text":
            return _write_text(cell, where)
        metrics = run(config, where, progress=False).metrics
        return Outcome(metrics["valid"][MONITOR], metrics["seconds"])
    except (SpikeKitError, RuntimeError, MemoryError, OSError) as error:
        return Outcome(error=str(error) or type(error).__name__)


def _write_text(cell: Cell, device: torch.device) -> Outcome:
    """Write the profiles of a cell where they are missing, and encode them."""
    started, config = time.perf_counter(), cell.config
    data, profiles = Dataset.open(config.dataset), config.profiles
    if profiles == TEMPLATE:
        ensure_profiles(data)
    elif profiles not in data.profile_sets() and cell.generation is not None:
        written = Generation(data, cell.generation, profiles).run()
        if written.path is None:
            raise DataError(
                f"the model left {sum(written.missing.values())} profiles of {profiles} unwritten", "run again"
            )
    ensure_vectors(data, profiles, config.encoder, device, progress=False)
    return Outcome(seconds=time.perf_counter() - started)


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
        self.grid, self.archive = grid, archive
        self.cells = [cell for cell in grid.cells() if all(word in cell.name.split() for word in only)]
        self.states: dict[Cell, State] = dict.fromkeys(self.cells, "waiting")
        self.outcomes: dict[Cell, Outcome] = {}

    @property
    def table(self) -> pd.DataFrame:
        """Progress: kind, dataset, model, variant, seed, state, valid (NDCG@20), seconds, error; one row per cell."""
        rows = []
        for cell in self.cells:
            config, text = cell.config, cell.kind == "text"
            row = {
                "kind": cell.kind,
                "dataset": config.dataset,
                "model": "" if text else config.model,
                "variant": f"{config.profiles} by {config.encoder}" if text else cell.variant,
                "seed": config.seed,
                "state": self.states[cell],
            }
            rows.append(row | vars(self.outcomes.get(cell, Outcome())))
        return pd.DataFrame(rows)

    def look(self) -> None:
        """Find out which cells are finished, without doing any."""
        for cell in self.cells:
            outcome = self._found(cell)
            if outcome is not None and not outcome.error:
                self._end(cell, outcome)

    def do(self, submit: Submit, jobs: int, report: Callable[[Cell, Outcome], None] | None = None) -> None:
        """Do all cells that are not finished, in their order; a failure does not stop the others.

        Parameters
        ----------
        submit
            Begins a cell in another process: see `on_this_machine` and `on_cluster`.
        jobs
            Cells at a time.
        report
            Told of every cell when it has ended.
        """
        waiting, running = list(self.cells), dict[Future[Outcome], Cell]()

        def end(cell: Cell, outcome: Outcome, state: State | None = None) -> None:
            self._end(cell, outcome, state)
            if report is not None:
                report(cell, outcome)

        while waiting or running:
            needed = [other for other in self.cells if waiting and waiting[0].needs(other)]
            if not waiting or len(running) >= jobs or any(self.states[other] == "running" for other in needed):
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    end(running.pop(future), _outcome(future))
                continue
            cell = waiting.pop(0)
            failed = [other for other in needed if self.states[other] != "finished"]
            if failed:
                end(cell, Outcome(error=f"needs what failed: {failed[0].name}"), "blocked")
            elif (found := self._found(cell)) is not None:
                end(cell, found)
            else:
                running[submit(cell)] = cell
                self.states[cell] = "running"

    @property
    def failed(self) -> list[str]:
        """Names of the cells that failed, or wait for one that did."""
        return [cell.name for cell in self.cells if self.states[cell] in ("failed", "blocked")]

    def _found(self, cell: Cell) -> Outcome | None:
        """Outcome of a cell that is finished, or that cannot begin; none where it is still to be done."""
        config = cell.config
        try:
            if cell.kind == "search" or config.preset == TUNED:
                if not tuned_path(config.dataset, config.model).is_file():
                    return None
                tuned = read_tuned(config.dataset, config.model)
                if cell.kind == "search":
                    return Outcome(tuned.valid, tuned.seconds)
            data = Dataset.open(config.dataset)
            if cell.kind == "text":
                return Outcome(seconds=0.0) if _has_text(data, config) else None
            described = describe(config, data)
            found = find_run(described) or (find_kept(described, self.archive) if self.archive else None)
            return None if found is None else Outcome(found.metrics["valid"][MONITOR], found.metrics["seconds"])
        except SpikeKitError as error:
            return Outcome(error=str(error))

    def _end(self, cell: Cell, outcome: Outcome, state: State | None = None) -> None:
        """Note the outcome of a cell that is done, and keep what it left here."""
        if self.archive and cell.kind == "run" and not outcome.error:
            data = Dataset.open(cell.config.dataset)
            found = find_run(describe(cell.config, data))
            if found is not None:
                keep_run(found, data, self.archive)
        self.outcomes[cell] = outcome
        self.states[cell] = state or ("failed" if outcome.error else "finished")
        logger.info("%s: %s", cell.name, outcome.summary)


def _has_text(data: Dataset, config: RunConfig) -> bool:
    """Whether profiles and their vectors are there, and belong together."""
    try:
        describe_text(data, config.profiles, config.encoder)
    except DataError:
        return False
    return True


def _outcome(future: Future[Outcome]) -> Outcome:
    """What a process gave; its death is an error like others."""
    try:
        return future.result()
    except Exception as error:  # a worker that was killed raises what its pool or Ray has for it
        return Outcome(error=f"its process ended: {str(error).strip().splitlines()[-1] if str(error) else error!r}")


@contextmanager
def on_this_machine(device: str = "cpu", threads: int | None = 1) -> Iterator[Submit]:
    """Cells in processes of their own on this machine: the end of one, however violent, leaves the others alone.

    They end soon after this process, however that ended; trainings write their state before.
    """

    def submit(cell: Cell) -> Future[Outcome]:
        pool = fresh_process()
        future = pool.submit(perform, cell, device, threads)
        pool.shutdown(wait=False)
        return future

    yield submit


@contextmanager
def on_cluster(address: str = "", jobs: int = 2, device: str = "cpu", threads: int = 1) -> Iterator[Submit]:
    """The same cells as tasks of Ray; all machines must see the same data folder (``SPIKE_KIT_HOME``) and this package.

    Parameters
    ----------
    address
        Of a running cluster, ``"auto"`` for the one this machine belongs to; empty starts Ray here, with ``jobs`` CPUs.
    jobs
        CPUs of a Ray that is started here.
    device, threads
        As in `perform`; a task asks the cluster for as many CPUs as it has threads, and for a GPU if the device is one.
    """
    ray = require("ray", "cluster")
    where: dict[str, Any] = {"address": address} if address else {"num_cpus": jobs, "include_dashboard": False}
    environment = {paths.HOME_VARIABLE: str(paths.home())}
    ray.init(**where, log_to_driver=False, logging_level="warning", runtime_env={"env_vars": environment})
    try:
        gpus = 1 if device.startswith("cuda") else 0
        task = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=0)(perform)
        yield lambda cell: task.remote(cell, device, threads).future()
    finally:
        ray.shutdown()


def carry_out(
    file: Path = STUDY,
    only: Sequence[str] = (),
    *,
    archive: Path | None = None,
    look: bool = False,
    jobs: int = 2,
    threads: int = 1,
    cluster: str | None = None,
    device: str = "cpu",
) -> GridRun:
    """Do the cells of a grid file that are not done yet, with a progress bar.

    Parameters
    ----------
    file
        The grid; default: the study behind docs/results.md.
    only, archive
        As in `GridRun`.
    look
        Only look how far it is.
    jobs
        Cells at a time.
    threads, device
        As in `perform`.
    cluster
        Address of a Ray cluster, ``"auto"`` for this machine's, ``"local"`` to start Ray here; none: this machine.

    Raises
    ------
    ConfigError
        If no cell is named by ``only``, or ``jobs`` is not positive.
    """
    if jobs < 1:
        raise ConfigError(f"{jobs} cells at a time were asked for", "give at least 1")
    progress = GridRun(Grid.read(file), only, archive)
    if not progress.cells:
        raise ConfigError("no cell has such a name", "see all with --look")
    if look:
        progress.look()
        return progress
    if cluster is None:
        submitter = on_this_machine(device, threads)
    else:
        submitter = on_cluster("" if cluster == "local" else cluster, jobs, device, threads)
    with submitter as submit, tqdm(total=len(progress.cells), unit="cell") as bar:

        def report(cell: Cell, outcome: Outcome) -> None:
            bar.set_postfix_str(f"{cell.name}: {outcome.summary[:60]}")
            bar.update()

        progress.do(submit, jobs, report)
    return progress
