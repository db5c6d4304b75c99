from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest

from spike_kit import views
from spike_kit.base.errors import ConfigError, DataError
from spike_kit.data.dataset import Dataset
from spike_kit.experiments.run import Run
from spike_kit.profiles import prompts
from spike_kit.profiles.prompts import PromptWriter, statements
from spike_kit.profiles.store import answers_path
from spike_kit.profiles.template import TEMPLATE, template_profiles
from spike_kit.views.profile_browser import MARK, MOST_FACTS, ProfileBrowser, Profiles, marked
from tests.profiles.llm_server import ScriptedServer
from tests.profiles.tiny import generation, served, tiny_study
from tests.views.conftest import HOSTILE, harmless


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


def test_sources_stand_side_by_side_with_what_the_prompt_does_not_say(tiny: Dataset) -> None:
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
        found = view.prompt("llm")
        assert (found.origin, found.text in sent) == ("asked", True)
    monkeypatch.setitem(prompts.WORD_LIMIT, "auxiliary", 99)
    found = ProfileBrowser(tiny, node=asked[-1]).prompt("llm")
    assert (found.origin, found.text in sent) == ("asked", True)
    answers_path(tiny).unlink()
    lost = ProfileBrowser(tiny, node=asked[-1])
    assert lost.prompt("llm").origin == "written again"
    assert "which is not stored here" in lost.panel().parts["prompt"].value


def test_facts_that_the_profile_mentions_are_marked(data: Dataset) -> None:
    view = ProfileBrowser(data)
    facts = view.facts(TEMPLATE)
    told = facts[facts["section"] == "facts"]
    assert [bool(phrases) for phrases in told["mentions"]] == [False, True]
    own = view.nodes.labels[view.node].casefold()
    assert all(phrase != own for phrases in facts["mentions"] for phrase in phrases)
    html = view.cards_html()
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


@pytest.mark.parametrize("node", [3, 65, 123])
def test_neighbours_are_the_nearest_of_the_same_subject(data: Dataset, node: int) -> None:
    rows = np.random.default_rng(0).normal(size=(124, 5))
    rows[node - 1] = 2 * rows[node]
    view = ProfileBrowser(data, spaces={"final": rows}, node=node)
    found = view.neighbours("final", 4)
    cosine = rows @ rows[node] / np.linalg.norm(rows, axis=1) / np.linalg.norm(rows[node])
    same = [other for other in range(124) if view.nodes.subject(other)[0] == view.subject[0] and other != node]
    assert found["node"].tolist() == sorted(same, key=lambda other: -cosine[other])[:4]
    assert found["cosine"].tolist() == pytest.approx(sorted(cosine[same], reverse=True)[:4], abs=1e-6)


def test_errors_name_what_is_missing(data: Dataset) -> None:
    with pytest.raises(DataError, match="has 3 rows"):
        ProfileBrowser(data, spaces={"text": np.zeros((3, 2))})
    view = ProfileBrowser(data)
    for find, missing in ((view.neighbours, "no space"), (view.text, "no profile set named 'llm'")):
        with pytest.raises(ConfigError, match=missing):
            find("llm")
    for file in (data.path / "profiles").glob("*.parquet"):
        file.unlink()
    with pytest.raises(DataError, match="spike-kit profile"):
        ProfileBrowser(data)


def test_the_panel_shows_another_node_and_another_profile_set(tiny: Dataset) -> None:
    view = ProfileBrowser(tiny, spaces={"text": np.eye(len(tiny.users) + len(tiny.entities))})
    panel = view.panel().parts
    label = view.nodes.labels[view.nodes.n_nodes - 1]
    panel["profile-text"].value = label
    assert panel["title"].value.startswith(f"<h3>{label}")
    assert "llm by small-model, " in panel["cards"].value
    assert "template, " in panel["cards"].value
    assert "asked exactly this" in panel["prompt"].value
    panel["profiles"].value = "template"
    assert "No language model was asked" in panel["prompt"].value
    assert ">text<" in panel["neighbours"].value


def test_many_statements_are_cut_and_counted(tiny: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    view = ProfileBrowser(tiny)
    rows = [("facts", f"statement {number}", ["statement"] if number % 50 == 0 else []) for number in range(200)]
    facts = pd.DataFrame(rows, columns=["section", "statement", "mentions"])
    monkeypatch.setattr(view, "facts", lambda _: facts)
    html = view.facts_html("llm")
    assert f"{MOST_FACTS} of 200 statements shown" in html
    assert html.count("<tr>") == MOST_FACTS
    assert html.count("✓") == 4
    assert f"{MARK}statement</mark> 150<" in html


def test_hostile_text_shows_as_text(hostile: Dataset) -> None:
    view = ProfileBrowser(hostile, spaces={HOSTILE: np.eye(len(hostile.users) + len(hostile.entities))})
    harmless(view)
    assert "&lt;img" in view.cards_html()


def test_a_run_brings_its_spaces(spike_run: Run, data: Dataset) -> None:
    view = views.profiles(spike_run, device="cpu")
    assert list(view.spaces) == ["text", "final"]
    assert view.node == view.nodes.popular_item
    assert views.profiles(data).spaces == {}


def test_names_and_telling_words_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spike_kit.views.profile_browser.COMMON_WORD", 0.3)
    monkeypatch.setattr("spike_kit.views.profile_browser.COMMON_NAME", 0.6)
    user = "Likes films by Hal Ashby and melancholy trains. Prefers: genre Romance, Drama; cast Peter Barnes."
    item = "It was directed by Hal Ashby. It is a Drama. It stars Peter Mullan. A melancholy film of 1996."
    items = [item, *["A film, a drama."] * 4, *["Something else of 1996."] * 4]
    profiles = Profiles({("user", 0): user, **{("item", number): text for number, text in enumerate(items)}})
    found = profiles.shared(("user", 0), ("item", 0))
    assert list(found.items()) == [("hal ashby", 0.2), ("melancholy", 0.2), ("drama", 0.6)]
    assert profiles.shared(("user", 7), ("item", 0)) == {}


def test_marks_are_safe() -> None:
    assert marked("A <b>Noir</b> film", ["noir"]) == f"A &lt;b&gt;{MARK}Noir</mark>&lt;/b&gt; film"
    assert marked("By Hal Ashby, not Hal.", ["hal ashby"]) == f"By {MARK}Hal Ashby</mark>, not Hal."
    assert marked("Amélie <script>", ["amelie", "script"]) == f"{MARK}Amélie</mark> &lt;{MARK}script</mark>&gt;"
    assert marked("", ["x"]) == ""
