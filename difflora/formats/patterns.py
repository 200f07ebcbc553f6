"""The patterns by which a PEFT configuration names modules, matched in time that no pattern can stretch.

A pattern is a regular expression for the end of a name, from one of its dots on: `(.*\\.)?(KEY)$` is how PEFT
has it. Plain names are looked up; a dot in them is a dot. The others are not given to `re`, which tries one
way after the other and may take for ever: here the places in all the names that a part of a pattern leads to
are the bits of one number, so that each part is one step, whatever it repeats.
"""

import re
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial

MAX_EXPRESSIONS = 32
MAX_PATTERN = 200
MAX_WORK = 200_000_000
"""How many times the letters of the names may be gone through by the letters of the expressions."""

_PRINTABLE = "".join(map(chr, range(32, 127)))
_LOOK_UP = 100  # what finding the plain names costs, in letters of expressions
_LITERAL = re.compile(r"(\^?)((?:[\w-]|\\?\.|\\-)+)\$?")
# One letter of a name; of sets those that `re` takes without a warning.
_LETTER = r"\\[wdWD.\-]|\[\^?(?:\\[wd.\-]|\w-\w|[\w.*+?$()])+-?\]|[\w.-]"
_TOKEN = re.compile(rf"(?P<letter>{_LETTER})(?P<repeat>[*+?]?)|(?P<mark>\((?:\?:)?|[)|^$])")

Places = int
"""Bit i is set where a pattern is matched up to letter i of the text."""
_Step = Callable[["_Text", Places], Places]


def first_matches(title: str, patterns: Sequence[str], names: Collection[str]) -> dict[str, int]:
    """Name -> the number of the first pattern that matches it; names that none matches are not in it.

    Raises ValueError, naming `title`, if a pattern is no regular expression, uses more of the language than
    letters, sets, groups of alternatives, and `?`, `*` or `+` after a letter, or all of them are too many.
    """
    whole: dict[str, int] = {}
    tails: dict[str, int] = {}
    expressions: dict[int, _Step] = {}
    letters = _LOOK_UP
    for order, pattern in enumerate(patterns):
        if match := _LITERAL.fullmatch(pattern):
            table = whole if match[1] else tails
            table.setdefault(match[2].replace("\\", ""), order)
        else:
            expressions[order] = _expression(title, pattern)
            letters += len(pattern)
    if len(expressions) > MAX_EXPRESSIONS:
        raise ValueError(f"{title} has {len(expressions)} expressions, the limit is {MAX_EXPRESSIONS}")
    if letters * sum(map(len, names)) > MAX_WORK:
        raise ValueError(
            f"{title} has {letters - _LOOK_UP} letters of expressions for {len(names)} names: too many"
        )
    hits = {name: found for name in names if (found := _looked_up(name, whole, tails))}
    text = _Text(names)
    for order, step in expressions.items():
        for name in text.matched(step):
            hits.setdefault(name, []).append(order)
    return {name: min(orders) for name, orders in hits.items()}


def _looked_up(name: str, whole: Mapping[str, int], tails: Mapping[str, int]) -> list[int]:
    starts = [0, *(place + 1 for place, letter in enumerate(name) if letter == ".")] if tails else []
    found = [tails[tail] for start in starts if (tail := name[start:]) in tails]
    return [*found, whole[name]] if name in whole else found


class _Text:
    """All the names in one text, each with a line break after it, which no letter of a pattern is."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = list(names)
        self._bytes = "".join(f"{name}\n" for name in self._names).encode("ascii", "replace")
        self._found: dict[str, Places] = {}
        self.ends = self._where(b"\n")
        self.beginnings = (self.ends << 1 | 1) & ((1 << len(self._bytes)) - 1)

    def places(self, letter: str) -> Places:
        """Where one letter of a pattern stands."""
        if letter not in self._found:
            self._found[letter] = self._where("".join(re.findall(letter, _PRINTABLE)).encode())
        return self._found[letter]

    def matched(self, step: _Step) -> list[str]:
        """The names that an expression matches from their beginning or a dot on to their end."""
        ends = step(self, self.beginnings | self.places(r"\.") << 1) & self.ends
        if not ends:
            return []
        is_end = bin(ends)[:1:-1]
        found, end = [], -1
        for name in self._names:
            end += len(name) + 1
            found += [name] if is_end[end : end + 1] == "1" else []
        return found

    def _where(self, letters: bytes) -> Places:
        marks = bytearray(b"0" * 256)
        for code in letters:
            marks[code] = ord("1")
        return int(self._bytes.translate(bytes(marks))[::-1] or b"0", 2)


def _expression(title: str, pattern: str) -> _Step:
    tokens: deque[re.Match[str]] = deque()
    end = 0
    while end < len(pattern) <= MAX_PATTERN and (token := _TOKEN.match(pattern, end)):
        tokens.append(token)
        end = token.end()
    if end < len(pattern):
        raise ValueError(f"{title} {pattern[:80]!r} is too involved to be matched safely")
    try:
        for token in tokens:
            re.compile(token["letter"] or "")
        return _alternatives(tokens, is_group=False)
    except re.error as error:
        raise ValueError(f"{title} {pattern!r} is no regular expression: {error}") from error


def _alternatives(tokens: deque[re.Match[str]], *, is_group: bool) -> _Step:
    """What `tokens` hold up to the end of the group, which are taken. Raises re.error if it has no end."""
    branches: list[list[_Step]] = [[]]
    while tokens:
        token = tokens.popleft()
        match token["mark"]:
            case None:
                branches[-1].append(partial(_REPEATED[token["repeat"]], token["letter"]))
            case "|":
                branches.append([])
            case "^":
                branches[-1].append(lambda text, at: at & text.beginnings)
            case "$":
                branches[-1].append(lambda text, at: at & text.ends)
            case ")":
                if is_group:
                    return partial(_any_of, branches)
                raise re.error("a group ends that does not begin")
            case _:
                branches[-1].append(_alternatives(tokens, is_group=True))
    if is_group:
        raise re.error("a group does not end")
    return partial(_any_of, branches)


def _any_of(branches: Sequence[Sequence[_Step]], text: _Text, at: Places) -> Places:
    found = 0
    for steps in branches:
        here = at
        for step in steps:
            here = step(text, here)
        found |= here
    return found


def _once(letter: str, text: _Text, at: Places) -> Places:
    return (at & text.places(letter)) << 1


def _perhaps(letter: str, text: _Text, at: Places) -> Places:
    return at | _once(letter, text, at)


def _often(letter: str, text: _Text, at: Places) -> Places:
    """From every place on through all in a row: a bit added to a run of ones is carried to the end of it."""
    run = text.places(letter)
    return at | ((run + (at & run)) ^ run)


def _at_least_once(letter: str, text: _Text, at: Places) -> Places:
    return _often(letter, text, _once(letter, text, at))


_REPEATED: Mapping[str, Callable[[str, _Text, Places], Places]] = {
    "": _once,
    "?": _perhaps,
    "*": _often,
    "+": _at_least_once,
}
