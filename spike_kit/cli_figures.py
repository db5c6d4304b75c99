"""The commands that draw the figures of a paper and print its tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd
from tyro.conf import Positional

from spike_kit.base import paths, storage
from spike_kit.base.errors import DataError, lookup
from spike_kit.data.dataset import Dataset
from spike_kit.evaluation.groups import train_interactions
from spike_kit.experiments.archive import archived_activity, known_runs, read_archive
from spike_kit.experiments.run_folder import Run
from spike_kit.figures.gallery import FIGURES, export_all
from spike_kit.figures.report import OVERVIEW, insert_tables, overview, report


@dataclass(frozen=True, kw_only=True)
class Results:
    """Print the tables of data sets in Markdown: models, groups of users, ablations, searches, what each cost.

    Of more than one data set an overview stands before them.

    Runs of this machine come first; what was not run here is taken from docs/study, without the data set if need be.
    """

    datasets: Positional[tuple[str, ...]] = ("ml-100k", "lastfm-colakg", "ml-1m-colakg")
    """Data sets."""
    reference: str = "spike"
    """Model that all others are compared with."""
    into: Path | None = None
    """Markdown file that takes in the tables of docs/study, between <!-- NAME --> and <!-- end of NAME -->."""

    def __call__(self) -> None:
        """Print the tables, or put them into the file."""
        found = {name: self._runs(name) for name in self.datasets}
        tables = {OVERVIEW: overview(found, self.reference)} if len(found) > 1 else {}
        tables |= {name: report(name, runs, activity, self.reference) for name, (runs, activity) in found.items()}
        if self.into is None:
            print("\n\n".join(tables.values()))
            return
        try:
            text = self.into.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{self.into} cannot be read: {error}", "give a Markdown file") from error
        with storage.atomic_file(self.into) as temporary:
            temporary.write_text(insert_tables(text, tables), encoding="utf-8")

    def _runs(self, name: str) -> tuple[Sequence[Run], pd.Series]:
        """Finished runs of a data set, and the train interactions of its users."""
        if paths.dataset_exists(name) and self.into is None:
            data = Dataset.open(name)
            return known_runs(data), train_interactions(data)
        if runs := read_archive(name):
            return runs, archived_activity(name)
        raise DataError(f"{name} is neither built here nor in docs/study", f"build it: spike-kit build {name}")


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Draw the figures and tables of a paper from the finished runs: PDF, SVG, PNG, CSV, LaTeX.

    Nothing is trained; a figure whose runs do not exist is listed as not run.
    """

    dataset: Positional[str] = "ml-100k"
    """Data set: a name under data/ or the path of a data-set folder."""
    folder: Path | None = None
    """Where to write; default: figures/."""
    split: Literal["test", "valid"] = "test"
    """Split of the results."""
    only: tuple[str, ...] = ()
    """Names of the figures to draw; default: all."""

    def __call__(self) -> None:
        """Draw, and print what was written and what was not run."""
        data = Dataset.open(self.dataset)
        for name in self.only:
            lookup(FIGURES, name, "figure")
        for artefact in export_all(data, known_runs(data), self.folder, split=self.split, names=self.only or None):
            written = ", ".join(paths.shown(file) for file in artefact.files)
            print(f"{artefact.name:12} {written or f'not run: {artefact.missing}'}")
