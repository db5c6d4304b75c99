from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional

from spike_kit.base.errors import ConfigError, DataError
from spike_kit.data.vectors import ProfileVectors
from spike_kit.profiles import quality
from spike_kit.profiles.faithfulness import (
    comparable,
    faithfulness,
    lower_words,
    named_facts,
    supported,
    unsupported_facts,
)
from spike_kit.profiles.quality import (
    distinct_2,
    mattr,
    measure_profiles,
    near_duplicates,
    nearest,
    quality_table,
    spread,
)

PROMPT = "Title: Alien (1979). Directed by Ridley Scott. Cast: Sigourney Weaver; genre: horror."


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("The Lord of the Rings is long.", ["Lord of the Rings"]),
        (
            "A role by Robert A. Heinlein, J.R.R. Tolkien and Mr. Brown.",
            ["Robert A. Heinlein", "J.R.R. Tolkien", "Mr. Brown"],
        ),
        ("She saw Robert Downey Jr. The plot is thin.", ["Robert Downey Jr"]),
        ("with Ludwig van Beethoven in Toy Story 2", ["Ludwig van Beethoven", "Toy Story 2"]),
        (
            "Peter Jackson's film, Schindler's List, Conan O'Brien",
            ["Peter Jackson", "Schindler's List", "Conan O'Brien"],
        ),
        ("Sci-Fi by Jean-Luc Godard", ["Sci-Fi", "Jean-Luc Godard"]),
        ("an Oscar-winning Tom Hanks", ["Oscar", "Tom Hanks"]),
        ("He likes it. This is odd. It works.", []),
        ("Dark stories and dark jokes. Jokes about Fargo.", ["Fargo"]),
        ("Action-packed and fast.", []),
        ("Tom and I laugh, says Ann.", ["Tom", "Ann"]),
        ("loves “Se7en (1995)” and 'the Matrix', not \"feel-good\" ones", ["Se7en", "1995", "the Matrix"]),
        (
            "He read 「千と千尋」 in 1994-1998, 12 times, for 1,000 hours in the 1980s",
            ["千と千尋", "1994", "1998", "1000", "1980s"],
        ),
        ("films of Ünal Çelik, Łódź and Émile; Достоевский писал", ["Ünal Çelik", "Łódź", "Émile", "Достоевский"]),
        ("Fargo, Fargo and FARGO", ["Fargo"]),
        ("no name at all", []),
        ("", []),
    ],
)
def test_names_and_numbers_are_found(text: str, facts: list[str]) -> None:
    assert named_facts(text) == facts


def test_words_known_in_lower_case_are_no_names_at_the_start_of_a_sentence_only() -> None:
    text = "Thrillers please. He saw Thrillers."
    assert named_facts(text, lower_words(["he buys thrillers"])) == ["Thrillers"]
    assert named_facts("Thrillers please.", lower_words(["he buys thrillers"])) == []
    assert named_facts("Thrillers please.", lower_words(["he buys Thrillers"])) == ["Thrillers"]


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
        ("C++ (.*", "d", False),
        ("C++ (.*", "c", True),
    ],
)
def test_support_ignores_case_accents_and_punctuation_but_not_word_boundaries(
    name: str, prompt: str, expected: bool
) -> None:
    assert supported(name, comparable(prompt)) is expected


def test_one_invented_name_of_three() -> None:
    profile = "Alien by Ridley Scott stars Tom Hanks."
    assert faithfulness(profile, PROMPT) == pytest.approx(2 / 3)
    assert unsupported_facts(profile, PROMPT) == ["Tom Hanks"]
    assert faithfulness("A horror film.", PROMPT) != faithfulness("A horror film.", PROMPT)
    assert faithfulness(PROMPT, PROMPT) == 1


