"""Every figure that the runs at hand allow, drawn from them and written to figures/."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from spike_kit.data.study import Study
from spike_kit.evaluation.maps import umap_coordinates
from spike_kit.evaluation.tables import results_table
from spike_kit.experiments.run import load_model
from spike_kit.figures.maps import embedding_maps
from spike_kit.figures.results import result_bars
from spike_kit.figures.style import export
from spike_kit.models.spike import Spike
from spike_kit.runs import Run


def draw_all(study: Study, finished: Sequence[Run]) -> list[Path]:
    """Draw the result bars of the runs and the map of the first SPiKE run; return the files written."""
    files = export(result_bars(results_table(finished)), f"results-{study.name}")
    spike = next((run for run in finished if run.config["model"] == "spike"), None)
    if spike is not None:
        panels, groups = node_maps(study, spike)
        files += export(embedding_maps(panels, groups), f"map-{study.name}")
    return files


def node_maps(study: Study, run: Run) -> tuple[dict[str, pd.DataFrame], pd.Series]:
    """Lay out all nodes of a SPiKE run: by their text vectors, and by their final embeddings.

    Returns
    -------
    panels, groups
        Title to coordinates (columns x and y; users first, then entities), and the kind of every node.
    """
    model = load_model(run, study)
    assert isinstance(model, Spike)
    vectors = study.vectors(run.config["profiles"], run.config["encoder"])
    with torch.no_grad():
        final = torch.cat(model.node_embeddings()).numpy()
    text = torch.cat([vectors.user, vectors.entity]).numpy()
    panels = {
        f"Profile text ({run.config['encoder']})": umap_coordinates(text),
        "Final embeddings (SPiKE)": umap_coordinates(final.astype(np.float32)),
    }
    kinds = pd.Series(["user"] * len(study.users) + study.entities["kind"].tolist(), name="kind")
    return panels, kinds
