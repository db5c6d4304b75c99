"""Why this recommendation: parts of the score, paths, shared passages, and what it would be without something."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from html import escape
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from spike_kit.data.study import Study
from spike_kit.errors import DataError, require
from spike_kit.evaluation.attribution import PARTS, Removal, SpikeExplainer, what_if
from spike_kit.evaluation.protocol import SEEN
from spike_kit.explore.graph_view import GraphView
from spike_kit.explore.safe import html_text, shown
from spike_kit.explore.search import Nodes, fold
from spike_kit.figures.style import COLOURS
from spike_kit.profiles.duplicates import words_of

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Split = Literal["valid", "test"]

COMMON_SHARE = 0.1
"""A word in more than this share of all profiles says nothing about one of them."""

PATTERNS = ("", "/", ".", "x", "\\", "+", "-", "|", "")
"""Second coding of the stacked bars."""

_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_SHORTEST_WORD = 4


class Explanation:
    """Top-K of one user, and where every score comes from.

    Parameters
    ----------
    study
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
    source
        Profile source whose passages are compared.

    Raises
    ------
    DataError
        If there is no such user.
    """

    def __init__(
        self,
        study: Study,
        explainer: SpikeExplainer,
        user: int,
        *,
        k: int = 10,
        split: Split = "valid",
        source: str = "template",
    ) -> None:
        self.study, self.explainer, self.k, self.split, self.source = study, explainer, k, split, source
        self.nodes = Nodes(study)
        self.choose(user)

    def choose(self, user: int) -> None:
        """Explain another user's list."""
        self.nodes.node("user", user)
        self.user = user
        own = self.study.interactions[self.study.interactions["user"] == user]
        self.train = own.loc[own["split"] == "train", "item"].tolist()
        self.seen = own.loc[own["split"].isin(SEEN[self.split]), "item"].tolist()
        self.held_out = set(own.loc[own["split"] == self.split, "item"].tolist())
        self.items = self.explainer.top(user, self.seen, self.k)

    @cached_property
    def graph(self) -> GraphView:
        """The graph with users, for paths."""
        return GraphView(self.study, self.explainer, users=True)

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
        labels = self.study.items["label"].to_numpy()
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
        """Stacked bars of `parts`, one bar per item, the best on top."""
        objects = require("plotly.graph_objects", "lab")
        parts = self.parts(by)
        names = [
            f"{rank}. {shown(self.study.items['label'].iloc[item], 40)}" for rank, item in enumerate(self.items, 1)
        ]
        chart = objects.Figure()
        for number, column in enumerate(parts):
            chart.add_bar(
                y=names,
                x=parts[column].tolist(),
                name=str(column).replace(" x ", " × "),
                orientation="h",
                marker={
                    "color": COLOURS[number % len(COLOURS)],
                    "pattern": {"shape": PATTERNS[number % len(PATTERNS)], "solidity": 0.25},
                },
                hovertemplate="%{y}<br>%{x:+.4f}<extra>%{fullData.name}</extra>",
            )
        what = {"origin": "user's side × item's side, by origin", "layer": "user's layer × item's layer"}[by]
        return chart.update_layout(
            template="plotly_white",
            barmode="relative",
            height=110 + 28 * len(names),
            margin={"l": 10, "r": 10, "t": 10, "b": 40},
            xaxis_title="part of the score",
            yaxis={"autorange": "reversed", "automargin": True},
            legend_title=what,
        )

    @property
    def figure(self) -> Figure:
        """Bars by origin."""
        return self.figure_of("origin")

    def paths(self, item: int, k: int = 5) -> pd.DataFrame:
        """Strongest paths from the user through the graph to an item (see `GraphView.paths`)."""
        return self.graph.paths(self.user, item, k)

    @cached_property
    def _profiles(self) -> dict[tuple[str, int], str]:
        table = self.study.profiles(self.source)
        return dict(zip(zip(table["subject"], table["id"], strict=True), table["text"], strict=True))

    @cached_property
    def _common(self) -> frozenset[str]:
        """Words of many profiles."""
        seen = Counter(word for text in self._profiles.values() for word in set(map(fold, words_of(text))))
        return frozenset(word for word, n in seen.items() if n > COMMON_SHARE * len(self._profiles))

    def _telling(self, text: str) -> set[str]:
        words = set(map(fold, words_of(text)))
        return {word for word in words if len(word) >= _SHORTEST_WORD and word not in self._common}

    def passages(self, item: int) -> pd.DataFrame:
        """Sentences of the user's profile and of the item's that share telling words.

        A word tells something if it has four letters and stands in at most a tenth of all profiles. Profiles are made
        from train interactions and facts only.

        Returns
        -------
        DataFrame
            words (that are shared), user (sentence), item (sentence); those that share the most first.
        """
        texts = [self._profiles.get(key, "") for key in (("user", self.user), ("item", item))]
        ours, theirs = (_SENTENCE.split(text) for text in texts)
        rows = []
        for sentence in ours:
            telling = self._telling(sentence)
            for other in theirs:
                if words := telling & self._telling(other):
                    rows.append({"words": ", ".join(sorted(words)), "user": sentence, "item": other, "n": len(words)})
        frame = pd.DataFrame(rows, columns=["words", "user", "item", "n"])
        return frame.sort_values("n", ascending=False, kind="stable").drop(columns="n").reset_index(drop=True)

    def passages_html(self, item: int, most: int = 5) -> str:
        """`passages` for an HTML widget, shared words marked; everything from outside is escaped."""
        rows = []
        for row in self.passages(item).head(most).to_dict("records"):
            words = set(row["words"].split(", "))
            rows.append(f"<tr><td>{marked(row['user'], words)}</td><td>{marked(row['item'], words)}</td></tr>")
        if not rows:
            return html_text("the two profiles share no telling word")
        head = "<thead><tr><th>profile of the user</th><th>profile of the item</th></tr></thead>"
        table = f'<table style="text-align: left">{head}<tbody>{"".join(rows)}</tbody></table>'
        return f'<div class="jp-RenderedHTMLCommon jp-RenderedHTML">{table}</div>'

    def removals(self, item: int) -> dict[str, Removal]:
        """What may be taken out to see what happens to an item: the two profiles, its triples, train interactions."""
        user_node, item_node = self.nodes.node("user", self.user), self.nodes.node("item", item)
        found = {
            "profile of the user": Removal("profile", (user_node,)),
            "profile of the item": Removal("profile", (item_node,)),
        }
        triples = self.study.triples
        for row in triples[(triples["head"] == item) | (triples["tail"] == item)].to_dict("records"):
            head, relation, tail = int(row["head"]), int(row["relation"]), int(row["tail"])
            sentence = self.graph.sentence(self.nodes.n_users + head, relation, self.nodes.n_users + tail)
            found[f"triple: {sentence}"] = Removal("triple", (head, relation, tail))
        for other in self.train:
            found[f"interaction: {self.study.items['label'].iloc[other]}"] = Removal("interaction", (self.user, other))
        return found

    def what_if(self, *removals: Removal) -> pd.DataFrame:
        """The list with and without something, recomputed by the whole model; its parameters stay as trained.

        Returns
        -------
        DataFrame
            item (name), rank, new rank, score, new score, change.
        """
        table = what_if(self.explainer, self.user, self.seen, removals, self.k)
        table["item"] = self.study.items["label"].to_numpy()[table["item"]]
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


def marked(text: str, words: set[str]) -> str:
    """HTML of a text in which some words (folded, see `fold`) are marked."""
    pieces = re.split(r"(\w+)", text)
    return "".join(f"<mark>{escape(piece)}</mark>" if fold(piece) in words else html_text(piece) for piece in pieces)
