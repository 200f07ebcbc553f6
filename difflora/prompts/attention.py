"""Attention weights and BREAK, by A1111's rule."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from difflora.prompts.foreign import find_foreign
from difflora.prompts.source import Problem, Source, raise_problems, read_source

ROUND_WEIGHT = 1.1
SQUARE_WEIGHT = 1 / 1.1

_BREAK = re.compile(r"\bBREAK\b")
_BREAK_INSIDE = (
    "inside brackets A1111 takes BREAK for a word of weight -1: close them before it, open them after."
)


@dataclass(frozen=True, slots=True)
class Segment:
    """Text that is encoded with one attention weight."""

    text: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Break:
    """Where the text goes on in a new chunk of tokens."""


@dataclass(slots=True)
class _Bracket:
    """`start` is the opening character, [stop, end) the closing one with its number; empty if not closed."""

    kind: str
    start: int
    stop: int
    end: int
    weight: float


def parse_attention(text: str) -> tuple[Segment | Break, ...]:
    """The text in segments of one weight each, in order, with its BREAKs; equal neighbours are joined.

    `(word:1.2)` is weighted by 1.2, `(word)` by 1.1, `[word]` by 1/1.1; nested weights multiply. A backslash
    makes the next character literal. As in A1111, a bracket never closed is closed at the end of the text,
    one never opened is literal, and round and square brackets pair up without regard to each other. Spaces
    around a BREAK go. An empty text is one empty segment.

    Raises PromptError that names, with its position, everything which A1111 or its extensions would read as
    other syntax (prompt editing, alternation, AND, tags, wildcards, dynamic prompts, comments), a weight that
    is not a finite decimal number, and BREAK inside weighted brackets.
    """
    source = read_source(text)
    problems = list(find_foreign(source))
    brackets = list(_brackets(source, problems))
    pieces = _pieces(source, brackets, problems)
    raise_problems(source, problems)
    return tuple(_joined(pieces)) or (Segment(""),)


def _brackets(source: Source, problems: list[Problem]) -> Iterator[_Bracket]:
    """Pairs of brackets in the order in which they close; those never closed last."""
    syntax, end = source.syntax, len(source.syntax)
    opened: dict[str, list[_Bracket]] = {"(": [], "[": []}
    colon = -1
    for index, char in enumerate(syntax):
        if char == ":":
            colon = index
        elif char in "()[]":
            if char in "([":
                weight = ROUND_WEIGHT if char == "(" else SQUARE_WEIGHT
                opened[char].append(_Bracket(char, index, end, end, weight))
            elif opened["(" if char == ")" else "["]:
                bracket = opened["(" if char == ")" else "["].pop()
                bracket.stop, bracket.end = index, index + 1
                if char == ")" and colon >= 0:
                    _read_weight(bracket, source, colon, problems)
                yield bracket
            colon = -1
    yield from opened["("]
    yield from opened["["]


def _read_weight(bracket: _Bracket, source: Source, colon: int, problems: list[Problem]) -> None:
    """Takes `:number` before the closing bracket for its weight, if that is what stands there."""
    written = source.syntax[colon + 1 : bracket.stop].strip()
    looks_decimal = set(written.lstrip("+-")) <= set("0123456789.") and written.lstrip("+-") != ""
    weight = _number(written)
    if looks_decimal and weight is not None and math.isfinite(weight):
        bracket.stop, bracket.weight = colon, weight
    elif looks_decimal or _number(written.replace(",", ".")) is not None:
        # A1111 would fail, or take the number for words.
        problems.append(
            Problem(
                colon,
                bracket.end,
                f"`{written[:40]}` is not a finite decimal number such as 1.2; `\\:` is a colon.",
            )
        )


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


@dataclass(frozen=True, slots=True)
class _Cut:
    """Characters [start, end) that are no text: a side of a bracket, or a BREAK with the spaces around it."""

    start: int
    end: int
    bracket: _Bracket | None
    opens: bool = False


def _cuts(source: Source, brackets: list[_Bracket]) -> list[_Cut]:
    cuts = [_Cut(b.start, b.start + 1, b, opens=True) for b in brackets]
    cuts += [_Cut(b.stop, b.end, b) for b in brackets if b.end > b.stop]
    for match in _BREAK.finditer(source.syntax):
        start, end = match.span()
        while start > 0 and source.syntax[start - 1].isspace():
            start -= 1
        while end < len(source.syntax) and source.syntax[end].isspace():
            end += 1
        cuts.append(_Cut(start, end, None))
    return sorted(cuts, key=lambda cut: cut.start)


def _pieces(source: Source, brackets: list[_Bracket], problems: list[Problem]) -> list[Segment | Break]:
    """The text between the cuts, each with the product of the weights open there."""
    pieces: list[Segment | Break] = []
    # Pairs of one kind nest, so one running product a kind is enough.
    products = {"(": [1.0], "[": [1.0]}
    end = 0
    for cut in _cuts(source, brackets):
        weight = products["("][-1] * products["["][-1]
        pieces.append(Segment(source.chars[end : cut.start], weight))
        end = max(end, cut.end)
        if cut.bracket is None:
            pieces.append(Break())
            if weight != 1.0:
                problems.append(Problem(cut.start, cut.end, _BREAK_INSIDE))
        elif cut.opens:
            product = products[cut.bracket.kind][-1] * cut.bracket.weight
            products[cut.bracket.kind].append(product)
            if not math.isfinite(product):
                problems.append(
                    Problem(cut.start, cut.end, "the weights multiply to more than a number can hold.")
                )
        else:
            products[cut.bracket.kind].pop()
    pieces.append(Segment(source.chars[end:], products["("][-1] * products["["][-1]))
    return pieces


def _joined(pieces: list[Segment | Break]) -> Iterator[Segment | Break]:
    """Without empty segments, neighbours of equal weight made one."""
    texts: list[str] = []
    weight = 1.0
    for piece in pieces:
        if isinstance(piece, Segment) and not piece.text:
            continue
        if texts and (isinstance(piece, Break) or piece.weight != weight):
            yield Segment("".join(texts), weight)
            texts = []
        if isinstance(piece, Break):
            yield piece
        else:
            texts.append(piece.text)
            weight = piece.weight
    if texts:
        yield Segment("".join(texts), weight)
