"""Why this recommendation: parts of the score, paths, shared passages, and what it would be without something."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from spike_kit.base.errors import DataError, SpikeKitError
from spike_kit.data.dataset import Dataset
from spike_kit.evaluation.ranking import SEEN
from spike_kit.experiments.run_folder import Run
from spike_kit.figures.style import COLOURS, HATCHES, TWO_COLUMNS, figure_style, picture
from spike_kit.models.spike_explainer import PARTS, Removal, SpikeExplainer, what_if
from spike_kit.views.graph_view import GraphView, explainer_of
from spike_kit.views.profile_browser import Passages, marked
from spike_kit.views.safe import html_rows, html_table, html_text, printed
from spike_kit.views.search import Nodes
from spike_kit.views.widgets import Panel, write

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

Split = Literal["valid", "test"]
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
        Profile set whose passages are compared.

    Attributes
    ----------
    by
        Whether the figure parts the scores by ``origin`` or by ``layer``, see `parts`.

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
        data = Dataset.open(run.config["dataset"])
        options = {"profiles": run.config.get("profiles", "template"), **options}
        return cls(data, explainer_of(run, data, device), user, **options)

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
        """The graph with users, for paths."""
        return GraphView(self.data, self.explainer, users=True)

    def label(self, item: int) -> str:
        """Name of an item, as it came from outside."""
        return self.nodes.labels[self.nodes.n_users + item]

    def parts(self, by: By = "origin") -> pd.DataFrame:
        """Parts of the scores of the list; those of an item sum to its score.

        Parameters
        ----------
        by
            ``origin``: whether the user's and the item's side began as id embeddings (structure) or as profiles;
            ``layer``: which layers of the user's and the item's row meet. Layer 0 is the input after the removal.

        Returns
        -------
        DataFrame
            One row per item (its id as index) in the order of the list, one column per part, such as ``structure x
            profile`` or ``0 x 1`` (the user's side first).
        """
        found = self.explainer.contributions(self.user, self.items).detach().cpu().double()
        if by == "origin":
            values, names = found.sum(dim=(1, 3)), list(PARTS)
        else:
            values, names = found.sum(dim=(2, 4)), [str(layer) for layer in range(found.shape[1])]
        columns = [f"{user} x {item}" for user in names for item in names]
        return pd.DataFrame(values.reshape(len(self.items), -1).numpy(), index=self.items, columns=columns)

    @property
    def table(self) -> pd.DataFrame:
        """The list by name.

        Returns
        -------
        DataFrame
            rank, item, score, ``in <split>`` (whether the split holds it), and the parts by origin.
        """
        return self._listed("origin")

    def _listed(self, by: By) -> pd.DataFrame:
        parts = self.parts(by)
        frame = pd.DataFrame({"rank": range(1, len(self.items) + 1), "item": [self.label(item) for item in self.items]})
        frame["score"] = parts.sum(axis=1).to_numpy()
        frame[f"in {self.split}"] = [item in self.held_out for item in self.items]
        return frame.join(parts.reset_index(drop=True))

    @property
    def figure(self) -> Drawing:
        """Stacked bars of `parts`, one bar per item, the best on top; a mark where they add up: the score."""
        from matplotlib.figure import Figure

        parts = self.parts(self.by)
        names = [f"{rank}. {printed(self.label(item), 40)}" for rank, item in enumerate(self.items, 1)]
        title = {"origin": "user's × item's origin", "layer": "user's × item's layer"}[self.by]
        with figure_style():
            figure = Figure(figsize=(TWO_COLUMNS, 1.1 + 0.2 * len(names)))
            axes = figure.subplots()
            places = np.arange(len(names))
            for number, (column, values) in enumerate(parts.items()):
                before = parts.iloc[:, :number].to_numpy()
                left = np.where(np.sign(before) == np.sign(values.to_numpy())[:, None], before, 0.0).sum(axis=1)
                look = {"color": COLOURS[number % len(COLOURS)], "edgecolor": "white", "linewidth": 0.4}
                look["hatch"] = HATCHES[(number + number // len(COLOURS)) % len(HATCHES)]
                axes.barh(places, values, 0.7, left, label=str(column).replace(" x ", " × "), **look)
            score = {"marker": "D", "s": 16, "color": "white", "edgecolors": "black", "zorder": 3}
            axes.scatter(parts.sum(axis=1), places, label="score", **score)
            axes.axvline(0, color="black", linewidth=0.6)
            axes.set_yticks(places, names)
            axes.invert_yaxis()
            axes.set_xlabel("part of the score")
            figure.legend(loc="outside right upper", title=title)
        return figure

    def export(self, folder: Path | None = None) -> list[Path]:
        """Write the figure as PDF, and the list with the parts that are drawn as CSV; returns the files."""
        state = f"user-{self.user}-{self.by}"
        return write("why", self.data, state, self.figure, self._listed(self.by), folder)

    def paths(self, item: int, k: int = 5) -> pd.DataFrame:
        """Strongest paths from the user's train items through the triples to an item, see `GraphView.paths`."""
        return self.graph.paths(self.user, item, k)

    @cached_property
    def _passages(self) -> Passages:
        return Passages(self.nodes.texts(self.profiles))

    def passages(self, item: int) -> pd.DataFrame:
        """Sentences and clauses of the user's profile and of the item's that share names or telling words.

        Returns
        -------
        DataFrame
            shared (the phrases, the rarest first), telling, user and item (the passages); see `Passages.shared`.
        """
        found = self._passages.shared(("user", self.user), ("item", item))
        return found.rename(columns={"one": "user", "other": "item"})

    def passages_html(self, item: int, most: int = 5) -> str:
        """`passages` for an HTML widget, what is shared marked; everything from outside is escaped."""
        rows = [
            (marked(row["user"], row["shared"]), marked(row["item"], row["shared"]))
            for row in self.passages(item).head(most).to_dict("records")
        ]
        if not rows:
            return html_text("the two profiles share no name and no telling word")
        return html_rows(("profile of the user", "profile of the item"), rows)

    def removals(self, item: int) -> dict[str, Removal]:
        """What may be taken out to see what happens to an item, by a name (from outside: escape it).

        These are the profiles of the user, of the item and of what its triples link it to, these triples, and the
        user's train interactions. `what_if` takes any other `Removal` as well.
        """
        n_users, labels = self.nodes.n_users, self.nodes.labels
        found = [
            ("profile of the user", Removal("profile", (self.user,))),
            ("profile of the item", Removal("profile", (n_users + item,))),
        ]
        triples = self.data.triples
        own = triples[(triples["head"] == item) | (triples["tail"] == item)]
        linked = []
        for head, relation, tail in own[["head", "relation", "tail"]].to_numpy().tolist():
            sentence = self.graph.sentence(n_users + head, relation, n_users + tail)
            linked.append(tail if head == item else head)
            found.append((f"triple: {sentence}", Removal("triple", (head, relation, tail))))
        for other in dict.fromkeys(linked):
            found.append((f"profile of {labels[n_users + other]}", Removal("profile", (n_users + other,))))
        for other in self.train:
            found.append((f"interaction: {labels[n_users + other]}", Removal("interaction", (self.user, other))))
        return _by_name(found)

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

    def influence(self, item: int, removals: Sequence[str] | None = None) -> pd.DataFrame:
        """Change of an item's score for everything in `removals` that is taken out alone.

        Parameters
        ----------
        item
            The item.
        removals
            Keys of `removals`; default: all of them (each costs one pass of the model).

        Returns
        -------
        DataFrame
            taken out, score, change, rank, new rank; the largest fall first.
        """
        known, seen = self.removals(item), [other for other in self.seen if other != item]
        rows = []
        for name in known if removals is None else removals:
            if name not in known:
                raise DataError(f"nothing named {name!r} can be taken out")
            table = what_if(self.explainer, self.user, seen, [known[name]], self.nodes.n_items)
            rows.append({"taken out": name} | table.set_index("item").loc[item].to_dict())
        frame = pd.DataFrame(rows, columns=["taken out", "score", "change", "rank", "new rank"])
        ranks = frame.astype({"rank": int, "new rank": int})
        return ranks.sort_values("change", kind="stable").reset_index(drop=True)

    def panel(self) -> Any:
        """The list, the parts of its scores, paths, shared passages, and what the list would be without something."""
        panel = Panel(self)

        def user(number: int) -> None:
            self.choose(number)
            refresh()

        def by(name: By) -> None:
            self.by = name
            panel["why"].value = picture(self.figure)

        def refresh() -> None:
            panel["table"].value = html_table(self.table)
            names = ", ".join(self.label(item) for item in self.train[:_SHOWN])
            rest = f" and {len(self.train) - _SHOWN} more" if len(self.train) > _SHOWN else ""
            panel["train"].value = f"in train: {html_text(names)}{rest}"
            panel["why"].value = picture(self.figure)
            panel.offer("item", [(f"{rank}. {self.label(one)[:60]}", one) for rank, one in enumerate(self.items, 1)])
            item(panel["item"].value)

        def item(one: int | None) -> None:
            paths = pd.DataFrame() if one is None else self.paths(one)
            none = html_text("no path leads from the user to this item")
            panel["paths"].value = html_table(paths) if len(paths) else none
            panel["passages"].value = "" if one is None else self.passages_html(one)
            panel["out"].options = [] if one is None else list(self.removals(one))
            panel["answer"].value = ""

        def compute(_: object) -> None:
            panel["answer"].value = self._answer(panel["item"].value, panel["out"].value)

        last = self.nodes.n_users - 1
        chosen = {"value": self.user, "min": 0, "max": last, "continuous_update": False}
        number = panel.add("user", "BoundedIntText", user, description="user", **chosen)
        parts = panel.add("by", "ToggleButtons", by, options=["origin", "layer"], description="parts by", value=self.by)
        wide = panel.widgets.Layout(width="70%")
        out = panel.add("out", "SelectMultiple", description="take out", rows=6, layout=wide)
        button = panel.add("whatif", "Button", compute, description="What if", tooltip=_NOTE)
        table, train, paths, passages, answer = panel.texts("table", "train", "paths", "passages", "answer")
        chart = panel.add("why", "Image", format="png")
        note = panel.widgets.HTML(html_text(_NOTE))
        tabs = panel.tabs(paths=paths, passages=passages, what_if=panel.widgets.VBox([note, out, button, answer]))
        row = panel.row(parts, panel.exporter(self))
        box = panel.box(number, train, table, row, chart, panel.add("item", "Dropdown", item, description="item"), tabs)
        refresh()
        return box

    def _answer(self, item: int, chosen: Sequence[str]) -> str:
        """What the list would be without some `removals` of an item, for an HTML widget."""
        if not chosen:
            return html_text("choose what is taken out first")
        known = self.removals(item)
        try:
            return html_table(self.what_if(*(known[name] for name in chosen)))
        except SpikeKitError as error:
            return html_text(error)


def _by_name(found: Sequence[tuple[str, Removal]]) -> dict[str, Removal]:
    """Removals by name; names that occur again get a number."""
    named: dict[str, Removal] = {}
    for name, removal in found:
        number, free = 2, name
        while free in named:
            number, free = number + 1, f"{name} ({number})"
        named[free] = removal
    return named
