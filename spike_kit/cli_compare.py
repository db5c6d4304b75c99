"""The command that says which model is better, by how much, and whether chance explains it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd
from tyro.conf import Positional

from spike_kit.base import paths, storage
from spike_kit.base.errors import ConfigError, DataError
from spike_kit.data.dataset import Dataset
from spike_kit.evaluation.groups import sparsity_groups
from spike_kit.experiments import run_folder
from spike_kit.experiments.archive import known_runs
from spike_kit.experiments.run_folder import Run
from spike_kit.figures.latex import latex_table
from spike_kit.results.comparison import HYPOTHESES, comparison_markdown, comparison_table
from spike_kit.results.tables import HEADLINE, results_table


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Compare finished runs with one of them: paired tests, effect sizes, intervals; as text, CSV, Markdown, LaTeX.

    Nothing is trained. Runs that differ in the seed only count as one model.
    """

    runs: Positional[tuple[str, ...]] = ("ml-100k",)
    """Run folders, by name or path; or one data set, for all of its finished runs."""
    metric: str = "ndcg@20"
    """Metric of the tests."""
    split: Literal["test", "valid"] = "test"
    """Split of the results."""
    quarter: Literal[1, 2, 3, 4] | None = None
    """Only this quarter of the users by their train interactions; 1 are those with the fewest. Default: all users."""
    reference: str = ""
    """Label of the model to compare with, as the table shows it; default: the best on validation."""
    folder: Path | None = None
    """Where the files are written; default: figures/."""

    def __call__(self) -> None:
        """Print the table and the null hypotheses, and write the files."""
        found = self._found()
        dataset = found[0].config["dataset"]
        users, who = self._users(dataset)
        table = comparison_table(found, self.metric, self.split, self.reference, users)
        text = comparison_markdown(table, self.metric)
        said = f"{dataset}, {self.split} split{who}; compared with {table.attrs['reference']}"
        print(f"{said}\n\n{text}\n\n{HYPOTHESES}\n")
        marks = dict(zip(table["model"], table["mark"], strict=True))
        contents = {
            "csv": table.to_csv(index=False),
            "md": f"{said}\n\n{text}\n\n{HYPOTHESES}\n",
        }
        if users is None:
            contents["tex"] = latex_table(results_table(found, self.split), HEADLINE, marks={self.metric: marks})
        part = f"-quarter{self.quarter}" if self.quarter else ""
        for ending, content in contents.items():
            file = (self.folder or paths.figures_root()) / f"comparison-{dataset}-{self.split}{part}.{ending}"
            with storage.atomic_file(file) as temporary:
                temporary.write_text(content, encoding="utf-8")
            print(f"written    {paths.shown(file)}")

    def _users(self, dataset: str) -> tuple[pd.Index | None, str]:
        """Users of the quarter, and words for them; none for all users."""
        if self.quarter is None:
            return None, ""
        groups = sparsity_groups(Dataset.open(dataset))
        if self.quarter > len(groups.cat.categories):
            raise ConfigError(
                f"the users of {dataset} are in {len(groups.cat.categories)} groups", "ties stay together"
            )
        name = groups.cat.categories[self.quarter - 1]
        return groups.index[groups == name], f", users with {name} train interactions"

    def _found(self) -> list[Run]:
        folders = [self._folder(name) for name in self.runs]
        if None not in folders:
            return [Run(folder) for folder in folders if folder is not None]
        if len(self.runs) == 1:
            return known_runs(Dataset.open(self.runs[0]))
        missing = next(name for name, folder in zip(self.runs, folders, strict=True) if folder is None)
        raise DataError(f"there is no finished run {missing!r}", f"run folders are in {paths.shown(paths.runs_root())}")

    def _folder(self, name: str) -> Path | None:
        candidates = paths.runs_root() / name, Path(name)
        return next((folder for folder in candidates if (folder / run_folder.METRICS).is_file()), None)
