"""From a file to an adapter: every tensor must have its place, or the file is refused."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from difflora.adapter import Adapter, Tokens
from difflora.errors import AdapterError, AdapterFileError, listing
from difflora.families import FAMILIES, Family
from difflora.families import family as family_named
from difflora.families.fused import split
from difflora.formats import embeddings
from difflora.formats.container import not_finite
from difflora.formats.detect import detect, known_modules, stranger
from difflora.formats.format import ALPHA, Format, Metadata, Part, Scale
from difflora.formats.leaves import kinds_of, rank_of, width_of
from difflora.formats.metadata import meta_of
from difflora.formats.safe import DTYPES, TensorEntry, clip
from difflora.formats.sources import Source, opened
from difflora.kinds import Kind

EMBEDDING = "embedding"
"""What FileReport calls the format of a file of words and nothing else."""


@dataclass(frozen=True, slots=True)
class FileReport:
    """What a file holds, from its header alone: a cheap look that raises nothing.

    `matched` are the paths of modules that can be read; `unmatched` maps tensors and modules that cannot to
    the reason. `format` and `family` are "" where they are not known. `problem` is why the file cannot be
    read at all.
    """

    path: Path
    size: int = 0
    format: str = ""
    family: str = ""
    name: str = ""
    trigger: str = ""
    kinds: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Path -> the names of its kinds."""
    ranks: tuple[int, ...] = ()
    dtypes: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    unmatched: Mapping[str, str] = field(default_factory=dict)
    metadata: Metadata = field(default_factory=dict)
    problem: str = ""

    @property
    def matched(self) -> tuple[str, ...]:
        """The paths of modules that can be read, sorted."""
        return tuple(sorted(self.kinds))

    @property
    def kind_counts(self) -> dict[str, int]:
        """Kind -> the number of modules that have it."""
        return dict(sorted(Counter(name for names in self.kinds.values() for name in names).items()))

    @property
    def ok(self) -> bool:
        """Whether `read` would take the file, as far as its header tells."""
        return not self.problem and not self.unmatched and bool(self.kinds or self.words)


@dataclass(frozen=True, slots=True)
class _Group:
    """The tensors of one module of a file: leaf -> tensor name."""

    module: str
    leaves: dict[str, str]


@dataclass(frozen=True, slots=True)
class _Plan:
    """Which tensor is which leaf of which module, and which are words. `layout` is None without modules."""

    layout: type[Format] | None
    family: Family
    groups: Sequence[_Group]
    words: Sequence[str]
    scale: Scale
    problems: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Built:
    modules: Mapping[str, tuple[Kind, ...]]
    tokens: Tokens
    ranks: tuple[int, ...]
    problems: Mapping[str, str]


def read_file(
    path: str | os.PathLike[str], formats: Sequence[type[Format]], *, family: Family | None
) -> Adapter:
    """The adapter in a file or folder; see `difflora.formats.read`."""
    with opened(path) as source:
        plan = _plan(source, formats, family)
        file = source.load()
    built = _build(plan, file.tensors, stem=source.where.stem)
    numbers = {
        group.leaves[leaf] for group in plan.groups for leaf in (ALPHA, "scale") if leaf in group.leaves
    }
    finite = not_finite({name: tensor for name, tensor in file.tensors.items() if name not in numbers})
    lines = [f"{name}: {reason}" for name, reason in {**plan.problems, **built.problems}.items()] + finite
    if lines:
        raise AdapterFileError(_refusal(source, lines, plan))
    meta = meta_of(source.metadata, stem=source.where.stem, family=plan.family.name, data_hash=file.data_hash)
    return Adapter(built.modules, meta, built.tokens)


def inspect_file(path: str | os.PathLike[str], formats: Sequence[type[Format]]) -> FileReport:
    """What a file holds; see `difflora.formats.inspect`."""
    report = FileReport(Path(path))
    try:
        with opened(path) as source:
            report = replace(
                report,
                size=source.size,
                metadata=source.metadata,
                dtypes=tuple(sorted({entry.dtype for entry in source.entries.values()})),
            )
            plan = _plan(source, formats, None)
    except AdapterFileError as error:
        return replace(report, problem=str(error))
    stem = source.where.stem
    built = _build(plan, {name: _outline(entry) for name, entry in source.entries.items()}, stem=stem)
    meta = meta_of(source.metadata, stem=stem, family=plan.family.name, data_hash="")
    return replace(
        report,
        format=plan.layout.name if plan.layout else EMBEDDING,
        family=plan.family.name,
        name=meta.name,
        trigger=meta.trigger,
        kinds={name: tuple(kind.name for kind in kinds) for name, kinds in built.modules.items()},
        ranks=built.ranks,
        words=tuple(built.tokens),
        unmatched={**plan.problems, **built.problems},
    )


def _outline(entry: TensorEntry) -> Tensor:
    """A tensor of that shape without values; single numbers, which kinds look at, are 1."""
    dtype = DTYPES[entry.dtype]
    if entry.shape in ((), (1,)):
        return torch.ones(entry.shape, dtype=dtype)
    return torch.empty(entry.shape, dtype=dtype, device="meta")


