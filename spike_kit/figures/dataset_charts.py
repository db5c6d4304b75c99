"""Figures of the data: degrees, relations, and the quality of profiles."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from spike_kit.data.dataset import SUBJECTS, Dataset
from spike_kit.figures.style import COLOURS, HATCHES, MARKERS, TWO_COLUMNS, figure_style, legend_columns, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHARES = (0.05, 0.25, 0.5, 0.75, 0.95)


def degree_frame(data: Dataset) -> pd.DataFrame:
    """Data of the left panel of `graph_statistics`: how many nodes have at least a degree.

    Returns
    -------
    DataFrame
        of (users and items by train interactions, items and other entities by triples), degree, nodes (with at least
        this degree), share of all nodes of the kind; degree 0 is left out, since the axis is logarithmic.
    """
    train, n_items = data.split("train"), len(data.items)
    ends = pd.concat([data.triples["head"], data.triples["tail"]]).to_numpy()
    triples = np.bincount(ends, minlength=len(data.entities))
    degrees = {
        "users, interactions": np.bincount(train["user"], minlength=len(data.users)),
        "items, interactions": np.bincount(train["item"], minlength=n_items),
        "items, triples": triples[:n_items],
        "other entities, triples": triples[n_items:],
    }
    parts = []
    for name, degree in degrees.items():
        values, counts = np.unique(degree, return_counts=True)
        above = counts[::-1].cumsum()[::-1]
        part = pd.DataFrame({"of": name, "degree": values, "nodes": above, "share": above / max(len(degree), 1)})
        parts.append(part[part["degree"] > 0])
    return pd.concat(parts, ignore_index=True)


def relation_frame(data: Dataset) -> pd.DataFrame:
    """Data of the right panel of `graph_statistics`: relation and triples, the most frequent first."""
    counts = data.triples["relation"].value_counts()
    labels = data.relations.set_index("relation")["label"]
    frame = pd.DataFrame({"relation": labels, "triples": counts.reindex(labels.index, fill_value=0)})
    return frame.sort_values("triples", ascending=False, kind="stable").reset_index(drop=True)


def graph_statistics(degrees: pd.DataFrame, relations: pd.DataFrame, most: int = 12) -> Figure:
    """Draw the degree distributions (share of nodes with at least a degree) and the triples of each relation.

    Parameters
    ----------
    degrees, relations
        From `degree_frame` and `relation_frame`.
    most
        Relations that are shown one by one; the others are one bar.
    """
    from matplotlib.figure import Figure

    shown = relations.head(most)
    if len(relations) > most:
        rest = {"relation": f"{len(relations) - most} others", "triples": relations["triples"][most:].sum()}
        shown = pd.concat([shown, pd.DataFrame([rest])], ignore_index=True)
    with figure_style():
        figure = Figure(figsize=(TWO_COLUMNS, 2.5))
        left, right = figure.subplots(1, 2)
        for index, (name, part) in enumerate(degrees.groupby("of", sort=False)):
            style = {"color": COLOURS[index], "marker": MARKERS[index], "markersize": 2.5, "markevery": 0.08}
            left.plot(part["degree"], part["share"], linewidth=0.9, label=str(name), **style)
        left.set_xscale("log")
        left.set_yscale("log")
        left.set_xlabel("degree")
        left.set_ylabel("share with ≥ degree")
        left.legend(loc="lower left")
        places = np.arange(len(shown))[::-1]
        right.barh(places, shown["triples"], 0.7, color=COLOURS[0])
        right.set_yticks(places, [plain(str(name)) for name in shown["relation"]])
        for place, count in zip(places, shown["triples"], strict=True):
            right.annotate(f"{count:,}", (count, place), (2, 0), textcoords="offset points", va="center", fontsize=6.5)
        right.margins(x=0.12)
        right.set_xlabel("triples")
    return figure


def quality_frame(measured: pd.DataFrame) -> pd.DataFrame:
    """Data of `profile_quality`, from `spike_kit.profiles.quality.measure_profiles`.

    Returns
    -------
    DataFrame
        profiles (name of the set), subject, n (of profiles), faithfulness (mean share of named facts that stand in
        the prompt), and quantiles of the words: ``words 5 %`` to ``words 95 %``.
    """
    groups = measured.groupby(["profiles", "subject"], sort=False)
    frame = groups.agg(n=("words", "size"), faithfulness=("faithfulness", "mean"))
    for share in _SHARES:
        frame[f"words {share:.0%}".replace("%", " %")] = groups["words"].quantile(share)
    frame = frame.reset_index()
    order = frame["subject"].map(SUBJECTS.index)
    return frame.iloc[np.lexsort([order, frame["profiles"].factorize()[0]])].reset_index(drop=True)


def profile_quality(frame: pd.DataFrame) -> Figure:
    """Draw words (box: quartiles and median, whiskers: 5 % and 95 %) and faithfulness of each profile set."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    names, subjects = frame["profiles"].unique().tolist(), frame["subject"].unique().tolist()
    width = 0.8 / len(names)
    with figure_style():
        figure = Figure(figsize=(TWO_COLUMNS * 0.8, 2.3))
        left, right = figure.subplots(1, 2)
        for row in frame.to_dict("records"):
            index = names.index(row["profiles"])
            place = subjects.index(row["subject"]) + (index - (len(names) - 1) / 2) * width
            look = {"facecolor": COLOURS[index % len(COLOURS)], "hatch": HATCHES[index % len(HATCHES)]}
            keys = ("whislo", "q1", "med", "q3", "whishi")
            names = [f"words {share:.0%}".replace("%", " %") for share in _SHARES]
            box = {key: row[name] for key, name in zip(keys, names, strict=True)}
            left.bxp(
                [box],
                positions=[place],
                widths=width * 0.8,
                showfliers=False,
                patch_artist=True,
                manage_ticks=False,
                boxprops={**look, "edgecolor": "black", "linewidth": 0.5},
                medianprops={"color": "black"},
                whiskerprops={"linewidth": 0.6},
                capprops={"linewidth": 0.6},
            )
            right.bar(place, row["faithfulness"], width * 0.9, edgecolor="white", linewidth=0.4, **look)
        for axes in (left, right):
            axes.set_xticks(range(len(subjects)), subjects)
        left.set_ylabel("words of a profile")
        left.set_ylim(bottom=0)
        right.set_ylabel("named facts found in the prompt")
        right.set_ylim(0, 1.02)
        looks = [(COLOURS[n % len(COLOURS)], HATCHES[n % len(HATCHES)], plain(name)) for n, name in enumerate(names)]
        handles = [Patch(facecolor=c, hatch=h, edgecolor="white", label=name) for c, h, name in looks]
        figure.legend(handles=handles, loc="outside upper center", ncols=legend_columns(names, 5.0))
    return figure
