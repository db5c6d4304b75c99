from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spike_kit.data.dataset import Dataset
from spike_kit.data.tables import Tables
from spike_kit.data.text import clean
from spike_kit.profiles import facts
from spike_kit.profiles.facts import fill, listed, sentence
from spike_kit.profiles.template import WORD_LIMIT, ensure_profiles, paragraph, template_profiles, template_texts
from tests.world import World, make_world


def test_every_subject_has_a_profile_within_its_limit(data: Dataset) -> None:
    profiles = template_profiles(data)
    assert len(profiles) == len(data.users) + len(data.entities)
    for subject, text in zip(profiles["subject"], profiles["text"], strict=True):
        assert len(text.split()) <= WORD_LIMIT[subject]
    assert profiles["subject"].drop_duplicates().tolist() == ["item", "auxiliary", "user"]


def test_profiles_say_what_the_graph_says(world: World) -> None:
    texts = template_texts(world.tables)
    assert texts["item"][0] == "Comedy film 0. It is a comedy film. It was directed by Director 0."
    opening, films = texts["auxiliary"][4].split(" Each of ")
    assert opening == "Director 0 (director)."
    assert films.endswith(" was directed by Director 0. Common to them: genre comedy.")
    assert all(f"Comedy film {number}" in films for number in range(3))
    assert "Prefers: genre comedy" in texts["user"][0]
    assert texts["user"][0].startswith("Liked Comedy film")


def test_profiles_do_not_change_with_the_held_out_interactions(world: World) -> None:
    train_only = world.tables.interactions[world.tables.interactions["split"] == "train"]
    blind = dataclasses.replace(world.tables, interactions=train_only)
    assert template_texts(blind) == template_texts(world.tables)


def rename(tables: Tables, label: str) -> Tables:
    entities, items = tables.entities.copy(), tables.items.copy()
    entities.loc[0, "label"] = items.loc[0, "label"] = label
    return dataclasses.replace(tables, entities=entities, items=items)


@given(st.text(min_size=1, max_size=200))
@settings(max_examples=20)
def test_hostile_labels_cannot_break_a_profile(label: str) -> None:
    for subject, texts in template_texts(rename(make_world().tables, label)).items():
        assert all(text.strip() for text in texts)
        assert all(len(text.split()) <= WORD_LIMIT[subject] for text in texts)
        assert all("\n" not in text and "\x00" not in text for text in texts)


def test_braces_in_a_name_stay_plain_characters() -> None:
    assert fill("{head} stars {tail}.", "{tail} {0}", "{head}") == "{tail} {0} stars {head}."


def test_articles_follow_the_name() -> None:
    assert fill("{head} is a {tail} film.", "Alien", "action") == "Alien is an action film."
    assert fill("{head} is an {tail} film.", "Alien", "drama") == "Alien is a drama film."


def test_text_is_cleaned() -> None:
    assert clean("a\x00b\u202ec\n\nd  e\u0301") == "a bc d \u00e9"
    assert clean("one two three", 2) == "one two..."
    assert listed(["A", "B"], 9) == "A, B and 7 more"
    assert listed(["A"]) == "A"
    assert sentence("Dr. No..") == "Dr. No."
    assert paragraph(["a b", "c d", "e"], 3) == "a b e"


def test_a_user_without_train_items_still_has_a_profile(world: World) -> None:
    rows = world.tables.interactions
    tables = dataclasses.replace(world.tables, interactions=rows[rows["user"] != 0].reset_index(drop=True))
    assert template_texts(tables)["user"][0] == "Nothing is known of this user's taste."


def test_ensure_profiles_writes_once_and_again_after_a_new_wording(
    data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = ensure_profiles(data)
    assert ensure_profiles(data)["created"].equals(before["created"])
    monkeypatch.setattr("spike_kit.profiles.template.VERSION", "template next")
    after = ensure_profiles(data)
    assert (after["prompt_sha256"] != before["prompt_sha256"]).all()


def test_typical_facts_equal_a_plain_count() -> None:
    rng = np.random.default_rng(0)
    links = pd.DataFrame({"owner": rng.integers(0, 20, 60), "other": rng.integers(20, 26, 60)}).drop_duplicates()
    links = pd.concat([links, links[links["other"] == 20].assign(other=26), links.iloc[:1].assign(other=27)])
    links = links.assign(relation=0, outward=True)
    members = pd.DataFrame({"owner": rng.integers(0, 4, 40), "item": rng.integers(0, 20, 40)}).drop_duplicates()
    members = pd.concat([members, pd.DataFrame({"owner": 4, "item": links["owner"].unique()[:3]})])
    weight = rng.integers(1, 9, 20).astype(float)
    found = facts.typical(members["owner"].to_numpy(), members["item"].to_numpy(), links, weight, n_owners=6)
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


def test_memory_is_bounded_by_chunks(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = template_texts(world.tables)
    monkeypatch.setattr(facts, "CHUNK_OWNERS", 7)
    assert template_texts(world.tables) == whole
