"""What a model says into one clean paragraph, and what can be wrong with it."""

import json
import re
from typing import Literal

from spike_kit.data.text import clean, mostly_not_latin
from spike_kit.profiles.store import Answer

Problem = Literal["", "empty", "thoughts", "refused", "truncated", "format", "language", "too_long"]
"""What is wrong with an answer; nothing if empty. All but ``too_long`` make it unusable."""

REMEDIES: dict[str, str] = {
    "empty": "The reply held no paragraph. Write the profile now, as one paragraph of plain English.",
    "thoughts": "The reply held thoughts alone. Write the profile at once, without thinking about it first.",
    "refused": (
        "Nothing here calls for declining: it is a short, factual description for a recommender. Write the profile "
        "as one paragraph from the data alone."
    ),
    "truncated": "The reply broke off. Write a shorter paragraph, well below {limit} words, and end it.",
    "format": "The reply was JSON. Write the profile alone, as one paragraph of plain English.",
    "language": "The reply was not in English. Write the same profile as one paragraph in English.",
    "too_long": "The reply had {words} words. Say the same in at most {limit} words, as one paragraph.",
}
"""What is said to the model when it is asked once more."""

_LAYERS = 8
"""Wrappers inside each other that are taken off; more of them is nothing a model would send."""

_REFUSAL_WORDS = 80
_FEWEST_WORDS = 3
_FOREIGN_SHARE = 0.08
_FOREIGN_FROM = 8

_NAMES = "think|thinking|thought|thoughts|reasoning"
_THOUGHTS_BEGIN = re.compile(
    rf"<(?:{_NAMES})>|◁think▷|\[THINK\]|<\|channel\|>(?:analysis|commentary)<\|message\|>|\A\s*analysis(?=[A-Z])"
)
_THOUGHTS_END = re.compile(rf"</(?:{_NAMES})>|◁/think▷|\[/THINK\]|<\|channel\|>final<\|message\|>")
_BARE_CHANNELS = re.compile(r"\A\s*analysis(?=[A-Z]).*assistantfinal", re.S)
_CONTROL = re.compile(r"<\|[\w/]{1,40}\|>|</?s>|<(?:start|end)_of_turn>|\[/?INST\]")
_FENCED = re.compile(r"```(?:[^\S\n]*[^\W_]*[^\S\n]*\n)?(.*)```", re.S)
_HEADING = re.compile(r"\A(?:\s*#[^\n]*|\s*\*\*[^\n]+\*\*[ :]*)\n(?=\s*\S)")
_LABEL = re.compile(r"^\W{0,3}(?:user |item |entity )?profile\W{0,3}:[\s*]{0,3}", re.I)
_REFUSAL = re.compile(
    r"^\W*(?:(?:i['’]m|i am) (?:sorry|unable|not able)|sorry\b|i (?:cannot|can['’]t|can not|won['’]t)"
    r"|as an ai\b|i apologi.e)",
    re.I,
)
_WORD = re.compile(r"[^\W\d_]+")
_ENGLISH = frozenset(
    ("the", "of", "and", "to", "is", "with", "who", "that", "for", "by", "this", "from", "it", "are", "its", "their")
)
_FOREIGN = frozenset(
    word
    for words in (
        "der das und ist mit ein eine von für den dem auf nicht sich auch wird",  # German
        "le les des et est une dans pour qui sur du avec par ce cette au",  # French
        "el los las una y es con por para que del su como más",  # Spanish
        "il di che è gli della delle nel con sono si un più",  # Italian
        "os uma é com não do da dos das em um ao mais",  # Portuguese
        "het een van en met voor dat niet zijn wordt",  # Dutch
        "och är som av för med på det ett inte",  # Swedish
        "jest się nie na w i z dla oraz przez",  # Polish
    )
    for word in words.split()
)


