"""The profile browser as widgets: search, profiles side by side, the prompt, the facts, the neighbours."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from spike_kit.base.errors import require
from spike_kit.views.profile_browser import Origin, ProfileBrowser
from spike_kit.views.safe import html_rows, html_table, html_text
from spike_kit.views.widgets import SearchBox

_SAID: dict[Origin, str] = {
    "asked": "The model was asked exactly this (its hash is that of the stored question).",
    "written again": "The model was asked something else, which is not stored here: the study or the kit's wording "
    "has changed since. This is the prompt as it would be written today.",
    "never asked": "No language model was asked for this profile set. This is what one would be asked.",
}
MOST_FACTS = 60
"""Statements that are shown; those that the profile mentions first."""

_CARD = "flex: 1 1 18em; border-left: 3px solid var(--jp-border-color1, #888888); padding: 0 0.8em"
_PROMPT = "white-space: pre-wrap; line-height: 1.35; max-height: 28em; overflow-y: auto"


class ProfilePanel:
    """A `ProfileBrowser` as widgets.

    Attributes
    ----------
    widget
        What a notebook shows.
    """

    def __init__(self, view: ProfileBrowser) -> None:
        widgets = require("ipywidgets", "lab")
        self.view = view
        self.search = SearchBox(view.nodes, "search", self._show)
        self.profile_set = widgets.Dropdown(
            options=view.profile_sets, description="profiles", tooltip="whose prompt and facts are shown"
        )
        names = ("title", "profiles", "facts", "prompt")
        self.title, self.profiles, self.facts, self.prompt = (widgets.HTML() for _ in names)
        self.spaces = {name: widgets.HTML() for name in view.spaces}
        for widget, name in ((self.profiles, "profile"), (self.facts, "facts"), (self.prompt, "prompt")):
            widget.add_class(f"spike-{name}")
        self.search.widget.add_class("spike-profile-search")
        self.profile_set.observe(lambda _: self._of_set(), names="value")
        line = widgets.Layout(flex_flow="row wrap")
        near = widgets.HBox(list(self.spaces.values()), layout=line)
        near.add_class("spike-neighbours")
        tabs = widgets.Tab([self.facts, self.prompt, near])
        tabs.titles = ("facts that were used", "prompt", "nearest neighbours")
        self.widget = widgets.VBox([self.search.widget, self.title, self.profiles, self.profile_set, tabs])
        self.widget.view, self.widget.panel = view, self
        self._show(view.node)

    def _show(self, node: int) -> None:
        view = self.view
        view.choose(node)
        label, kind = view.nodes.labels[node], view.nodes.kinds.iloc[node]
        self.title.value = f"<h3>{html_text(label)} ({html_text(kind)})</h3>"
        cards = [self._card(row) for row in view.table.to_dict("records")]
        self.profiles.value = f'<div style="display: flex; flex-wrap: wrap; gap: 1em">{"".join(cards)}</div>'
        for name, widget in self.spaces.items():
            table = html_table(view.neighbours(name)[["label", "kind", "cosine"]], digits=3)
            widget.value = f"<b>in {html_text(name)} space</b>{table}"
        self._of_set()

    def _card(self, row: Mapping[Hashable, Any]) -> str:
        """One profile: where it comes from, the text with what the prompt tells marked, and what it does not tell."""
        model = "" if row["model"] in ("", row["profiles"]) else f" by {row['model']}"
        head = f"<b>{html_text(row['profiles'])}</b>{html_text(model)}, {row['words']} words"
        text = self.view.profile_html(row["profiles"]) or "<i>has nothing to say</i>"
        invented = row["not in the prompt"]
        foot = f"<br><small>not in the prompt: {html_text(', '.join(invented))}</small>" if invented else ""
        return f'<div style="{_CARD}">{head}<br><span style="white-space: pre-wrap">{text}</span>{foot}</div>'

    def _of_set(self) -> None:
        name = self.profile_set.value
        rows, before = [], ""
        facts = self.view.facts_html(name)
        others = max(MOST_FACTS - sum(mentioned for _, _, mentioned in facts), 0)
        shown = [fact for fact in facts if fact[2]][:MOST_FACTS]
        shown += [fact for fact in facts if not fact[2]][:others]
        for section, statement, mentioned in sorted(shown, key=facts.index):
            title = "" if section == before else f"<b>{html_text(section)}</b>"
            sign = "✓" if mentioned else ""
            rows.append((title, sign, statement))
            before = section
        number = "" if len(shown) == len(facts) else f"; {len(shown)} of {len(facts)} statements shown"
        note = html_text(f"marked: what the profile mentions by name{number}")
        self.facts.value = note + html_rows((), rows)
        asked = self.view.prompt(name)
        self.prompt.value = (
            f"<i>{html_text(_SAID[asked.origin])}</i><div style='{_PROMPT}'>{html_text(asked.text)}</div>"
        )


def profile_panel(view: ProfileBrowser) -> Any:
    """Show a `ProfileBrowser` as widgets: search, every profile set side by side, facts, prompt and nearest neighbours.

    Returns
    -------
    VBox
        The widgets; its attributes are ``view`` and ``panel`` (`ProfilePanel`).
    """
    return ProfilePanel(view).widget