HOSTILE = [
    "",
    " ",
    "12 34",
    "\x00\ud7ff\u202e",
    "<script>alert('Tom')</script>" * 4000,
    *(part * (100_000 // len(part)) for part in ("A", "A ", "a-", "A-b", "'", '"', "“a", "'a", "111,", "A.", "\\")),
    *(
        part * (100_000 // len(part))
        for part in ("((", "A of the ", "Tom's ", "Tom 1994 ", "日本", "A b'c ", "\n", "I ")
    ),
    "1," * 50_000 + "a",
    "A" + " " * 99_998 + "&",
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: repr(text[:6]))
def test_hostile_texts_are_measured_in_time(text: str) -> None:
    start = time.process_time()
    value = faithfulness(text, text)
    assert math.isnan(value) or value == 1
    texts = [text, "one two three four"]
    assert 0 <= mattr(texts) <= 1
    assert 0 <= distinct_2(texts) <= 1
    assert near_duplicates(texts)[0] == 0
    assert time.process_time() - start < 10


def test_mattr_by_hand() -> None:
    assert mattr(["a b a c"], window=3) == pytest.approx((2 / 3 + 1) / 2)
    assert mattr(["Dog dog DOG"]) == pytest.approx(1 / 3)
    assert mattr(["a b", "a a", "..."]) == pytest.approx((1 + 1 / 2) / 2)
    assert math.isnan(mattr(["", "?"]))
    words = [f"w{number}" for number in np.random.default_rng(0).integers(0, 40, 300)]
    windows = [len(set(words[start : start + 50])) / 50 for start in range(251)]
    assert mattr([" ".join(words)]) == pytest.approx(np.mean(windows))


def test_distinct_pairs_never_cross_texts() -> None:
    assert distinct_2(["a b a b", "b a"]) == pytest.approx(2 / 4)
    assert math.isnan(distinct_2(["a", "b", ""]))


def brute_force(texts: list[str], threshold: float) -> set[tuple[int, int]]:
    shingles = [{tuple(words[n : n + 3]) for n in range(len(words) - 2)} for words in map(str.split, texts)]
    owners: dict[tuple[str, ...], list[int]] = {}
    for place, row in enumerate(shingles):
        for shingle in row:
            owners.setdefault(shingle, []).append(place)
    pairs = {pair for places in owners.values() for pair in itertools.combinations(places, 2)}
    return {(a, b) for a, b in pairs if len(shingles[a] & shingles[b]) >= threshold * len(shingles[a] | shingles[b])}


def random_texts(n: int, words: int, vocabulary: int = 5000) -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(f"w{number}" for number in row) for row in rng.integers(0, vocabulary, (n, words))]


def test_planted_near_duplicates_are_found_and_nothing_else() -> None:
    texts = random_texts(2000, 60)
    planted = {}
    for place in range(0, 400, 10):
        words = texts[place].split()
        words[place % 60] = "changed"
        texts[place + 1000] = " ".join(words)
        planted[place, place + 1000] = 1
    for place in range(1500, 1600):
        texts[place] = " ".join(texts[place - 1].split()[:30] + texts[place].split()[30:])
    share, pairs = near_duplicates(texts)
    assert set(zip(pairs["first"], pairs["second"], strict=True)) == set(planted) == brute_force(texts, 0.8)
    assert share == len(planted) * 2 / 2000
    words = [set(zip(t, t[1:], t[2:], strict=False)) for t in (texts[10].split(), texts[1010].split())]
    found = pairs.loc[pairs["first"] == 10, "similarity"].item()
    assert found == pytest.approx(len(words[0] & words[1]) / len(words[0] | words[1]))


def test_the_same_words_are_duplicates_and_a_large_group_stays_cheap() -> None:
    share, pairs = near_duplicates(["Hello, you!", "other", "hello you", "", "?!"])
    assert pairs[["first", "second", "similarity"]].to_numpy().tolist() == [[0, 2, 1], [3, 4, 1]]
    assert share == 4 / 5
    base = random_texts(1, 60)[0]
    texts = [f"{base} end{number}" for number in range(1000)] + ["same text here"] * 1000 + random_texts(101, 60)[1:]
    share, pairs = near_duplicates(texts)
    assert share == 2000 / 2100
    assert len(pairs) < 2000 * quality.BUCKET_WINDOW * quality.BANDS / 4
    assert math.isnan(near_duplicates([])[0])


def test_repeated_shingles_count_once_and_the_threshold_itself_is_near() -> None:
    repeated = near_duplicates(["a b c d e f g h " * 3 + end for end in ("one", "two")])[1]
    assert repeated["similarity"].tolist() == [8 / 10]
    longer = near_duplicates(["one two three four five six seven eight nine ten" + end for end in ("", " x y")])[1]
    assert longer["similarity"].tolist() == [8 / 10]


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"{text} {tail}" for text in random_texts(20, 40) for tail in ("one", "two")]
    rows = torch.randn(30, 5, generator=torch.Generator().manual_seed(0))
    whole = near_duplicates(texts)[1], nearest(rows)
    assert len(whole[0]) == 20
    monkeypatch.setattr(quality, "CHUNK_ENTRIES", 50)
    pd.testing.assert_frame_equal(near_duplicates(texts)[1], whole[0])
    assert nearest(rows) == pytest.approx(whole[1], abs=1e-6)


def test_spread_and_nearest_equal_brute_force() -> None:
    rows = torch.randn(40, 7, generator=torch.Generator().manual_seed(1)) + 0.5
    distance = 1 - functional.cosine_similarity(rows[:, None].double(), rows[None].double(), dim=-1)
    off = ~torch.eye(40, dtype=torch.bool)
    assert spread(rows) == pytest.approx(distance[off].mean().item(), abs=1e-9)
    closest = distance.masked_fill(~off, 9).amin(1).mean().item()
    assert nearest(rows) == pytest.approx(closest, abs=1e-5)
    assert spread(torch.ones(3, 2)) == pytest.approx(0)
    assert math.isnan(spread(rows[:1]))
    assert math.isnan(nearest(rows[:1]))


def frame(rows: list[tuple[str, int, str]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["subject", "id", "text"])


TEMPLATE = frame(
    [("item", 0, "Alien by Ridley Scott."), ("item", 1, "Big  with\nTom Hanks."), ("user", 0, "likes Big")]
)
MODEL = frame([("user", 0, "likes many slow films"), ("item", 1, "Big with Bill Murray."), ("auxiliary", 2, "Horror")])
ASKED = {("item", 0): "Alien Ridley Scott", ("item", 1): "BIG: tom hanks", ("user", 0): "Big"}
PROMPTS: dict[str, dict[tuple[str, int], str]] = dict.fromkeys(("template", "model", "a", "b"), ASKED)


def test_profile_sets_are_compared_on_the_subjects_they_share() -> None:
    vectors = ProfileVectors(torch.eye(2), torch.eye(3, 2))
    both = {"template": TEMPLATE, "model": MODEL}
    table = quality_table(both, PROMPTS, {"item": 3, "user": 2}, {"template": vectors})
    assert table[["profiles", "subject", "n"]].to_numpy().tolist() == [
        ["template", "item", 1],
        ["model", "item", 1],
        ["template", "user", 1],
        ["model", "user", 1],
    ]
    assert table["faithfulness"].fillna(-1).tolist() == [1, 0.5, 1, -1]
    assert table["with_names"].tolist() == [1, 1, 1, 0]
    assert table["words_max"].tolist() == [4, 4, 2, 4]
    assert table["over_limit"].tolist() == [1, 1, 0, 1]
    assert table["spread"].isna().all()


def test_spread_is_that_of_the_compared_rows() -> None:
    vectors = ProfileVectors(torch.eye(1, 3), torch.eye(3))
    table = quality_table({"template": TEMPLATE}, PROMPTS, {"item": 9, "user": 9}, {"template": vectors})
    assert table.set_index("subject")["spread"]["item"] == pytest.approx(1)
    assert table.set_index("subject")["nearest"]["item"] == pytest.approx(1)
    short = ProfileVectors(torch.eye(1, 3), torch.eye(1, 3))
    with pytest.raises(DataError, match="vectors of template have 1 rows, but there is a profile of item 1"):
        quality_table({"template": TEMPLATE}, PROMPTS, {"item": 9, "user": 9}, {"template": short})


def test_wrong_input_is_named() -> None:
    with pytest.raises(DataError, match=r"no prompt of profile set template for \('item', 1\)"):
        measure_profiles({"template": TEMPLATE}, {"template": {pair: ASKED[pair] for pair in list(ASKED)[::2]}})
    with pytest.raises(ConfigError, match="no limit of words for the subject named 'user'"):
        quality_table({"template": TEMPLATE}, PROMPTS, {"item": 9})
    with pytest.raises(DataError, match=r"no subject has a profile of each profile set \(a, b\)"):
        measure_profiles({"a": TEMPLATE, "b": MODEL.tail(1)}, PROMPTS)
    with pytest.raises(DataError, match="no subject has a profile"):
        measure_profiles({}, PROMPTS)
    with pytest.raises(DataError, match="more than one for"):
        measure_profiles({"a": pd.concat([TEMPLATE, TEMPLATE])}, PROMPTS)
    with pytest.raises(DataError, match="unknown subject film"):
        measure_profiles({"a": frame([("film", 0, "x")])}, PROMPTS)
