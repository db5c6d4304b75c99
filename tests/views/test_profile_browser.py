from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest

from spike_kit.base.errors import DataError
from spike_kit.data.dataset import Dataset
from spike_kit.profiles import prompts
from spike_kit.profiles.prompts import PromptWriter, statements
from spike_kit.profiles.store import answers_path
from spike_kit.profiles.template import TEMPLATE, template_profiles
from spike_kit.views.passages import MARK
from spike_kit.views.profile_browser import ProfileBrowser
from spike_kit.views.profile_browser_panel import MOST_FACTS, profile_panel
from tests.profiles.llm_server import ScriptedServer
from tests.profiles.tiny import generation, served, tiny_study

HOSTILE = '<img src=x onerror="alert(1)"> </script> $x$'


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with served() as asked:
        yield asked


@pytest.fixture
def tiny(server: ScriptedServer) -> Dataset:
    """A data set with template profiles and those of a model, which was asked through a server."""
    data = tiny_study(reviews={(0, 0): "A quiet film about the sea."})
    data.write_profiles(TEMPLATE, template_profiles(data))
    generation(data, server.base_url).run()
    return data


def node_of(view: ProfileBrowser, label: str) -> int:
    return view.nodes.labels.index(label)


def test_statements_are_those_of_the_data(tiny: Dataset) -> None:
    writer = PromptWriter(tiny)
    for subject in ("item", "auxiliary", "user"):
        for prompt in writer.prompts(subject):
            found = statements(prompt.data)
            assert len(found) == prompt.data.count('- "') + sum(
                ': "' in line and not line.startswith("- ") for line in prompt.data.splitlines()
            )
            assert all(section and text for section, text in found)
            assert all(text in prompt.data.replace('\\"', '"') for _, text in found)


def test_profile_sets_stand_side_by_side_with_what_the_prompt_does_not_say(tiny: Dataset) -> None:
    frame = tiny.profiles("llm")
    changed = frame["text"].where(frame.index != 0, "It was made by Nobody Known in 1999.")
    tiny.write_profiles("llm", frame.assign(text=changed), tiny.provenance("llm"))
    view = ProfileBrowser(tiny)
    assert view.profile_sets == ["llm", "template"]
    table = view.table.set_index("profiles")
    assert table.loc["llm", "not in the prompt"] == ["Nobody Known", "1999"]
    assert table.loc["llm", "faithfulness"] == 0
    assert table.loc["llm", "words"] == 8
    assert table.loc["llm", "model"] == "small-model"
    assert table.loc["template", "faithfulness"] == 1
    assert table.loc["template", "profile"] == tiny.profiles()["text"][0]


def test_every_template_profile_is_held_to_all_a_prompt_could_say(data: Dataset) -> None:
    view = ProfileBrowser(data)
    for node in (0, 7, view.nodes.n_users + 3, view.nodes.n_nodes - 1):
        view.choose(node)
        assert view.table["not in the prompt"].tolist() == [[]]
        assert view.prompt(TEMPLATE).origin == "never asked"


