import json
import time
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spike_kit.profiles.checks import REMEDIES, find_problem, tidy
from spike_kit.profiles.store import Answer

GOOD = "A slow, sad drama about the people of a small town, for viewers who like quiet films."


def answer(text: str, finish_reason: str = "stop", refusal: str = "") -> Answer:
    return Answer(text, finish_reason, {"prompt_tokens": 1, "completion_tokens": 1}, 0.1, refusal)


@pytest.mark.parametrize(
    "text",
    [
        f"  {GOOD}\n\n",
        GOOD.replace(" ", "\u00a0").replace("slow", "sl\u200bow"),
        f'"{GOOD}"',
        f"“{GOOD}”",
        f"```json\n{json.dumps({'profile': GOOD}, indent=2)}\n```",
        json.dumps({"text": GOOD}),
        f"<think></think>\n```text\n{GOOD}\n```",
        f"<|channel|>analysis<|message|>Be short.<|end|><|start|>assistant<|channel|>final<|message|>{GOOD}",
        f"analysisWe need to write a profile and keep it short.assistantfinal{GOOD}",
        f"◁think▷The user wants a profile.◁/think▷{GOOD}",
        f"[THINK]The user wants a profile.[/THINK]{GOOD}",
        f"Okay, the data say it is a drama. I should be brief.\n</think>\n\n{GOOD}",
        f"<s> {GOOD}</s><|im_end|>",
        f"### Heat (1995)\n{GOOD}",
        f"Profile:\n\n{GOOD}",
        f"**Profile:** {GOOD.replace('sad', '**sad**')}",
    ],
)
def test_what_surrounds_a_profile_is_taken_off(text: str) -> None:
    assert tidy(text) == GOOD
    assert find_problem(answer(text), 150) == ""


@pytest.mark.parametrize(
    "text",
    [
        'A film called "Heat" and another called "Alien"',
        '"Heat" and "Alien" are films for the patient.',
        "'Tis a tale of the sea and its people, as told by those who sail'",
        'She says {"a": 1} and means it.',
        '{"a": "one text", "b": "another text"}',
        "{not json at all}",
        "The profile: a form of art about the face.",
        "#1 hits of the decade, for those who dance.",
    ],
)
def test_what_belongs_to_a_text_stays(text: str) -> None:
    assert tidy(text) == text.removeprefix("'").removesuffix("'")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("\u200b", "empty"),
        ("A drama.", "empty"),
        ("1 2 3 4 5 6 7", "empty"),
        ("<think>all is thought</think>", "empty"),
        ("I’m sorry, but I can’t help with that request.", "refused"),
        ("I cannot write a profile of this person.", "refused"),
        ("As an AI language model, I have no opinions about films.", "refused"),
        ("**I'm unable to write the profile that was asked for.**", "refused"),
        ("I'm sorry " + "and the story of the town goes on with the people of it " * 8, ""),
        ("<think>It is a drama and I should", "thoughts"),
        ("analysisWe need to write a profile of the film, which is", "thoughts"),
        ("Ein langsames, trauriges Drama über Menschen in einer kleinen Stadt, die vieles verlieren und doch hoffen.",
         "language"),
        ("Медленная драма о людях маленького города, для тех, кто любит тихие фильмы и долгие разговоры.", "language"),
        ("这 是 一 部 关于 小镇 的 慢 节奏 剧情片", "language"),
        ('{"plot": "a story of the sea", "taste": "for the people of the town"}', "format"),
        ("the film and the sea " * 30, ""),
        ("the film and the sea " * 31, "too_long"),
        ("Miyazaki (宮崎 駿) tells the story of a girl and of the spirits that she meets in a bath house.", ""),
        (answer(GOOD, "length"), "truncated"),
        (answer("I'm sorry, no.", "length"), "truncated"),
        (answer("", "length"), "thoughts"),
        (Answer("", "stop", {}, 0.1, thoughts="reasoning"), "thoughts"),
        (Answer(GOOD, "stop", {}, 0.1, thoughts="reasoning"), ""),
        (answer(GOOD, "content_filter"), "refused"),
        (answer("", "stop", refusal="I will not."), "refused"),
        (answer(GOOD, "eos"), ""),
    ],
)  # fmt: skip
def test_what_is_wrong_with_an_answer(text: str | Answer, problem: str) -> None:
    given_answer = answer(text) if isinstance(text, str) else text
    assert find_problem(given_answer, 150) == problem


MARKS = ["<|end|>", "<|channel|>final<|message|>", "[THINK]", "</s>", "analysisW", "assistantfinal", "```", "<think>"]
MARKS += ["</think>", "{", "}", '"', "“", "”", "'", "**", "*", '{"a": "', '"}', '{"a":' * 50, "[" * 50]
WORDS = ["\n", " ", "word ", "json\n", "# Head\n", "Profile: ", "I'm sorry", "\u200b", "\x00", "\\", "é", "影"]
PIECES = st.sampled_from([*MARKS, *WORDS])
TEXTS = st.one_of(st.text(max_size=80), st.lists(PIECES, max_size=14).map("".join))


LONG = ['{"a":' * 100_000, "<think>" * 4_000, "#" * 100_000, "```" * 30_000, "<|" * 50_000, "{" * 50_000, "# " * 50_000]
LONG += ["analysis" + "A" * 100_000, "```json\n" + "\n " * 500 + "x", "```" + "\n" * 1000 + "word" + "\n" * 1000 + "x"]


@settings(max_examples=300, derandomize=True)
@given(TEXTS, st.sampled_from(["stop", "length", "content_filter", ""]), st.integers(1, 200))
def test_no_text_is_too_strange_and_a_tidy_one_stays_as_it_is(text: str, reason: str, limit: int) -> None:
    line = tidy(text)
    assert tidy(line) == line == " ".join(line.split())
    assert not any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in line)
    assert find_problem(answer(text, reason), limit) in ("", *REMEDIES)


@pytest.mark.parametrize("text", LONG, ids=lambda text: repr(text[:9]))
def test_no_answer_holds_the_run_up(text: str) -> None:
    started = time.process_time()
    tidy(text)
    assert time.process_time() - started < 0.1
    assert find_problem(answer(text), 150) in ("", *REMEDIES)
