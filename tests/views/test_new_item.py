"""Items that came after training, and the view on new items: scores are those of the full model."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from spike_kit import views
from spike_kit.base import paths
from spike_kit.base.errors import ConfigError, DataError
from spike_kit.data.dataset import Dataset
from spike_kit.data.tables import Tables
from spike_kit.experiments.run import Run, RunConfig, run
from spike_kit.models.spike import Spike
from spike_kit.models.spike_explainer import SpikeExplainer
from spike_kit.profiles import ENCODERS
from spike_kit.profiles.encode import encode_profiles
from spike_kit.profiles.template import TEMPLATE, template_profiles
from spike_kit.views.item_explorer import NewItem
from tests.views.conftest import HOSTILE, safe
from tests.world import make_world, new_items_world, write_world

ENCODER, PROFILES = "words:24", "template+other"
GONE = 12
"""An item that is new in valid."""
SETTINGS = {"layers": 2, "id_dropout": 0.2, "new_item_scale": 1.2, "text_components": 8}


class Words:
    """A text's vector is the sum of random ones of its words."""

    def __init__(self, dim: str, _device: object = "cpu") -> None:
        self.dim = int(dim)

    def encode(self, texts: Sequence[str], _batch_size: int) -> np.ndarray:
        rows = [sum(map(self._word, text.lower().split())) for text in texts]
        return np.stack([row / np.linalg.norm(row) for row in rows]).astype(np.float32)

    def _word(self, word: str) -> np.ndarray:
        seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4])
        return np.random.default_rng(seed).normal(size=self.dim)


@pytest.fixture(autouse=True)
def encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENCODERS.data, "words", Words)


def without(tables: Tables, item: int) -> Tables:
    """The tables as they were before an item came; all later ids are one less."""

    def less(ids: pd.Series) -> pd.Series:
        return ids - (ids > item)

    interactions = tables.interactions[tables.interactions["item"] != item]
    triples = tables.triples[(tables.triples["head"] != item) & (tables.triples["tail"] != item)]
    return replace(
        tables,
        items=tables.items[tables.items["item"] != item].assign(item=lambda table: less(table["item"])),
        entities=tables.entities[tables.entities["entity"] != item].assign(entity=lambda table: less(table["entity"])),
        interactions=interactions.assign(item=less(interactions["item"])),
        triples=triples.assign(head=less(triples["head"]), tail=less(triples["tail"])),
    )


def written(name: str, tables: Tables, texts: pd.DataFrame | None = None) -> Dataset:
    """A data-set folder with two profile sets and their vectors; the second says other things."""
    data = write_world(paths.data_root() / name, tables=tables, task="new-items")
    template = template_profiles(data) if texts is None else texts
    data.write_profiles(TEMPLATE, template)
    data.write_profiles("other", template.assign(text="A tale about " + template["text"].str.upper() + " for all."))
    for profiles in (TEMPLATE, "other"):
        encode_profiles(data, profiles, ENCODER, progress=False)
    return data


def trained(dataset: str, **settings: object) -> Run:
    training = {"epochs": 4, "eval_every": 2}
    config = RunConfig(dataset=dataset, profiles=PROFILES, encoder=ENCODER, training=training)
    return run(config.replace(settings=SETTINGS | settings), progress=False)


@pytest.fixture
def full(home: Path) -> Dataset:
    return written("full", new_items_world(make_world()).tables)


def texts_of(data: Dataset, item: int) -> dict[str, str]:
    chosen = {part: data.profiles(part).set_index(["subject", "id"])["text"] for part in (TEMPLATE, "other")}
    return {part: texts["item", item] for part, texts in chosen.items()}


def facts_of(data: Dataset, item: int) -> list[tuple[str, str]]:
    own = data.triples[data.triples["head"] == item]
    labels = data.relations["label"], data.entities["label"]
    return [(labels[0][relation], labels[1][tail]) for _, relation, tail in own.itertuples(index=False)]


