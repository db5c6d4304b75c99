"""Figures of the data: degrees, relations, and the quality of profiles."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from spike_kit.figures.style import COLOURS, HATCHES, MARKERS, TWO_COLUMNS, figure_style, legend_columns, plain
from spike_kit.results.frames import WORD_SHARES

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
            box = {key: row[name] for key, name in zip(keys, WORD_SHARES, strict=True)}
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
