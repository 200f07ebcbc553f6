"""Where each tensor of a file belongs, as far as their names, shapes and the metadata tell.

What depends on the names alone is found once for all files that have them, as most of a library's have those
of a few.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from difflora.errors import AdapterFileError
from difflora.families import FAMILIES, Family
from difflora.families import family as family_named
from difflora.families.spellings import Slices
from difflora.formats import embeddings
from difflora.formats.detect import detect, stranger, those_that_know_most
from difflora.formats.format import ALPHA, Format, Metadata, Parts, Scale
from difflora.formats.leaves import rank_in, width_of
from difflora.formats.safe import clip
from difflora.formats.sources import Source


@dataclass(frozen=True, slots=True)
class Group:
    """The tensors of one module of a file, by its first name there: leaf -> tensor name.

    `path` is what the module is, whole; None where it is several, or its number of rows says which.
    """

    module: str
    path: str | None
    leaves: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Groups:
    """In the order of modules, and the reason for each tensor or module that belongs nowhere."""

    groups: Sequence[Group]
    problems: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Plan:
    """Which tensor is which leaf of which module, and which are words. `layout` is None without modules."""

    layout: type[Format] | None
    family: Family
    groups: Sequence[Group]
    words: Sequence[str]
    scale: Scale
    problems: Mapping[str, str]

    def scales(self, shapes: Mapping[str, tuple[int, ...]]) -> str:
        """A digest of the scales of modules for which the tensors hold none, "" if these are all 1.

        `shapes` are those of all tensors, by name.
        """
        lines = []
        for group in self.groups:
            if not group.leaves.keys() & {ALPHA, "scale"}:
                rank = rank_in({leaf: shapes[name] for leaf, name in group.leaves.items()})
                if (scale := self.scale(group.module, rank or 0)) != 1.0:
                    lines.append(f"{group.module} {scale!r}\n")
        return hashlib.sha256("".join(lines).encode()).hexdigest() if lines else ""


def plan_of(source: Source, formats: Sequence[type[Format]], family: Family | None) -> Plan:
    """Where each tensor belongs. Raises AdapterFileError if that cannot even be begun."""
    shapes, metadata = source.shapes, source.metadata
    if embeddings.standalone(shapes):
        chosen = family or family_named(embeddings.family_of(shapes))
        return Plan(None, chosen, (), tuple(shapes), lambda module, rank: 1.0, {})
    embedded = {name for name, value in metadata.items() if value == "<embed>" and name in shapes}
    words = _bundled(tuple(shapes)) | embedded
    others = {name: shape for name, shape in shapes.items() if name not in words} if words else shapes
    layout = next((member for member in formats if member.recognises(others.keys(), metadata)), None)
    if layout is None:
        raise AdapterFileError(_not_an_adapter(tuple(shapes), formats, str(source.where)))
    try:
        parts = layout.parts(others, metadata)
        scale = layout.scale(metadata, parts.modules)
    except (ValueError, RecursionError) as error:
        raise AdapterFileError(f"{source.where}: what it says of itself cannot be used: {error}") from error
    family = family or _detected(layout, parts, shapes, metadata)
    if family is None:
        raise AdapterFileError(_foreign_base(tuple(shapes), str(source.where)))
    found = _grouped(layout, family, parts)
    return Plan(layout, family, found.groups, tuple(sorted(words)), scale, found.problems)


@lru_cache(maxsize=32)
def _bundled(names: tuple[str, ...]) -> frozenset[str]:
    return frozenset(embeddings.split(dict.fromkeys(names)).words)


def _detected(
    layout: type[Format], parts: Parts, shapes: Mapping[str, tuple[int, ...]], metadata: Metadata
) -> Family | None:
    candidates = _candidates(layout, parts)
    if len(candidates) < 2:
        return next(iter(candidates), None)
    return detect(layout, parts.modules, _widths(parts, shapes), metadata)


@lru_cache(maxsize=32)
def _candidates(layout: type[Format], parts: Parts) -> tuple[Family, ...]:
    return tuple(those_that_know_most(layout, parts.modules))


def _widths(parts: Parts, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """The number of input features of each module, as far as its leaves tell."""
    modules: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, part in parts.of.items():
        if part:
            modules.setdefault(part.module, {})[part.leaf] = shapes[name]
    return {module: width for module, leaves in modules.items() if (width := width_of(leaves))}


@lru_cache(maxsize=32)
def _grouped(layout: type[Format], family: Family, parts: Parts) -> _Groups:
    """The tensors of each module, whichever names it has in the file, and the reason for each without one."""
    groups: dict[Slices, tuple[str, dict[str, str]]] = {}
    problems: dict[str, str] = {}
    for name, part in parts.of.items():
        slices = family.slices(part.module) if part else ()
        if part is None:
            problems[clip(name)] = f"is no tensor that a {layout.title} has"
        elif not slices:
            problems[clip(part.module)] = f"{family.name} ({family.title}) has no such module"
        else:
            _, leaves = groups.setdefault(slices, (part.module, {}))
            if part.leaf in leaves:
                problems[clip(name)] = f"is the same factor of {slices[0].path} as {leaves[part.leaf]}"
            else:
                leaves[part.leaf] = name
    found = [Group(module, family.whole_path(module), leaves) for module, leaves in groups.values()]
    return _Groups(sorted(found, key=lambda group: group.module), problems)


def _not_an_adapter(names: Sequence[str], formats: Sequence[type[Format]], where: str) -> str:
    expected = ", ".join(layout.title for layout in formats)
    if any(name.startswith("base_model.model.") for name in names):
        reason = "it is part of a PEFT folder, whose scales are in another file, adapter_config.json"
    elif any(name.startswith(("model.diffusion_model.", "first_stage_model.")) for name in names):
        reason = "it is a base model, to be loaded as one"
    else:
        reason = f"none of its {len(names)} tensor names is known, the first being {clip(names[0])}"
    return f"{where}: not an adapter file: {reason}. Expected one of: {expected}"


def _foreign_base(names: Sequence[str], where: str) -> str:
    known = ", ".join(f"{family.name} ({family.title})" for family in FAMILIES)
    title = stranger(names)
    guess = f"It looks like an adapter for {title}" if title else f"Its first tensor is {clip(names[0])}"
    return f"{where}: made for a base model that is not supported. {guess}; supported: {known}"
