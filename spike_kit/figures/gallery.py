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

TOPIC_RELATIONS = ("genre", "category", "categories")
"""Relations whose tails say what an item is about; the first that a study has colours the map of its items."""

MOST_TOPICS = 7
"""Topics with a colour of their own."""


def draw_all(study: Study, finished: Sequence[Run], progress: bool = True) -> list[Path]:
    """Draw the result bars of the runs and the maps of the first SPiKE run with profiles; return the files written."""
    figures: dict[str, Callable[[], Figure]] = {"results": lambda: result_bars(results_table(finished))}
    spike = next((run for run in finished if run.config["model"] == "spike" and "profiles" in run.config), None)
    if spike is not None:
        figures |= _maps(study, spike)
    files: list[Path] = []
    with tqdm(figures.items(), desc="figures", unit="figure", disable=not progress) as bar:
        for name, draw in bar:
            files += export(draw(), f"{name}-{study.name}")
    return files


def _maps(study: Study, run: Run) -> dict[str, Callable[[], Figure]]:
    text, final = node_vectors(study, run)
    kinds = pd.Series(["user"] * len(study.users) + study.entities["kind"].tolist())
    maps: dict[str, Callable[[], Figure]] = {"map": lambda: embedding_maps(_panels(run, text, final), kinds)}
    topics = item_topics(study)
    if topics is not None:
        items = slice(len(study.users), len(study.users) + len(study.items))
        maps["items"] = lambda: embedding_maps(_panels(run, text[items], final[items]), topics)
    return maps


def node_vectors(study: Study, run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Text vectors ``[U + E, d_t]`` and final embeddings ``[U + E, d]`` of a SPiKE run with profiles, users first."""
    model = load_model(run, study)
    assert isinstance(model, Spike)
    with torch.no_grad():
        final = torch.cat(model.node_embeddings()).numpy()
    vectors = study.vectors(run.config["profiles"], run.config["encoder"])
    return torch.cat([vectors.user, vectors.entity]).numpy(), final


def item_topics(study: Study) -> pd.Series | None:
    """Topic of every item: among the most common tails of a topic relation, the rarest that the item has.

    Returns
    -------
    Series or None
        One label per item, ``other`` where it has none of the common ones; none if there is no such relation.
    """
    known = study.relations.set_index("source_id")["relation"]
    relation = next((known[name] for name in TOPIC_RELATIONS if name in known), None)
    if relation is None:
        return None
    triples = study.triples[(study.triples["relation"] == relation) & (study.triples["head"] < len(study.items))]
    common = triples["tail"].value_counts().head(MOST_TOPICS)
    ranked = triples[triples["tail"].isin(common.index)].assign(count=triples["tail"].map(common))
    rarest = ranked.sort_values(["head", "count", "tail"]).drop_duplicates("head").set_index("head")["tail"]
    labels = rarest.map(study.entities["label"])
    return labels.reindex(range(len(study.items))).fillna("other")


def _panels(run: Run, text: np.ndarray, final: np.ndarray) -> dict[str, pd.DataFrame]:
    return {
        f"Profile text ({run.config['encoder']})": umap_coordinates(text),
        "Final embeddings (SPiKE)": umap_coordinates(final),
    }
