"""Every figure and table of a paper that the runs at hand allow, drawn from them and written to figures/."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from spike_kit.base import paths, storage
from spike_kit.base.errors import DataError
from spike_kit.data.dataset import Dataset
from spike_kit.evaluation.maps import umap_coordinates
from spike_kit.experiments.run import load_model
from spike_kit.experiments.run_folder import Run
from spike_kit.figures import comparisons, dataset_charts
from spike_kit.figures.maps import embedding_maps
from spike_kit.figures.results import result_bars
from spike_kit.figures.style import export
from spike_kit.models.spike import Spike
from spike_kit.profiles.prompts import prompt_texts
from spike_kit.profiles.quality import measure_profiles
from spike_kit.results import frames
from spike_kit.results.comparison import ablation_frame
from spike_kit.results.latex import latex_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Drawn = tuple["Figure", pd.DataFrame]
"""A figure and the table it was drawn from."""


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
        The study.
    runs
        Its finished runs, for example from `spike_kit.experiments.archive.known_runs`.
    folder
        Where to write; default: figures/.
    split
        Split of the results; sensitivity and learning curves are always of validation.
    names
        Names of the figures to draw; default: `FIGURES`, all of them.
    progress
        Show a bar.

    Raises
    ------
    StorageError
        If a file cannot be written.
    """
    folder = folder or paths.figures_root()
    made = []
    with tqdm(list(names or FIGURES), desc="figures", unit="figure", disable=not progress) as bar:
        for name in bar:
            try:
                figure, table = FIGURES[name](data, runs, split)
            except DataError as error:
                made.append(Artefact(name, missing=error.message))
                continue
            made.append(Artefact(name, tuple(export(figure, f"{name}-{data.name}", folder, table))))
    made.append(_results_latex(data, runs, folder, split))
    return made


def _results_latex(data: Dataset, runs: Sequence[Run], folder: Path, split: str) -> Artefact:
    if not runs:
        return Artefact("table", missing="no run is finished")
    file = folder / f"results-{data.name}.tex"
    with storage.atomic_file(file) as temporary:
        temporary.write_text(latex_table(frames.results_table(runs, split)), encoding="utf-8")
    return Artefact("table", (file,))


def _need(rows: Sized, missing: str) -> None:
    if len(rows) == 0:
        raise DataError(missing)


def _results(data: Dataset, runs: Sequence[Run], split: str) -> Drawn:  # noqa: ARG001 (one signature for all figures)
    main = frames.main_runs(runs)
    _need(main, "no run of a tuned or recommended preset is finished")
    frame = frames.results_frame(main, split=split)
    return result_bars(frame), frame


def _ablation(data: Dataset, runs: Sequence[Run], split: str) -> Drawn:  # noqa: ARG001
    full, others = frames.full_model(runs)
    _need(others, "no ablation of SPiKE is finished (notebook 05 trains them)")
    frame = ablation_frame(full, others, split=split)
    _need(frame, "no ablation of SPiKE shares a seed with the full model")
    return comparisons.ablation_bars(frame), frame


def _sensitivity(data: Dataset, runs: Sequence[Run], split: str) -> Drawn:  # noqa: ARG001
    _need(runs, "no run is finished")
    frame = frames.sensitivity_frame(runs)
    _need(frame, "no two runs differ in one setting only")
    return comparisons.sensitivity_lines(frame), frame


def _sparsity(data: Dataset, runs: Sequence[Run], split: str) -> Drawn:
    main = frames.main_runs(runs)
    _need(main, "no run of a tuned or recommended preset is finished")
    frame = frames.sparsity_frame(data, main, split=split)
    return comparisons.sparsity_bars(frame), frame


def _efficiency(data: Dataset, runs: Sequence[Run], split: str) -> Drawn:  # noqa: ARG001
    main = [run for run in frames.main_runs(runs) if run.metrics["epochs"]]
    _need(main, "no trained run of a tuned or recommended preset is finished")
    frame = frames.efficiency_frame(main, split=split)
    return comparisons.efficiency_points(frame), frame


def _curves(data: Dataset, runs: Sequence[Run], split: str) -> Drawn:  # noqa: ARG001
    frame = frames.curves_frame(frames.main_runs([run for run in runs if not run.history.empty]))
    _need(frame, "no trained run of a tuned or recommended preset has its learning curve here")
    return comparisons.curve_lines(frame), frame


def _graph(data: Dataset, runs: Sequence[Run], split: str) -> Drawn:  # noqa: ARG001
    degrees, relations = frames.degree_frame(data), frames.relation_frame(data)
    both = pd.concat([degrees, relations.rename(columns={"relation": "of", "triples": "nodes"})], ignore_index=True)
    return dataset_charts.graph_statistics(degrees, relations), both


def _quality(data: Dataset, runs: Sequence[Run], split: str) -> Drawn:  # noqa: ARG001
    names = data.profile_sets()
    _need(names, f"{data.name} has no profiles")
    prompts = {name: prompt_texts(data, name) for name in names}
    measured = measure_profiles({name: data.profiles(name) for name in names}, prompts)
    frame = frames.quality_frame(measured)
    return dataset_charts.profile_quality(frame), frame


def _map(data: Dataset, runs: Sequence[Run], split: str) -> Drawn:  # noqa: ARG001
    here = [run for run in runs if run.has_weights and "profiles" in run.config and run.config["model"] == "spike"]
    spike = next(iter(frames.main_runs(here)), None)
    if spike is None:
        raise DataError("no run of SPiKE with profiles has its weights here")
    text, final = node_vectors(data, spike)
    panels = {
        f"Profile text ({spike.config['encoder']})": umap_coordinates(text),
        "Final embeddings (SPiKE)": umap_coordinates(final),
    }
    kinds = pd.Series(["user"] * len(data.users) + data.entities["kind"].tolist())
    parts = [frame.assign(panel=title, kind=kinds)[["panel", "kind", "x", "y"]] for title, frame in panels.items()]
    return embedding_maps(panels, kinds), pd.concat(parts, ignore_index=True)


FIGURES: dict[str, Callable[[Dataset, Sequence[Run], str], Drawn]] = {
    "results": _results,
    "ablation": _ablation,
    "sensitivity": _sensitivity,
    "sparsity": _sparsity,
    "efficiency": _efficiency,
    "curves": _curves,
    "graph": _graph,
    "quality": _quality,
    "map": _map,
}
"""Every figure by its name."""


def node_vectors(data: Dataset, run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Text vectors ``[U + E, d_t]`` and final embeddings ``[U + E, d]`` of a SPiKE run with profiles, users first."""
    model = load_model(run, data)
    assert isinstance(model, Spike)
    with torch.no_grad():
        final = torch.cat(model.node_embeddings()).numpy()
    vectors = data.vectors(run.config["profiles"], run.config["encoder"])
    return torch.cat([vectors.user, vectors.entity]).numpy(), final
