"""A new item: to whom it would go, through which entities and words, and what one's own item would do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import pandas as pd

from spike_kit.base.errors import DataError, SpikeKitError
from spike_kit.data.dataset import parts_of, texts_by_subject
from spike_kit.evaluation.ranking import new_items
from spike_kit.experiments.run import Run
from spike_kit.experiments.unseen import Fact, ranked_users, with_new_item
from spike_kit.models.spike_explainer import Removal, SpikeExplainer
from spike_kit.views.graph_view import explainer_of
from spike_kit.views.profile_browser import Profiles, marked
from spike_kit.views.safe import html_rows, html_table, html_text
from spike_kit.views.widgets import Panel, Split

OWN = "your item"
"""Name of an item that the reader makes up."""

_NOTE = "The model computes all rows again without what is chosen; its parameters stay as they were trained."


class NewItem:
    """An item without train interactions and the users that a SPiKE run would offer it to.

    Parameters
    ----------
    run
        A finished run of SPiKE with its weights.
    item
        The item to begin with; default: the first new item of the split, where there is one.
    split
        Split whose new items are offered: ``valid``, or ``test`` once everything is decided.
    k
        Users in the list.
    device
        Where to score.

    Attributes
    ----------
    items
        New items of the split.
    item
        The item that is shown; an item of one's own comes after all others.
    explainer
        The model, on the graph that holds the item.

    Raises
    ------
    DataError
        If the run is no SPiKE, or the item has train interactions.
    """

    def __init__(
        self, run: Run, item: int | None = None, *, split: Split = "valid", k: int = 10, device: str = "auto"
    ) -> None:
        self.run, self.data, self.split, self.k = run, run.data, split, k
        self._trained = explainer_of(run, device)
        self.items: list[int] = new_items(self.data.tables, split).tolist()
        self._own_texts: Mapping[str, str] = {}
        self.explainer, self.item = self._trained, -1
        if item is not None or self.items:
            self.choose(self.items[0] if item is None else item)

    @property
    def is_own(self) -> bool:
        """Whether the item is one that the reader made up."""
        return self.item == len(self.data.items)

    @property
    def label(self) -> str:
        """Name of the item."""
        return OWN if self.is_own else str(self.data.items["label"][self.item])

    @property
    def parts(self) -> list[str]:
        """Profile sets of the run; none without text."""
        return parts_of(self.run.config["profiles"]) if "profiles" in self.run.config else []

    def choose(self, item: int) -> None:
        """Show another item of the data set."""
        if not 0 <= item < len(self.data.items):
            raise DataError(f"there is no item {item}", f"items are 0 to {len(self.data.items) - 1}")
        if (self.data.split("train")["item"] == item).any():
            raise DataError(f"item {item} has train interactions, so it is not new", f"new are {self.items[:8]}")
        self.explainer, self.item = self._trained, item

    def write(self, texts: Mapping[str, str], triples: Sequence[Fact] = ()) -> None:
        """Show an item that does not exist, by its texts and triples (`spike_kit.experiments.unseen.score_new`)."""
        model = with_new_item(self.run, texts, triples, str(self._trained.model.device))
        self.explainer, self.item, self._own_texts = SpikeExplainer(model), len(self.data.items), dict(texts)

    def ranked(self, explainer: SpikeExplainer | None = None) -> pd.DataFrame:
        """All users with train interactions, best first: rank, user, label, score; of another explainer if given."""
        here = explainer or self.explainer
        users, items = here.model.comparable(*here.model.users_and_items(here.final))
        return ranked_users(self.data, users @ items[self.item])

    def users(self) -> pd.DataFrame:
        """Best `k` users, and whether the split says that they met the item."""
        interactions = self.data.split(self.split)
        met = set(interactions.loc[interactions["item"] == self.item, "user"])
        table = self.ranked().head(self.k)
        return table if self.is_own else table.assign(**{f"in {self.split}": table["user"].isin(met)})

    def text(self, part: str) -> str:
        """Profile of the item in a profile set, empty where it has none."""
        return self._own_texts.get(part, "") if self.is_own else self._profiles[part].texts.get(("item", self.item), "")

    @cached_property
    def _profiles(self) -> dict[str, Profiles]:
        return {part: Profiles(texts_by_subject(self.data.profiles(part))) for part in self.parts}

    def words(self, user: int) -> dict[str, float]:
        """Names and telling words that the item's profiles share with those of the user and of the user's items.

        The rarest come first, each with the share of profiles that hold it (`Profiles.shared`).
        """
        train, found = self.data.split("train"), {}
        own = train.loc[train["user"] == user, "item"].tolist()
        for part, profiles in self._profiles.items():
            texts = [profiles.texts.get(who, "") for who in (("user", user), *(("item", other) for other in own))]
            there = profiles.added({("item", self.item): self.text(part), ("all of", user): " ".join(texts)})
            found |= there.shared(("all of", user), ("item", self.item))
        return dict(sorted(found.items(), key=lambda pair: (pair[1], pair[0])))

    def triples(self) -> list[tuple[int, int, int]]:
        """Triples of the item in the graph of the model."""
        graph, forward = self.explainer.graph, self.explainer.graph.relation < self.explainer.graph.n_relations
        own = forward & ((graph.head == self.item) | (graph.tail == self.item))
        return list(zip(*(x[own].tolist() for x in (graph.head, graph.relation, graph.tail)), strict=True))

    def entity_label(self, entity: int) -> str:
        """Name of an entity of the model's graph, as it came from outside."""
        if entity == self.item:
            return self.label
        shift = int(self.explainer.graph.n_items > len(self.data.items) and entity > self.item)
        return str(self.data.entities["label"][entity - shift])

    def removals(self) -> dict[str, Removal]:
        """What may be taken out, by name: the item's profile, its triples, and the profiles of what they link it to."""
        n_users, triples = self.explainer.graph.n_users, self.triples()
        linked = dict.fromkeys(tail if head == self.item else head for head, _, tail in triples)
        profiles = [self.item, *linked] if self.parts else []
        found = [
            (f"profile of {self.entity_label(entity)}", Removal("profile", (n_users + entity,))) for entity in profiles
        ]
        for head, relation, tail in triples:
            other = self.entity_label(tail if head == self.item else head)
            words = f"triple: {self.data.relations['label'][relation]}: {other}"
            found.append((words, Removal("triple", (head, relation, tail))))
        named: dict[str, Removal] = {}
        for name, removal in found:
            named[f"{name} ({removal.what[-1]})" if name in named else name] = removal
        return named

    def what_if(self, *names: str) -> pd.DataFrame:
        """The best `k` users, before or after, with and without some of `removals`; all rows are computed again.

        Returns
        -------
        DataFrame
            label, rank, new rank, score, new score, change.
        """
        chosen = self.removals()
        before = self.ranked().set_index("user")
        after = self.ranked(self.explainer.without(*(chosen[name] for name in names))).set_index("user")
        table = before.join(after[["rank", "score"]].add_prefix("new "))
        table["change"] = table["new score"] - table["score"]
        shown = table[(table["rank"] <= self.k) | (table["new rank"] <= self.k)]
        return shown[["label", "rank", "new rank", "score", "new score", "change"]].reset_index(drop=True)

    def influence(self) -> pd.DataFrame:
        """What each of `removals` alone does to the best `k` users; each costs a pass of the model.

        Returns
        -------
        DataFrame
            taken out; change: mean change of these users' scores; ``still among the best``: how many of them are; the
            largest fall first.
        """
        before, rows = self.ranked().head(self.k).set_index("user"), []
        for name, removal in self.removals().items():
            after = self.ranked(self.explainer.without(removal)).set_index("user").loc[before.index]
            change = float((after["score"] - before["score"]).mean())
            row = {"taken out": name, "change": change, "still among the best": int((after["rank"] <= self.k).sum())}
            rows.append(row)
        frame = pd.DataFrame(rows, columns=["taken out", "change", "still among the best"])
        return frame.sort_values("change", kind="stable", ignore_index=True)

    def profiles_html(self, user: int) -> str:
        """The item's profiles for an HTML widget, what they share with the user's and her items' marked."""
        shared = self.words(user)
        cells = [marked(self.text(part), shared) or html_text("no text") for part in self.parts]
        said = ", ".join(shared) or "no name and no telling word"
        return html_rows(self.parts, [cells]) + html_text(f"shared with the user: {said}") if cells else ""

    def panel(self) -> Any:
        """Choose an item or write one; its users, profiles, what it is linked to, and what would be without it."""
        panel = Panel(self)

        def chosen(item: int | None) -> None:
            if item is not None:
                self.choose(item)
                refresh()

        def refresh() -> None:
            table = self.users() if self.item >= 0 else pd.DataFrame()
            panel["users"].value = html_text(self.label if self.item >= 0 else "") + html_table(table)
            names = list(self.removals()) if self.item >= 0 else []
            panel["out"].options, panel["answer"].value, panel["influence"].value = names, "", ""
            panel.offer("user", [(f"{row.rank}. {row.label}", row.user) for row in table.itertuples()])
            user(panel["user"].value)

        def user(one: int | None) -> None:
            panel["profiles"].value = "" if one is None else self.profiles_html(one)

        def written(_: object) -> None:
            texts = {part: panel[f"text-{part}"].value for part in self.parts}
            lines = [line.partition(":") for line in panel["facts"].value.splitlines() if line.strip()]
            try:
                self.write(texts, [(relation.strip(), entity.strip()) for relation, _, entity in lines])
            except SpikeKitError as error:
                panel["error"].value = html_text(error)
                return
            panel["error"].value = ""
            refresh()

        def compute(_: object) -> None:
            panel["answer"].value = html_table(self.what_if(*panel["out"].value))

        def each(_: object) -> None:
            panel["influence"].value = html_table(self.influence())

        offered = sorted((str(self.data.items["label"][item])[:60], item) for item in self.items)
        item = panel.add(
            "item", "Dropdown", chosen, options=offered, value=self.item if self.item in self.items else None
        )
        users, profiles, answer, influence, error = panel.texts("users", "profiles", "answer", "influence", "error")
        who = panel.add("user", "Dropdown", user)
        wide = panel.widgets.Layout(width="95%", height="6em")
        box = panel.widgets.VBox
        areas = [panel.add(f"text-{part}", "Textarea", description=part, layout=wide) for part in self.parts]
        facts = panel.add("facts", "Textarea", placeholder="relation: entity, one on a line", layout=wide)
        own = box([*areas, facts, panel.add("score", "Button", written), error])
        out = panel.add("out", "SelectMultiple", rows=6, layout=panel.widgets.Layout(width="70%"))
        without = box([panel.widgets.HTML(html_text(_NOTE)), out, panel.add("what_if", "Button", compute), answer])
        through = box([panel.add("each_alone", "Button", each), influence])
        tabs = panel.tabs(profiles=box([who, profiles]), through_what=through, what_if=without, your_own=own)
        whole = panel.box(item, users, tabs)
        refresh()
        return whole
