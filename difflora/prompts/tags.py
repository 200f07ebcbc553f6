"""`<lora:name:te[:unet]>` tags: found, read and removed from the text."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from decimal import Decimal

from difflora.prompts.source import Problem, Source, raise_problems, read_source

LORA_WORDS = ("lora", "lyco")

# What to do about the arguments and tags of other tools.
_ARGUMENTS = {
    "dyn": "reducing the rank inside a prompt is not supported: resize the adapter to a file of its own.",
    "lbw": "block weights are not supported in a prompt: use te= and unet=.",
    "lbwe": "block weights are not supported in a prompt: use te= and unet=.",
    "start": "switching an adapter on at a step is not supported: leave it out.",
    "stop": "switching an adapter off at a step is not supported: leave it out.",
    "step": "switching an adapter by steps is not supported: leave it out.",
    "hr": "there is no second pass with weights of its own: leave it out.",
}
_TAGS = {
    "hypernet": "hypernetworks are not supported: take the tag out.",
    "wildcard": "wildcards are not supported: write the words.",
    "random": "random choice is not supported: write one of the words.",
    "embedding": "an embedding is used by its bare name: write the word alone.",
}


@dataclass(frozen=True, slots=True)
class LoraTag:
    """One adapter asked for in a prompt: its name without extension, and its two weights."""

    name: str
    unet: float = 1.0
    text: float = 1.0

    def __str__(self) -> str:
        """The tag as A1111 reads it, with both weights spelt out: `<lora:name:te:unet>`."""
        return f"<lora:{self.name}:{decimal_text(self.text)}:{decimal_text(self.unet)}>"


@dataclass(frozen=True, slots=True)
class TaggedPrompt:
    """A prompt without its tags, exactly as it was around them, and one tag for each adapter named."""

    text: str
    tags: tuple[LoraTag, ...]


@dataclass(frozen=True, slots=True)
class FoundTag:
    """`<word:body>` at [start, stop) of the source; `body` is None where no `>` follows."""

    start: int
    stop: int
    word: str
    body: str | None


def parse_tags(prompt: str) -> TaggedPrompt:
    """The prompt without its `<lora:...>` tags (alias `<lyco:...>`), and the tags, in order of appearance.

    One number sets the weight of the text encoders and of the UNet; a second is for the UNet alone; `te=` and
    `unet=` override, and `te=` alone sets both, as in A1111. No number means 1. The same adapter named twice
    adds up.

    Raises PromptError, with the position, for a tag that is not closed, a weight that is not a finite decimal
    number, arguments of other tools (dyn, lbw=, ...), and tags of another kind.
    """
    source = read_source(prompt)
    problems: list[Problem] = []
    read = [(found, _read(found, problems)) for found in find_tags(source)]
    raise_problems(source, problems)
    return _without(prompt, source, read)


def salvage_tags(prompt: str) -> tuple[TaggedPrompt, tuple[str, ...]]:
    """`parse_tags` for the prompts of other tools, which raises nothing: every closed tag goes.

    Of an adapter's tag the name and the weights that can be read are kept. The second value holds those
    tags, as written, of which not everything was.
    """
    source = read_source(prompt)
    closed = [found for found in find_tags(source) if found.body is not None]
    read, refused = [], []
    for found in closed:
        problems: list[Problem] = []
        read.append((found, _read(found, problems)))
        if problems:
            refused.append(prompt[source.where[found.start] : source.where[found.stop]])
    return _without(prompt, source, read), tuple(refused)


def _without(prompt: str, source: Source, read: list[tuple[FoundTag, LoraTag]]) -> TaggedPrompt:
    """The prompt around the tags, and the tags that name an adapter, each name once."""
    tags: dict[str, LoraTag] = {}
    kept, end = [], 0
    for found, tag in read:
        known = tags.get(tag.name)
        both = tag if known is None else replace(tag, unet=known.unet + tag.unet, text=known.text + tag.text)
        if tag.name:
            tags[tag.name] = both
        kept.append(prompt[end : source.where[found.start]])
        end = source.where[found.stop]
    return TaggedPrompt("".join(kept) + prompt[end:], tuple(tags.values()))


def find_tags(source: Source) -> Iterator[FoundTag]:
    """Every unescaped `<word:...>`; of those that are not closed only `<lora:` and `<lyco:`."""
    syntax, last_close = source.syntax, source.syntax.rfind(">")
    start = syntax.find("<")
    while start >= 0:
        colon = start + 1
        while colon < len(syntax) and (syntax[colon].isalnum() or syntax[colon] in "_ "):
            colon += 1
        written, stop = syntax[start + 1 : colon], colon
        word = written.strip() if written.strip() in LORA_WORDS else written
        if word and " " not in word and syntax[colon : colon + 1] == ":":
            if colon < last_close:
                stop = syntax.index(">", colon) + 1
                yield FoundTag(start, stop, word, source.chars[colon + 1 : stop - 1])
            elif word in LORA_WORDS:
                yield FoundTag(start, len(syntax), word, None)
        start = syntax.find("<", stop)


def foreign_tag(found: FoundTag) -> str:
    """Why a tag that is not a lora tag is refused, and what to write instead."""
    if found.word.casefold() in LORA_WORDS:
        return f"the word is written in lower case: `<{found.word.casefold()}:`."
    known = _TAGS.get(found.word.casefold())
    return (
        known
        or f"there are no `<{found.word}:...>` tags: take it out, or write `\\<` for the character itself."
    )


def _read(found: FoundTag, problems: list[Problem]) -> LoraTag:
    """The tag, or a placeholder where something was added to `problems`."""

    def refuse(what: str) -> None:
        problems.append(Problem(found.start, found.stop, what))

    if found.word not in LORA_WORDS:
        refuse(foreign_tag(found))
        return LoraTag("")
    if found.body is None or "<" in found.body:
        refuse(f"the tag is not closed: write `<{found.word}:name:0.8>`.")
        return LoraTag("")
    named: dict[str, str] = {}
    positional: list[str] = []
    for argument in found.body.split(":"):
        key, equals, value = argument.partition("=")
        if not equals:
            positional.append(argument)
        elif key.strip() in named:
            refuse(f"{key.strip()}= is given twice.")
        else:
            named[key.strip()] = value
    for what in _argument_problems(positional, named):
        refuse(what)
    text = _weight(positional[1:2], named.get("te"), 1.0, refuse)
    unet = _weight(positional[2:3], named.get("unet"), text, refuse)
    name = positional[0].strip() if positional else ""
    return LoraTag(name.removesuffix(".safetensors"), unet=unet, text=text)


def _argument_problems(positional: list[str], named: dict[str, str]) -> Iterator[str]:
    if not positional or not positional[0].strip():
        yield "the tag names no adapter: write `<lora:name:0.8>`."
    if len(positional) > 3:
        yield f"a third number (dyn) is not supported: {_ARGUMENTS['dyn']}"
    for key in named:
        if key not in ("te", "unet"):
            why = _ARGUMENTS.get(key, "the arguments are te= and unet=.")
            yield f"{key}= is not understood: {why}"


def _weight(positional: list[str], named: str | None, default: float, refuse: Callable[[str], None]) -> float:
    written = named if named is not None else positional[0] if positional else None
    if written is None:
        return default
    digits = written.strip()
    digits = digits[1:] if digits[:1] in ("+", "-") else digits
    if digits.isascii() and digits.replace(".", "", 1).isdigit() and math.isfinite(float(written)):
        return float(written)
    if "@" in written:
        refuse(f"`{written}` is a weight by steps, which is not supported: write one number.")
    else:
        refuse(f"the weight `{written}` is not a finite decimal number such as 0.8 or -0.5.")
    return 1.0


def decimal_text(number: float) -> str:
    """The shortest decimal without an exponent that reads back as the same float."""
    text = repr(float(number))
    if "e" in text:
        text = format(Decimal(text), "f")
    return text.removesuffix(".0")
