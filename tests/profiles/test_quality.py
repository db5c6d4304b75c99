import itertools
import math
import time

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional

import spike_kit as sk
from spike_kit.base.errors import DataError
from spike_kit.data.dataset import FILLED
from spike_kit.data.vectors import ProfileVectors
from spike_kit.profiles import quality
from spike_kit.profiles.prompts import prompt_texts
from spike_kit.profiles.template import template_profiles

PROMPT = "Title: Alien (1979). Directed by Ridley Scott. Cast: Sigourney Weaver; genre: horror."


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("The Lord of the Rings by J.R.R. Tolkien and Mr. Brown.", "Lord of the Rings; J.R.R. Tolkien; Mr. Brown"),
        ("She saw Robert Downey Jr. The plot is thin.", "Robert Downey Jr"),
        ("with Ludwig van Beethoven in Toy Story 2", "Ludwig van Beethoven; Toy Story 2"),
        ("Peter Jackson's film, Schindler's List, Conan O'Brien", "Peter Jackson; Schindler's List; Conan O'Brien"),
        ("Sci-Fi by Jean-Luc Godard, an Oscar-winning Tom Hanks", "Sci-Fi; Jean-Luc Godard; Oscar; Tom Hanks"),
        ("He likes it. This is odd. It works. Action-packed and fast.", ""),
        ("Dark stories and dark jokes. Jokes about Fargo, Fargo and FARGO.", "Fargo"),
        ("Tom and I laugh, says Ann.", "Tom; Ann"),
        ("loves “Se7en (1995)” and 'the Matrix', not \"feel-good\" ones", "Se7en; 1995; the Matrix"),
        ("He read 「千と千尋」 in 1994-1998, 12 times, in the 1980s", "千と千尋; 1994; 1998; 1980s"),
        ("the Halo™ series, LEGO®Star Wars™ and “Just Cause™ (2006)”", "Halo; LEGO Star Wars; Just Cause; 2006"),
        ("of ＦＩＮＡＬ　Ｆantasy, ﬁlms of Ve\u0307\u0303jas, １，０００ hours", "FINAL Fantasy; Vėjas; 1000"),
        ("as in Fargo, Heat and 120 more, of 120 films", "Fargo; Heat; 120"),
        ("films of Ünal Çelik, Łódź; Достоевский, for 1,000 hours", "Ünal Çelik; Łódź; Достоевский; 1000"),
    ],
)
def test_names_and_numbers_are_found(text: str, facts: str) -> None:
    assert "; ".join(quality.named_facts(text)) == facts


def test_words_known_in_lower_case_are_no_names_at_the_start_of_a_sentence_only() -> None:
    text = "Thrillers please. He saw Thrillers."
    assert quality.named_facts(text, quality.lower_words(["he buys thrillers"])) == ["Thrillers"]
    assert quality.named_facts("Thrillers please.", quality.lower_words(["he buys thrillers"])) == []
    assert quality.named_facts("Thrillers please.", quality.lower_words(["he buys Thrillers"])) == ["Thrillers"]


@pytest.mark.parametrize(
    ("name", "prompt", "expected"),
    [
        ("The Godfather", "Godfather, The (1972)", True),
        ("Tchéky Karyo", "with TCHEKY KARYO", True),
        ("Spider-Man", "spider man", True),
        ("Ann", "Anna", False),
        ("195", "in 1995", False),
        ("1000", "1,000 copies", True),
        ("1990s", "from 1994", True),
        ("1980s", "from 1994", False),
        ("Peter Jackson's Heavenly Creatures", "Heavenly Creatures by Peter Jackson", True),
        ("Peter Jackson's Braindead", "Heavenly Creatures by Peter Jackson", False),
        ("千と千尋", "題名は千と千尋の神隠し", True),
        ("C++ (.*", "c", True),
        ("Halo", "Halo™: Reach", True),
        ("Halo™", "halo", True),
        ("Halo™", "Halotm", False),
        ("Oﬃce", "The Office®", True),
        ("ＦＩＦＡ ９８", "fifa 98", True),
        ("Vė̃jas", "vejas", True),
    ],
)
def test_support_ignores_case_accents_and_marks_but_not_words(name: str, prompt: str, expected: bool) -> None:
    assert quality.supported(name, quality.comparable(prompt)) is expected


