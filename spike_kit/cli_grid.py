"""The command that carries out a grid of experiments."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm
from tyro.conf import Positional, UseAppendAction

from spike_kit.base.errors import ConfigError, TrainingError
from spike_kit.cli_options import OnDevice
from spike_kit.experiments.grid import Cell, Grid, GridRun, Outcome, Submit, on_cluster, on_this_machine

STUDY = Path(__file__).parent / "experiments" / "study.toml"
"""The grid behind docs/results.md."""


@dataclass(frozen=True, kw_only=True)
class RunGrid(OnDevice):
    """Carry out a grid of profiles, searches and runs from a TOML file; what is finished stays, the rest goes on.

    Prints one row per cell at the end. A cell that fails does not stop the others, but the command then fails.
    """

    file: Positional[Path] = STUDY
    """The grid (docs/experiments.md); default: the study behind docs/results.md."""
    threads: int = 1
    """Threads of a cell on the CPU."""
    jobs: int = 2
    """Cells at a time, each in a process of its own."""
    cluster: str | None = None
    """Address of a Ray cluster (extra: cluster), "auto" for this machine's, "local" to start Ray here."""
    only: UseAppendAction[tuple[str, ...]] = ()
    """Only cells with this word in their name, a data set or a model for example; if repeated, with all of them."""
    keep: bool = False
    """Keep the tables of finished runs in docs/study, and take what is found there for done."""
    look: bool = False
    """Only look how far it is."""

    def __call__(self) -> None:
        """Do the cells and print the table."""
        if self.jobs < 1:
            raise ConfigError(f"{self.jobs} cells at a time were asked for", "give at least 1")
        progress = GridRun(Grid.read(self.file), self.only, self.keep)
        if not progress.cells:
            raise ConfigError("no cell has such a name", "see all with --look")
        if self.look:
            progress.look()
        else:
            with self._submit() as submit, tqdm(total=len(progress.cells), unit="cell") as bar:

                def report(cell: Cell, outcome: Outcome) -> None:
                    bar.set_postfix_str(f"{cell.name}: {outcome.summary[:60]}")
                    bar.update()

                progress.do(submit, self.jobs, report)
        print(progress.table.to_string(index=False, float_format=lambda number: f"{number:.4g}", na_rep=""))
        failed = [cell.name for cell in progress.cells if progress.states[cell] in ("failed", "blocked")]
        if failed:
            raise TrainingError(f"{len(failed)} of {len(progress.cells)} cells failed: {failed[0]}", "see the table")

    def _submit(self) -> AbstractContextManager[Submit]:
        device, threads = str(self.chosen_device()), self.threads
        if self.cluster is None:
            return on_this_machine(device, threads)
        return on_cluster("" if self.cluster == "local" else self.cluster, self.jobs, device, threads)
