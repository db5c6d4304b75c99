"""Figures of a paper, each a function of one table: ``sk.figures.draw`` shows one, ``sk.figures.export`` writes all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from spike_kit.data.dataset import Dataset
    from spike_kit.experiments.run_folder import Run


def draw(
    data: Dataset, name: str, runs: Sequence[Run] | None = None, split: Literal["test", "valid"] = "test"
) -> Figure:
    """Draw one figure of a data set by its name (`spike_kit.figures.gallery.FIGURES`).

    Raises
    ------
    ConfigError
        If there is no such figure.
    DataError
        If the runs that it needs do not exist.
    """
    from spike_kit.experiments.archive import known_runs
    from spike_kit.figures.gallery import drawn

    return drawn(name, data, known_runs(data) if runs is None else runs, split)[0]


def export(
    data: Dataset,
    folder: str | Path | None = None,
    runs: Sequence[Run] | None = None,
    split: Literal["test", "valid"] = "test",
    progress: bool = True,
) -> pd.DataFrame:
    """Draw every figure whose runs exist and write it as PDF, SVG and PNG, with its numbers as CSV.

    Parameters
    ----------
    data
        Data set.
    folder
        Where to write; default: figures/.
    runs
        Finished runs; default: all that are known.
    split
        Split of the results.
    progress
        Show a progress bar.

    Returns
    -------
    DataFrame
        One row per figure: its name, its files, and what is missing where it was not drawn.
    """
    import pandas as pd

    from spike_kit.experiments.archive import known_runs
    from spike_kit.figures.gallery import export_all

    where = None if folder is None else Path(folder)
    found = known_runs(data) if runs is None else runs
    made = export_all(data, found, where, split=split, progress=progress)
    rows = [(one.name, list(one.files), one.missing) for one in made]
    return pd.DataFrame(rows, columns=["figure", "files", "not run"])
