"""The command that draws the figures and tables of a paper."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from spike_kit import paths
from spike_kit.data.study import Study
from spike_kit.errors import lookup
from spike_kit.experiments.archive import known_runs
from spike_kit.figures.gallery import FIGURES, export_all


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Draw the figures and tables of a paper from the finished runs: PDF, SVG, PNG, CSV, LaTeX.

    Nothing is trained; a figure whose runs do not exist is listed as not run.
    """

    dataset: Positional[str] = "ml-100k"
    """Data set: a name under data/ or the path of a study folder."""
    folder: Path | None = None
    """Where to write; default: figures/."""
    split: Literal["test", "valid"] = "test"
    """Split of the results."""
    only: tuple[str, ...] = ()
    """Names of the figures to draw; default: all."""

    def __call__(self) -> None:
        """Draw, and print what was written and what was not run."""
        study = Study.open(self.dataset)
        for name in self.only:
            lookup(FIGURES, name, "figure")
        for artefact in export_all(study, known_runs(study), self.folder, split=self.split, names=self.only or None):
            written = ", ".join(paths.shown(file) for file in artefact.files)
            print(f"{artefact.name:12} {written or f'not run: {artefact.missing}'}")
