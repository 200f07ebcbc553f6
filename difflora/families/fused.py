"""Modules of a file that stand for several of ours, or for one with its halves swapped: cut on reading,
joined on writing."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from difflora.errors import AdapterError
from difflora.families.family import Family
from difflora.families.joining import join
from difflora.families.spellings import Slices
from difflora.kinds import (
    BOFT,
    IA3,
    OFT,
    Bias,
    DoRA,
    Full,
    GLoRA,
    Kind,
    LoHa,
    LoKr,
    LoRA,
    Norm,
    ReadyOFT,
    Replace,
)

__all__ = ["join", "kohya_modules", "split"]

Run = tuple[int, int]
"""Rows of the file's module: the first, and the one after the last."""


def split(kinds: Sequence[Kind], family: Family, name: str) -> dict[str, tuple[Kind, ...]]:
    """The kinds of one module, by its name in a file, for each path that it stands for.

    Where the name is one whole module, the same objects under its path. Exact: the rows of a path's ΔW are
    the rows of the file's. A LoRA or LoHa made by joining (each column of its up factors belongs to one part)
    gives each part its own columns. Parts of zeros beside others are left out. Rows of a LoKr that are no
    LoKr come as LoRA, or as Full in float32; rotations under a constraint come without, and if it is reached
    their blocks are float32.
    Raises KeyError if the family has no such module, AdapterError naming the kind that cannot be cut.
    """
    slices = family.slices(name, rows=_height(kinds))
    if not slices:
        raise KeyError(name)
    if slices[0].is_whole:
        return {slices[0].path: tuple(kinds)}
    found: dict[str, tuple[Kind, ...]] = {}
    for kind in kinds:
        for path, part in _cut(kind, slices).items():
            found[path] = (*found.get(path, ()), part)
    return found


def kohya_modules(family: Family, modules: Mapping[str, tuple[Kind, ...]]) -> dict[str, tuple[Kind, ...]]:
    """The modules of an adapter under the flattened names that a kohya file has for them, fused as there.

    Parts are joined only if reading the file gives the very same kinds back, bit for bit; others are written
    alone, under the names that OneTrainer gives them and ComfyUI reads too. Raises KeyError if the family has
    no such path.
    """
    written: dict[str, tuple[Kind, ...]] = {}
    fused: dict[str, Slices] = {}
    for path, kinds in modules.items():
        name, slices = family.kohya_group(path, rows=_height(kinds))
        if slices[0].is_whole:
            written[name] = kinds
        else:
            fused[name] = slices
    for name, slices in fused.items():
        own = {path: modules[path] for path in sorted({one.path for one in slices} & modules.keys())}
        try:
            whole = _joined(slices, own)
            back = split([_reread(kind) for kind in whole], family, name)
        except AdapterError:
            back = whole = None
        if whole is not None and back is not None and _alike(back, own):
            written[name] = whole
        else:
            written |= {family.kohya_name(path): kinds for path, kinds in own.items()}
    return written


def _reread(kind: Kind) -> Kind:
    """The kind as its file gives it back: the scale has gone through alpha, a float32 number.

    Joining changes the rank, so that the alpha of the whole may be rounded where those of the parts are not.
    """
    leaves = kind.to_leaves()
    return type(kind).from_leaves(leaves, lambda rank: float(leaves["alpha"]) / rank)


def _alike(a: Mapping[str, tuple[Kind, ...]], b: Mapping[str, tuple[Kind, ...]]) -> bool:
    """Whether both hold the same paths and kinds, bit for bit."""
    if a.keys() != b.keys() or any(len(a[path]) != len(b[path]) for path in a):
        return False
    pairs = [pair for path in a for pair in zip(a[path], b[path], strict=True)]
    return all(
        type(one) is type(other)
        and one.tensors().keys() == other.tensors().keys()
        and all(_same_bits(tensor, other.tensors()[leaf]) for leaf, tensor in one.tensors().items())
        for one, other in pairs
    )


