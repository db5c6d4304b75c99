from __future__ import annotations

import math

import pandas as pd
import pytest

from spike_kit.data.dataset import Dataset
from spike_kit.views.passages import MARK, Passages, marked

USER = "Likes films by Hal Ashby and melancholy trains. Prefers: genre Romance, Drama; cast Peter Barnes."
ITEM = "It was directed by Hal Ashby. It is a Drama. It stars Peter Mullan. A melancholy film of 1996."


class Texts:
    """A data set that has two profiles of interest and eight others."""

    def profiles(self, _source: str) -> pd.DataFrame:
        texts = [USER, ITEM, *["A film, a drama."] * 4, *["Something else of 1996."] * 4]
        subjects = ["user", *["item"] * 9]
        return pd.DataFrame({"subject": subjects, "id": [0, *range(9)], "text": texts})


@pytest.fixture
def passages(monkeypatch: pytest.MonkeyPatch) -> Passages:
    monkeypatch.setattr("spike_kit.views.passages.COMMON_WORD", 0.3)
    monkeypatch.setattr("spike_kit.views.passages.COMMON_NAME", 0.6)
    return Passages(Texts(), "any")  # pyright: ignore[reportArgumentType]


def test_names_and_telling_words_are_found(passages: Passages) -> None:
    found = passages.phrases(("user", 0), ("item", 0))
    assert found == pytest.approx({"hal ashby": 0.2, "melancholy": 0.2, "drama": 0.6})
    table = passages.shared(("user", 0), ("item", 0))
    assert table["shared"].tolist() == [["hal ashby"], ["melancholy"], ["drama"]]
    assert table["telling"].tolist() == pytest.approx([-math.log(0.2)] * 2 + [-math.log(0.6)])
    assert table["one"][2] == "Prefers: genre Romance, Drama;"
    assert table["other"][0] == "It was directed by Hal Ashby."


def test_whoever_has_no_profile_shares_nothing(passages: Passages) -> None:
    assert passages.shared(("user", 7), ("item", 0)).empty


def test_an_initial_ends_no_passage(monkeypatch: pytest.MonkeyPatch) -> None:
    class Initial(Texts):
        def profiles(self, _source: str) -> pd.DataFrame:
            text = ["Stars John C. Reilly. It rained."] * 2
            return pd.DataFrame({"subject": ["user", "item"], "id": [0, 0], "text": text})

    monkeypatch.setattr("spike_kit.views.passages.COMMON_NAME", 1.0)
    table = Passages(Initial(), "any").shared(("user", 0), ("item", 0))  # pyright: ignore[reportArgumentType]
    assert table["one"].tolist() == ["Stars John C. Reilly."]


def test_marks_are_safe() -> None:
    assert marked("A <b>Noir</b> film", ["noir"]) == f"A &lt;b&gt;{MARK}Noir</mark>&lt;/b&gt; film"
    assert marked("By Hal Ashby, not Hal.", ["hal ashby"]) == f"By {MARK}Hal Ashby</mark>, not Hal."
    assert marked("Amélie <script>", ["amelie", "script"]) == f"{MARK}Amélie</mark> &lt;{MARK}script</mark>&gt;"
    assert marked("", ["x"]) == ""


def test_a_study_has_its_profiles(data: Dataset) -> None:
    assert len(Passages(data, "template").texts) == len(data.users) + len(data.entities)
