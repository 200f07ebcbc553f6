"""The text that A1111 puts into images: prompt, negative prompt, and one line of parameters."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from difflora.errors import ConfigError, RecipeError
from difflora.prompts import LoraTag, salvage_tags
from difflora.recipe.record import Recipe, RecipeAdapter
from difflora.recipe.request import Request
from difflora.samplers import SAMPLERS, find_sampler

NEGATIVE = "Negative prompt:"
LORA_HASH_DIGITS = 12
MODEL_HASH_DIGITS = 10
_SIZE = re.compile(r"(\d{1,6})x(\d{1,6})\Z")
_NOT_IN_NAMES = re.compile(r"[<>:=,\"\\\n\t]")
# Keys that say how the image was made but ask for nothing: they are not listed as unused.
_EXPLAINED = {"Model", "Model hash", "Lora hashes", "Version", "Schedule type"}


@dataclass(frozen=True, slots=True)
class Parameters:
    """What an A1111 text says.

    `unused` is what difflora does not act on: hires fix, variation seed, a sampler or schedule that it does
    not have, what it cannot read of a tag.
    """

    request: Request
    tags: tuple[LoraTag, ...] = ()
    lora_hashes: Mapping[str, str] = field(default_factory=dict)
    model: str = ""
    model_hash: str = ""
    unused: Mapping[str, str] = field(default_factory=dict)


def parameters_text(recipe: Recipe) -> str:
    """The recipe as A1111 writes it: its keys, order and quoting, a `<lora:...>` tag for every adapter."""
    request = recipe.request
    tags = " ".join(str(_tag(adapter)) for adapter in recipe.adapters)
    # ComfyUI reads nothing at all unless the line of the negative prompt and its space are there.
    lines = [" ".join(part for part in (request.prompt, tags) if part), f"{NEGATIVE} {request.negative}"]
    pairs = [(key, value) for key, value in _pairs(recipe) if value not in (None, "")]
    return "\n".join([*lines, ", ".join(f"{key}: {_quoted(str(value))}" for key, value in pairs)])


def _pairs(recipe: Recipe) -> Iterator[tuple[str, Any]]:
    """A1111's keys in A1111's order; its extra parameters (from Eta on) come before the version."""
    request, sampler = recipe.request, SAMPLERS[recipe.request.sampler]
    yield "Steps", request.steps
    yield "Sampler", sampler.method
    yield "Schedule type", sampler.schedule
    yield "CFG scale", _number(request.guidance)
    yield "Seed", recipe.seed
    if request.width and request.height:
        yield "Size", f"{request.width}x{request.height}"
    yield "Model hash", recipe.base.sha256[:MODEL_HASH_DIGITS]
    yield "Model", recipe.base.name
    yield "Clip skip", request.clip_skip if request.clip_skip > 1 else None
    yield "RNG", "CPU"
    yield "Eta DDIM", _number(request.eta or None)
    yield "CFG Rescale", _number(request.guidance_rescale or None)
    hashes = [f"{_tag(adapter).name}: {adapter.data_hash[:LORA_HASH_DIGITS]}" for adapter in recipe.adapters]
    yield "Lora hashes", ", ".join(hashes)
    yield "Version", f"difflora {version('difflora')}"


def _tag(adapter: RecipeAdapter) -> LoraTag:
    """Characters that A1111's grammar has no escape for become underscores; the JSON has the exact name."""
    name = _NOT_IN_NAMES.sub("_", adapter.name).strip() or "adapter"
    return LoraTag(name, unet=adapter.unet, text=adapter.text)


def _number(value: float | None) -> str | None:
    return None if value is None else repr(value).removesuffix(".0")


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if any(char in value for char in ',:\n"') else value


