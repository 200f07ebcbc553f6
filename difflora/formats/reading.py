"""From a file to an adapter: every tensor must have its place, or the file is refused."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from difflora.adapter import Adapter
from difflora.errors import AdapterError, AdapterFileError, listing
from difflora.families import FAMILIES, Family
from difflora.formats.container import load_tensors, not_finite
from difflora.formats.detect import detect, known_modules, stranger
from difflora.formats.format import DOWN, Format, Metadata, Part, Scale
from difflora.formats.leaves import FOREIGN, build
from difflora.formats.metadata import meta_of
from difflora.formats.safe import DTYPES, Header, clip, load_header, open_plain, read_header
from difflora.kinds import Kind

MAX_FILE = 4 << 30


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
    kinds: Mapping[str, int] = field(default_factory=dict)
    """Kind -> the number of modules."""
    ranks: tuple[int, ...] = ()
    dtypes: tuple[str, ...] = ()
    matched: tuple[str, ...] = ()
    unmatched: Mapping[str, str] = field(default_factory=dict)
    metadata: Metadata = field(default_factory=dict)
    problem: str = ""

    @property
    def ok(self) -> bool:
        """Whether `read` would take the file, as far as its header tells."""
        return not self.problem and not self.unmatched and bool(self.matched)


@dataclass(frozen=True, slots=True)
class _Plan:
    """Which tensor is which leaf of which path; `names` gives the module's name in the file."""

    layout: type[Format]
    family: Family
    modules: Mapping[str, Mapping[str, str]]
    names: Mapping[str, str]
    scale: Scale
    problems: Mapping[str, str]


def read_file(
    path: str | os.PathLike[str], formats: Sequence[type[Format]], *, family: Family | None
) -> Adapter:
    """The adapter in a file; see `difflora.formats.read`."""
    with open_plain(path) as opened:
        header = _small_enough(load_header(opened, str(path)), str(path))
        plan = _plan(header, formats, family, str(path))
        file = load_tensors(opened, header, str(path))
    modules, problems = _build(plan, file.tensors)
    wrong = {**plan.problems, **problems}
    lines = [f"{name}: {reason}" for name, reason in wrong.items()] + not_finite(file.tensors)
    if lines:
        raise AdapterFileError(_refusal(str(path), lines, plan, header))
    meta = meta_of(file.metadata, stem=Path(path).stem, family=plan.family.name, data_hash=file.data_hash)
    return Adapter({name: (kind,) for name, kind in modules.items()}, meta)


def inspect_file(path: str | os.PathLike[str], formats: Sequence[type[Format]]) -> FileReport:
    """What a file holds; see `difflora.formats.inspect`."""
    where = Path(path)
    try:
        header = read_header(where)
        report = FileReport(where, header.file_size, metadata=header.metadata, dtypes=_dtypes(header))
    except AdapterFileError as error:
        return FileReport(where, problem=str(error))
    try:
        plan = _plan(_small_enough(header, str(where)), formats, None, str(where))
    except AdapterFileError as error:
        return replace(report, problem=str(error))
    shapes = {
        name: torch.empty(entry.shape, dtype=DTYPES[entry.dtype], device="meta")
        for name, entry in header.tensors.items()
    }
    modules, problems = _build(plan, shapes)
    meta = meta_of(header.metadata, stem=where.stem, family=plan.family.name, data_hash="")
    return replace(
        report,
        format=plan.layout.name,
        family=plan.family.name,
        name=meta.name,
        trigger=meta.trigger,
        kinds=dict(Counter(kind.name for kind in modules.values())),
        ranks=tuple(
            sorted({factors.down.shape[0] for kind in modules.values() if (factors := kind.factors())})
        ),
        matched=tuple(sorted(modules)),
        unmatched={**plan.problems, **problems},
    )


def _small_enough(header: Header, where: str) -> Header:
    if header.file_size > MAX_FILE:
        raise AdapterFileError(
            f"{where}: {header.file_size >> 20} MiB, the limit for an adapter is {MAX_FILE >> 20} MiB. "
            "A file of that size is a base model; it is loaded as one"
        )
    return header


