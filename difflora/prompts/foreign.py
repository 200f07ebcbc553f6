"""Syntax that A1111 or its extensions would act on and difflora does not: found, named, never passed on."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from difflora.prompts.source import Problem, Source
from difflora.prompts.tags import LORA_WORDS, find_tags, foreign_tag

_LONGEST_NUMBER = 32
_CLOSES = {")": "(", "]": "[", "}": "{"}

_REGIONS = "regions are not supported: describe the places in words, or write the word in lower case."
_COMPOSITION = (
    "joining prompts (AND) is not supported: write `and` in lower case, or one prompt after another."
)
KEYWORDS = {
    "AND": _COMPOSITION,
    "AND_PERP": _COMPOSITION,
    "AND_SALT": _COMPOSITION,
    "AND_TOPK": _COMPOSITION,
    "ADDBASE": _REGIONS,
    "ADDCOMM": _REGIONS,
    "ADDCOL": _REGIONS,
    "ADDROW": _REGIONS,
}
_KEYWORD = re.compile(r"\b(?:" + "|".join(KEYWORDS) + r")\b")
_EDITING = (
    "changing the prompt while drawing (prompt editing) is not supported: write one of the words, "
    "or `(word:0.8)` for a weight."
)
_ALTERNATION = "taking turns between words (alternation) is not supported: write one of them."
_DYNAMIC = "choosing at random (dynamic prompts) is not supported: write one of the words."
_NOVELAI = "curly brackets give no emphasis: write `(word:1.05)`, or `\\{` for the character itself."
_COMMENT = "A1111 hides the rest of such a line: take it out, or write `\\#` for the character itself."
_WILDCARD = "wildcards are not supported: write the words, or `\\_` for the character itself."
_FINAL_WEIGHT = (
    "A1111 reads a number at the very end as the weight of the whole prompt: write `(words:1.2)` for a "
    "weight, or `\\:` for the character itself."
)


@dataclass(slots=True)
class _Frame:
    """An open bracket; where its last colon and its first bar are, on its own level."""

    kind: str
    start: int
    colon: int = -1
    bar: int = -1


def find_foreign(source: Source) -> Iterator[Problem]:
    """Everything in a prompt (its lora tags taken out) that is other syntax than attention and BREAK."""
    yield from _in_brackets(source.syntax)
    yield from _wildcards(source.syntax)
    for match in _KEYWORD.finditer(source.syntax):
        yield Problem(match.start(), match.end(), KEYWORDS[match.group()])
    for found in find_tags(source):
        lora = "adapters are named in the prompt only, and taken out of it before it is encoded (`resolve`)."
        yield Problem(found.start, found.stop, lora if found.word in LORA_WORDS else foreign_tag(found))
    comment = source.syntax.find("#")
    if comment >= 0:
        line_end = source.syntax.find("\n", comment)
        yield Problem(comment, len(source.syntax) if line_end < 0 else line_end, _COMMENT)
    colon = source.syntax.rfind(":")
    if colon >= 0 and _is_number(source.syntax, colon + 1, len(source.syntax)):
        yield Problem(colon, len(source.syntax), _FINAL_WEIGHT)


def _in_brackets(syntax: str) -> Iterator[Problem]:
    frames: list[_Frame] = []
    for index, char in enumerate(syntax):
        if char in "([{":
            frames.append(_Frame(char, index))
        elif char == ":" and frames:
            frames[-1].colon = index
        elif char == "|" and frames and frames[-1].bar < 0:
            frames[-1].bar = index
        elif char in _CLOSES and frames and frames[-1].kind == _CLOSES[char]:
            yield from _closed(frames.pop(), index, syntax)


def _closed(frame: _Frame, end: int, syntax: str) -> Iterator[Problem]:
    if frame.kind == "{":
        yield Problem(frame.start, end + 1, _NOVELAI if frame.bar < 0 else _DYNAMIC)
    elif frame.kind == "[" and frame.bar >= 0:
        yield Problem(frame.start, end + 1, _ALTERNATION)
    elif frame.kind == "[" and frame.colon >= 0 and _is_number(syntax, frame.colon + 1, end):
        yield Problem(frame.start, end + 1, _EDITING)


def _wildcards(syntax: str) -> Iterator[Problem]:
    start = syntax.find("__")
    while start >= 0:
        end = syntax.find("__", start + 2)
        if end < 0:
            return
        name = syntax[start + 2 : end]
        is_wildcard = name != "" and not any(char.isspace() for char in name)
        if is_wildcard:
            yield Problem(start, end + 2, _WILDCARD)
        start = syntax.find("__", end + 2) if is_wildcard else end


def _is_number(syntax: str, start: int, end: int) -> bool:
    """Whether a number stands between two positions, with spaces around it or not."""
    if end - start > _LONGEST_NUMBER:
        return False
    text = syntax[start:end].strip()
    if not set(text) <= set("0123456789.+-eE"):
        return False
    try:
        float(text)
    except ValueError:
        return False
    return True
