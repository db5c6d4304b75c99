"""Every figure that the runs at hand allow, drawn from them and written to figures/."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from spike_kit.data.study import Study
from spike_kit.evaluation.maps import umap_coordinates
from spike_kit.evaluation.tables import results_table
from spike_kit.experiments.run import load_model
from spike_kit.figures.maps import embedding_maps
from spike_kit.figures.results import result_bars
from spike_kit.figures.style import export
from spike_kit.models.spike import Spike
from spike_kit.runs import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_all(study: Study, finished: Sequence[Run], progress: bool = True) -> list[Path]:
    """Draw the result bars of the runs and the map of the first SPiKE run with profiles; return the files written."""
    figures: dict[str, Callable[[], Figure]] = {"results": lambda: result_bars(results_table(finished))}
    spike = next((run for run in finished if run.config["model"] == "spike" and "profiles" in run.config), None)
    if spike is not None:
        figures["map"] = lambda: node_map(study, spike)
    files: list[Path] = []
    with tqdm(figures.items(), desc="figures", unit="figure", disable=not progress) as bar:
        for name, draw in bar:
            files += export(draw(), f"{name}-{study.name}")
    return files


def node_map(study: Study, run: Run) -> Figure:
    """Draw all nodes of a SPiKE run with profiles: by their text vectors, and by their final embeddings."""
    text, final = node_vectors(study, run)
    kinds = pd.Series(["user"] * len(study.users) + study.entities["kind"].tolist())
    panels = {
        f"Profile text ({run.config['encoder']})": umap_coordinates(text),
        "Final embeddings (SPiKE)": umap_coordinates(final),
    }
    return embedding_maps(panels, kinds)


def node_vectors(study: Study, run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Text vectors ``[U + E, d_t]`` and final embeddings ``[U + E, d]`` of a SPiKE run with profiles, users first."""
    model = load_model(run, study)
    assert isinstance(model, Spike)
    with torch.no_grad():
        final = torch.cat(model.node_embeddings()).numpy()
    vectors = study.vectors(run.config["profiles"], run.config["encoder"])
    return torch.cat([vectors.user, vectors.entity]).numpy(), final