def _plan(header: Header, formats: Sequence[type[Format]], family: Family | None, where: str) -> _Plan:
    """Where each tensor belongs. Raises AdapterFileError if that cannot even be begun."""
    names = tuple(header.tensors)
    layout = next((member for member in formats if member.recognises(names, header.metadata)), None)
    if layout is None:
        raise AdapterFileError(_not_an_adapter(names, formats, where))
    parts = {name: layout.part(name) for name in names}
    widths = {part.module: header.tensors[name].shape[1] for name, part in parts.items()
              if part and part.leaf == DOWN and len(header.tensors[name].shape) > 1}  # fmt: skip
    modules = {part.module for part in parts.values() if part}
    family = family or detect(layout, modules, widths, header.metadata)
    if family is None:
        raise AdapterFileError(_foreign_base(names, where))
    try:
        scale = layout.scale(header.metadata)
    except ValueError as error:
        raise AdapterFileError(f"{where}: the scales of its modules cannot be known: {error}") from error
    return _placed(layout, family, parts, scale)


def _placed(layout: type[Format], family: Family, parts: Mapping[str, Part | None], scale: Scale) -> _Plan:
    modules: dict[str, dict[str, str]] = {}
    named: dict[str, str] = {}
    problems: dict[str, str] = {}
    for name, part in parts.items():
        path = layout.path(part.module, family) if part else None
        if part is None:
            problems[clip(name)] = f"is no tensor that a {layout.title} has"
        elif path is None:
            problems[clip(part.module)] = f"{family.name} ({family.title}) has no such module"
        elif part.leaf in modules.setdefault(path, {}):
            problems[clip(name)] = f"is the same factor of {path} as {modules[path][part.leaf]}"
        else:
            modules[path][part.leaf] = name
            named[path] = part.module
    return _Plan(layout, family, modules, named, scale, problems)


def _build(plan: _Plan, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Kind], dict[str, str]]:
    """The kind of each path, and the reason for each module, as the file names it, that makes none."""
    modules: dict[str, Kind] = {}
    problems: dict[str, str] = {}
    foreign: dict[str, list[str]] = {}
    for path, leaves in sorted(plan.modules.items()):
        name = plan.names[path]
        if kinds := sorted({FOREIGN[leaf] for leaf in leaves if leaf in FOREIGN}):
            foreign.setdefault(" with ".join(kinds), []).append(name)
            continue
        try:
            found = {leaf: tensors[tensor] for leaf, tensor in leaves.items()}
            modules[path] = build(found, partial(plan.scale, name))
        except AdapterError as error:
            problems[name] = str(error)
    for kinds, names in foreign.items():
        problems[names[0]] = (
            f"{len(names)} of {len(plan.modules)} modules, this being the first, are {kinds}; expected LoRA"
        )
    return modules, problems


def _dtypes(header: Header) -> tuple[str, ...]:
    return tuple(sorted({entry.dtype for entry in header.tensors.values()}))


def _refusal(where: str, lines: Sequence[str], plan: _Plan, header: Header) -> str:
    """The whole error for a file of which something is wrong."""
    modules = {part.module for name in header.tensors if (part := plan.layout.part(name))}
    counts = known_modules(plan.layout, modules)
    better = max(counts, key=lambda name: counts[name])
    if counts[better] > counts[plan.family.name]:
        step = f"It looks like an adapter for {better} ({counts[better]} of {len(modules)} modules)."
    elif any("expected LoRA" in line for line in lines):
        step = "Convert it to LoRA with the program that made it."
    else:
        step = "Export it again, or get a whole copy; an adapter is never applied in part."
    return (
        f"{where}: cannot be read as a {plan.layout.title} for {plan.family.name} "
        f"({len(header.tensors)} tensors, problems: {len(lines)}).\n{listing(lines)}\n{step}"
    )


def _not_an_adapter(names: Sequence[str], formats: Sequence[type[Format]], where: str) -> str:
    expected = " or ".join(layout.title for layout in formats)
    if any(name.startswith("base_model.model.") for name in names):
        reason = "it is part of a PEFT folder, whose scales are in another file, adapter_config.json"
    elif any(name.startswith(("model.diffusion_model.", "first_stage_model.")) for name in names):
        reason = "it is a base model, to be loaded as one"
    else:
        reason = f"none of its {len(names)} tensor names is known, the first being {clip(names[0])}"
    return f"{where}: not an adapter file: {reason}. Expected a {expected}"


def _foreign_base(names: Sequence[str], where: str) -> str:
    known = ", ".join(f"{family.name} ({family.title})" for family in FAMILIES)
    title = stranger(names)
    guess = f"It looks like an adapter for {title}" if title else f"Its first tensor is {clip(names[0])}"
    return f"{where}: made for a base model that is not supported. {guess}; supported: {known}"
