"""Why this recommendation: parts of the score, paths, shared passages, and what it would be without something."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from spike_kit.base.errors import DataError, require
from spike_kit.data.dataset import Dataset
from spike_kit.evaluation.ranking import SEEN
from spike_kit.figures.style import COLOURS
from spike_kit.models.spike_explainer import PARTS, Removal, SpikeExplainer, what_if
from spike_kit.views.charts import PATTERNS
from spike_kit.views.graph_view import GraphView
from spike_kit.views.passages import Passages, marked
from spike_kit.views.safe import html_rows, html_text, shown
from spike_kit.views.search import Nodes

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Split = Literal["valid", "test"]


class Explanation:
    """Top-K of one user, and where every score comes from.

    Parameters
    ----------
    data
        The study.
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
        self.choose(user)

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

    def parts(self, by: Literal["origin", "layer"] = "origin") -> pd.DataFrame:
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
        parts = self.parts()
        labels = self.data.items["label"].to_numpy()
        frame = pd.DataFrame(
            {
                "rank": range(1, len(self.items) + 1),
                "item": labels[self.items],
                "score": parts.sum(axis=1).to_numpy(),
                f"in {self.split}": [item in self.held_out for item in self.items],
            }
        )
        return frame.join(parts.reset_index(drop=True))

    def figure_of(self, by: Literal["origin", "layer"]) -> Figure:
        """Stacked bars of `parts`, one bar per item, the best on top; a mark where they add up: the score."""
        objects = require("plotly.graph_objects", "lab")
        parts = self.parts(by)
        names = [f"{rank}. {shown(self.data.items['label'].iloc[item], 40)}" for rank, item in enumerate(self.items, 1)]
        chart = objects.Figure()
        for number, column in enumerate(parts):
            chart.add_bar(
                y=names,
                x=parts[column].tolist(),
                name=str(column).replace(" x ", " × "),
                orientation="h",
                marker={
                    "color": COLOURS[number % len(COLOURS)],
                    "pattern": {"shape": PATTERNS[(number + number // len(COLOURS)) % len(PATTERNS)], "solidity": 0.25},
                },
                hovertemplate="%{y}<br>%{x:+.4f}<extra>%{fullData.name}</extra>",
            )
        marker = {"symbol": "diamond", "size": 9, "color": "white", "line": {"color": "black", "width": 1.5}}
        scores = parts.sum(axis=1).tolist()
        hover = "%{y}<br>%{x:.4f}<extra>score</extra>"
        chart.add_scatter(x=scores, y=names, mode="markers", name="score", marker=marker, hovertemplate=hover)
        return chart.update_layout(
            template="plotly_white",
            barmode="relative",
            height=140 + 28 * len(names),
            margin={"l": 10, "r": 10, "t": 40, "b": 40},
            xaxis_title="part of the score",
            yaxis={"autorange": "reversed", "automargin": True},
            legend_title={"origin": "user's × item's origin", "layer": "user's × item's layer"}[by],
        )

    @property
    def figure(self) -> Figure:
        """Bars by origin."""
        return self.figure_of("origin")

    def paths(self, item: int, k: int = 5) -> pd.DataFrame:
        """Strongest paths from the user's train items through the triples to an item, see `GraphView.paths`."""
        return self.graph.paths(self.user, item, k)

    @cached_property
    def _passages(self) -> Passages:
        return Passages(self.data, self.profiles)

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
        table["item"] = self.data.items["label"].to_numpy()[table["item"]]
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
        known = self.removals(item)
        rows = []
        before = self._rank(self.explainer, item)
        for name in known if removals is None else removals:
            if name not in known:
                raise DataError(f"nothing named {name!r} can be taken out")
            score, rank = self._rank(self.explainer.without(known[name]), item)
            rows.append((name, score, score - before[0], before[1], rank))
        frame = pd.DataFrame(rows, columns=["taken out", "score", "change", "rank", "new rank"])
        return frame.sort_values("change", kind="stable").reset_index(drop=True)

    def _rank(self, explainer: SpikeExplainer, item: int) -> tuple[float, int]:
        scores = explainer.scores(self.user).detach().cpu().numpy().copy()
        scores[[other for other in self.seen if other != item]] = -np.inf
        return float(scores[item]), int((scores > scores[item]).sum()) + 1


def _by_name(found: Sequence[tuple[str, Removal]]) -> dict[str, Removal]:
    """Removals by name; names that occur again get a number."""
    named: dict[str, Removal] = {}
    for name, removal in found:
        number, free = 2, name
        while free in named:
            number, free = number + 1, f"{name} ({number})"
        named[free] = removal
    return named
