"""From a file to an adapter: every tensor must have its place, or the file is refused."""

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

from torch import Tensor

from difflora.adapter import Adapter
from difflora.errors import AdapterError, AdapterFileError, listing
from difflora.families import Family
from difflora.formats import embeddings
from difflora.formats.container import not_finite
from difflora.formats.detect import known_modules
from difflora.formats.format import ALPHA, Format, Metadata
from difflora.formats.metadata import meta_of
from difflora.formats.outlines import Made, blank, made, outlined
from difflora.formats.plan import Group, Plan, plan_of
from difflora.formats.safe import Form, clip
from difflora.formats.sources import Source, opened
from difflora.kinds import Kind

EMBEDDING = "embedding"
"""What FileReport calls the format of a file of words and nothing else."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FileReport:
    """What a file holds, from its header alone: a cheap look that raises nothing.

    `matched` are the paths of modules that can be read; `unmatched` maps tensors and modules that cannot to
    the reason. `format` and `family` are "" where they are not known. `scales` is that of AdapterMeta.
    `problem` is why the file cannot be read at all.
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
    scales: str = ""
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
class _Built(Generic[T]):
    """Path -> its kinds or their names, the ranks, and the reason for each module that makes no kind."""

    modules: Mapping[str, T]
    ranks: tuple[int, ...]
    problems: Mapping[str, str]


def read_file(
    path: str | os.PathLike[str], formats: Sequence[type[Format]], *, family: Family | None
) -> Adapter:
    """The adapter in a file or folder; see `difflora.formats.read`."""
    with opened(path) as source:
        plan = plan_of(source, formats, family)
        file = source.load()
    tensors, data_hash = dict(file.tensors), file.data_hash
    del file  # so that what is cut into several modules is not held twice
    words = _words(plan, tensors, source.where.stem)
    numbers = {
        group.leaves[leaf] for group in plan.groups for leaf in (ALPHA, "scale") if leaf in group.leaves
    }
    finite = not_finite({name: tensor for name, tensor in tensors.items() if name not in numbers})
    built = _built(plan, partial(_made, plan, tensors))
    problems = {**plan.problems, **built.problems, **words.problems}
    lines = [f"{name}: {reason}" for name, reason in problems.items()] + finite
    if lines:
        raise AdapterFileError(_refusal(source, lines, plan))
    meta = meta_of(
        source.metadata,
        stem=source.where.stem,
        family=plan.family.name,
        data_hash=data_hash,
        scales=plan.scales(source.shapes),
    )
    return Adapter(built.modules, meta, words.tokens)


def inspect_file(path: str | os.PathLike[str], formats: Sequence[type[Format]]) -> FileReport:
    """What a file holds; see `difflora.formats.inspect`."""
    report = FileReport(Path(path))
    try:
        with opened(path) as source:
            dtypes = tuple(sorted({form.dtype for form in {*source.forms.values()}}))
            report = replace(report, size=source.size, metadata=source.metadata, dtypes=dtypes)
            plan = plan_of(source, formats, None)
    except AdapterFileError as error:
        return replace(report, problem=str(error))
    stem = source.where.stem
    built = _built(plan, partial(_outlined, plan, source.forms))
    words = _words(plan, {name: blank(source.forms[name]) for name in plan.words}, stem)
    meta = meta_of(source.metadata, stem=stem, family=plan.family.name)
    return replace(
        report,
        format=plan.layout.name if plan.layout else EMBEDDING,
        family=plan.family.name,
        name=meta.name,
        trigger=meta.trigger,
        kinds=built.modules,
        ranks=built.ranks,
        words=tuple(words.tokens),
        unmatched={**plan.problems, **built.problems, **words.problems},
        scales=plan.scales(source.shapes),
    )


def _built(plan: Plan, make: Callable[[Group], Made[T]]) -> _Built[T]:
    """What `make` makes of each module, in the order of paths."""
    modules: dict[str, T] = {}
    owners: dict[str, str] = {}
    problems: dict[str, str] = {}
    ranks: set[int] = set()
    for group in plan.groups:
        try:
            found = make(group)
        except AdapterError as error:
            problems[clip(group.module)] = str(error)
            continue
        ranks |= found.ranks
        for path, own in found.pieces.items():
            if path in modules:
                problems[clip(group.module)] = f"changes {path}, as {owners[path]} does"
            modules[path], owners[path] = own, group.module
    return _Built(dict(sorted(modules.items())), tuple(sorted(ranks)), problems)


def _made(plan: Plan, tensors: dict[str, Tensor], group: Group) -> Made[tuple[Kind, ...]]:
    """The kinds of a module, whose tensors are taken out of `tensors`."""
    assert plan.layout is not None
    leaves = {leaf: tensors.pop(name) for leaf, name in group.leaves.items()}
    return made(plan.layout, plan.family, group, leaves=leaves, scale=partial(plan.scale, group.module))


def _outlined(plan: Plan, forms: Mapping[str, Form], group: Group) -> Made[tuple[str, ...]]:
    assert plan.layout is not None
    return outlined(plan.layout, plan.family, group, forms=forms)


def _words(plan: Plan, tensors: Mapping[str, Tensor], stem: str) -> embeddings.Words:
    return embeddings.words({name: tensors[name] for name in plan.words}, stem=stem, family=plan.family)


def _refusal(source: Source, lines: Sequence[str], plan: Plan) -> str:
    """The whole error for a file of which something is wrong."""
    title, step = (
        "file of words",
        "Export it again, or get a whole copy; an adapter is never applied in part.",
    )
    if plan.layout is not None:
        title = plan.layout.title
        modules = plan.layout.parts(source.shapes, source.metadata).modules
        counts = known_modules(plan.layout, modules)
        better = max(counts, key=lambda name: counts[name])
        if counts[better] > counts[plan.family.name]:
            step = f"It looks like an adapter for {better} ({counts[better]} of {len(modules)} modules)."
    return (
        f"{source.where}: cannot be read as a {title} for {plan.family.name} "
        f"({len(source.forms)} tensors, problems: {len(lines)}).\n{listing(lines)}\n{step}"
    )
