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
        f"<THINKING>\nthe user wants\n</Thinking>\n\n{GOOD}",
        f'<think time="3 s">It is sad. I should be brief.</think>{GOOD}',
        f"<seed:think>It is sad.</seed:think>{GOOD}",
        f"<thought_process>It is sad.</thought_process><answer>{GOOD}</answer>",
        f"<|begin_of_thought|>It is sad.<|end_of_thought|><|begin_of_solution|>{GOOD}<|end_of_solution|>",
        f"<|START_THINKING|>It is sad.<|END_THINKING|><|START_RESPONSE|>{GOOD}<|END_RESPONSE|>",
        f"<think><think>It is sad.</think>{GOOD}",
        f"<think>a <think>b</think> c</think>{GOOD}",
        f"{GOOD}\n<think>Was that short enough? I think so.",
        f"{GOOD}\n<think>Was that short enough? I think so.</think>",
        f"It is sad.</reasoning>\n{GOOD}",
        f"<|channel|>analysis<|message|>Short.<|end|><|channel|>final <|constrain|>text<|message|>{GOOD}",
        f"analysis\nwe need to be short\nassistantfinal\n{GOOD}",
        f"assistantfinal{GOOD}",
        f"**Thinking:**\nIt is sad.\n\n**Answer:**\n{GOOD}",
        json.dumps({"profile": f"<think>It is sad.</think>{GOOD}"}),
        json.dumps({"reasoning": "It is sad.", "profile": GOOD}),
        f"Here is the profile:\n\n```\n{GOOD}\n```",
        f"```\n<think>It is sad.</think>\n{GOOD}\n```",
        f"~~~\n{GOOD}\n~~~",
        f"<|start_header_id|>assistant<|end_header_id|>\n\n{GOOD}<|eot_id|><|end_of_text|>",
        f"<|im_start|>assistant\n{GOOD}<|im_end|>\n<|im_start|>user\nAnother one, please.",
        f"<start_of_turn>model\n{GOOD}<end_of_turn>",
        f"assistant\n\n{GOOD}",
        f"**Assistant:** {GOOD}",
        f"[INST] Write a profile of this film. [/INST] {GOOD}",
        f"<bos>{GOOD}<eos>" + "<pad>" * 40,
        f"<｜Assistant｜>{GOOD}<｜end▁of▁sentence｜>",
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
        "[THINK] is a film of 1999 about the mind, for those who like to think about thinking.",
        "The documentary [THINK] and its sequel [/THINK] are about the mind.",
        "The programmer writes <think> and </think> on the wall, and the town wakes up.",
        "A film about HTML in which <b>bold</b> people and <think> tags play a role.",
        "The user likes [Reason], the singer <Reflection>, [REC] and films whose thoughts go deep.",
        "We Need to Talk About Kevin is a drama about the thoughts of a mother.",
        "Let's Get Lost is a high-profile documentary about the life of a singer.",
        "Thought: The Movie is a film about the mind and the people in it.",
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
        ("analysis\n\nThe film is sad.", "thoughts"),
        ("<|channel|>analysis<|message|>The film is sad.<|end|>", "thoughts"),
        ("<|channel|>commentary to=functions.f <|constrain|>json<|message|>The film is sad", "thoughts"),
        ("<|begin_of_thought|>The film is sad and slow", "thoughts"),
        ("◁think▷The film is sad and slow", "thoughts"),
        ("[THINK] the film is sad and slow", "thoughts"),
        ("The film is sad and slow.</think>", "thoughts"),
        ("<think>a <think>b</think> The film is sad", "thoughts"),
        ('{"profile": "<think>The film is sad and slow"}', "thoughts"),
        ("Okay, the film is sad. The profile must be short.", "thoughts"),
        ("The user wants a short profile of the film.", "thoughts"),
        ("Thinking Process: 1. The film is sad.", "thoughts"),
        ("We need to produce one paragraph about the film.", "thoughts"),
        (f"The film is sad.<|a_new_mark|>{GOOD}", "format"),
        (f"<ponder>The film is sad.</ponder>{GOOD}", "format"),
        (f"{GOOD}<|im_e", "format"),
        (f'[{{"profile": "{GOOD}"}}]', "format"),
        (f"{{'profile': '{GOOD}'}}", "format"),
        (f'{{"profile": "{GOOD}', "format"),
        (f'Here it is: {{"profile": "{GOOD}"}}', "format"),
        (f"```\n{GOOD}\n```\nLet me know if it should change.", "format"),
        ("[REC] is a horror film set in the flats of Barcelona, for the fans of [REC]", ""),
        ("{Proof} is a drama of the mind, for fans of the play {Proof}", ""),
        ("Here is the profile that you asked for:", "empty"),
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
LONG += ["a <think> " * 10_000, "<think>a" * 12_000, "a</think>" * 10_000, "<pad>" * 20_000, "[THINK] " * 12_000]
LONG += ["``` " * 25_000, "Thinking:\nAnswer\n" * 6_000, "x:\n" * 30_000, "<|im_start|>\n" * 8_000]
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