def _same_bits(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype or a.is_meta or b.is_meta:
        return False
    # As bytes, since zeros of both signs are equal as numbers, and a NaN is not equal to itself.
    flat, other = (tensor.detach().contiguous().reshape(-1).view(torch.uint8) for tensor in (a, b))
    return torch.equal(flat, other)


def _joined(slices: Slices, modules: Mapping[str, tuple[Kind, ...]]) -> tuple[Kind, ...]:
    """The kinds of the file's module that `slices` make up. Raises AdapterError if there are none."""
    unit = _unit(slices, modules)
    above = sorted(_placed(slices), key=lambda pair: pair[0].start)
    heights = [unit * (one.stop - one.start) for one, _ in above]
    counts = {len(modules[one.path]) for one, _ in above if one.path in modules}
    if len(counts) != 1:
        raise AdapterError("some parts have more kinds than others")
    parts = [
        [
            None
            if one.path not in modules
            else _rows(modules[one.path][index], unit * offset, height, slices)
            for (one, offset), height in zip(above, heights, strict=True)
        ]
        for index in range(counts.pop())
    ]
    return tuple(join(part, heights) for part in parts)


def _placed(slices: Slices) -> list[tuple]:
    """Each slice, and where in its own module it begins, in parts."""
    ends: dict[str, int] = {}
    placed = []
    for one in slices:
        offset = ends.get(one.path, 0)
        ends[one.path] = offset + one.stop - one.start
        placed.append((one, offset))
    return placed


def _unit(slices: Slices, modules: Mapping[str, tuple[Kind, ...]]) -> int:
    """How many rows one part has. Raises AdapterError if the modules disagree, or none of them says."""
    parts: dict[str, int] = {}
    for one in slices:
        parts[one.path] = parts.get(one.path, 0) + one.stop - one.start
    heights = {path: _height(modules[path]) for path in parts if path in modules}
    found = {divmod(height, parts[path]) for path, height in heights.items() if height is not None}
    if len(found) != 1 or next(iter(found))[1]:
        raise AdapterError(f"the heights of the parts are {sorted(heights.values(), key=str)}")
    return found.pop()[0]


def _rows(kind: Kind, start: int, height: int, slices: Slices) -> Kind:
    """The rows of a part that the file has together; the part itself where that is all of it."""
    if len({one.path for one in slices}) == len(slices):
        return kind
    return _require_rows(kind, (start, start + height))


def _cut(kind: Kind, slices: Slices) -> dict[str, Kind]:
    """One kind of a file's module for each path."""
    total = rows_of(kind)
    runs: dict[str, list[Run]] = {}
    for one in slices:
        if total is not None and total % one.of:
            raise AdapterError(f"{kind.name}: it has {total} rows, expected a multiple of {one.of}")
        unit = (total or one.of) // one.of
        runs.setdefault(one.path, []).append((one.start * unit, one.stop * unit))
    if len(runs) > 1 and (own := _own_columns(kind, [run for (run,) in runs.values()])):
        return {path: part for path, part in zip(runs, own, strict=True) if part is not None}
    if len(runs) == 1 and isinstance(kind, DoRA) and not kind.on_output:
        ((path, inner),) = _cut(kind.inner, slices).items()
        if isinstance(inner, LoRA | LoHa | LoKr):  # all the rows in another order have the same columns
            return {path: replace(kind, inner=inner)}
    parts = {
        path: join([_require_rows(kind, run) for run in of], [stop - start for start, stop in of])
        if len(of) > 1
        else _require_rows(kind, of[0])
        for path, of in runs.items()
    }
    return {path: part for path, part in parts.items() if not _idle(part)} or parts


def _idle(part: Kind) -> bool:
    """Whether it is what joining puts in the place of a part that is not changed: zeros."""
    match part:
        case LoRA():
            tensors = (part.up, part.bias)
        case LoHa():
            tensors = (part.w1_a, part.w2_a)
        case LoKr():
            tensors = (part.w1, part.w1_a)
        case Full():
            tensors = (part.diff, part.bias)
        case Bias():
            tensors = (part.bias,)
        case IA3(on_input=False):
            tensors = (part.gain,)
        case _:
            return False
    return not any(tensor is not None and (tensor.is_meta or bool(tensor.any())) for tensor in tensors)


def _require_rows(kind: Kind, run: Run) -> Kind:
    """The change of some rows alone: by the kind itself, else as LoRA where it has an exact low-rank form,
    else as Full where ΔW needs no base weight.

    A LoKr whose blocks do not end where the parts do has such a form, unless both its sides are whole; then
    its rows are Full. Products are exact for half-precision factors, and rounded to float32 for others.
    """
    if part := kind.rows(*run):
        return part
    if factors := kind.factors():
        return LoRA(factors.down, factors.up, factors.scale).rows(*run)
    if not kind.needs_weight:
        # Every kind without a base weight that has a bias can be cut by itself: a Full is all of this one.
        return Full(kind.delta()).rows(*run)
    raise AdapterError(
        f"{kind.name}: its module stands for several in one, and rows {run[0]} to {run[1]} cannot be had "
        f"alone: {_why_whole(kind)}. Extract it to LoRA against the base with the program that made it"
    )


def _why_whole(kind: Kind) -> str:
    """Why a kind that needs the base weight is not the sum of its parts."""
    match kind:
        case DoRA(on_output=False):
            return "the norms of its columns are over the rows of all parts, and each part has only its own"
        case DoRA():
            return f"its {kind.inner.name} has blocks that do not end where the parts do"
        case OFT() | ReadyOFT():
            size = next(iter(kind.tensors().values())).shape[1]
            return f"it turns rows in blocks of {size}, which do not end where the parts do"
        case BOFT():
            return f"it mixes rows in spans of {kind.span}, which do not end where the parts do"
    return f"it is no {kind.name}"


def _own_columns(kind: Kind, runs: Sequence[Run]) -> list[Kind | None] | None:
    """Each part with its own columns of the up factors, if each column belongs to one part; None if not."""
    if isinstance(kind, LoRA) and kind.mid is None:
        kind = kind.folded()
        owners = _owners(kind.up, runs)
        if owners is None or (kind.bias is not None and len(set(owners)) < len(runs)):
            return None
        return [_lora_part(kind, run, _columns(owners, part)) for part, run in enumerate(runs)]
    if isinstance(kind, LoHa) and kind.t1 is None:
        first, second = _owners(kind.w1_a, runs), _owners(kind.w2_a, runs)
        if first is None or first != second:
            return None
        return [_loha_part(kind, run, _columns(first, part)) for part, run in enumerate(runs)]
    if isinstance(kind, DoRA) and kind.on_output:
        inside = _own_columns(kind.inner, runs)
        parts = [part for part in inside or () if isinstance(part, LoRA | LoHa)]
        if len(parts) == len(runs):
            lengths = [kind.magnitude[start:stop].clone() for start, stop in runs]
            return [DoRA(part, length) for part, length in zip(parts, lengths, strict=True)]
    return None


def _lora_part(kind: LoRA, run: Run, columns: slice) -> LoRA | None:
    if columns.start == columns.stop:
        return None
    part = kind.rows(*run)
    return replace(part, down=kind.down[columns].clone(), up=part.up[:, columns].clone())


def _loha_part(kind: LoHa, run: Run, columns: slice) -> LoHa | None:
    if columns.start == columns.stop:
        return None
    part = kind.rows(*run)
    own = {name: getattr(part, name)[:, columns].clone() for name in ("w1_a", "w2_a")}
    return replace(part, **own, **{name: getattr(kind, name)[columns].clone() for name in ("w1_b", "w2_b")})


def _owners(up: Tensor, runs: Sequence[Run]) -> list[int] | None:
    """The one part that each column of `up` belongs to, in the order of the parts; None if it is not so.

    A column of zeros belongs to a part only if all parts have equally many.
    """
    if up.is_meta:
        return None
    flat = up.flatten(1)
    used = torch.stack([(flat[start:stop] != 0).any(dim=0) for start, stop in runs])
    rank = flat.shape[1]
    if rank % len(runs) == 0:
        equal = [column // (rank // len(runs)) for column in range(rank)]
        expected = torch.tensor(equal, device=up.device) == torch.arange(len(runs), device=up.device)[:, None]
        if used.any() and not (used & ~expected).any():
            return equal
    if not (used.sum(dim=0) == 1).all():
        return None
    owners = used.int().argmax(dim=0).tolist()
    return owners if all(a <= b for a, b in pairwise(owners)) else None


def _columns(owners: Sequence[int], part: int) -> slice:
    first = owners.index(part) if part in owners else 0
    return slice(first, first + owners.count(part))


def _height(kinds: Sequence[Kind]) -> int | None:
    return next((rows for kind in kinds if (rows := rows_of(kind)) is not None), None)


def rows_of(kind: Kind) -> int | None:
    """The number of output rows of the module that a kind changes; None where the kind does not say."""
    match kind:
        case LoRA() | LoHa() | LoKr():
            return kind.extent[0]
        case DoRA():
            return kind.inner.extent[0]
        case GLoRA():
            return kind.up.shape[0]
        case Full():
            return kind.diff.shape[0]
        case Replace() | Norm():
            return next(iter(kind.tensors().values())).shape[0]
        case Bias():
            return kind.bias.shape[0]
        case OFT() | ReadyOFT():
            blocks = next(iter(kind.tensors().values()))
            return blocks.shape[0] * blocks.shape[1]
        case BOFT():
            return kind.out
        case IA3(on_input=False):
            return kind.gain.numel()
    return None
