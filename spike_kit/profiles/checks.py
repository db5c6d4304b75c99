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
    "format": "The reply was JSON or had markup. Write the profile alone, as one paragraph of plain English.",
    "language": "The reply was not in English. Write the same profile as one paragraph in English.",
    "too_long": "The reply had {words} words. Say the same in at most {limit} words, as one paragraph.",
}
"""What is said to the model when it is asked once more."""

_LAYERS = 16
"""Wrappers inside each other that are taken off; more of them is nothing a model would send."""

_REFUSAL_WORDS = 80
_FEWEST_WORDS = 3
_FOREIGN_SHARE = 0.08
_FOREIGN_FROM = 8

UNFINISHED = "<think>"
"""Stands before thoughts that do not end."""

_THINKING = r"(?:\w+[_:])?(?:think(?:ing)?|thoughts?|reason(?:ing)?|reflection|scratch_?pad|analysis|cot)(?:_\w+)?"
_ANSWER = "(?:final[_ ]?)?(?:answer|response|output|solution)|(?:user |item |entity )?profile"
_MARK = re.compile(
    rf"""(?:\A|(?=[<\[◁])) (?: (?P<end> [<\[◁]\|?\s*(?:/\s*|end_(?:of_)?)(?:{_THINKING})\s*\|?[>\]▷]
      | <\|channel\|>\s*final\b[^<\n]{{0,40}}(?:<\|constrain\|>[^<]{{0,20}})?(?:<\|message\|>)? | <channel\|>
      | <\|(?:begin_of|start)_(?:{_ANSWER})\|> | (?:(?<=[.!?:\n])|(?<=[.!?:]\ ))<(?:{_ANSWER})> | \[/INST\] )
    | (?P<sure> [<\[]\|(?:{_THINKING})\|[>\]] | ◁\s?think\s?▷
      | <\|channel\|?>\s*(?:analysis|commentary|thought)\b(?:[^<\n]{{0,80}}(?:<\|constrain\|>\s?\w*\s?)?<\|message\|>)?
      | \A\s*(?-i:(?:assistant)?(?:analysis|commentary)(?=[A-Z]|\s*\n)) )
    | <\s*(?:{_THINKING})(?:\s+\w+=[^<>]{{0,80}})?\s*/?> | \[(?:{_THINKING})\] )""",
    re.I | re.X,
)
_IN_SENTENCE = re.compile(r"(?<=[\w,;(“\"'’-])|(?<=[\w,;(“\"'’-][^\S\n])")
_GOES_ON = re.compile(r"(?<=\])(?:[(,:'’]| (?:\(|(?!this\b)[a-z]+s\b|(?:and|or|by|in|of|from|with|are)\b))")
_SENTENCE_END = re.compile(r"[.!?…:](?:\s|\Z)|\n")
_LABEL_OF_THOUGHTS = rf"\W*(?:here (?:is|are) my |assistant)?(?:{_THINKING}|commentary)(?: process| steps)?\W{{0,4}}"
_LABELLED = re.compile(
    r"\A\s*(?:assistant)?(?:analysis|commentary).*(?:assistantfinal|assistant\s*\n\s*final\s*\n)"
    rf"|\A(?i:{_LABEL_OF_THOUGHTS}[:\n].*\n\W*(?:here is my )?(?:{_ANSWER})\W{{0,4}}[:\n])",
    re.S,
)
_PLAN = re.compile(
    rf"(?:{_LABEL_OF_THOUGHTS})?\W*(?:(?:ok(?:ay)?|alright|hmm+|got it|let me see)[,.!…:]|we(?: are|['’]re) asked\b"
    r"|(?:here['’]s a )?(?:thinking|thought) process:|(?:(?:so|first|now|well)\W+)*"
    r"(?:(?:the )?user (?:wants|asks|asked|needs|is asking|has provided)|(?:(?:i|we) )?(?:need|should|must)"
    r"|(?:i|we)(?: will|['’]ll|['’]m going)|let(?: me|['’]s))\b"
    r"(?:[^.!?]{0,60}(?<![\w-])(?:profile|paragraph)|(?: to| first)* (?:write|produce|create|describe|think))\b)",
    re.I,
)
_TURN = r"(?:<\|(?:im_start|start_header_id|start|turn)\|?>|<start_of_turn>)\s*"
_OTHER_TURN = re.compile(rf"(?:{_TURN}(?:user|system|human)\b|<[|｜](?:user|system)[|｜]>).*", re.S | re.I)
_OWN_TURN = re.compile(
    rf"{_TURN}(?:assistant|model)\b|\A\s*(?:assistant(?=\s*\n|<\|)|model\s*\n|final\s*\n|(?:assistant)?final(?=[A-Z]))"
)
_CONTROL = re.compile(
    r"<[|｜]\s?[\w/▁]{1,40}\s?[|｜]?>|<[\w/▁]{1,40}[|｜]>|\[\|\w{1,40}\|\]|<(?:pad|bos|eos|unk|(?:start|end)_of_turn)>"
)
_EDGE = rf"(?:\[(?:/?INST|/?ASSISTANT|PAD|UNK|[BE]OS|EOT|END)\]|</?(?:s|eot|end|assistant|{_ANSWER})>)"
_EDGES = re.compile(rf"\A{_EDGE}|{_EDGE}\Z", re.I)
_FENCED = re.compile(r"(?:[^\n]{0,99}:\s*?\n)?(```|~~~)(?:[^\S\n]*(?:[^\W_]+[^\S\n]*)?\n)?(?:(.*?)\1|([^`~]*))", re.S)
_HEADING = re.compile(r"\A(?:\s*#[^\n]*|\s*\*\*[^\n]+\*\*[ :]*)\n(?=\s*\S)")
_LABEL = re.compile(rf"^[^\w\[{{(<\"']{{0,3}}(?:assistant|{_ANSWER})[^\w\]}})>\"']{{0,3}}:[\s*]{{0,3}}", re.I)
_QUOTED = re.compile(r"(?P<mark>\"{3}|[\"'`])(?P<text>(?:(?!(?P=mark)).)+)(?P=mark)|“(?P<typed>[^“]*)”")
_MARKUP = re.compile(
    r"(?:\A|: ?|\])(?:[\[{] ?[\"'\[{]|\{ ?\w+ ?:)|```|\A<([\w:=-]{2,40})>.*</\1>"
    r"|(?:</?(?!(?:em|sub|sup|strong)>)\w{2,40}>|\|\w{1,40}\|>|<\|\w{0,40})\Z"
)
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
    return clean(text)


