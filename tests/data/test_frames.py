from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest

from spike_kit.base import paths
from spike_kit.base.errors import ConfigError, DataError
from spike_kit.data.build import dataset_from_frames
from spike_kit.data.dataset import Dataset
from spike_kit.experiments.run import data_version
from spike_kit.profiles.template import ensure_profiles

PAIRS = [(user, (user + step) % 8) for user in range(8) for step in range(6)]
Frames = dict[str, pd.DataFrame]


@pytest.fixture
def frames() -> Frames:
    """Eight users (by number) who like six of eight books each; a writer for every two books."""
    interactions = pd.DataFrame(PAIRS, columns=["user", "item"]).assign(rating=4.5, timestamp=range(48))
    interactions["review"] = [f'Reader {user} on "book"\n{item}, très bien' for user, item in PAIRS]
    return {
        "interactions": interactions,
        "items": pd.DataFrame({"item": range(8), "title": [f"Book, the {n}th" for n in range(8)], "shelf": 1}),
        "triples": pd.DataFrame({"head": range(8), "relation": "writer", "tail": [f"w{n // 2}" for n in range(8)]}),
    }


def built(frames: Frames, **changes: Any) -> Dataset:
    return dataset_from_frames(**{"name": "mine", **frames, **changes})


def test_three_frames_become_a_data_set_with_funnel_split_manifest_and_profiles(frames: Frames) -> None:
    data = built(frames, seed=3, test=0.2)
    assert data.items["label"].tolist() == frames["items"]["title"].tolist()
    assert data.entities["label"].tolist()[8:] == ["w0", "w1", "w2", "w3"]
    assert data.relations["template"].tolist() == ["The writer of {head} is {tail}."]
    assert data.interactions["split"].value_counts().to_dict() == {"train": 32, "valid": 8, "test": 8}
    given = frames["interactions"].sort_values(["user", "item"])
    assert (
        data.interactions[["rating", "timestamp"]].to_numpy().tolist()
        == given[["rating", "timestamp"]].to_numpy().tolist()
    )
    assert 'Reader 0 on "book" ' in pd.read_parquet(data.reviews_file)["text"].iloc[0]
    steps = [row["step"] for row in data.manifest.funnel]
    assert (steps[0], steps[-2:]) == ("raw files", ["ids and split: random", "reviews"])
    assert [source.name for source in data.manifest.sources] == ["interactions.json", "items.json", "triples.json"]
    assert data.manifest.build["seed"] == 3
    assert len(ensure_profiles(data)) == 8 + 8 + 4
    assert [folder.name for folder in paths.data_root().iterdir()] == ["mine"]


def test_equal_frames_are_one_data_set_and_other_ones_are_not(frames: Frames) -> None:
    first = data_version(built(frames))
    assert data_version(built(frames)) == first
    assert data_version(built(frames, seed=1)) != first
    frames["items"].loc[0, "title"] = "Another"
    assert data_version(built(frames)) != first


def test_what_else_frames_may_say(frames: Frames) -> None:
    rows = frames["interactions"]
    rows["timestamp"] = pd.to_datetime("2020-01-01 00:00:07", utc=True) + pd.to_timedelta(rows["timestamp"], unit="D")
    rows["split"] = ["test" if user == item else "train" for user, item in PAIRS]
    data = built(
        frames,
        entities=pd.DataFrame({"entity": [f"w{n}" for n in range(4)], "label": list("ABCD"), "kind": "person"}),
        relations=pd.DataFrame({"relation": ["writer"], "template": ["{tail} wrote {head}."]}),
    )
    assert data.interactions["timestamp"].iloc[0] == 1_577_836_807
    assert (data.split("test")["user"] == data.split("test")["item"]).all()
    assert data.entities[["label", "kind"]].to_numpy().tolist()[8:] == [[label, "person"] for label in "ABCD"]
    assert data.relations["template"].tolist() == ["{tail} wrote {head}."]
    assert built(frames, split="leave_one_out").interactions["split"].value_counts()["test"] == 8
    with pytest.raises(ConfigError, match="unknown setting 'core'"):
        built(frames, core=3)
    with pytest.raises(DataError, match="triples row 3: entity 'w1': it is neither in entities nor an item"):
        built(frames, entities=pd.DataFrame({"entity": ["w0"]}))
    with pytest.raises(DataError, match="sentences for relations that do not exist: actor"):
        built(frames, relations=pd.DataFrame({"relation": ["actor"], "template": ["{head} {tail}"]}))


@pytest.mark.parametrize(
    ("what", "change", "message"),
    [
        ("interactions", lambda rows: rows.drop(columns="user"), "there is no column 'user'; it has item, rating"),
        ("interactions", lambda rows: rows.iloc[:0], "the DataFrame has no row"),
        ("interactions", lambda rows: rows.assign(item=range(48)), "40 items are not in items: 10, 11, 12"),
        ("interactions", lambda rows: rows.replace({"item": {3: None}}), "row 4: 'item' is missing"),
        ("interactions", lambda rows: rows.assign(rating="good"), r"row 1: 'rating' is not a number in .*\"user\":0"),
        ("interactions", lambda rows: rows.rename(columns={"rating": "item"}), "there are several columns 'item'"),
        ("items", lambda rows: pd.concat([rows, rows]), "item 0, 1, 2.* has several rows"),
    ],
)
def test_a_frame_that_is_not_right_is_named(
    frames: Frames, what: str, change: Callable[[pd.DataFrame], pd.DataFrame], message: str
) -> None:
    with pytest.raises(DataError, match=f"{what}:? {message}"):
        built(frames | {what: change(frames[what])})
    assert not list(paths.data_root().glob("*"))
