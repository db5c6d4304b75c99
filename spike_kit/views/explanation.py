"""Why this recommendation: parts of the score, paths, what profiles share, and what it would be without something."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from spike_kit.data.dataset import Dataset, texts_by_subject
from spike_kit.evaluation.ranking import SEEN
from spike_kit.experiments.run import Run
from spike_kit.figures.charts import bar_look
from spike_kit.figures.style import TWO_COLUMNS, blank_figure, figure_style
from spike_kit.models.spike_explainer import PARTS, Removal, SpikeExplainer, what_if
from spike_kit.views.graph_view import GraphView, explainer_of
from spike_kit.views.profile_browser import Profiles, marked
from spike_kit.views.safe import html_rows, html_table, html_text, printed
from spike_kit.views.tables import Nodes, origin
from spike_kit.views.widgets import Panel, Split, write

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

By = Literal["origin", "layer"]

_NOTE = "The model computes the list again without what is chosen; its parameters stay as they were trained."
_SHOWN = 15
"""Train items that are named."""


class Explanation:
    """Top-K of one user, and where every score comes from.

    Parameters
    ----------
    data
        The data set.
    explainer
        A trained SPiKE.
    user
        The user.
    k
        Items in the list.
    split
        Whose positives are held out: ``test`` ranks all items but those of train and validation, ``valid`` all but
        those of train.
    profiles
        Profile set whose texts are compared.

    Attributes
    ----------
    by
        How scores are parted. ``origin``: whether the user's and the item's side began as id embeddings (structure) or
        as profiles; ``layer``: which layers of the user's and the item's row meet, where layer 0 is the input after the
        removal.

    Raises
    ------
    DataError
        If there is no such user.
    """

    def __init__(
        self,
        data: Dataset,
        explainer: SpikeExplainer,
        user: int,
        *,
        k: int = 10,
        split: Split = "valid",
        profiles: str = "template",
    ) -> None:
        self.data, self.explainer, self.k, self.split, self.profiles = data, explainer, k, split, profiles
        self.nodes = Nodes(data)
        self.by: By = "origin"
        self.choose(user)

    @classmethod
    def of(cls, run: Run, user: int = 0, device: str = "auto", **options: Any) -> Explanation:
        """Explain the list of a user with the model of a SPiKE run, and the profiles that it was trained with."""
        options = {"profiles": run.config.get("profiles", "template"), **options}
        return cls(run.data, explainer_of(run, device), user, **options)

    def choose(self, user: int) -> None:
        """Explain another user's list."""
        self.nodes.node("user", user)
        self.user = user
        own = self.data.interactions[self.data.interactions["user"] == user]
        self.train = own.loc[own["split"] == "train", "item"].tolist()
        self.seen = own.loc[own["split"].isin(SEEN[self.split]), "item"].tolist()
        self.held_out = set(own.loc[own["split"] == self.split, "item"].tolist())
        self.items = self.explainer.top(user, self.seen, self.k)

    @cached_property
    def graph(self) -> GraphView:
        """The graph, for paths."""
        return GraphView(self.data, self.explainer)

    def label(self, item: int) -> str:
        """Name of an item, as it came from outside."""
        return self.nodes.labels[self.nodes.n_users + item]

    def parts(self) -> pd.DataFrame:
        """Parts of the scores of the list, parted by `by`; those of an item sum to its score.

        Returns
        -------
        DataFrame
            One row per item (its id as index) in the order of the list, one column per part, such as ``structure x
            profile`` or ``0 x 1`` (the user's side first).
        """
        found = self.explainer.contributions(self.user, self.items).detach().cpu().double()
        names, values = list(PARTS), found.sum(dim=(1, 3))
        if self.by == "layer":
            names, values = [str(layer) for layer in range(found.shape[1])], found.sum(dim=(2, 4))
        columns = [f"{user} x {item}" for user in names for item in names]
        return pd.DataFrame(values.reshape(len(self.items), -1).numpy(), index=self.items, columns=columns)

    @property
    def table(self) -> pd.DataFrame:
        """The list by name.

        Returns
        -------
        DataFrame
            rank, item, score, ``in <split>`` (whether the split holds it), and the `parts`.
        """
        parts = self.parts()
        frame = pd.DataFrame({"rank": range(1, len(self.items) + 1), "item": [self.label(item) for item in self.items]})
        frame["score"] = parts.sum(axis=1).to_numpy()
        frame[f"in {self.split}"] = [item in self.held_out for item in self.items]
        return frame.join(parts.reset_index(drop=True))

    @property
    def figure(self) -> Drawing:
        """Stacked bars of `parts`, one bar per item, the best on top; a mark where they add up: the score."""
        parts = self.parts()
        places = np.arange(len(parts))
        with figure_style():
            figure = blank_figure(TWO_COLUMNS, 1.1 + 0.2 * len(parts))
            axes = figure.subplots()
            for number, (column, values) in enumerate(parts.items()):
                before = parts.iloc[:, :number].to_numpy()
                left = np.where(np.sign(before) == np.sign(values.to_numpy())[:, None], before, 0.0).sum(axis=1)
                axes.barh(places, values, 0.7, left, label=str(column).replace(" x ", " × "), **bar_look(number))
            score = {"marker": "D", "s": 16, "color": "white", "edgecolors": "black", "zorder": 3}
            axes.scatter(parts.sum(axis=1), places, label="score", **score)
            axes.axvline(0, color="black", linewidth=0.6)
            names = [printed(self.label(item), 40) for item in self.items]
            axes.set_yticks(places, [f"{rank}. {name}" for rank, name in enumerate(names, start=1)])
            axes.invert_yaxis()
            axes.set_xlabel("part of the score")
            figure.legend(loc="outside right upper", title=f"user's × item's {self.by}")
        return figure

    def export(self, folder: Path | None = None) -> list[Path]:
        """Write the figure as PDF, and `table` as CSV; returns the files."""
        return write("why", self.data, f"user-{self.user}-{self.by}", self.figure, self.table, folder)

    def paths(self, item: int, k: int = 5) -> pd.DataFrame:
        """Strongest paths from the user's train items through the triples to an item, see `GraphView.paths`."""
        return self.graph.paths(self.user, item, k)

    @cached_property
    def _profiles(self) -> Profiles:
        return Profiles(texts_by_subject(self.data.profiles(self.profiles)))

    def shared(self, item: int) -> dict[str, float]:
        """Names and telling words that the user's profile and the item's share, see `Profiles.shared`."""
        return self._profiles.shared(("user", self.user), ("item", item))

    def profiles_html(self, item: int) -> str:
        """Both profiles for an HTML widget, what they share marked; everything from outside is escaped."""
        texts, shared = self._profiles.texts, self.shared(item)
        both = [marked(texts.get(who, ""), shared) for who in (("user", self.user), ("item", item))]
        note = "" if shared else html_text("the two profiles share no name and no telling word")
        return (
            html_rows(("profile of the user", "profile of the item"), [both]) + note + origin(self.data, self.profiles)
        )

    def removals(self, item: int) -> list[Removal]:
        """What may be taken out to see what happens to an item.

        These are the profiles of the user, of the item and of what its triples link it to, these triples, and the
        user's train interactions. `what_if` takes any other `Removal` as well.
        """
        nodes, triples = self.nodes, self.data.triples
        own = triples[(triples["head"] == item) | (triples["tail"] == item)][["head", "relation", "tail"]].to_numpy()
        linked = dict.fromkeys(tail if head == item else head for head, _, tail in own.tolist())
        profiles = [self.user, nodes.n_users + item, *(nodes.n_users + other for other in linked)]
        return [
            *(Removal("profile", (node,)) for node in profiles),
            *(Removal("triple", tuple(triple)) for triple in own.tolist()),
            *(Removal("interaction", (self.user, other)) for other in self.train),
        ]

    def removal_label(self, removal: Removal) -> str:
        """What is taken out, in words (names are from outside: escape them)."""
        if removal.kind == "triple":
            head, relation, tail = removal.what
            return f"triple: {self.graph.words(relation, self.nodes.n_users + head, self.nodes.n_users + tail)[1]}"
        if removal.kind == "interaction":
            return f"interaction: {self.label(removal.what[1])}"
        return f"profile of {'the user' if removal.what[0] == self.user else self.nodes.labels[removal.what[0]]}"

    def what_if(self, *removals: Removal) -> pd.DataFrame:
        """The list with and without something, recomputed by the whole model; its parameters stay as trained.

        So this says what the trained model makes of other inputs, not what it would have learned from them.

        Returns
        -------
        DataFrame
            item (name), rank, new rank, score, new score, change; every item of the old or the new list.
        """
        table = what_if(self.explainer, self.user, self.seen, removals, self.k)
        table["item"] = [self.label(item) for item in table["item"]]
        return table[["item", "rank", "new rank", "score", "new score", "change"]]

    def influence(self, item: int, removals: Sequence[Removal] | None = None) -> pd.DataFrame:
        """Change of an item's score for everything in `removals` that is taken out alone.

        Parameters
        ----------
        item
            The item.
        removals
            Some of `removals`; default: all of them (each costs one pass of the model).

        Returns
        -------
        DataFrame
            taken out, score, change, rank, new rank; the largest fall first.
        """
        seen, rows = [other for other in self.seen if other != item], []
        for removal in self.removals(item) if removals is None else removals:
            table = what_if(self.explainer, self.user, seen, [removal], self.nodes.n_nodes).set_index("item")
            rows.append({"taken out": self.removal_label(removal)} | table.loc[item].to_dict())
        frame = pd.DataFrame(rows, columns=["taken out", "score", "change", "rank", "new rank"])
        return frame.astype({"rank": int, "new rank": int}).sort_values("change", kind="stable", ignore_index=True)

    def panel(self) -> Any:
        """The list, the parts of its scores, paths, both profiles, and what the list would be without something."""
        panel = Panel(self)

        def user(number: int) -> None:
            self.choose(number)
            refresh()

        def by(name: By) -> None:
            self.by = name
            panel["table"].value = html_table(self.table)
            panel.draw("why", lambda: self.figure)

        def refresh() -> None:
            names = ", ".join(self.label(item) for item in self.train[:_SHOWN])
            rest = f" and {len(self.train) - _SHOWN} more" if len(self.train) > _SHOWN else ""
            panel["train"].value = f"in train: {html_text(names)}{rest}"
            by(self.by)
            ranked = enumerate(self.items, start=1)
            panel.offer("item", [(f"{rank}. {self.label(one)[:60]}", one) for rank, one in ranked])
            item(panel["item"].value)

        def item(one: int | None) -> None:
            paths = pd.DataFrame() if one is None else self.paths(one)
            none = html_text("no path leads from the user to this item")
            panel["paths"].value = html_table(paths) if len(paths) else none
            panel["profiles"].value = "" if one is None else self.profiles_html(one)
            removals = [] if one is None else self.removals(one)
            panel["out"].options = [(self.removal_label(removal), removal) for removal in removals]
            panel["answer"].value = ""

        def compute(_: object) -> None:
            panel["answer"].value = html_table(self.what_if(*panel["out"].value))

        user_range = {"min": 0, "max": self.nodes.n_users - 1, "continuous_update": False}
        number = panel.add("user", "BoundedIntText", user, value=self.user, **user_range)
        table, train, paths, profiles, answer = panel.texts("table", "train", "paths", "profiles", "answer")
        parts = panel.add("by", "ToggleButtons", by, options=["origin", "layer"], description="Parts by")
        row, chart = panel.row(parts, panel.exporter(self.export)), panel.picture("why")
        one = panel.add("item", "Dropdown", item)
        out = panel.add("out", "SelectMultiple", rows=6, layout=panel.widgets.Layout(width="70%"))
        button = panel.add("what_if", "Button", compute, tooltip=_NOTE)
        alone = panel.widgets.VBox([panel.widgets.HTML(html_text(_NOTE)), out, button, answer])
        tabs = panel.tabs(paths=paths, profiles=profiles, what_if=alone)
        box = panel.box(number, train, table, row, chart, one, tabs)
        refresh()
        return box