def _unpacked(text: str) -> str:
    """Take one layer of each wrapper off."""
    text = text.strip()
    if fenced := _FENCED.fullmatch(text):
        return fenced[fenced.lastindex or 0]
    if text.startswith("{") and (value := _unwrapped(text)) != text:
        return value
    bare = without_thoughts(_OWN_TURN.sub("", _OTHER_TURN.sub("", _EDGES.sub("", text))))
    pieces = [piece for piece in _CONTROL.split(bare) if piece.strip()]
    if (bare := bare if len(pieces) > 1 else "".join(pieces).strip()) != text:
        return bare
    text = clean(_LABEL.sub("", _HEADING.sub("", text), count=1).replace("**", ""))
    if quoted := _QUOTED.fullmatch(text):
        text = (quoted["text"] or quoted["typed"]).strip()
    return text


def _unwrapped(text: str) -> str:
    """Text of a JSON object: its field ``profile``, or its only one beside thoughts."""
    try:
        values = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return text
    told = {name: value for name, value in values.items() if not re.fullmatch(_THINKING, name, re.I)}
    only = told.get("profile", next(iter(told.values())) if len(told) == 1 else None)
    return only if isinstance(only, str) else text


def without_thoughts(text: str) -> str:
    """Text without the thoughts in it; thoughts that do not end, and nothing before them, stay behind `UNFINISHED`.

    Known are the marks of ``<think>`` and its like (``<thinking>``, ``[THINK]``, ``<|begin_of_thought|>``, ...), of
    Kimi and gpt-oss (channels, with their marks or without), and thoughts and answer under labels. What stands before
    an end without a beginning is thoughts. A mark inside a sentence is a part of it (a film called [THINK]), unless
    whole sentences stand between it and its end.
    """
    text = _LABELLED.sub("</think>", text)
    marks = [*_MARK.finditer(text)]
    ends = [number for number, mark in enumerate(marks) if mark["end"]]
    kept, depth, place, quoted, unopened = [""], 0, 0, 0, False
    for number, mark in enumerate(marks):
        following = marks[number + 1] if ends and number < ends[-1] else None
        if (mark["end"] and quoted) or not (mark["end"] or mark["sure"] or depth or not _is_quoted(mark, following)):
            quoted += -1 if mark["end"] else 1
            continue
        between, place = text[place : mark.start()], mark.end()
        if mark["end"]:
            kept, unopened = (kept, unopened) if depth or not between.strip() else ([], True)
            depth = 0 if "final" in mark[0] else max(depth - 1, 0)
        elif not depth or between.strip():
            kept += [] if depth else [between]
            depth += 1
    kept += [] if depth else [text[place:]]
    told = "".join(kept)
    return UNFINISHED + _MARK.sub(" ", text) if (depth or unopened) and not told.strip() else told


def _is_quoted(mark: re.Match[str], following: re.Match[str] | None) -> bool:
    """Whether a mark that may begin thoughts is a part of a sentence; ``following`` only if an end follows."""
    within = bool(_IN_SENTENCE.match(mark.string, mark.start()))
    if following:
        return within and not _SENTENCE_END.search(mark.string, mark.end(), following.start())
    return within or bool(_GOES_ON.match(mark.string, mark.end()))


def thoughts_advice(answer: Answer) -> str:
    """What to change where a model spent the whole answer on its thoughts; empty where it did not."""
    if not _is_thoughts_alone(answer):
        return ""
    where = f"the answer lies in `{answer.thoughts}`" if answer.thoughts else "the answer holds thoughts alone"
    return f'{where}: raise --max-tokens, or switch thinking off, --extra \'{{"reasoning_effort": "none"}}\' say'


def _is_thoughts_alone(answer: Answer) -> bool:
    """Whether thoughts did not end, or text is missing where there are thoughts or the limit was reached."""
    text = tidy(answer.text)
    if not text:
        return bool(answer.thoughts) or (answer.finish_reason == "length" and not answer.refusal)
    return text.startswith(UNFINISHED) or (answer.finish_reason == "length" and _PLAN.match(text) is not None)


def find_problem(answer: Answer, limit: int) -> Problem:
    """Judge an answer that should be one English paragraph of at most ``limit`` words.

    Refusals are recognised by how they begin. A text is foreign if most of its letters are not Latin, or if the
    commonest function words of eight other languages outnumber the English ones.
    """
    text = tidy(answer.text)
    words = text.split()
    if answer.refusal or answer.finish_reason == "content_filter":
        return "refused"
    if _is_thoughts_alone(answer) or _PLAN.match(text):
        return "thoughts"
    if answer.finish_reason == "length":
        return "truncated"
    if _MARKUP.search(text) or _CONTROL.search(text):
        return "format"
    if len(words) < _FEWEST_WORDS or not _WORD.search(text) or text.endswith(":"):
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
