"""Nothing of valid and test may reach a profile: markers are planted in them and looked for everywhere."""

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from spike_kit.base.errors import DataError
from spike_kit.data.build import build
from spike_kit.data.dataset import SUBJECTS, Dataset, create_dataset
from spike_kit.data.sources.amazon import AmazonConfig
from spike_kit.data.workspace import longest_train_reviews
from spike_kit.profiles.prompts import PromptWriter
from spike_kit.profiles.template import ensure_profiles
from tests.conftest import at_home
from tests.data.checks import interactions_of
from tests.data.raw_folders import reviews_2018, write_lines, write_release

CANARY = "zzcanaryzz"
FACTS: dict[str, Any] = {"sources": (), "build": {}, "funnel": ()}


TASKS = {
    "known": AmazonConfig(),
    "new-items": AmazonConfig(task="new-items", new_share=0.4),
    "few-interactions": AmazonConfig(task="few-interactions", at_most=2),
}


@pytest.fixture(scope="module", params=TASKS)
def planted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A data set from reviews in which every text that is not in train holds the marker."""
    config = TASKS[request.param]
    with at_home(tmp_path_factory.mktemp("planted")) as home:
        folder = write_release(home / "raw", "2018")
        first = build("amazon", config, name="first", raw=folder)
        in_train = interactions_of(first, "train")
        rows = reviews_2018()
        for row in rows:
            if (int(row["reviewerID"][1:]), int(row["asin"][1:])) not in in_train:
                row["reviewText"] += f" {CANARY}"
                row["summary"] = CANARY
        write_lines(folder / "Books_5.json.gz", map(json.dumps, rows))
        data = build("amazon", config, name="planted", raw=folder)
    assert data.interactions.equals(first.interactions)
    return data


def test_no_review_or_profile_holds_a_marker_or_lists_a_held_out_item(planted: Dataset) -> None:
    stored = pd.read_parquet(planted.path / "reviews.parquet")
    marked = stored["text"].str.contains(CANARY)
    assert marked.sum() == len(planted.split("valid")) + len(planted.split("test")) >= 16
    for by in ("user", "item"):
        texts = [text for _, found in longest_train_reviews(planted, by, 100) for text in found]
        assert len(texts) == len(planted.split("train"))
        assert not any(CANARY in text for text in texts)
    profiles = ensure_profiles(planted)
    assert not profiles["text"].str.contains(CANARY).any()
    writer = PromptWriter(planted)
    prompts = [prompt.text for subject in SUBJECTS for prompt in writer.prompts(subject)]
    assert any("Review" in text or "review" in text for text in prompts)
    assert not any(CANARY in text for text in prompts)
    users = profiles[profiles["subject"] == "user"].set_index("id")["text"]
    labels, rows = planted.items["label"], planted.interactions
    assert users[0].count("Book ") == (planted.split("train")["user"] == 0).sum() > 1
    for user, item, split in zip(rows["user"], rows["item"], rows["split"], strict=True):
        assert (labels[item] in users[user]) == (split == "train")


def test_reviews_whose_split_is_not_that_of_their_interaction_leave_no_data_set(
    planted: Dataset, tmp_path: Path
) -> None:
    stored = pd.read_parquet(planted.reviews_file).astype({"timestamp": "Int64"})
    leaking = stored.assign(split="train")
    first, last_item = stored.iloc[:1], planted.interactions.query("user == 0")["item"].max()
    for wrong, message in (
        ([stored.iloc[:20], leaking.iloc[20:]], "no interaction of the same split for the review of"),
        ([first.assign(item=last_item + 1)], "no interaction of the same split"),
    ):
        with pytest.raises(DataError, match=message):
            create_dataset(tmp_path / "leaking", "leaking", planted.tables, reviews=wrong, **FACTS)
        assert not (tmp_path / "leaking").exists()
    assert not list(tmp_path.glob(".spike-kit-tmp-*"))
    leaking.to_parquet(shutil.copytree(planted.path, tmp_path / "copied") / "reviews.parquet")
    with pytest.raises(DataError, match=r"reviews\.parquet was changed after the build"):
        _ = Dataset.open(tmp_path / "copied").reviews_file


def test_a_data_set_without_reviews_says_so(data: Dataset) -> None:
    with pytest.raises(DataError, match="data set world has no reviews"):
        next(longest_train_reviews(data, "user", 1))