def test_the_prompt_is_the_one_that_was_asked(
    tiny: Dataset, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = {"\n\n".join(message["content"] for message in body["messages"]) for body in server.bodies}
    view = ProfileBrowser(tiny)
    asked = [node for node in range(view.nodes.n_nodes) if PromptWriter(tiny).has_material(*view.nodes.subject(node))]
    for node in asked:
        view.choose(node)
        assert view.prompt("llm").origin == "asked"
        assert view.prompt("llm").text in sent
    monkeypatch.setattr(prompts.Prompt, "version", "another wording")
    monkeypatch.setattr(prompts.Prompt.__init__, "__defaults__", ("another wording",))
    reopened = ProfileBrowser(tiny, node=asked[-1])
    assert reopened.prompt("llm").origin == "asked"
    assert reopened.prompt("llm").text in sent
    answers_path(tiny).unlink()
    lost = ProfileBrowser(tiny, node=asked[-1])
    assert lost.prompt("llm").origin == "written again"
    assert "which is not stored here" in profile_panel(lost).panel.prompt.value or lost.profile_sets[0] != "llm"


def test_facts_that_the_profile_mentions_are_marked(data: Dataset) -> None:
    view = ProfileBrowser(data)
    facts = view.facts(TEMPLATE)
    assert facts["section"].tolist()[0] != ""
    told = facts[facts["section"] == "facts"]
    assert [bool(phrases) for phrases in told["mentions"]] == [False, True]
    own = view.nodes.labels[view.node].casefold()
    assert all(phrase != own for phrases in facts["mentions"] for phrase in phrases)
    html = view.profile_html(TEMPLATE)
    for phrase in told["mentions"].iloc[1]:
        assert f"{MARK}{phrase}</mark>" in html.casefold()


def test_a_user_is_told_by_train_items_alone(data: Dataset) -> None:
    train = data.split("train")
    for user in range(0, 60, 7):
        view = ProfileBrowser(data, node=user)
        held_out = data.interactions.query("user == @user and split != 'train'")["item"]
        labels = set(data.items["label"][held_out]) - set(data.items["label"][train.query("user == @user")["item"]])
        told = " ".join(view.facts(TEMPLATE)["statement"])
        assert not [label for label in labels if label in told]


@pytest.mark.parametrize("node", [3, 65, -1])
def test_neighbours_are_the_nearest_of_the_same_subject(data: Dataset, node: int) -> None:
    view = ProfileBrowser(data)
    node %= view.nodes.n_nodes
    rows = np.random.default_rng(0).normal(size=(view.nodes.n_nodes, 5))
    rows[node + 1 if node + 1 < len(rows) else node - 1] = 2 * rows[node]
    view = ProfileBrowser(data, spaces={"final": rows}, node=node)
    found = view.neighbours("final", 4)
    subject = view.subject[0]
    cosine = rows @ rows[node] / np.linalg.norm(rows, axis=1) / np.linalg.norm(rows[node])
    same = [other for other in range(len(rows)) if view.nodes.subject(other)[0] == subject and other != node]
    assert found["node"].tolist() == sorted(same, key=lambda other: -cosine[other])[:4]
    assert found["cosine"].tolist() == pytest.approx(sorted(cosine[same], reverse=True)[:4], abs=1e-6)


def test_errors_name_what_is_missing(data: Dataset) -> None:
    with pytest.raises(DataError, match="no profile set 'llm'"):
        ProfileBrowser(data, ["llm"])
    with pytest.raises(DataError, match="has 3 rows"):
        ProfileBrowser(data, spaces={"text": np.zeros((3, 2))})
    view = ProfileBrowser(data)
    with pytest.raises(DataError, match="no node"):
        view.choose(10**6)
    with pytest.raises(DataError, match="no space"):
        view.neighbours("text")
    with pytest.raises(DataError, match="shows no profile set"):
        view.text("llm")
    for file in (data.path / "profiles").glob("*.parquet"):
        file.unlink()
    with pytest.raises(DataError, match="spike-kit profile"):
        ProfileBrowser(data)


def test_the_panel_shows_another_node_and_another_profile_set(tiny: Dataset) -> None:
    view = ProfileBrowser(tiny)
    view = ProfileBrowser(tiny, spaces={"text": np.eye(view.nodes.n_nodes)})
    panel = profile_panel(view).panel
    label = view.nodes.labels[view.nodes.n_nodes - 1]
    panel.search.text.value = label
    assert panel.title.value.startswith(f"<h3>{label}")
    assert "<b>llm</b> by small-model" in panel.profiles.value
    assert "<b>template</b>" in panel.profiles.value
    assert "asked exactly this" in panel.prompt.value
    panel.profile_set.value = "template"
    assert "No language model was asked" in panel.prompt.value
    assert "in text space" in panel.spaces["text"].value


def test_many_statements_are_cut_and_counted(tiny: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    view = ProfileBrowser(tiny)
    facts = [("facts", f"statement {number}", number % 50 == 0) for number in range(200)]
    monkeypatch.setattr(view, "facts_html", lambda _: facts)
    html = profile_panel(view).panel.facts.value
    assert f"{MOST_FACTS} of 200 statements shown" in html
    assert html.count("<tr>") == MOST_FACTS
    assert "statement 150<" in html


def test_hostile_text_shows_as_text(data: Dataset) -> None:
    frame: pd.DataFrame = data.profiles()
    data.write_profiles(TEMPLATE, frame.assign(text=f"{HOSTILE} Director of Nothing 1999"))
    view = ProfileBrowser(data, spaces={HOSTILE: np.eye(len(data.users) + len(data.entities))})
    view.nodes.__dict__["labels"] = [HOSTILE] * view.nodes.n_nodes
    panel = profile_panel(view).panel
    panel.search.text.value = "img"
    values = [panel.title, panel.profiles, panel.facts, panel.prompt, *panel.spaces.values()]
    for html in (widget.value for widget in values):
        assert "<img" not in html
        assert "</script" not in html
    assert "&lt;img" in panel.title.value
    assert "&lt;img" in panel.profiles.value