@pytest.mark.parametrize("loss", ["cosine_softmax", "bpr"])
def test_an_item_taken_out_and_scored_later_has_the_score_of_the_full_model(full: Dataset, loss: str) -> None:
    """Trained without it, then scored by texts and facts; the same parameters on the full graph say the same."""
    texts = full.profiles(TEMPLATE)
    reduced = texts[(texts["subject"] != "item") | (texts["id"] != GONE)].copy()
    reduced.loc[(reduced["subject"] != "user") & (reduced["id"] > GONE), "id"] -= 1
    data = written("before", without(full.tables, GONE), reduced)
    done = trained("before", loss=loss)
    found = done.score_new(texts_of(full, GONE), facts_of(full, GONE)).sort_values("user")
    whole = trained("full", loss=loss).model
    tensors = done.model.tensors()
    ids = tensors["entity_embedding"]
    tensors["entity_embedding"] = torch.cat([ids[:GONE], torch.zeros(1, ids.shape[1]), ids[GONE:]])
    whole.load_tensors(tensors)
    expected = whole.score(torch.tensor(found["user"].tolist()))[:, GONE]
    np.testing.assert_allclose(found["score"], expected.numpy(), atol=1e-5)
    assert expected.std() > 1e-3
    assert len(data.items) + 1 == len(full.items)


def test_a_copy_of_a_new_item_goes_to_the_same_users(full: Dataset) -> None:
    done = trained("full", layers=1)
    found = done.score_new(texts_of(full, GONE), facts_of(full, GONE))
    known = NewItem(done, GONE, device="cpu").ranked()
    pd.testing.assert_frame_equal(found, known, atol=1e-5)
    own = full.triples[full.triples["head"] == GONE]
    numbers = list(zip(own["relation"].tolist(), own["tail"].tolist(), strict=True))
    pd.testing.assert_frame_equal(done.score_new(texts_of(full, GONE), numbers), found)
    turned = done.score_new(texts_of(full, GONE), [(None, *fact) for fact in numbers])
    pd.testing.assert_frame_equal(turned, found)
    assert not np.allclose(done.score_new(texts_of(full, GONE))["score"], found["score"])


def test_what_is_missing_or_unknown_is_an_error(full: Dataset) -> None:
    done, texts = trained("full"), texts_of(full, GONE)
    for given, triples, message in [
        ({TEMPLATE: "A film."}, [], "other is missing or surplus"),
        (texts | {"third": "A film."}, [], "third is missing or surplus"),
        (texts | {"other": " \n"}, [], "text of other is empty"),
        (texts, [("genre", "opera")], "no entity has the label 'opera'"),
        (texts, [("colour", "comedy")], "no relation has the label 'colour'"),
        (texts, [(7, 0)], "there is no relation 7"),
        (texts, [(0, -1)], "there is no entity -1"),
        (texts, [(3, 0, 4)], "must have None where the new item stands"),
    ]:
        with pytest.raises(DataError, match=message):
            done.score_new(given, triples)
    other = run(RunConfig(model="popularity", dataset="full"), progress=False)
    with pytest.raises(ConfigError, match="scores no items that came after"):
        other.score_new({})
    plain = trained("full", inject=False, remove=False, matching="off")
    with pytest.raises(DataError, match="uses no text"):
        plain.score_new(texts)
    assert len(plain.score_new({}, facts_of(full, GONE))) == len(full.users)


