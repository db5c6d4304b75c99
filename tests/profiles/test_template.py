import dataclasses

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spike_kit.data.dataset import Dataset
from spike_kit.data.text import clean
from spike_kit.profiles import template
from tests.world import World, make_world


def test_profiles_say_what_the_graph_says(world: World) -> None:
    texts = template.template_texts(world.tables)
    assert texts["item"][0] == "Comedy film 0. It is a comedy film. It was directed by Director 0."
    opening, films = texts["auxiliary"][4].split(" Each of ")
    assert opening == "Director 0 (director)."
    assert films.endswith(" was directed by Director 0. Common to them: genre comedy.")
    assert all(f"Comedy film {number}" in films for number in range(3))
    assert "Prefers: genre comedy" in texts["user"][0]
    assert texts["user"][0].startswith("Liked Comedy film")


def test_profiles_come_from_train_alone_in_chunks_of_any_size(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    train = world.tables.interactions[world.tables.interactions["split"] == "train"]
    whole = template.template_texts(world.tables)
    monkeypatch.setattr(template, "CHUNK_OWNERS", 7)
    assert template.template_texts(dataclasses.replace(world.tables, interactions=train)) == whole
    others = dataclasses.replace(world.tables, interactions=train[train["user"] != 0].reset_index(drop=True))
    assert template.template_texts(others)["user"][0] == template.UNKNOWN_TASTE


@given(st.text(min_size=1, max_size=200))
@settings(max_examples=20)
def test_hostile_labels_cannot_break_a_profile(label: str) -> None:
    tables = make_world().tables
    entities, items = tables.entities.copy(), tables.items.copy()
    entities.loc[0, "label"] = items.loc[0, "label"] = label
    for subject, texts in template.template_texts(dataclasses.replace(tables, entities=entities, items=items)).items():
        assert all(text.strip() for text in texts)
        assert all(len(text.split()) <= template.WORD_LIMIT[subject] for text in texts)
        assert all("\n" not in text and "\x00" not in text for text in texts)


def test_text_is_cleaned_and_put_together() -> None:
    assert clean("a\x00b\u202ec\n\nd  e\u0301") == "a bc d \u00e9"
    assert clean("one two three", 2) == "one two..."
    assert template.listed(["A", "B"], 9) == "A, B and 7 more"
    assert template.listed(["A"]) == "A"
    assert template.sentence("Dr. No..") == "Dr. No."
    assert template.paragraph(["a b", "c d", "e"], 3) == "a b e"
    assert template.fill("{head} stars {tail}.", "{tail} {0}", "{head}") == "{tail} {0} stars {head}."
    assert template.fill("{head} is a {tail} film.", "Alien", "action") == "Alien is an action film."
    assert template.fill("{head} is an {tail} film.", "Alien", "drama") == "Alien is a drama film."


def test_ensure_profiles_writes_once_and_again_after_a_new_wording(
    data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = template.ensure_profiles(data)
    assert template.ensure_profiles(data)["created"].equals(before["created"])
    monkeypatch.setattr("spike_kit.profiles.template.VERSION", "template next")
    after = template.ensure_profiles(data)
    assert (after["prompt_sha256"] != before["prompt_sha256"]).all()


def test_typical_facts_equal_a_plain_count() -> None:
    rng = np.random.default_rng(0)
    links = pd.DataFrame({"owner": rng.integers(0, 20, 60), "other": rng.integers(20, 26, 60)}).drop_duplicates()
    links = pd.concat([links, links[links["other"] == 20].assign(other=26), links.iloc[:1].assign(other=27)])
    links = links.assign(relation=0, outward=True)
    members = pd.DataFrame({"owner": rng.integers(0, 4, 40), "item": rng.integers(0, 20, 40)}).drop_duplicates()
    members = pd.concat([members, pd.DataFrame({"owner": 4, "item": links["owner"].unique()[:3]})])
    weight = rng.integers(1, 9, 20).astype(float)
    found = template.typical(members["owner"].to_numpy(), members["item"].to_numpy(), links, weight, n_owners=6)
    for owner in range(6):
        items = set(members.loc[members["owner"] == owner, "item"])
        scored = []
        for other in range(20, 28):
            having = set(links.loc[links["other"] == other, "owner"])
            observed = len(items & having)
            expected = len(items) * weight[sorted(having)].sum() / weight.sum()
            score = (observed - expected) / np.sqrt(expected + 1)
            if score > 1e-9 and (observed >= 2 or (observed and len(items) <= 3)):
                scored.append((-score, other))
        expected_others = tuple(other for _, other in sorted(scored)[:6])
        groups = found.groups(owner, 6)
        assert (groups[0].others if groups else ()) == expected_others