def test_one_invented_name_of_three() -> None:
    profile = "Alien by Ridley Scott stars Tom Hanks."
    facts = quality.checked_facts(profile, PROMPT)
    assert facts == {"Alien": True, "Ridley Scott": True, "Tom Hanks": False}
    assert quality.faithfulness(facts) == pytest.approx(2 / 3)
    assert math.isnan(quality.faithfulness(quality.checked_facts("A horror film.", PROMPT)))
    assert all(quality.checked_facts(PROMPT, PROMPT).values())


PARTS = ["A", "A ", "a-", "A-b", "'", '"', "“a", "'a", "111,", "1,", "A.", "\\", "((", "日本", "A b'c ", "\n", "I "]
PARTS += ["A of the ", "Tom's ", "Tom 1994 ", "<script>alert('Tom')</script>"]
HOSTILE = ["", "\x00\ud7ff\u202e", "A" + " " * 99_998 + "&", *(part * (100_000 // len(part)) for part in PARTS)]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: repr(text[:6]))
def test_hostile_texts_are_measured_in_time(text: str) -> None:
    start = time.process_time()
    value = quality.faithfulness(quality.checked_facts(text, text))
    assert math.isnan(value) or value == 1
    texts = [text, "one two three four"]
    assert 0 <= quality.distinct_2(texts) <= 1
    assert not quality.near_duplicates(texts).any()
    assert time.process_time() - start < 10


def brute_force(texts: list[str], threshold: float = 0.8) -> np.ndarray:
    shingles = [{tuple(words[n : n + 3]) for n in range(len(words) - 2)} for words in map(str.split, texts)]
    near = np.zeros(len(texts), dtype=bool)
    for (a, one), (b, other) in itertools.combinations(enumerate(shingles), 2):
        near[[a, b]] |= texts[a] == texts[b] or len(one & other) >= threshold * max(len(one | other), 1)
    return near


def random_texts(n: int, words: int, vocabulary: int = 5000) -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(f"w{number}" for number in row) for row in rng.integers(0, vocabulary, (n, words))]


def test_planted_near_duplicates_are_found_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = random_texts(300, 60)
    for place in range(0, 100, 5):
        texts[place + 100] = texts[place].replace(texts[place].split()[place % 60], "changed")
    for place in range(201, 250):
        texts[place] = " ".join(texts[place - 1].split()[:30] + texts[place].split()[30:])
    near = quality.near_duplicates(texts)
    np.testing.assert_array_equal(near, brute_force(texts))
    assert near.sum() == 40
    monkeypatch.setattr(quality, "CHUNK_ENTRIES", 50)
    np.testing.assert_array_equal(quality.near_duplicates(texts), near)
    monkeypatch.setattr(quality, "BUCKET_WINDOW", 200)
    for vocabulary in (3, 20):
        texts = random_texts(200, 12, vocabulary)
        np.testing.assert_array_equal(quality.near_duplicates(texts, 0.5), brute_force(texts, 0.5))


def test_the_same_words_are_duplicates_and_a_large_group_stays_cheap() -> None:
    same = quality.near_duplicates(["Hello, you!", "other", "hello you", "", "?!"])
    assert same.tolist() == [True, False, True, True, True]
    base = random_texts(1, 60)[0]
    texts = [f"{base} end{number}" for number in range(1000)] + ["same text here"] * 1000 + random_texts(101, 60)[1:]
    start = time.process_time()
    assert quality.near_duplicates(texts).sum() == 2000
    assert time.process_time() - start < 5
    assert len(quality.near_duplicates([])) == 0


def test_repeated_shingles_count_once_and_the_threshold_itself_is_near() -> None:
    for texts in (
        ["a b c d e f g h " * 3 + end for end in ("one", "two")],
        ["one two three four five six seven eight nine ten" + end for end in ("", " x y")],
    ):
        assert quality.near_duplicates(texts, 8 / 10).all()
        assert not quality.near_duplicates(texts, 8 / 10 + 1e-6).any()


def test_spread_equals_brute_force() -> None:
    rows = torch.randn(40, 7, generator=torch.Generator().manual_seed(1)) + 0.5
    distance = 1 - functional.cosine_similarity(rows[:, None].double(), rows[None].double(), dim=-1)
    off = ~torch.eye(40, dtype=torch.bool)
    assert quality.spread(rows) == pytest.approx(distance[off].mean().item(), abs=1e-9)
    assert quality.spread(torch.ones(3, 2)) == pytest.approx(0)
    assert math.isnan(quality.spread(rows[:1]))


def frame(rows: list[tuple[str, int, str]], usage: str = "{}") -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["subject", "id", "text"]).assign(usage=usage)


TEMPLATE = frame(
    [("item", 0, "Alien by Ridley Scott."), ("item", 1, "Big  with\nTom Hanks."), ("user", 0, "likes Big")]
)
MODEL = frame([("user", 0, "likes many slow films"), ("item", 1, "Big with Bill Murray."), ("auxiliary", 2, "Horror")])
ASKED = {("item", 0): "Alien Ridley Scott", ("item", 1): "BIG: tom hanks", ("user", 0): "Big"}
PROMPTS: dict[str, dict[tuple[str, int], str]] = dict.fromkeys(("template", "model"), ASKED)


def test_profile_sets_are_compared_on_the_subjects_they_share() -> None:
    vectors = {"template": ProfileVectors(torch.eye(1, 3), torch.eye(3))}
    both = {"template": TEMPLATE, "model": pd.concat([MODEL, frame([("item", 0, "filled in")], FILLED)])}
    table = quality.quality_table(both, PROMPTS, {"item": 3, "user": 2}, vectors)
    shown = ["template item", "model item", "template user", "model user"]
    assert (table["profiles"] + " " + table["subject"]).tolist() == shown
    assert table["n"].tolist() == [1, 1, 1, 1]
    assert table["faithfulness"].fillna(-1).tolist() == [1, 0.5, 1, -1]
    assert table["with_names"].tolist() == [1, 1, 1, 0]
    assert table["words_max"].tolist() == [4, 4, 2, 4]
    assert table["over_limit"].tolist() == [1, 1, 0, 1]
    assert table["spread"].isna().all()
    alone = quality.quality_table({"template": TEMPLATE}, PROMPTS, {"item": 9, "user": 9}, vectors).set_index("subject")
    assert alone[["n", "spread"]].to_numpy()[0].tolist() == pytest.approx([2, 1])
    with pytest.raises(DataError, match=r"no subject has a profile of each profile set \(template, model\)"):
        quality.measure_profiles({"template": TEMPLATE, "model": MODEL.tail(1)}, PROMPTS)


ODD = ["Halo™", "LEGO® Star Wars℠", "ﬁnal ﬂight Oﬃce", "ＦＩＮＡＬ ＦＡＮＴＡＳＹ"]
ODD += ["Vė̃jas", 'Bob "The Nail" Smith', "№ 9", "O´Brien"]
"""Names that are written in several ways."""


@pytest.mark.parametrize("relation", ["Genre", "voice actor", "Publisher™"])
def test_a_template_invents_nothing(relation: str) -> None:
    """Whatever names look like, how many a list leaves out, and whether the name of a relation has a capital."""
    n = 150
    names = [f"{ODD[number % len(ODD)]} {chr(65 + number % 26)}{number}" for number in range(2 * n)]
    pairs = [(user, item) for user in range(3) for item in range(n) if item % 3 != user]
    data = sk.dataset(
        pd.DataFrame(pairs, columns=["user", "item"]),
        pd.DataFrame({"item": range(n), "title": names[:n]}),
        pd.DataFrame(
            [(item, relation, names[n + other]) for item in range(n) for other in range(12 + item % 3)],
            columns=["head", "relation", "tail"],
        ),
        name="odd",
        user_core=1,
        item_core=1,
    )
    profiles = template_profiles(data)
    assert profiles["text"].str.contains(r"and 1\d\d more|and \d more").any()
    data.write_profiles("template", profiles)
    measured = quality.measure_profiles({"template": profiles}, {"template": prompt_texts(data, "template")})
    assert measured.groupby("subject")["faithfulness"].min().to_dict() == {"auxiliary": 1, "item": 1, "user": 1}