def test_the_view_shows_users_words_and_what_would_be_without(full: Dataset) -> None:
    view = NewItem(trained("full"), device="cpu", k=5)
    assert view.item == view.items[0] == 0
    view.choose(GONE)
    users = view.users()
    assert list(users.columns) == ["rank", "user", "label", "score", "in valid"]
    scores = view.run.model.score(torch.tensor(users["user"].tolist()))[:, GONE]
    np.testing.assert_allclose(users["score"], scores.numpy(), atol=1e-6)
    names = list(view.removals())
    assert names[0].startswith("profile of Western film 12")
    assert "triple: genre: western" in names
    assert "western" in view.words(20)
    table = view.influence()
    assert set(table["taken out"]) == set(names)
    own = view.what_if(names[0])
    assert isinstance(view.run.model, Spike)
    explainer = SpikeExplainer(view.run.model).without(view.removals()[names[0]])
    expected = explainer.scores(int(users["user"][0]))[GONE].item()
    assert own.set_index("label")["new score"][users["label"][0]] == pytest.approx(expected, abs=1e-6)
    with pytest.raises(DataError, match="has train interactions"):
        view.choose(5)


def test_entities_of_one_name_can_be_taken_out_one_by_one(full: Dataset) -> None:
    labels = full.entities["label"].where(full.entities["kind"] == "item", "Same")
    tables = replace(full.tables, entities=full.entities.assign(label=labels))
    twins = written("twins", tables)
    view = NewItem(trained("twins"), GONE, device="cpu")
    own = twins.triples[twins.triples["head"] == GONE]
    assert len(own) == 2
    assert len(view.removals()) == 1 + 2 * len(own)
    assert sum(name.startswith("profile of Same") for name in view.removals()) == 2


def test_an_item_of_ones_own_is_scored_and_taken_apart(full: Dataset) -> None:
    view = views.new_item(trained("full", layers=1), GONE, device="cpu", k=5)
    known, influence = view.ranked(), view.influence()
    view.write(texts_of(full, GONE), facts_of(full, GONE))
    assert view.is_own
    assert view.label == "your item"
    pd.testing.assert_frame_equal(view.ranked(), known, atol=1e-5)
    assert view.entity_label(GONE + 1) == full.entities["label"][GONE + 1]
    assert [view.entity_label(tail) for _, _, tail in view.triples()] == [name for _, name in facts_of(full, GONE)]
    ours = view.influence().replace({"profile of your item": f"profile of {full.items['label'][GONE]}"})
    merged = ours.merge(influence, on="taken out", suffixes=("", " before"))
    assert len(merged) == len(influence)
    np.testing.assert_allclose(merged["change"], merged["change before"], atol=1e-5)


def test_the_panel_runs_nothing_that_comes_from_outside(full: Dataset) -> None:
    view = NewItem(trained("full"), device="cpu", k=4)
    panel = view.panel()
    parts = panel.parts
    parts["item"].value = GONE
    assert view.item == GONE
    parts["text-template"].value, parts["text-other"].value = HOSTILE, f"{HOSTILE} western"
    parts["facts"].value = "genre: western\n\ngenre: comedy"
    parts["score"].click()
    assert view.is_own
    assert parts["error"].value == ""
    assert len(view.triples()) == 2
    parts["each_alone"].click()
    parts["out"].value = parts["out"].options[:2]
    parts["what_if"].click()
    assert "<table" in parts["answer"].value
    assert "<table" in parts["influence"].value
    safe(*(parts[name].value for name in ("users", "profiles", "answer", "influence")))
    parts["facts"].value = f"genre: {HOSTILE}"
    parts["score"].click()
    assert "has the label" in parts["error"].value
    safe(parts["error"].value)


def test_without_new_items_only_ones_own_can_be_shown(full: Dataset) -> None:
    plain = write_world(paths.data_root() / "plain")
    plain.write_profiles(TEMPLATE, full.profiles(TEMPLATE))
    encode_profiles(plain, TEMPLATE, ENCODER, progress=False)
    done = run(RunConfig(dataset="plain", encoder=ENCODER, training={"epochs": 2, "eval_every": 2}), progress=False)
    view = NewItem(done, device="cpu")
    assert view.items == []
    view.panel()
    view.write({TEMPLATE: "Something with western is a western film."})
    assert len(view.users()) == 10
