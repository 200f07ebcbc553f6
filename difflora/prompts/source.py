"""A prompt with its escapes read, and the problems found in it."""

from collections.abc import Sequence
from dataclasses import dataclass

from difflora.errors import PromptError, listing

# Stands in for an escaped character where syntax is looked for: neither a word character nor a space.
_LITERAL = "\x01"


@dataclass(frozen=True, slots=True)
class Source:
    """A prompt without its backslashes.

    `chars` is what the model would read, `syntax` the same with every escaped character blanked out, and
    `where[i]` the position in `text` that character i came from; `where` has one entry more, for the end.
    """

    text: str
    chars: str
    syntax: str
    where: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that cannot be used as written. `start` and `stop` are positions in `Source.syntax`."""

    start: int
    stop: int
    what: str


def read_source(text: str) -> Source:
    """The prompt with backslashes read: the next character is literal. A last one is dropped, as in A1111."""
    chars: list[str] = []
    syntax: list[str] = []
    where: list[int] = []
    escaped = False
    for position, char in enumerate(text):
        if char == "\\" and not escaped:
            escaped = True
            continue
        chars.append(char)
        syntax.append(_LITERAL if escaped or char == _LITERAL else char)
        where.append(position - escaped)
        escaped = False
    return Source(text, "".join(chars), "".join(syntax), (*where, len(text) - escaped))


def raise_problems(source: Source, problems: Sequence[Problem]) -> None:
    """Raises one PromptError that names every problem in the order of the prompt; none, no error."""
    if not problems:
        return
    lines = []
    for problem in sorted(problems, key=lambda p: p.start):
        start, stop = source.where[problem.start], source.where[problem.stop]
        excerpt = source.text[start : min(stop, start + 40)] + ("..." if stop > start + 40 else "")
        lines.append(f"at character {start + 1}, `{excerpt}`: {problem.what}")
    count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
    raise PromptError(f"the prompt cannot be used as written ({count}):\n{listing(lines, limit=10)}")