def tidy(text: str) -> str:
    """Turn an answer into one line, without thoughts, control tokens, fences, a JSON wrapper, heading or quotes."""
    for _ in range(_LAYERS):
        before, text = text, _unpacked(text)
        if text == before:
            break
    return text


def _unpacked(text: str) -> str:
    """Take one layer of each wrapper off."""
    text = _CONTROL.sub("", without_thoughts(text)).strip()
    if fenced := _FENCED.fullmatch(text):
        text = fenced[1].strip()
    if text.startswith("{"):
        text = _unwrapped(text)
    text = clean(_LABEL.sub("", _HEADING.sub("", text), count=1).replace("**", ""))
    if len(text) > 1 and text[0] + text[-1] in ('""', "“”", "''") and text[0] not in text[1:-1]:
        text = text[1:-1].strip()
    return text


def _unwrapped(text: str) -> str:
    """Text of a JSON object: its field ``profile``, or its only one."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return text
    only = values.get("profile", next(iter(values.values())) if len(values) == 1 else None)
    return only if isinstance(only, str) else text


def without_thoughts(text: str) -> str:
    """What follows the last end of thoughts, or else what stands before their first beginning.

    Thoughts that do not end stay: see `find_problem`. Known are the marks of ``<think>`` and its like, of Kimi
    (``◁think▷``), Magistral (``[THINK]``) and gpt-oss (channels, with their marks or without).
    """
    *before, last = _THOUGHTS_END.split(_BARE_CHANNELS.sub("</think>", text))
    if not before:
        return text
    return last.strip() or _THOUGHTS_BEGIN.split(text)[0]


def thoughts_advice(answer: Answer) -> str:
    """What to change where a model spent the whole answer on its thoughts; empty where it did not."""
    if not _is_thoughts_alone(answer):
        return ""
    where = f"the answer lies in `{answer.thoughts}`" if answer.thoughts else "the answer holds thoughts alone"
    return f'{where}: raise --max-tokens, or switch thinking off, --extra \'{{"reasoning_effort": "none"}}\' say'


def _is_thoughts_alone(answer: Answer) -> bool:
    """Whether thoughts did not end, or text is missing where there are thoughts or the limit was reached."""
    text = without_thoughts(answer.text).strip()
    if not text:
        return bool(answer.thoughts) or (answer.finish_reason == "length" and not answer.refusal)
    return _THOUGHTS_BEGIN.match(text) is not None


def find_problem(answer: Answer, limit: int) -> Problem:
    """Judge an answer that should be one English paragraph of at most ``limit`` words.

    Refusals are recognised by how they begin. A text is foreign if most of its letters are not Latin, or if the
    commonest function words of eight other languages outnumber the English ones.
    """
    text = tidy(answer.text)
    words = text.split()
    if answer.refusal or answer.finish_reason == "content_filter":
        return "refused"
    if _is_thoughts_alone(answer):
        return "thoughts"
    if answer.finish_reason == "length":
        return "truncated"
    if text[:1] in ("{", "[") and text[-1:] in ("}", "]"):
        return "format"
    if len(words) < _FEWEST_WORDS or not _WORD.search(text):
        return "refused" if _REFUSAL.match(text) else "empty"
    if _REFUSAL.match(text) and len(words) < _REFUSAL_WORDS:
        return "refused"
    if _is_foreign(text):
        return "language"
    return "too_long" if len(words) > limit else ""


def _is_foreign(text: str) -> bool:
    if mostly_not_latin(text):
        return True
    words = [word.lower() for word in _WORD.findall(text)]
    foreign, english = (sum(word in known for word in words) for known in (_FOREIGN, _ENGLISH))
    return len(words) >= _FOREIGN_FROM and foreign > english and foreign >= _FOREIGN_SHARE * len(words)


def remedy(limit: int, problem: str, text: str) -> str:
    """Words for asking once more after an answer with a problem."""
    return REMEDIES[problem].format(limit=limit, words=len(text.split()))