def _plan(source: Source, formats: Sequence[type[Format]], family: Family | None) -> _Plan:
    """Where each tensor belongs. Raises AdapterFileError if that cannot even be begun."""
    shapes, metadata = source.shapes, source.metadata
    if embeddings.standalone(shapes):
        chosen = family or family_named(embeddings.family_of(shapes))
        return _Plan(None, chosen, (), tuple(shapes), lambda module, rank: 1.0, {})
    words = {*embeddings.split(shapes).words, *(name for name in shapes if metadata.get(name) == "<embed>")}
    others = {name: shape for name, shape in shapes.items() if name not in words}
    layout = next((member for member in formats if member.recognises(others.keys(), metadata)), None)
    if layout is None:
        raise AdapterFileError(_not_an_adapter(tuple(shapes), formats, str(source.where)))
    try:
        parts = layout.parts(others, metadata)
        scale = layout.scale(metadata, {part.module for part in parts.values() if part})
    except (ValueError, RecursionError) as error:
        raise AdapterFileError(f"{source.where}: what it says of itself cannot be used: {error}") from error
    family = family or _detected(layout, parts, shapes, metadata)
    if family is None:
        raise AdapterFileError(_foreign_base(tuple(shapes), str(source.where)))
    groups, problems = _grouped(layout, family, parts)
    return _Plan(layout, family, groups, tuple(sorted(words)), scale, problems)


def _detected(
    layout: type[Format],
    parts: Mapping[str, Part | None],
    shapes: Mapping[str, tuple[int, ...]],
    metadata: Metadata,
) -> Family | None:
    modules: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, part in parts.items():
        if part:
            modules.setdefault(part.module, {})[part.leaf] = shapes[name]
    widths = {module: width for module, leaves in modules.items() if (width := width_of(leaves))}
    return detect(layout, modules.keys(), widths, metadata)


def _grouped(
    layout: type[Format], family: Family, parts: Mapping[str, Part | None]
) -> tuple[list[_Group], dict[str, str]]:
    """The tensors of each module, whichever names it has in the file, and the reason for each without one."""
    groups: dict[object, _Group] = {}
    problems: dict[str, str] = {}
    for name, part in parts.items():
        slices = family.slices(part.module) if part else ()
        if part is None:
            problems[clip(name)] = f"is no tensor that a {layout.title} has"
        elif not slices:
            problems[clip(part.module)] = f"{family.name} ({family.title}) has no such module"
        else:
            group = groups.setdefault(slices, _Group(part.module, {}))
            if part.leaf in group.leaves:
                problems[clip(name)] = f"is the same factor of {slices[0].path} as {group.leaves[part.leaf]}"
            else:
                group.leaves[part.leaf] = name
    return sorted(groups.values(), key=lambda group: group.module), problems


def _build(plan: _Plan, tensors: Mapping[str, Tensor], *, stem: str) -> _Built:
    """The kinds of each path, the words, and the reason for each module that makes no kind."""
    modules: dict[str, tuple[Kind, ...]] = {}
    owners: dict[str, str] = {}
    problems: dict[str, str] = {}
    ranks: set[int] = set()
    for group in plan.groups:
        assert plan.layout is not None
        scale = partial(plan.scale, group.module)
        found = {leaf: tensors[name] for leaf, name in group.leaves.items()}
        try:
            kinds = plan.layout.settled(kinds_of(found, scale), scale)
            pieces = split(kinds, plan.family, group.module)
        except AdapterError as error:
            problems[clip(group.module)] = str(error)
            continue
        ranks |= {rank for kind in kinds if (rank := rank_of(kind.to_leaves())) is not None}
        for path, own in pieces.items():
            if path in modules:
                problems[clip(group.module)] = f"changes {path}, as {owners[path]} does"
            modules[path], owners[path] = own, group.module
    words = embeddings.words({name: tensors[name] for name in plan.words}, stem=stem, family=plan.family)
    return _Built(
        dict(sorted(modules.items())), words.tokens, tuple(sorted(ranks)), {**problems, **words.problems}
    )


def _refusal(source: Source, lines: Sequence[str], plan: _Plan) -> str:
    """The whole error for a file of which something is wrong."""
    title, step = (
        "file of words",
        "Export it again, or get a whole copy; an adapter is never applied in part.",
    )
    if plan.layout is not None:
        title = plan.layout.title
        parts = plan.layout.parts(source.shapes, source.metadata).values()
        modules = {part.module for part in parts if part}
        counts = known_modules(plan.layout, modules)
        better = max(counts, key=lambda name: counts[name])
        if counts[better] > counts[plan.family.name]:
            step = f"It looks like an adapter for {better} ({counts[better]} of {len(modules)} modules)."
    return (
        f"{source.where}: cannot be read as a {title} for {plan.family.name} "
        f"({len(source.entries)} tensors, problems: {len(lines)}).\n{listing(lines)}\n{step}"
    )


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
