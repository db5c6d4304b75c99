"""Every figure and table of a paper that the runs at hand allow, drawn from them and written to figures/."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd
from tqdm.auto import tqdm

from spike_kit.base import paths, storage
from spike_kit.base.errors import DataError, lookup
from spike_kit.data.dataset import Dataset
from spike_kit.experiments.run_folder import Run
from spike_kit.figures import charts
from spike_kit.figures.style import export
from spike_kit.profiles.prompts import prompt_texts
from spike_kit.profiles.quality import measure_profiles
from spike_kit.results import frames
from spike_kit.results.comparison import ablation_frame
from spike_kit.results.tables import latex_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Given(NamedTuple):
    """What a figure is made from."""

    data: Dataset
    runs: Sequence[Run]
    split: str

    def main(self, runs: Sequence[Run] | None = None) -> list[Run]:
        """Runs of every model at its best (`frames.main_runs`), among all runs or some."""
        return frames.main_runs(self.runs if runs is None else runs)


class Recipe(NamedTuple):
    """How a figure is made: its table (which may be empty), the function that draws it, what is missing if it is."""

    frame: Callable[[Given], pd.DataFrame]
    chart: Callable[[pd.DataFrame], Figure]
    missing: str


_NO_MAIN = "no run of a tuned or recommended preset is finished"
_NO_TRAINED = "no trained run of a tuned or recommended preset"


def _trained(of: Given) -> pd.DataFrame:
    return frames.efficiency_frame([run for run in of.main() if run.metrics["epochs"]], split=of.split)


def _curves(of: Given) -> pd.DataFrame:
    return frames.curves_frame(of.main([run for run in of.runs if not run.history.empty]))


def _quality(of: Given) -> pd.DataFrame:
    texts = {name: of.data.profiles(name) for name in of.data.profile_sets()}
    prompts = {name: prompt_texts(of.data, name) for name in texts}
    return frames.quality_frame(measure_profiles(texts, prompts)) if texts else pd.DataFrame()


FIGURES: dict[str, Recipe] = {
    "results": Recipe(
        lambda of: frames.results_frame(of.main(), split=of.split),
        charts.result_bars,
        _NO_MAIN,
    ),
    "ablation": Recipe(
        lambda of: ablation_frame(*frames.full_model(of.runs), split=of.split),
        charts.ablation_bars,
        "no ablation of SPiKE shares a seed with the full model (notebook 05 trains them)",
    ),
    "sensitivity": Recipe(
        lambda of: frames.sensitivity_frame(of.runs),
        charts.sensitivity_lines,
        "no two runs differ in one setting only",
    ),
    "sparsity": Recipe(
        lambda of: frames.sparsity_frame(of.data, of.main(), split=of.split),
        charts.sparsity_bars,
        _NO_MAIN,
    ),
    "efficiency": Recipe(_trained, charts.efficiency_points, f"{_NO_TRAINED} is finished"),
    "curves": Recipe(_curves, charts.curve_lines, f"{_NO_TRAINED} has its learning curve here"),
    "graph": Recipe(lambda of: frames.graph_frame(of.data), charts.graph_statistics, "there is no graph"),
    "quality": Recipe(_quality, charts.profile_quality, "the data set has no profiles"),
    "map": Recipe(
        lambda of: frames.map_frame(of.data, of.runs),
        charts.node_maps,
        "no run of SPiKE with profiles has its weights here",
    ),
}
"""Every figure by its name; sensitivity and learning curves are always of validation."""


@dataclass(frozen=True)
class Artefact:
    """A figure or table of the gallery.

    Attributes
    ----------
    name
        Its name, without data set and ending.
    files
        What was written; nothing if it was not run.
    missing
        Why it was not drawn; empty if it was.
    """

    name: str
    files: tuple[Path, ...] = ()
    missing: str = ""


def drawn(name: str, data: Dataset, runs: Sequence[Run], split: str = "test") -> tuple[Figure, pd.DataFrame]:
    """Draw one of `FIGURES`; return it and the table it was drawn from.

    Raises
    ------
    ConfigError
        If there is no such figure.
    DataError
        If what it shows was not run.
    """
    recipe = lookup(FIGURES, name, "figure")
    frame = recipe.frame(Given(data, runs, split))
    if frame.empty:
        raise DataError(recipe.missing)
    return recipe.chart(frame), frame


def export_all(
    data: Dataset,
    runs: Sequence[Run],
    folder: Path | None = None,
    *,
    split: str = "test",
    names: Sequence[str] | None = None,
    progress: bool = True,
) -> list[Artefact]:
    """Draw every figure that the runs allow and write it as PDF, SVG, PNG and CSV, and the results as LaTeX.

    Nothing is trained and nothing invented: a figure whose runs do not exist is listed with what is missing. Equal runs
    give equal files, byte for byte; files of a figure that was not drawn are left as they are.

    Parameters
    ----------
    data
        The data set.
    runs
        Its finished runs, for example from `spike_kit.experiments.archive.known_runs`.
    folder
        Where to write; default: figures/.
    split
        Split of the results.
    names
        Names of the figures to draw; default: `FIGURES`, all of them.
    progress
        Show a bar.

    Raises
    ------
    ConfigError
        If there is no figure of a name.
    StorageError
        If a file cannot be written.
    """
    folder = folder or paths.figures_root()
    made = []
    for name in tqdm(list(names or FIGURES), desc="figures", unit="figure", disable=not progress):
        try:
            figure, table = drawn(name, data, runs, split)
        except DataError as error:
            made.append(Artefact(name, missing=error.message))
            continue
        made.append(Artefact(name, tuple(export(figure, f"{name}-{data.name}", folder, table))))
    if not runs:
        return [*made, Artefact("table", missing="no run is finished")]
    file = folder / f"results-{data.name}.tex"
    with storage.atomic_file(file) as temporary:
        temporary.write_text(latex_table(frames.results_table(runs, split)), encoding="utf-8")
    return [*made, Artefact("table", (file,))]
