"""Every figure and table of a paper that the runs at hand allow, drawn from them and written to figures/."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd
from tqdm.auto import tqdm

from spike_kit.base import paths, storage
from spike_kit.base.errors import DataError, lookup
from spike_kit.data.dataset import Dataset
from spike_kit.experiments.archive import known_runs
from spike_kit.experiments.run import Run
from spike_kit.figures import charts, style
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
        charts.result_dots,
        _NO_MAIN,
    ),
    "ablation": Recipe(
        lambda of: ablation_frame(*frames.full_model(of.runs), split=of.split),
        charts.ablation_forest,
        "no ablation of SPiKE shares a seed with the full model (notebook 05 trains them)",
    ),
    "sensitivity": Recipe(
        lambda of: frames.sensitivity_frame(of.runs),
        charts.sensitivity_lines,
        "no two runs differ in one setting only",
    ),
    "sparsity": Recipe(
        lambda of: frames.sparsity_frame(of.data, frames.leading(of.main()), split=of.split),
        charts.sparsity_slopes,
        _NO_MAIN,
    ),
    "worth": Recipe(
        lambda of: frames.worth_frame(of.runs, of.split),
        charts.worth_lines,
        "no run of SPiKE knows groups of items (only data sets of another task than known items have them)",
    ),
    "tasks": Recipe(
        lambda of: frames.tasks_frame(of.runs, of.split),
        charts.task_dots,
        "the runs of SPiKE are not of several tasks",
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


def draw(data: Dataset, name: str, runs: Sequence[Run] | None = None, split: str = "test") -> Figure:
    """Draw one of `FIGURES` by its name.

    Parameters
    ----------
    data, name
        Data set, and name of the figure.
    runs
        Finished runs; default: all that are known.
    split
        Split of the results.

    Raises
    ------
    ConfigError
        If there is no such figure.
    DataError
        If the runs that it needs do not exist.
    """
    return _drawn(Given(data, known_runs(data) if runs is None else runs, split), name)[0]


def _drawn(of: Given, name: str) -> tuple[Figure, pd.DataFrame]:
    """A figure, and the table it was drawn from."""
    recipe = lookup(FIGURES, name, "figure")
    frame = recipe.frame(of)
    if frame.empty:
        raise DataError(recipe.missing)
    return recipe.chart(frame), frame


def export(
    data: Dataset,
    folder: str | Path | None = None,
    runs: Sequence[Run] | None = None,
    split: str = "test",
    *,
    names: Sequence[str] | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Draw every figure that the runs allow and write it as PDF, SVG, PNG and CSV, and the results as LaTeX.

    Nothing is trained and nothing invented: a figure whose runs do not exist is listed with what is missing. Equal runs
    give equal files, byte for byte; files of a figure that was not drawn are left as they are.

    Parameters
    ----------
    data
        The data set.
    folder
        Where to write; default: figures/.
    runs
        Finished runs; default: all that are known.
    split
        Split of the results.
    names
        Names of the figures to draw; default: `FIGURES`, all of them.
    progress
        Show a progress bar.

    Returns
    -------
    DataFrame
        One row per figure, the table at the end: its name, its files, and what is missing where it was not drawn.

    Raises
    ------
    ConfigError
        If there is no figure of a name.
    StorageError
        If a file cannot be written.
    """
    folder, rows = Path(folder or paths.figures_root()), []
    for name in names or ():
        lookup(FIGURES, name, "figure")
    of = Given(data, known_runs(data) if runs is None else runs, split)
    for name in tqdm(list(names or FIGURES), desc="figures", unit="figure", disable=not progress):
        try:
            figure, table = _drawn(of, name)
            rows.append((name, style.export(figure, f"{name}-{data.name}", folder, table), ""))
        except DataError as error:
            rows.append((name, [], error.message))
    if of.runs:
        file = folder / f"results-{data.name}.tex"
        with storage.atomic_file(file) as temporary:
            temporary.write_text(latex_table(frames.results_table(of.runs, split)), encoding="utf-8")
        rows.append(("table", [file], ""))
    else:
        rows.append(("table", [], "no run is finished"))
    return pd.DataFrame(rows, columns=["figure", "files", "not run"])