def parse_parameters(text: str) -> Parameters:
    """What an A1111 text asks for, ours or any other tool's.

    The prompt comes back without its `<lora:...>` tags. Missing keys take A1111's meaning; the seed, size and
    weights are those of the image. Raises RecipeError that names every number that cannot be used; what
    difflora merely does not have is told in `unused`, and its own default stands in.
    """
    prompt, negative, pairs = _split(text)
    if not pairs:
        raise RecipeError(
            "no line of parameters (`Steps: 20, Sampler: Euler, ...`) stands at the end of the text, which "
            f"starts with {text[:60]!r}."
        )
    problems: list[str] = []
    tagged, refused = salvage_tags(prompt)
    # Only the spaces that stood between the words and their tags go.
    words = tagged.text.strip() if tagged.tags or refused else tagged.text
    sampler, unknown = _sampler(pairs)
    values: dict[str, Any] = {"prompt": words, "negative": negative, **sampler}
    values |= _request_values(pairs, problems)
    try:
        request = Request(**values)
    except ConfigError as error:
        problems.append(str(error))
        request = Request()
    if problems:
        raise RecipeError("the parameters of the image cannot be used:\n" + "\n".join(problems))
    hashes = dict(_hash_pairs(pairs.get("Lora hashes", "")))
    unused = {key: value for key, value in pairs.items() if key not in _EXPLAINED and key not in _READERS}
    if unused.get("RNG") == "CPU":
        del unused["RNG"]  # where difflora draws its noise too
    unused |= unknown | ({"in tags": " ".join(refused)} if refused else {})
    model = (pairs.get("Model", ""), pairs.get("Model hash", ""))
    return Parameters(request, tagged.tags, hashes, *model, unused)


def _split(text: str) -> tuple[str, str, dict[str, str]]:
    """The prompt, the negative prompt and the pairs of the last line, if that is a line of pairs."""
    lines = text.strip().split("\n")
    pairs = dict(_line_pairs(lines[-1]))
    if len(pairs) >= 3:
        lines.pop()
    else:
        pairs = {}
    prompt: list[str] = []
    negative: list[str] = []
    target = prompt
    for line in map(str.strip, lines):
        if line.startswith(NEGATIVE):
            target = negative
            line = line.removeprefix(NEGATIVE).strip()
        target.append(line)
    return "\n".join(prompt), "\n".join(negative), pairs


def _line_pairs(line: str) -> Iterator[tuple[str, str]]:
    """`key: value` pairs between commas; a value in double quotes is a JSON string."""
    start = 0
    while start < len(line):
        colon, comma = line.find(":", start), line.find(",", start)
        if colon < 0:
            return
        if 0 <= comma < colon:  # a word without a value, or the rest of one that was not quoted
            start = comma + 1
            continue
        key = line[start:colon].strip()
        start = colon + 1
        while line.startswith(" ", start):
            start += 1
        if line.startswith('"', start):
            try:
                value, start = json.JSONDecoder().raw_decode(line, start)
            except ValueError:
                value, start = line[start:], len(line)
            yield key, str(value)
            start = line.find(",", start) + 1 or len(line)
        else:
            end = line.find(",", start)
            end = len(line) if end < 0 else end
            yield key, line[start:end].strip()
            start = end + 1


def _hash_pairs(text: str) -> Iterator[tuple[str, str]]:
    for part in text.split(","):
        name, colon, digits = part.rpartition(":")
        if colon:
            yield name.strip(), digits.strip()


def _sampler(pairs: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """The sampler as a field of Request, if difflora has it, and which of the two keys it cannot act on."""
    name, schedule = pairs.get("Sampler", "Euler a"), pairs.get("Schedule type", "")
    for wanted, unknown in ((schedule, {}), ("", {"Schedule type": schedule})):
        try:
            return {"sampler": find_sampler(name, wanted).name}, unknown
        except ConfigError:
            continue
    return {}, {"Sampler": " ".join(part for part in (name, schedule) if part)}


def _request_values(pairs: Mapping[str, str], problems: list[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, (field_name, read) in _READERS.items():
        if key in pairs and field_name:
            try:
                values[field_name] = read(pairs[key])
            except ValueError:
                problems.append(f"  {key}: {pairs[key][:60]!r} is not a number")
    size = _SIZE.match(pairs.get("Size", ""))
    if size:
        values["width"], values["height"] = int(size[1]), int(size[2])
    elif "Size" in pairs:
        problems.append(f"  Size: {pairs['Size'][:60]!r}, expected such as 512x768")
    return values


# A1111's key -> the field of Request and how its value is read; those without a field are read elsewhere.
_READERS: Mapping[str, tuple[str, type]] = {
    "Steps": ("steps", int),
    "CFG scale": ("guidance", float),
    "Seed": ("seed", int),
    "Clip skip": ("clip_skip", int),
    "Eta DDIM": ("eta", float),
    "CFG Rescale": ("guidance_rescale", float),
    "Size": ("", str),
    "Sampler": ("", str),
}
